"""Messages as lists and single rows, for those who read them by id.

Owns the queries over messages and their entries that pages and programs ask:
newest first, by cursor, in one inbox or one organization. Opens no file and
changes nothing; IMAP's view of the same rows is in mailboxes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, func, select

from storage.records import Entry, Message, Source
from storage.schema import entries, events, folders, mailboxes, messages, organizations, renditions
from storage.selection import run

PAGE_LIMIT = 200
# Doors at which the envelope sender was proved; anybody can claim one at the MX.
_FROM_INSIDE = (Source.SUBMISSION.value, Source.API.value)
_FACTS = (
    messages.c.id,
    messages.c.organization_id,
    messages.c.source,
    messages.c.accepted_at,
    messages.c.octets.label("message_octets"),
    messages.c.digest,
    messages.c.reverse_path,
    messages.c.message_id_header,
    messages.c.subject,
    messages.c.from_,
    messages.c.to,
)


class Line(NamedTuple):
    """One line of a list, as the query gives it; keywords: separated by spaces."""

    uid: int
    message_id: str
    flags: int
    keywords: str
    internal_date: int
    octets: int
    subject: str
    from_: str
    to: str
    thread_id: str
    preview: str
    attachments: int


# Lists are what programs ask most: a plain text costs a fifth of the same query built of expressions.
_FOLDER = (
    "SELECT f.id FROM folders f JOIN mailboxes m ON m.id = f.mailbox_id "
    "WHERE m.id = ? AND m.organization_id = ? AND f.name = ?"
)
_LINES = (
    "SELECT e.uid, e.message_id, e.flags, e.keywords, e.internal_date, e.octets, m.subject, m.from_, "
    "m.\"to\", m.thread_id, COALESCE(r.preview, ''), COALESCE(r.attachments, 0) "
    "FROM entries e JOIN messages m ON m.id = e.message_id "
    "LEFT JOIN renditions r ON r.message_id = e.message_id "
    "WHERE e.folder_id = ? AND e.uid < ? ORDER BY e.uid DESC LIMIT ?"
)
_NO_UID = 1 << 62


@dataclass(frozen=True, slots=True)
class Listed:
    """One message in one folder with what a list shows of it."""

    message: Message
    entry: Entry
    folder: str
    thread_id: str
    preview: str
    attachments: int


@dataclass(frozen=True, slots=True)
class Counted:
    """How much there is of the appliance's own things."""

    organizations: int
    mailboxes: int


def page(
    connection: Connection,
    *,
    organization_id: str,
    mailbox_id: str,
    folder: str = "INBOX",
    before_uid: int | None = None,
    limit: int = 50,
) -> list[Line] | None:
    """Return up to `limit` messages of a folder, newest first, with UIDs below `before_uid`.

    None if the inbox is not the organization's or has no such folder.
    """
    found = run(connection, _FOLDER, (mailbox_id, organization_id, folder)).fetchone()
    if found is None:
        return None
    below = _NO_UID if before_uid is None else before_uid
    rows = run(connection, _LINES, (found[0], below, max(1, min(limit, PAGE_LIMIT))))
    return [Line(*row) for row in rows.fetchall()]


def find(connection: Connection, *, organization_id: str, mailbox_id: str, message_id: str) -> Listed | None:
    """Return a message as it lies in an inbox, in the folder it came to first if it is in several."""
    query = (
        select(
            *_FACTS,
            messages.c.thread_id,
            entries,
            folders.c.name.label("folder"),
            renditions.c.preview,
            renditions.c.attachments,
        )
        .select_from(entries)
        .join(messages, messages.c.id == entries.c.message_id)
        .join(folders, folders.c.id == entries.c.folder_id)
        .join(mailboxes, mailboxes.c.id == folders.c.mailbox_id)
        .outerjoin(renditions, renditions.c.message_id == entries.c.message_id)
        .where(
            entries.c.message_id == message_id,
            mailboxes.c.id == mailbox_id,
            mailboxes.c.organization_id == organization_id,
        )
        .order_by(entries.c.folder_id, entries.c.uid)
        .limit(1)
    )
    row = connection.execute(query).first()
    return None if row is None else _listed(row, row.folder)


def places(
    connection: Connection, *, organization_id: str, mailbox_id: str, message_id: str
) -> list[tuple[int, int]]:
    """Return (folder id, UID) of every copy of a message in a tenant's inbox."""
    query = (
        select(entries.c.folder_id, entries.c.uid)
        .join(folders, folders.c.id == entries.c.folder_id)
        .join(mailboxes, mailboxes.c.id == folders.c.mailbox_id)
        .where(
            entries.c.message_id == message_id,
            mailboxes.c.id == mailbox_id,
            mailboxes.c.organization_id == organization_id,
        )
        .order_by(entries.c.folder_id, entries.c.uid)
    )
    return [(row.folder_id, row.uid) for row in connection.execute(query)]


def facts(connection: Connection, *, organization_id: str, message_id: str) -> Row[Any] | None:
    """Return the whole row of a tenant's message, or None."""
    query = select(messages).where(messages.c.id == message_id, messages.c.organization_id == organization_id)
    return connection.execute(query).first()


def sent_by(connection: Connection, *, message_id: str, mailbox_id: str) -> bool:
    """Return whether an inbox is the envelope sender of a message of its own organization."""
    query = (
        select(messages.c.id)
        .join(mailboxes, mailboxes.c.organization_id == messages.c.organization_id)
        .where(
            messages.c.id == message_id,
            mailboxes.c.id == mailbox_id,
            mailboxes.c.address == messages.c.reverse_path,
            messages.c.source.in_(_FROM_INSIDE),
        )
    )
    return connection.execute(query).first() is not None


def given_to(connection: Connection, *, message_id: str, mailbox_id: str) -> bool:
    """Return whether an inbox was given a message, also where it was deleted since."""
    query = select(events.c.seq).where(events.c.message_id == message_id, events.c.mailbox_id == mailbox_id)
    return connection.execute(query.limit(1)).first() is not None


def newest(
    connection: Connection, *, organization_id: str | None, before_id: str | None = None, limit: int = 50
) -> list[Message]:
    """Return up to `limit` newest messages of one tenant, or (None, the operator's pages) of all."""
    query = select(*_FACTS)
    if organization_id is not None:
        query = query.where(messages.c.organization_id == organization_id)
    if before_id is not None:
        query = query.where(messages.c.id < before_id)
    rows = connection.execute(query.order_by(messages.c.id.desc()).limit(max(1, min(limit, PAGE_LIMIT))))
    return [_message(row) for row in rows]


def organization_of(connection: Connection, *, message_id: str) -> str | None:
    """Return whose message it is, or None; for the operator's pages."""
    found = connection.execute(select(messages.c.organization_id).where(messages.c.id == message_id)).scalar()
    return None if found is None else str(found)


def count_accounts(connection: Connection) -> Counted:
    """Return how many organizations and inboxes the appliance has."""
    numbers = [
        connection.execute(select(func.count()).select_from(table)).scalar_one()
        for table in (organizations, mailboxes)
    ]
    return Counted(*numbers)


def _message(row: Any) -> Message:
    return Message(
        id=row.id,
        organization_id=row.organization_id,
        source=Source(row.source),
        accepted_at=row.accepted_at,
        octets=row.message_octets,
        digest=bytes(row.digest).hex(),
        reverse_path=row.reverse_path,
        message_id_header=row.message_id_header,
        subject=row.subject,
        from_=row.from_,
        to=row.to,
    )


def _listed(row: Any, folder: str) -> Listed:
    entry = Entry(
        folder_id=row.folder_id,
        uid=row.uid,
        modseq=row.modseq,
        message_id=row.message_id,
        flags=row.flags,
        keywords=tuple(row.keywords.split()),
        internal_date=row.internal_date,
        octets=row.octets,
        prefix_octets=row.prefix_octets,
        name=row.name,
        subdirectory=row.subdirectory,
        mirrored=row.mirrored,
    )
    return Listed(_message(row), entry, folder, row.thread_id, row.preview or "", row.attachments or 0)
