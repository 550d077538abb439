"""Large contents on their way in: one file each beside the journal, named by its record.

Owns those files from the first octet until the record that names them is
applied and checkpointed. Refuses to grow into the disk's reserve. Reads none
of the content but its digest.
"""

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from storage import ids
from storage.errors import Full, StorageError
from storage.files import Files, Octets, is_no_room, sync_directory, write_all
from storage.records import Spooled

T = TypeVar("T")

_CHECK_OCTETS = 1 << 20
UNFINISHED = "tmp-"

_log = logging.getLogger(__name__)


class Spool:
    """The directory of spooled contents."""

    def __init__(self, directory: Path, *, reserve_octets: int, files: Files) -> None:
        self.directory = directory
        self.reserve_octets = reserve_octets
        self.files = files

    def writer(self) -> "SpoolWriter":
        """Begin a file; Full where the disk is at its reserve."""
        return SpoolWriter(self)

    def path(self, name: str) -> Path:
        """Return where a finished content lies."""
        return self.directory / name

    def duplicate(self, spooled: Spooled) -> Spooled:
        """Give a finished content a second name, on stable storage: each record owns its own.

        Full where there is no room for the name.
        """
        name = ids.new("spl")
        try:
            self.files.link(self.directory / spooled.name, self.directory / name)
            sync_directory(self.files, self.directory)
        except OSError as error:
            if is_no_room(error):
                raise Full(f"no room left on the disk of {self.directory}") from error
            raise StorageError(f"a spool file cannot be linked: {error}") from error
        return replace(spooled, name=name)

    def remove(self, name: str) -> None:
        """Remove a content that nothing names any more; one that is gone is fine."""
        try:
            self.files.unlink(self.directory / name)
        except FileNotFoundError:
            return

    def check_room(self) -> None:
        """Full where the disk is at its reserve."""
        free = os.statvfs(self.directory)
        if free.f_bavail * free.f_frsize < self.reserve_octets:
            raise Full(f"less than {self.reserve_octets} octets are free on the disk of {self.directory}")


class SpoolWriter:
    """One large content being received: write, then finish or discard."""

    def __init__(self, spool: Spool) -> None:
        spool.check_room()
        self._spool = spool
        self._name = ids.new("spl")
        self._path = spool.directory / (UNFINISHED + self._name)
        self._digest = hashlib.sha256()
        self._unchecked = 0
        self.octets = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd: int | None = None
        self._fd = self._guard(lambda: spool.files.open(self._path, flags, 0o600))

    def write(self, octets: Octets) -> None:
        """Append octets; Full where the disk is, with the file discarded."""
        if self._fd is None:
            raise StorageError("this spool file is finished")
        self._unchecked += len(octets)
        if self._unchecked >= _CHECK_OCTETS:
            self._unchecked = 0
            try:
                self._spool.check_room()
            except Full:
                self.discard()
                raise
        fd = self._fd
        self._guard(lambda: write_all(self._spool.files, fd, [octets]))
        self._digest.update(octets)
        self.octets += len(octets)

    def finish(self) -> Spooled:
        """Put the file and its name on stable storage and return what a record says of it."""
        if self._fd is None:
            raise StorageError("this spool file is finished")
        self._guard(self._sync)
        return Spooled(name=self._name, octets=self.octets, sha256=self._digest.hexdigest())

    def discard(self) -> None:
        """Remove the file, finished or not."""
        name = self._name
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            name = self._path.name
        try:
            self._spool.remove(name)
        except OSError as error:
            # The next start removes what no record names.
            _log.warning("%s is left in the spool: %s", name, error)

    def _sync(self) -> None:
        files, fd = self._spool.files, self._fd
        assert fd is not None
        files.fsync(fd)
        files.rename(self._path, self._spool.path(self._name))
        sync_directory(files, self._spool.directory)
        files.close(fd)
        self._fd = None

    def _guard(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except OSError as error:
            self.discard()
            if is_no_room(error):
                raise Full(f"no room left on the disk of {self._spool.directory}") from error
            raise StorageError(f"a spool file cannot be written: {error}") from error
