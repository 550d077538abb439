"""The files that apply makes: Maildir entries, the queue's copy, what is put aside.

Owns writing them (tmp first, then rename; links only between byte-identical
renditions), and telling whether one that is there already is right: length and
digest, under whatever name it bears now. Knows no rows and syncs nothing: the
checkpoint does, before the journal lets go of the record.

Maildir (tmp, new, cur; unique names, no lock).
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from storage.codec import Encoded
from storage.files import Files, write_all
from storage.folder_names import REJECTS
from storage.journal import Applied
from storage.maildir import SUBDIRECTORIES, Maildir, base_name, file_name, info, parse_name
from storage.records import Event, LocalTarget, Spooled
from storage.rendition import Prepared
from storage.spool import UNFINISHED, Spool

_TMP = SUBDIRECTORIES[0]
_CHUNK_OCTETS = 1 << 20
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
# What no second try changes: the folder's name is too long, or something else lies in its place.
_IMPOSSIBLE = frozenset({errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL})
_NOT_LINKED = frozenset({errno.EMLINK, errno.EXDEV, errno.EPERM, errno.ENOENT, errno.ENOTSUP})


@dataclass(frozen=True, slots=True)
class Location:
    """The folder that a local target's entry goes to, and its directory."""

    mailbox_id: str
    folder_id: int
    folder: str
    directory: str


@dataclass(frozen=True, slots=True)
class Name:
    """An entry's file: base name, 'new' or 'cur', and the info letters it bears."""

    base: str
    subdirectory: str
    mirrored: str

    def within(self, directory: str) -> str:
        """Return the file's path below its folder's directory."""
        return f"{directory}/{self.subdirectory}/{file_name(self.base, self.subdirectory, self.mirrored)}"


@dataclass(slots=True)
class Work:
    """One record on its way through apply. locations: by local target, None where it is put aside."""

    sequence: int
    encoded: Encoded
    applied: Applied | None
    octets: int
    prepared: Prepared
    digest: bytes
    content_octets: int
    locations: list[Location | None] = field(default_factory=list)
    names: list[Name] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    unrendered: str | None = None


@dataclass(frozen=True, slots=True)
class _Entry:
    """What one local target's file is made from."""

    encoded: Encoded
    target: LocalTarget
    location: Location
    name: Name


class Present:
    """Where wanted base names lie now, in directories that are listed once each when needed."""

    def __init__(self, wanted: Iterable[str]) -> None:
        self._wanted = frozenset(wanted)
        self._listed: dict[str, dict[str, Name]] = {}

    def find(self, directory: str, base: str) -> Name | None:
        """Return the present name of a file in new or cur, None where it is in neither."""
        if os.path.exists(f"{directory}/new/{base}"):
            return Name(base, "new", "")
        if directory not in self._listed:
            self._listed[directory] = dict(self._list(directory))
        return self._listed[directory].get(base)

    def _list(self, directory: str) -> Iterator[tuple[str, Name]]:
        for subdirectory in ("cur", "new"):
            with suppress(FileNotFoundError), os.scandir(f"{directory}/{subdirectory}") as entries:
                for entry in entries:
                    base, letters = parse_name(entry.name)
                    if base in self._wanted:
                        yield base, Name(base, subdirectory, letters)


class Placing:
    """Makes the files of records below one data directory."""

    def __init__(
        self, *, maildir: Maildir, spool: Spool, outbox: Path, aside: Path, instance: str, files: Files
    ) -> None:
        self.maildir = maildir
        self.spool = spool
        self.outbox = outbox
        self.aside = aside
        self.instance = instance
        self.files = files

    def bases(self, work: Work) -> list[str]:
        """Return the base names of a record's entries, by local target."""
        record = work.encoded.record
        return [
            base_name(at=record.accepted_at, sequence=work.sequence, index=index, instance=self.instance)
            for index in range(len(record.local))
        ]

    def expect(self, work: Work) -> None:
        """Set the names that place gives where nothing was there before."""
        letters = [info(target.flags) for target in work.encoded.record.local]
        work.names[:] = [
            Name(base, "cur" if mirrored else "new", mirrored)
            for base, mirrored in zip(self.bases(work), letters, strict=True)
        ]

    def place(self, work: Work, present: Present | None) -> None:
        """Make every file of a record and set its names; present: None where nothing can be there yet.

        OSError where a file cannot be written; what was made stays and is found again.
        """
        record = work.encoded.record
        self.expect(work)
        sources: dict[bytes, str] = {}
        for index, (target, location) in enumerate(zip(record.local, work.locations, strict=True)):
            if location is not None:
                entry = _Entry(work.encoded, target, location, work.names[index])
                try:
                    work.names[index] = self._place_entry(entry, present, sources)
                except OSError as error:
                    if error.errno not in _IMPOSSIBLE:
                        raise
                    location = work.locations[index] = None
            if location is None and target.folder != REJECTS:
                self._put_aside(work, target, index)
        if record.remote:
            self._place_outgoing(work.encoded, present)

    def withdraw(self, work: Work) -> None:
        """Remove the entries' files of a record that turned out to be applied under its id before."""
        for location, name in zip(work.locations, work.names, strict=True):
            if location is not None:
                with suppress(FileNotFoundError):
                    self.files.unlink(name.within(location.directory))

    def is_right(self, path: str, encoded: Encoded, prefix: bytes) -> bool:
        """Return whether a file holds prefix, trace and content, by length and digest."""
        front = prefix + encoded.record.trace
        content = encoded.record.content
        octets = len(front) + (content.octets if isinstance(content, Spooled) else len(content))
        try:
            if os.stat(path).st_size != octets:
                return False
            return _digest_file(path) == self._digest(encoded, front)
        except FileNotFoundError:
            return False

    def write_entry(self, encoded: Encoded, directory: str, name: Name, prefix: bytes) -> None:
        """Write an entry's file whole and give it its name, in place of what is there."""
        self._write(f"{directory}/{_TMP}/{name.base}", name.within(directory), encoded, prefix)

    def mend(self, encoded: Encoded, path: str, prefix: bytes) -> None:
        """Write what an entry's file should hold into the file itself, under whatever names it has.

        For recovery alone: the journal still has it, should this be cut short.
        """
        fd = self.files.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            octets = self._fill(fd, encoded, prefix)
            self.files.ftruncate(fd, octets)
        finally:
            self.files.close(fd)

    def set_aside(self, work: Work) -> Path:
        """Write a record's message into the directory for the operator; return its path."""
        path = self.aside / f"{work.encoded.record.message_id}.eml"
        self._write(str(path) + ".tmp", str(path), work.encoded, b"")
        return path

    def outgoing_is_right(self, encoded: Encoded) -> bool:
        """Return whether the queue's copy is whole."""
        return self.is_right(str(self.outbox / encoded.record.message_id), encoded, b"")

    def write_outgoing(self, encoded: Encoded) -> None:
        """Write the queue's copy: trace and content."""
        name = encoded.record.message_id
        self._write(f"{self.outbox}/{UNFINISHED}{name}", f"{self.outbox}/{name}", encoded, b"")

    def _place_entry(self, entry: "_Entry", present: Present | None, sources: dict[bytes, str]) -> Name:
        """Make one entry's file, or find it; sources: paths by the prefixes they were written with."""
        prefix, directory = entry.target.prefix, entry.location.directory
        found = None if present is None else present.find(directory, entry.name.base)
        name = found or entry.name
        path = name.within(directory)
        if present is not None:
            # After a power cut directories that were new may have come back in part.
            self.maildir.ensure(entry.location.mailbox_id, entry.location.folder)
        if found is None or not self.is_right(path, entry.encoded, prefix):
            source = None if found else sources.get(prefix)
            if source is None or not self._link(entry.location, source, path):
                self._with_folder(
                    entry.location, lambda: self.write_entry(entry.encoded, directory, name, prefix)
                )
        sources.setdefault(prefix, path)
        return name

    def _link(self, location: Location, source: str, path: str) -> bool:
        try:
            self._with_folder(location, lambda: self.files.link(source, path))
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in _NOT_LINKED:
                return False
            raise
        return True

    def _with_folder(self, location: Location, make: Callable[[], None]) -> None:
        try:
            make()
        except FileNotFoundError:
            self.maildir.ensure(location.mailbox_id, location.folder)
            make()

    def _place_outgoing(self, encoded: Encoded, present: Present | None) -> None:
        if present is None or not self.outgoing_is_right(encoded):
            self.write_outgoing(encoded)

    def aside_name(self, work: Work, index: int) -> str:
        """Return the name of the file that keeps what one local target should have got."""
        return f"{work.encoded.record.message_id}-{index}.eml"

    def _put_aside(self, work: Work, target: LocalTarget, index: int) -> None:
        path = self.aside / self.aside_name(work, index)
        self._write(str(path) + ".tmp", str(path), work.encoded, target.prefix)

    def _write(self, temporary: str, path: str, encoded: Encoded, prefix: bytes) -> None:
        files = self.files
        fd = files.open(temporary, _FLAGS, 0o600)
        try:
            self._fill(fd, encoded, prefix)
        finally:
            files.close(fd)
        files.rename(temporary, path)

    def _fill(self, fd: int, encoded: Encoded, prefix: bytes) -> int:
        """Write prefix, trace and content at a file's beginning; return the octets."""
        record = encoded.record
        front = len(prefix) + len(record.trace)
        if isinstance(record.content, Spooled):
            write_all(self.files, fd, (prefix, record.trace))
            self._copy(record.content, fd)
            return front + record.content.octets
        octets = front + len(record.content)
        if self.files.writev(fd, (prefix, record.trace, record.content)) != octets:
            raise OSError(errno.ENOSPC, "the file could only be written in part")
        return octets

    def _copy(self, spooled: Spooled, fd: int) -> None:
        with open(self.spool.path(spooled.name), "rb") as source:
            waiting = spooled.octets
            while waiting:
                copied = os.copy_file_range(source.fileno(), fd, waiting)
                if copied == 0:
                    raise OSError(errno.EIO, "a spool file ends too early", spooled.name)
                waiting -= copied

    def _digest(self, encoded: Encoded, front: bytes) -> bytes:
        digest = hashlib.sha256(front)
        content = encoded.record.content
        if isinstance(content, Spooled):
            with open(self.spool.path(content.name), "rb") as file:
                while chunk := file.read(_CHUNK_OCTETS):
                    digest.update(chunk)
        else:
            digest.update(content)
        return digest.digest()


def _digest_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
