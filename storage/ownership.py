"""Whose a data directory is: its layout, its locks, and the instances that it and the database name.

Owns the file `lock`, which one process holds for life where the database is
SQLite, and all share where it is PostgreSQL: there each process has a journal
of its own, named by its instance, whose lock it holds for life. The file
`instance` names the first; the database knows every one, so that a directory
and a database of different installations are never brought together. Also owns
syncing the file systems below the directory: what fails once is not believed again.
"""

import ctypes
import fcntl
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from sqlalchemy import Connection, insert, select

from storage import segments
from storage.db import Database
from storage.errors import Corrupt, StorageError
from storage.files import put
from storage.schema import journals, settings

# How long a start waits for what a killed process left to end.
ORPHAN_SECONDS = 5.0
_ORPHAN_PAUSE_SECONDS = 0.02
_INSTANCE_CHARACTERS = 8
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things lie below the data directory."""

    directory: Path

    @property
    def mail(self) -> Path:
        """Maildirs, one a mailbox."""
        return self.directory / "mail"

    @property
    def outbox(self) -> Path:
        """What the queue sends, one file a message."""
        return self.directory / "spool"

    @property
    def aside(self) -> Path:
        """What could not be delivered or read, for the operator."""
        return self.directory / "aside"

    def journal(self, instance: str) -> Path:
        """One instance's journal."""
        return self.directory / "journal" / instance

    def spool(self, instance: str) -> Path:
        """Large contents that the journal's records name."""
        return self.journal(instance) / "spool"


class Syncer:
    """Puts whole file systems on stable storage; the first failure is the last word until a restart."""

    def __init__(self, paths: list[Path]) -> None:
        self._fds: dict[int, int] = {}
        self._failed: StorageError | None = None
        for path in paths:
            device = path.stat().st_dev
            if device not in self._fds:
                # Kept open: the kernel reports errors of writing back since the descriptor was opened.
                self._fds[device] = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def sync(self) -> None:
        """Sync every file system that holds mail; StorageError where one fails or failed before."""
        if self._failed is not None:
            raise self._failed
        for fd in self._fds.values():
            if _libc.syncfs(fd) != 0:
                reason = os.strerror(ctypes.get_errno())
                self._failed = StorageError(
                    f"applied mail could not be synced ({reason}): the journal keeps it until a restart"
                )
                raise self._failed

    def close(self) -> None:
        """Close the descriptors."""
        while self._fds:
            os.close(self._fds.popitem()[1])


class Sharing(Enum):
    """Whether a process has a data directory to itself, or its journal alone."""

    ALONE = fcntl.LOCK_EX
    SHARED = fcntl.LOCK_SH


def lock(directory: Path, sharing: Sharing = Sharing.ALONE) -> int:
    """Take the directory, for this process alone or beside others; return the lock.

    StorageError where another process is in the way.
    """
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _try_lock(fd, sharing):
            raise StorageError(
                f"the data directory {directory} is in use by another Mailagents process "
                f"({_owner(fd)}): stop that one first"
            )
        owner = f"pid {os.getpid()}\n" if sharing is Sharing.ALONE else "one on PostgreSQL\n"
        os.ftruncate(fd, 0)
        os.pwrite(fd, owner.encode("ascii"), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def own(layout: Layout, instance: str) -> int | None:
    """Take an instance's journal for this process; return its lock, None where another process has it."""
    path = layout.journal(instance)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"pid {os.getpid()}\n".encode("ascii"), 0)
    return fd


@contextmanager
def turn(directory: Path) -> Iterator[None]:
    """Do what every process does at its start, and none beside another. Not to be nested."""
    fd = os.open(directory / "lock.start", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


class Sole:
    """A task that one process of a data directory has at a time; it is free again when that one ends."""

    def __init__(self, directory: Path, task: str) -> None:
        self._path = directory / f"lock.{task}"
        self._fd: int | None = None

    def take(self) -> bool:
        """Return whether this process has the task, by now or since before."""
        if self._fd is None:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return False
            self._fd = fd
        return True

    def release(self) -> None:
        """Leave the task to another process."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _try_lock(fd: int, sharing: Sharing) -> bool:
    pause = threading.Event()
    for _ in range(int(ORPHAN_SECONDS / _ORPHAN_PAUSE_SECONDS)):
        try:
            fcntl.flock(fd, sharing.value | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            # A killed owner's worker is being ended by the kernel: it holds the lock for a moment longer.
            if _is_running(_owner(fd)):
                return False
            pause.wait(_ORPHAN_PAUSE_SECONDS)
    return False


def _owner(fd: int) -> str:
    return os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown"


def _is_running(owner: str) -> bool:
    try:
        os.kill(int(owner.removeprefix("pid ")), 0)
    except ProcessLookupError:
        return False
    except (ValueError, PermissionError):
        return True
    return True


def claim(database: Database, layout: Layout) -> tuple[str, int, int]:
    """Return an instance that is this process's own from now on, how far it is applied, and its lock.

    For PostgreSQL: one that a process before left, the data directory's first before others, else a
    new one. Corrupt as agree.
    """
    with turn(layout.directory):
        first, _ = agree(database, layout)
        others = sorted(
            path.name for path in (layout.directory / "journal").iterdir() if is_instance(path.name)
        )
        known = dict.fromkeys([first, *others])
        for instance in (*known, _new_instance()):
            fd = own(layout, instance)
            if fd is not None:
                try:
                    applied = register(database, layout, instance, is_known=instance in known)
                    return instance, applied, fd
                except BaseException:
                    os.close(fd)
                    raise
    raise StorageError(f"every journal in {layout.directory} is taken, and so is a new one")


def is_instance(name: str) -> bool:
    """Return whether a name is one that instances bear."""
    return len(name) == _INSTANCE_CHARACTERS and set(name) <= set(_ALPHABET)


def register(database: Database, layout: Layout, instance: str, *, is_known: bool) -> int:
    """Return how far an instance's journal is applied, once no transaction of a dead owner can move it.

    is_known: whether its name was used before, even if the database does not know it any more.
    """
    return database.write(lambda connection: _applied(connection, layout, instance, is_known=is_known))


def _applied(connection: Connection, layout: Layout, instance: str, *, is_known: bool) -> int:
    query = select(journals.c.applied_sequence).where(journals.c.instance == instance)
    # The commit of a killed process may be under way in the database: it moves this row before any other.
    applied = connection.execute(query.with_for_update()).scalar()
    if applied is None:
        applied = _first_sequence(layout.journal(instance), is_known=is_known) - 1
        row = {"instance": instance, "applied_sequence": applied, "updated_at": time.time_ns() // 1000}
        connection.execute(insert(journals).values(row))
    return int(applied)


def agree(database: Database, layout: Layout) -> tuple[str, int]:
    """Return the instance of a data directory and how far its journal is applied, by file and database.

    Both are made where both are new. Corrupt where they belong to different installations.
    """
    path = layout.directory / "instance"
    named = path.read_text("ascii").strip() if path.exists() else None
    if named is not None and not is_instance(named):
        raise Corrupt(f"{path} does not hold an instance id: restore it from a backup")

    def settle(connection: Connection) -> tuple[str, int]:
        recorded = _recorded(connection, named)
        if named is not None and recorded is not None and named != recorded:
            raise Corrupt(
                f"the data directory {layout.directory} (instance {named}) and the database {database.place} "
                f"(instance {recorded}) do not belong together: check the database's address"
            )
        instance = named or recorded or _new_instance()
        if recorded is None:
            connection.execute(insert(settings).values(name=_setting(connection, instance), value=instance))
        return instance, _applied(connection, layout, instance, is_known=named is not None)

    instance, applied = database.write(settle)
    if named is None:
        put(path, f"{instance}\n".encode("ascii"), mode=0o644)
    return instance, applied


def _setting(connection: Connection, instance: str) -> str:
    # On PostgreSQL several machines may share the database, each with a journal of its own.
    return "instance" if connection.dialect.name == "sqlite" else f"instance:{instance}"


def _recorded(connection: Connection, named: str | None) -> str | None:
    if connection.dialect.name != "sqlite" and named is None:
        return None
    query = select(settings.c.value).where(settings.c.name == _setting(connection, named or ""))
    return connection.execute(query).scalar()


def _new_instance() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(_INSTANCE_CHARACTERS))


def _first_sequence(directory: Path, *, is_known: bool) -> int:
    """Return where a database that knows nothing of a journal begins.

    What the journal still holds is replayed. Without that, a known instance goes on
    above any sequence it can have used, since its files' names carry them.
    """
    left = segments.list_segments(directory)
    if left:
        return int(left[0].stem)
    return time.time_ns() // 1000 if is_known else 1
