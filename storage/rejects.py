"""What is kept of mail that was refused for its sender's reputation alone.

Owns the rows of `rejects`, which say what the folder Rejects of an inbox holds by our
doing, and the taking away of what is too old or too much. What an owner put there is
never touched, nor what an owner took out. Refuses nothing and places nothing: intake
and apply do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from sqlalchemy import Connection, delete, func, select

from storage import schema
from storage.entries import expunge
from storage.errors import Full
from storage.folder_names import REJECTS
from storage.folders import create_folder, find_folder, set_subscribed
from storage.maildir import Maildir
from storage.records import Accepted, Event
from storage.selection import members, pack, run

KIND = "message.refused"
PRUNE_ROWS = 500
# Real mail comes first: of a limited inbox Rejects has what is left of this much.
QUOTA_TENTHS = 9
ARRIVED = 3 * 86_400_000_000  # so long senders try again
_table = schema.rejects


def known(connection: Connection, *, digest: bytes, mailbox_ids: Collection[str]) -> set[str]:
    """Return those inboxes that were given a message of that digest already."""
    query = select(_table.c.mailbox_id).where(
        _table.c.mailbox_id.in_(list(mailbox_ids)), _table.c.digest == digest
    )
    return set(connection.execute(query).scalars())


def full(connection: Connection, *, mailbox_ids: Collection[str], octets: int) -> set[str]:
    """Return those inboxes whose quota leaves no room for refused mail of that size."""
    boxes = schema.mailboxes
    query = select(boxes.c.id).where(
        boxes.c.id.in_(list(mailbox_ids)),
        boxes.c.quota_octets > 0,
        10 * (boxes.c.used_octets + octets) > QUOTA_TENTHS * boxes.c.quota_octets,
    )
    return set(connection.execute(query).scalars())


def remember(connection: Connection, placed: Iterable[tuple[Accepted, Collection[str]]]) -> None:
    """Note kept messages, each with the inboxes that have it now; in the unit that inserts their entries."""
    text = (
        "INSERT INTO rejects (mailbox_id, digest, message_id, octets, at) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT DO NOTHING"
    )
    for record, mailbox_ids in placed:
        for event in record.events:
            if event.kind == KIND and event.mailbox_id in mailbox_ids:
                octets = event.data["octets"]
                digest = bytes.fromhex(str(event.data["digest"]))
                run(connection, text, (event.mailbox_id, digest, record.message_id, octets, event.at))


def make_folders(connection: Connection, *, mailbox_ids: Collection[str], at: int) -> None:
    """Make the folder Rejects of open inboxes that have none."""
    boxes = schema.mailboxes
    query = select(boxes.c.id).where(boxes.c.id.in_(list(mailbox_ids)), boxes.c.state != "closed")
    for mailbox_id in list(connection.execute(query.order_by(boxes.c.id)).scalars()):
        if find_folder(connection, mailbox_id=mailbox_id, name=REJECTS) is None:
            try:
                create_folder(connection, mailbox_id=mailbox_id, name=REJECTS, at=at)
            except Full:
                continue  # an inbox with so many folders that no other fits keeps nothing
            # Many clients show what is subscribed to and nothing else.
            set_subscribed(connection, mailbox_id=mailbox_id, name=REJECTS, subscribed=True)


def prune(
    connection: Connection,
    *,
    maildir: Maildir,
    before: int,
    messages: int,
    octets: int,
    at: int,
    mailbox_ids: Collection[str] | None = None,
) -> int:
    """Take away what was kept before a time, and of each inbox the oldest beyond its limits.

    mailbox_ids: those to look at for their limits, None for all; then also what has come after all goes.
    Returns how many went, PRUNE_ROWS of each kind at most: called again, it goes on.
    """
    old = select(_table.c.mailbox_id, _table.c.digest, _table.c.message_id).where(_table.c.at < before)
    gone = [tuple(row) for row in connection.execute(old.order_by(_table.c.at).limit(PRUNE_ROWS))]
    if mailbox_ids is None or mailbox_ids:
        gone += _too_much(connection, messages, octets, mailbox_ids)
        gone += _in_the_way(connection, mailbox_ids)
    if mailbox_ids is None:
        gone += _arrived(connection, since=at - ARRIVED)
    by_mailbox: dict[str, dict[bytes, str]] = {}
    for mailbox_id, digest, message_id in gone:
        by_mailbox.setdefault(mailbox_id, {})[bytes(digest)] = message_id
    for mailbox_id in sorted(by_mailbox):
        _take(connection, maildir, mailbox_id, by_mailbox[mailbox_id], at)
    return sum(map(len, by_mailbox.values()))


def _too_much(
    connection: Connection, messages: int, octets: int, mailbox_ids: Collection[str] | None
) -> list[tuple[str, bytes, str]]:
    counts = select(_table.c.mailbox_id).group_by(_table.c.mailbox_id)
    counts = counts.having((func.count() > messages) | (func.sum(_table.c.octets) > octets))
    if mailbox_ids is not None:
        counts = counts.where(_table.c.mailbox_id.in_(list(mailbox_ids)))
    found: list[tuple[str, bytes, str]] = []
    for mailbox_id in connection.execute(counts).scalars().all():
        query = select(_table).where(_table.c.mailbox_id == mailbox_id)
        kept = total = 0
        for row in connection.execute(query.order_by(_table.c.at.desc(), _table.c.message_id.desc())):
            kept, total = kept + 1, total + row.octets
            if kept > messages or total > octets:
                found.append((mailbox_id, row.digest, row.message_id))
        del found[PRUNE_ROWS:]
    return found


def _in_the_way(connection: Connection, mailbox_ids: Collection[str] | None) -> list[tuple[str, bytes, str]]:
    """Return the oldest of inboxes that come near their quota."""
    boxes = schema.mailboxes
    near = 10 * boxes.c.used_octets > QUOTA_TENTHS * boxes.c.quota_octets
    query = select(boxes.c.id, boxes.c.used_octets, boxes.c.quota_octets).where(
        boxes.c.quota_octets > 0, near
    )
    query = query.where(boxes.c.id.in_(select(_table.c.mailbox_id)))
    if mailbox_ids is not None:
        query = query.where(boxes.c.id.in_(list(mailbox_ids)))
    found: list[tuple[str, bytes, str]] = []
    for mailbox_id, used, quota in connection.execute(query).all():
        excess = used - quota * QUOTA_TENTHS // 10
        rows = select(_table).where(_table.c.mailbox_id == mailbox_id).order_by(_table.c.at).limit(PRUNE_ROWS)
        for row in connection.execute(rows):
            if excess <= 0:
                break
            excess -= row.octets
            found.append((mailbox_id, row.digest, row.message_id))
    return found


def _arrived(connection: Connection, *, since: int) -> list[tuple[str, bytes, str]]:
    """Return what was refused for a time and has come to the same inbox since, octet by octet."""
    text = (
        "SELECT r.mailbox_id, r.digest, r.message_id FROM rejects r "
        "JOIN messages m ON m.id = r.message_id "
        "JOIN messages o ON o.organization_id = m.organization_id "
        "AND o.message_id_header = m.message_id_header AND o.id <> m.id AND o.digest = m.digest "
        "JOIN entries e ON e.message_id = o.id JOIN folders f ON f.id = e.folder_id "
        "WHERE r.at > ? AND m.message_id_header <> '' AND f.mailbox_id = r.mailbox_id AND f.name <> ? LIMIT ?"
    )
    return [tuple(row) for row in run(connection, text, (since, REJECTS, PRUNE_ROWS)).fetchall()]


def _take(connection: Connection, maildir: Maildir, mailbox_id: str, gone: dict[bytes, str], at: int) -> None:
    folder = find_folder(connection, mailbox_id=mailbox_id, name=REJECTS)
    if folder is not None:
        text = (
            "SELECT uid FROM entries WHERE folder_id = ? "  # noqa: S608 - ours
            f"AND message_id IN {members(connection, 'text')} ORDER BY uid"
        )
        rows = run(connection, text, (folder.id, pack(connection, gone.values()))).fetchall()
        uids: Sequence[int] = [row[0] for row in rows]
        if uids:
            expunge(connection, maildir=maildir, folder_id=folder.id, uids=uids, at=at)
    for digest in gone:
        connection.execute(delete(_table).where(_table.c.mailbox_id == mailbox_id, _table.c.digest == digest))


def events_of(record: Accepted) -> list[Event]:
    """Return the events of a record that say what was refused."""
    return [event for event in record.events if event.kind == KIND]
