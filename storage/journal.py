"""The journal: accepted messages on stable storage before anybody is told so.

Owns appending: one thread takes all that waits, writes it to the current
segment, makes it durable with one fdatasync, then completes the batch in one
call and hands the records on. Refuses when the backlog or the disk is full. A
write or sync that fails ends accepting for good until a restart, and nothing
of its batch is ever reported as done. Segment files are storage.segments'.
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from storage import codec, segments
from storage.codec import Encoded
from storage.errors import Full, StorageError
from storage.files import Files, is_no_room, write_all
from storage.records import Accepted, Placed, Spooled
from storage.segments import Segment

Durable = Callable[[BaseException | None], None]
Applied = Callable[[tuple[Placed, ...] | None, BaseException | None], None]
Complete = Callable[[list[Callable[[], None]]], None]

BATCH_RECORDS = 1024
BATCH_OCTETS = 32 << 20
# From this part of the backlog's limit on, replies wait for apply: senders slow down before any is refused.
SLOW_PART = 4
SLOW_SECONDS = 1.0
# What a waiting record costs beside its octets: objects, texts, rows to be.
RECORD_OVERHEAD_OCTETS = 4096

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pending:
    """A record on its way into the journal."""

    record: Accepted
    durable: Durable
    applied: Applied | None
    octets: int


@dataclass(frozen=True, slots=True)
class Journaled:
    """A durable record on its way into Maildir and database; octets: its part of the backlog.

    segment, offset: where the journal holds it.
    """

    sequence: int
    encoded: Encoded
    applied: Applied | None
    octets: int
    segment: Path
    offset: int


def weight(record: Accepted) -> int:
    """Return the octets of memory that a record is counted with while it waits."""
    content = 0 if isinstance(record.content, Spooled) else len(record.content)
    prefixes = sum(len(target.prefix) for target in record.local)
    targets = len(record.local) + len(record.remote)
    return content + prefixes + len(record.trace) + RECORD_OVERHEAD_OCTETS + 512 * targets


class Journal:
    """One instance's journal, open for appending."""

    def __init__(
        self,
        *,
        directory: Path,
        instance: str,
        next_sequence: int,
        segment_octets: int,
        reserve_octets: int,
        backlog_limit_octets: int,
        files: Files,
        complete: Complete,
        deliver: Callable[[list[Journaled]], None],
        retired: Callable[[], None],
    ) -> None:
        self.directory = directory
        self.backlog_octets = 0
        self._unwritten_octets = 0  # of the backlog: what no apply can take off it yet
        self._instance = instance.encode("ascii")
        self._sequence = next_sequence
        self._segment_octets = segment_octets
        self._reserve_octets = reserve_octets
        self._limit = backlog_limit_octets
        self._files = files
        self._complete = complete
        self._deliver = deliver
        self._on_retired = retired
        self._pending: deque[Pending] = deque()
        lock = threading.Lock()
        self._ready = threading.Condition(lock)
        self._eased = threading.Condition(lock)
        self._closing = False
        self._rotations: list[threading.Event] = []
        self._failed: StorageError | None = None
        self._retired: list[Segment] = []
        self._segment: Segment | None = self._new_segment(0)
        self._thread = threading.Thread(target=self._loop, name="journal", daemon=True)
        self._thread.start()

    def append(self, record: Accepted, durable: Durable, applied: Applied | None) -> None:
        """Queue a record; durable is called once it is on stable storage, or with what refused it."""
        octets = weight(record)
        with self._ready:
            refusal = self._refusal(octets)
            if refusal is None:
                self._pending.append(Pending(record, durable, applied, octets))
                self.backlog_octets += octets
                self._unwritten_octets += octets
                self._ready.notify()
        if refusal is not None:
            self._complete([partial(durable, refusal)])

    def settle(self, octets: int) -> None:
        """Take what was applied out of the backlog."""
        with self._ready:
            self.backlog_octets -= octets
            self._eased.notify()

    def rotate(self) -> None:
        """Begin a new segment, if the current one holds anything; returns when that is done."""
        done = threading.Event()
        with self._ready:
            if self._closing or self._failed is not None:
                return
            self._rotations.append(done)
            self._ready.notify()
        done.wait()

    def retired(self, applied_sequence: int) -> list[Segment]:
        """Return the closed segments of which every record is applied."""
        with self._ready:
            return [segment for segment in self._retired if segment.last <= applied_sequence]

    def forget(self, segment: Segment) -> None:
        """Drop a segment that is gone from the disk."""
        with self._ready:
            self._retired.remove(segment)

    def last_sequence(self) -> int:
        """Return the sequence of the newest durable record, or what was before the first."""
        with self._ready:
            return self._sequence - 1

    def close(self) -> None:
        """Write what waits, then stop."""
        with self._ready:
            self._closing = True
            self._ready.notify()
        self._thread.join()

    def _refusal(self, octets: int) -> StorageError | None:
        if self._failed is not None:
            return self._failed
        if self._closing:
            return StorageError("the store is closing")
        if self.backlog_octets + octets > self._limit and self.backlog_octets > 0:
            return Full(f"{self.backlog_octets} octets of accepted mail wait to be applied")
        return None

    def _loop(self) -> None:
        while True:
            batch, rotations = self._take()
            if not batch and not rotations:
                break
            if batch:
                self._slow_down()
                self._append(batch)
                with self._ready:
                    self._unwritten_octets -= sum(pending.octets for pending in batch)
            if rotations:
                self._rotate_for(rotations)
            del batch
        self._retire()

    def _take(self) -> tuple[list[Pending], list[threading.Event]]:
        with self._ready:
            while not self._pending and not self._rotations and not self._closing:
                self._ready.wait()
            rotations, self._rotations = self._rotations, []
            batch: list[Pending] = []
            octets = 0
            while self._pending and len(batch) < BATCH_RECORDS and octets < BATCH_OCTETS:
                batch.append(self._pending.popleft())
                octets += batch[-1].octets
            return batch, rotations

    def _slow_down(self) -> None:
        with self._eased:
            self._eased.wait_for(self._is_eased, SLOW_SECONDS)

    def _is_eased(self) -> bool:
        return self.backlog_octets - self._unwritten_octets <= self._limit // SLOW_PART

    def _rotate_for(self, rotations: Sequence[threading.Event]) -> None:
        try:
            segment = self._segment
            if segment is not None and segment.position == 0 and segment.is_stale:
                self._segment = None
                segments.abandon(self._files, segment)
            if self._segment is None or self._segment.position:
                self._begin_segment(0)
        except OSError as error:
            _log.error("no new journal segment: %s", error)
        for done in rotations:
            done.set()

    def _append(self, batch: list[Pending]) -> None:
        if self._failed is not None:
            self._refuse(batch, self._failed)
            return
        written, journaled = self._encode(batch)
        if not written:
            return
        try:
            delivered = self._write(journaled)
        except Full as error:
            self._sequence -= len(journaled)
            self._refuse(written, error)
        except Exception as error:  # noqa: BLE001 - whatever went wrong, nothing may be promised after it
            self._failed = StorageError(
                f"the journal {self.directory} could not be written ({error}): "
                "no mail is accepted until a restart"
            )
            _log.critical("%s", self._failed)
            self._refuse(written, self._failed)
        else:
            self._complete([partial(pending.durable, None) for pending in written])
            self._deliver(delivered)

    def _encode(self, batch: list[Pending]) -> tuple[list[Pending], list[tuple[Pending, Encoded, int]]]:
        written: list[Pending] = []
        journaled: list[tuple[Pending, Encoded, int]] = []
        for pending in batch:
            try:
                encoded = codec.encode(pending.record)
            except Exception as error:  # noqa: BLE001 - one record that cannot be encoded spares its batch
                self._refuse([pending], StorageError(f"a record cannot be journaled: {error}"))
                continue
            journaled.append((pending, encoded, self._sequence))
            written.append(pending)
            self._sequence += 1
        return written, journaled

    def _refuse(self, batch: Sequence[Pending], error: StorageError) -> None:
        self.settle(sum(pending.octets for pending in batch))
        self._complete([partial(pending.durable, error) for pending in batch])

    def _write(self, batch: Sequence[tuple[Pending, Encoded, int]]) -> list[Journaled]:
        """Make a batch durable; Full with nothing written, any other OSError poisons."""
        octets = sum(encoded.octets for _, encoded, _ in batch)
        self._check_room()
        segment = self._segment_for(octets, batch[0][2])
        buffers: list[Any] = []
        journaled: list[Journaled] = []
        offset = segment.position
        for pending, encoded, sequence in batch:
            front = codec.header(encoded, instance=self._instance, sequence=sequence)
            buffers += (front, encoded.head, encoded.content)
            if isinstance(encoded.record.content, Spooled):
                segment.spooled.append(encoded.record.content.name)
            journaled.append(
                Journaled(sequence, encoded, pending.applied, pending.octets, segment.path, offset)
            )
            offset += encoded.octets
        try:
            write_all(self._files, segment.fd, buffers, segment.position)
        except OSError as error:
            if self._cut(segment) and is_no_room(error):
                raise Full(f"no room left on the disk of {self.directory}") from error
            raise
        try:
            self._files.fdatasync(segment.fd)
        except OSError:
            # What the kernel could not write it may have forgotten: only a restart reads the truth.
            self._cut(segment)
            raise
        segment.position = offset
        segment.last = batch[-1][2]
        return journaled

    def _cut(self, segment: Segment) -> bool:
        """Take a failed batch out of the file, so that no replay delivers what was refused."""
        try:
            self._files.ftruncate(segment.fd, segment.position)
            self._files.fdatasync(segment.fd)
        except OSError as error:
            _log.error("%s could not be cut at %d: %s", segment.path, segment.position, error)
            return False
        return True

    def _check_room(self) -> None:
        free = os.statvfs(self.directory)
        if free.f_bavail * free.f_frsize < self._reserve_octets:
            raise Full(f"less than {self._reserve_octets} octets are free on the disk of {self.directory}")

    def _segment_for(self, octets: int, sequence: int) -> Segment:
        segment = self._segment
        if segment is None or (segment.position and segment.position + octets > self._segment_octets):
            try:
                segment = self._begin_segment(octets, sequence)
            except OSError as error:
                if is_no_room(error):
                    raise Full(f"no room for a journal segment in {self.directory}") from error
                raise
        return segment

    def _begin_segment(self, octets: int, first: int | None = None) -> Segment:
        segment = self._new_segment(octets, first)
        self._retire()
        self._segment = segment
        return segment

    def _new_segment(self, octets: int, first: int | None = None) -> Segment:
        return segments.open_segment(
            self._files,
            self.directory,
            first=self._sequence if first is None else first,
            octets=max(octets, self._segment_octets),
        )

    def _retire(self) -> None:
        segment = self._segment
        self._segment = None
        if segment is None:
            return
        self._files.close(segment.fd)
        with self._ready:
            self._retired.append(segment)
        self._on_retired()
