"""The embedded store: journal, apply, Maildir and database as one thing with one owner.

Owns the data directory, the lock that says so, the order of opening and
closing, and the checkpoint: a segment goes away only when all of it is applied
and the file systems that hold the mail are synced. A sync that fails stops
checkpoints until a restart, for what the kernel could not write it may have
forgotten. Reads no configuration and knows no protocol.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sqlalchemy import Connection

from storage import engine, segments
from storage.apply import Applier, Render
from storage.db import Database
from storage.errors import Full, StorageError
from storage.files import Files, sync_directory
from storage.inheritance import Estate, Heir
from storage.journal import Applied, Durable, Journal
from storage.maildir import Maildir
from storage.ownership import Layout, Sharing, Sole, Syncer, agree, claim, lock, turn
from storage.placing import Placing
from storage.rebuild import Rebuilder, is_lost
from storage.records import Accepted, Spooled
from storage.recover import Recovery
from storage.spool import Spool, SpoolWriter
from storage.worker import Worker

BACKLOG_OCTETS = 64 << 20
CHECKPOINT_WAIT_SECONDS = 60.0
ROOM_SECONDS = 0.25  # how long a look at the free space is believed; the journal looks at each batch
VACUUM_PAGES = 2000

_log = logging.getLogger(__name__)


class Store:
    """An open store. accept and checkpoint may be called from any thread."""

    def __init__(self) -> None:
        raise TypeError("use Store.open")

    database: Database
    maildir: Maildir
    instance: str
    is_shared: bool  # whether other processes may work on the same directory
    render: Render
    spool_threshold_octets: int
    recovery: Recovery
    _room: int
    _room_until: float

    @classmethod
    def open(
        cls,
        *,
        directory: Path,
        database_url: str,
        render: Render,
        segment_octets: int,
        spool_threshold_octets: int,
        disk_reserve_octets: int = 0,
        checkpoint_seconds: float = 30.0,
        backlog_limit_octets: int = BACKLOG_OCTETS,
        readers: int = 4,
        files: Files = os,
    ) -> "Store":
        """Return the store in a directory: locked, migrated, recovered, its threads running.

        StorageError or Corrupt, with a sentence for the operator, where it cannot be opened.
        """
        store = object.__new__(cls)
        store._closers = []
        store._heir = None
        try:
            store._open(directory, database_url, readers)
            store._recover(render, files, disk_reserve_octets, spool_threshold_octets)
            store._start(segment_octets, disk_reserve_octets, backlog_limit_octets, checkpoint_seconds)
        except OSError as error:
            store._undo()
            raise StorageError(f"the data directory {directory} cannot be used: {error}") from error
        except BaseException:
            store._undo()
            raise
        return store

    @property
    def backlog_octets(self) -> int:
        """Octets of accepted mail that wait to be applied."""
        return self._journal.backlog_octets

    @property
    def applied_sequence(self) -> int:
        """The journal sequence up to which everything is applied."""
        return self._applier.applied_sequence

    def has_room(self, octets: int = 0) -> bool:
        """Return whether the disk keeps its reserve when this much more is taken in."""
        now = time.monotonic()
        if now >= self._room_until:
            disk = os.statvfs(self._journal_directory)
            self._room = disk.f_bavail * disk.f_frsize - self._reserve_octets
            self._room_until = now + ROOM_SECONDS
        return self._room >= octets

    def spool(self) -> SpoolWriter:
        """Begin a large content; Full where the disk is at its reserve."""
        return self._spool.writer()

    def read_spooled(self, spooled: Spooled) -> Path:
        """Return the file of a spooled content."""
        return self._spool.path(spooled.name)

    def duplicate(self, spooled: Spooled) -> Spooled:
        """Return a spooled content under a second name, for a second record; Full, StorageError."""
        return self._spool.duplicate(spooled)

    def discard(self, spooled: Spooled) -> None:
        """Give up a finished content that no record will name."""
        self._spool.remove(spooled.name)

    def message_path(self, message_id: str) -> Path:
        """Return the file that the queue sends: trace and content."""
        return self._layout.outbox / message_id

    def aside_path(self, name: str) -> Path:
        """Return a file that lies aside; ValueError for what is no file's plain name."""
        if "/" in name or name.startswith("."):
            raise ValueError(f"no file's name: {name!r}")
        return self._layout.aside / name

    def sole(self, task: str) -> Sole:
        """Return a task that one process of this directory has at a time; nobody has it yet."""
        return Sole(self._layout.directory, task)

    def accept(self, record: Accepted, *, durable: Durable, applied: Applied | None = None) -> None:
        """Journal a record without blocking; callbacks come through the database's `complete`.

        durable: called with None once the record is on stable storage, else with
        what refused it (Full: no room or too much waits). applied: called with
        where each local target went, once visible. A spooled content belongs to the
        store from here on: it goes when it is applied, or at once when refused with Full.
        """
        if isinstance(record.content, Spooled):
            durable = partial(self._answer_spooled, record.content.name, durable)
        self._journal.append(record, durable, applied)

    def checkpoint(self) -> None:
        """Apply and sync all that was accepted so far and remove it from the journal, to the last octet.

        StorageError or OSError where that fails or takes longer than CHECKPOINT_WAIT_SECONDS.
        """
        last = self._journal.last_sequence()
        if not self._applier.wait(last, timeout_seconds=CHECKPOINT_WAIT_SECONDS):
            raise StorageError(f"record {last} was not applied within {CHECKPOINT_WAIT_SECONDS:.0f} s")
        self._make_spare()
        self._journal.rotate()
        self._checkpoint()
        self._make_spare()

    def close(self) -> None:
        """Finish what was accepted, checkpoint, and give the directory up; a second call does nothing."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        if self._heir is not None:
            self._heir.close()
        self._wake.set()
        self._checkpointer.join()
        self._journal.close()
        self._applier.close()
        try:
            self._checkpoint()
            segments.forget_stale(self._files, self._journal_directory)
        except (StorageError, OSError) as error:
            _log.error("the last checkpoint failed, the next start replays: %s", error)
        self._undo()

    def _answer_spooled(self, name: str, durable: Durable, error: BaseException | None) -> None:
        if isinstance(error, Full):
            self._spool.remove(name)
        durable(error)

    # ---- opening, in order ----

    _closers: list[Callable[[], None]]
    _heir: Heir | None

    def _open(self, directory: Path, database_url: str, readers: int) -> None:
        self._layout = layout = Layout(directory)
        for path in (directory, layout.mail, layout.outbox, layout.aside, directory / "journal"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.maildir = Maildir(layout.mail)
        self.is_shared = engine.parse_url(database_url).get_backend_name() != "sqlite"
        self._locks = [lock(directory, Sharing.SHARED if self.is_shared else Sharing.ALONE)]
        self._closers.append(self._unlock)
        self.database = Database.open(database_url, readers=readers)
        self._closers.append(self.database.close)
        self.database.migrate()
        self._is_lost = is_lost(self.database, directory)
        if self.is_shared:
            self.instance, self._applied, journal = claim(self.database, layout)
            self._locks.append(journal)
            self.database.hear()
        else:
            self.instance, self._applied = agree(self.database, layout)
        for path in (layout.journal(self.instance), layout.spool(self.instance)):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in () if self.is_shared else (directory / "journal").iterdir():
            if path.name != self.instance and segments.list_segments(path):
                _log.error("%s is the journal of another instance, it is not replayed here", path)
        self._syncer = Syncer([directory, layout.mail, layout.outbox])
        self._closers.append(self._syncer.close)

    def _unlock(self) -> None:
        while self._locks:
            os.close(self._locks.pop())

    def _recover(self, render: Render, files: Files, reserve_octets: int, threshold_octets: int) -> None:
        layout, instance = self._layout, self.instance
        self._files = files
        self.render = render
        self.spool_threshold_octets = threshold_octets
        self._spool = Spool(layout.spool(instance), reserve_octets=reserve_octets, files=files)
        self._estate = Estate(layout, self.database, self.maildir, self._syncer, render, files)
        placing = self._estate.placing(instance, self._spool)
        # A replaced namespace of file calls means that every step must be taken here.
        worker = None
        if files is os:
            worker = Worker(
                placing=placing,
                render=render,
                database=self.database.url.render_as_string(hide_password=False),
                origin=self.database.origin,
                keep_open=self._locks,
            )
        self._applier = Applier(
            database=self.database,
            placing=placing,
            render=render,
            applied_sequence=self._applied,
            settle=self._settle,
            complete=self._complete,
            worker=worker,
        )
        self._journal_directory = layout.journal(instance)
        self.recovery = (
            self._rebuild(placing) if self._is_lost else self._estate.replay(self._applier, placing)
        )
        if self.is_shared:
            self._estate.take_back(instance)
        else:
            # Beside others one may be written at this moment; replaying writes it under the same name.
            for path in layout.outbox.glob("tmp-*"):
                files.unlink(path)

    def _rebuild(self, placing: Placing) -> Recovery:
        """Make a lost database anew around the journal's replay; of several processes the first one does."""
        with turn(self._layout.directory):
            if not is_lost(self.database, self._layout.directory):
                return self._estate.replay(self._applier, placing)
            rebuilder = Rebuilder(self.database, self.maildir, self.render)
            rebuilder.begin(at=time.time_ns() // 1000)
            recovery = self._estate.replay(self._applier, placing)
            rebuilder.finish(at=time.time_ns() // 1000)
            return recovery

    def _start(
        self, segment_octets: int, reserve_octets: int, backlog_limit_octets: int, checkpoint_seconds: float
    ) -> None:
        self._segment_octets = segment_octets
        self._reserve_octets = reserve_octets
        self._room = 0
        self._room_until = 0.0
        self._checkpointing = threading.Lock()
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._applier.start()
        self._closers.append(self._applier.close)
        self._journal = Journal(
            directory=self._journal_directory,
            instance=self.instance,
            next_sequence=max(self.recovery.last_sequence, self._applied) + 1,
            segment_octets=segment_octets,
            reserve_octets=reserve_octets,
            backlog_limit_octets=backlog_limit_octets,
            files=self._files,
            complete=self._complete,
            deliver=self._applier.deliver,
            retired=self._wake.set,
        )
        self._checkpointer = threading.Thread(
            target=self._checkpoint_often, args=(checkpoint_seconds,), name="checkpoint", daemon=True
        )
        self._checkpointer.start()
        if self.is_shared:
            heir = Heir(self._estate, self.instance)
            heir.start()
            self._heir = heir

    def _undo(self) -> None:
        while self._closers:
            self._closers.pop()()

    def _settle(self, octets: int) -> None:
        if octets:
            self._journal.settle(octets)

    def _complete(self, callbacks: list[Callable[[], None]]) -> None:
        self.database.complete(callbacks)

    # ---- checkpoints ----

    def _checkpoint_often(self, seconds: float) -> None:
        """Checkpoint at every interval, and as soon as a segment is full."""
        self._try(self._make_spare)
        while True:
            is_early = self._wake.wait(seconds)
            if self._stopping.is_set():
                return
            self._wake.clear()
            if not is_early:
                # No load: what comes next gets a segment without the mail of earlier ones.
                self._try(self._make_spare)
                self._journal.rotate()
                self._wake.clear()
            self._try(self._checkpoint)
            if not is_early:
                self._try(self._make_spare)
            self._try(self._compact)

    def _compact(self) -> None:
        if self.database.dialect == "sqlite":
            self.database.write(_vacuum)

    def _make_spare(self) -> None:
        with self._checkpointing:
            segments.make_spare(self._files, self._journal_directory, self._segment_octets)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except (StorageError, OSError) as error:
            _log.error("checkpoint: %s", error)

    def _checkpoint(self) -> None:
        with self._checkpointing:
            done = self._journal.retired(self._applier.applied_sequence)
            if not done:
                return
            self._syncer.sync()
            try:
                for segment in done:
                    segments.recycle(self._files, self._journal_directory, segment)
                    self._journal.forget(segment)
                sync_directory(self._files, self._journal_directory)
                for segment in done:
                    for name in segment.spooled:
                        self._spool.remove(name)
            except OSError as error:
                raise StorageError(f"applied segments of the journal cannot be removed: {error}") from error


def _vacuum(connection: Connection) -> None:
    # Each step frees a page; SQLAlchemy would stop at the first, which returns no row.
    connection.connection.cursor().execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
