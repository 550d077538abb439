"""Rendering of what the server says: strings, lists, ENVELOPE, BODY and BODYSTRUCTURE, status items.

Owns the octets of data items, not of whole responses. Every value that a
stranger wrote passes `string` or `nstring`, so nothing can end a line or a
literal early. Pure. RFC 9051 4.3, 7.5.2 and 9, RFC 3501 7.4.2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from server.imap import utf7
from server.mail.address_list import KNOWN_OCTETS, HeaderAddress
from server.mail.content import UNSAID, Content
from server.mail.envelope import Envelope
from server.mail.parameter import Parameters
from server.mail.structure import Part
from storage.records import Flag

EnvelopeOf = Callable[[Part], bytes]

QUOTED_OCTETS = 1024  # longer strings are literals: a reader's line stays short

_QUOTABLE = re.compile(rb"[\x01-\x09\x0b\x0c\x0e-\x7f]*")
_ATOM = re.compile(rb'[^\x00-\x20\x7f-\xff(){%*"\\\]]+')
_MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_YEAR_1, _YEAR_9999 = -62_135_596_800_000_000, 253_402_300_799_000_000
_FLAG_NAMES = (
    (Flag.ANSWERED, b"\\Answered"),
    (Flag.FLAGGED, b"\\Flagged"),
    (Flag.DELETED, b"\\Deleted"),
    (Flag.SEEN, b"\\Seen"),
    (Flag.DRAFT, b"\\Draft"),
    (Flag.FORWARDED, b"$Forwarded"),
)


def string(value: bytes) -> bytes:
    """Return a quoted string where one can hold the value, else a literal; NUL is left out."""
    if _QUOTABLE.fullmatch(value, 0, QUOTED_OCTETS) and len(value) <= QUOTED_OCTETS:
        if b"\\" in value or b'"' in value:
            value = value.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
        return b'"' + value + b'"'
    return literal(value.replace(b"\0", b""))


def nstring(value: bytes | None) -> bytes:
    """Return a string, or NIL for None."""
    return b"NIL" if value is None else string(value)


def literal(value: bytes) -> bytes:
    """Return a literal; the value must not hold NUL."""
    return b"{%d}\r\n%b" % (len(value), value)


def astring(value: bytes) -> bytes:
    """Return an atom where the value is one, else a string."""
    return value if _ATOM.fullmatch(value) and value.upper() != b"NIL" else string(value)


def mailbox(name: str) -> bytes:
    """Return a mailbox name in wire form."""
    return astring(utf7.encode(name))


def human(text: str) -> bytes:
    """Return text for the human-readable end of a response: printable ASCII, one line."""
    return text.encode("ascii", "replace").translate(_HUMAN)[:800] or b"-"


_HUMAN = bytes(octet if 0x20 <= octet < 0x7F else 0x3F for octet in range(256))


@lru_cache(maxsize=256)
def system_flags(bits: int) -> bytes:
    """Return the names of system flags, separated by spaces."""
    return b" ".join(name for bit, name in _FLAG_NAMES if bits & bit)


def flags(bits: int, keywords: Sequence[str] = (), *, recent: bool = False) -> bytes:
    """Return a flag list without its parentheses."""
    if not keywords and not recent:
        return system_flags(bits)
    names = [system_flags(bits)] if bits else []
    names += [keyword.encode() for keyword in keywords]
    if recent:
        names.append(b"\\Recent")
    return b" ".join(names)


@lru_cache(maxsize=8192)
def _minute(number: int) -> bytes:
    moment = _EPOCH + timedelta(minutes=number)
    return b'"%2d-%b-%04d %02d:%02d:' % (
        moment.day,
        _MONTHS[moment.month - 1],
        moment.year,
        moment.hour,
        moment.minute,
    )


def date_time(micros: int) -> bytes:
    """Return INTERNALDATE's value, in UTC; micros beyond years 1 to 9999 are cut to them."""
    minute, rest = divmod(min(max(micros, _YEAR_1), _YEAR_9999), 60_000_000)
    return b'%b%02d +0000"' % (_minute(minute), rest // 1_000_000)


def envelope(facts: Envelope) -> bytes:
    """Return ENVELOPE's value."""
    from_ = addresses(facts.from_)
    # RFC 9051 7.5.2: absent or empty Sender and Reply-To are From, which the facts say already.
    sender = from_ if facts.sender is facts.from_ else addresses(facts.sender)
    reply_to = from_ if facts.reply_to is facts.from_ else addresses(facts.reply_to)
    return b"(%b %b %b %b %b %b %b %b %b %b)" % (
        nstring(facts.date),
        nstring(facts.subject),
        from_,
        sender,
        reply_to,
        addresses(facts.to),
        addresses(facts.cc),
        addresses(facts.bcc),
        nstring(facts.in_reply_to),
        nstring(facts.message_id),
    )


def addresses(listed: Sequence[HeaderAddress]) -> bytes:
    """Return a list of addresses, NIL for none."""
    if not listed:
        return b"NIL"
    return _single(listed[0]) if len(listed) == 1 and _is_short(listed[0]) else _list(listed)


def _is_short(one: HeaderAddress) -> bool:
    return len(one.address) + len(one.display or b"") <= KNOWN_OCTETS and one.route is None


@lru_cache(maxsize=1024)
def _single(one: HeaderAddress) -> bytes:
    return _list((one,))


def _list(listed: Sequence[HeaderAddress]) -> bytes:
    return b"(%b)" % b"".join(
        [
            b"(%b %b %b %b)" % (nstring(a.display), nstring(a.route), nstring(a.local), nstring(a.domain))
            for a in listed
        ]
    )


def body(part: Part, embedded_envelope: EnvelopeOf) -> tuple[bytes, bytes]:
    """Return the values of BODY and BODYSTRUCTURE.

    embedded_envelope: gives the rendered ENVELOPE of a message inside the message.
    """
    content = part.content
    if part.is_multipart:
        inner = [body(child, embedded_envelope) for child in part.parts]
        subtype = string(content.media.subtype)
        basic = b"(%b %b)" % (b"".join([short for short, _ in inner]), subtype)
        extended = b"(%b %b %b%b)" % (
            b"".join([long for _, long in inner]),
            subtype,
            parameters(content.media.parameters),
            _placement(content),
        )
        return basic, extended
    said, more = _PLAIN if content is UNSAID else _said(content)
    common = b"%b %d" % (said, part.octets)
    if part.is_message:
        embedded = part.parts[0]
        short, long = body(embedded, embedded_envelope)
        start = b"%b %b " % (common, embedded_envelope(embedded))
        return (
            b"(%b%b %d)" % (start, short, part.lines),
            b"(%b%b %d %b)" % (start, long, part.lines, more),
        )
    if part.is_text:
        common = b"%b %d" % (common, part.lines)
    return b"(%b)" % common, b"(%b %b)" % (common, more)


def _said(content: Content) -> tuple[bytes, bytes]:
    """Return what stands before a body's octets, and what behind its lines."""
    said = b"%b %b %b %b %b %b" % (
        string(content.media.type),
        string(content.media.subtype),
        parameters(content.media.parameters),
        nstring(content.id),
        nstring(content.description),
        string(content.encoding),
    )
    return said, nstring(content.md5) + _placement(content)


def parameters(pairs: Parameters) -> bytes:
    """Return a parameter list, NIL for none."""
    if not pairs:
        return b"NIL"
    return b"(%b)" % b" ".join([string(name) + b" " + string(value) for name, value in pairs])


def _placement(content: Content) -> bytes:
    """Return disposition, languages and location, each with a space before it."""
    disposition = b"NIL"
    if content.disposition is not None:
        disposition = b"(%b %b)" % (string(content.disposition[0]), parameters(content.disposition[1]))
    languages = b"NIL"
    if len(content.language) == 1:
        languages = string(content.language[0])
    elif content.language:
        languages = b"(%b)" % b" ".join(string(tag) for tag in content.language)
    return b" %b %b %b" % (disposition, languages, nstring(content.location))


_PLAIN = _said(UNSAID)
