"""What a dead process left: its journal is replayed by whoever gets its lock, beside those who live.

Owns the replay of one instance's journal, at the start of its next owner and for
a neighbour, the clearing of what was replayed, and the thread that looks for dead
neighbours on PostgreSQL. Takes nothing from a process that lives: its journal's
lock is free only when it and all its children are gone.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from storage import queue, segments
from storage.apply import Applier
from storage.db import Database
from storage.errors import StorageError
from storage.files import Files, sync_directory
from storage.maildir import Maildir
from storage.ownership import Layout, Syncer, is_instance, own, register
from storage.placing import Placing
from storage.recover import Recoverer, Recovery
from storage.rendition import Render
from storage.spool import Spool

LOOK_SECONDS = 2.0
# A journal that could not be replayed is tried again after this long.
REST_SECONDS = 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Estate:
    """What a replay works on: the directory, its database, and how files are made and rendered."""

    layout: Layout
    database: Database
    maildir: Maildir
    syncer: Syncer
    render: Render
    files: Files

    def placing(self, instance: str, spool: Spool) -> Placing:
        """Return what makes the files of an instance's records."""
        return Placing(
            maildir=self.maildir,
            spool=spool,
            outbox=self.layout.outbox,
            aside=self.layout.aside,
            instance=instance,
            files=self.files,
        )

    def replay(self, applier: Applier, placing: Placing) -> Recovery:
        """Replay what an instance's journal holds and clear it; Corrupt, StorageError."""
        instance = placing.instance
        recovery = Recoverer(
            directory=self.layout.journal(instance),
            aside=self.layout.aside,
            applier=applier,
            placing=placing,
            database=self.database,
            files=self.files,
        ).run()
        self._clear(instance, recovery, placing.spool)
        return recovery

    def _clear(self, instance: str, recovery: Recovery, spool: Spool) -> None:
        """Remove what was replayed, once the files it became are synced; then spool files nothing names."""
        if recovery.segments:
            self.syncer.sync()
            for path in recovery.segments:
                self.files.unlink(path)
            segments.forget_stale(self.files, self.layout.journal(instance))
            sync_directory(self.files, self.layout.journal(instance))
        for path in spool.directory.iterdir():
            spool.remove(path.name)

    def take_back(self, instance: str) -> None:
        """Make due at once what a dead instance had leased from the queue."""
        while self.database.write(
            lambda c: queue.reclaim(c, now=time.time_ns() // 1000, before=None, holder=instance)
        ):
            _log.warning("deliveries that %s had leased are tried again", instance)

    def inherit(self, instance: str) -> Recovery | None:
        """Replay a dead neighbour's journal; None where it lives, or left nothing."""
        fd = own(self.layout, instance)
        if fd is None:
            return None
        try:
            if not segments.list_segments(self.layout.journal(instance)):
                return None
            spool = Spool(self.layout.spool(instance), reserve_octets=0, files=self.files)
            spool.directory.mkdir(mode=0o700, exist_ok=True)
            applier = Applier(
                database=self.database,
                placing=(placing := self.placing(instance, spool)),
                render=self.render,
                applied_sequence=register(self.database, self.layout, instance, is_known=True),
                settle=_nothing,
                complete=self.database.complete,
            )
            # First: a process that had leases has a journal to leave, and may leave an unreadable one.
            self.take_back(instance)
            recovery = self.replay(applier, placing)
            _log.warning(
                "journal %s of a process that ended was taken over: %d records applied, %d checked",
                instance,
                recovery.applied,
                recovery.verified,
            )
            return recovery
        finally:
            os.close(fd)


class Heir:
    """A thread that looks for journals whose owners died."""

    def __init__(self, estate: Estate, own_instance: str) -> None:
        self._estate = estate
        self._own = own_instance
        self._resting: dict[str, float] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="heir", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """End what is under way, then stop."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _loop(self) -> None:
        while True:
            self._look()
            if self._closing.wait(LOOK_SECONDS):
                return

    def _look(self) -> None:
        layout, now = self._estate.layout, time.monotonic()
        for path in sorted((layout.directory / "journal").iterdir()):
            instance = path.name
            if instance == self._own or not is_instance(instance) or self._resting.get(instance, 0.0) > now:
                continue
            if not self._closing.is_set() and segments.list_segments(path):
                self._try(partial(self._estate.inherit, instance), instance)

    def _try(self, act: Callable[[], object], instance: str) -> None:
        try:
            act()
            self._resting.pop(instance, None)
        except (StorageError, OSError) as error:
            self._resting[instance] = time.monotonic() + REST_SECONDS
            _log.error("journal %s cannot be taken over, trying again: %s", instance, error)
        except Exception:  # noqa: BLE001 - one journal that nobody can read must not hide the others
            self._resting[instance] = time.monotonic() + REST_SECONDS
            _log.exception("journal %s cannot be taken over, trying again", instance)


def _nothing(_octets: int) -> None:
    """Take nothing off a backlog: what is inherited was never in this one."""
