"""DKIM key pairs: RSA-2048 and Ed25519, with the TXT record that publishes each.

Owns the making of keys and of their records (RFC 6376 3.6.1, RFC 8463 4).
Refuses RSA under 2048 bits (RFC 8301 3.2 asks for 1024 at least).
"""

from __future__ import annotations

import base64

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

ALGORITHMS = ("rsa-sha256", "ed25519-sha256")
RSA_BITS = 2048


def selector_of(algorithm: str, at: int) -> str:
    """Return the selector of a key that is made now; at: microseconds, of which the second counts."""
    return f"{algorithm.partition('-')[0]}{at // 1_000_000}"


def make_key(algorithm: str) -> tuple[bytes, str]:
    """Return (private key as PKCS 8 PEM, value of the TXT record) for an algorithm of ALGORITHMS."""
    if algorithm == "rsa-sha256":
        private: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey = rsa.generate_private_key(65537, RSA_BITS)
        public = private.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        kind = "rsa"
    elif algorithm == "ed25519-sha256":
        private = ed25519.Ed25519PrivateKey.generate()
        # RFC 8463 4.2: the 32 octets themselves, without an ASN.1 wrapping.
        public = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        kind = "ed25519"
    else:
        raise ValueError(f"{algorithm}: not one of {', '.join(ALGORITHMS)}")
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem, f"v=DKIM1; k={kind}; p={base64.b64encode(public).decode()}"
