"""Segment files of the journal: named by their first sequence, written once, read back with suspicion.

Owns their names, their making out of files that are done with (overwriting written
blocks makes fdatasync cheaper than growing a file, since the file system's own
journal need not commit), their removal, and the reading of what a crash left: whole
records, damage between them, a torn end. Behind the records of a segment may lie
zeros, or what an earlier segment held, told by its lower sequences.
"""

import mmap
import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from storage import codec
from storage.errors import Corrupt
from storage.files import Files, sync_directory
from storage.records import Accepted

SUFFIX = ".journal"
SPARE = "spare"  # a file of zeros, which the next segment is made of
STALE_SUFFIX = ".stale"  # a file with applied records, which under load is taken as it is
STALE_LIMIT = 2
_RECYCLED = "recycled"
_ZEROS = bytes(1 << 20)


@dataclass(slots=True)
class Segment:
    """A segment being written, or waiting until all of it is applied.

    spooled: names it refers to; is_stale: whether an earlier segment's records lie behind its own.
    """

    path: Path
    first: int
    fd: int
    is_stale: bool = False
    position: int = 0
    last: int = 0
    spooled: list[str] = field(default_factory=list)


def segment_path(directory: Path, first: int) -> Path:
    """Return the path of the segment whose first record has this sequence."""
    return directory / f"{first:020d}{SUFFIX}"


def list_segments(directory: Path) -> list[Path]:
    """Return the segments of a journal in their order."""
    return sorted(path for path in directory.glob("*" + SUFFIX) if path.stem.isdigit())


def _list_stale(directory: Path) -> list[Path]:
    return sorted(directory.glob("*" + STALE_SUFFIX))


def open_segment(files: Files, directory: Path, *, first: int, octets: int) -> Segment:
    """Make a segment of at least `octets` and put its name on stable storage; OSError where it cannot be."""
    path = segment_path(directory, first)
    for used in (directory / SPARE, *_list_stale(directory)):
        if _size(used) >= octets and _take(files, used, path):
            fd = files.open(path, os.O_WRONLY | os.O_CLOEXEC)
            is_stale = used.suffix == STALE_SUFFIX
            break
    else:
        is_stale = False
        fd = files.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, octets)
        except OSError:
            files.close(fd)
            files.unlink(path)
            raise
    sync_directory(files, directory)
    return Segment(path, first, fd, is_stale=is_stale)


def _take(files: Files, path: Path, name: Path) -> bool:
    """Rename a file that another thread may want as well; False where that one was first."""
    try:
        files.rename(path, name)
    except FileNotFoundError:
        return False
    return True


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def abandon(files: Files, segment: Segment) -> None:
    """Take a segment that holds no record of its own away."""
    files.close(segment.fd)
    files.unlink(segment.path)


def make_spare(files: Files, directory: Path, octets: int) -> None:
    """Make sure that there is a spare of zeros, and nothing stale; OSError where it cannot be."""
    recycled = directory / _RECYCLED
    if not (directory / SPARE).exists():
        for path in _list_stale(directory):
            # Under another name first: what is blanked must never be a segment.
            if _take(files, path, recycled):
                written = int(path.stem.rpartition("-")[2])
                break
        else:
            recycled.unlink(missing_ok=True)
            written = octets
        _blank(files, recycled, written)
        files.rename(recycled, directory / SPARE)
    forget_stale(files, directory)


def _blank(files: Files, path: Path, octets: int) -> None:
    fd = files.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        at = 0
        while at < octets:
            at += files.pwrite(fd, _ZEROS[: octets - at], at)
        files.fdatasync(fd)
    finally:
        files.close(fd)


def recycle(files: Files, directory: Path, segment: Segment) -> None:
    """Take a segment out of the journal; its file waits to be the next one, unless enough do."""
    if len(_list_stale(directory)) >= STALE_LIMIT:
        files.unlink(segment.path)
    else:
        # Its name says how far it is written, for whoever blanks it.
        octets = segment.path.stat().st_size if segment.is_stale else segment.position
        name = f"{segment.path.stem}-{octets}{STALE_SUFFIX}"
        files.rename(segment.path, segment.path.with_name(name))


def forget_stale(files: Files, directory: Path) -> None:
    """Remove what segments left behind: it holds mail."""
    for path in _list_stale(directory):
        with suppress(FileNotFoundError):  # the journal took it for a segment
            files.unlink(path)


@dataclass(frozen=True, slots=True)
class Found:
    """A whole record."""

    sequence: int
    record: Accepted


@dataclass(frozen=True, slots=True)
class Damage:
    """Octets between records, or behind them in a segment that is not the last, that are no record."""

    path: Path
    offset: int
    octets: bytes


@dataclass(frozen=True, slots=True)
class TornEnd:
    """Where the unacknowledged end of the last segment begins."""

    path: Path
    offset: int


def read_segment(
    path: Path, *, instance: bytes, after: int, behind: int | None
) -> Iterator[Found | Damage | TornEnd]:
    """Yield what a segment holds, in order.

    after: the highest sequence before it; behind: the first sequence of the segment behind it, None
    where it is the last. Corrupt where a record is of an unknown version: it may not be skipped.
    """
    if path.stat().st_size == 0:
        return
    after = max(after, int(path.stem) - 1)  # what is lower was an earlier segment's
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as octets:
        at = 0
        while at < len(octets):
            found = _record_at(octets, at, path, instance, after)
            if found is None:
                valid = _next_record(octets, at + 1, path, instance, after)
                if valid is None:
                    if behind != after + 1:
                        yield from _end(octets, at, path, is_last=behind is None)
                    return
                yield Damage(path, at, octets[at:valid])
                at = valid
                continue
            head, payload = found
            at += codec.HEADER_OCTETS + head.payload_octets
            after = head.sequence
            try:
                yield Found(head.sequence, codec.decode(head, payload))
            except ValueError:
                yield Damage(path, at - codec.HEADER_OCTETS - head.payload_octets, payload)


def _record_at(
    octets: mmap.mmap, at: int, path: Path, instance: bytes, after: int
) -> tuple[codec.Header, bytes] | None:
    head = codec.read_header(octets[at : at + codec.HEADER_OCTETS])
    if head is None or head.instance != instance or head.sequence <= after:
        return None
    if head.version != codec.VERSION:
        raise Corrupt(
            f"{path} holds records of version {head.version}, which this program does not know. "
            "Start the version of Mailagents that wrote it, or a later one."
        )
    start = at + codec.HEADER_OCTETS
    payload = octets[start : start + head.payload_octets]
    if len(payload) != head.payload_octets or zlib.crc32(payload) != head.checksum:
        return None
    return head, payload


def _next_record(octets: mmap.mmap, at: int, path: Path, instance: bytes, after: int) -> int | None:
    for beginning in _magics(octets, at):
        if _record_at(octets, beginning, path, instance, after) is not None:
            return beginning
    return None


def _magics(octets: mmap.mmap, at: int) -> Iterator[int]:
    """Yield where the magic stands, from `at` on.

    In copies: mmap.find before Python 3.11.5 looks one octet past the mapping, which ends the process.
    """
    step = len(_ZEROS)
    for start in range(at, len(octets), step):
        chunk = octets[start : start + step + len(codec.MAGIC) - 1]
        found = chunk.find(codec.MAGIC)
        while found >= 0:
            yield start + found
            found = chunk.find(codec.MAGIC, found + 1)


def _end(octets: mmap.mmap, at: int, path: Path, *, is_last: bool) -> Iterator[Damage | TornEnd]:
    end = _written_end(octets, at)
    if end == at:
        return
    if is_last:
        yield TornEnd(path, at)
    else:
        yield Damage(path, at, octets[at:end])


def _written_end(octets: mmap.mmap, at: int) -> int:
    """Return where the zeros behind a segment's last written octet begin, `at` if there are only zeros."""
    end = len(octets)
    while end > at:
        start = max(at, end - len(_ZEROS))
        chunk = octets[start:end]
        if chunk != _ZEROS[: end - start]:
            return start + len(chunk.rstrip(b"\0"))
        end = start
    return at
