"""Paths of certificates from a server to an anchor that was named beforehand, and the names they are for.

Owns what makes one certificate the issuer of another, and the limits of the search. The
anchor is trusted because a record names it: it needs no authority above it. Refuses what it
does not understand: an unknown critical extension, a weak signature, a constraint on names
that is broken. Pure. RFC 5280 4.2, 6.1; RFC 9525 6.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, SignatureAlgorithmOID

MAX_CERTIFICATES = 20
MAX_DEPTH = 10
MAX_CERTIFICATE_OCTETS = 64 << 10
_KNOWN = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE, ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME, ExtensionOID.NAME_CONSTRAINTS,
        ExtensionOID.CERTIFICATE_POLICIES, ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    }
)  # fmt: skip
# RFC 9155 for TLS itself; a chain signed so proves nothing any more.
_WEAK = frozenset(
    {
        SignatureAlgorithmOID.RSA_WITH_MD5, SignatureAlgorithmOID.RSA_WITH_SHA1,
        SignatureAlgorithmOID.DSA_WITH_SHA1, SignatureAlgorithmOID.ECDSA_WITH_SHA1,
    }
)  # fmt: skip
MIN_RSA_BITS = 1024
SEQUENCE = 0x30
MAX_FIELDS = 12  # RFC 5280 4.1: what is signed has ten


class Broken(ValueError):
    """A chain that proves nothing; the text says why. is_expired: for its dates alone."""

    def __init__(self, text: str, *, is_expired: bool = False) -> None:
        super().__init__(text)
        self.is_expired = is_expired


def parse_chain(chain: Sequence[bytes]) -> list[x509.Certificate]:
    """Return a chain's certificates, the server's own first; raises Broken."""
    if not chain:
        raise Broken("the server showed no certificate")
    if len(chain) > MAX_CERTIFICATES or any(len(one) > MAX_CERTIFICATE_OCTETS for one in chain):
        raise Broken("the server's chain is too long")
    return [load(octets) for octets in chain]


def load(octets: bytes) -> x509.Certificate:
    """Return a certificate of which every part that is looked at later can be read; raises Broken."""
    try:
        found = x509.load_der_x509_certificate(octets)
        # The library reads parts when they are asked for: a damaged one raises in this place.
        list(found.extensions)
        found.public_key()
        found.subject.rfc4514_string()
        found.issuer.rfc4514_string()
        _ = (found.not_valid_before_utc, found.not_valid_after_utc, found.signature_algorithm_oid)
    except Exception as error:  # noqa: BLE001 - it raises more than ValueError for strangers' octets
        raise Broken(f"a certificate cannot be read: {type(error).__name__}") from None
    return found


def find_path(
    leaf: x509.Certificate, others: Sequence[x509.Certificate], anchor: x509.Certificate, *, now: datetime
) -> bool:
    """Return whether a leaf is signed by an anchor, by way of others; raises Broken.

    A path with a fault is Broken only where no other leads to the anchor.
    """
    _check_end(leaf, now)
    return _Search(others, anchor, anchor.public_key(), now).run(leaf)


def issued_by_key(
    leaf: x509.Certificate, others: Sequence[x509.Certificate], key: bytes, *, now: datetime
) -> bool:
    """Return whether a leaf, or what signed it, is signed by a bare key in DER; raises Broken."""
    try:
        anchor = load_der_public_key(key)
    except Exception as error:  # noqa: BLE001 - it raises more than ValueError for strangers' octets
        raise Broken(f"a key cannot be read: {type(error).__name__}") from None
    _check_end(leaf, now)
    return _Search(others, None, anchor, now).run(leaf)


class _Search:
    """Looks for a way up, each certificate once: the work is bounded by their number."""

    def __init__(
        self, others: Sequence[x509.Certificate], anchor: x509.Certificate | None, key: Any, now: datetime
    ) -> None:
        self._others = [one for one in others if one != anchor]
        self._anchor = anchor
        self._key = key
        self._now = now
        self._fault: Broken | None = None

    def run(self, leaf: x509.Certificate) -> bool:
        seen: set[int] = set()
        below: list[tuple[x509.Certificate, ...]] = [(leaf,)]
        while below:
            path = below.pop()
            if self._is_end(path):
                return True
            for index, one in enumerate(self._others):
                if index not in seen and len(path) < MAX_DEPTH and _is_signed(path[-1], one):
                    seen.add(index)
                    if self._passes(one, path):
                        below.append((*path, one))
        if self._fault is not None:
            raise self._fault
        return False

    def _is_end(self, path: tuple[x509.Certificate, ...]) -> bool:
        if self._anchor is None:
            return _is_signed_by_key(path[-1], self._key)
        return _is_signed(path[-1], self._anchor) and self._passes(self._anchor, path)

    def _passes(self, issuer: x509.Certificate, path: Sequence[x509.Certificate]) -> bool:
        try:
            _check_dates(issuer, self._now)
            _check_known(issuer)
            _check_issuer(issuer, path)
        except Broken as error:
            self._fault = error
            return False
        return True


def _check_end(leaf: x509.Certificate, now: datetime) -> None:
    _check_dates(leaf, now)
    _check_known(leaf)
    usages = _extension(leaf, x509.ExtendedKeyUsage)
    allowed = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
    if usages is not None and not any(one in usages for one in allowed):
        raise Broken("the certificate is not one for servers")


def _check_dates(certificate: x509.Certificate, now: datetime) -> None:
    name = certificate.subject.rfc4514_string()[:80]
    if now > certificate.not_valid_after_utc:
        raise Broken(f"the certificate {name!a} has expired", is_expired=True)
    if now < certificate.not_valid_before_utc:
        raise Broken(f"the certificate {name!a} is not valid yet")


def _check_known(certificate: x509.Certificate) -> None:
    for one in certificate.extensions:
        if one.critical and one.oid not in _KNOWN:
            raise Broken(f"a certificate has an unknown critical extension {one.oid.dotted_string}")


def _check_issuer(issuer: x509.Certificate, path: Sequence[x509.Certificate]) -> None:
    """RFC 5280 6.1.4: whether a certificate may sign those below it."""
    constraints = _extension(issuer, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        raise Broken("a certificate in the chain is no authority")
    usage = _extension(issuer, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        raise Broken("a certificate in the chain may not sign others")
    between = sum(one.subject != one.issuer for one in path[1:])
    if constraints.path_length is not None and between > constraints.path_length:
        raise Broken("the chain is longer than one of its authorities allows")
    limits = _extension(issuer, x509.NameConstraints)
    if limits is not None:
        _check_names(limits, path[0])


def _check_names(limits: x509.NameConstraints, leaf: x509.Certificate) -> None:
    """RFC 5280 4.2.1.10, for DNS names: the only ones that a mail server is asked for."""
    excluded, permitted = _subtrees(limits.excluded_subtrees), _subtrees(limits.permitted_subtrees)
    for name in dns_names(leaf):
        if any(_is_below(name, tree) for tree in excluded):
            raise Broken(f"an authority may not sign for {name[:80]!a}")
        if permitted and not any(_is_below(name, tree) for tree in permitted):
            raise Broken(f"an authority may not sign for {name[:80]!a}")


def _subtrees(trees: Sequence[x509.GeneralName] | None) -> list[str]:
    return [one.value.lower().removeprefix(".") for one in trees or () if isinstance(one, x509.DNSName)]


def _is_below(name: str, tree: str) -> bool:
    return not tree or name == tree or name.endswith("." + tree)


def _is_signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    if certificate.issuer != issuer.subject:
        return False
    return _is_signed_by_key(certificate, issuer.public_key())


def _is_signed_by_key(certificate: x509.Certificate, key: Any) -> bool:
    if certificate.signature_algorithm_oid in _WEAK:
        return False
    try:
        _verify(certificate, key)
    except Exception:  # noqa: BLE001 - a wrong signature, another kind of key, senseless parameters: all 'no'
        return False
    return True


def _verify(certificate: x509.Certificate, key: Any) -> None:
    """Check a certificate's signature by a key; raises for whatever is not right."""
    signature, signed = certificate.signature, certificate.tbs_certificate_bytes
    digest: Any = certificate.signature_hash_algorithm
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < MIN_RSA_BITS:
            raise ValueError("the key is too short")
        padding: Any = certificate.signature_algorithm_parameters or PKCS1v15()
        key.verify(signature, signed, padding, digest)
    elif isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, signed, ec.ECDSA(digest))
    elif isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        key.verify(signature, signed)
    elif isinstance(key, dsa.DSAPublicKey):
        key.verify(signature, signed, digest)
    else:
        raise TypeError("no key that signs")


def subject_key(certificate: bytes) -> bytes:
    """Return the SubjectPublicKeyInfo of a certificate in DER, as it stands there; raises Broken.

    RFC 5280 4.1: the seventh field of what is signed, the sixth where no version is said.
    """
    fields = _fields(_fields(certificate)[0][2])
    # The first field is a version only where it is tagged [0].
    index = 6 if fields and fields[0][0] == 0xA0 else 5
    if len(fields) <= index:
        raise Broken("a certificate cannot be read: it is cut short")
    return fields[index][2]


def is_sequence(octets: bytes) -> bool:
    """Whether octets are one element of DER that holds others, and nothing behind it."""
    try:
        tag, _, whole = _element(octets, 0)
    except Broken:
        return False
    return tag == SEQUENCE and whole == octets


def _fields(octets: bytes) -> list[tuple[int, bytes, bytes]]:
    """Return tag, content and whole of the elements in a DER element, MAX_FIELDS at most."""
    _, content, _ = _element(octets, 0)
    found: list[tuple[int, bytes, bytes]] = []
    at = 0
    while at < len(content) and len(found) < MAX_FIELDS:
        found.append(_element(content, at))
        at += len(found[-1][2])
    if not found:
        raise Broken("a certificate cannot be read: it is empty")
    return found


def _element(octets: bytes, at: int) -> tuple[int, bytes, bytes]:
    if len(octets) < at + 2:
        raise Broken("a certificate cannot be read: it is cut short")
    tag, length, start = octets[at], octets[at + 1], at + 2
    if length > 0x80:
        width = length & 0x7F
        length = int.from_bytes(octets[start : start + width], "big")
        start += width
    if len(octets) < start + length or length == 0x80 == octets[at + 1]:
        raise Broken("a certificate cannot be read: it is cut short")
    return tag, octets[start : start + length], octets[at : start + length]


def dns_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the DNS names that a certificate is for, in lower case; its common name is none of them."""
    names = _extension(certificate, x509.SubjectAlternativeName)
    return () if names is None else tuple(one.lower() for one in names.get_values_for_type(x509.DNSName))


def is_for(certificate: x509.Certificate, names: Sequence[str]) -> bool:
    """Whether a certificate is for one of some names; a wildcard is one whole label (RFC 9525 6.3)."""
    told = set(dns_names(certificate))
    for name in names:
        lowered = name.rstrip(".").lower()
        _, dot, above = lowered.partition(".")
        if lowered in told or (dot and f"*.{above}" in told):
            return True
    return False


def _extension(certificate: x509.Certificate, kind: type[Any]) -> Any:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
