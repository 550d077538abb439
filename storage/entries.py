"""Messages copied, moved and expunged: rows and files together, by sets.

Owns these three and the tombstones they leave. Files are linked before the
commit, under names that carry folder and UID, so that what a failed unit left
behind is known for what it is; files to unlink are only noted, in `removals`,
and go when the mirror comes to them. Erases what was rendered of a message
when its last entry is gone. Moves no bytes where a link will do.

RFC 9051 6.4.3, 6.4.7, 6.4.8 (EXPUNGE, COPY, MOVE), RFC 7162 3.2 (VANISHED).
"""

import errno
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from sqlalchemy import Connection

from storage import events as log
from storage import ids, signs
from storage.codec import data_text
from storage.db import Notice, publish
from storage.errors import Full
from storage.files import sync_directory
from storage.folders import Locked, advance, charge, lock
from storage.maildir import Maildir, copy_name, copy_parts, relative_path
from storage.placing import Present
from storage.records import Event, Flag
from storage.selection import Selection, insert_rows, members, pack, run, select_uids

_NOT_LINKED = frozenset({errno.EMLINK, errno.EXDEV, errno.EPERM, errno.ENOTSUP})
_EVENT = "id, kind, at, organization_id, message_id, mailbox_id, data"


class Files(Enum):
    """What becomes of the files of entries that are taken out: removed by the mirror, or gone already."""

    REMOVE = "remove"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class _Source:
    """A message's entry as far as copying needs it."""

    uid: int
    message_id: str
    name: str
    subdirectory: str
    mirrored: str
    octets: int


def copy(
    connection: Connection, *, maildir: Maildir, source_id: int, target_id: int, uids: Sequence[int], at: int
) -> list[tuple[int, int]]:
    """Copy messages and return (UID, new UID) pairs in order; those whose files are gone are left out.

    Missing where a folder is gone, Full at the quota.
    """
    source, target = lock(connection, source_id, target_id)
    found = _sources(connection, source, uids)
    _check_quota(connection, target.mailbox_id, sum(one.octets for one in found))
    pairs = _copy(connection, maildir, source=source, target=target, found=found, at=at)
    copied = {one.uid: one for one in found}
    charge(connection, {target.mailbox_id: sum(copied[uid].octets for uid, _ in pairs)})
    told = [(copied[uid].message_id, new) for uid, new in pairs]
    _note(connection, source, target, told, at)
    tell(connection, "message.copied", folder=target, told=told, at=at, source=source.name)
    return pairs


def move(
    connection: Connection, *, maildir: Maildir, source_id: int, target_id: int, uids: Sequence[int], at: int
) -> list[tuple[int, int]]:
    """Move messages and return (UID, new UID) pairs in order; those whose files are gone are left out.

    Missing where a folder is gone, Full at another inbox's quota.
    """
    source, target = lock(connection, source_id, target_id)
    found = _sources(connection, source, uids)
    octets = sum(one.octets for one in found)
    if source.mailbox_id != target.mailbox_id:
        _check_quota(connection, target.mailbox_id, octets)
    pairs = _copy(connection, maildir, source=source, target=target, found=found, at=at)
    if not pairs:
        return []
    chosen = select_uids(connection, [uid for uid, _ in pairs])
    gone = remove(connection, source, chosen, files=Files.REMOVE, at=at)
    octets = sum(row[2] for row in gone)
    if source.mailbox_id != target.mailbox_id:
        charge(connection, {source.mailbox_id: -octets, target.mailbox_id: octets})
    by_uid = {row[0]: row[1] for row in gone}
    told = [(by_uid[uid], new) for uid, new in pairs]
    _note(connection, source, target, told, at)
    tell(connection, "message.moved", folder=target, told=told, at=at, source=source.name)
    return pairs


def _note(
    connection: Connection, source: Locked, target: Locked, told: Sequence[tuple[str, int]], at: int
) -> None:
    """Note what going from one folder to another says of the senders."""
    kind = signs.moved(source, target)
    if kind and told:
        message_ids = [message_id for message_id, _ in told]
        signs.note(connection, mailbox_id=target.mailbox_id, message_ids=message_ids, kind=kind, at=at)


def expunge(
    connection: Connection,
    *,
    maildir: Maildir,
    folder_id: int,
    uids: Sequence[int] | None,
    at: int,
    bearing: Flag = Flag(0),  # noqa: B008 - a number
) -> list[int]:
    """Remove messages for good and return their UIDs in order; None: all that are \\Deleted.

    bearing: only those of uids with all these flags, as UID EXPUNGE wants (RFC 9051 6.4.9).
    Missing where the folder is gone. The files go when the mirror comes to them.
    """
    folder = lock(connection, folder_id)[0]
    if uids is None:
        bearing |= Flag.DELETED
        uids = range(1, folder.uidnext)
    chosen = select_uids(connection, uids)
    if bearing:
        wanted = int(bearing)
        chosen = Selection(f"{chosen.text} AND flags & ? = ?", (*chosen.values, wanted, wanted))
    return discard(connection, folder, chosen, at=at, files=Files.REMOVE)


def discard(connection: Connection, folder: Locked, chosen: Selection, *, at: int, files: Files) -> list[int]:
    """Expunge the chosen messages of a locked folder and return their UIDs in order."""
    gone = remove(connection, folder, chosen, files=files, at=at)
    if not gone:
        return []
    charge(connection, {folder.mailbox_id: -sum(row[2] for row in gone)})
    erase_unused(connection, [row[1] for row in gone])
    told = [(row[1], row[0]) for row in gone]
    tell(connection, "message.expunged", folder=folder, told=told, at=at)
    return [row[0] for row in gone]


def remove(
    connection: Connection, folder: Locked, chosen: Selection, *, files: Files, at: int
) -> list[tuple[int, str, int]]:
    """Take entries out of a locked folder; return (UID, message, octets) in order of UIDs.

    Leaves tombstones, notes the files if they are to be removed, and publishes.
    What the octets count for is the caller's.
    """
    text = (
        f"DELETE FROM entries WHERE folder_id = ? AND {chosen.text} "  # noqa: S608 - a condition
        "RETURNING uid, message_id, octets, name, subdirectory, mirrored"
    )
    rows = sorted(run(connection, text, (folder.id, *chosen.values)).fetchall())
    if not rows:
        return []
    _, modseq = advance(connection, folder.id)
    text = (
        "INSERT INTO tombstones (folder_id, modseq, at, uid) "  # noqa: S608 - ours
        "SELECT CAST(? AS BIGINT), CAST(? AS BIGINT), CAST(? AS BIGINT), g.uid "
        f"FROM {_column(connection, 'uid', 'bigint')}"
    )
    run(connection, text, (folder.id, modseq, at, pack(connection, [row[0] for row in rows])))
    if files is Files.REMOVE:
        paths = [relative_path(row[3], row[4], row[5]) for row in rows]
        _note_removals(connection, folder, paths)
    return [(row[0], row[1], row[2]) for row in rows]


def _note_removals(connection: Connection, folder: Locked, paths: Sequence[str]) -> None:
    text = (
        "INSERT INTO removals (mailbox_id, folder_id, name) "  # noqa: S608 - ours
        f"SELECT CAST(? AS TEXT), CAST(? AS BIGINT), g.name FROM {_column(connection, 'name', 'text')} "
        "ON CONFLICT DO NOTHING"
    )
    if connection.dialect.name == "sqlite":
        # Without a WHERE, SQLite takes ON for that of a join.
        text = text.replace(" ON CONFLICT", " WHERE true ON CONFLICT")
    run(connection, text, (folder.mailbox_id, folder.id, pack(connection, paths)))


def erase_unused(connection: Connection, message_ids: Sequence[str]) -> int:
    """Erase what was rendered of those messages that lie in no folder and are not in the queue's spool.

    Their rows stay, for the timeline. Returns how many were erased.
    """
    if not message_ids:
        return 0
    text = (
        f"DELETE FROM renditions WHERE message_id IN {members(connection, 'text')} "  # noqa: S608 - ours
        "AND NOT EXISTS (SELECT 1 FROM entries e WHERE e.message_id = renditions.message_id) "
        "AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.id = renditions.message_id AND m.spooled = 1)"
    )
    return int(run(connection, text, (pack(connection, message_ids),)).rowcount)


def _column(connection: Connection, name: str, kind: str) -> str:
    if connection.dialect.name == "sqlite":
        return f"(SELECT value AS {name} FROM json_each(?)) g"  # noqa: S608 - ours
    return f"unnest(?::{kind}[]) AS g({name})"


def _sources(connection: Connection, folder: Locked, uids: Sequence[int]) -> list[_Source]:
    chosen = select_uids(connection, uids)
    text = (
        "SELECT uid, message_id, name, subdirectory, mirrored, octets FROM entries "  # noqa: S608 - a condition
        f"WHERE folder_id = ? AND {chosen.text} ORDER BY uid"
    )
    return [_Source(*row) for row in run(connection, text, (folder.id, *chosen.values)).fetchall()]


def _check_quota(connection: Connection, mailbox_id: str, octets: int) -> None:
    text = "SELECT quota_octets, used_octets FROM mailboxes WHERE id = ?"
    quota, used = run(connection, text, (mailbox_id,)).fetchone()
    if quota and used + octets > quota:
        raise Full(f"inbox {mailbox_id} is at its quota of {quota} octets")


def _copy(
    connection: Connection,
    maildir: Maildir,
    *,
    source: Locked,
    target: Locked,
    found: Sequence[_Source],
    at: int,
) -> list[tuple[int, int]]:
    """Link the files and insert the rows; (UID, new UID) of those whose files were there."""
    present = _with_files(maildir, source, found)
    if not present:
        return []
    first, modseq = advance(connection, target.id, uids=len(present))
    _link_all(maildir, target, present, first, at)
    stem, tail = copy_parts(at=at, folder_id=target.id)
    chosen = select_uids(connection, [one.uid for one, _ in present])
    text = (
        "INSERT INTO entries (folder_id, uid, modseq, message_id, flags, keywords, internal_date, octets, "  # noqa: S608 - ours
        "prefix_octets, name, subdirectory, mirrored, mirror_due) "
        "SELECT CAST(? AS BIGINT), s.number, CAST(? AS BIGINT), s.message_id, s.flags, s.keywords, "
        "s.internal_date, s.octets, s.prefix_octets, CAST(? AS TEXT) || s.number || CAST(? AS TEXT), "
        "s.subdirectory, s.mirrored, s.mirror_due "
        "FROM (SELECT e.*, CAST(? AS BIGINT) + row_number() OVER (ORDER BY uid) AS number "
        f"FROM entries e WHERE folder_id = ? AND {chosen.text}) s"
    )
    run(connection, text, (target.id, modseq, stem, tail, first - 1, source.id, *chosen.values))
    return [(one.uid, first + index) for index, (one, _) in enumerate(present)]


def _with_files(maildir: Maildir, folder: Locked, found: Sequence[_Source]) -> list[tuple[_Source, str]]:
    """Return those whose files are there, with their paths, whatever a foreign program renamed them to."""
    directory = str(maildir.folder_path(folder.mailbox_id, folder.name))
    names = Present(one.name for one in found)
    present: list[tuple[_Source, str]] = []
    for one in found:
        path = f"{directory}/{relative_path(one.name, one.subdirectory, one.mirrored)}"
        if not os.path.exists(path):
            name = names.find(directory, one.name)
            if name is None:
                continue
            path = name.within(directory)
        present.append((one, path))
    return present


def _link_all(
    maildir: Maildir, target: Locked, present: Sequence[tuple[_Source, str]], first: int, at: int
) -> None:
    directory = maildir.ensure(target.mailbox_id, target.name)
    made: list[str] = []
    try:
        for index, (one, path) in enumerate(present):
            base = copy_name(at=at, uid=first + index, folder_id=target.id)
            made.append(f"{directory}/{relative_path(base, one.subdirectory, one.mirrored)}")
            _link(path, made[-1], directory)
        # The row must not outlive a power cut that its file does not.
        for subdirectory in {one.subdirectory for one, _ in present}:
            sync_directory(os, directory / subdirectory)
    except OSError:
        for path in made:
            with suppress(OSError):
                os.unlink(path)
        raise


def _link(source: str, path: str, directory: Path) -> None:
    try:
        os.link(source, path)
    except FileExistsError:
        # A unit that is run again finds its own link; whatever else bears the name is none of a message.
        if not os.path.samefile(source, path):
            os.unlink(path)
            os.link(source, path)
    except OSError as error:
        if error.errno not in _NOT_LINKED:
            raise
        temporary = directory / "tmp" / os.path.basename(path).partition(":")[0]
        shutil.copyfile(source, temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.rename(temporary, path)


def tell(
    connection: Connection,
    kind: str,
    *,
    folder: Locked,
    told: Sequence[tuple[str, int]],
    at: int,
    **more: str,
) -> None:
    """Insert an event of one kind for each (message, UID in folder), and publish; more: further data."""
    if not told:
        return
    made = (
        Event(
            id=ids.new("evt"),
            kind=kind,
            at=at,
            organization_id=folder.organization_id,
            message_id=message_id,
            mailbox_id=folder.mailbox_id,
            data={"folder": folder.name, "uid": uid, **more},
        )
        for message_id, uid in told
    )
    rows = (
        (one.id, kind, at, one.organization_id, one.message_id, one.mailbox_id, data_text(one))
        for one in made
    )
    log.hold(connection)
    insert_rows(connection, "events", _EVENT, rows)
    seq = run(connection, "SELECT max(seq) FROM events").fetchone()[0]
    publish(connection, Notice("events", "", seq))
