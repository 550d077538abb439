"""The lines of a folder's list: written, read back whole, torn, damaged and contradicting each other."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.lists import Listed, Seal, last_seal, line, read, seal_line

SEAL = Seal(7, 4, 9, "\\Sent", True, 2, 0)
FIRST = line('{"new": [[1, 5, "a", ""], [2, 6, "b", "x y"], [3, 7, "c", ""]]}')
WHOLE = FIRST + seal_line(SEAL)


def test_what_is_written_is_read_back() -> None:
    found = read(WHOLE)
    assert found is not None
    assert found.seal == SEAL
    assert found.live["b"] == Listed(2, 6, "b", "x y")
    assert (set(found.live), found.gone, found.is_sound) == ({"a", "b", "c"}, set(), True)


def test_the_last_word_on_keywords_counts_and_what_is_gone_stays_gone() -> None:
    later = line('{"set": [[1, "p"], [2, ""]]}') + line('{"gone": [3]}') + seal_line(replace(SEAL, modseq=12))
    again = line('{"set": [[1, "q"]]}') + seal_line(replace(SEAL, modseq=13))
    found = read(WHOLE + later + again)
    assert found is not None
    assert {one.name: one.keywords for one in found.live.values()} == {"a": "q", "b": ""}
    assert found.gone == {"c"}
    assert found.seal.modseq == 13


def test_every_torn_end_gives_what_is_before_it() -> None:
    more = line('{"new": [[4, 5, "d", ""]]}') + seal_line(replace(SEAL, uidnext=5))
    for end in range(len(WHOLE), len(WHOLE) + len(more) + 1):
        found = read((WHOLE + more)[:end])
        assert found is not None
        assert found.is_sound
        assert {"a", "b", "c"} <= found.live.keys()
    for end in range(len(WHOLE) - 1):
        assert read(WHOLE[:end]) is None


def test_only_a_whole_end_is_one_to_go_on_from() -> None:
    assert last_seal(WHOLE) == SEAL
    for octets in (b"", b"\n", WHOLE[:-1], WHOLE + FIRST, WHOLE + bytes(100), WHOLE + b"x\n"):
        assert last_seal(octets) is None


def test_a_damaged_line_spoils_only_itself() -> None:
    damaged = bytearray(FIRST)
    damaged[20] ^= 1
    found = read(bytes(damaged) + WHOLE)
    assert found is not None
    assert (len(found.live), found.is_sound) == (3, True)


@pytest.mark.parametrize(
    "more",
    [
        line('{"new": [[2, 5, "z", ""]]}'),
        line('{"new": [[4, 5, "a", ""]]}'),
        line('{"new": [[-1, 5, "n", ""]]}'),
        line('{"new": [["x", 5, "n", ""]]}'),
        line('{"new": 3}'),
        line('{"gone": ["x"]}'),
        seal_line(replace(SEAL, uidvalidity=8)),
    ],
)
def test_what_contradicts_itself_is_not_sound(more: bytes) -> None:
    found = read(WHOLE + more + seal_line(SEAL))
    assert found is not None
    assert not found.is_sound


def test_a_seal_of_a_later_version_is_none() -> None:
    assert read(FIRST + line('{"version": 2, "uidvalidity": 1}')) is None
    assert read(FIRST + line('{"version": 1}')) is None


@given(st.binary(max_size=200))
def test_no_octets_make_it_fail(octets: bytes) -> None:
    read(octets)
    read(WHOLE + octets)
    last_seal(octets)
    read(line(octets.decode("latin-1")) + WHOLE)
