"""What scanners are given: a message with its session, its octets in pieces.

Owns the one open file of a spooled message for all of its scans. Memory holds one piece
a scan, whatever the message's size.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from storage.records import Envelope, Peer, Verdict

if TYPE_CHECKING:
    from server.threads import Threads

PIECE_OCTETS = 128 << 10


class Octets(Protocol):
    """A message's octets, read as often as asked."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def pieces(self) -> AsyncIterator[bytes | memoryview]:
        """Yield them in order; OSError."""
        ...


class Held:
    """Octets in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.count = len(content)

    async def pieces(self) -> AsyncIterator[bytes | memoryview]:
        """Yield them without copying."""
        view = memoryview(self._content)
        for start in range(0, self.count, PIECE_OCTETS):
            yield view[start : start + PIECE_OCTETS]

    async def close(self) -> None:
        """Nothing is open."""


class Lying:
    """Octets in a file, which may lose its name while it is read."""

    def __init__(self, threads: Threads, descriptor: int, count: int) -> None:
        self._threads = threads
        self._descriptor = descriptor
        self.count = count

    @classmethod
    async def open(cls, threads: Threads, path: Path, count: int) -> Lying:
        """Open the file; OSError."""
        return cls(threads, await threads.run(os.open, path, os.O_RDONLY | os.O_CLOEXEC), count)

    async def pieces(self) -> AsyncIterator[bytes | memoryview]:
        """Yield them, each read in a thread."""
        at = 0
        while at < self.count:
            piece = await self._threads.run(os.pread, self._descriptor, PIECE_OCTETS, at)
            if not piece:
                raise OSError(f"the file ends at {at} of {self.count} octets")
            yield piece
            at += len(piece)

    async def close(self) -> None:
        """Close the file."""
        await self._threads.run(os.close, self._descriptor)


@dataclass(frozen=True, slots=True)
class Request:
    """One message to be scanned. queue_id: what the scanner's log may call it; user: the login's id."""

    peer: Peer
    envelope: Envelope
    octets: Octets
    queue_id: str = ""
    user: str = ""


class ScannerFault(Exception):
    """A scanner answered what is no answer."""


class Scanner(Protocol):
    """A program that judges messages."""

    @property
    def name(self) -> str:
        """'clamav' or 'rspamd'."""
        ...

    async def scan(self, request: Request) -> Verdict:
        """Return the verdict; OSError, ScannerFault. Has no deadline of its own."""
        ...
