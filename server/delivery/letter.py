"""The file of a queued message as an attempt needs it: facts first, then octets in chunks.

Owns reading the spool file: small ones whole, large ones scanned once and read
again piece by piece. Refuses a message with bare CR or LF, which another
server could take for two, unless it came as binary: then its binary parts go
encoded. RFC 5321 2.3.8, RFC 6532 3, RFC 3030 3.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from server.mail.header import fields
from server.mail.recoding import recode

if TYPE_CHECKING:
    from server.threads import Threads

SMALL_OCTETS = 256 * 1024
CHUNK_OCTETS = 256 * 1024
_TLS_OPTIONAL = b"tls-required"


@dataclass(frozen=True, slots=True)
class Letter:
    """A message's facts. whole: its octets where it is small. eight_bit: any octet over 127.

    utf8_header: such octets before the first empty line. bare_ends: a CR or LF that stands alone.
    is_recoded: what goes out is the file with its binary parts encoded; octets is the size of that.
    ends_whole: the last line has its CRLF. tls_optional: its header says `TLS-Required: No` (RFC 8689 5).
    """

    path: Path
    octets: int
    eight_bit: bool
    utf8_header: bool
    bare_ends: bool
    whole: bytes | None
    is_recoded: bool = False
    ends_whole: bool = True
    tls_optional: bool = False

    def chunks(self, threads: Threads) -> Callable[[], AsyncIterator[bytes]]:
        """Return what gives the octets in order, from memory or by the file threads."""

        async def from_memory() -> AsyncIterator[bytes]:
            assert self.whole is not None
            yield self.whole

        async def from_file() -> AsyncIterator[bytes]:
            file: BinaryIO = await threads.run(open, self.path, "rb")
            try:
                while chunk := await threads.run(file.read, CHUNK_OCTETS):
                    yield chunk
            finally:
                await threads.run(file.close)

        async def from_recoding() -> AsyncIterator[bytes]:
            mapped = await threads.run(_map, self.path)
            try:
                pieces = recode(mapped)
                while piece := await threads.run(_gather, pieces):
                    yield piece
            finally:
                mapped.close()

        if self.is_recoded:
            return from_recoding
        return from_file if self.whole is None else from_memory


def recoded(letter: Letter) -> Letter:
    """Return a binary message as it can be sent to every server; blocks; raises Unencodable."""
    octets, eight_bit = 0, False
    with _map(letter.path) as mapped:
        for piece in recode(mapped):
            octets += len(piece)
            eight_bit = eight_bit or not piece.isascii()
    return replace(letter, octets=octets, eight_bit=eight_bit, bare_ends=False, whole=None, is_recoded=True)


def _map(path: Path) -> mmap:
    with path.open("rb") as file:
        return mmap(file.fileno(), 0, access=ACCESS_READ)


def _gather(pieces: Iterator[bytes]) -> bytes:
    """Return the next pieces together: a message of many parts has many short ones."""
    gathered, octets = [], 0
    for piece in pieces:
        gathered.append(piece)
        octets += len(piece)
        if octets >= CHUNK_OCTETS:
            break
    return b"".join(gathered)


def letter_of(octets: bytes, path: Path) -> Letter:
    """Return the facts of a message that is at hand; path: where it lies too."""
    header = octets[: _header_octets(octets)]
    return Letter(
        path=path,
        octets=len(octets),
        eight_bit=not octets.isascii(),
        utf8_header=not header.isascii(),
        bare_ends=_has_bare_ends(octets) or octets.endswith(b"\r"),
        whole=octets,
        ends_whole=octets.endswith(b"\r\n"),
        tls_optional=_TLS_OPTIONAL in header.lower() and _is_tls_optional(header),
    )


def read_letter(path: Path) -> Letter:
    """Return a message's facts; blocks on the disk. Raises OSError where the file is not to be read."""
    with path.open("rb") as file:
        first = file.read(SMALL_OCTETS + 1)
        if len(first) <= SMALL_OCTETS:
            return letter_of(first, path)
        header = first[: _header_octets(first)]
        octets, eight_bit, bare_ends = 0, False, False
        chunk, carried, ending = first, b"", b""
        while chunk:
            octets += len(chunk)
            ending = (ending + chunk[-2:])[-2:]
            eight_bit = eight_bit or not chunk.isascii()
            bare_ends = bare_ends or _has_bare_ends(carried + chunk)
            # A CR at the end is judged with what follows it.
            carried = b"\r" if chunk.endswith(b"\r") else b""
            chunk = file.read(CHUNK_OCTETS)
    return Letter(
        path=path,
        octets=octets,
        eight_bit=eight_bit,
        utf8_header=not header.isascii(),
        bare_ends=bare_ends or bool(carried),
        whole=None,
        ends_whole=ending == b"\r\n",
        tls_optional=_TLS_OPTIONAL in header.lower() and _is_tls_optional(header),
    )


def _is_tls_optional(header: bytes) -> bool:
    """RFC 8689 5: the one value that the field may have; where it comes twice it says nothing."""
    found = [one.value.lower() for one in fields(header) if one.name.lower() == b"tls-required"]
    return found == [b"no"]


def _header_octets(first: bytes) -> int:
    end = first.find(b"\r\n\r\n")
    return len(first) if end < 0 else end


def _has_bare_ends(octets: bytes) -> bool:
    pairs = octets.count(b"\r\n")
    returns = octets.count(b"\r") - octets.endswith(b"\r")
    return octets.count(b"\n") != pairs or returns != pairs
