"""What submission completes: Date, Message-ID and Sender where absent, Bcc taken out (RFC 6409 8).

Owns those acts on a message's header, and the removal of fields that it may not
keep; and what makes a body fit for every way before it is signed: binary parts encoded, the message 7-bit
and in lines that are short enough. A body that somebody else has signed is never touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from mmap import ACCESS_READ, mmap
from typing import TYPE_CHECKING

from server.mail import dates, header, seven_bit
from server.mail.recoding import Unencodable, recode
from storage.records import Spooled

if TYPE_CHECKING:
    from server.evidence import Letter
    from server.login import Identity
    from server.mail.structure import Octets
    from storage.store import Store

CHUNK_OCTETS = 1 << 20
LF = 0x0A
BLIND = frozenset((b"bcc", b"resent-bcc"))  # RFC 5322 3.6.3 and 3.6.6
# RFC 5321 4.4: the field is written where a message is delivered; one that came with it says nothing true.
WITHHELD = BLIND | {b"return-path"}
FOLDS = (b" ", b"\t")


def missing_fields(letter: Letter, *, message_id: str, hostname: str, at: int) -> bytes:
    """Return the Date and Message-ID fields that a submitted message lacks, with CRLF."""
    fields = []
    if not letter.has(b"date"):
        fields.append(f"Date: {dates.format_date(at)}\r\n")
    if not letter.word(b"message-id"):
        fields.append(f"Message-ID: <{message_id}@{hostname}>\r\n")
    return "".join(fields).encode("ascii")


def sender_field(letter: Letter, identity: Identity | None) -> bytes:
    """Return the Sender field that a message of several authors lacks (RFC 5322 3.6.2)."""
    if identity is None or len(letter.from_addresses) < 2 or letter.has(b"sender"):
        return b""
    named = identity.address if identity.mailbox_id is not None else letter.from_addresses[0]
    return f"Sender: <{named}>\r\n".encode()


def withheld_fields(head: bytes) -> list[bytes]:
    """Return the raw Bcc, Resent-Bcc and Return-Path fields of a header."""
    return [field.raw for field in header.fields(head) if field.name.lower() in WITHHELD]


def return_paths(head: bytes) -> list[bytes]:
    """Return the raw Return-Path fields of a header."""
    return [field.raw for field in header.fields(head) if field.name.lower() == b"return-path"]


def rewrite(
    content: bytes | Spooled, *, added: bytes, unwanted: Sequence[bytes], header_octets: int, store: Store
) -> bytes | Spooled:
    """Return the content with fields put on top and some raw fields taken out.

    header_octets: length of the header with its blank line. Large content is written
    anew and the old file given up. Raises storage.errors.Full.
    """
    if isinstance(content, bytes):
        return added + _strip(content[:header_octets], unwanted) + content[header_octets:]
    with open(store.read_spooled(content), "rb") as source:
        head = added + _strip(source.read(header_octets), unwanted)
        return _write_anew(content, chain((head,), iter(partial(source.read, CHUNK_OCTETS), b"")), store)


def recoded(content: bytes | Spooled, store: Store) -> bytes | Spooled:
    """Return a binary message with its binary parts encoded; the old file is given up.

    Raises Unencodable and storage.errors.Full.
    """
    if isinstance(content, bytes):
        return b"".join(recode(content))
    with (
        open(store.read_spooled(content), "rb") as source,
        mmap(source.fileno(), 0, access=ACCESS_READ) as mapped,
    ):
        return _write_anew(content, recode(mapped), store)


def fitted(content: bytes | Spooled, store: Store, *, is_signed: bool) -> bytes | Spooled:
    """Return a message that every next hop can carry: itself where it is fit, or may stay as it is.

    is_signed: by somebody else; then nothing is changed. The old file is given up for a new one.
    Raises Unencodable and storage.errors.Full.
    """
    if isinstance(content, bytes):
        made = _edits(content, is_signed=is_signed)
        return b"".join(seven_bit.edited(content, made)) if made else content
    if not content.octets:
        return content  # an empty file cannot be mapped
    with (
        open(store.read_spooled(content), "rb") as source,
        mmap(source.fileno(), 0, access=ACCESS_READ) as mapped,
    ):
        made = _edits(mapped, is_signed=is_signed)
        return _write_anew(content, seven_bit.edited(mapped, made), store) if made else content


def _edits(message: Octets, *, is_signed: bool) -> list[seven_bit.Edit]:
    if seven_bit.is_fit(message):
        return []
    if not is_signed:
        return seven_bit.edits(message)
    if not seven_bit.has_short_lines(message):
        raise Unencodable(f"it is signed, and a line {seven_bit.TOO_LONG}")
    return []


def _write_anew(content: Spooled, pieces: Iterable[bytes], store: Store) -> Spooled:
    """Return a spool file of the pieces in the place of one that is given up once they are written."""
    writer = store.spool()
    try:
        for piece in pieces:
            writer.write(piece)
        made = writer.finish()
    except BaseException:
        writer.discard()
        raise
    store.discard(content)
    return made


def head_of(content: bytes | Spooled, header_octets: int, store: Store) -> bytes:
    """Return a message's header with its blank line."""
    if isinstance(content, bytes):
        return content[:header_octets]
    with open(store.read_spooled(content), "rb") as source:
        return source.read(header_octets)


def _strip(head: bytes, unwanted: Sequence[bytes]) -> bytes:
    """Return the header without raw fields of it, which are given in their order."""
    kept: list[bytes] = []
    at = 0
    for raw in unwanted:
        begin = _field_at(head, raw, at)
        kept.append(head[at:begin])
        at = begin + len(raw)
    return b"".join((*kept, head[at:]))


def _field_at(head: bytes, raw: bytes, at: int) -> int:
    """Return where a raw field stands as a field: the same octets may stand inside another before it."""
    begin = head.index(raw, at)
    while (begin and head[begin - 1] != LF) or head[begin + len(raw) : begin + len(raw) + 1] in FOLDS:
        begin = head.index(raw, begin + 1)
    return begin
