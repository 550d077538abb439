"""Sequence sets: compact ranges of message numbers or UIDs, never spelled out.

Owns parsing, resolution of `*` against a largest number, selection out of a
sorted array, and the shortest form of a list of UIDs. `1:4294967295` costs one
pair of integers whatever it names. RFC 9051 9 (sequence-set), 4315 3 (UID sets).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

STAR = 0  # no number of the grammar is zero
LARGEST = 4_294_967_295  # RFC 9051 9: nz-number fits 32 bits


class SequenceSyntax(ValueError):
    """Text that is no sequence set."""


@dataclass(frozen=True, slots=True)
class SequenceSet:
    """The ranges as written, each end a number or STAR.

    saved: the set is `$`, the result of the last SEARCH RETURN (SAVE) (RFC 5182), and has no ranges.
    """

    ranges: tuple[tuple[int, int], ...]
    saved: bool = False

    def resolve(self, largest: int) -> list[tuple[int, int]]:
        """Return sorted, disjoint ranges with `*` read as largest (0 in an empty mailbox: `*` names none)."""
        if len(self.ranges) == 1:
            low, high = self._order(*self.ranges[0], largest)
            return [(low, high)] if high else []
        ordered = sorted(self._order(low, high, largest) for low, high in self.ranges)
        merged: list[tuple[int, int]] = []
        for low, high in ordered:
            if not high:
                continue
            if merged and low <= merged[-1][1] + 1:
                if high > merged[-1][1]:
                    merged[-1] = (merged[-1][0], high)
            else:
                merged.append((low, high))
        return merged

    @staticmethod
    def _order(low: int, high: int, largest: int) -> tuple[int, int]:
        low, high = low or largest, high or largest
        low, high = (low, high) if low <= high else (high, low)
        return max(low, 1), high

    def names_beyond(self, count: int) -> bool:
        """Whether a number larger than count is named, which no message of a mailbox of count can have."""
        return any(
            max(low, high) > count and not (count == 0 and STAR in (low, high)) for low, high in self.ranges
        )


def parse(text: bytes) -> SequenceSet:
    """Read a sequence set; raises SequenceSyntax."""
    if text == b"$":
        return SequenceSet((), saved=True)
    if text.isdigit():
        number = _number(text)
        return SequenceSet(((number, number),))
    ranges = []
    for part in text.split(b","):
        low, colon, high = part.partition(b":")
        first = _number(low)
        ranges.append((first, _number(high) if colon else first))
    return SequenceSet(tuple(ranges))


def _number(text: bytes) -> int:
    if text == b"*":
        return STAR
    if not text.isdigit() or len(text) > 10 or text[0] == 0x30:
        raise SequenceSyntax("Invalid sequence set")
    number = int(text)
    if number > LARGEST:
        raise SequenceSyntax("Number in sequence set is too large")
    return number


def indexes(sequence: SequenceSet, uids: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Return half-open index ranges of uids[:count] (sorted) whose UIDs the set names."""
    largest = uids[count - 1] if count else 0
    found = []
    for low, high in sequence.resolve(largest):
        start = bisect_left(uids, low, 0, count)
        end = bisect_right(uids, high, start, count)
        if start < end:
            found.append((start, end))
    return found


def number_indexes(sequence: SequenceSet, count: int) -> list[tuple[int, int]]:
    """Return half-open index ranges of the message numbers that the set names, cut to count."""
    return [(low - 1, min(high, count)) for low, high in sequence.resolve(count) if low <= count]


def of_ranges(ranges: Iterable[tuple[int, int]]) -> bytes:
    """Return ranges as a sequence set in their own order."""
    return ",".join(_range(low, high) for low, high in ranges).encode()


def compact(numbers: Iterable[int]) -> bytes:
    """Return the numbers as a sequence set in their own order, ascending runs as ranges, b'' for none."""
    parts: list[str] = []
    low = high = -1
    for number in numbers:
        if number == high + 1 and low >= 0:
            high = number
            continue
        if low >= 0:
            parts.append(_range(low, high))
        low = high = number
    if low >= 0:
        parts.append(_range(low, high))
    return ",".join(parts).encode()


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}:{high}"
