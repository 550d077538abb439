"""The mirror: Maildir brought up to what the database says, lazily and in bounded steps.

Owns the renaming of files whose names do not say their flags (from new to cur
where they get any), and the removal of files and directories that committed
changes have done away with. The database knows of each renaming before it is
made and until it is durable, so that a name is never taken for a change from
outside because a crash or a power cut came between; and nothing is forgotten
as removed before its removal is durable. Gives out no MODSEQ: what it changes,
no client sees. A file that is not where it should be is left to the scan.

Maildir (info letters).
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from storage.db import Database
from storage.files import sync_directory
from storage.folders import Locked, held
from storage.maildir import Maildir, gone_id, info, parse_name, relative_path
from storage.placing import Present
from storage.selection import members, pack, run

STEP = 256  # files of one write unit: a few milliseconds of the writer's time

_log = logging.getLogger(__name__)

# A file's folder and UID; where it is and what it is called: subdirectory and letters.
_Key = tuple[int, int]
_Name = tuple[str, str]
_Removed = tuple[str, int, str]  # a row of removals


@dataclass(frozen=True, slots=True)
class Mirrored:
    """What a step did. files: renamed or removed; again: there may be more to do."""

    files: int = 0
    again: bool = False


@dataclass(slots=True)
class _Done:
    """What a step changed on disk: names now, rows of removals that are done with, directories to sync."""

    names: dict[_Key, _Name] = field(default_factory=dict)
    left: set[_Key] = field(default_factory=set)
    removed: list[_Removed] = field(default_factory=list)
    directories: set[str] = field(default_factory=set)
    files: int = 0
    is_full: bool = False


def mirror(database: Database, *, maildir: Maildir, limit: int = STEP) -> Mirrored:
    """Rename and remove up to limit files that are due.

    Blocks: it waits for the writer three times and syncs the directories that changed.
    OSError where one cannot be synced: then what was done is seen to again.
    """
    if not database.read(_is_due):
        return Mirrored()
    due = database.write(lambda connection: _announce(connection, limit))
    done = database.write(lambda connection: _carry_out(connection, maildir, due, limit))
    for directory in sorted(done.directories):
        # One that was renamed or removed meanwhile was synced by who did that.
        with suppress(FileNotFoundError):
            sync_directory(os, directory)
    is_left = database.write(lambda connection: _settle(connection, done))
    return Mirrored(done.files, again=is_left or len(due) >= limit or done.is_full)


def wanted_letters(flags: int, mirrored: str) -> str:
    """Return the info letters for flags, with those that other programs put there and we know nothing of."""
    foreign = "".join(letter for letter in mirrored if letter not in "DFPRST")
    return info(flags) + foreign if foreign else info(flags)


def _is_due(connection: Connection) -> bool:
    # The literal 1 lets the partial index serve.
    for text in ("SELECT 1 FROM entries WHERE mirror_due = 1 LIMIT 1", "SELECT 1 FROM removals LIMIT 1"):
        if run(connection, text).fetchone() is not None:
            return True
    return False


def _target(flags: int, subdirectory: str, mirrored: str) -> _Name:
    letters = wanted_letters(flags, mirrored)
    return ("cur" if letters else subdirectory), letters


def _announce(connection: Connection, limit: int) -> dict[_Key, bool]:
    """Write down which names files are about to get; return those that are due, and whether to be renamed."""
    text = "SELECT folder_id FROM entries WHERE mirror_due = 1 LIMIT ?"
    folders = held(connection, {row[0] for row in run(connection, text, (limit,)).fetchall()})
    if not folders:
        return {}
    text = (
        "SELECT folder_id, uid, flags, subdirectory, mirrored, mirrored_other FROM entries "  # noqa: S608 - marks only
        f"WHERE mirror_due = 1 AND folder_id IN ({', '.join('?' * len(folders))}) LIMIT ?"
    )
    rows = run(connection, text, (*folders, limit)).fetchall()
    due = {(row[0], row[1]): False for row in rows}
    announced = []
    for folder_id, uid, flags, subdirectory, mirrored, other in rows:
        target = _target(flags, subdirectory, mirrored)
        # One that has two names already is brought in order first, under what it is called now.
        if other is None and target != (subdirectory, mirrored):
            announced.append((folder_id, uid, "/".join(target)))
            due[folder_id, uid] = True
    if announced:
        _update(connection, "mirrored_other = g.other", "other text", announced)
    return due


def _carry_out(connection: Connection, maildir: Maildir, due: Mapping[_Key, bool], limit: int) -> _Done:
    """Rename what is due and remove what no row speaks of; the rows say at once what files are called."""
    done = _Done()
    folders = held(connection, {folder_id for folder_id, _ in due})
    rows = []
    for folder_id, folder in folders.items():
        uids = [uid for one, uid in due if one == folder_id]
        text = (
            "SELECT uid, name, subdirectory, mirrored, mirrored_other FROM entries "  # noqa: S608 - ours
            f"WHERE folder_id = ? AND uid IN {members(connection)}"
        )
        for row in run(connection, text, (folder_id, pack(connection, uids))).fetchall():
            act = _rename if due[folder_id, row[0]] else _find
            rows.append(act(maildir, folder, row, done))
    if rows:
        changes = "subdirectory = g.subdirectory, mirrored = g.mirrored, mirrored_other = g.other"
        _update(connection, changes, "subdirectory text, mirrored text, other text", rows)
    if len(due) < limit:
        _remove_due(connection, maildir, limit - len(due), done)
    return done


# Folder, UID, subdirectory, letters, other name.
_State = tuple[int, int, str, str, str | None]


def _rename(maildir: Maildir, folder: Locked, row: Sequence[Any], done: _Done) -> _State:
    """Give a file the name that was announced; return its row's new state."""
    uid, base, subdirectory, mirrored, other = row
    key, name = (folder.id, uid), (subdirectory, mirrored)
    if other is None:
        return _keep(key, name, done)
    wanted = _split(other)
    path = maildir.folder_path(folder.mailbox_id, folder.name)
    before, after = (path / relative_path(base, *one) for one in (name, wanted))
    try:
        os.rename(before, after)
    except FileNotFoundError:
        done.left.add(key)
        return _keep(key, name, done)
    except OSError as error:
        _log.warning("entry %d of folder %d keeps its file's name: %s", uid, folder.id, error)
        done.left.add(key)
        return _keep(key, name, done)
    done.files += 1
    done.directories.update((str(before.parent), str(after.parent)))
    done.names[key] = wanted
    return *key, *wanted, "/".join(name)


def _find(maildir: Maildir, folder: Locked, row: Sequence[Any], done: _Done) -> _State:
    """Find by which of its two names a file goes, which a crash left open or a scan found changed."""
    uid, base, subdirectory, mirrored, other = row
    key, name = (folder.id, uid), (subdirectory, mirrored)
    if other is None:
        return _keep(key, name, done)
    path = maildir.folder_path(folder.mailbox_id, folder.name)
    second = _split(other)
    if not os.path.lexists(path / relative_path(base, *name)) and os.path.lexists(
        path / relative_path(base, *second)
    ):
        name, second = second, name
    done.directories.update(str(path / one[0]) for one in (name, second))
    done.names[key] = name
    return *key, *name, "/".join(second)


def _keep(key: _Key, name: _Name, done: _Done) -> _State:
    done.names[key] = name
    return *key, *name, None


def _split(path: str) -> _Name:
    subdirectory, _, letters = path.partition("/")
    return subdirectory, letters


def _settle(connection: Connection, done: _Done) -> bool:
    """Forget other names and finished removals, which are durable now; return whether files are due again."""
    rows = []
    is_left = False
    for folder_id in held(connection, {key[0] for key in done.names}):
        uids = [uid for one, uid in done.names if one == folder_id]
        text = (
            "SELECT uid, flags, subdirectory, mirrored FROM entries "  # noqa: S608 - ours
            f"WHERE folder_id = ? AND uid IN {members(connection)}"
        )
        for uid, flags, *name in run(connection, text, (folder_id, pack(connection, uids))).fetchall():
            key = (folder_id, uid)
            if tuple(name) != done.names[key]:
                is_left = True  # a scan found another name meanwhile, which is to be made durable too
                continue
            # What cannot be renamed, or is not there, is not tried again before its flags change.
            is_due = key not in done.left and _target(flags, *name) != done.names[key]
            rows.append((folder_id, uid, int(is_due)))
            is_left |= is_due
    if rows:
        _update(connection, "mirrored_other = NULL, mirror_due = g.due", "due bigint", rows)
    for removed in done.removed:
        where = "DELETE FROM removals WHERE mailbox_id = ? AND folder_id = ? AND name = ?"
        run(connection, where, removed)
    return is_left


def _update(
    connection: Connection, changes: str, columns: str, rows: Sequence[tuple[int | str | None, ...]]
) -> None:
    """Change entries by rows of (folder, UID, …).

    columns: names and types of what follows these two; changes: what is set, in terms of g.
    """
    given = [pair.split() for pair in f"folder_id bigint, uid bigint, {columns}".split(", ")]
    update = (
        f"UPDATE entries SET {changes} FROM {{given}} "  # noqa: S608 - ours
        "WHERE entries.folder_id = g.folder_id AND entries.uid = g.uid"
    )
    if connection.dialect.name == "sqlite":
        parts = (f"json_extract(value, '$[{place}]') {name}" for place, (name, _) in enumerate(given))
        # Not materialized, it would be read once an entry.
        text = f"WITH g AS MATERIALIZED (SELECT {', '.join(parts)} FROM json_each(?)) "  # noqa: S608 - ours
        run(connection, text + update.format(given="g"), (json.dumps(rows),))
        return
    arrays = ", ".join(f"?::{kind}[]" for _, kind in given)
    names = ", ".join(name for name, _ in given)
    values = tuple(list(column) for column in zip(*rows, strict=True))
    run(connection, update.format(given=f"unnest({arrays}) AS g({names})"), values)


def _remove_due(connection: Connection, maildir: Maildir, limit: int, done: _Done) -> None:
    text = (
        "SELECT r.mailbox_id, r.folder_id, r.name, f.name FROM removals r "
        "LEFT JOIN folders f ON f.id = r.folder_id ORDER BY r.mailbox_id, r.folder_id, r.name LIMIT ?"
    )
    rows = run(connection, text, (limit,)).fetchall()
    present = Present(parse_name(row[2].partition("/")[2])[0] for row in rows if row[1])
    left = limit
    for mailbox_id, folder_id, name, folder in rows:
        if folder_id and folder is not None:
            directory = str(maildir.folder_path(mailbox_id, folder))
            _remove_file(directory, name, present)
            done.directories.update((f"{directory}/new", f"{directory}/cur"))
        elif not folder_id and gone_id(name) is not None:
            removed, is_empty = maildir.remove_gone(mailbox_id, name, limit=max(left, 1))
            left -= removed
            done.files += removed
            done.directories.add(str(maildir.mailbox_path(mailbox_id)))
            if not is_empty:
                break
        left -= 1
        done.files += 1
        done.removed.append((mailbox_id, folder_id, name))
        if left <= 0:
            break
    done.is_full = left <= 0 or len(rows) >= limit


def _remove_file(directory: str, path: str, present: Present) -> None:
    """Unlink a file that no row speaks of any more, whatever it is called by now."""
    try:
        os.unlink(f"{directory}/{path}")
    except FileNotFoundError:
        found = present.find(directory, parse_name(path.partition("/")[2])[0])
        if found is not None:
            with suppress(FileNotFoundError):
                os.unlink(found.within(directory))
