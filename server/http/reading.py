"""A stored message as API v1 shows it: header, addresses, text, HTML, parts, files.

Owns the translation of a message's octets into plain JSON-able dicts, and the
numbering of parts as in IMAP. Every list and text has a limit, and the answer
says when one was reached. Cleans no HTML and judges nothing.
RFC 9051 6.4.5.1 (part numbers), RFC 2045, RFC 5322.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from server.http.answers import time_text
from server.mail.address_list import HeaderAddress
from server.mail.automatic import unanswerable
from server.mail.dates import parse_date
from server.mail.envelope import Envelope, read_envelope
from server.mail.header import decode, fields
from server.mail.header import split as split_header
from server.mail.structure import Part, scan
from server.mail.text import find_body, part_octets, part_source

TEXT_OCTETS = 1_048_576  # of each text, as it lies in the message
FIELDS_SHOWN = 500
HEADER_OCTETS = 262_144
PARTS_SHOWN = 500
ADDRESSES_SHOWN = 1000
REFERENCES_SHOWN = 100
ADDRESS_CHARACTERS = 1000


@dataclass(slots=True)
class _Numbered:
    """Parts in order with their numbers, as far as they are shown."""

    parts: list[tuple[str, Part]] = field(default_factory=list)
    cut: bool = False


def describe(path: Path) -> dict[str, object]:
    """Return the members of models.Message that are in the file; OSError where it can't be read."""
    content = path.read_bytes()
    root = scan(content)
    header = content[: min(root.body_start, HEADER_OCTETS)]
    envelope = read_envelope(header)
    shown = fields(header)
    numbered = _number(root)
    plain, html = find_body(root, "text/plain"), find_body(root, "text/html")
    cut = root.body_start > HEADER_OCTETS or len(shown) > FIELDS_SHOWN or numbered.cut
    cut = cut or any(part is not None and part.octets > TEXT_OCTETS for part in (plain, html))
    references = decode(next((f.value for f in shown if f.name.lower() == b"references"), b"")).split()
    lists = (envelope.from_, envelope.to, envelope.cc, envelope.reply_to)
    cut = cut or len(references) > REFERENCES_SHOWN or max(map(len, lists)) > ADDRESSES_SHOWN
    return {
        **_addresses(envelope),
        "date": _date(envelope),
        "message_id": decode(envelope.message_id or b""),
        "in_reply_to": decode(envelope.in_reply_to or b""),
        "references": references[:REFERENCES_SHOWN],
        "headers": [[decode(f.name), decode(f.value)] for f in shown[:FIELDS_SHOWN]],
        "text": None if plain is None else part_source(plain, content, limit=TEXT_OCTETS),
        "html": None if html is None else part_source(html, content, limit=TEXT_OCTETS),
        "truncated": cut,
        "structure": _structure(numbered),
        "files": [_file(number, part) for number, part in numbered.parts if part.is_attachment],
    }


def extract_part(path: Path, number: str) -> tuple[str, str | None, bytes] | None:
    """Return content type, file name and decoded octets of a part, or None if there is no such part."""
    content = path.read_bytes()
    for known, part in _number(scan(content)).parts:
        if known == number and not part.is_multipart:
            return _media(part), part.content.filename, part_octets(part, content)
    return None


@dataclass(frozen=True, slots=True)
class Answered:
    """What a reply takes from the message it answers; addresses as text.

    automatic: why no automatic reply may answer it, '' where one may (RFC 3834 2).
    """

    subject: str
    message_id: str
    references: tuple[str, ...]
    reply_to: tuple[str, ...]
    others: tuple[str, ...]
    automatic: str = ""


def answered(path: Path) -> Answered:
    """Return what a reply to the message in a file needs; OSError where it can't be read."""
    with path.open("rb") as opened:
        start = opened.read(HEADER_OCTETS)
    header = start[: split_header(start)]
    envelope = read_envelope(header)
    references = next((f.value for f in fields(header) if f.name.lower() == b"references"), b"")
    earlier = (decode(references) or decode(envelope.in_reply_to or b"")).split()
    return Answered(
        subject=decode(envelope.subject or b""),
        message_id=decode(envelope.message_id or b""),
        references=tuple(one for one in earlier if _is_message_id(one))[-REFERENCES_SHOWN:],
        reply_to=_mailboxes(envelope.reply_to),
        others=_mailboxes((*envelope.to, *envelope.cc)),
        automatic=unanswerable(header),
    )


def _is_message_id(text: str) -> bool:
    return text.isascii() and text.startswith("<") and text.endswith(">") and len(text) <= 998


def _mailboxes(found: tuple[HeaderAddress, ...]) -> tuple[str, ...]:
    return tuple(
        _address_text(one) for one in found[:ADDRESSES_SHOWN] if one.is_mailbox and one.local and one.domain
    )


def _address_text(one: HeaderAddress) -> str:
    local = (one.local or b"").decode("utf-8", "replace")
    domain = (one.domain or b"").decode("utf-8", "replace")
    return f"{local}@{domain}"[:ADDRESS_CHARACTERS]


def _addresses(envelope: Envelope) -> dict[str, object]:
    lists = {
        "sender": envelope.from_,
        "recipients": envelope.to,
        "cc": envelope.cc,
        "reply_to": envelope.reply_to,
    }
    return {
        name: [
            {"name": decode(one.display or b""), "address": _address_text(one)}
            for one in found[:ADDRESSES_SHOWN]
            if one.is_mailbox
        ]
        for name, found in lists.items()
    }


def _date(envelope: Envelope) -> str | None:
    found = parse_date(envelope.date) if envelope.date else None
    return None if found is None else time_text(found[0])


def _media(part: Part) -> str:
    kind = part.kind
    return kind if kind.isascii() and kind.isprintable() and len(kind) < 200 else "application/octet-stream"


def _number(root: Part) -> _Numbered:
    """Number the parts: '' is a multipart message, '1' the text of a plain one, '2.1' a part of a part."""
    numbered = _Numbered()
    waiting = [("" if root.is_multipart else "1", root)]
    while waiting:
        if len(numbered.parts) >= PARTS_SHOWN:
            numbered.cut = True
            break
        number, part = waiting.pop()
        numbered.parts.append((number, part))
        waiting.extend(reversed(list(_below(number, part))))
    return numbered


def _below(number: str, part: Part) -> Iterator[tuple[str, Part]]:
    if part.is_multipart:
        prefix = f"{number}." if number else ""
        for position, one in enumerate(part.parts[:PARTS_SHOWN], start=1):
            yield f"{prefix}{position}", one
    elif part.is_message:
        inner = part.parts[0]
        if inner.is_multipart:
            # RFC 9051 6.4.5.1: the parts of an embedded multipart are numbered below the message itself.
            yield from _below(number, inner)
        else:
            yield f"{number}.1", inner


def _structure(numbered: _Numbered) -> dict[str, object]:
    """Nest the shown parts again by their numbers, without recursion over a stranger's depth."""
    made: dict[str, dict[str, object]] = {}
    children: dict[str, list[dict[str, object]]] = {}
    for number, part in numbered.parts:
        below: list[dict[str, object]] = []
        one: dict[str, object] = {
            "part": number,
            "content_type": _media(part),
            "encoding": decode(part.content.encoding)[:40],
            "octets": part.octets,
            "parts": below,
        }
        children[number] = below
        made[number] = one
        if len(made) > 1:
            parent = number.rpartition(".")[0]
            children.get(parent, next(iter(children.values()))).append(one)
    return next(iter(made.values()))


def _file(number: str, part: Part) -> dict[str, object]:
    disposition = (
        part.content.disposition[0].decode("ascii", "replace").lower()[:40]
        if part.content.disposition
        else ""
    )
    return {
        "part": number,
        "filename": part.content.filename[:255] if part.content.filename else None,
        "content_type": _media(part),
        "disposition": disposition or "attachment",
        "content_id": decode(part.content.id)[:255] if part.content.id else None,
        "octets": part.octets,
    }
