"""What a disk may hold after a power cut, worked out from recorded calls.

Two kinds of file system: ORDERED is ext4 as it is mounted by default, whose names change in the order
of the calls and are kept up to some point; LOOSE keeps the names of each directory up to a point of its
own, as POSIX allows. In both, octets that were not synced may be there page by page, in any state
between what was synced and what was last written; a sync covers what had ended before it began.
"""

import os
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from tests.power.trace import Call

PAGE = 4096


class Kind(Enum):
    """The file systems that are modelled."""

    ORDERED = "ordered"
    LOOSE = "loose"


@dataclass
class Change:
    """A change of one file's octets: written at an offset, or, with octets None, a new size."""

    start: int
    end: int
    offset: int
    octets: bytes | None


@dataclass
class File:
    """A file by whatever names. base: its octets before the recording."""

    base: bytes = b""
    size: int = 0
    place: int = 0  # where the next write or copy without an offset goes
    changes: list[Change] = field(default_factory=list)
    syncs: list[tuple[int, int]] = field(default_factory=list)  # start and end of each

    def image(self, octets: bytearray, change: Change) -> bytearray:
        """Apply a change to octets."""
        if change.octets is None:
            del octets[change.offset :]
            octets.extend(bytes(change.offset - len(octets)))
        else:
            octets.extend(bytes(max(0, change.offset - len(octets))))
            octets[change.offset : change.offset + len(change.octets)] = change.octets
        return octets

    def latest(self) -> bytearray:
        """The octets as a running process sees them."""
        octets = bytearray(self.base)
        for change in self.changes:
            self.image(octets, change)
        return octets

    def after(self, cut: int, choose: Callable[[int], int]) -> bytes:
        """The octets after a cut; choose(n) picks one of 0…n: how many unsynced changes are there."""
        synced = max((start for start, end in self.syncs if end <= cut), default=-1)
        octets = bytearray(self.base)
        pending: list[Change] = []
        for change in self.changes:
            if change.start > cut:
                break
            if change.end <= synced and not pending:
                self.image(octets, change)
            else:
                pending.append(change)
        if not pending:
            return bytes(octets)
        count = choose(len(pending))
        old = bytes(octets)
        for change in pending[:count]:
            self.image(octets, change)
        for page in {page for change in pending[:count] for page in _pages(change)}:
            version = choose(count)
            begin, end = page * PAGE, min((page + 1) * PAGE, len(octets))
            kept = bytearray(old[begin:end].ljust(max(0, end - begin), b"\0"))
            for change in pending[:version]:
                _clip(kept, begin, change)
            octets[begin:end] = kept[: max(0, end - begin)]
        return bytes(octets)


def _pages(change: Change) -> range:
    if not change.octets:
        return range(0)
    return range(change.offset // PAGE, (change.offset + len(change.octets) - 1) // PAGE + 1)


def _clip(page: bytearray, begin: int, change: Change) -> None:
    if change.octets is None:
        if change.offset < begin + len(page):
            keep = max(0, change.offset - begin)
            page[keep:] = bytes(len(page) - keep)
        return
    first, last = max(begin, change.offset), min(begin + len(page), change.offset + len(change.octets))
    if first < last:
        page[first - begin : last - begin] = change.octets[first - change.offset : last - change.offset]


@dataclass(frozen=True)
class Naming:
    """A change of names. file: what gets the name new, None where it is a directory or goes."""

    start: int
    end: int
    old: str
    new: str
    file: File | None
    is_directory: bool

    @property
    def directory(self) -> str:
        """Whose entry it is."""
        return os.path.dirname(self.new or self.old)


@dataclass(frozen=True)
class _Sync:
    """Names made durable: those of a directory, those of a file, or all."""

    start: int
    end: int
    directory: str = ""
    file: File | None = None


Names = dict[str, File | None]  # None: a directory


class Recording:
    """Calls below a directory, on top of what lay there before."""

    def __init__(self, before: Path, root: str, calls: Sequence[Call]) -> None:
        self.root = root
        self.files: dict[str, File | None] = {}
        self.namings: list[Naming] = []
        self.syncs: list[_Sync] = []
        self.all_files: list[File] = []
        self._load(before)
        self.base: Names = dict(self.files)
        for call in calls:
            self._take(call)
        self.moments = sorted(
            {moment for one in self.namings for moment in (one.start, one.end)}
            | {change.end for file in self.all_files for change in file.changes}
            | {end for file in self.all_files for _, end in file.syncs}
        )

    def _load(self, before: Path) -> None:
        by_number: dict[int, File] = {}
        for path in sorted(before.rglob("*")):
            name = f"{self.root}/{path.relative_to(before)}"
            if path.is_dir():
                self.files[name] = None
            elif path.is_file():
                number = path.stat().st_ino
                octets = path.read_bytes()
                by_number.setdefault(number, File(octets, len(octets)))
                self.files[name] = by_number[number]
        self.all_files += by_number.values()

    # ---- taking calls in ----

    def _take(self, call: Call) -> None:
        act = getattr(self, f"_on_{call.name}", None)
        if act is not None:
            act(call)
        elif any(map(self._is_here, (*call.descriptors, *call.names))):
            raise NotImplementedError(f"the model does not know what {call.name} does")

    def _file(self, path: str) -> File | None:
        return self.files.get(path)

    def _is_here(self, *paths: str) -> bool:
        return all(path.startswith(self.root + "/") for path in paths)

    def _name(self, call: Call, old: str, new: str, *, file: File | None, is_directory: bool = False) -> None:
        self.namings.append(Naming(call.start, call.end, old, new, file, is_directory))
        apply_naming(self.files, self.namings[-1])

    def _on_openat(self, call: Call) -> None:
        path = call.opened
        if not self._is_here(path) or "O_DIRECTORY" in call.flags:
            return
        file = self._file(path)
        if file is None and "O_CREAT" in call.flags:
            file = File()
            self.all_files.append(file)
            self._name(call, "", path, file=file)
        if file is None:
            return
        if "O_TRUNC" in call.flags and file.size:
            self._resize(call, file, 0)
        file.place = file.size if "O_APPEND" in call.flags else 0

    def _write(self, call: Call, offset: int | None) -> None:
        file = self._file(call.path) if call.descriptors else None
        if file is None or not call.result:
            return
        at = file.place if offset is None else offset
        octets = call.octets[: call.result]
        assert len(octets) == call.result, "strace cut a text"
        self._change(call, file, at, octets)
        if offset is None:
            file.place = at + len(octets)

    def _change(self, call: Call, file: File, at: int, octets: bytes) -> None:
        file.changes.append(Change(call.start, call.end, at, octets))
        file.size = max(file.size, at + len(octets))

    def _resize(self, call: Call, file: File, size: int) -> None:
        file.changes.append(Change(call.start, call.end, size, None))
        file.size = size

    def _on_write(self, call: Call) -> None:
        self._write(call, None)

    _on_writev = _on_write

    def _on_pwrite64(self, call: Call) -> None:
        self._write(call, call.numbers[-1])

    _on_pwritev = _on_pwrite64

    def _on_pwritev2(self, call: Call) -> None:
        self._write(call, call.numbers[-2])

    def _on_ftruncate(self, call: Call) -> None:
        file = self._file(call.path)
        if file is not None:
            self._resize(call, file, call.numbers[-1])

    def _on_fallocate(self, call: Call) -> None:
        file = self._file(call.path)
        if file is not None:
            _, offset, octets = call.numbers[-3:]
            if offset + octets > file.size:
                self._resize(call, file, offset + octets)

    def _on_copy_file_range(self, call: Call) -> None:
        source, target = (self._file(path) for path in call.descriptors)
        if target is None:
            return
        assert source is not None
        octets = bytes(source.latest()[source.place : source.place + call.result])
        self._change(call, target, target.place, octets)
        source.place += call.result
        target.place += call.result

    def _sync_file(self, call: Call) -> None:
        if call.path in self.files or call.path == self.root:
            file = self._file(call.path)
            if file is None:
                self.syncs.append(_Sync(call.start, call.end, directory=call.path))
            else:
                file.syncs.append((call.start, call.end))
                self.syncs.append(_Sync(call.start, call.end, file=file))

    _on_fsync = _on_fdatasync = _sync_file

    def _on_syncfs(self, call: Call) -> None:
        if call.path == self.root or self._is_here(call.path):
            self.syncs.append(_Sync(call.start, call.end))
            for file in self.all_files:
                file.syncs.append((call.start, call.end))

    def _on_rename(self, call: Call) -> None:
        old, new = call.names
        if self._is_here(old, new):
            self._name(call, old, new, file=self._file(old), is_directory=self._file(old) is None)

    def _on_renameat2(self, call: Call) -> None:
        self._on_rename(call)

    def _on_link(self, call: Call) -> None:
        old, new = call.names
        if self._is_here(old, new):
            self._name(call, "", new, file=self._file(old))

    _on_linkat = _on_link

    def _on_unlink(self, call: Call) -> None:
        (name,) = call.names
        path = name if name.startswith("/") or not call.descriptors else f"{call.descriptors[0]}/{name}"
        if self._is_here(path) and path in self.files:
            self._name(call, path, "", file=None, is_directory=self.files[path] is None)

    _on_unlinkat = _on_rmdir = _on_unlink

    def _on_mkdir(self, call: Call) -> None:
        if self._is_here(call.names[0]):
            self._name(call, "", call.names[0], file=None, is_directory=True)

    # ---- after a cut ----

    def names_after(self, cut: int, kind: Kind, choose: Callable[[int], int]) -> Names:
        """Return the names that are there after a cut; choose(n): how many of n unsynced changes."""
        issued = [one for one in self.namings if one.start <= cut]
        groups = [issued]
        if kind is Kind.LOOSE:
            directories = dict.fromkeys(one.directory for one in issued)
            groups = [[one for one in issued if one.directory == name] for name in directories]
        kept: list[Naming] = []
        for group in groups:
            durable = self._durable(group, cut, kind)
            kept += group[: durable + choose(len(group) - durable)]
        names = dict(self.base)
        for one in sorted(kept, key=lambda one: one.end):
            apply_naming(names, one)
        return names

    def _durable(self, group: Sequence[Naming], cut: int, kind: Kind) -> int:
        """Return how many changes of names are kept in any case."""
        ends = [one.end for one in group]
        count = 0
        for sync in self.syncs:
            if sync.end > cut:
                continue
            covered = bisect_right(ends, sync.start)
            if sync.directory:
                concerned = [i for i in range(covered) if _is_in(group[i], sync.directory)]
            elif sync.file is None:
                concerned = [covered - 1]
            elif kind is Kind.ORDERED:
                concerned = [i for i in range(covered) if group[i].file is sync.file and not group[i].old]
            else:
                concerned = []
            count = max(count, *(place + 1 for place in concerned)) if concerned else count
        return count

    def build(self, place: Path, cut: int, kind: Kind, choose: Callable[[int], int]) -> None:
        """Write into an empty directory what may be there after a cut."""
        written: dict[int, Path] = {}
        place.mkdir(parents=True)
        for name, file in sorted(self.names_after(cut, kind, choose).items()):
            path = place / name[len(self.root) + 1 :]
            if name.endswith("-shm"):
                continue  # shared memory of SQLite, which it makes anew
            if file is None:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if id(file) in written:
                os.link(written[id(file)], path)
            else:
                path.write_bytes(file.after(cut, choose))
                written[id(file)] = path


def _is_in(naming: Naming, directory: str) -> bool:
    return directory in (os.path.dirname(naming.old), os.path.dirname(naming.new))


def apply_naming(names: Names, naming: Naming) -> None:
    """Change names as a call did."""
    if naming.is_directory and naming.old and naming.new:
        inside = [name for name in names if name == naming.old or name.startswith(naming.old + "/")]
        for name in inside:
            names[naming.new + name[len(naming.old) :]] = names.pop(name)
        return
    if naming.old and (names.get(naming.old) is naming.file or not naming.new):
        names.pop(naming.old, None)
    if naming.new:
        names[naming.new] = naming.file


def least(_count: int) -> int:
    """Nothing that was not synced is there."""
    return 0


def most(count: int) -> int:
    """All that was asked for is there."""
    return count


def some(dice: random.Random) -> Callable[[int], int]:
    """Any part of it is there."""
    return lambda count: dice.choice((0, count, dice.randint(0, count)))


def choosers(dice: random.Random) -> Iterator[Callable[[int], int]]:
    """Yield ways of choosing for ever."""
    while True:
        yield from (least, most, some(dice), some(dice), some(dice))
