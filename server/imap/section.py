"""Which octets of a stored message a section of FETCH names.

Owns the compact form of a MIME structure as renditions keep it, the walk along
part numbers, and the choice of header fields. Pure; works on offsets, reads no
message but the header whose fields are chosen. RFC 9051 6.4.5.1.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

from server.imap.commands import Section, SectionText
from server.mail.structure import Part

# A field with its continuation lines; a line that begins no field belongs to the field before it.
_FIELD = re.compile(rb"^([!-9;-~]+)[ \t]*:[^\n]*(?:\n(?![!-9;-~]+[ \t]*:|\r?\n)[^\n]*)*\n?", re.MULTILINE)


class Kind(IntEnum):
    """What a part holds."""

    LEAF = 0
    MULTIPART = 1
    MESSAGE = 2


@dataclass(frozen=True, slots=True)
class Node:
    """A part: offsets from the start of the content; children as Part has them."""

    kind: Kind
    header_start: int
    body_start: int
    body_end: int
    children: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """Octets of the file from start to end; choose: they are a header of which fields are chosen."""

    start: int
    end: int
    choose: bool = False


def pack(part: Part) -> bytes:
    """Return a structure in the form that renditions keep."""
    if not part.parts:
        return b"[%d,%d,%d,%d]" % (Kind.LEAF, part.header_start, part.body_start, part.body_end)
    return json.dumps(_packed(part), separators=(",", ":")).encode()


def _packed(part: Part) -> list[object]:
    kind = Kind.MULTIPART if part.is_multipart else Kind.MESSAGE if part.is_message else Kind.LEAF
    own: list[object] = [int(kind), part.header_start, part.body_start, part.body_end]
    return [*own, *map(_packed, part.parts)]


def unpack(packed: bytes) -> Node:
    """Return the root of a structure."""
    return _node(json.loads(packed))


def _node(values: list[object]) -> Node:
    kind, header_start, body_start, body_end, *children = values
    assert isinstance(kind, int) and isinstance(header_start, int)
    assert isinstance(body_start, int) and isinstance(body_end, int)
    inner = tuple(_node(child) for child in children if isinstance(child, list))
    return Node(Kind(kind), header_start, body_start, body_end, inner)


def locate(
    section: Section, packed: bytes, *, prefix_octets: int, header_octets: int, octets: int
) -> Span | None:
    """Return the file's octets that a section names, None where the message has no such part.

    prefix_octets: what lies in the file in front of the content that packed describes.
    header_octets: the content's header with its blank line. octets: the whole file.
    """
    text = section.text
    choose = text in (SectionText.HEADER_FIELDS, SectionText.HEADER_FIELDS_NOT)
    if not section.path:
        header_end = prefix_octets + header_octets
        if text is SectionText.WHOLE:
            return Span(0, octets)
        return Span(header_end, octets) if text is SectionText.TEXT else Span(0, header_end, choose)
    root = unpack(packed)
    node = _walk(root, section.path)
    if node is None:
        return None
    if text is SectionText.WHOLE:
        return Span(prefix_octets + node.body_start, prefix_octets + node.body_end)
    if text is SectionText.MIME:
        # The outermost header begins with the fields that delivery put on top.
        start = 0 if node is root else prefix_octets + node.header_start
        return Span(start, prefix_octets + node.body_start)
    if node.kind is not Kind.MESSAGE:
        return None
    inner = node.children[0]
    if text is SectionText.TEXT:
        return Span(prefix_octets + inner.body_start, prefix_octets + inner.body_end)
    return Span(prefix_octets + inner.header_start, prefix_octets + inner.body_start, choose)


def _walk(root: Node, path: tuple[int, ...]) -> Node | None:
    """Follow part numbers; a message that is no multipart has one part, itself."""
    node: Node = root
    message = True  # whether node stands for a message, outermost or embedded, not yet entered
    for number in path:
        if not message and node.kind is Kind.MESSAGE:
            node, message = node.children[0], True
        if node.kind is Kind.MULTIPART:
            if number > len(node.children):
                return None
            node = node.children[number - 1]
        elif not message or number != 1:
            return None
        message = False
    return node


def choose_fields(header: bytes, section: Section) -> bytes:
    """Return the named fields of a header, or all others, in their order, and the blank line."""
    if section.text is SectionText.HEADER_FIELDS:
        found = b"".join(_named(section.fields).findall(header))
    else:
        chosen = [match[0] for match in _FIELD.finditer(header) if match[1].lower() not in section.fields]
        found = b"".join(chosen)
    # RFC 9051 6.4.5.1: the delimiting blank line is always there, in a header cut short too.
    return found + (b"\r\n" if not found or found.endswith(b"\n") else b"\r\n\r\n")


@lru_cache(maxsize=256)
def _named(fields: frozenset[bytes]) -> re.Pattern[bytes]:
    """Return the pattern of whole fields with these names (lower case), continuation lines included."""
    names = b"|".join(re.escape(name) for name in sorted(fields))
    return re.compile(
        rb"^(?:" + names + rb")[ \t]*:[^\n]*(?:\n[ \t][^\n]*)*\n?", re.IGNORECASE | re.MULTILINE
    )
