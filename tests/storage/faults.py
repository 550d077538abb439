"""The seam at which tests stop or fail storage: the namespace of file system calls, replaced."""

import errno
import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

CALLS = (
    "open",
    "close",
    "write",
    "writev",
    "pwrite",
    "pwritev",
    "fsync",
    "fdatasync",
    "ftruncate",
    "link",
    "rename",
    "unlink",
)


class Watched:
    """`os` with something done before each call; before(name, arguments) may raise or kill."""

    def __init__(self, before: Callable[[str, tuple[object, ...]], None]) -> None:
        for name in CALLS:
            setattr(self, name, self._wrap(name, before))

    def _wrap(self, name: str, before: Callable[[str, tuple[object, ...]], None]):
        call = getattr(os, name)

        def watched(*arguments):
            before(name, arguments)
            return call(*arguments)

        return watched


class Failing(Watched):
    """`os` whose named calls fail with an error number while `armed` is true, for paths that match."""

    def __init__(self, *names: str, number: int = errno.EIO, times: int = 1 << 30) -> None:
        self.armed = False
        self.left = times
        self.seen = 0

        def before(name: str, arguments: tuple[object, ...]) -> None:
            if self.armed and name in names and self.left:
                self.left -= 1
                self.seen += 1
                raise OSError(number, os.strerror(number), str(arguments[0]))

        super().__init__(before)


def kill_at(point: int, sign: Path) -> Callable[[str], None]:
    """Return what ends this process without any clean-up when it is called for the given time.

    Each call names its step. sign: a file that tells, at that moment, how many steps there
    were and what the last of them were called.
    """
    count = 0
    latest: deque[str] = deque(maxlen=40)
    lock = threading.Lock()

    def step(name: str) -> None:
        nonlocal count
        # Several threads take steps: no two may share a number, and none may be passed over.
        with lock:
            count += 1
            latest.append(name)
            if count == point:
                sign.write_text(f"{count} {' '.join(latest)}")
                os.kill(os.getpid(), signal.SIGKILL)
                threading.Event().wait()  # the signal may reach another thread first

    return step
