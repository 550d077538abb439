"""VANISHED (EARLIER), from a full memory and from one that has forgotten."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.imap.sequence import parse
from server.imap.vanished import RANGES, absent, earlier, of_known


@dataclass(frozen=True)
class Changes:
    uidnext: int = 1
    vanished: list[int] = field(default_factory=list)
    present: list[int] | None = None


@pytest.mark.parametrize(
    ("changes", "named", "expected"),
    [
        (Changes(10, [5, 3, 4]), None, [b"* VANISHED (EARLIER) 3:5\r\n"]),
        (Changes(10, [5, 3, 4]), b"4:9", [b"* VANISHED (EARLIER) 4:5\r\n"]),
        (Changes(10, []), None, []),
        (Changes(10, [], [3, 5, 6]), None, [b"* VANISHED (EARLIER) 1:2,4,7:9\r\n"]),
        (Changes(10, [], [3, 5, 6]), b"2:5", [b"* VANISHED (EARLIER) 2,4\r\n"]),
        (Changes(10, [], [3, 5, 6]), b"8:4000000000", [b"* VANISHED (EARLIER) 8:9\r\n"]),
        (Changes(10, [], [3, 5, 6]), b"5:6", []),
        (Changes(1, [], []), b"1:*", []),
        (Changes(4_000_000_000, [], []), None, [b"* VANISHED (EARLIER) 1:3999999999\r\n"]),
    ],
)
def test_what_is_gone_is_told(changes: Changes, named: bytes | None, expected: list[bytes]) -> None:
    assert list(earlier(changes, None if named is None else parse(named))) == expected


def test_lines_have_a_bounded_number_of_ranges() -> None:
    lines = list(earlier(Changes(5 * RANGES, [], list(range(2, 5 * RANGES, 2))), None))
    assert len(lines) == 3
    assert max(line.count(b",") for line in lines) == RANGES - 1


@given(st.sets(st.integers(1, 40)), st.sets(st.integers(1, 40)))
def test_absent_is_what_is_asked_for_and_not_there(present: set[int], asked: set[int]) -> None:
    ranges = [(uid, uid) for uid in sorted(asked)]
    found = [uid for low, high in absent(sorted(present), ranges) for uid in range(low, high + 1)]
    assert found == sorted(asked - present)


def test_a_session_loses_those_it_knew() -> None:
    assert of_known(Changes(9, [4]), [1, 4]) == [4]
    assert of_known(Changes(9, [], [2, 3]), [1, 2, 4]) == [1, 4]
