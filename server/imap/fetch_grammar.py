"""The attributes that FETCH asks for.

Owns macros, sections with their parts, fields and partial ranges, and the labels
under which the response names them. RFC 9051 6.4.5, RFC 3501 6.4.5 (RFC822.*).
"""

from __future__ import annotations

import re

from server.imap.commands import FetchAttribute, FetchItem, Section, SectionText
from server.imap.scanner import ImapSyntax, Scanner

ITEMS = 64
FIELDS = 512
PATH_DEPTH = 64

_PATH = re.compile(rb"[1-9]\d{0,9}(?:\.[1-9]\d{0,9})*")
_FIELD = re.compile(rb"[!-9;-~]+")  # RFC 5322 3.6.8 ftext
_PLAIN_FIELD = re.compile(rb"[!#-'+-Z^-z|}~]+")

_A = FetchAttribute
_MACROS: dict[bytes, tuple[FetchItem, ...]] = {
    b"ALL": (_A.FLAGS, _A.INTERNALDATE, _A.SIZE, _A.ENVELOPE),
    b"FAST": (_A.FLAGS, _A.INTERNALDATE, _A.SIZE),
    b"FULL": (_A.FLAGS, _A.INTERNALDATE, _A.SIZE, _A.ENVELOPE, _A.BODY),
}
_ATTRIBUTES = {attribute.value: attribute for attribute in FetchAttribute}
_WHOLE_MESSAGE = {
    "RFC822": Section(b"RFC822", SectionText.WHOLE, peek=False),
    "RFC822.HEADER": Section(b"RFC822.HEADER", SectionText.HEADER, peek=True),
    "RFC822.TEXT": Section(b"RFC822.TEXT", SectionText.TEXT, peek=False),
}


def parse_fetch_items(scanner: Scanner) -> tuple[FetchItem, ...]:
    """Take a macro, one attribute, or several in parentheses; each is given back once."""
    if not scanner.took(b"("):
        for name, items in _MACROS.items():
            rest = scanner.data[scanner.at + len(name) : scanner.at + len(name) + 1]
            if scanner.next_is(name) and rest in (b"", b" "):
                scanner.at += len(name)
                return items
        return (_item(scanner),)
    items_read = [_item(scanner)]
    while scanner.took(b" "):
        items_read.append(_item(scanner))
        if len(items_read) > ITEMS:
            raise ImapSyntax("Too many attributes")
    scanner.expect(b")")
    return tuple(dict.fromkeys(items_read))


def _item(scanner: Scanner) -> FetchItem:
    name = scanner.word("a message attribute")
    if name in ("BODY", "BODY.PEEK") and scanner.took(b"["):
        return _section(scanner, peek=name == "BODY.PEEK")
    if name in _WHOLE_MESSAGE:
        return _WHOLE_MESSAGE[name]
    attribute = _ATTRIBUTES.get(name)
    if attribute is None:
        raise ImapSyntax(f"Unknown message attribute {name[:32]}")
    return attribute


def _section(scanner: Scanner, *, peek: bool) -> Section:
    path, label = _path(scanner)
    text, fields = SectionText.WHOLE, frozenset[bytes]()
    if not scanner.took(b"]"):
        if path:
            scanner.expect(b".")
            label += b"."
        text = _section_text(scanner, nested=bool(path))
        label += text.value.encode()
        if text in (SectionText.HEADER_FIELDS, SectionText.HEADER_FIELDS_NOT):
            scanner.space()
            fields, listed = _fields(scanner)
            label += b" (" + listed + b")"
        scanner.expect(b"]")
    return Section(b"BODY[" + label + b"]", text, path, fields, _partial(scanner), peek)


def _path(scanner: Scanner) -> tuple[tuple[int, ...], bytes]:
    match = _PATH.match(scanner.data, scanner.at)
    if match is None:
        return (), b""
    scanner.at = match.end()
    numbers = match[0].split(b".", PATH_DEPTH)
    if len(numbers) > PATH_DEPTH:
        raise ImapSyntax("Section is too deep")
    return tuple(map(int, numbers)), match[0]


def _section_text(scanner: Scanner, *, nested: bool) -> SectionText:
    name = scanner.word("a section: HEADER, HEADER.FIELDS, HEADER.FIELDS.NOT, TEXT or MIME")
    try:
        text = SectionText(name)
    except ValueError:
        raise ImapSyntax(f"Unknown section {name[:32]}") from None
    if text is SectionText.MIME and not nested:
        raise ImapSyntax("MIME needs a part number")  # RFC 9051 6.4.5.1
    return text


def _fields(scanner: Scanner) -> tuple[frozenset[bytes], bytes]:
    scanner.expect(b"(")
    names = [_field(scanner)]
    while scanner.took(b" "):
        names.append(_field(scanner))
        if len(names) > FIELDS:
            raise ImapSyntax("Too many header fields")
    scanner.expect(b")")
    listed = b" ".join(name if _PLAIN_FIELD.fullmatch(name) else _quoted(name) for name in names)
    return frozenset(name.lower() for name in names), listed


def _field(scanner: Scanner) -> bytes:
    name = scanner.astring("a header field name")
    if not _FIELD.fullmatch(name):
        raise ImapSyntax("That is no header field name")
    return name


def _quoted(name: bytes) -> bytes:
    return b'"' + name.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def _partial(scanner: Scanner) -> tuple[int, int] | None:
    if not scanner.took(b"<"):
        return None
    offset = scanner.number("an offset")
    scanner.expect(b".")
    octets = scanner.number("a number of octets")
    if not octets:
        raise ImapSyntax("A partial fetch of no octets")
    scanner.expect(b">")
    return offset, octets
