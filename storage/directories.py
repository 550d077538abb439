"""The directories of a mailbox's folders compared with its rows, and put right.

Owns what a crash between a rename and its commit leaves, directories that a
foreign program made or removed, and making those that are missing. A missing
directory is looked for among the unknown ones by the names of its messages.
Concludes nothing where the mailbox itself has no directory.

Maildir++ (folders as dotted directories beside cur).
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection

from storage.db import Database
from storage.errors import BadName, StorageError
from storage.folders import create_folder, folders, normal_name
from storage.maildir import INBOX, Maildir, directory_name, folder_name, gone_id, parse_name
from storage.records import Folder
from storage.selection import run

SAMPLE = 200  # messages by whose names a directory is recognised


@dataclass(slots=True)
class Restored:
    """What was done. is_there: whether the mailbox has its directory, or had nothing in it to lose."""

    is_there: bool = True
    made: int = 0
    restored: int = 0
    adopted: int = 0
    problems: list[str] = field(default_factory=list)


def restore(database: Database, *, maildir: Maildir, mailbox_id: str, at: int) -> Restored:
    """Bring a mailbox's directories in line with its folders; at: now, in microseconds. OSError."""
    done = Restored()
    rows = database.read(lambda connection: folders(connection, mailbox_id=mailbox_id))
    root = maildir.mailbox_path(mailbox_id)
    if not (root / "cur").is_dir() and database.read(lambda connection: _holds_any(connection, mailbox_id)):
        done.is_there = False
        done.problems.append(f"{root} is not there, though the mailbox has messages: nothing was concluded")
        return done
    _put_back(database, maildir, mailbox_id, rows, done)
    present = {name for name in maildir.directories(mailbox_id) if name.startswith(".")}
    names = {directory_name(row.name): row for row in rows if row.name != INBOX}
    unknown = present - names.keys()
    for name in sorted(names.keys() - present):
        found = _find(database, maildir, names[name], unknown)
        if found is not None:
            os.rename(root / found, root / name)
            unknown.discard(found)
            done.restored += 1
    for name in sorted(unknown):
        _adopt(database, root / name, at, done)
    for row in database.read(lambda connection: folders(connection, mailbox_id=mailbox_id)):
        done.made += _make(maildir, row)
    return done


def _holds_any(connection: Connection, mailbox_id: str) -> bool:
    text = "SELECT 1 FROM entries e JOIN folders f ON f.id = e.folder_id WHERE f.mailbox_id = ? LIMIT 1"
    return run(connection, text, (mailbox_id,)).fetchone() is not None


def _sample(connection: Connection, folder_id: int, limit: int) -> set[str]:
    text = "SELECT name FROM entries WHERE folder_id = ? ORDER BY uid DESC LIMIT ?"
    return {row[0] for row in run(connection, text, (folder_id, limit)).fetchall()}


def _put_back(
    database: Database, maildir: Maildir, mailbox_id: str, rows: Sequence[Folder], done: Restored
) -> None:
    """Undo deletions that no commit stands behind."""
    text = "SELECT name FROM removals WHERE mailbox_id = ? AND folder_id = 0"
    removed = {row[0] for row in database.read(lambda c: run(c, text, (mailbox_id,)).fetchall())}
    by_id = {row.id: row for row in rows}
    for name in maildir.directories(mailbox_id):
        folder_id = gone_id(name)
        if folder_id is None or name in removed:
            continue
        row = by_id.get(folder_id)
        if row is None or maildir.folder_path(mailbox_id, row.name).exists():
            done.problems.append(f"{maildir.mailbox_path(mailbox_id) / name} belongs to no deleted folder")
        else:
            maildir.put_back(mailbox_id, row.name, folder_id)
            done.restored += 1


def _find(database: Database, maildir: Maildir, folder: Folder, unknown: set[str]) -> str | None:
    """Return the unknown directory that holds messages of a folder, None where there is none."""
    sample = database.read(lambda connection: _sample(connection, folder.id, SAMPLE))
    if not sample:
        return None
    root = maildir.mailbox_path(folder.mailbox_id)
    for name in sorted(unknown):
        if any(base in sample for base in _bases(str(root / name))):
            return name
    return None


def _bases(directory: str) -> Iterator[str]:
    for subdirectory in ("new", "cur"):
        try:
            names = os.listdir(f"{directory}/{subdirectory}")
        except (FileNotFoundError, NotADirectoryError):
            continue
        yield from (parse_name(name)[0] for name in names)


def _adopt(database: Database, path: Path, at: int, done: Restored) -> None:
    """Make a folder of a directory that a foreign program made, if it can be one."""
    mailbox_id = path.parent.name
    if not ((path / "cur").is_dir() or (path / "new").is_dir()):
        return
    try:
        name = normal_name(folder_name(path.name))
        if directory_name(name) != path.name:
            raise BadName("its name is not written as we would write it")
        database.write(lambda connection: create_folder(connection, mailbox_id=mailbox_id, name=name, at=at))
    except (ValueError, StorageError) as error:
        done.problems.append(f"{path} cannot be a folder: {error}")
        return
    done.adopted += 1


def _make(maildir: Maildir, folder: Folder) -> int:
    path = maildir.folder_path(folder.mailbox_id, folder.name)
    if all((path / name).is_dir() for name in ("cur", "new", "tmp")):
        return 0
    maildir.ensure(folder.mailbox_id, folder.name)
    return 1
