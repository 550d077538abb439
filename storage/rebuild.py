"""A lost database made anew from what lies beside the mail.

Owns what a start does that finds a data directory with mail and a database that
knows nothing of it: inboxes as they were described, folders with their
UIDVALIDITY, and messages with the UIDs, dates and keywords of their lists;
flags are those of the file names. UIDs and MODSEQs go on far above the last
that were listed, so that none is given twice that a client may have seen
meanwhile. A list that cannot be believed gives its folder a new UIDVALIDITY.
Restores no passwords, keys, routes or queue: those were the database's alone.

RFC 9051 2.3.1.1 (UIDs, UIDVALIDITY).
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from storage import found as found_messages
from storage import ids, lists
from storage.db import Database
from storage.entries import Files, discard
from storage.errors import BadName, Conflict
from storage.folders import FIRST_FOLDERS, NUMBER_LIMIT, create_folder, lock, normal_name
from storage.lists import FOLDER_FILE, INBOX_FILE, FolderList, Listed
from storage.maildir import (
    INBOX,
    Maildir,
    directory_name,
    folder_name,
    parse_base,
    parse_copy,
    parse_name,
    relative_path,
)
from storage.records import Rendered
from storage.scan import BATCH_FILES, BATCH_OCTETS
from storage.selection import run, select_uids

# More than is given out between two times that lists are written, by far.
GAP = 1 << 20
_BEGUN = "rebuilding"

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Rebuilt:
    """What was restored. doubtful: folders whose lists could not be believed."""

    inboxes: int = 0
    folders: int = 0
    messages: int = 0
    doubtful: int = 0


def is_lost(database: Database, directory: Path) -> bool:
    """Return whether a data directory was in use and its database is empty, or a rebuilding was cut short."""

    def unit(connection: Connection) -> bool:
        begun = run(connection, "SELECT 1 FROM settings WHERE name = ?", (_BEGUN,)).fetchone()
        if begun is not None:
            return True
        known = run(connection, "SELECT 1 FROM organizations LIMIT 1").fetchone()
        return known is None and (directory / "instance").exists()

    return database.read(unit)


class Rebuilder:
    """Restores one data directory's mail: begin before the journal is replayed, finish after it."""

    def __init__(self, database: Database, maildir: Maildir, render: Callable[[bytes], Rendered]) -> None:
        self._database = database
        self._maildir = maildir
        self._render = render
        self._listed: dict[int, str] = {}  # folders whose lists are believed, with their inboxes
        self._inboxes: list[str] = []
        self.report = Rebuilt()

    def begin(self, *, at: int) -> None:
        """Make organizations, domains, inboxes and folders; at: now, in microseconds. OSError."""
        described = [found for name in self._maildir.mailboxes() if (found := self._described(name))]
        if not described:
            return
        text = "INSERT INTO settings (name, value) VALUES (?, '1') ON CONFLICT (name) DO NOTHING"
        self._database.write(lambda c: run(c, text, (_BEGUN,)) and None)
        for facts in described:
            try:
                self._database.write(lambda c, one=facts: _make_inbox(c, one, at))  # type: ignore[misc]  # bound now
            except Conflict as error:
                _log.error("inbox %s was not restored: %s", facts["id"], error)
                continue
            self.report.inboxes += 1
            self._inboxes.append(facts["id"])
            self._restore_folders(facts["id"], at)

    def finish(self, *, at: int) -> None:
        """Give the messages their UIDs back, those that the journal's replay made too."""
        for folder_id, mailbox_id in self._listed.items():
            self._restore_messages(folder_id, mailbox_id, at)
        for mailbox_id in self._inboxes:
            self._rename_copies(mailbox_id)
        if self.report.inboxes:
            self._database.write(lambda c: run(c, "DELETE FROM settings WHERE name = ?", (_BEGUN,)) and None)
            _log.warning("the database knew nothing of this mail, restored: %s", self.report)

    def _described(self, name: str) -> dict[str, Any] | None:
        path = self._maildir.mailbox_path(name) / INBOX_FILE
        try:
            found = lists.read_line(path.read_bytes().rstrip(b"\n"))
        except FileNotFoundError:
            return None
        if found is None or found.get("version") != lists.VERSION or found.get("id") != name:
            _log.error("%s cannot be believed, its inbox is not restored", path)
            return None
        return found

    # ---- folders ----

    def _restore_folders(self, mailbox_id: str, at: int) -> None:
        directories = [name for name in self._maildir.directories(mailbox_id) if name.startswith(".")]
        for name in ("", *directories):
            path = self._maildir.mailbox_path(mailbox_id) / name
            folder = _folder_of(name)
            if folder is None or not (path / FOLDER_FILE).exists():
                continue
            listed = lists.read((path / FOLDER_FILE).read_bytes())
            known = listed is not None and _is_believable(listed, path)
            made = self._database.write(
                lambda c, row=(folder, listed, known): _make_folder(c, mailbox_id, *row, at=at)  # type: ignore[misc]
            )
            self.report.folders += 1
            if known and listed is not None:
                self._listed[made] = mailbox_id
            else:
                self.report.doubtful += 1
                _log.error("the list of folder %s in %s cannot be believed: new UIDs", folder, mailbox_id)
        self._database.write(lambda c: _make_first_folders(c, mailbox_id, at))

    # ---- messages ----

    def _restore_messages(self, folder_id: int, mailbox_id: str, at: int) -> None:
        folder = self._database.read(lambda c: run(c, _NAME, (folder_id,)).fetchone()[0])
        directory = self._maildir.folder_path(mailbox_id, folder)
        # Read once more: all lists at once may be more than memory holds.
        listed = lists.read((directory / FOLDER_FILE).read_bytes())
        assert listed is not None, "it was read before"
        replayed = self._database.read(lambda c: _named(c, folder_id))
        self._database.write(lambda c: self._correct(c, folder_id, listed, replayed, at))
        wanted = {base: one for base, one in listed.live.items() if base not in replayed}
        for batch in _batches(directory, wanted, self._render):
            self._database.write(lambda c, some=batch: _insert(c, folder_id, some, at))  # type: ignore[misc]  # bound now
            self.report.messages += len(batch)

    def _rename_copies(self, mailbox_id: str) -> None:
        """Give copies that no row has other names: theirs speak of folders and UIDs of the lost database.

        Under those, a scan would take them for copies that were undone.
        """
        named = self._database.read(lambda c: _named_in_inbox(c, mailbox_id))
        root = self._maildir.mailbox_path(mailbox_id)
        for directory in (root, *(root / name for name in self._maildir.directories(mailbox_id))):
            for path in _paths(directory):
                base, letters = parse_name(path.partition("/")[2])
                if parse_copy(base) is not None and base not in named:
                    fresh = relative_path(f"{base}-restored", path.partition("/")[0], letters)
                    os.rename(directory / path, directory / fresh)

    def _correct(
        self, connection: Connection, folder_id: int, listed: FolderList, replayed: dict[str, int], at: int
    ) -> None:
        """Bring what the replay made in line with the list: UIDs and keywords, and what was expunged."""
        folder = lock(connection, folder_id)[0]
        text = "UPDATE entries SET uid = ?, keywords = ?, internal_date = ? WHERE folder_id = ? AND uid = ?"
        for base in sorted(replayed.keys() & listed.live.keys()):
            one = listed.live[base]
            run(connection, text, (one.uid, one.keywords, one.internal_date, folder_id, replayed[base]))
            self.report.messages += 1
        # A list names all that had a UID by then: what it lacks, and came before its last, was expunged.
        last = _last_sequences([*listed.live, *listed.gone])
        missed = {base for base in replayed.keys() - listed.live.keys() if _came_before(base, last)}
        gone = sorted(replayed[base] for base in missed | (replayed.keys() & listed.gone))
        if gone:
            discard(connection, folder, select_uids(connection, gone), at=at, files=Files.REMOVE)


_NAME = "SELECT name FROM folders WHERE id = ?"


def _named(connection: Connection, folder_id: int) -> dict[str, int]:
    rows = run(connection, "SELECT name, uid FROM entries WHERE folder_id = ?", (folder_id,)).fetchall()
    return {row[0]: row[1] for row in rows}


def _named_in_inbox(connection: Connection, mailbox_id: str) -> set[str]:
    text = "SELECT e.name FROM entries e JOIN folders f ON f.id = e.folder_id WHERE f.mailbox_id = ?"
    return {row[0] for row in run(connection, text, (mailbox_id,)).fetchall()}


def _last_sequences(bases: Sequence[str]) -> dict[str, int]:
    """Return, by instance, the last journal record that names of our own files speak of."""
    last: dict[str, int] = {}
    for origin in filter(None, map(parse_base, bases)):
        last[origin.instance] = max(last.get(origin.instance, 0), origin.sequence)
    return last


def _came_before(base: str, last: dict[str, int]) -> bool:
    origin = parse_base(base)
    return origin is not None and origin.sequence <= last.get(origin.instance, 0)


def _folder_of(directory: str) -> str | None:
    if not directory:
        return INBOX
    try:
        name = normal_name(folder_name(directory))
    except (ValueError, BadName):
        return None
    return name if directory_name(name) == directory else None


def _is_believable(listed: FolderList, path: Path) -> bool:
    """Return whether a list is this directory's own, agrees with itself, and leaves room for more UIDs."""
    seal = listed.seal
    highest = max((one.uid for one in listed.live.values()), default=0)
    numbers = (seal.uidvalidity, seal.uidnext, seal.modseq)
    if not listed.is_sound or min(numbers) < 1 or max(seal.uidnext, highest) + 2 * GAP > NUMBER_LIMIT:
        return False
    if seal.uidvalidity > NUMBER_LIMIT or seal.modseq >= 1 << 62:
        return False
    there = set(_bases(path))
    is_anothers = bool(there) and bool(listed.live) and not there & listed.live.keys()
    return not is_anothers and len(there - listed.live.keys()) < GAP // 2


def _bases(path: Path) -> Iterator[str]:
    return (parse_name(one.partition("/")[2])[0] for one in _paths(path))


def _paths(path: Path) -> Iterator[str]:
    for subdirectory in ("new", "cur"):
        try:
            names = os.listdir(path / subdirectory)
        except FileNotFoundError:
            continue
        yield from (f"{subdirectory}/{name}" for name in names if not name.startswith("."))


def _batches(
    directory: Path, wanted: dict[str, Listed], render: Callable[[bytes], Rendered]
) -> Iterator[list[tuple[found_messages.Found, Listed]]]:
    """Yield listed messages with their files, read and rendered, some at a time."""
    batch: list[tuple[found_messages.Found, Listed]] = []
    octets = 0
    for path in sorted(_paths(directory)):
        listed = wanted.pop(parse_name(path.partition("/")[2])[0], None)
        found = None if listed is None else found_messages.read(directory, path, render)
        if found is None or listed is None:
            continue
        batch.append((found, listed))
        octets += found.octets
        if len(batch) >= BATCH_FILES or octets >= BATCH_OCTETS:
            yield batch
            batch, octets = [], 0
    if batch:
        yield batch


# ---- rows ----


def _insert(
    connection: Connection, folder_id: int, batch: Sequence[tuple[found_messages.Found, Listed]], at: int
) -> None:
    folder = lock(connection, folder_id)[0]
    found_messages.restore(connection, folder, batch, modseq=folder.highestmodseq, at=at)


def _make_inbox(connection: Connection, facts: dict[str, Any], at: int) -> None:
    """Make an inbox with its organization and domain, where they are not there."""
    try:
        owner = facts["organization"]
        organization = (str(owner["id"]), str(owner["name"]), str(owner["state"]))
        address, created = str(facts["address"]), int(facts["created_at"])
        values = (str(facts["id"]), organization[0], address, str(facts["display_name"]), str(facts["state"]))
        more = (int(facts["quota_octets"]), str(facts["retention_class"]), created)
        uidvalidity = int(facts["uidvalidity"])
    except (KeyError, TypeError, ValueError) as error:
        raise Conflict(f"its description lacks something: {error}") from error
    domain = address.rpartition("@")[2]
    text = (
        "INSERT INTO organizations (id, name, state, created_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
    )
    run(connection, text, (*organization, at))
    known = run(connection, "SELECT 1 FROM organizations WHERE id = ?", organization[:1]).fetchone()
    if known is None:
        raise Conflict(f"another organization is called {organization[1]}")
    text = (
        "INSERT INTO domains (id, organization_id, name, state, created_at) "
        "VALUES (?, ?, ?, 'active', ?) ON CONFLICT DO NOTHING"
    )
    run(connection, text, (ids.new("dom"), organization[0], domain, at))
    text = (
        "INSERT INTO mailboxes (id, organization_id, address, display_name, state, quota_octets, "
        "used_octets, retention_class, created_at) VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?) ON CONFLICT DO NOTHING"
    )
    run(connection, text, (*values, *more))
    row = run(connection, "SELECT id FROM mailboxes WHERE address = ?", (address,)).fetchone()
    if row is None or row[0] != values[0]:
        raise Conflict(f"another inbox has the address {address}")
    if uidvalidity:
        text = "INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING"
        run(connection, text, (f"uidvalidity {values[0]}", str(uidvalidity)))


def _make_folder(
    connection: Connection, mailbox_id: str, name: str, listed: FolderList | None, is_known: bool, *, at: int
) -> int:
    """Make a folder as its list has it, or with a new UIDVALIDITY above that; return its id."""
    row = run(
        connection, "SELECT id FROM folders WHERE mailbox_id = ? AND name = ?", (mailbox_id, name)
    ).fetchone()
    if row is not None:
        return int(row[0])
    if listed is None or not is_known:
        above = 0 if listed is None else min(max(listed.seal.uidvalidity, 0), NUMBER_LIMIT - 1)
        use = dict(FIRST_FOLDERS).get(name, "")
        later = max(at, (above + 1) * 1_000_000)
        return create_folder(connection, mailbox_id=mailbox_id, name=name, at=later, special_use=use).id
    seal = listed.seal
    highest = max((one.uid for one in listed.live.values()), default=0)
    uidnext, modseq = max(seal.uidnext, highest + 1) + GAP, seal.modseq + GAP
    text = (
        "INSERT INTO folders (mailbox_id, name, special_use, uidvalidity, uidnext, highestmodseq, "
        "recent_uid, subscribed, forgotten_modseq) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id"
    )
    values = (mailbox_id, name, seal.special_use, seal.uidvalidity, uidnext, modseq, uidnext)
    return int(run(connection, text, (*values, int(seal.subscribed), modseq)).fetchone()[0])


def _make_first_folders(connection: Connection, mailbox_id: str, at: int) -> None:
    rows = run(
        connection, "SELECT name, special_use FROM folders WHERE mailbox_id = ?", (mailbox_id,)
    ).fetchall()
    names, uses = {row[0] for row in rows}, {row[1] for row in rows}
    for name, use in FIRST_FOLDERS:
        if name not in names:
            given = use if use not in uses else ""
            create_folder(connection, mailbox_id=mailbox_id, name=name, at=at, special_use=given)
