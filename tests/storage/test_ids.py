"""Ids are unique, short, safe in file names, and sort by time."""

import re

import pytest

from storage import ids


def test_id_has_prefix_and_26_characters() -> None:
    assert re.fullmatch(r"msg_[0-9a-hjkmnp-tv-z]{26}", ids.new("msg"))


def test_ids_of_later_milliseconds_sort_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for milliseconds in (0, 1, 31, 32, 1_800_000_000_000, 1_800_000_000_001, (1 << 48) - 1):
        monkeypatch.setattr("storage.ids.time.time_ns", lambda at=milliseconds: at * 1_000_000)
        made.append(ids.new("evt"))
    assert made == sorted(made)


def test_ids_do_not_repeat() -> None:
    assert len({ids.new("evt") for _ in range(10_000)}) == 10_000


@pytest.mark.parametrize("prefix", ["", "MSG", "a b", "../x", "é", "msg1"])
def test_prefix_that_is_no_word_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        ids.new(prefix)
