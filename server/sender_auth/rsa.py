"""RSA for DKIM by the cryptography library, put in the place of dkimpy's own.

Owns PKCS#1 v1.5 over SHA-256 as dkimpy calls it: a hash object and a key given
as numbers. rsa-sha1 and keys under 1,024 bits verify nothing (RFC 8301 3).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils

MINIMUM_BITS = 1024
MAXIMUM_BITS = 8192  # what a stranger's key may cost
MAXIMUM_EXPONENT_BITS = 33  # everybody's is 65537; a long one costs as much as signing
_SHA256 = utils.Prehashed(hashes.SHA256())


class Digest(Protocol):
    """What dkimpy hands over: the hash of what is signed."""

    def digest(self) -> bytes:
        """Return the digest."""
        ...


@functools.lru_cache(maxsize=1024)
def _public_key(modulus: int, exponent: int) -> rsa.RSAPublicKey:
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


def verify(hashed: Digest, signature: bytes, key: Mapping[str, int]) -> bool:
    """Return whether a signature fits; shaped like dkimpy's RSASSA_PKCS1_v1_5_verify."""
    digest = hashed.digest()
    bits = key["modulus"].bit_length()
    if len(digest) != 32 or not MINIMUM_BITS <= bits <= MAXIMUM_BITS:
        return False
    if key["publicExponent"].bit_length() > MAXIMUM_EXPONENT_BITS:
        return False
    try:
        _public_key(key["modulus"], key["publicExponent"]).verify(
            signature, digest, padding.PKCS1v15(), _SHA256
        )
    except (InvalidSignature, ValueError):
        return False
    return True
