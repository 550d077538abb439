"""The mirror: Maildir brought up to what the database says, lazily and in bounded steps.

Owns the renaming of files whose names do not say their flags (from new to cur
where they get any), and the removal of files and directories that committed
changes have done away with. Gives out no MODSEQ: what it changes, no client
sees. A file that is not where it should be is left to the scan, which finds
what a foreign program did.

Maildir (info letters).
"""

import json
import logging
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from storage.db import Database, Notice
from storage.errors import StorageError
from storage.folders import Locked, held
from storage.maildir import Maildir, gone_id, info, parse_name, relative_path
from storage.placing import Present
from storage.selection import run

STEP = 256  # files of one write unit: a few milliseconds of the writer's time
PAUSE_SECONDS = 0.5
# Where several processes share the mail, each mirrors its own changes, and looks so often for what a
# dead one left.
LOOK_SECONDS = 60.0

_log = logging.getLogger(__name__)


def mirror(connection: Connection, *, maildir: Maildir, limit: int = STEP) -> int:
    """Rename or remove up to limit files that are due; return how many, limit if there may be more."""
    done = _rename_due(connection, maildir, limit)
    return done + (_remove_due(connection, maildir, limit - done) if done < limit else 0)


class Mirroring:
    """A thread that runs the mirror soon after changes, in steps that let other units have their turn."""

    def __init__(self, database: Database, maildir: Maildir, *, pause_seconds: float = PAUSE_SECONDS) -> None:
        self._database = database
        self._maildir = maildir
        self._pause_seconds = pause_seconds
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="mirror", daemon=True)
        database.listen_here(self._heard)

    def start(self) -> None:
        """Start, with what an earlier process left to do."""
        self._wanted.set()
        self._thread.start()

    def close(self) -> None:
        """Do what is due, then stop."""
        self._closing.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join()

    def _heard(self, notices: Sequence[Notice]) -> None:
        if any(notice.topic in ("folder", "mailbox") for notice in notices):
            self._wanted.set()

    def _loop(self) -> None:
        while not self._closing.is_set():
            self._wanted.wait(None if self._database.dialect == "sqlite" else LOOK_SECONDS)
            # What comes within the pause is one step's work.
            self._closing.wait(self._pause_seconds)
            self._wanted.clear()
            self._run()

    def _run(self) -> None:
        try:
            while self._database.write(lambda c: mirror(c, maildir=self._maildir)) >= STEP:
                pass
        except (StorageError, SQLAlchemyError, OSError) as error:
            _log.error("flags were not mirrored into file names: %s", error)


def _rename_due(connection: Connection, maildir: Maildir, limit: int) -> int:
    # The literal 1 lets the partial index serve.
    text = "SELECT folder_id FROM entries WHERE mirror_due = 1 LIMIT ?"
    found = {row[0] for row in run(connection, text, (limit,)).fetchall()}
    folders = held(connection, found)
    if not folders:
        return 0
    marks = ", ".join("?" * len(folders))
    text = (
        "SELECT folder_id, uid, flags, name, subdirectory, mirrored FROM entries "  # noqa: S608 - marks only
        f"WHERE mirror_due = 1 AND folder_id IN ({marks}) LIMIT ?"
    )
    rows = run(connection, text, (*folders, limit)).fetchall()
    states = [_rename(maildir, folders[row[0]], row) for row in rows]
    if states:
        _write(connection, states)
    return len(states)


# Folder, UID, subdirectory and letters of the name as it is now.
_State = tuple[int, int, str, str]


def _rename(maildir: Maildir, folder: Locked, row: Sequence[Any]) -> _State:
    folder_id, uid, flags, name, subdirectory, mirrored = row
    letters = wanted_letters(flags, mirrored)
    target = "cur" if letters else subdirectory
    if (target, letters) == (subdirectory, mirrored):
        return folder_id, uid, subdirectory, mirrored
    path = maildir.folder_path(folder.mailbox_id, folder.name)
    try:
        os.rename(
            path / relative_path(name, subdirectory, mirrored), path / relative_path(name, target, letters)
        )
    except FileNotFoundError:
        return folder_id, uid, subdirectory, mirrored
    except OSError as error:
        _log.warning("entry %d of folder %d keeps its file's name: %s", uid, folder_id, error)
        return folder_id, uid, subdirectory, mirrored
    return folder_id, uid, target, letters


def wanted_letters(flags: int, mirrored: str) -> str:
    """Return the info letters for flags, with those that other programs put there and we know nothing of."""
    foreign = "".join(letter for letter in mirrored if letter not in "DFPRST")
    return info(flags) + foreign if foreign else info(flags)


def _write(connection: Connection, states: Sequence[_State]) -> None:
    update = (
        "UPDATE entries SET subdirectory = g.subdirectory, mirrored = g.mirrored, mirror_due = 0 "
        "FROM {given} WHERE entries.folder_id = g.folder_id AND entries.uid = g.uid"
    )
    if connection.dialect.name == "sqlite":
        given = (
            "WITH g AS MATERIALIZED (SELECT json_extract(value, '$[0]') folder_id, "
            "json_extract(value, '$[1]') uid, json_extract(value, '$[2]') subdirectory, "
            "json_extract(value, '$[3]') mirrored FROM json_each(?)) "
        )
        run(connection, given + update.format(given="g"), (json.dumps(states),))
    else:
        given = (
            "unnest(?::bigint[], ?::bigint[], ?::text[], ?::text[]) "
            "AS g(folder_id, uid, subdirectory, mirrored)"
        )
        columns = tuple(list(column) for column in zip(*states, strict=True))
        run(connection, update.format(given=given), columns)


def _remove_due(connection: Connection, maildir: Maildir, limit: int) -> int:
    text = (
        "SELECT r.mailbox_id, r.folder_id, r.name, f.name FROM removals r "
        "LEFT JOIN folders f ON f.id = r.folder_id ORDER BY r.mailbox_id, r.folder_id, r.name LIMIT ?"
    )
    rows = run(connection, text, (limit,)).fetchall()
    present = Present(parse_name(row[2].partition("/")[2])[0] for row in rows if row[1])
    done = 0
    for mailbox_id, folder_id, name, folder in rows:
        if folder_id and folder is not None:
            _remove_file(str(maildir.folder_path(mailbox_id, folder)), name, present)
        elif not folder_id and gone_id(name) is not None:
            removed, is_empty = maildir.remove_gone(mailbox_id, name, limit=max(limit - done, 1))
            done += removed
            if not is_empty:
                break
        done += 1
        where = "DELETE FROM removals WHERE mailbox_id = ? AND folder_id = ? AND name = ?"
        run(connection, where, (mailbox_id, folder_id, name))
        if done >= limit:
            break
    return min(done, limit)


def _remove_file(directory: str, path: str, present: Present) -> None:
    """Unlink a file that no row speaks of any more, whatever it is called by now."""
    try:
        os.unlink(f"{directory}/{path}")
    except FileNotFoundError:
        found = present.find(directory, parse_name(path.partition("/")[2])[0])
        if found is not None:
            with suppress(FileNotFoundError):
                os.unlink(found.within(directory))
