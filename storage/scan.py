"""What foreign programs did in a folder's directory: found, told from our own doing, and applied.

Owns the comparison of names on disk with names in rows. Reads and renders
outside the writer; what it concluded is checked again under the folder's lock,
where the mirror cannot run. Only the difference between a name and the letters
last mirrored is applied to flags. Concludes nothing from a directory that is
not there, and no deletion from one look.

Maildir (new, cur, unique names), RFC 9051 2.3.1.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import Connection

from storage import found as found_messages
from storage.db import Database
from storage.entries import Files, discard
from storage.flags import set_state
from storage.folders import Locked, folder_by_id, lock
from storage.found import Found, standard
from storage.maildir import (
    INBOX,
    Maildir,
    directory_name,
    flags_of,
    parse_base,
    parse_copy,
    parse_name,
    relative_path,
)
from storage.records import Folder, Rendered
from storage.selection import members, pack, run, select_uids

BATCH_FILES = 64
_SOURCES = 1000  # of the newest messages, one of which an undone copy may be of
_PAGE_OCTETS = 4096
BATCH_OCTETS = 16 << 20
BATCH_ENTRIES = 1000
_FETCH = 2000
_log = logging.getLogger(__name__)

# The path that each entry's file should have, as relative_path makes it: cheaper here than a call a row.
_EXPECTED = (
    "SELECT CASE WHEN subdirectory = 'cur' THEN 'cur/' || name || ':2,' || mirrored "
    "ELSE subdirectory || '/' || name END, uid FROM entries WHERE folder_id = ?"
)

Stamps = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Scanned:
    """What a scan found and applied. again: there is more, or it could not be sure yet.

    missing: the folder has messages and no directory, and nothing was done.
    stamps: the times of new and cur as they were before it looked.
    """

    received: int = 0
    changed: int = 0
    vanished: int = 0
    removed: int = 0
    again: bool = False
    missing: bool = False
    stamps: Stamps | None = None


@dataclass(frozen=True, slots=True)
class _Difference:
    """Names on disk against rows. renamed: (UID, path now); vanished: (UID, base); others: paths."""

    renamed: list[tuple[int, str]]
    vanished: list[tuple[int, str]]
    foreign: list[str]
    leftover: list[str]
    highestmodseq: int


def stamps(directory: Path) -> Stamps | None:
    """Return when new and cur were last changed, in nanoseconds; None where one is not there."""
    try:
        return os.stat(directory / "new").st_mtime_ns, os.stat(directory / "cur").st_mtime_ns
    except FileNotFoundError:
        return None


def scan(
    database: Database, *, maildir: Maildir, folder_id: int, render: Callable[[bytes], Rendered], at: int
) -> Scanned:
    """Compare a folder with its directory and apply what foreign programs did; Missing where it is gone.

    Takes up to BATCH_FILES new files at once. Blocks: it reads files and waits for the writer.
    """
    folder = database.read(lambda connection: folder_by_id(connection, folder_id=folder_id))
    directory = maildir.folder_path(folder.mailbox_id, folder.name)
    before = stamps(directory)
    if before is None:
        holds = database.read(lambda connection: _holds_any(connection, folder_id))
        return Scanned(missing=holds)
    paths = set(_paths(directory))
    compared = database.read(lambda connection: _compare(connection, folder, directory, paths))
    if compared is None:
        return Scanned(again=True)
    difference, is_sure = _confirm(directory, compared)
    if not (difference.renamed or difference.vanished or difference.foreign or difference.leftover):
        return Scanned(stamps=before, again=not is_sure)
    found, is_all = _read_some(directory, difference.foreign, render)
    settled = stamps(directory)
    unit = _Unit(maildir=maildir, folder=folder, difference=difference, found=found, stamps=settled, at=at)
    done = database.write(unit)
    return replace(done, stamps=before, again=done.again or not is_all or not is_sure)


def _paths(directory: Path) -> Iterator[str]:
    """List new before cur: what moves from one to the other meanwhile is seen."""
    for subdirectory in ("new", "cur"):
        try:
            names = os.listdir(directory / subdirectory)
        except FileNotFoundError:
            continue
        yield from (f"{subdirectory}/{name}" for name in names if not name.startswith("."))


def _base(path: str) -> str:
    return parse_name(path.partition("/")[2])[0]


def _holds_any(connection: Connection, folder_id: int) -> bool:
    text = "SELECT 1 FROM entries WHERE folder_id = ? LIMIT 1"
    return run(connection, text, (folder_id,)).fetchone() is not None


def _compare(connection: Connection, folder: Folder, directory: Path, paths: set[str]) -> _Difference | None:
    """Compare what was listed before this snapshot was taken; None where the folder has another name now.

    Empties paths of what is as it should be.
    """
    now = folder_by_id(connection, folder_id=folder.id)
    if now.name != folder.name:
        return None
    cursor = run(connection, _EXPECTED, (folder.id,))
    lost: dict[str, int] = {}
    while rows := cursor.fetchmany(_FETCH):
        expected: dict[str, int] = dict(rows)
        there = expected.keys() & paths
        paths -= there
        lost.update((_base(path), expected[path]) for path in expected.keys() - there)
    renamed = [(lost.pop(base), path) for path in sorted(paths) if (base := _base(path)) in lost]
    foreign, leftover = _sort_unknown(connection, now, directory, paths - {path for _, path in renamed})
    vanished = sorted((uid, base) for base, uid in lost.items())
    return _Difference(renamed, vanished, foreign, leftover, now.highestmodseq)


def _sort_unknown(
    connection: Connection, folder: Folder, directory: Path, paths: Iterable[str]
) -> tuple[list[str], list[str]]:
    """Return what is foreign and what a failed copy of ours left behind; all else comes or goes by itself."""
    applied = dict(run(connection, "SELECT instance, applied_sequence FROM journals").fetchall())
    unknown = {base: path for path in paths if not _is_in_flight(base := _base(path), applied)}
    if not unknown:
        return [], []
    # A name may lie in new and in cur for a moment while it moves.
    known = _known(connection, folder.id, unknown, since=0) | _removed(connection, folder.id)
    copies = _copies(connection, folder, unknown)
    foreign: list[str] = []
    leftover: list[str] = []
    for base, path in sorted(unknown.items()):
        if base not in known:
            is_undone = base in copies and (
                _is_spare(directory / path) or _lies_elsewhere(connection, folder, directory, path)
            )
            (leftover if is_undone else foreign).append(path)
    return foreign, leftover


def _is_in_flight(base: str, applied: dict[str, int]) -> bool:
    """Return whether a file is from a journal's record that is not yet applied."""
    origin = parse_base(base)
    return origin is not None and origin.sequence > applied.get(origin.instance, origin.sequence)


def _copies(connection: Connection, folder: Folder, bases: Iterable[str]) -> set[str]:
    """Return which files were linked here by copies of ours, in flight or undone.

    One for a folder that is not there was for this one, whose making was undone too.
    """
    named = {base: copied[1] for base in bases if (copied := parse_copy(base)) is not None}
    if not named:
        return set()
    text = f"SELECT id FROM folders WHERE id IN {members(connection)}"  # noqa: S608 - ours
    rows = run(connection, text, (pack(connection, sorted(set(named.values()))),)).fetchall()
    others = {row[0] for row in rows} - {folder.id}
    return {base for base, folder_id in named.items() if folder_id not in others}


def _known(connection: Connection, folder_id: int, bases: Iterable[str], *, since: int) -> set[str]:
    text = (
        "SELECT name FROM entries WHERE folder_id = ? AND modseq > ? "  # noqa: S608 - ours
        f"AND name IN {members(connection, 'text')}"
    )
    packed = pack(connection, [base for base in bases if _is_storable(base)])
    return {row[0] for row in run(connection, text, (folder_id, since, packed)).fetchall()}


def _is_storable(text: str) -> bool:
    return text.isascii() or not any("\udc80" <= character <= "\udcff" for character in text)


def _removed(connection: Connection, folder_id: int) -> set[str]:
    text = "SELECT name FROM removals WHERE folder_id = ?"
    return {_base(row[0]) for row in run(connection, text, (folder_id,)).fetchall()}


def _is_spare(path: Path) -> bool:
    """Return whether a file holds nothing that would be lost with it: it has other names, or no octet."""
    try:
        facts = os.lstat(path)
    except FileNotFoundError:
        return False
    return facts.st_nlink > 1 or facts.st_size == 0


def _lies_elsewhere(connection: Connection, folder: Folder, directory: Path, path: str) -> bool:
    """Return whether a file holds nothing but what one of the inbox's newest messages has.

    After a power cut that message's own file may be one that was written anew, and pages of this one zeros.
    """
    root = directory if folder.name == INBOX else directory.parent
    text = (
        "SELECT folders.name AS folder, entries.subdirectory, entries.name, entries.mirrored FROM entries "
        "JOIN folders ON folders.id = entries.folder_id WHERE folders.mailbox_id = ? AND entries.octets >= ? "
        "ORDER BY entries.message_id DESC LIMIT ?"
    )
    with suppress(OSError), open(directory / path, "rb") as file:
        octets = os.fstat(file.fileno()).st_size
        for row in run(connection, text, (folder.mailbox_id, octets, _SOURCES)).fetchall():
            place = root if row[0] == INBOX else root / directory_name(row[0])
            with suppress(OSError), open(place / relative_path(row[2], row[1], row[3]), "rb") as other:
                file.seek(0)
                if _is_remnant(file, other):
                    return True
    return False


def _is_remnant(file: BinaryIO, whole: BinaryIO) -> bool:
    """Return whether each page of a file is that of another, or zeros."""
    while page := file.read(_PAGE_OCTETS):
        if whole.read(_PAGE_OCTETS)[: len(page)] != page and page.strip(b"\0"):
            return False
    return True


def _confirm(directory: Path, difference: _Difference) -> tuple[_Difference, bool]:
    """Look again for what seems to be gone; and whether nothing moved while looking."""
    if not difference.vanished:
        return difference, True
    before = stamps(directory)
    there = {_base(path) for path in _paths(directory)}
    if before is None or stamps(directory) != before:
        return replace(difference, vanished=[]), False
    gone = [(uid, base) for uid, base in difference.vanished if base not in there]
    return replace(difference, vanished=gone), len(gone) == len(difference.vanished)


def _read_some(
    directory: Path, paths: Sequence[str], render: Callable[[bytes], Rendered]
) -> tuple[list[Found], bool]:
    """Read a batch of foreign files; and whether none is left that was not tried."""
    read: list[Found] = []
    octets = 0
    for path in paths:
        if len(read) >= BATCH_FILES or octets >= BATCH_OCTETS:
            return read, False
        one = found_messages.read(directory, path, render)
        if one is not None:
            read.append(one)
            octets += one.octets
    return read, True


@dataclass(frozen=True, slots=True)
class _Unit:
    """The write unit: everything is checked again under the folder's lock, then applied."""

    maildir: Maildir
    folder: Folder
    difference: _Difference
    found: list[Found]
    stamps: Stamps | None
    at: int

    def __call__(self, connection: Connection) -> Scanned:
        locked = lock(connection, self.folder.id)[0]
        if locked.name != self.folder.name:
            return Scanned(again=True)
        directory = self.maildir.folder_path(locked.mailbox_id, locked.name)
        is_settled = stamps(directory) == self.stamps
        changed = self._rename(connection, locked, directory)
        vanished = self._expunge(connection, locked, directory) if is_settled else 0
        received = self._receive(connection, locked, directory)
        removed = self._clear(connection, locked, directory)
        again = not is_settled and bool(self.difference.vanished)
        again |= max(len(self.difference.renamed), len(self.difference.vanished)) > BATCH_ENTRIES
        return Scanned(received, changed, vanished, removed, again)

    def _rename(self, connection: Connection, folder: Locked, directory: Path) -> int:
        if not self.difference.renamed:
            return 0
        paths = dict(self.difference.renamed[:BATCH_ENTRIES])
        changes = []
        for row in _rows(connection, folder, list(paths)):
            uid, flags, keywords, name, subdirectory, mirrored, other = row
            path = paths[uid]
            if _base(path) != name or path == relative_path(name, subdirectory, mirrored):
                continue
            try:
                os.rename(directory / path, directory / standard(path))
            except OSError:
                continue  # it moved on: the next scan sees where to
            before = f"{subdirectory}/{mirrored}"
            subdirectory, _, filename = standard(path).partition("/")
            letters = parse_name(filename)[1]
            after = _after(flags, mirrored, other, f"{subdirectory}/{letters}")
            changes.append((uid, flags, after, keywords, subdirectory, letters, before))
        return set_state(connection, folder, changes)

    def _expunge(self, connection: Connection, folder: Locked, directory: Path) -> int:
        names = dict(self.difference.vanished[:BATCH_ENTRIES])
        gone = [
            row[0]
            for row in _rows(connection, folder, list(names))
            if row[3] == names[row[0]] and not os.path.lexists(directory / relative_path(*row[3:6]))
        ]
        chosen = select_uids(connection, gone)
        # Should a file turn up after all, it is a new message: nothing here may remove it.
        return len(discard(connection, folder, chosen, at=self.at, files=Files.GONE)) if gone else 0

    def _clear(self, connection: Connection, folder: Locked, directory: Path) -> int:
        """Remove links of copies that were undone: under the lock none is in flight any more."""
        since = self.difference.highestmodseq
        paths = {_base(path): path for path in self.difference.leftover}
        known = _known(connection, folder.id, paths, since=since) if paths else set()
        return sum(_unlink(directory / path) for base, path in paths.items() if base not in known)

    def _receive(self, connection: Connection, folder: Locked, directory: Path) -> int:
        bases = {_base(one.path) for one in self.found}
        # What was rewritten bears a name that was not compared yet.
        is_compared = bases <= {_base(path) for path in self.difference.foreign}
        since = self.difference.highestmodseq if is_compared else 0
        known = _known(connection, folder.id, bases, since=since) | _removed(connection, folder.id)
        fresh = [
            one
            for one in self.found
            if _base(one.path) not in known and os.path.lexists(directory / one.path)
        ]
        return len(found_messages.insert(connection, folder, fresh, self.at))


def _after(flags: int, mirrored: str, other: str | None, found: str) -> int:
    """Return what flags become by a name that was found, against the one or two that ours may be.

    other, found: subdirectory and letters. A name that is one of ours is no news: a renaming
    of our own was cut short, or undone by a power cut, and the database's word stands.
    """
    if found == other:
        return flags
    now, last = flags_of(found.partition("/")[2]), flags_of(mirrored)
    second = last if other is None else flags_of(other.partition("/")[2])
    return (flags | now & ~(last | second)) & ~(last & second & ~now)


def _rows(connection: Connection, folder: Locked, uids: Sequence[int]) -> list[Any]:
    chosen = select_uids(connection, uids)
    text = (
        "SELECT uid, flags, keywords, name, subdirectory, mirrored, mirrored_other FROM entries "  # noqa: S608 - a condition
        f"WHERE folder_id = ? AND {chosen.text}"
    )
    return list(run(connection, text, (folder.id, *chosen.values)).fetchall())


def _unlink(path: Path) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True
