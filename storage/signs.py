"""What inboxes' owners do that tells whom they like: noted with the act, learnt from later.

Owns the rows of signs_due and signs. An act is noted in its own transaction, so that
none is lost and STORE, COPY and MOVE stay as quick as they are; `due`, `claim` and
`learn` are for who makes signs of them. One message gives an inbox one sign at a
time. Weighs nothing, and knows correspondents as texts that it is given.
RFC 9051 2.3.2 ($Junk, $NotJunk), RFC 6154 2 (\\Junk, \\Trash).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, delete, func, select

from storage import schema
from storage.codec import read_envelope, read_peer, read_verdicts
from storage.db import Notice, publish
from storage.folder_names import JUNK_FOLDER, REJECTS, TRASH_FOLDER
from storage.maildir import relative_path
from storage.records import Source, Verdict
from storage.selection import insert_rows, members, pack, run

if TYPE_CHECKING:
    from storage.folders import Locked

JUNK, WELCOME, WRITTEN = "junk", "welcome", "written"
NOT_JUNK, NOT_WELCOME = "not junk", "not welcome"  # a mark taken away: the sign goes, and none comes
_TAKEN = {NOT_JUNK: JUNK, NOT_WELCOME: WELCOME}
DUE = "signs due"  # the notice's topic; 'signs' with an inbox's id says that some were learnt
AT_ONCE = 1000  # of one act's messages: what is done to more tells no more
LIMIT = 10_000  # an inbox
SLACK = 500  # how far beyond it a trim lets an inbox come
RENEWED = 86_400_000_000  # that somebody was written to is noted once a day
CORRESPONDENT_CHARACTERS = 400
PRUNE_ROWS = 5000
# What clients call them: RFC 9051's, Thunderbird's and those before the RFC.
_JUNK_WORDS = frozenset({"$junk", "junk"})
_WELCOME_WORDS = frozenset({"$notjunk", "notjunk", "nonjunk"})
_MARKS = _JUNK_WORDS | _WELCOME_WORDS
_STRANGE = frozenset({Source.MX.value, Source.LMTP.value})
_DUE = "mailbox_id, message_id, kind, at"
_KEY = (schema.signs.c.mailbox_id, schema.signs.c.message_id, schema.signs.c.correspondent)


@dataclass(frozen=True, slots=True)
class Due:
    """One act that no sign was made of yet. mailbox_id: None for mail that was sent."""

    seq: int
    mailbox_id: str | None
    message_id: str
    kind: str
    at: int


@dataclass(frozen=True, slots=True)
class Sign:
    """What is known of one act: the correspondents it tells of."""

    mailbox_id: str
    message_id: str
    kind: str
    at: int
    correspondents: tuple[str, ...]


def moved(source: Locked, target: Locked) -> str:
    """Return what moving or copying between two folders says of the sender, '' for nothing."""
    if source.mailbox_id != target.mailbox_id:
        return ""
    was_out = _is_junk(source) or source.name == REJECTS
    if _is_junk(target):
        return "" if _is_junk(source) else JUNK
    is_shelved = target.name in (REJECTS, TRASH_FOLDER) or target.special_use == "\\Trash"
    return WELCOME if was_out and not is_shelved else ""


def _is_junk(folder: Locked) -> bool:
    return folder.name == JUNK_FOLDER or folder.special_use == "\\Junk"


def marked(words: Sequence[str], *, is_removal: bool) -> str:
    """Return what keywords given or taken say of the sender, '' for nothing."""
    named = _MARKS.intersection(word.lower() for word in words)
    if not named:
        return ""
    if is_removal:
        return NOT_JUNK if named & _JUNK_WORDS else NOT_WELCOME
    return JUNK if named & _JUNK_WORDS else WELCOME


def note(connection: Connection, *, mailbox_id: str, message_ids: Sequence[str], kind: str, at: int) -> None:
    """Note an act on messages, the last AT_ONCE of them."""
    rows = ((mailbox_id, message_id, kind, at) for message_id in message_ids[-AT_ONCE:])
    insert_rows(connection, "signs_due", _DUE, rows)
    publish(connection, Notice(DUE, "", at))


def note_marked(connection: Connection, *, folder: Locked, uids: Sequence[int], kind: str) -> None:
    """Note that messages of a folder were marked."""
    text = f"SELECT message_id FROM entries WHERE folder_id = ? AND uid IN {members(connection)} ORDER BY uid"  # noqa: S608 - ours
    rows = run(connection, text, (folder.id, pack(connection, uids[-AT_ONCE:]))).fetchall()
    note(
        connection,
        mailbox_id=folder.mailbox_id,
        message_ids=[row[0] for row in rows],
        kind=kind,
        at=time.time_ns() // 1000,
    )


def note_sent(connection: Connection, sent: Iterable[tuple[str, int]]) -> None:
    """Note messages that users sent, each with its time."""
    rows = [(None, message_id, WRITTEN, at) for message_id, at in sent]
    insert_rows(connection, "signs_due", _DUE, rows)
    publish(connection, Notice(DUE, "", rows[-1][3]))


def due(connection: Connection, *, after: int = 0, limit: int) -> list[Due]:
    """Return the oldest acts that are to be learnt from."""
    table = schema.signs_due
    query = select(table).where(table.c.seq > after).order_by(table.c.seq).limit(limit)
    return [Due(*row) for row in connection.execute(query)]


def claim(connection: Connection, seqs: Collection[int]) -> set[int]:
    """Take acts off the list and return those that nobody else has taken."""
    text = f"DELETE FROM signs_due WHERE seq IN {members(connection)} RETURNING seq"  # noqa: S608 - ours
    return {row[0] for row in run(connection, text, (pack(connection, list(seqs)),)).fetchall()}


def learn(connection: Connection, found: Sequence[Sign]) -> list[Sign]:
    """Keep signs, each in place of the one that its message gave before; returns those that are news.

    Signs of an inbox that is gone or closed are left out.
    """
    table = schema.signs
    wanted = sorted({sign.mailbox_id for sign in found})
    boxes = schema.mailboxes
    query = select(boxes.c.id).where(boxes.c.id.in_(wanted), boxes.c.state != "closed")
    open_boxes = set(connection.execute(query).scalars())
    new: list[Sign] = []
    for sign in found:
        if sign.mailbox_id not in open_boxes:
            continue
        here = (table.c.mailbox_id == sign.mailbox_id) & (table.c.message_id == sign.message_id)
        row = connection.execute(select(table.c.kind, table.c.at).where(here).limit(1)).first()
        known, last = (None, 0) if row is None else (row.kind, row.at)
        if known == sign.kind and (known != WRITTEN or sign.at - last < RENEWED):
            continue
        if sign.kind in _TAKEN and known != _TAKEN[sign.kind]:
            continue
        connection.execute(delete(table).where(here))
        if sign.kind not in _TAKEN:
            rows = [
                (sign.mailbox_id, sign.message_id, one[:CORRESPONDENT_CHARACTERS], sign.kind, sign.at)
                for one in dict.fromkeys(sign.correspondents)
            ]
            insert_rows(connection, "signs", "mailbox_id, message_id, correspondent, kind, at", rows)
        new.append(sign)
    for mailbox_id in {sign.mailbox_id for sign in new}:
        publish(connection, Notice("signs", mailbox_id))
    return new


def of(
    connection: Connection, *, mailbox_id: str, correspondent: str, limit: int = 100
) -> tuple[tuple[str, int], ...]:
    """Return the newest signs, (kind, at), of one correspondent of an inbox."""
    table = schema.signs
    query = select(table.c.kind, table.c.at).where(
        table.c.mailbox_id == mailbox_id,
        table.c.correspondent == correspondent[:CORRESPONDENT_CHARACTERS],
    )
    rows = connection.execute(query.order_by(table.c.at.desc()).limit(limit))
    return tuple((row.kind, row.at) for row in rows)


def inboxes(connection: Connection, *, limit: int) -> list[str]:
    """Return the inboxes that have signs."""
    boxes = schema.mailboxes.c
    has_signs = select(schema.signs.c.kind).where(schema.signs.c.mailbox_id == boxes.id).exists()
    return list(connection.execute(select(boxes.id).where(has_signs).limit(limit)).scalars())


def prune(connection: Connection, *, before: int) -> None:
    """Forget signs older than a time, PRUNE_ROWS at most."""
    query = select(*_KEY).where(schema.signs.c.at < before).order_by(schema.signs.c.at).limit(PRUNE_ROWS)
    _forget(connection, connection.execute(query).all())


def trim(connection: Connection, *, mailbox_ids: Collection[str]) -> None:
    """Forget the oldest signs of inboxes that have too many."""
    table = schema.signs
    for mailbox_id in sorted(mailbox_ids):
        here = table.c.mailbox_id == mailbox_id
        count = connection.execute(select(func.count()).select_from(table).where(here)).scalar_one()
        if count > LIMIT + SLACK:
            oldest = select(*_KEY).where(here).order_by(table.c.at).limit(count - LIMIT)
            _forget(connection, connection.execute(oldest).all())


def _forget(connection: Connection, rows: Iterable[Sequence[str]]) -> None:
    text = "DELETE FROM signs WHERE mailbox_id = ? AND message_id = ? AND correspondent = ?"
    for row in rows:
        run(connection, text, tuple(row))


def erase(connection: Connection, *, mailbox_id: str) -> None:
    """Forget all that an inbox's owner ever said by what was done."""
    for table in (schema.signs, schema.signs_due):
        connection.execute(delete(table).where(table.c.mailbox_id == mailbox_id))
    publish(connection, Notice("signs", mailbox_id))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message lies in an inbox: folder, and file below the folder's directory."""

    folder: str
    file: str
    prefix_octets: int


@dataclass(frozen=True, slots=True)
class Received:
    """What tells whom a stranger's message is from. client: IP address, '' for none."""

    verdicts: tuple[Verdict, ...]
    client: str
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Sent:
    """A message of a user's: the inbox it is of, and whom it goes to."""

    mailbox_id: str
    recipients: tuple[str, ...]


def about(connection: Connection, *, acts: Sequence[Due]) -> list[Received | Sent | None]:
    """Return for each act what is known of its message, None where there is nothing to learn from it."""
    letters = sent(connection, message_ids=[act.message_id for act in acts if act.mailbox_id is None])
    return [
        letters.get(act.message_id)
        if act.mailbox_id is None
        else received(connection, mailbox_id=act.mailbox_id, message_id=act.message_id)
        for act in acts
    ]


def received(connection: Connection, *, mailbox_id: str, message_id: str) -> Received | None:
    """Return what is known of a stranger's message in an inbox; None for any other, or one that is gone."""
    text = (
        "SELECT m.verdicts, m.peer, m.source, f.name, e.name, e.subdirectory, e.mirrored, e.prefix_octets "
        "FROM entries e JOIN folders f ON f.id = e.folder_id JOIN messages m ON m.id = e.message_id "
        "WHERE e.message_id = ? AND f.mailbox_id = ? LIMIT 3"
    )
    rows = run(connection, text, (message_id, mailbox_id)).fetchall()
    if not rows or rows[0][2] not in _STRANGE:
        return None
    places = tuple(Place(row[3], relative_path(row[4], row[5], row[6]), row[7]) for row in rows)
    return Received(read_verdicts(rows[0][0]), read_peer(rows[0][1]).address, places)


def sent(connection: Connection, *, message_ids: Sequence[str]) -> dict[str, Sent]:
    """Return whose inbox sent each message, and to whom; without those that are no inbox's."""
    if not message_ids:
        return {}
    chosen = members(connection, "text")
    text = f"SELECT id, organization_id, reverse_path, envelope, peer FROM messages WHERE id IN {chosen}"  # noqa: S608 - ours
    rows = run(connection, text, (pack(connection, message_ids),)).fetchall()
    boxes: dict[tuple[str, str, str], str | None] = {}
    found: dict[str, Sent] = {}
    for message_id, owner, reverse_path, envelope, peer in rows:
        submitter = (read_peer(peer).identity or "", owner, (reverse_path or "").lower())
        if submitter not in boxes:
            boxes[submitter] = _inbox_of(connection, *submitter)
        mailbox_id = boxes[submitter]
        if mailbox_id is not None:
            found[message_id] = Sent(
                mailbox_id, tuple(one.address for one in read_envelope(envelope).recipients)
            )
    return found


def _inbox_of(connection: Connection, login: str, owner: str, reverse_path: str) -> str | None:
    """Return the inbox of a login of an organization, or of the address that it sent from."""
    text = (
        "SELECT mailbox_id FROM credentials WHERE id = ? AND organization_id = ? UNION ALL "
        "SELECT mailbox_id FROM api_keys WHERE id = ? AND organization_id = ? AND mailbox_id IS NOT NULL "
        "UNION ALL SELECT id FROM mailboxes WHERE address = ? AND organization_id = ?"
    )
    row = run(connection, text, (login, owner, login, owner, reverse_path, owner)).fetchone()
    return None if row is None else row[0]


def with_owners(connection: Connection, found: Sequence[Sign]) -> list[tuple[Sign, str]]:
    """Return signs with the organizations that their inboxes belong to."""
    boxes = schema.mailboxes.c
    wanted = sorted({sign.mailbox_id for sign in found})
    query = select(boxes.id, boxes.organization_id).where(boxes.id.in_(wanted))
    owners = {row.id: row.organization_id for row in connection.execute(query)} if wanted else {}
    return [(sign, owners[sign.mailbox_id]) for sign in found if sign.mailbox_id in owners]
