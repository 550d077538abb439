"""DKIM signatures verified: every one of a message, each with its own result.

Owns the use of dkimpy for the verification itself, with our RSA, selection and
canonicalisation in it, and the bounds on what a stranger can make it do. The
keys are resolved beforehand; a body is read once, in pieces, whatever the
number of signatures. RFC 6376, 8301 (no rsa-sha1, 1,024 bits), 8463, 8601.
"""

from __future__ import annotations

import binascii
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dkim
import dkim.canonicalization

from server.mail.header import MAX_FIELDS, HeaderField
from server.sender_auth import canonical, rsa
from server.sender_auth.canonical import BodyHash, Field
from server.sender_auth.dkim_tags import Key, Signature, Unusable, check_times, public_key
from storage.records import Verdict

PIECE_OCTETS = 262_144
ED25519_SIGNATURE_OCTETS = 64
# RFC 5322 3.6: fields that stand once. A second one beside a signed one is a forgery's mark.
SINGLE_FIELDS = frozenset(
    b"date from sender reply-to to cc message-id in-reply-to references subject "
    b"mime-version content-type content-transfer-encoding".split()
)

silent = logging.getLogger("dkimpy")
silent.addHandler(logging.NullHandler())
silent.propagate = False

dkim.RSASSA_PKCS1_v1_5_verify = rsa.verify
dkim.select_headers = canonical.select_headers
dkim.RE_BTAG = canonical.B_TAG
dkim.canonicalization.Relaxed.canonicalize_body = staticmethod(canonical.relaxed_body)
dkim.canonicalization.Relaxed.canonicalize_headers = staticmethod(canonical.relaxed_headers)
dkim.canonicalization.Simple.canonicalize_body = staticmethod(canonical.simple_body)


class _Message(dkim.DKIM):  # type: ignore[misc]  # dkimpy carries no types
    """A message's header as fields; its body is hashed elsewhere."""

    def __init__(self, fields: list[Field]) -> None:
        super().__init__(None, logger=silent, minkey=rsa.MINIMUM_BITS)
        self.headers = fields

    def check(self, signature: Signature, field: Field, key: Any) -> bool:
        """Return whether the signature fits its fields; without bh= dkimpy leaves the body out."""
        self.pk, self.keysize, self.ktag, self.seqtlsrpt = key
        form = b"relaxed" if signature.is_header_relaxed else b"simple"
        tags = {
            b"a": signature.algorithm.encode(),
            b"c": form,
            b"b": binascii.b2a_base64(signature.value, newline=False),
        }
        return bool(self.verify_sig_process(tags, list(signature.names), field, None))


def verify(
    content: bytes | Path,
    fields: Sequence[HeaderField],
    header_octets: int,
    found: Sequence[Signature],
    keys: Mapping[str, Key],
    *,
    now: int,
) -> tuple[Verdict, ...]:
    """Return a verdict for each signature.

    fields: of the content's header, whose octets with its blank line come next. keys: by
    key_name. now: seconds since 1970. OSError where a file of content can't be read.
    """
    judged = [_prepare(signature, keys, now) for signature in found]
    usable = [one for one in judged if isinstance(one, Signature)]
    bodies = _hash_body(content, header_octets, usable)
    pairs = [(field.name, value_of(field.raw)) for field in fields] if usable else []
    return tuple(
        _verdict(signature, _judge(pairs, bodies, signature, keys[signature.key_name]))
        if isinstance(one, Signature)
        else _verdict(signature, one)
        for signature, one in zip(found, judged, strict=True)
    )


def _prepare(signature: Signature, keys: Mapping[str, Key], now: int) -> Signature | tuple[str, str]:
    """Return the signature if there is anything to compute, else its result and reason."""
    if signature.fault is not None:
        return signature.fault
    try:
        check_times(signature, now=now)
    except Unusable as unusable:
        return unusable.result, unusable.reason
    key = keys.get(signature.key_name, Key(failure="temperror"))
    if key.failure == "temperror":
        return "temperror", "key lookup failed"
    return ("permerror", "no key") if key.failure else signature


def value_of(raw: bytes) -> bytes:
    """Return what stands behind a raw field's colon, with its line end."""
    value = raw.partition(b":")[2]
    return value if value.endswith(b"\n") else value + b"\r\n"


def _hash_body(content: bytes | Path, offset: int, found: Sequence[Signature]) -> dict[bool, BodyHash]:
    """Return the body's hashes by whether the form is relaxed, as far as signatures ask for them."""
    bodies: dict[bool, BodyHash] = {}
    for relaxed in {signature.is_body_relaxed for signature in found}:
        limits = {s.limit for s in found if s.limit is not None and s.is_body_relaxed == relaxed}
        bodies[relaxed] = BodyHash(relaxed=relaxed, limits=limits)
    if bodies:
        for piece in pieces(content, offset):
            for body in bodies.values():
                body.update(piece)
        for body in bodies.values():
            body.finish()
    return bodies


def pieces(content: bytes | Path, offset: int) -> Iterator[bytes]:
    """Yield a content from an offset on, a file in pieces of PIECE_OCTETS."""
    if isinstance(content, bytes):
        yield content[offset:]
        return
    with open(content, "rb") as file:
        file.seek(offset)
        while piece := file.read(PIECE_OCTETS):
            yield piece


def _judge(
    fields: list[Field], bodies: Mapping[bool, BodyHash], signature: Signature, key: Key
) -> tuple[str, str]:
    """RFC 8601 2.7.1 names the results; what no modern verifier accepts is 'policy' or 'permerror'."""
    if len(fields) >= MAX_FIELDS:
        return "permerror", "too many header fields"  # what lies below could not be seen
    body = bodies[signature.is_body_relaxed]
    if body.digest(signature.limit) != signature.body_hash:
        return "fail", "body hash mismatch"
    outcomes = [try_key(fields, signature, text) for text in key.texts]
    result, reason = next((one for one in outcomes if one[0] == "pass"), outcomes[0])
    if result != "pass":
        return result, reason
    if signature.limit is not None and signature.limit < body.octets:
        return "policy", "content beyond the signed length"  # RFC 6376 8.2
    return _check_single(fields, signature)


def try_key(fields: list[Field], signature: Signature, text: bytes) -> tuple[str, str]:
    """Return the result and reason of a signature over the header alone, by one key record."""
    try:
        key = _load(*public_key(text, signature))
        if key[2] == b"rsa" and key[1] < rsa.MINIMUM_BITS:
            return "policy", "key too small"  # RFC 8301 3.2
        if key[2] == b"ed25519" and len(signature.value) != ED25519_SIGNATURE_OCTETS:
            return "fail", "signature"
        wanted = {*signature.names, b"from"}
        chosen = [field for field in fields if field[0].lower() in wanted]
        own = [field for field in fields if field[0].lower() == b"dkim-signature"][signature.index]
        return ("pass", "") if _Message(chosen).check(signature, own, key) else ("fail", "signature")
    except Unusable as unusable:
        return unusable.result, unusable.reason
    except Exception:  # noqa: BLE001  dkimpy raises whatever a hostile key makes its code raise
        return "permerror", "key or signature"


@functools.lru_cache(maxsize=1024)
def _load(kind: bytes, encoded: bytes) -> Any:
    """Return a key as dkimpy reads it: (key, bits, type, whether it is for TLS reports)."""
    return dkim.evaluate_pk("", b"k=%b; p=%b" % (kind, encoded))


def _check_single(fields: list[Field], signature: Signature) -> tuple[str, str]:
    present = [field[0].lower() for field in fields]
    for name in SINGLE_FIELDS.intersection(signature.names):
        if present.count(name) > signature.names.count(name):
            return "policy", f"unsigned {name.decode()} beside the signed one"
    return "pass", ""


def _verdict(signature: Signature, judged: tuple[str, str]) -> Verdict:
    properties = {
        "header.d": signature.domain,
        "header.s": signature.selector,
        "header.a": signature.algorithm,
        "header.b": signature.beginning,
    }
    result, reason = judged
    return Verdict(
        "dkim", result, signature.domain, reason, {name: value for name, value in properties.items() if value}
    )
