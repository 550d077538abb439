"""The text that SEARCH looks in: built once at delivery, folded, kept beside the message.

Owns the layout of that text (outermost header, inner headers, text parts) and
the folding that makes comparison blind to case and composition. Bounded: a
text that was cut says so, and who searches then reads the file.
RFC 9051 6.4.4, RFC 5051 (i;unicode-casemap, by Unicode's own folding).
"""

from __future__ import annotations

import re
from unicodedata import normalize

from server.mail.address_list import read_addresses
from server.mail.header import decode, fields
from server.mail.structure import Octets, Part
from server.mail.text import MAX_HEADER_OCTETS, header_text, part_source

# What lies in the database is written three times (journal, WAL, table), and most of a long body
# stands in its file just as well: the file is read where the beginning does not hold what is sought.
TEXT_CHARACTERS = 16_384
SOURCE_OCTETS = 1_048_576
PARTS = 200

INNER_HEADERS = "\x1f"  # behind the outermost header's fields
BODY = "\x1e"  # behind all headers
CUT = "\x1d"  # at the end of a text that lacks something

_ADDRESSED = frozenset({b"from", b"sender", b"reply-to", b"to", b"cc", b"bcc"})
_PLAIN_ENCODINGS = frozenset({b"7bit", b"8bit", b"binary"})
_FOLDING = re.compile(r"\r?\n(?=[ \t])")
_MARKS = re.compile("[\x1d-\x1f]")


def fold(text: str) -> str:
    """Return text as it is compared: without case, with characters taken apart."""
    return text.lower() if text.isascii() else normalize("NFKD", text.casefold())


def build(
    root: Part, message: Octets, *, limit: int = TEXT_CHARACTERS, source_octets: int = SOURCE_OCTETS
) -> str:
    """Return a message's search text, at most limit characters and a mark.

    source_octets: of undecoded text parts that are read at most.
    """
    inner: list[str] = []
    bodies: list[str] = []
    cut = root.body_start - root.header_start > MAX_HEADER_OCTETS
    room, source = limit, source_octets
    if root.parts or root.is_text:
        for number, part in enumerate(root.walk()):
            if number >= PARTS or room <= 0:
                cut = True
                break
            if part is not root:
                inner.append(header_text(part, message))
                room -= len(inner[-1])
            if part.is_text and not part.parts:
                wanted = min(source, room * _octets_a_character(part))
                cut = cut or part.octets > wanted
                bodies.append(part_source(part, message, limit=wanted))
                source -= min(part.octets, wanted)
                room -= len(bodies[-1])
    outer = header_text(root, message) + _addresses(root, message)
    pieces = [_clean("\n".join(piece)) for piece in ([outer], inner, bodies)]
    text = fold(f"\n{pieces[0]}\n{INNER_HEADERS}{pieces[1]}\n{BODY}{pieces[2]}")
    return text[:limit] + CUT if cut or len(text) > limit else text


def _addresses(root: Part, message: Octets) -> str:
    """Return a line more for each address that comments take apart: FROM looks in the ENVELOPE's."""
    lines = []
    header = message[root.header_start : min(root.body_start, root.header_start + MAX_HEADER_OCTETS)]
    if b"(" not in header:
        return ""
    for field in fields(header):
        name = field.name.lower()
        if name not in _ADDRESSED or b"(" not in field.value:
            continue
        for one in read_addresses(field.value):
            address = b"%b@%b" % (one.local, one.domain) if one.local and one.domain else b""
            if address not in field.value:
                lines.append(f"\n{name.decode()}: {address.decode(errors='replace')}")
    return "".join(lines)


def outer(header: bytes) -> str:
    """Return the search text of header fields that stand alone."""
    if header.isascii() and b"=?" not in header:
        lines = _FOLDING.sub("", header.decode("ascii")).replace("\r\n", "\n").strip("\n")
    else:
        lines = "\n".join(
            f"{found.name.decode('ascii', 'replace')}: {decode(found.value)}" for found in fields(header)
        )
    return fold(f"\n{_clean(lines)}\n{INNER_HEADERS}")


def _octets_a_character(part: Part) -> int:
    """Return how many octets a character of a part takes at most, for what is worth reading of it."""
    return 1 if part.content.encoding.lower() in _PLAIN_ENCODINGS else 3


def _clean(text: str) -> str:
    # Three looks for single characters take a hundredth of one for a class of them.
    if INNER_HEADERS in text or BODY in text or CUT in text:
        return _MARKS.sub(" ", text)
    return text


def is_cut(text: str) -> bool:
    """Whether a search text lacks something of its message."""
    return text.endswith(CUT)


def in_message(text: str, value: str) -> bool:
    """Whether a folded value stands anywhere, header or body."""
    return value in text


def in_body(text: str, value: str) -> bool:
    """Whether a folded value stands in a text part."""
    start = text.find(BODY)
    return start >= 0 and text.find(value, start + 1) >= 0


def field_value(text: str, field: str) -> str:
    """Return the first value of a field (lower case) of the outermost header, '' where there is none."""
    mark = f"\n{field}:"
    at = text.find(mark, 0, text.find(INNER_HEADERS))
    return text[at + len(mark) : text.find("\n", at + 1)].strip() if at >= 0 else ""


def in_field(text: str, field: str, value: str) -> bool:
    """Whether a field (lower case) of the outermost header holds a folded value; '' asks for the field."""
    mark = f"\n{field}:"
    at = text.find(mark)
    if at < 0:
        return False
    end = text.find(INNER_HEADERS)
    end = len(text) if end < 0 else end
    while 0 <= at < end:
        start = at + len(mark)
        stop = text.find("\n", start)
        stop = end if stop < 0 else stop
        if not value or text.find(value, start, stop) >= 0:
            return True
        at = text.find(mark, stop)
    return False
