"""Whether a folder's directory is worth a scan: what this process has seen of it before.

Owns the memory of directory times, one small record a folder, the longest
unused forgotten first. A directory changed within the last two seconds is
looked at again, for its time may not tell a second change from the first; and
a folder whose scan takes long is scanned less often, so that looking never
costs more than a twentieth of a core.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from storage.db import Database
from storage.maildir import Maildir
from storage.records import Folder, Rendered
from storage.scan import Scanned, Stamps, scan, stamps

FOLDERS = 10_000
RACY_NS = 2_000_000_000
REST = 20  # times as long as a scan took


@dataclass(frozen=True, slots=True)
class _Seen:
    """The times of a directory when it was found in order, and the monotonic time of the next look."""

    stamps: Stamps | None
    is_settled: bool
    not_before: float


class Watch:
    """Scans folders whose directories changed. look may be called from any thread, and blocks."""

    def __init__(
        self,
        *,
        database: Database,
        maildir: Maildir,
        render: Callable[[bytes], Rendered],
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._database = database
        self._maildir = maildir
        self._render = render
        self._monotonic = monotonic
        self._wall_ns = wall_ns
        self._lock = threading.Lock()
        self._seen: OrderedDict[int, _Seen] = OrderedDict()
        self._running: set[int] = set()

    def look(self, folder: Folder, *, at: int) -> Scanned | None:
        """Scan a folder if its directory changed since the last look; None where there was no need.

        at: microseconds, for what is received. Missing where the folder is gone.
        """
        current = stamps(self._maildir.folder_path(folder.mailbox_id, folder.name))
        if not self._begin(folder.id, current):
            return None
        started, wall_ns = self._monotonic(), self._wall_ns()
        seen = _Seen(None, False, started)
        try:
            done = scan(
                self._database, maildir=self._maildir, folder_id=folder.id, render=self._render, at=at
            )
            ended = self._monotonic()
            is_racy = current is not None and wall_ns - max(current) < RACY_NS
            seen = _Seen(current, not is_racy and not done.again, ended + REST * (ended - started))
        finally:
            self._end(folder.id, seen)
        return done

    def _begin(self, folder_id: int, current: Stamps | None) -> bool:
        with self._lock:
            seen = self._seen.get(folder_id)
            if folder_id in self._running:
                return False
            if seen is not None and self._monotonic() < seen.not_before:
                return False
            if seen is not None and seen.is_settled and seen.stamps == current:
                return False
            self._running.add(folder_id)
            return True

    def _end(self, folder_id: int, seen: _Seen) -> None:
        with self._lock:
            self._running.discard(folder_id)
            self._seen[folder_id] = seen
            self._seen.move_to_end(folder_id)
            while len(self._seen) > FOLDERS:
                self._seen.popitem(last=False)
