"""The process that applies batches for its parent: renders, writes files, commits rows.

Owns one connection to the database, on which it writes only when its parent has
it commit, and the mapping of the segment that records are read from. Ends with
its parent. RFC 5322 messages are read by the render function that it is given
by name.
"""

import ctypes
import importlib
import mmap
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from storage import codec, engine, mishaps
from storage.codec import Encoded
from storage.maildir import Maildir
from storage.placing import Location, Placing, Work
from storage.records import Placed, Spooled
from storage.rendition import Render, content_digest, prepare, render_safely
from storage.rows import Batch, Statements
from storage.spool import Spool
from storage.transactions import Notice, Transactions
from storage.worker import receive, send

_PR_SET_PDEATHSIG = 1
# dataclasses.astuple copies what lies in the fields too, and takes five times as long.
_PLACED = attrgetter(*[field.name for field in fields(Placed)])
_NOTICE = attrgetter(*[field.name for field in fields(Notice)])

# Where a record lies: segment, offset, sequence, octets of its four texts, its targets' locations.
Request = tuple[str, int, int, tuple[int, int, int, int], list[Any]]


class Segments:
    """The segment file that records are read from, mapped while batches come from it."""

    def __init__(self) -> None:
        self._path = ""
        self._octets: mmap.mmap | None = None

    def record(self, path: str, offset: int, texts: tuple[int, int, int, int]) -> Encoded:
        """Return the record at an offset, as codec.decode_for_rows does; ValueError where there is none."""
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
            return codec.decode_for_rows(head, payload, texts)

    def _map(self, path: str, *, is_grown: bool = False) -> mmap.mmap:
        if self._octets is None or path != self._path or is_grown:
            if self._octets is not None:
                self._octets.close()
            with open(path, "rb") as file:
                self._octets = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._path = path
        return self._octets


class Servant:
    """Does what its parent asks, one thing after the other."""

    def __init__(self, *, placing: Placing, render: Render, transactions: Transactions, dialect: str) -> None:
        self._placing = placing
        self._render = render
        self._transactions = transactions
        self._statements = Statements(dialect)
        self._segments = Segments()
        self._works: list[Work] = []

    def place(self, batch: Sequence[Request]) -> None:
        """Render a batch and write its files; it is what commit is for then. OSError, ValueError."""
        self._works = []
        self._works = [self._place(*item) for item in batch]

    def commit(self, at: int) -> tuple[list[Any], list[Any]]:
        """Commit the rows of the batch placed last; return its places and notices. Raises what stopped it."""
        works, self._works = self._works, []
        for work in works:
            mishaps.note(work, self._placing, at=at)
        batch = Batch(
            works,
            instance=self._placing.instance,
            at=at,
            statements=self._statements,
            withdraw=self._placing.withdraw,
        )
        outcomes, notices = self._transactions.run([batch])
        placed, error = outcomes[0]
        if error is not None:
            raise error
        return [[_PLACED(place) for place in places] for places in placed], [_NOTICE(n) for n in notices]

    def _place(
        self, path: str, offset: int, sequence: int, texts: tuple[int, int, int, int], locations: list[Any]
    ) -> Work:
        encoded = self._segments.record(path, offset, texts)
        content = encoded.record.content
        if isinstance(content, Spooled):
            content = self._placing.spool.path(content.name).read_bytes()
        rendered, unrendered = render_safely(self._render, content)
        work = Work(
            sequence=sequence,
            encoded=encoded,
            applied=None,
            octets=0,
            prepared=prepare(rendered),
            digest=content_digest(encoded.record.content, content),
            content_octets=len(content),
            locations=[None if found is None else Location(*found) for found in locations],
            unrendered=unrendered,
        )
        self._placing.place(work, None)
        return work


def serve(connection: socket.socket) -> None:
    """Serve one parent until it goes away."""
    servant = _servant(receive(connection))
    while True:
        verb, about = receive(connection)
        answer: tuple[str | None, Any] = None, None
        try:
            if verb == "place":
                servant.place(about)
            else:
                answer = None, servant.commit(about)
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent does the batch itself
            answer = f"{type(error).__name__}: {error}", None
        send(connection, answer)


def _servant(settings: dict[str, str]) -> Servant:
    module, name = settings["render"].split(":")
    url = engine.parse_url(settings["database"])
    return Servant(
        placing=Placing(
            maildir=Maildir(Path(settings["mail"])),
            spool=Spool(Path(settings["spool"]), reserve_octets=0, files=os),
            outbox=Path(settings["outbox"]),
            aside=Path(settings["aside"]),
            instance=settings["instance"],
            files=os,
        ),
        render=getattr(importlib.import_module(module), name),
        transactions=Transactions(
            connect=engine.make_engine(url, engine.Access.WRITE).connect,
            translate=partial(engine.translate, place=engine.describe(url)),
            origin=settings["origin"],
        ),
        dialect=url.get_backend_name(),
    )


def main() -> None:
    """Run as a child: the arguments are the socket's descriptor and the parent's process id."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[2]):
        return
    # The parent decides when it ends, whatever a terminal or a service manager sends to all.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        try:
            serve(connection)
        except (EOFError, ConnectionError):
            return


if __name__ == "__main__":
    main()
