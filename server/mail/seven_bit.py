"""Messages made fit for every next hop before they are signed: 7-bit, in lines of 998 octets at most.

Owns whether a message is fit already, and the edits that make it so: leaf parts get
quoted-printable or base64, long lines of headers are folded. What means something by its very octets
is never changed inside: what is signed or encrypted, and messages that are attached; their 8-bit octets
stay, and with them all others', since the message then needs 8BITMIME anyway; a long line in
them raises Unencodable. RFC 5322 2.1.1 and 2.2.3, RFC 2045 6, RFC 2046 5.2.1, RFC 1847, RFC 6376 5.3.
"""

from __future__ import annotations

import codecs
import re
from binascii import a2b_qp, b2a_qp
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from server.mail.content import Media, read_content
from server.mail.header import FOLD_COLUMN, Header
from server.mail.recoding import ENCODING, STEP_OCTETS, TEXT_OCTETS, Unencodable
from server.mail.structure import Octets, Part, scan
from server.mail.transfer import LINE_OCTETS as ENCODED_OCTETS
from server.mail.transfer import encode_base64

LINE_OCTETS = 998  # RFC 5322 2.1.1, without CRLF
LINE_SOURCE_OCTETS = 57  # that make a line of base64
TOO_LONG = "is longer than 998 octets"

_RAW = frozenset({b"", b"7bit", b"8bit", b"binary", b"7-bit", b"8-bit"})
_ASCII = bytes(range(128))
_NOT_BASE64 = bytes(
    octet
    for octet in range(256)
    if octet not in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
)
_WHITE = re.compile(rb"[ \t]*")
_ADDRESSES = re.compile(rb"(?:resent-)?(?:from|sender|reply-to|to|cc|bcc)[ \t]{0,80}:", re.I)
_CROWDED = re.compile(rb",(?![ \t])")
_WIDE_LABEL = re.compile(rb":\s*(?:8-?bit|binary)\s*\Z", re.I)

Encode = Callable[[Octets, int, int], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class Edit:
    """Octets [start, end) of a message give way to what `make` yields of them."""

    start: int
    end: int
    make: Encode


@dataclass(slots=True)
class _Survey:
    """What was found: all headers, and the leaves that are not fit. is_fixed: 8-bit octets have to stay."""

    headers: list[Part] = field(default_factory=list)
    leaves: list[tuple[Part, bool]] = field(default_factory=list)  # with whether a line is too long
    is_fixed: bool = False


def is_fit(message: Octets) -> bool:
    """Whether a message is 7-bit and has no long line: true of most, and found out at the speed of C."""
    return _is_ascii(message, 0, len(message)) and not _has_long_line(message, 0, len(message))


def has_short_lines(message: Octets) -> bool:
    """Whether a message has no line that is too long."""
    return not _has_long_line(message, 0, len(message))


def edits(message: Octets) -> list[Edit]:
    """Return what is to be changed in a message that is not fit, in order; raises Unencodable.

    Nothing where 8-bit octets have to stay and no line is too long.
    """
    root = scan(message)
    survey = _Survey()
    _survey(message, root, survey)
    _survey_fixed(message, root.body_end, len(message), survey, "behind the parts")
    encoders = {}
    for part, is_long in survey.leaves:
        if is_long or not survey.is_fixed:
            encoders[part.body_start, part.body_end] = _encoder(message, part)
    made: list[Edit] = []
    is_narrowed = not survey.is_fixed
    for part in survey.headers:
        place = part.body_start, part.body_end
        named = encoders.get(place) if not part.parts else None
        old = message[part.header_start : part.body_start]
        new = old if named is None else _described(message, part, old, named[0])
        if is_narrowed and named is None:
            new = _relabelled(new)
        if part is root and encoders and Header(new).first(b"mime-version") is None:
            new = _with_field(new, b"MIME-Version: 1.0\r\n")
        new = refolded(new)
        if new != old:
            made.append(Edit(part.header_start, part.body_start, _constant(new)))
        if named is not None:
            made.append(Edit(*place, named[1]))
    return made


def edited(message: Octets, made: list[Edit]) -> Iterator[bytes]:
    """Yield a message with its edits, in pieces of bounded size."""
    at = 0
    for edit in made:
        yield from _pieces(message, at, edit.start)
        yield from edit.make(message, edit.start, edit.end)
        at = edit.end
    yield from _pieces(message, at, len(message))


def _survey(message: Octets, part: Part, survey: _Survey) -> None:
    survey.headers.append(part)
    if not _is_ascii(message, part.header_start, part.body_start):
        survey.is_fixed = True  # RFC 6532: only SMTPUTF8 carries it, which has 8BITMIME with it
    closed = _closed_kind(message, part)
    if closed:
        _survey_fixed(message, part.body_start, part.body_end, survey, f"in a part of type {closed}")
    elif part.parts:
        at = part.body_start
        for inner in part.parts:
            _survey_fixed(message, at, inner.header_start, survey, "between the parts")
            _survey(message, inner, survey)
            at = inner.body_end
        _survey_fixed(message, at, part.body_end, survey, "behind the parts")
    else:
        is_long = _has_long_line(message, part.body_start, part.body_end)
        if is_long or not _is_ascii(message, part.body_start, part.body_end):
            survey.leaves.append((part, is_long))


def _survey_fixed(message: Octets, start: int, end: int, survey: _Survey, where: str) -> None:
    """Look at octets that stay as they are."""
    if _has_long_line(message, start, end):
        raise Unencodable(f"a line {where} {TOO_LONG}, and may not be changed")
    if not _is_ascii(message, start, end):
        survey.is_fixed = True


def _closed_kind(message: Octets, part: Part) -> str:
    """Return the type of a part that is not changed inside, '' for all others."""
    media = _named_media(message, part)
    kind = media.kind
    if part.is_multipart:
        return kind if kind in ("multipart/signed", "multipart/encrypted") else ""
    # RFC 2045 6.4 and RFC 2046 5.2: what holds messages or parts takes no encoding of its own.
    if media.is_multipart or media.type.lower() == b"message" or part.parts:
        return kind
    encoding = part.content.encoding.strip().lower()
    is_known = encoding in _RAW or encoding in (b"quoted-printable", b"base64")
    return "" if is_known else f"{kind} in an unknown encoding"


def _named_media(message: Octets, part: Part) -> Media:
    """Return the type that the header names, whatever the scanner made of it."""
    if part.parts:
        return part.content.media
    return read_content(message[part.header_start : part.body_start], default=part.content.media).media


def _encoder(message: Octets, part: Part) -> tuple[bytes, Encode]:
    """Return the encoding that a leaf gets, and what makes it."""
    encoding = part.content.encoding.strip().lower()
    start, end = part.body_start, part.body_end
    if encoding == b"base64":
        return b"base64", _wrapped
    is_quoted = encoding == b"quoted-printable"
    if end - start <= TEXT_OCTETS and part.is_text:
        body = a2b_qp(message[start:end]) if is_quoted else message[start:end]
        # What was quoted may hold lines that look like a delimiter as soon as they are not.
        is_hidden = is_quoted and (body.startswith(b"--") or b"\n--" in body)
        if not is_hidden and _suits_quoted(body):
            return b"quoted-printable", _requoted if is_quoted else _quoted
    return b"base64", _from_quoted if is_quoted else _encoded


def _suits_quoted(body: bytes) -> bool:
    """Whether text is better quoted: mostly ASCII, with plain line ends."""
    rest = body.replace(b"\r\n", b"")
    if b"\r" in rest or b"\n" in rest or len(body.translate(None, _ASCII)) * 6 > len(body):
        return False
    # A soft line break must not put what looks like a delimiter at the beginning of a line.
    return b"--" not in body or b"=\r\n--" not in _quote(body)


def _quote(body: bytes) -> bytes:
    # The first line end tells the encoder which kind to make.
    return b2a_qp(b"\r\n" + body, quotetabs=False, istext=True, header=False)[2:]


def _quoted(message: Octets, start: int, end: int) -> Iterator[bytes]:
    yield _quote(message[start:end])


def _requoted(message: Octets, start: int, end: int) -> Iterator[bytes]:
    yield _quote(a2b_qp(message[start:end]))


def _encoded(message: Octets, start: int, end: int) -> Iterator[bytes]:
    for at in range(start, end, STEP_OCTETS):
        yield encode_base64(message[at : min(at + STEP_OCTETS, end)])


def _wrapped(message: Octets, start: int, end: int) -> Iterator[bytes]:
    """Base64 in new lines: what is none of it means nothing."""
    left = b""
    for piece in _pieces(message, start, end):
        left += piece.translate(None, _NOT_BASE64)
        whole = len(left) - len(left) % ENCODED_OCTETS
        yield b"".join([left[at : at + ENCODED_OCTETS] + b"\r\n" for at in range(0, whole, ENCODED_OCTETS)])
        left = left[whole:]
    if left:
        yield left + b"\r\n"


def _from_quoted(message: Octets, start: int, end: int) -> Iterator[bytes]:
    """Base64 of what quoted-printable means."""
    left = b""
    for piece in _decoded(message, start, end):
        left += piece
        whole = len(left) - len(left) % LINE_SOURCE_OCTETS
        yield encode_base64(left[:whole])
        left = left[whole:]
    yield encode_base64(left)


def _decoded(message: Octets, start: int, end: int) -> Iterator[bytes]:
    """What quoted-printable means, piece by piece: cut behind a line, or where no code can be open."""
    left = b""
    for piece in _pieces(message, start, end):
        left += piece
        cut = left.rfind(b"\n") + 1
        if not cut and len(left) > STEP_OCTETS:
            cut = left.rfind(b"=", len(left) - 3) if b"=" in left[-3:] else len(left)
        yield a2b_qp(left[:cut])
        left = left[cut:]
    yield a2b_qp(left)


def _constant(octets: bytes) -> Encode:
    def make(_message: Octets, _start: int, _end: int) -> Iterator[bytes]:
        yield octets

    return make


def _described(message: Octets, part: Part, header: bytes, encoding: bytes) -> bytes:
    """Return a leaf's header that names its new encoding, and a type where it had none."""
    named = b"Content-Transfer-Encoding: " + encoding + b"\r\n"
    found = ENCODING.search(header)
    if found is None:
        header = _with_field(header, named)
    else:
        header = header[: found.start()] + named + ENCODING.sub(b"", header[found.end() :])
    if Header(header).first(b"content-type") is None:
        charset = _charset(message, part)
        header = _with_field(header, b"Content-Type: text/plain; charset=" + charset + b"\r\n")
    return header


def _charset(message: Octets, part: Part) -> bytes:
    """Return the charset of text that names none (RFC 1428 3)."""
    if _is_ascii(message, part.body_start, part.body_end):
        return b"us-ascii"
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for piece in _pieces(message, part.body_start, part.body_end):
            decoder.decode(piece)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return b"unknown-8bit"
    return b"utf-8"


def _with_field(header: bytes, added: bytes) -> bytes:
    """Return a header with one more field at its end, in front of the blank line."""
    end = len(header) - 2 if header.endswith(b"\r\n\r\n") or header == b"\r\n" else len(header)
    return header[:end] + added + header[end:]


def _relabelled(header: bytes) -> bytes:
    """Return the header of a part all of which is 7-bit now, without a claim of more."""
    found = ENCODING.search(header)
    if found is None or _WIDE_LABEL.search(found[0].rstrip()) is None:
        return header
    return header[: found.start()] + b"Content-Transfer-Encoding: 7bit\r\n" + header[found.end() :]


def refolded(header: bytes) -> bytes:
    """Return a header without long lines; raises Unencodable where one has no place to fold."""
    if not _has_long_line(header, 0, len(header)):
        return header
    return b"\r\n".join([_folded(_spaced(line)) for line in header.split(b"\r\n")])


def _spaced(line: bytes) -> bytes:
    """Return a long list of addresses with a space behind each comma, where it can be folded."""
    # In quoted strings and comments commas may stand that part no addresses.
    if len(line) <= LINE_OCTETS or b'"' in line or b"(" in line or _ADDRESSES.match(line) is None:
        return line
    return _CROWDED.sub(b", ", line)


def _folded(line: bytes) -> bytes:
    """Return a line in lines, broken in front of white space alone (RFC 5322 2.2.3); none is blank."""
    pieces: list[bytes] = []
    at = 0
    while len(line) - at > LINE_OCTETS:
        cut = _cut(line, at)
        pieces.append(line[at:cut])
        at = cut
    return b"\r\n".join([*pieces, line[at:]])


def _cut(line: bytes, at: int) -> int:
    """Return where to break a line that begins at a place: at the usual column, else as soon as it can be."""
    begin = _past_white(line, at)
    if line.startswith(b"--"):
        begin = len(line)  # no field is called so, and its beginning alone might pass for a delimiter
    cut = max(line.rfind(b" ", begin, at + FOLD_COLUMN + 1), line.rfind(b"\t", begin, at + FOLD_COLUMN + 1))
    if cut < 0:
        ends = [line.find(mark, begin, at + LINE_OCTETS + 1) for mark in (b" ", b"\t")]
        cut = min((end for end in ends if end >= 0), default=-1)
    if cut < 0 or _past_white(line, cut) == len(line):
        raise Unencodable(f"a line of the header {TOO_LONG} and has no place to be folded")
    return cut


def _past_white(line: bytes, at: int) -> int:
    found = _WHITE.match(line, at)
    assert found is not None, "no white space is white space enough"
    return found.end()


def _has_long_line(octets: Octets, start: int, end: int) -> bool:
    at = start
    while end - at > LINE_OCTETS:
        # All lines that end within the longest one's octets from here are short enough.
        last = octets.rfind(b"\n", at, min(at + LINE_OCTETS + 2, end))
        if last < 0:
            return True
        at = last + 1
    return False


def _is_ascii(message: Octets, start: int, end: int) -> bool:
    if isinstance(message, bytes) and end - start == len(message):
        return message.isascii()
    return all(piece.isascii() for piece in _pieces(message, start, end))


def _pieces(message: Octets, start: int, end: int) -> Iterator[bytes]:
    for at in range(start, end, STEP_OCTETS):
        yield message[at : min(at + STEP_OCTETS, end)]
