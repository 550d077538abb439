"""Opening and leaving a mailbox: SELECT, EXAMINE, CLOSE, UNSELECT, IDLE.

Owns the responses that describe a mailbox when it is opened, and the quick
resynchronisation with what a client knew before. RFC 9051 6.3.1, 6.3.2,
6.3.13, 6.4.1, 6.4.2, RFC 7162 3.1.2 and 3.2.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from server.imap import format as wire
from server.imap import sequence, telling, vanished
from server.imap import store as storing
from server.imap.answer import Completion, Failed, nonexistent
from server.imap.commands import Access
from server.imap.limits import LINE_OCTETS
from server.imap.machine import State, Telling
from server.imap.mailbox import find
from storage import mailboxes
from storage.errors import Missing
from storage.records import Flag

if TYPE_CHECKING:
    from server.imap import commands as c
    from server.imap.session import Session
    from server.imap.view import View
    from storage.records import Folder

log = structlog.get_logger("imap")


async def select(session: Session, command: c.Select) -> Completion:
    """SELECT and EXAMINE."""
    if command.qresync is not None and not session.qresync:
        raise Failed("Enable QRESYNC first", status=b"BAD")  # RFC 7162 3.2.5
    if session.state is State.SELECTED:
        session.deselect()
        session.wire.write(b"* OK [CLOSED] Previous mailbox closed\r\n")
    access = command.access if session.may_write else Access.READ_ONLY
    record = await find(session, command.mailbox)
    services = session.services
    try:
        if await _look(session, record):
            record = await find(session, command.mailbox)
        folder = await services.folders.open(record)
    except Missing:
        raise nonexistent() from None
    session.folder, session.view = folder, folder.view(access, session.wake)
    session.state = State.SELECTED
    session.wire.write(_description(session.view))
    if command.qresync is not None and command.qresync.uidvalidity == session.view.contents.uidvalidity:
        await _resynchronise(session, command.qresync)
    return Completion("Mailbox opened", code=b"[%b]" % access.value.encode())


async def _look(session: Session, record: Folder) -> bool:
    """Apply what foreign programs did in the folder's directory; whether there was a need to look."""
    services = session.services
    try:
        return await services.threads.run(services.watch.look, record, at=services.clock.now()) is not None
    except OSError as error:
        # What the rows say can be served all the same.
        log.error("directory not scanned", folder=record.id, error=repr(error))
        return False


def _description(view: View) -> bytes:
    contents, flags = view.contents, view.rows.flags
    known = telling.known_flags(contents)
    unseen = next((place for place in range(view.count) if not flags[place] & Flag.SEEN), -1)
    permanent = b"" if view.access is Access.READ_ONLY else known + b" \\*"
    lines = [
        b"* FLAGS (%b)" % known,
        b"* OK [PERMANENTFLAGS (%b)] Flags that stay" % permanent,
        b"* %d EXISTS" % view.count,
        b"* %d RECENT" % view.recent(),
        b"* OK [UIDVALIDITY %d] UIDs are valid" % contents.uidvalidity,
        b"* OK [UIDNEXT %d] Next UID" % contents.uidnext,
        b"* OK [HIGHESTMODSEQ %d] Highest mod-sequence" % contents.highestmodseq,
    ]
    if unseen >= 0:
        lines.append(b"* OK [UNSEEN %d] First unseen" % (unseen + 1))
    return b"\r\n".join(lines) + b"\r\n"


async def _resynchronise(session: Session, known: c.Resynchronise) -> None:
    """Tell what vanished and changed since the client's mod-sequence (RFC 7162 3.2.5)."""
    folder, view = session.opened()
    changes = await session.services.threads.read(
        lambda connection: mailboxes.changes(connection, folder_id=folder.record.id, since=known.modseq)
    )
    for line in vanished.earlier(changes, known.uids):
        session.wire.write(line)
    rows = sorted(changes.changed)
    if known.uids is not None:
        kept = set(within(known.uids, [row[0] for row in rows]))
        rows = [row for row in rows if row[0] in kept]
    lines = []
    for uid, modseq, flags, keywords in rows:
        number = view.number(uid)
        if number:
            listed = wire.flags(flags, keywords, recent=view.is_recent(uid))
            lines.append(b"* %d FETCH (UID %d FLAGS (%b) MODSEQ (%d))\r\n" % (number, uid, listed, modseq))
    for start in range(0, len(lines), 512):
        session.wire.write(b"".join(lines[start : start + 512]))
        await session.wire.breathe()


def within(named: sequence.SequenceSet, uids: list[int]) -> list[int]:
    """Return those of sorted UIDs that a set names."""
    return [uid for start, end in sequence.indexes(named, uids, len(uids)) for uid in uids[start:end]]


async def close(session: Session, _command: c.Close) -> Completion:
    """CLOSE: expunges without a word, then leaves."""
    folder, view = session.opened()
    if view.access is Access.READ_WRITE:
        await storing.remove_deleted(session, folder, None)
    session.deselect()
    return Completion("CLOSE done")


async def unselect(session: Session, _command: c.Unselect) -> Completion:
    """UNSELECT."""
    session.deselect()
    return Completion("UNSELECT done")


async def idle(session: Session, _command: c.Idle) -> Completion:
    """IDLE: until the client says DONE, changes are told as they come."""
    session.wire.write(b"+ idling\r\n")
    if session.folder is not None and session.folder.is_behind:
        await session.folder.refresh()
    session.tell(Telling.ALL)
    session.idling = True
    try:
        line = await session.wire.line(LINE_OCTETS)
    finally:
        session.idling = False
    if line.strip().upper() != b"DONE":
        raise Failed("Expected DONE", status=b"BAD")
    return Completion("IDLE done")
