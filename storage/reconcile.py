"""Reconcile: files and database compared as a whole, differences healed, all of it reported.

Owns the order of the healing: directories, then each folder's files, then what
lies unfinished or unused, then sums. The Maildir is believed about which
messages there are, the database about all else; nothing is concluded from a
mailbox whose directory is not there, and what nobody can explain is reported
and left. Works in small units, beside a running appliance or at its start.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection

from storage.db import Database
from storage.directories import Restored, restore
from storage.entries import erase_unused
from storage.errors import Missing, StorageError
from storage.folders import folders
from storage.maildir import Maildir
from storage.mirror import mirror
from storage.queue import finish
from storage.records import Folder, Rendered
from storage.scan import scan
from storage.selection import run

# Maildir: what lies in tmp for 36 hours will not be finished.
STALE_SECONDS = 36 * 3600
PROBLEMS = 1000
PAGE = 1000
FRUITLESS_ROUNDS = 3

_UNREMARKABLE = {"mailboxes", "folders"}
# What a store in order may show: directories are made when first needed, names and sums follow later.
_BENIGN = {
    "directories_made",
    "files_mirrored",
    "leftover_files_removed",
    "renditions_erased",
    "spool_files_removed",
    "stale_files_removed",
}

_log = logging.getLogger(__name__)


class Kept(Protocol):
    """What reconcile needs of a store."""

    @property
    def database(self) -> Database:
        """The rows."""
        ...

    @property
    def maildir(self) -> Maildir:
        """The mail."""
        ...

    @property
    def render(self) -> Callable[[bytes], Rendered]:
        """What renders messages that a foreign program put there."""
        ...

    def message_path(self, message_id: str) -> Path:
        """Where the queue's copy of a message lies."""
        ...


@dataclass(frozen=True, slots=True)
class Report:
    """What was found and done, as counts; problems: sentences on what was left as it is."""

    mailboxes: int = 0
    folders: int = 0
    directories_made: int = 0
    directories_restored: int = 0
    folders_adopted: int = 0
    messages_received: int = 0
    messages_changed: int = 0
    messages_expunged: int = 0
    leftover_files_removed: int = 0
    stale_files_removed: int = 0
    files_mirrored: int = 0
    spool_files_removed: int = 0
    renditions_erased: int = 0
    sums_corrected: int = 0
    problems: tuple[str, ...] = ()


def as_dict(report: Report) -> dict[str, Any]:
    """Return a report as JSON takes it."""
    return {**asdict(report), "problems": list(report.problems)}


def reconcile(store: Kept, *, at: int) -> Report:
    """Compare all mailboxes with their directories and heal what differs; at: now, in microseconds.

    StorageError where the database or the disk refuses; what was done until then stays done.
    """
    work = _Work(store, at)
    try:
        work.run()
    except OSError as error:
        raise StorageError(f"the mail could not be compared with the database: {error}") from error
    report = work.report()
    told = {one.name for one in fields(report) if getattr(report, one.name)} - _UNREMARKABLE
    if told:
        # What our own laziness leaves to do is no news; what somebody lost or did is.
        level = logging.WARNING if told - _BENIGN else logging.INFO
        _log.log(level, "reconciled: %s", as_dict(report))
    return report


@dataclass(slots=True)
class _Work:
    """One run: the store, the time, and the counts so far."""

    store: Kept
    at: int
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def run(self) -> None:
        self._mirror()
        known = set()
        for mailbox_id in self._mailboxes():
            known.add(mailbox_id)
            self._count("mailboxes")
            self._reconcile_mailbox(mailbox_id)
        for name in self.store.maildir.mailboxes():
            if name not in known:
                self._note(f"{self.store.maildir.mailbox_path(name)} belongs to no mailbox")
        self._reconcile_spool()
        self._erase_renditions()
        self._mirror()

    def report(self) -> Report:
        return Report(**self.counts, problems=tuple(self.problems))

    def _count(self, name: str, number: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + number

    def _note(self, problem: str) -> None:
        if len(self.problems) < PROBLEMS:
            self.problems.append(problem)

    def _pages(self, text: str) -> Iterator[list[str]]:
        """Yield pages of ids; text takes (id above which, limit) and orders by id."""
        after = ""
        while True:
            rows = self.store.database.read(
                lambda connection, after=after: run(connection, text, (after, PAGE)).fetchall()  # type: ignore[misc]  # bound now
            )
            if rows:
                yield [row[0] for row in rows]
            if len(rows) < PAGE:
                return
            after = rows[-1][0]

    def _mailboxes(self) -> Iterator[str]:
        for page in self._pages("SELECT id FROM mailboxes WHERE id > ? ORDER BY id LIMIT ?"):
            yield from page

    def _reconcile_mailbox(self, mailbox_id: str) -> None:
        store = self.store
        restored: Restored = restore(store.database, maildir=store.maildir, mailbox_id=mailbox_id, at=self.at)
        for problem in restored.problems:
            self._note(problem)
        self._count("directories_made", restored.made)
        self._count("directories_restored", restored.restored)
        self._count("folders_adopted", restored.adopted)
        if restored.is_there:
            for folder in store.database.read(lambda c: folders(c, mailbox_id=mailbox_id)):
                self._count("folders")
                with suppress(Missing):
                    self._reconcile_folder(folder)
        # Adding up takes a large mailbox seconds, and nobody can write meanwhile: it is done apart first.
        if not store.database.read(lambda c: _is_sum_right(c, mailbox_id)):
            self._count("sums_corrected", store.database.write(lambda c: _correct_sum(c, mailbox_id)))

    def _reconcile_folder(self, folder: Folder) -> None:
        store, fruitless = self.store, 0
        while fruitless < FRUITLESS_ROUNDS:
            done = scan(
                store.database,
                maildir=store.maildir,
                folder_id=folder.id,
                render=store.render,
                at=self.at,
            )
            self._count("messages_received", done.received)
            self._count("messages_changed", done.changed)
            self._count("messages_expunged", done.vanished)
            self._count("leftover_files_removed", done.removed)
            if done.missing:
                self._note(f"folder {folder.id} of {folder.mailbox_id} has messages and no directory")
            if not done.again:
                break
            is_fruitful = done.received or done.changed or done.vanished or done.removed
            fruitless = 0 if is_fruitful else fruitless + 1
        self._remove_stale(store.maildir.folder_path(folder.mailbox_id, folder.name) / "tmp")

    def _remove_stale(self, directory: Path) -> None:
        """Remove files of a tmp directory that nobody will finish."""
        with suppress(FileNotFoundError), os.scandir(directory) as found:
            for one in found:
                if one.is_file(follow_symlinks=False) and self._is_stale(one):
                    os.unlink(one.path)
                    self._count("stale_files_removed")

    def _is_stale(self, one: "os.DirEntry[str]") -> bool:
        return one.stat(follow_symlinks=False).st_mtime < self.at / 1_000_000 - STALE_SECONDS

    def _reconcile_spool(self) -> None:
        """Remove copies whose deliveries are all final; report those that the queue needs and are gone."""
        text = "SELECT id FROM messages WHERE spooled = 1 AND id > ? ORDER BY id LIMIT ?"
        for page in self._pages(text):
            self.store.database.write(lambda c, page=page: finish(c, message_ids=page))  # type: ignore[misc]  # bound now
        needed: set[str] = set()
        for page in self._pages(text):
            needed.update(page)
        with os.scandir(self.store.message_path("x").parent) as entries:
            found = {one.name: one.path for one in entries if one.is_file(follow_symlinks=False)}
        for name in sorted(needed - found.keys()):
            self._note(f"message {name} waits for delivery and its file is gone")
        for name in sorted(found.keys() - needed):
            if self._is_unused(name, found[name]):
                with suppress(FileNotFoundError):
                    os.unlink(found[name])
                    self._count("spool_files_removed")

    def _is_unused(self, message_id: str, path: str) -> bool:
        """Return whether a copy's message is done with; one that is not yet applied has no row."""
        text = "SELECT spooled FROM messages WHERE id = ?"
        row = self.store.database.read(lambda c: run(c, text, (message_id,)).fetchone())
        if row is not None:
            return bool(row[0] == 0)
        with suppress(FileNotFoundError):
            return os.lstat(path).st_mtime < self.at / 1_000_000 - STALE_SECONDS
        return False

    def _erase_renditions(self) -> None:
        text = (
            "SELECT r.message_id FROM renditions r "
            "WHERE NOT EXISTS (SELECT 1 FROM entries e WHERE e.message_id = r.message_id) "
            "AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.id = r.message_id AND m.spooled = 1) "
            "AND r.message_id > ? ORDER BY r.message_id LIMIT ?"
        )
        for page in self._pages(text):
            erased = self.store.database.write(lambda c, page=page: erase_unused(c, page))  # type: ignore[misc]  # bound now
            self._count("renditions_erased", erased)

    def _mirror(self) -> None:
        while True:
            done = mirror(self.store.database, maildir=self.store.maildir)
            self._count("files_mirrored", done.files)
            if not done.again:
                return


_SUM = (
    "SELECT coalesce(sum(e.octets), 0) FROM entries e JOIN folders f ON f.id = e.folder_id "
    "WHERE f.mailbox_id = ?"
)


def _is_sum_right(connection: Connection, mailbox_id: str) -> bool:
    """Compare what a mailbox uses with the sum of its entries, both of one moment."""
    text = f"SELECT used_octets = ({_SUM}) FROM mailboxes WHERE id = ?"  # noqa: S608 - ours
    row = run(connection, text, (mailbox_id, mailbox_id)).fetchone()
    return row is None or bool(row[0])


def _correct_sum(connection: Connection, mailbox_id: str) -> int:
    """Set what a mailbox uses to the sum of its entries; return 1 where it was another, else 0."""
    if connection.dialect.name != "sqlite":
        # Whoever adds an entry holds or waits for this row until his entry can be counted.
        run(connection, "SELECT 1 FROM mailboxes WHERE id = ? FOR UPDATE", (mailbox_id,))
    octets = int(run(connection, _SUM, (mailbox_id,)).fetchone()[0])
    text = "UPDATE mailboxes SET used_octets = ? WHERE id = ? AND used_octets <> ?"
    return int(run(connection, text, (octets, mailbox_id, octets)).rowcount)
