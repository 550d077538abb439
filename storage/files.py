"""The file system calls that durability rests on, as one replaceable namespace.

Owns nothing but their names: the `os` module is the implementation. Journal,
spool and apply take it as an argument, so that a test can stop the process,
or fail the call, at each of them; production pays nothing for it.
"""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

PathLike = str | Path
Octets = bytes | bytearray | memoryview


class Files(Protocol):
    """What storage calls of `os` where a crash between two calls matters."""

    def open(self, path: Any, flags: int, mode: int = ..., /) -> int:
        """As os.open."""
        ...

    def close(self, fd: int, /) -> None:
        """As os.close."""
        ...

    def write(self, fd: int, data: Any, /) -> int:
        """As os.write."""
        ...

    def writev(self, fd: int, buffers: Any, /) -> int:
        """As os.writev."""
        ...

    def pwritev(self, fd: int, buffers: Any, offset: int, /) -> int:
        """As os.pwritev."""
        ...

    def pwrite(self, fd: int, data: Any, offset: int, /) -> int:
        """As os.pwrite."""
        ...

    def fsync(self, fd: int, /) -> None:
        """As os.fsync."""
        ...

    def fdatasync(self, fd: int, /) -> None:
        """As os.fdatasync."""
        ...

    def ftruncate(self, fd: int, length: int, /) -> None:
        """As os.ftruncate."""
        ...

    def link(self, source: Any, target: Any, /) -> None:
        """As os.link."""
        ...

    def rename(self, source: Any, target: Any, /) -> None:
        """As os.rename."""
        ...

    def unlink(self, path: Any, /) -> None:
        """As os.unlink."""
        ...


_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


def is_no_room(error: OSError) -> bool:
    """Return whether the disk or a quota on it is full."""
    return error.errno in _NO_ROOM


def sync_directory(files: Files, path: PathLike) -> None:
    """Put a directory's own entries on stable storage; OSError where that fails."""
    fd = files.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        files.fsync(fd)
    finally:
        files.close(fd)


def put(path: Path, octets: bytes, *, mode: int = 0o600) -> None:
    """Give a small file its content, whole and on stable storage before the name is; OSError."""
    pending = path.with_name(path.name + ".new")
    with open(os.open(pending, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode), "wb") as file:
        file.write(octets)
        file.flush()
        os.fsync(file.fileno())
    os.replace(pending, path)
    sync_directory(os, path.parent)


def write_all(files: Files, fd: int, buffers: Sequence[Octets], offset: int | None = None) -> int:
    """Write all buffers in their order, whatever the kernel takes at once; return the octets.

    offset: where in the file; None: at the descriptor's own place.
    """
    waiting = [memoryview(buffer) for buffer in buffers if len(buffer)]
    total = sum(map(len, waiting))
    written = 0
    while written < total:
        if offset is None:
            took = files.writev(fd, waiting[:IOV_MAX])
        else:
            took = files.pwritev(fd, waiting[:IOV_MAX], offset + written)
        written += took
        _drop(waiting, took)
    return total


IOV_MAX = min(os.sysconf("SC_IOV_MAX"), 1024)


def _drop(waiting: list[memoryview], octets: int) -> None:
    done = 0
    while done < len(waiting) and octets >= len(waiting[done]):
        octets -= len(waiting[done])
        done += 1
    del waiting[:done]
    if octets:
        waiting[0] = waiting[0][octets:]
