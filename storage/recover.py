"""Recovery: what a crash left in a journal is replayed, record by record, before mail is accepted.

Owns the order of things at start. A record that is not applied is applied,
files that are there already counting only with the right length and digest. A
record that is applied recreates nothing that was expunged or moved since; the
surviving entries' files are checked and rewritten where wrong. The torn end of
the last segment is cut; damage before valid records is set aside and reported.
Others may work on the same mail meanwhile: a file is rewritten under its folder's lock.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, Select, select

from storage import codec, segments
from storage.apply import Applier
from storage.codec import Encoded, content_octets
from storage.db import Database
from storage.errors import StorageError
from storage.files import Files, sync_directory
from storage.folders import held
from storage.journal import Journaled
from storage.placing import Name, Placing, Present
from storage.records import LocalTarget
from storage.schema import entries, folders, messages
from storage.segments import Damage, Found, TornEnd

BATCH_RECORDS = 128
BATCH_OCTETS = 16 << 20

_log = logging.getLogger(__name__)


_ENTRIES: Select[Any] = select(
    entries.c.folder_id,
    entries.c.uid,
    entries.c.message_id,
    entries.c.name,
    entries.c.subdirectory,
    entries.c.mirrored,
    entries.c.octets,
    entries.c.prefix_octets,
    folders.c.mailbox_id,
    folders.c.name.label("folder"),
).join_from(entries, folders)


@dataclass(slots=True)
class Recovery:
    """What a replay did. cut_octets: where the last segment's torn end began, None for a clean one."""

    applied: int = 0
    verified: int = 0
    rewritten: int = 0
    last_sequence: int = 0
    cut: Path | None = None
    set_aside: list[Path] = field(default_factory=list)
    missing: list[tuple[int, int]] = field(default_factory=list)
    segments: list[Path] = field(default_factory=list)


class Recoverer:
    """Replays one instance's journal."""

    def __init__(
        self,
        *,
        directory: Path,
        aside: Path,
        applier: Applier,
        placing: Placing,
        database: Database,
        files: Files,
    ) -> None:
        self._directory = directory
        self._aside = aside
        self._applier = applier
        self._placing = placing
        self._database = database
        self._files = files
        self._report = Recovery()
        self._unapplied: list[Journaled] = []
        self._applied: list[Journaled] = []
        self._octets = 0
        self._ensured: set[str] = set()

    def run(self) -> Recovery:
        """Replay everything and return what was done; the segments stay until a checkpoint.

        Corrupt where a record's version is unknown, StorageError where records cannot be applied.
        """
        report = self._report
        report.segments = segments.list_segments(self._directory)
        report.last_sequence = self._applier.applied_sequence
        after = 0
        for path, next_path in zip_longest(report.segments, report.segments[1:]):
            behind = int(next_path.stem) if next_path else None
            found = segments.read_segment(
                path, instance=self._placing.instance.encode("ascii"), after=after, behind=behind
            )
            for item in found:
                if isinstance(item, Found):
                    self._note_gap(after, item.sequence)
                    after = item.sequence
                    self._take(item, path)
                elif isinstance(item, Damage):
                    self._set_aside(item)
                else:
                    self._cut(item)
        self._flush()
        report.last_sequence = max(report.last_sequence, after)
        return report

    def _note_gap(self, after: int, sequence: int) -> None:
        if after and sequence != after + 1:
            self._report.missing.append((after + 1, sequence - 1))
            _log.error("%s: records %d to %d are missing", self._directory, after + 1, sequence - 1)

    def _take(self, found: Found, path: Path) -> None:
        item = Journaled(found.sequence, codec.encode(found.record), None, 0, path, 0)
        is_applied = found.sequence <= self._applier.applied_sequence
        (self._applied if is_applied else self._unapplied).append(item)
        self._octets += item.encoded.octets
        if len(self._applied) + len(self._unapplied) >= BATCH_RECORDS or self._octets >= BATCH_OCTETS:
            self._flush()

    def _flush(self) -> None:
        if self._applied:
            self._verify(self._applied)
            self._report.verified += len(self._applied)
        if self._unapplied:
            self._applier.replay(self._unapplied)
            self._report.applied += len(self._unapplied)
        self._applied, self._unapplied, self._octets = [], [], 0

    def _verify(self, batch: Sequence[Journaled]) -> None:
        by_id = {item.encoded.record.message_id: item.encoded for item in batch}

        def look_up(connection: Connection) -> tuple[list[Row[Any]], list[str]]:
            rows = connection.execute(_ENTRIES.where(entries.c.message_id.in_(list(by_id))))
            spooled = select(messages.c.id).where(messages.c.id.in_(list(by_id)), messages.c.spooled == 1)
            return [*rows], list(connection.execute(spooled).scalars())

        rows, outgoing = self._database.read(look_up)
        present = Present(row.name for row in rows)
        try:
            for row in rows:
                self._verify_entry(row, by_id[row.message_id], present)
            for message_id in outgoing:
                self._verify_outgoing(by_id[message_id])
        except OSError as error:
            raise StorageError(f"accepted mail cannot be checked against the journal: {error}") from error

    def _verify_outgoing(self, encoded: Encoded) -> None:
        if not self._placing.outgoing_is_right(encoded):
            self._placing.write_outgoing(encoded)
            self._report.rewritten += 1

    def _verify_entry(self, row: Row[Any], encoded: Encoded, present: Present) -> None:
        directory = self._directory_of(row)
        if directory not in self._ensured:
            # A directory that was made just before a power cut may have come back in part.
            self._placing.maildir.ensure(row.mailbox_id, row.folder)
            self._ensured.add(directory)
        if self._is_wrong(row, encoded, present) and self._database.write(
            partial(self._mend, row=row, encoded=encoded)
        ):
            self._report.rewritten += 1

    def _is_wrong(self, row: Row[Any], encoded: Encoded, present: Present) -> bool:
        targets = _candidates(encoded, row)
        if not targets:
            return False
        found = self._find(row, present)
        if found is None:
            return True
        path = found.within(self._directory_of(row))
        return not any(self._placing.is_right(path, encoded, target.prefix) for target in targets)

    def _directory_of(self, row: Row[Any]) -> str:
        return str(self._placing.maildir.folder_path(row.mailbox_id, row.folder))

    def _find(self, row: Row[Any], present: Present) -> Name | None:
        recorded = Name(row.name, row.subdirectory, row.mirrored)
        directory = self._directory_of(row)
        return recorded if os.path.exists(recorded.within(directory)) else present.find(directory, row.name)

    def _mend(self, connection: Connection, *, row: Row[Any], encoded: Encoded) -> bool:
        """Write an entry's file anew, if it is still there to have one and lacks it; say whether it did."""
        if not held(connection, [row.folder_id]):
            return False
        query = _ENTRIES.where(entries.c.folder_id == row.folder_id, entries.c.uid == row.uid)
        now = connection.execute(query).first()
        present = Present([row.name])
        if now is None or not self._is_wrong(now, encoded, present):
            return False
        found = self._find(now, present)
        self._placing.maildir.ensure(now.mailbox_id, now.folder)
        directory, prefix = self._directory_of(now), _candidates(encoded, now)[0].prefix
        if found is not None and os.stat(found.within(directory)).st_nlink > 1:
            # Written into the file itself, so that its other names, those that a copy made whose
            # commit never came among them, hold no torn message.
            self._placing.mend(encoded, found.within(directory), prefix)
        else:
            name = found or Name(now.name, now.subdirectory, now.mirrored)
            self._placing.write_entry(encoded, directory, name, prefix)
        _log.warning(
            "message %s: a file in %s was missing or wrong and is written anew", row.message_id, directory
        )
        return True

    def _set_aside(self, damage: Damage) -> None:
        path = self._aside / f"{self._placing.instance}-{damage.path.stem}-{damage.offset}.record"
        fd = self._files.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(damage.octets)
            file.flush()
            self._files.fsync(file.fileno())
        sync_directory(self._files, self._aside)
        self._report.set_aside.append(path)
        _log.error(
            "%s: %d octets at %d are damaged, set aside as %s",
            damage.path,
            len(damage.octets),
            damage.offset,
            path,
        )

    def _cut(self, end: TornEnd) -> None:
        fd = self._files.open(end.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            self._files.ftruncate(fd, end.offset)
            self._files.fsync(fd)
        finally:
            self._files.close(fd)
        self._report.cut = end.path
        _log.warning("%s: what lies behind the last whole record was cut at %d", end.path, end.offset)


def _candidates(encoded: Encoded, row: Row[Any]) -> list[LocalTarget]:
    """Return the targets whose rendition an entry's file can hold: by lengths, its own mailbox first."""
    record = encoded.record
    octets = content_octets(record.content)
    fitting = [
        target
        for target in record.local
        if len(target.prefix) + len(record.trace) == row.prefix_octets
        and row.prefix_octets + octets == row.octets
    ]
    return sorted(fitting, key=lambda target: target.mailbox_id != row.mailbox_id)
