"""STORE, COPY, MOVE and EXPUNGE.

Owns what they answer. The changes themselves are storage's, each in one
transaction. RFC 9051 6.4.3, 6.4.6 to 6.4.8, 4315 (UIDPLUS), 6851 (MOVE), 7162
3.1.3 (UNCHANGEDSINCE) and 3.2.7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.imap import commands as c
from server.imap import format as wire
from server.imap import messages, sequence
from server.imap.answer import Completion, Failed
from server.imap.limits import KEYWORDS_PER_FOLDER, ROWS
from server.imap.mailbox import find_target, require_right
from storage import mailboxes
from storage.mailboxes import FlagMode
from storage.records import Flag

if TYPE_CHECKING:
    from server.imap.folder import OpenFolder
    from server.imap.session import Session
    from server.imap.view import ChangedRow, View

STORE_ROWS = 10_000  # of one transaction: the writer is not held longer

_MODES = {c.StoreMode.SET: FlagMode.SET, c.StoreMode.ADD: FlagMode.ADD, c.StoreMode.REMOVE: FlagMode.REMOVE}


async def store(session: Session, command: c.Store) -> Completion:
    """STORE and UID STORE."""
    folder, view = session.opened()
    places = messages.places(session, command.messages, command.numbering)
    _require_room(view, command.keywords)
    uids = messages.uids(view, places)
    changed: list[ChangedRow] = []
    failed: list[int] = []
    for start in range(0, len(uids), STORE_ROWS):
        part = uids[start : start + STORE_ROWS]
        stored = await session.services.threads.write(
            lambda connection, part=part: mailboxes.store_flags(  # type: ignore[misc]  # bound now
                connection,
                folder_id=folder.record.id,
                uids=part,
                mode=_MODES[command.mode],
                flags=command.flags,
                keywords=command.keywords,
                unchanged_since=command.unchanged_since,
            )
        )
        await absorb(folder, stored.changed)
        changed += stored.changed
        failed += stored.failed
    view.quiet.update((row[0], row[1]) for row in changed)
    await _echo(session, command, places, changed, set(failed))
    return _stored(view, command, failed)


def _require_room(view: View, keywords: tuple[str, ...]) -> None:
    known = view.contents.keyword_names
    new = sum(name not in known for name in keywords)
    if new and len(known) + new > KEYWORDS_PER_FOLDER:
        raise Failed("The mailbox has too many keywords", code=b"[LIMIT]")


async def absorb(folder: OpenFolder, changed: list[ChangedRow]) -> None:
    """Bring a folder up to a change of our own, without asking storage where nothing lies between."""
    contents = folder.contents
    if not changed or contents is None:
        return
    modseq = changed[0][1]
    if modseq == contents.highestmodseq + 1 and all(row[1] == modseq for row in changed):
        contents.apply(highestmodseq=modseq, uidnext=contents.uidnext, changed=changed, vanished=())
        folder.wake()
    else:
        await folder.refresh(max(row[1] for row in changed))


async def _echo(
    session: Session, command: c.Store, places: messages.Places, changed: list[ChangedRow], failed: set[int]
) -> None:
    """Tell the flags as they are now, or where they should not be told the new mod-sequences."""
    _, view = session.opened()
    if command.echo is c.Echo.SILENT:
        if session.condstore:
            # RFC 7162 3.1.3: the new mod-sequence is told in any case.
            lines = [
                b"* %d FETCH (UID %d MODSEQ (%d))\r\n" % (view.number(row[0]), row[0], row[1])
                for row in sorted(changed)
            ]
            session.wire.write(b"".join(lines))
        return
    session.tell_keywords()
    for start, end in messages.cut(places, ROWS):
        session.wire.write(b"".join(_flag_lines(session, view, start, end, failed)))
        await session.wire.breathe()


def _flag_lines(session: Session, view: View, start: int, end: int, failed: set[int]) -> list[bytes]:
    lines = []
    for place in range(start, end):
        uid = view.rows.uids[place]
        if uid in failed:
            continue
        flags, keywords, modseq = view.state(place)
        listed = wire.flags(flags, keywords, recent=view.is_recent(uid))
        if session.condstore:
            lines.append(b"* %d FETCH (UID %d FLAGS (%b) MODSEQ (%d))\r\n" % (place + 1, uid, listed, modseq))
        else:
            lines.append(b"* %d FETCH (UID %d FLAGS (%b))\r\n" % (place + 1, uid, listed))
    return lines


def _stored(view: View, command: c.Store, failed: list[int]) -> Completion:
    if not failed:
        return Completion("STORE done")
    numbers = sorted(failed)
    if command.numbering is c.Numbering.MESSAGE:
        numbers = [number for number in map(view.number, numbers) if number]
    return Completion("Some were changed meanwhile", code=b"[MODIFIED %b]" % sequence.compact(numbers))


async def copy(session: Session, command: c.Copy) -> Completion:
    """COPY and UID COPY."""
    require_right(session)
    folder, view = session.opened()
    uids = messages.uids(view, messages.places(session, command.messages, command.numbering))
    target = await find_target(session, command.mailbox)
    if not uids:
        return Completion("Nothing to copy")
    services, now = session.services, session.services.clock.now()
    pairs = await services.threads.write(
        lambda connection: mailboxes.copy(
            connection,
            maildir=services.maildir,
            source_id=folder.record.id,
            target_id=target.id,
            uids=uids,
            at=now,
        )
    )
    if not pairs:
        raise Failed("The messages are gone", code=b"[EXPUNGEISSUED]")
    if target.id == folder.record.id:
        await folder.refresh(view.contents.highestmodseq + 1)
    return Completion("COPY done", code=_copyuid(target.uidvalidity, pairs))


async def move(session: Session, command: c.Move) -> Completion:
    """MOVE and UID MOVE; the new UIDs are told before the old numbers go (RFC 6851 4.3)."""
    require_right(session)
    folder, view = session.opened()
    uids = messages.uids(view, messages.places(session, command.messages, command.numbering))
    target = await find_target(session, command.mailbox)
    if not uids:
        return Completion("Nothing to move")
    services, now = session.services, session.services.clock.now()
    pairs = await services.threads.write(
        lambda connection: mailboxes.move(
            connection,
            maildir=services.maildir,
            source_id=folder.record.id,
            target_id=target.id,
            uids=uids,
            at=now,
        )
    )
    if not pairs:
        raise Failed("The messages are gone", code=b"[EXPUNGEISSUED]")
    session.wire.write(b"* OK %b Moved\r\n" % _copyuid(target.uidvalidity, pairs))
    await folder.refresh(view.contents.highestmodseq + 1)
    return Completion("MOVE done", code=_highest(session))


def _copyuid(uidvalidity: int, pairs: list[tuple[int, int]]) -> bytes:
    old = sequence.compact(pair[0] for pair in pairs)
    new = sequence.compact(pair[1] for pair in pairs)
    return b"[COPYUID %d %b %b]" % (uidvalidity, old, new)


def _highest(session: Session) -> bytes:
    # RFC 7162 3.2.7: who keeps mod-sequences learns the one of the expunging.
    if not session.qresync or session.view is None:
        return b""
    return b"[HIGHESTMODSEQ %d]" % session.view.contents.highestmodseq


async def expunge(session: Session, command: c.Expunge) -> Completion:
    """EXPUNGE and UID EXPUNGE."""
    folder, view = session.opened()
    uids = None
    if command.uids is not None:
        named = messages.places(session, command.uids, c.Numbering.UID)
        uids = [
            view.rows.uids[place] for place in messages.each(named) if view.state(place)[0] & Flag.DELETED
        ]
    await remove_deleted(session, folder, uids)
    return Completion("EXPUNGE done", code=_highest(session))


async def remove_deleted(session: Session, folder: OpenFolder, uids: list[int] | None) -> None:
    """Expunge messages, None for all that are marked \\Deleted, and bring the folder up to it."""
    services, now = session.services, session.services.clock.now()
    contents = folder.contents
    if contents is None or (uids is not None and not uids):
        return
    before = contents.highestmodseq
    gone = await services.threads.write(
        lambda connection: mailboxes.expunge(
            connection, maildir=services.maildir, folder_id=folder.record.id, uids=uids, at=now
        )
    )
    if gone:
        await folder.refresh(before + 1)
