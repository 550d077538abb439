"""The Authenticated Received Chain of a message verified (RFC 8617 5.2).

Owns the use of dkimpy for it, with our RSA, selection and canonicalisation in it,
the bounds on what a stranger can make it do, and what a sealer that the operator
believes says of earlier checks. The keys are resolved beforehand; of the message
signatures only the newest counts, so that a body is hashed once. RFC 8601, 8301.
"""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dkim
from authres import AuthenticationResultsHeader, AuthResError
from dkim.util import InvalidTagValueList, parse_tag_value

from server.mail.header import HeaderField
from server.sender_auth import rsa
from server.sender_auth.canonical import BodyHash
from server.sender_auth.dkim_tags import Key
from server.sender_auth.dkim_verify import pieces, silent, value_of
from storage.records import Verdict

NAMES = frozenset({b"arc-authentication-results", b"arc-message-signature", b"arc-seal"})
MAX_FIELDS = 150  # RFC 8617 4.2.1: 50 sets of three
MAX_KEYS = 16
MAX_RECORD_OCTETS = 8192  # of a believed sealer's results
LOOKUP_FAILED = "key lookup failed"
NOT_IN_TIME = "not checked in time"
TOO_MANY_KEYS = "too many keys"
# Reasons of a 'fail' that say nothing about the chain itself.
UNDECIDED = frozenset({LOOKUP_FAILED, NOT_IN_TIME, TOO_MANY_KEYS})


@dataclass(frozen=True, slots=True)
class Chain:
    """The ARC fields of a message in their order, and where the keys of their signatures lie."""

    fields: tuple[HeaderField, ...]
    key_names: frozenset[str]
    fault: str = ""


def read_chain(fields: Sequence[HeaderField]) -> Chain | None:
    """Return the chain that a header holds, None where it has no ARC field."""
    own = tuple(field for field in fields if field.name.lower() in NAMES)
    if not own:
        return None
    if len(own) > MAX_FIELDS:
        return Chain(own, frozenset(), "too many sets")
    names = frozenset(_key_names(own))
    return Chain(own, names, TOO_MANY_KEYS if len(names) > MAX_KEYS else "")


def _key_names(fields: Sequence[HeaderField]) -> Iterator[str]:
    """Yield where the keys of every seal and of the newest message signature lie."""
    signatures: dict[int, str] = {}
    for field in fields:
        kind = field.name.lower()
        if kind == b"arc-authentication-results":
            continue
        try:
            tags = parse_tag_value(value_of(field.raw))
            name = f"{tags[b's'].decode('ascii')}._domainkey.{tags[b'd'].decode('ascii')}".lower()
            if kind == b"arc-seal":
                yield name
            else:
                signatures[int(tags[b"i"])] = name
        except (InvalidTagValueList, KeyError, ValueError):
            continue  # the verification says what is wrong with it
    if signatures:
        yield signatures[max(signatures)]


def verify(
    content: bytes | Path,
    fields: Sequence[HeaderField],
    header_octets: int,
    chain: Chain,
    keys: Mapping[str, Key],
    *,
    authors: Collection[str] = (),
    believed: Collection[str] = (),
) -> Verdict:
    """Return the verdict on a message's chain: 'pass' or 'fail'.

    fields, header_octets: of the content's header. keys: by name. authors: the From field's
    domains. believed: domains of sealers whose records count; where the newest seal is theirs and
    says that DMARC passed for the one author, the property policy.believed is 'dmarc'. All domains
    are lower-case A-labels. OSError where a file of content can't be read.
    """
    fault = chain.fault
    if any(keys.get(name, Key(failure="temperror")).failure == "temperror" for name in chain.key_names):
        fault = fault or LOOKUP_FAILED
    if fault:
        return Verdict("arc", "fail", "", fault)
    result, sets, reason = _run(content, fields, header_octets, keys)
    newest = sets[0] if sets else {}
    sealer = newest.get("as-domain", b"").decode("ascii", "replace").lower()
    properties = {"policy.sealer": sealer} if sealer else {}
    if result == "pass" and sealer in believed and _recorded_authors(newest["aar-value"]) == set(authors):
        properties["policy.believed"] = "dmarc"
    return Verdict("arc", result, sealer, "" if result == "pass" else reason, properties)


def _recorded_authors(record: bytes) -> set[str] | None:
    """Return the author domains that a sealer's results (RFC 8617 4.1.1) say DMARC passed for.

    None where they say so of none. Read by their grammar (RFC 8601 2.2): a comment or a quoted
    string may be a stranger's words.
    """
    if len(record) > MAX_RECORD_OCTETS:
        return None
    try:
        parsed = AuthenticationResultsHeader.parse_value(record.decode("ascii").partition(";")[2].strip())
    except (AuthResError, ValueError, RecursionError):
        return None
    passed = {
        str(one.value).lower()
        for result in parsed.results
        if result.method == "dmarc" and result.result == "pass"
        for one in result.properties
        if (one.type, one.name) == ("header", "from")
    }
    return passed or None


def _run(
    content: bytes | Path, fields: Sequence[HeaderField], header_octets: int, keys: Mapping[str, Key]
) -> tuple[str, list[dict[str, Any]], str]:
    pairs = [(field.name, _numbered(field)) for field in fields]
    checking = _Checking(pairs, functools.partial(_body_hash, content, header_octets))

    def find_key(name: bytes, **_ignored: object) -> bytes | None:
        found = keys.get(name.decode("ascii", "replace").rstrip(".").lower(), Key(failure="none"))
        return found.texts[0] if found.texts else None

    try:
        status, sets, reason = checking.verify(find_key)
    except OSError:
        raise
    except Exception:  # noqa: BLE001  dkimpy raises whatever a hostile field makes its code raise
        return "fail", [], "the chain cannot be read"
    return ("pass" if status == dkim.CV_Pass else "fail"), sets, reason


class _Numbered(bytes):
    """A message signature's value that dkimpy finds by its i= tag, wherever and however that stands.

    It looks for ' i=1;' in lower(), which a tab, no blank or the last tag's place would hide.
    """

    def lower(self) -> bytes:
        try:
            return b" i=" + bytes(parse_tag_value(bytes(self))[b"i"]) + b";"
        except (InvalidTagValueList, KeyError):
            return b""


def _numbered(field: HeaderField) -> bytes:
    value = value_of(field.raw)
    return _Numbered(value) if field.name.lower() == b"arc-message-signature" else value


def _body_hash(content: bytes | Path, offset: int, relaxed: bool) -> bytes:
    body = BodyHash(relaxed=relaxed, limits=set())
    for piece in pieces(content, offset):
        body.update(piece)
    body.finish()
    return body.digest()


class _Checking(dkim.ARC):  # type: ignore[misc]  # dkimpy carries no types
    """A message's header as fields; its body is hashed once, for the newest message signature."""

    def __init__(self, fields: list[tuple[bytes, bytes]], body_hash: Callable[[bool], bytes]) -> None:
        super().__init__(None, logger=silent, minkey=rsa.MINIMUM_BITS)
        self.headers = fields
        self._body_hash = body_hash
        self._is_newest = True

    def verify_sig(
        self, sig: dict[bytes, bytes], include_headers: Any, sig_header: Any, dnsfunc: Any
    ) -> bool:
        """Return whether one signature of a set fits; without bh= dkimpy leaves the body out."""
        if b"bh" in sig:
            if not self._is_newest:
                return False  # RFC 8617 5.2: older ones need not hold, and none asks for them
            self._is_newest = False
            form = sig[b"c"].partition(b"/")[2]
            stated = re.sub(rb"\s+", b"", sig.pop(b"bh"))
            if b"l" in sig or stated != self._encoded(is_relaxed=form == b"relaxed"):
                return False
        return bool(super().verify_sig(sig, include_headers, sig_header, dnsfunc))

    def _encoded(self, *, is_relaxed: bool) -> bytes:
        return base64.b64encode(self._body_hash(is_relaxed))
