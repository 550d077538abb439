"""A process beside this one that applies batches, when there are many records.

Owns that process and both ends of the talk with it: apply has it render a batch
and write its files, then lends it the database's turn to commit the rows. So
apply takes the interpreter's lock a few times a batch instead of several times a
message, and the loop goes on receiving. The process reads records from the
segment files (storage.worker_process), ends with its parent, and keeps the data
directory locked for as long as it lives. It is started when it is first needed,
and whatever goes wrong with it, apply does the same work itself.
"""

import marshal
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from storage.errors import StorageError
from storage.journal import Journaled
from storage.placing import Location, Placing
from storage.records import Placed
from storage.rendition import Render
from storage.transactions import Notice

# Below this many records or octets at once, apply is quicker alone.
LEAST_RECORDS = 4
LEAST_OCTETS = 1 << 20
# A worker that fails so often in a row is not started again.
FAILURES_LIMIT = 3
_LENGTH = struct.Struct("<I")


class WorkerFailed(StorageError):
    """The worker could not do a batch, or is gone; what it made so far lies where it belongs."""


def importable(render: Render) -> str | None:
    """Return a function's name as another process can import it, None where it cannot."""
    module, name = getattr(render, "__module__", "__main__"), getattr(render, "__qualname__", "<>")
    found = getattr(sys.modules.get(module), name, None)
    return f"{module}:{name}" if module != "__main__" and found is render else None


def is_worth_it(batch: Sequence[Journaled]) -> bool:
    """Return whether a batch is done sooner by another process."""
    if len(batch) >= LEAST_RECORDS:
        return True
    return len(batch) > 1 and sum(item.octets for item in batch) >= LEAST_OCTETS


class Worker:
    """This process's end. database: the URL with its password; origin: who its notices come from."""

    def __init__(
        self, *, placing: Placing, render: Render, database: str, origin: str, keep_open: Sequence[int]
    ) -> None:
        self._settings = {
            "render": importable(render),
            "mail": str(placing.maildir.root),
            "spool": str(placing.spool.directory),
            "outbox": str(placing.outbox),
            "aside": str(placing.aside),
            "instance": placing.instance,
            "database": database,
            "origin": origin,
        }
        self._keep_open = tuple(keep_open)
        self._failures = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def is_usable(self) -> bool:
        """Return whether a batch may be given to it."""
        return self._settings["render"] is not None and self._failures < FAILURES_LIMIT

    def place(self, batch: Sequence[Journaled], locations: Sequence[Sequence[Location | None]]) -> None:
        """Have a batch rendered and its files written; WorkerFailed where that was not done, or not whole."""
        request = [
            (
                str(item.segment),
                item.offset,
                item.sequence,
                item.encoded.text_octets,
                [_pack_location(found) for found in places],
            )
            for item, places in zip(batch, locations, strict=True)
        ]
        self._ask("place", request)

    def commit(self, at: int) -> tuple[list[tuple[Placed, ...]], list[Notice]]:
        """Have the rows of the batch placed last committed; return where its records went, and the news.

        The writer must rest meanwhile. After WorkerFailed the batch may be committed all the same.
        """
        placed, notices = self._ask("commit", at)
        self._failures = 0
        return (
            [tuple(Placed(*place) for place in places) for places in placed],
            [Notice(*notice) for notice in notices],
        )

    def close(self) -> None:
        """End the process, at once: what it leaves unfinished is done again by name."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _ask(self, verb: str, about: Any) -> Any:
        try:
            if self._socket is None:
                self._start()
            assert self._socket is not None
            send(self._socket, (verb, about))
            problem, answer = receive(self._socket)
        except (OSError, EOFError, ValueError) as error:
            self.close()
            self._failures += 1
            raise WorkerFailed(f"the apply worker ended: {error or type(error).__name__}") from error
        if problem is not None:
            raise WorkerFailed(problem)
        return answer

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        named = [str(theirs.fileno()), str(os.getpid())]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, a module of ours
                [sys.executable, "-P", "-m", "storage.worker_process", *named],
                stdin=subprocess.DEVNULL,
                env=environment,
                pass_fds=(theirs.fileno(), *self._keep_open),
            )
        self._socket = ours
        # Not among the arguments, which every user of the machine can read: a URL may hold a password.
        send(ours, self._settings)


def _pack_location(location: Location | None) -> tuple[str, int, str, str] | None:
    if location is None:
        return None
    return location.mailbox_id, location.folder_id, location.folder, location.directory


def send(connection: socket.socket, message: Any) -> None:
    """Send a message of plain Python values. OSError."""
    octets = marshal.dumps(message)
    connection.sendall(_LENGTH.pack(len(octets)) + octets)


def receive(connection: socket.socket) -> Any:
    """Wait for a message; EOFError where the other end is closed. OSError, ValueError."""
    octets = _receive_exactly(connection, _LENGTH.unpack(_receive_exactly(connection, _LENGTH.size))[0])
    return marshal.loads(octets)  # noqa: S302 - from our own parent or child


def _receive_exactly(connection: socket.socket, octets: int) -> bytes:
    received = connection.recv(octets, socket.MSG_WAITALL)
    if len(received) == octets:
        return received
    parts = [received]
    left = octets - len(received)
    while left:
        if not parts[-1]:
            raise EOFError("the other end is closed")
        parts.append(connection.recv(left, socket.MSG_WAITALL))
        left -= len(parts[-1])
    return b"".join(parts)
