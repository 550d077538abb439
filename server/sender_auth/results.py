"""The Authentication-Results field: written for our verdicts, and found where it is forged.

Owns both directions of RFC 8601 by way of authres, and the quoting that authres
leaves out: what strangers chose reaches the field as a token, a plain mailbox
or a quoted string of printable ASCII, or not at all. Removes nothing itself.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence

from authres.core import (
    AuthenticationResult,
    AuthenticationResultProperty,
    AuthenticationResultsHeader,
    QuotableValue,
)

from server.mail import header
from server.mail.address import AddressSyntax, normalise_domain
from server.mail.header import HeaderField
from storage.records import Verdict

FOLD_COLUMN = 78
MAX_VALUE_OCTETS = 320  # a mailbox of SMTP is shorter
MAX_REASON_OCTETS = 120
_WORDS = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^" ])+')
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+")  # RFC 2045 5.1
_MAILBOX = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@[A-Za-z0-9.-]+")
_UNPRINTABLE = re.compile(r"[^ -~]")
_METHOD = re.compile(r"[a-z][a-z0-9-]*")
_PROPERTY = re.compile(r"(smtp|header|body|policy)\.([a-z][a-z0-9-]*)")

_FIELD = re.compile(
    rb"^authentication-results[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)(?:\n|\Z)", re.IGNORECASE | re.MULTILINE
)
_OWN_VALUE = re.compile(rb"([^\s;()\"]+)(?:\s+1)?\s*;(.*)", re.DOTALL)
# A result: up to a semicolon outside quoted strings and comments.
_PART = re.compile(rb'(?:"(?:[^"\\]|\\.)*"|\((?:[^()\\]|\\.)*\)|[^;])+', re.DOTALL)
_WORD = re.compile(rb"[^\s;()\"<>@,:\\/\[\]?=\x00]+")
_QUOTED = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_PAIR = re.compile(rb"\\(.)", re.DOTALL)
_IN_COMMENT = re.compile(rb"[^\\()]+|\\.|.", re.DOTALL)
_OUTSIDE = re.compile(rb'[^("]+|"[^"\\]*(?:\\.[^"\\]*)*"?|.', re.DOTALL)
_AFTER_ID = re.compile(rb"[0-9;]|\Z")
_DECORATION = re.compile(rb"[\s\"\\\x00]+")


class _Value(QuotableValue):  # type: ignore[misc]  # authres carries no types
    """A value that quotes itself wherever it must; authres would let anything with '@' pass."""

    def quote_if_needed(self) -> str:
        if _TOKEN.fullmatch(self) or _MAILBOX.fullmatch(self):
            return str(self)
        return '"' + str(self).replace("\\", "\\\\").replace('"', '\\"') + '"'


def field(authserv_id: str, verdicts: Sequence[Verdict]) -> bytes:
    """Return the field for verdicts, folded, with CRLF; without any it says 'none'."""
    parts = [part for verdict in verdicts if (part := _said(verdict))]
    if not parts:
        parts = [str(AuthenticationResultsHeader.NONE_RESULT)]
    lines = [f"Authentication-Results: {authserv_id};"]
    for position, part in enumerate(parts):
        lines.extend(_fold(part + (";" if position < len(parts) - 1 else "")))
    return "\r\n".join(lines).encode("ascii") + b"\r\n"


def _said(verdict: Verdict) -> str:
    """Return a verdict as a result of RFC 8601; '' where it can't be said."""
    return _words_of(verdict.method, verdict.result, verdict.reason, tuple(verdict.properties.items()))


@functools.lru_cache(maxsize=1024)  # what is found of a domain is found again with its next message
def _words_of(method: str, result: str, reason: str, properties: tuple[tuple[str, str], ...]) -> str:
    made = _result(Verdict(method, result, "", reason[:MAX_REASON_OCTETS], dict(properties)))
    return "" if made is None else str(made)


def _result(verdict: Verdict) -> AuthenticationResult | None:
    if not _METHOD.fullmatch(verdict.method) or not _METHOD.fullmatch(verdict.result):
        return None
    found = (_property(name, value) for name, value in verdict.properties.items())
    result = AuthenticationResult(
        verdict.method, result=verdict.result, properties=[one for one in found if one is not None]
    )
    if verdict.reason:
        result.reason = _Value(_UNPRINTABLE.sub("?", verdict.reason[:MAX_REASON_OCTETS]))
    return result


def _property(name: str, value: str) -> AuthenticationResultProperty | None:
    """Return a property; None where its value can't be said in a field of ASCII."""
    match = _PROPERTY.fullmatch(name)
    if match is None or not value or len(value) > MAX_VALUE_OCTETS or _UNPRINTABLE.search(value):
        return None
    made = AuthenticationResultProperty(match[1], match[2])
    made.value = _Value(value)
    return made


def _fold(part: str) -> list[str]:
    """Return a result as lines that begin with a tab; spaces inside quotes stay where they are."""
    words = _WORDS.findall(part) if '"' in part else part.split()
    lines = ["\t" + words[0]]
    for word in words[1:]:
        if len(lines[-1]) + 1 + len(word) > FOLD_COLUMN:
            lines.append("\t" + word)
        else:
            lines[-1] += " " + word
    return lines


def forged(head: bytes, authserv_id: str) -> list[bytes]:
    """Return the raw Authentication-Results fields of a header that claim to be ours.

    Also those that can't be read and mention our name (RFC 8601 5): a reader less
    strict than this one might take them for ours.
    """
    own = _normal(authserv_id)
    return [match[0] for match in _FIELD.finditer(head) if _claims(match[1], own)]


def own_results(fields: Sequence[HeaderField], authserv_id: str) -> list[bytes]:
    """Return the results that Authentication-Results fields of our name say, in their order.

    To be asked where forged fields are gone already. 'none' is said only where nothing else is.
    """
    found: list[bytes] = []
    for field in fields:
        if field.name.lower() == b"authentication-results":
            match = _OWN_VALUE.match(field.value)
            if match is not None and match[1].lower() == authserv_id.lower().encode():
                found += [part.strip() for part in _PART.findall(match[2])]
    return [part for part in found if part and part != b"none"] or [part for part in found if part][:1]


def _claims(value: bytes, own: str) -> bool:
    for form in (value, _decoded(value)):
        bare = _without_comments(form)
        name = _authserv_id(bare)
        if name is None:
            mentions = (_normal_text(_DECORATION.sub(b"", text)) for text in (form, bare))
            if any(own in mention for mention in mentions):
                return True
        elif _normal(name) == own:
            return True
    return False


def _decoded(value: bytes) -> bytes:
    """Return the value as readers see it that decode RFC 2047 words wherever they stand."""
    return header.decode(header.unfold(value)).encode("utf-8") if b"=?" in value else value


def _normal(name: str) -> str:
    text = unicodedata.normalize("NFKC", name).lower().rstrip(".")
    try:
        return normalise_domain(text)
    except AddressSyntax:
        return text


def _normal_text(text: bytes) -> str:
    return unicodedata.normalize("NFKC", text.decode("utf-8", "replace")).lower()


def _authserv_id(bare: bytes) -> str | None:
    """Return the authserv-id of a value without comments; None where it is not as RFC 8601 2.2 says."""
    text = bare.lstrip(b" \t\r\n")
    match = _QUOTED.match(text) or _WORD.match(text)
    if match is None or not _AFTER_ID.match(text[match.end() :].lstrip(b" \t\r\n")):
        return None
    name = match[0]
    if name[:1] == b'"':
        name = _PAIR.sub(rb"\1", name[1:-1])
    return name.decode("utf-8", "replace")


def _without_comments(value: bytes) -> bytes:
    """Return the value with each comment as one space (RFC 5322 3.2.2: nested, with quoted pairs)."""
    if b"(" not in value:
        return value
    out: list[bytes] = []
    depth = position = 0
    while position < len(value):
        match = (_IN_COMMENT if depth else _OUTSIDE).match(value, position)
        assert match is not None, "both patterns take any octet"
        position = match.end()
        if match[0] == b"(":
            depth += 1
        elif not depth:
            out.append(match[0])
        elif match[0] == b")":
            depth -= 1
            if not depth:
                out.append(b" ")
    return b"".join(out)
