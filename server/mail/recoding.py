"""Binary messages made fit for a way that carries lines: their binary parts are encoded.

Owns which part gets which content transfer encoding, and the message with it, piece
by piece. Text that has lines already is only relabelled; text with long lines becomes
quoted-printable, all else base64. Refuses with Unencodable what may not be encoded
(RFC 2045 6.4: multiparts and messages; RFC 1847 2.1: what is signed) and yet is no
text with lines. RFC 3030 3, RFC 2045 6.
"""

from __future__ import annotations

import re
from binascii import b2a_qp
from collections.abc import Iterator

from server.mail.content import read_content
from server.mail.structure import Octets, Part, scan
from server.mail.transfer import encode_base64

LINE_OCTETS = 998  # RFC 5322 2.1.1, without CRLF
STEP_OCTETS = 57 * 4096  # 57 octets make a line of base64
TEXT_OCTETS = 1 << 20  # longer text is not looked at as a whole: base64

ENCODING = re.compile(rb"^content-transfer-encoding[ \t]{0,80}:[^\n]*(?:\n[ \t][^\n]*)*\n?", re.I | re.M)
_LONG = re.compile(rb"[^\r\n]{%d}" % (LINE_OCTETS + 1))


class Unencodable(ValueError):
    """Part of the message is binary and may not be encoded."""


def recode(message: Octets) -> Iterator[bytes]:
    """Yield a message without binary parts, in pieces of some 300 KB at most; raises Unencodable."""
    root = scan(message)
    yield from _part(message, root, is_signed=False)
    yield from _lines(message, root.body_end, len(message))


def _part(message: Octets, part: Part, *, is_signed: bool) -> Iterator[bytes]:
    header = message[part.header_start : part.body_start]
    if not _has_lines_only(header):
        raise Unencodable("the header of a part has no lines")
    if part.parts:
        # RFC 2045 6.4: what holds parts has no encoding of its own.
        yield _labelled(header, b"8bit", is_signed=is_signed)
        is_signed = is_signed or part.kind == "multipart/signed"
        at = part.body_start
        for inner in part.parts:
            yield from _lines(message, at, inner.header_start)
            yield from _part(message, inner, is_signed=is_signed)
            at = inner.body_end
        yield from _lines(message, at, part.body_end)
    else:
        yield from _leaf(message, part, header, is_signed=is_signed)


def _leaf(message: Octets, part: Part, header: bytes, *, is_signed: bool) -> Iterator[bytes]:
    start, end = part.body_start, part.body_end
    is_binary = part.content.encoding.strip().lower() == b"binary"
    if not is_binary:
        yield header
        yield from _lines(message, start, end)
        return
    body = message[start:end] if end - start <= TEXT_OCTETS else None
    if body is not None and _has_lines_only(body) and _LONG.search(body) is None:
        yield _labelled(header, b"7bit" if body.isascii() else b"8bit", is_signed=is_signed)
        yield body
        return
    media = read_content(header).media
    if media.is_multipart or media.type.lower() == b"message":
        raise Unencodable(f"a part of type {media.kind} is binary")
    if body is not None and part.is_text and _has_lines_only(body):
        yield _labelled(header, b"quoted-printable", is_signed=is_signed)
        # The first line end tells the encoder which kind to make.
        yield b2a_qp(b"\r\n" + body, quotetabs=False, istext=True, header=False)[2:]
        return
    yield _labelled(header, b"base64", is_signed=is_signed)
    for at in range(start, end, STEP_OCTETS):
        yield encode_base64(message[at : min(at + STEP_OCTETS, end)])


def _labelled(header: bytes, encoding: bytes, *, is_signed: bool) -> bytes:
    """Return a header with that encoding in place of 'binary'."""
    found = ENCODING.search(header)
    if found is None or b"binary" not in found[0].lower():
        return header
    if is_signed:
        raise Unencodable("a signed part is binary")
    field = b"Content-Transfer-Encoding: " + encoding + b"\r\n"
    rest = ENCODING.sub(b"", header[found.end() :])
    return header[: found.start()] + field + rest


def _lines(message: Octets, start: int, end: int) -> Iterator[bytes]:
    """Yield octets as they are; raises Unencodable where they are not lines."""
    at = start
    while at < end:
        piece = message[at : min(at + STEP_OCTETS, end)]
        if piece.endswith(b"\r") and at + len(piece) < end:
            piece = message[at : at + len(piece) + 1]
        if not _has_lines_only(piece):
            raise Unencodable("octets outside a binary part have no lines")
        yield piece
        at += len(piece)


def _has_lines_only(octets: bytes) -> bool:
    rest = octets.replace(b"\r\n", b"")
    return not (b"\r" in rest or b"\n" in rest or b"\0" in rest)
