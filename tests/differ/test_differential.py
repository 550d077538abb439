"""The page of differences and its table are one; the comparison itself, where mailauth can be had."""

import json
import re

import pytest

from tests.differ import run
from tests.differ.cases import generate
from tests.differ.differences import DIFFERENCES


def test_the_page_explains_what_the_table_allows() -> None:
    headings = re.findall(r"^### (.+)$", run.PAGE.read_text("utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted({one.heading for one in DIFFERENCES})


def test_there_are_at_least_three_hundred_cases_of_every_kind() -> None:
    names = [case.name for case in generate(1, 1_800_000_000)]
    assert len(names) == len(set(names)) > 300
    for kind in ("spf", "dkim", "dmarc", "arc"):
        assert sum(name.startswith(f"{kind}/") for name in names) > 50


@pytest.mark.interop
@pytest.mark.skipif(not run.NODE.exists(), reason="mailauth is not there: `tests/differential` installs it")
def test_no_difference_to_mailauth_is_left_unexplained(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unexplained"] == []
