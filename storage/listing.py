"""Lists beside the mail kept up to the database: UIDs and keywords a folder, what an inbox is.

Owns when and how `mailagents-folder` and `mailagents-inbox` are written: what
changed since the list's own last word is appended, a folder at a time, from
readers' snapshots and never in the writer; a list is written anew where half
of it is out of date, or where it does not end as it should. Syncs nothing but
what is written anew: the checkpoint syncs the rest. Makes no directory of an
inbox whose own is missing while it has messages.
"""

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection

from storage.db import Database, Notice
from storage.errors import Missing
from storage.files import is_no_room, sync_directory
from storage.folders import held
from storage.lists import FOLDER_FILE, INBOX_FILE, VERSION, Seal, last_seal, line, seal_line
from storage.maildir import Maildir
from storage.selection import run

LINE_MESSAGES = 500
REMEMBERED = 20_000  # folders and inboxes whose lists this process knows
CHANGES = 20_000  # more than this since the last time, and the list is written anew
SURVEY = 200  # folders looked at in one step after a start
LEAST_DEAD = 1000
_TAIL_OCTETS = 4096

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder's row as far as its list is concerned."""

    id: int
    mailbox_id: str
    name: str
    forgotten_modseq: int
    seal: Seal


class Listing:
    """Writes lists. heard may be called from the writer's thread; run from one other thread."""

    def __init__(self, database: Database, maildir: Maildir) -> None:
        self._database = database
        self._maildir = maildir
        self._folders: set[int] = set()
        self._inboxes: set[str] = set()
        self._organizations: set[str] = set()
        self._surveyed: int | None = 0
        self._seals: OrderedDict[int, Seal] = OrderedDict()
        self._described: OrderedDict[str, int] = OrderedDict()

    def heard(self, notices: Sequence[Notice]) -> bool:
        """Note whose lists are out of date; return whether any is."""
        before = len(self._folders) + len(self._inboxes) + len(self._organizations)
        for notice in notices:
            if notice.topic == "folder":
                self._folders.add(int(notice.key))
            elif notice.topic == "mailbox":
                self._inboxes.add(notice.key)
            elif notice.topic == "accounts":
                self._organizations.add(notice.key)
        return len(self._folders) + len(self._inboxes) + len(self._organizations) > before

    @property
    def is_due(self) -> bool:
        """Whether a list is out of date, or was not looked at since the start."""
        return bool(self._folders or self._inboxes or self._organizations or self._surveyed is not None)

    def run(self) -> None:
        """Write what is out of date; StorageError and SQLAlchemyError where the database cannot be read."""
        if self._surveyed is not None:
            self._survey(self._surveyed)
        for organization_id in _taken(self._organizations):
            for mailbox_id in self._database.read(lambda c, one=organization_id: _inboxes(c, one)):  # type: ignore[misc]  # bound now
                self._describe(mailbox_id)
        for mailbox_id in _taken(self._inboxes):
            self._describe(mailbox_id)
            for folder_id in self._database.read(lambda c, one=mailbox_id: _folders(c, one)):  # type: ignore[misc]
                # Renamed, perhaps: what its list says is to be read where it is now.
                self._seals.pop(folder_id, None)
                self._folders.add(folder_id)
        for folder_id in _taken(self._folders):
            try:
                self._list(folder_id)
            except Missing:
                self._seals.pop(folder_id, None)
            except OSError as error:
                # It was renamed or removed meanwhile, and a notice of that comes.
                self._seals.pop(folder_id, None)
                if is_no_room(error):
                    self._folders.add(folder_id)
                _log.info("the list of folder %d was not written: %s", folder_id, error)

    def _survey(self, after: int) -> None:
        """Look at some of the folders that an earlier process may have left behind."""
        text = "SELECT id, mailbox_id FROM folders WHERE id > ? ORDER BY id LIMIT ?"
        rows = self._database.read(lambda c: run(c, text, (after, SURVEY)).fetchall())
        self._folders.update(row[0] for row in rows)
        for mailbox_id in {row[1] for row in rows}:
            self._describe(mailbox_id)
        self._surveyed = rows[-1][0] if len(rows) == SURVEY else None

    # ---- a folder ----

    def _list(self, folder_id: int) -> None:
        folder = self._database.read(lambda connection: _facts(connection, folder_id))
        directory = self._maildir.folder_path(folder.mailbox_id, folder.name)
        path = directory / FOLDER_FILE
        known = self._seals.get(folder_id) or _seal_of(path)
        if known is None or not _continues(known, folder):
            if not (directory / "cur").is_dir() and not self._make(folder_id):
                return
            seal = self._write_anew(path, folder)
        elif _says_all(known, folder.seal):
            seal = known
        else:
            seal = self._append(path, folder, known)
        self._seals[folder_id] = seal
        self._seals.move_to_end(folder_id)
        while len(self._seals) > REMEMBERED:
            self._seals.popitem(last=False)

    def _write_anew(self, path: Path, folder: _Folder) -> Seal:
        temporary = path.with_name(path.name + ".tmp")
        live = 0
        with temporary.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            for text, count in self._new(folder, 0):
                file.write(line(f'{{"new": {text}}}'))
                live += count
            seal = replace(folder.seal, live=live)
            file.write(seal_line(seal))
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        return seal

    def _append(self, path: Path, folder: _Folder, known: Seal) -> Seal:
        """Append what the list does not say yet, in one write: a crash leaves all of it or none."""
        parts: list[bytes] = []
        live, dead = known.live, known.dead
        for text, count in self._new(folder, known.uidnext - 1):
            parts.append(line(f'{{"new": {text}}}'))
            live += count
        if known.uidnext > 1:
            said, changed = self._since(_SET, folder.id, known)
            gone, removed = self._since(_GONE, folder.id, known)
            parts += [line(f'{{"set": {said}}}')] * bool(changed) + [line(f'{{"gone": {gone}}}')] * bool(
                removed
            )
            live, dead = live - removed, dead + changed + 2 * removed
            if max(changed, removed) == CHANGES:
                return self._write_anew(path, folder)
        if dead > max(LEAST_DEAD, live):
            return self._write_anew(path, folder)
        seal = replace(folder.seal, live=live, dead=dead)
        parts.append(seal_line(seal))
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        with open(fd, "wb", buffering=0) as file:
            octets = b"".join(parts)
            if file.write(octets) != len(octets):
                raise OSError(f"{path} could only be written in part")
        return seal

    def _new(self, folder: _Folder, after: int) -> Iterator[tuple[str, int]]:
        """Yield JSON arrays of up to LINE_MESSAGES messages above a UID, and how many are in each."""
        count = LINE_MESSAGES
        while count == LINE_MESSAGES:
            values = (folder.id, after, folder.seal.uidnext, LINE_MESSAGES)
            text, after, count = self._database.read(
                lambda c, values=values: run(c, _json(c, *_NEW), values).fetchone()  # type: ignore[misc]  # bound now
            )
            if count:
                yield text, count

    def _since(self, query: tuple[str, str], folder_id: int, known: Seal) -> tuple[str, int]:
        """Return what became of the messages that a list names, as a JSON array, and how many they are."""
        values = (folder_id, known.modseq, known.uidnext, CHANGES)
        text, _, count = self._database.read(lambda c: run(c, _json(c, *query), values).fetchone())
        return text, count

    def _make(self, folder_id: int) -> bool:
        """Make a new folder's directory under its lock; return whether that could be done."""

        def unit(connection: Connection) -> bool:
            folder = held(connection, [folder_id]).get(folder_id)
            if folder is None:
                return False
            is_there = (self._maildir.mailbox_path(folder.mailbox_id) / "cur").is_dir()
            if not is_there and _holds_any(connection, folder.mailbox_id):
                return False
            if _holds_any_in(connection, folder_id):
                return False
            self._maildir.ensure(folder.mailbox_id, folder.name)
            return True

        return self._database.write(unit)

    # ---- an inbox ----

    def _describe(self, mailbox_id: str) -> None:
        described = self._database.read(lambda connection: describe(connection, mailbox_id))
        directory = self._maildir.mailbox_path(mailbox_id)
        if described is None or self._described.get(mailbox_id) == hash(described):
            return
        octets = line(described)
        path = directory / INBOX_FILE
        try:
            if not path.exists() or path.read_bytes() != octets:
                if not (directory / "cur").is_dir():
                    self._inbox_first(mailbox_id)
                _write(path, octets)
        except OSError as error:
            _log.info("inbox %s was not described: %s", mailbox_id, error)
            return
        self._described[mailbox_id] = hash(described)
        self._described.move_to_end(mailbox_id)
        while len(self._described) > REMEMBERED:
            self._described.popitem(last=False)

    def _inbox_first(self, mailbox_id: str) -> None:
        text = "SELECT id FROM folders WHERE mailbox_id = ? AND name = 'INBOX'"
        row = self._database.read(lambda c: run(c, text, (mailbox_id,)).fetchone())
        if row is None or not self._make(row[0]):
            raise FileNotFoundError("it has no directory")


def describe(connection: Connection, mailbox_id: str) -> str | None:
    """Return what an inbox is, as JSON; None where there is none. No secret is in it."""
    text = (
        "SELECT b.id, b.address, b.display_name, b.state, b.quota_octets, b.retention_class, b.created_at, "
        "o.id, o.name, o.state, s.value, (SELECT max(uidvalidity) FROM folders WHERE mailbox_id = b.id) "
        "FROM mailboxes b JOIN organizations o ON o.id = b.organization_id "
        "LEFT JOIN settings s ON s.name = 'uidvalidity ' || b.id WHERE b.id = ?"
    )
    row = run(connection, text, (mailbox_id,)).fetchone()
    if row is None:
        return None
    names = ("id", "address", "display_name", "state", "quota_octets", "retention_class", "created_at")
    facts = dict(zip(names, row, strict=False))
    owner = dict(zip(("id", "name", "state"), row[7:10], strict=True))
    # Above it begins a folder whose own is not known any more.
    highest = max(int(row[10] or 0), row[11] or 0)
    return json.dumps({"version": VERSION, **facts, "organization": owner, "uidvalidity": highest})


def _write(path: Path, octets: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(octets)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)
    sync_directory(os, path.parent)


def _taken(waiting: set[T]) -> Iterator[T]:
    """Take out what waits now; what comes meanwhile waits for the next time."""
    for _ in range(len(waiting)):
        with suppress(KeyError):
            yield waiting.pop()


def _continues(known: Seal, folder: _Folder) -> bool:
    """Return whether a list can be brought up to a folder by appending."""
    return (
        known.uidvalidity == folder.seal.uidvalidity
        and folder.forgotten_modseq <= known.modseq <= folder.seal.modseq
        and known.uidnext <= folder.seal.uidnext
    )


def _says_all(known: Seal, now: Seal) -> bool:
    return replace(known, live=0, dead=0) == now


def _seal_of(path: Path) -> Seal | None:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_OCTETS))
            return last_seal(file.read())
    except OSError:
        return None


def _facts(connection: Connection, folder_id: int) -> _Folder:
    text = (
        "SELECT mailbox_id, name, forgotten_modseq, uidvalidity, uidnext, highestmodseq, special_use, "
        "subscribed FROM folders WHERE id = ?"
    )
    row = run(connection, text, (folder_id,)).fetchone()
    if row is None:
        raise Missing(f"folder {folder_id}")
    seal = Seal(row[3], row[4], row[5], row[6], bool(row[7]))
    return _Folder(folder_id, row[0], row[1], row[2], seal)


def _json(connection: Connection, columns: str, rows: str) -> str:
    """Return a statement that makes one JSON text of rows; with their highest UID, and their number."""
    is_sqlite = connection.dialect.name == "sqlite"
    columns = columns.replace("ARRAY", "json_array" if is_sqlite else "json_build_array")
    made = f"json_group_array({columns})" if is_sqlite else f"json_agg({columns})::text"
    return f"SELECT {made}, max(uid), count(*) FROM ({rows} LIMIT ?) g"  # noqa: S608 - ours


_NEW = (
    "ARRAY(uid, internal_date, name, keywords)",
    "SELECT * FROM entries WHERE folder_id = ? AND uid > ? AND uid < ? ORDER BY uid",
)
# The sum keeps both databases from walking through the whole folder by its key.
_SET = (
    "ARRAY(uid, keywords)",
    "SELECT * FROM entries WHERE folder_id = ? AND modseq > ? AND uid + 0 < ? ORDER BY modseq",
)
_GONE = ("uid", "SELECT * FROM tombstones WHERE folder_id = ? AND modseq > ? AND uid < ? ORDER BY modseq")


def _folders(connection: Connection, mailbox_id: str) -> list[int]:
    text = "SELECT id FROM folders WHERE mailbox_id = ?"
    return [row[0] for row in run(connection, text, (mailbox_id,)).fetchall()]


def _inboxes(connection: Connection, organization_id: str) -> list[str]:
    text = "SELECT id FROM mailboxes WHERE organization_id = ?"
    return [row[0] for row in run(connection, text, (organization_id,)).fetchall()]


def _holds_any(connection: Connection, mailbox_id: str) -> bool:
    text = "SELECT 1 FROM entries e JOIN folders f ON f.id = e.folder_id WHERE f.mailbox_id = ? LIMIT 1"
    return run(connection, text, (mailbox_id,)).fetchone() is not None


def _holds_any_in(connection: Connection, folder_id: int) -> bool:
    return (
        run(connection, "SELECT 1 FROM entries WHERE folder_id = ? LIMIT 1", (folder_id,)).fetchone()
        is not None
    )
