"""DKIM tag lists: signature fields and key records, read and checked.

Owns what RFC 6376 6.1.1 and 6.1.2 ask of both before anything is computed, so
that a signature or key that can't count is known by its reason. Asks no DNS
and verifies nothing. RFC 6376 3.5, 3.6.1, 8301 (algorithms), 8463 (Ed25519).
"""

from __future__ import annotations

import functools
import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dkim.util import InvalidTagValueList, parse_tag_value

from server.mail.header import HeaderField
from server.sender_auth.names import domain_name, is_at_or_below

MAX_SIGNATURES = 10
MAX_SIGNATURE_OCTETS = 32_768
MAX_SIGNED_FIELDS = 1000
MAX_KEY_OCTETS = 8192
KNOWN_OCTETS = 1024  # of a key's record, and of h=, that are remembered
MAX_KEYS = 3  # of one name: RFC 6376 6.1.2 lets us try them in turn
CLOCK_SLOP_SECONDS = 36_000
ED25519_OCTETS = 32
_ALGORITHMS = {"rsa-sha256": b"rsa", "ed25519-sha256": b"ed25519"}
_FORMS = {b"simple": False, b"relaxed": True}
# RFC 8601 2.7.1: of signatures with errors of syntax; what is wrong with a key is a "permerror".
UNREADABLE = "neutral"
_SPACE = b" \t\n\r\f\v"
_BASE64 = re.compile(rb"[A-Za-z0-9+/]+={0,2}")
_NUMBER = re.compile(rb"[0-9]{1,76}")  # RFC 6376 3.5, l=
_ALGORITHM = re.compile(rb"[A-Za-z0-9-]{1,40}")
_FIELD_NAME = re.compile(rb"[!-9<-~]+")
_SELECTOR = re.compile(rb"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")


class Unusable(Exception):
    """Why a signature or a key can't verify: a result of RFC 8601 2.7.1 and a reason."""

    def __init__(self, result: str, reason: str) -> None:
        super().__init__(reason)
        self.result = result
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Signature:
    """One DKIM-Signature field, read.

    index: its place among them, the topmost 0. names: lower-case, as h= lists them.
    limit: l=, None without. beginning: of b=, which tells signatures apart (RFC 6008).
    fault: why it can't be verified, as (result, reason); then the rest may be empty.
    """

    index: int
    domain: str = ""
    selector: str = ""
    algorithm: str = ""
    beginning: str = ""
    names: tuple[bytes, ...] = ()
    is_header_relaxed: bool = False
    is_body_relaxed: bool = False
    limit: int | None = None
    body_hash: bytes = b""
    value: bytes = b""
    identity_domain: str = ""
    signed_at: int | None = None
    expires_at: int | None = None
    fault: tuple[str, str] | None = None

    @property
    def key_name(self) -> str:
        """The name whose TXT record holds the key (RFC 6376 3.6.2.1)."""
        return f"{self.selector}._domainkey.{self.domain}"


def signatures(fields: Sequence[HeaderField]) -> tuple[Signature, ...]:
    """Return the DKIM-Signature fields of a header, the topmost first, MAX_SIGNATURES at most."""
    found = [field for field in fields if field.name.lower() == b"dkim-signature"]
    return tuple(_signature(index, field) for index, field in enumerate(found[:MAX_SIGNATURES]))


def _signature(index: int, field: HeaderField) -> Signature:
    if len(field.raw) > MAX_SIGNATURE_OCTETS:
        return Signature(index, fault=(UNREADABLE, "signature too long"))
    try:
        tags = parse_tag_value(field.value)
    except InvalidTagValueList:
        return Signature(index, fault=(UNREADABLE, "signature syntax"))
    named = _identify(index, tags)
    try:
        return _read(named, tags)
    except Unusable as unusable:
        return Signature(
            index,
            domain=named.domain,
            selector=named.selector,
            algorithm=named.algorithm,
            beginning=named.beginning,
            fault=(unusable.result, unusable.reason),
        )


def _identify(index: int, tags: Mapping[bytes, bytes]) -> Signature:
    """Return what names a signature in results, as far as it can be read."""
    selector, algorithm = tags.get(b"s", b""), tags.get(b"a", b"")
    beginning = _unspaced(tags.get(b"b", b"")[:16])[:8]
    return Signature(
        index,
        domain=domain_name(tags.get(b"d", b"").decode("utf-8", "replace")) or "",
        selector=selector.decode("ascii").lower() if _SELECTOR.fullmatch(selector) else "",
        algorithm=algorithm.decode("ascii").lower() if _ALGORITHM.fullmatch(algorithm) else "",
        beginning=beginning.decode("ascii") if _BASE64.fullmatch(beginning) else "",
    )


def _read(named: Signature, tags: Mapping[bytes, bytes]) -> Signature:
    for name in (b"v", b"a", b"b", b"bh", b"d", b"h", b"s"):
        if not tags.get(name):
            raise Unusable(UNREADABLE, f"no {name.decode()}= tag")
    if tags[b"v"] != b"1":
        raise Unusable(UNREADABLE, "unknown version")
    if named.algorithm == "rsa-sha1":
        raise Unusable("policy", "rsa-sha1 is not accepted")  # RFC 8301 3.1
    if named.algorithm not in _ALGORITHMS:
        raise Unusable(UNREADABLE, "unknown algorithm")
    if not named.domain or not named.selector:
        raise Unusable(UNREADABLE, "no valid domain and selector")
    if b"dns/txt" not in _list(tags.get(b"q", b"dns/txt")):
        raise Unusable(UNREADABLE, "unknown query method")
    forms = tags.get(b"c", b"simple").lower().split(b"/")
    if len(forms) > 2 or not all(form in _FORMS for form in forms):
        raise Unusable(UNREADABLE, "unknown canonicalization")
    return Signature(
        named.index,
        domain=named.domain,
        selector=named.selector,
        algorithm=named.algorithm,
        beginning=named.beginning,
        names=_known_names(tags[b"h"]) if len(tags[b"h"]) <= KNOWN_OCTETS else _names(tags[b"h"]),
        is_header_relaxed=_FORMS[forms[0]],
        is_body_relaxed=len(forms) == 2 and _FORMS[forms[1]],
        limit=_number(tags, b"l"),
        body_hash=_base64(tags[b"bh"]),
        value=_base64(tags[b"b"]),
        identity_domain=_identity_domain(tags.get(b"i"), named.domain),
        signed_at=_number(tags, b"t"),
        expires_at=_number(tags, b"x"),
    )


def _list(value: bytes) -> list[bytes]:
    return [item.strip().lower() for item in value.split(b":")]


def _names(value: bytes) -> tuple[bytes, ...]:
    names = _list(value)
    if len(names) > MAX_SIGNED_FIELDS:
        raise Unusable(UNREADABLE, "too many signed fields")
    if not all(_FIELD_NAME.fullmatch(name) for name in names):
        raise Unusable(UNREADABLE, "h= syntax")
    if b"from" not in names:
        raise Unusable(UNREADABLE, "From is not signed")  # RFC 6376 6.1.1
    return tuple(names)


_known_names = functools.lru_cache(maxsize=1024)(_names)  # a signer signs the same fields each time


def _number(tags: Mapping[bytes, bytes], name: bytes) -> int | None:
    value = tags.get(name)
    if value is None:
        return None
    if not _NUMBER.fullmatch(value):
        raise Unusable(UNREADABLE, f"{name.decode()}= syntax")
    return int(value)


def _unspaced(value: bytes) -> bytes:
    return value.translate(None, _SPACE)


def _base64(value: bytes) -> bytes:
    value = _unspaced(value)
    if len(value) % 4 or not _BASE64.fullmatch(value):
        raise Unusable(UNREADABLE, "base64 syntax")
    return a2b_base64(value)


def _identity_domain(identity: bytes | None, domain: str) -> str:
    """RFC 6376 3.5, i=: the same as d= or a subdomain of it."""
    if identity is None:
        return domain
    found = domain_name(_unspaced(identity).rpartition(b"@")[2].decode("utf-8", "replace"))
    if b"@" not in identity or found is None or not is_at_or_below(found, domain):
        raise Unusable(UNREADABLE, "i= is not within d=")
    return found


def check_times(signature: Signature, *, now: int) -> None:
    """Raise Unusable for a signature that is expired or not yet made; now in seconds since 1970."""
    signed, expires = signature.signed_at, signature.expires_at
    if signed is not None and signed > now + CLOCK_SLOP_SECONDS:
        raise Unusable(UNREADABLE, "signed in the future")
    if signed is not None and expires is not None and expires < signed:
        raise Unusable(UNREADABLE, "expires before it is signed")
    if expires is not None and expires < now:
        raise Unusable("fail", "signature expired")


@dataclass(frozen=True, slots=True)
class Key:
    """What the DNS said at a key's name: the texts, or why there is none ('none' or 'temperror')."""

    texts: tuple[bytes, ...] = ()
    failure: str = ""


def key_of(records: Sequence[tuple[bytes, ...]]) -> Key:
    """Return the key of a name's TXT records; texts without p= stand back behind those with it."""
    texts = [b"".join(strings)[: MAX_KEY_OCTETS + 1] for strings in records]
    keys = [text for text in texts if b"p" in _tags(text)]
    return Key(tuple((keys or texts)[:MAX_KEYS]), "" if texts else "none")


def _tags(text: bytes) -> Mapping[bytes, bytes]:
    return _known_tags(text) if len(text) <= KNOWN_OCTETS else _read_tags(text)


def _read_tags(text: bytes) -> Mapping[bytes, bytes]:
    try:
        return dict(parse_tag_value(text)) if len(text) <= MAX_KEY_OCTETS else {}
    except InvalidTagValueList:
        return {}


_known_tags = functools.lru_cache(maxsize=1024)(_read_tags)  # read and never changed


def public_key(text: bytes, signature: Signature) -> tuple[bytes, bytes]:
    """Return (key type, public key in base64) of a key record fit for a signature; raises Unusable."""
    tags = _tags(text)
    if not tags or b"p" not in tags:
        raise Unusable("permerror", "key syntax")
    if b"v" in tags and (next(iter(tags)) != b"v" or tags[b"v"] != b"DKIM1"):
        raise Unusable("permerror", "key version")
    if b"sha256" not in _list(tags.get(b"h", b"sha256")):
        raise Unusable("permerror", "key is not for sha256")
    if not {b"*", b"email"} & set(_list(tags.get(b"s", b"*"))):
        raise Unusable("permerror", "key is not for email")
    if tags.get(b"k", b"rsa").lower() != _ALGORITHMS[signature.algorithm]:
        raise Unusable("permerror", "key is of another type")
    if b"s" in _list(tags.get(b"t", b"")) and signature.identity_domain != signature.domain:
        raise Unusable("permerror", "key is not for subdomains")
    encoded = _unspaced(tags[b"p"])
    if not encoded:
        raise Unusable("permerror", "key revoked")  # RFC 6376 3.6.1
    try:
        octets = a2b_base64(encoded)
    except Base64Error:
        raise Unusable("permerror", "key syntax") from None
    kind = _ALGORITHMS[signature.algorithm]
    if kind == b"ed25519" and len(octets) != ED25519_OCTETS:
        raise Unusable("permerror", "key syntax")  # RFC 8463 4.2
    return kind, encoded
