"""The text of a message: for search, for previews, for reading over the API.

Owns decoding text parts (transfer encoding, charset, HTML) and bringing headers
and bodies together, all bounded. Never raises; text from here holds no NUL and
no lone surrogates. Folding case for search is the caller's.

RFC 2046 4.1, RFC 8970 3 (previews), RFC 3676 4.3 (signature line).
"""

import re
from collections.abc import Iterable, Iterator

from server.mail.charset import decode_text
from server.mail.header import decode, fields
from server.mail.html import html_to_text
from server.mail.structure import Octets, Part
from server.mail.transfer import decode_transfer

MAX_TEXT_CHARACTERS = 262_144
MAX_SOURCE_OCTETS = 1_048_576  # of one part, as it lies
MAX_TOTAL_SOURCE_OCTETS = 4_194_304
MAX_HEADER_OCTETS = 65_536  # of one header
MAX_TEXT_PARTS = 200
PREVIEW_CHARACTERS = 200  # RFC 8970 3.1: 200 are wanted, 256 allowed
PREVIEW_SOURCE_OCTETS = 32_768

_FOLD = re.compile(r"\r?\n(?=[ \t])")


def extract(root: Part, message: Octets, *, limit: int = MAX_TEXT_CHARACTERS) -> str:
    """Decoded headers and text parts, line by line, up to a number of characters."""
    found = [header_text(root, message)]
    room = limit - len(found[0])
    sources, budget = 0, MAX_TOTAL_SOURCE_OCTETS
    for part in root.walk():
        if room <= 0 or budget <= 0 or sources >= MAX_TEXT_PARTS:
            break
        if part.is_message:
            text = header_text(part.parts[0], message)
        elif part.is_text and not part.parts:
            text = part_text(part, message, limit=min(MAX_SOURCE_OCTETS, budget))
            budget -= part.octets
        else:
            continue
        sources += 1
        found.append(text)
        room -= len(text) + 1
    return "\n".join(found)[:limit]


def header_text(part: Part, message: Octets) -> str:
    """A part's header fields, decoded and unfolded, one a line as `Name: value`."""
    end = min(part.body_start, part.header_start + MAX_HEADER_OCTETS)
    header = message[part.header_start : end]
    if header.isascii() and b"=?" not in header and b"\x00" not in header:
        return _FOLD.sub("", header.decode("ascii")).replace("\r\n", "\n").strip()
    return "\n".join(
        f"{field.name.decode('ascii', 'replace')}: {decode(field.value)}" for field in fields(header)
    )


def part_text(part: Part, message: Octets, *, limit: int = MAX_SOURCE_OCTETS) -> str:
    """A text part as plain text with LF; limit: octets of its body that are read."""
    text = part_source(part, message, limit=limit)
    return html_to_text(text) if part.kind == "text/html" else text


def part_source(part: Part, message: Octets, *, limit: int = MAX_SOURCE_OCTETS) -> str:
    """A text part in its own markup with LF; limit: octets of its body that are read."""
    octets = message[part.body_start : min(part.body_end, part.body_start + limit)]
    text = decode_text(decode_transfer(octets, part.content.encoding), part.content.charset)
    return text.replace("\r\n", "\n")


def part_octets(part: Part, message: Octets) -> bytes:
    """A part's body, decoded: what an attachment's file holds."""
    return decode_transfer(message[part.body_start : part.body_end], part.content.encoding)


def find_body(root: Part, kind: str) -> Part | None:
    """The first part of that kind, `text/plain` say, that is shown as the message's text."""
    waiting = [root]
    while waiting:
        part = waiting.pop()
        if part.is_multipart:
            waiting.extend(reversed(part.parts))
        elif part.kind == kind and not part.is_attachment:
            return part
    return None


def preview(root: Part, message: Octets, *, limit: int = PREVIEW_CHARACTERS) -> str:
    """The first words of the text on one line, without quotations and signature; '' if there is none."""
    for kind in ("text/plain", "text/html"):
        part = find_body(root, kind)
        if part is None:
            continue
        lines = part_text(part, message, limit=PREVIEW_SOURCE_OCTETS).split("\n")
        words = _first_words(_own_lines(lines), limit) or _first_words(lines, limit)
        if words:
            return words
    return ""


def _own_lines(lines: Iterable[str]) -> Iterator[str]:
    """The lines that the author wrote: no quotations, nothing from the signature on."""
    for line in lines:
        if line.rstrip("\r") == "-- ":
            return
        if not line.lstrip().startswith(">"):
            yield line


def _first_words(lines: Iterable[str], limit: int) -> str:
    """Words on one line, at most so many characters, cut between words where one ends near enough."""
    words, length = [], -1
    for line in lines:
        for word in line.replace("\ufffd", " ").split():
            words.append(word)
            length += len(word) + 1
            if length > limit:
                head = " ".join(words[:-1])
                return head if len(head) > limit * 3 // 4 else " ".join(words)[:limit]
    return " ".join(words)
