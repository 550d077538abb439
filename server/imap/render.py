"""All that is computed once from a message's content and kept with it.

Owns the one pass over a message at delivery: structure, ENVELOPE, BODY and
BODYSTRUCTURE in wire form, the text that SEARCH looks in, and the few decoded
fields that lists show. Never raises; reads the content and nothing else.
RFC 9051 7.5.2, RFC 8970 (preview).
"""

from __future__ import annotations

from server.imap import format as wire
from server.imap import search_text, section
from server.mail import text
from server.mail.dates import parse_date
from server.mail.envelope import MAX_HEADER_OCTETS, read_envelope
from server.mail.header import Header, decode
from server.mail.structure import Octets, Part, scan
from storage.records import Rendered

LIST_CHARACTERS = 2000  # of a subject or address list that is kept decoded
REFERENCES_OCTETS = 16_384


def render(content: Octets) -> Rendered:
    """Return what is kept of a message; content has no trace fields of ours in front."""
    root = scan(content)
    found = Header.of(
        content[root.header_start : min(root.body_start, root.header_start + MAX_HEADER_OCTETS)]
    )
    facts = read_envelope(found)
    body, bodystructure = wire.body(root, lambda part: _embedded_envelope(content, part))
    sent = parse_date(facts.date) if facts.date else None
    return Rendered(
        envelope=wire.envelope(facts),
        body=body,
        bodystructure=bodystructure,
        parts=section.pack(root),
        header_octets=root.body_start,
        subject=_decoded(facts.subject),
        from_=_decoded(found.first(b"from")),
        to=_decoded(found.first(b"to")),
        message_id=_reference(facts.message_id),
        in_reply_to=_reference(facts.in_reply_to),
        references=_reference(found.first(b"references")),
        sent_at=sent[0] if sent else 0,
        preview=text.preview(root, content),
        text=search_text.build(root, content),
        attachments=sum(part.is_attachment for part in root.walk()),
    )


def _embedded_envelope(content: Octets, part: Part) -> bytes:
    return wire.envelope(read_envelope(content[part.header_start : part.body_start]))


def _decoded(value: bytes | None) -> str:
    if not value:
        return ""
    if value.isascii() and b"=?" not in value and b"\0" not in value:
        return value[:LIST_CHARACTERS].decode("ascii")
    return decode(value[: 4 * LIST_CHARACTERS])[:LIST_CHARACTERS]


def _reference(value: bytes | None) -> str:
    if not value:
        return ""
    # Never encoded: what is not ASCII here is what it was sent as.
    return value[:REFERENCES_OCTETS].decode("utf-8", "replace").replace("\0", "").strip()
