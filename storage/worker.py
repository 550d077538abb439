"""A process beside this one that renders messages and writes their files, when there are many.

Owns that process and both ends of the talk with it: one request and one answer
a batch, so that apply takes the interpreter's lock twice a batch instead of
several times a message. The process reads records from the segment files, ends
with its parent, and keeps the data directory locked for as long as it lives.
It is started when it is first needed, and whatever goes wrong with it, apply
does the same work itself.
"""

import ctypes
import hashlib
import importlib
import json
import logging
import marshal
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from storage import codec, rendition
from storage.codec import Encoded
from storage.errors import StorageError
from storage.journal import Journaled
from storage.maildir import Maildir
from storage.placing import Location, Placing, Work
from storage.records import Accepted, Rendered, Spooled
from storage.rendition import Prepared, prepare
from storage.spool import Spool

Render = Callable[[bytes], Rendered]

# Below this many records at once, apply is quicker alone.
LEAST_RECORDS = 4
# A worker that fails so often in a row is not started again.
FAILURES_LIMIT = 3
_LENGTH = struct.Struct("<I")
_PR_SET_PDEATHSIG = 1

_log = logging.getLogger(__name__)


class WorkerFailed(StorageError):
    """The worker could not do a batch, or is gone; what it made so far lies where it belongs."""


def importable(render: Render) -> str | None:
    """Return a function's name as another process can import it, None where it cannot."""
    module, name = getattr(render, "__module__", "__main__"), getattr(render, "__qualname__", "<>")
    found = getattr(sys.modules.get(module), name, None)
    return f"{module}:{name}" if module != "__main__" and found is render else None


class Worker:
    """This process's end."""

    def __init__(self, *, placing: Placing, render: Render, keep_open: Sequence[int]) -> None:
        self._settings = {
            "render": importable(render),
            "mail": str(placing.maildir.root),
            "spool": str(placing.spool.directory),
            "outbox": str(placing.outbox),
            "aside": str(placing.aside),
            "instance": placing.instance,
        }
        self._keep_open = tuple(keep_open)
        self._failures = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def is_usable(self) -> bool:
        """Return whether a batch may be given to it."""
        return self._settings["render"] is not None and self._failures < FAILURES_LIMIT

    def do(self, batch: Sequence[Journaled], locations: Sequence[Sequence[Location | None]]) -> list[Work]:
        """Have a batch rendered and placed; WorkerFailed where that was not done, or not whole."""
        request = [
            (str(item.segment), item.offset, item.sequence, [_pack_location(found) for found in places])
            for item, places in zip(batch, locations, strict=True)
        ]
        try:
            if self._socket is None:
                self._start()
            assert self._socket is not None
            _send(self._socket, marshal.dumps(request))
            answer: tuple[str | None, list[Any]] = marshal.loads(_receive(self._socket))  # noqa: S302 - from our own process
        except (OSError, EOFError, ValueError) as error:
            self.close()
            self._failures += 1
            raise WorkerFailed(f"the apply worker ended: {error or type(error).__name__}") from error
        problem, results = answer
        if problem is not None:
            raise WorkerFailed(problem)
        self._failures = 0
        return [_unpack_work(*parts) for parts in zip(batch, locations, results, strict=True)]

    def close(self) -> None:
        """End the process, at once: what it leaves unfinished is done again by name."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        settings = json.dumps(self._settings | {"parent": os.getpid(), "socket": theirs.fileno()})
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, a module of ours
                [sys.executable, "-P", "-m", "storage.worker", settings],
                stdin=subprocess.DEVNULL,
                env=environment,
                pass_fds=(theirs.fileno(), *self._keep_open),
            )
        self._socket = ours


def _pack_location(location: Location | None) -> tuple[str, int, str, str] | None:
    if location is None:
        return None
    return location.mailbox_id, location.folder_id, location.folder, location.directory


def _unpack_work(item: Journaled, locations: Sequence[Location | None], result: tuple[Any, ...]) -> Work:
    rendition_row, described, references, digest, lost, unrendered = result
    record = item.encoded.record
    return Work(
        sequence=item.sequence,
        encoded=item.encoded,
        applied=item.applied,
        octets=item.octets,
        prepared=Prepared(rendition_row, described, references),
        digest=digest,
        content_octets=codec.content_octets(record.content),
        locations=[None if index in lost else found for index, found in enumerate(locations)],
        unrendered=unrendered,
    )


def _send(connection: socket.socket, octets: bytes) -> None:
    connection.sendall(_LENGTH.pack(len(octets)) + octets)


def _receive(connection: socket.socket) -> bytes:
    return _receive_exactly(connection, _LENGTH.unpack(_receive_exactly(connection, _LENGTH.size))[0])


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


class Segments:
    """The segment file that records are read from, mapped while batches come from it."""

    def __init__(self) -> None:
        self._path = ""
        self._octets: mmap.mmap | None = None

    def record(self, path: str, offset: int) -> Accepted:
        """Return the record at an offset; ValueError where there is none."""
        octets = self._map(path)
        head = codec.read_header(octets[offset : offset + codec.HEADER_OCTETS])
        if head is None:
            octets = self._map(path, is_grown=True)
            head = codec.read_header(octets[offset : offset + codec.HEADER_OCTETS])
        if head is None:
            raise ValueError(f"no record at {offset} of {path}")
        start = offset + codec.HEADER_OCTETS
        end = start + head.payload_octets
        if len(octets) < end:
            octets = self._map(path, is_grown=True)
        # A view: the content is copied once, and not with all that stands before it.
        with memoryview(octets) as view, view[start:end] as payload:
            return codec.decode_files(head, payload)

    def _map(self, path: str, *, is_grown: bool = False) -> mmap.mmap:
        if self._octets is None or path != self._path or is_grown:
            if self._octets is not None:
                self._octets.close()
            with open(path, "rb") as file:
                self._octets = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._path = path
        return self._octets


def content_digest(kept: bytes | Spooled, octets: bytes) -> bytes:
    """Return the SHA-256 of a content, which is known already where it was spooled."""
    return bytes.fromhex(kept.sha256) if isinstance(kept, Spooled) else hashlib.sha256(octets).digest()


def render_safely(render: Render, content: bytes) -> tuple[Rendered, str | None]:
    """Return a content's rendering, or the plain one and why there is no better."""
    try:
        return render(content), None
    except Exception as error:  # noqa: BLE001 - rendering must not stand before delivery
        _log.exception("a message cannot be rendered")
        return rendition.plain(content), type(error).__name__


def work_on(
    request: Sequence[tuple[str, int, int, list[Any]]],
    *,
    placing: Placing,
    render: Render,
    segments: Segments,
) -> list[tuple[Any, ...]]:
    """Render and place a batch; for each record its rendering, digest, and the targets put aside."""
    results = []
    for path, offset, sequence, locations in request:
        record = segments.record(path, offset)
        content = record.content
        if isinstance(content, Spooled):
            content = placing.spool.path(content.name).read_bytes()
        rendered, unrendered = render_safely(render, content)
        prepared = prepare(rendered)
        work = Work(
            sequence=sequence,
            encoded=Encoded(record, "", "", "", "", 0, b"", b""),
            applied=None,
            octets=0,
            prepared=prepared,
            digest=content_digest(record.content, content),
            content_octets=len(content),
            locations=[None if found is None else Location(*found) for found in locations],
        )
        placing.place(work, None)
        lost = [index for index, found in enumerate(work.locations) if found is None]
        results.append(
            (prepared.rendition, prepared.described, prepared.references, work.digest, lost, unrendered)
        )
    return results


def main() -> None:
    """Serve one parent until it goes away."""
    settings = json.loads(sys.argv[1])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != settings["parent"]:
        return
    # The parent decides when it ends, whatever a terminal or a service manager sends to all.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    module, name = settings["render"].split(":")
    render: Render = getattr(importlib.import_module(module), name)
    placing = Placing(
        maildir=Maildir(Path(settings["mail"])),
        spool=Spool(Path(settings["spool"]), reserve_octets=0, files=os),
        outbox=Path(settings["outbox"]),
        aside=Path(settings["aside"]),
        instance=settings["instance"],
        files=os,
    )
    segments = Segments()
    with socket.socket(fileno=settings["socket"]) as connection:
        while True:
            try:
                request = marshal.loads(_receive(connection))  # noqa: S302 - from our own parent
            except (EOFError, ConnectionError):
                return
            try:
                answer: tuple[str | None, list[Any]] = (
                    None,
                    work_on(request, placing=placing, render=render, segments=segments),
                )
            except (OSError, ValueError) as error:
                answer = (f"{type(error).__name__}: {error}", [])
            _send(connection, marshal.dumps(answer))


if __name__ == "__main__":
    main()
