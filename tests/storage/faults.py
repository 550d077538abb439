"""The seam at which tests stop or fail storage: the namespace of file system calls, replaced."""

import errno
import os
import signal
from collections.abc import Callable

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


def kill_at(point: int) -> Callable[[], None]:
    """Return what ends this process without any clean-up when it is called for the given time."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count == point:
            os.kill(os.getpid(), signal.SIGKILL)

    return step
