"""Operations refuse what they cannot work with, in words, and never fail on the shape of a question."""

from pathlib import Path
from typing import Any

import pytest

from server.arguments import WrongArguments, check
from server.operations import OPERATIONS, Context, OperationFailed, perform
from tests.databases import migrated
from tests.fakes import FakeClock
from tests.storage.samples import opened

ODD: list[Any] = [None, True, 3, -1, 1 << 70, 1.5, "a\0b", "\ud800", [], [3], ["a\0"], {}, {"a": 1}, [[]]]


@pytest.fixture
def context(tmp_path: Path) -> Any:
    with opened(tmp_path / "data", migrated(tmp_path / "mailagents.sqlite")) as store:
        yield Context(store, FakeClock(), "mx.agents.test")


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_odd_arguments_are_refused_in_words(context: Context, name: str) -> None:
    from server.arguments import _wanted

    wanted = _wanted(OPERATIONS[name])
    good = {"str": "x", "int": 1, "bool": True, "list[str]": ["x"], "dict[str, Any]": {}}
    usual = {one: good[_annotation(name, one)] for one in wanted}
    for argument in wanted:
        for value in ODD:
            try:
                perform(context, name, usual | {argument: value})
            except OperationFailed as error:
                assert str(error)


def _annotation(name: str, argument: str) -> str:
    return str(OPERATIONS[name].__annotations__[argument]).partition(" | ")[0]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("inbox-add", {"address": 3}, "address is a text without NUL, not 3"),
        ("inbox-add", {}, "missing: address"),
        ("inbox-add", {"address": "a@b.test", "colour": "red"}, "there is no argument 'colour'"),
        ("inbox-add", {"address": "a@b.test", "quota_octets": True}, "not true or false"),
        ("queue-list", {"limit": -1}, "limit is a whole number from 0 on, not -1"),
        ("queue-list", {"limit": "10"}, "limit is a whole number from 0 on, not such a text"),
        ("explain", {"id": None}, "id is a text without NUL, not null"),
        ("key-add", {"scopes": "message:send"}, "scopes is a list of texts or null"),
        ("reconcile", {"x": 1}, "known: none"),
        ("policy-replay", {"before": {}, "after": {}, "since": 0}, "a rule set is"),
        ("policy-replay", {"before": [], "after": {}, "since": 0}, "before is an object, not a list"),
    ],
)
def test_the_refusal_says_what_is_wrong(
    context: Context, name: str, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(OperationFailed) as caught:
        perform(context, name, arguments)
    assert caught.value.code == "bad_arguments"
    assert words in str(caught.value)


def test_the_context_is_no_argument() -> None:
    with pytest.raises(WrongArguments, match="there is no argument 'context'"):
        check(OPERATIONS["status"], {"context": "x"})
