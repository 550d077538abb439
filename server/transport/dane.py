"""DANE for SMTP: which TLSA records are usable, and whether a server's chain is what they name.

Owns the reading of usages, selectors and matching types, and the decision about a chain of
certificates. Asks no DNS and opens no connection. Pure. RFC 6698 2.1, RFC 7671 5, RFC 7672 3.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from server.transport.chain import (
    Broken,
    find_path,
    is_for,
    is_sequence,
    issued_by_key,
    load,
    parse_chain,
    subject_key,
)
from server.transport.security import Fault, ResultType, Security, Tlsa

DANE_TA, DANE_EE = 2, 3
CERTIFICATE, PUBLIC_KEY = 0, 1
FULL, SHA256, SHA512 = 0, 1, 2
MAX_RECORDS = 50
_LENGTHS = {SHA256: 32, SHA512: 64}


def usable(records: Iterable[Tlsa]) -> tuple[Tlsa, ...]:
    """Return the records that mean something for SMTP (RFC 7672 3.1.3: PKIX-TA and PKIX-EE do not)."""
    return tuple(sorted({one for one in records if _is_usable(one)}))[:MAX_RECORDS]


def _is_usable(record: Tlsa) -> bool:
    if record.usage not in (DANE_TA, DANE_EE) or record.selector not in (CERTIFICATE, PUBLIC_KEY):
        return False
    if record.matching == FULL:
        return _is_whole(record)
    return len(record.data) == _LENGTHS.get(record.matching, -1)


def _is_whole(record: Tlsa) -> bool:
    """Whether a record has the form of what it says; one that is not understood counts, and fails."""
    if record.selector == PUBLIC_KEY:
        return is_sequence(record.data)
    try:
        subject_key(record.data)
    except Broken:
        return False
    return is_sequence(record.data)


def find_fault(chain: Sequence[bytes], security: Security, *, now: datetime) -> Fault | None:
    """Return why a server's chain is not what TLSA records name, None where it is.

    chain: certificates in DER as the server sent them, its own first. now: in UTC.
    """
    if not chain:
        return Fault(ResultType.VALIDATION, "the server showed no certificate")
    try:
        if any(one.usage == DANE_EE and _names(one, chain[0]) for one in security.tlsa):
            # RFC 7671 5.1: neither the certificate's names nor its dates count.
            return None
        certificates = parse_chain(chain)
    except Broken as error:
        return Fault(ResultType.VALIDATION, str(error))
    anchors = [one for one in security.tlsa if one.usage == DANE_TA]
    if not anchors:
        return Fault(ResultType.NOT_TRUSTED, "no TLSA record names the server's certificate or key")
    return _find_anchor_fault(certificates, anchors, security.names, now)


def _find_anchor_fault(
    certificates: Sequence[x509.Certificate], anchors: Sequence[Tlsa], names: Sequence[str], now: datetime
) -> Fault | None:
    """RFC 7671 5.2: the chain must lead to what a record names, and the certificate be for the name."""
    fault = Fault(ResultType.NOT_TRUSTED, "the server's chain leads to nothing that a TLSA record names")
    for anchor in anchors:
        try:
            reached = _reaches(certificates, anchor, now)
        except Broken as error:
            fault = Fault(ResultType.EXPIRED if error.is_expired else ResultType.NOT_TRUSTED, str(error))
            continue
        if not reached:
            continue
        if is_for(certificates[0], names):
            return None
        return Fault(ResultType.HOST_MISMATCH, f"the certificate is not for {' or '.join(names)}")
    return fault


def _reaches(certificates: Sequence[x509.Certificate], anchor: Tlsa, now: datetime) -> bool:
    """Return whether the server's certificate is signed by way of an anchor; raises Broken."""
    leaf, above = certificates[0], certificates[1:]
    named = [one for one in above if _names(anchor, one.public_bytes(serialization.Encoding.DER))]
    if anchor.matching == FULL and anchor.selector == CERTIFICATE and not named:
        # RFC 7671 5.2.2: given whole, it need not be sent.
        named = [load(anchor.data)]
    for one in named:
        if find_path(leaf, above, one, now=now):
            return True
    if anchor.matching == FULL and anchor.selector == PUBLIC_KEY:
        return issued_by_key(leaf, above, anchor.data, now=now)
    return False


def _names(record: Tlsa, certificate: bytes) -> bool:
    """Whether a record's data is that of a certificate in DER (RFC 6698 2.1.2, 2.1.3); raises Broken."""
    octets = certificate if record.selector == CERTIFICATE else subject_key(certificate)
    return hmac.compare_digest(_digested(octets, record.matching), record.data)


def _digested(octets: bytes, matching: int) -> bytes:
    if matching == SHA256:
        return hashlib.sha256(octets).digest()
    return hashlib.sha512(octets).digest() if matching == SHA512 else octets


def own_record(certificate: bytes) -> Tlsa:
    """Return the record that names the key of a certificate in DER by SHA-256: 3 1 1 (RFC 7672 3.1.1)."""
    return Tlsa(DANE_EE, PUBLIC_KEY, SHA256, hashlib.sha256(subject_key(certificate)).digest())
