"""Building MIME entities: a part's header fields and body as octets.

Owns text, attachment and multipart entities in 7-bit form, parameters in
RFC 2231 form, and boundaries that occur in nothing they enclose. Refuses
control characters in anything that becomes a header, with ValueError.

RFC 2045, RFC 2046 5.1, RFC 2183, RFC 2231, RFC 2392 (Content-ID).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from server.mail.header import MAX_LINE_OCTETS, fold, refuse_controls
from server.mail.parameter import Parameters, parse_parameters
from server.mail.transfer import encode_base64, encode_quoted_printable, with_crlf

MAX_SECTION_OCTETS = 55  # of an RFC 2231 section, so that it fits on a line of its own

_OPAQUE = b"application/octet-stream"
_TOKEN = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+")
_CONTENT_ID = re.compile(r"[!-;=?-~]{1,250}")
# A long name without spaces stays whole on a line of its own: few programs put RFC 2231's pieces together.
_PLAIN_VALUE = re.compile(r"[ !#-\[\]-~]{1,60}|[!#-\[\]-~]{61,600}")
_EXTENDED_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-_~")


@dataclass(frozen=True, slots=True)
class Entity:
    """Content- fields, each with CRLF, and the body they describe, both as octets."""

    header: bytes
    body: bytes

    def __bytes__(self) -> bytes:
        return b"%b\r\n%b" % (self.header, self.body)


def text_entity(text: str, subtype: str) -> Entity:
    """Text as 7-bit, quoted-printable or base64, whichever is shortest and allowed."""
    octets = with_crlf(text.encode("utf-8"))
    if octets and not octets.endswith(b"\n"):
        octets += b"\r\n"
    charset = b"us-ascii" if octets.isascii() else b"utf-8"
    media = b"text/%b; charset=%b" % (subtype.encode("ascii"), charset)
    if is_seven_bit(octets):
        return Entity(_fields(media, b"7bit"), octets)
    wide = len(octets) - len(octets.decode("ascii", "ignore"))
    if wide * 6 > len(octets):
        return Entity(_fields(media, b"base64"), encode_base64(octets))
    return Entity(_fields(media, b"quoted-printable"), encode_quoted_printable(octets))


def file_entity(
    content: bytes, *, content_type: str, filename: str, disposition: str, content_id: str | None = None
) -> Entity:
    """A file: base64, but a message that is 7-bit as it is (RFC 2046 5.2.1 allows it no other)."""
    media, parameters = _media(content_type)
    encoding, body = b"base64", b""
    if media == b"message/rfc822":
        # An embedded message may not be encoded; one that needs it travels as a file like others.
        media, encoding = (media, b"7bit") if is_seven_bit(with_crlf(content)) else (_OPAQUE, encoding)
    body = with_crlf(content) if encoding == b"7bit" else encode_base64(content)
    value = b"; ".join([media, *(format_parameter(name, text) for name, text in parameters)])
    header = _fields(value, encoding)
    header += fold("Content-Disposition", _disposition(disposition, filename))
    if content_id is not None:
        header += fold("Content-ID", b"<%b>" % check_content_id(content_id))
    return Entity(header, body)


def multipart(subtype: str, parts: Sequence[Entity], *, seed: str, extra: str = "") -> Entity:
    """Parts under one boundary. seed: what the boundary is made of; extra: further parameters."""
    boundary = _boundary(parts, seed)
    value = f'multipart/{subtype};{extra} boundary="{boundary}"'.encode("ascii")
    delimiter = b"--" + boundary.encode("ascii")
    pieces: list[bytes] = []
    for part in parts:
        pieces += [delimiter, b"\r\n", part.header, b"\r\n", part.body, b"\r\n"]
    pieces += [delimiter, b"--\r\n"]
    wide = not all(part.body.isascii() and part.header.isascii() for part in parts)
    # RFC 2045 6.4: a multipart says 8bit when something in it does.
    header = fold("Content-Type", value) + (b"Content-Transfer-Encoding: 8bit\r\n" if wide else b"")
    return Entity(header, b"".join(pieces))


def format_parameter(name: str, text: str) -> bytes:
    """One parameter: quoted when plain, else extended, in sections when long (RFC 2231 3 and 4)."""
    refuse_controls(text)
    if _PLAIN_VALUE.fullmatch(text):
        return f'{name}="{text}"'.encode("ascii")
    sections = [b""]
    for character in text:
        coded = b"".join(_extended(octet) for octet in character.encode("utf-8"))
        if len(sections[-1]) + len(coded) > MAX_SECTION_OCTETS:
            sections.append(b"")
        sections[-1] += coded
    label = name.encode("ascii")
    if len(sections) == 1:
        return b"%b*=utf-8''%b" % (label, sections[0])
    numbered = [b"%b*%d*=%b" % (label, number, section) for number, section in enumerate(sections)]
    numbered[0] = b"%b*0*=utf-8''%b" % (label, sections[0])
    return b"; ".join(numbered)


def check_content_id(content_id: str) -> bytes:
    """A Content-ID without its angle brackets; raises ValueError."""
    bare = content_id.removeprefix("<").removesuffix(">")
    if _CONTENT_ID.fullmatch(bare) is None:
        raise ValueError("content id is not valid")
    return bare.encode("ascii")


def is_seven_bit(octets: bytes) -> bool:
    """Whether text with CRLF may travel as it is: ASCII, no NUL, no line over 998 octets."""
    if not octets.isascii() or b"\x00" in octets:
        return False
    return len(octets) <= MAX_LINE_OCTETS or max(map(len, octets.split(b"\r\n"))) <= MAX_LINE_OCTETS


def _fields(media: bytes, encoding: bytes) -> bytes:
    return fold("Content-Type", media) + b"Content-Transfer-Encoding: %b\r\n" % encoding


def _media(content_type: str) -> tuple[bytes, list[tuple[str, str]]]:
    """A content type given from outside, checked; the name parameter goes, filename says it."""
    refuse_controls(content_type)
    main, parameters = parse_parameters(content_type.encode("ascii", "replace"))
    type_, _, subtype = main.lower().partition(b"/")
    if _TOKEN.fullmatch(type_) is None or _TOKEN.fullmatch(subtype) is None:
        raise ValueError("content type is not valid")
    if type_ == b"multipart":
        raise ValueError("an attachment cannot be a multipart")
    return b"%b/%b" % (type_, subtype), _kept(parameters)


def _kept(parameters: Parameters) -> list[tuple[str, str]]:
    return [
        (name.decode("ascii"), value.decode("ascii"))
        for name, value in parameters
        if _TOKEN.fullmatch(name) and b"*" not in name and name.lower() != b"name"
    ]


def _disposition(disposition: str, filename: str) -> bytes:
    if not filename:
        return disposition.encode("ascii")
    return b"%b; %b" % (disposition.encode("ascii"), format_parameter("filename", filename))


def _extended(octet: int) -> bytes:
    return bytes((octet,)) if octet in _EXTENDED_SAFE else b"%%%02X" % octet


def _boundary(parts: Sequence[Entity], seed: str) -> str:
    """A boundary that stands in no part; '=_' at its head occurs in no encoded body (RFC 2045 6.7)."""
    number = 0
    while True:
        digest = sha256(f"{seed}/{len(parts)}/{number}".encode("utf-8", "replace")).hexdigest()
        boundary = f"=_{digest[:32]}"
        sought = boundary.encode("ascii")
        if not any(sought in part.body or sought in part.header for part in parts):
            return boundary
        number += 1
