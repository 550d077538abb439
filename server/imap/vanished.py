"""Which UIDs are gone, as a client is told that comes back after a while.

Owns the answer where the folder has forgotten part of what was expunged: then every UID that is
asked for and not there is told, as ranges, never spelled out. Pure. RFC 7162 3.2.5.1, 3.2.6, 3.2.10.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from server.imap import sequence

RANGES = 1000  # a line


class Changes(Protocol):
    """What became of a folder, as storage tells it; present: all UIDs, where some were forgotten."""

    @property
    def uidnext(self) -> int: ...  # noqa: D102 - as in storage.contents

    @property
    def vanished(self) -> list[int]: ...  # noqa: D102

    @property
    def present(self) -> Sequence[int] | None: ...  # noqa: D102


def earlier(changes: Changes, named: sequence.SequenceSet | None) -> Iterator[bytes]:
    """Yield VANISHED (EARLIER) lines on those UIDs of a set that are gone; None: on all."""
    if changes.present is not None:
        largest = changes.uidnext - 1
        asked = [(1, largest)] if named is None else named.resolve(largest)
        ranges = list(absent(changes.present, ((low, min(high, largest)) for low, high in asked)))
        for start in range(0, len(ranges), RANGES):
            yield _line(sequence.of_ranges(ranges[start : start + RANGES]))
        return
    gone = sorted(changes.vanished)
    if named is not None:
        gone = [uid for start, end in sequence.indexes(named, gone, len(gone)) for uid in gone[start:end]]
    if gone:
        yield _line(sequence.compact(gone))


def _line(numbers: bytes) -> bytes:
    return b"* VANISHED (EARLIER) %b\r\n" % numbers


def absent(present: Sequence[int], asked: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the ranges of asked (sorted, disjoint) that hold none of present (sorted)."""
    place = 0
    for first, last in asked:
        low = first
        while place < len(present) and present[place] < low:
            place += 1
        while place < len(present) and present[place] <= last:
            if present[place] > low:
                yield low, present[place] - 1
            low = present[place] + 1
            place += 1
        if low <= last:
            yield low, last


def of_known(changes: Changes, known: Sequence[int]) -> list[int]:
    """Return those of known UIDs that are gone."""
    if changes.present is None:
        return changes.vanished
    return sorted(set(known).difference(changes.present))
