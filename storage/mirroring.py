"""The thread behind the database: what it does later, off every path that somebody waits on.

Owns when: soon after a change, in steps that let other units have their turn,
and at rest now and then. What is done is the mirror's, the lists' and the
tombstones' own.
"""

import logging
import math
import threading
import time
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError

from storage.db import Database, Notice
from storage.errors import StorageError
from storage.listing import Listing
from storage.maildir import Maildir
from storage.mirror import mirror
from storage.tombstones import prune

PAUSE_SECONDS = 0.5
LIST_SECONDS = 1.0  # between two times, so that with the pause a list lags two seconds at most
PRUNE_SECONDS = 600.0
# Where several processes share the mail, each mirrors its own changes, and looks so often for what a
# dead one left.
LOOK_SECONDS = 60.0

_log = logging.getLogger(__name__)


class Mirroring:
    """A thread that runs the mirror soon after changes, in steps that let other units have their turn."""

    def __init__(self, database: Database, maildir: Maildir, *, pause_seconds: float = PAUSE_SECONDS) -> None:
        self._database = database
        self._maildir = maildir
        self._pause_seconds = pause_seconds
        self._wanted = threading.Event()
        self._next_prune = time.monotonic() + PRUNE_SECONDS
        self._closing = threading.Event()
        self._listing = Listing(database, maildir)
        self._next_listing = 0.0
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
        # What is listed later anyway may have changed again, and has names to mirror now.
        if self._listing.heard(notices) or any(notice.topic in ("folder", "mailbox") for notice in notices):
            self._wanted.set()

    def _loop(self) -> None:
        is_shared = self._database.dialect != "sqlite"
        while not self._closing.is_set():
            later = min(self._next_prune, self._next_listing if self._listing.is_due else math.inf)
            patience = max(0.0, later - time.monotonic())
            if self._wanted.wait(min(patience, LOOK_SECONDS) if is_shared else patience) or is_shared:
                # What comes within the pause is one step's work.
                self._closing.wait(self._pause_seconds)
                self._wanted.clear()
                self._mirror()
            if time.monotonic() >= self._next_listing:
                self._list()
            if time.monotonic() >= self._next_prune:
                self._prune()
        # What came while the last step was taken.
        self._mirror()
        self._list()

    def _mirror(self) -> None:
        try:
            while mirror(self._database, maildir=self._maildir).again:
                pass
        except (StorageError, SQLAlchemyError, OSError) as error:
            _log.error("flags were not mirrored into file names: %s", error)

    def _list(self) -> None:
        if not self._listing.is_due:
            return
        try:
            self._listing.run()
        except (StorageError, SQLAlchemyError) as error:
            _log.error("UIDs and keywords were not mirrored: %s", error)
        self._next_listing = time.monotonic() + LIST_SECONDS

    def _prune(self) -> None:
        self._next_prune = time.monotonic() + PRUNE_SECONDS
        try:
            prune(self._database, at=time.time_ns() // 1000)
        except (StorageError, SQLAlchemyError) as error:
            _log.error("tombstones were not pruned: %s", error)
