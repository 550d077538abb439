"""docs/rfc.toml against the code: every citation is listed, every place named is there."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LISTED = tomllib.loads((ROOT / "docs" / "rfc.toml").read_text())
CITATION = re.compile(r"RFC[ \n#]+(\d{3,5})")


def _cited() -> dict[str, set[str]]:
    cited: dict[str, set[str]] = {}
    for package in ("server", "storage", "policies"):
        for path in (ROOT / package).rglob("*.py"):
            for number in CITATION.findall(path.read_text()):
                cited.setdefault(f"rfc{number}", set()).add(str(path.relative_to(ROOT)))
    return cited


def test_every_citation_is_listed():
    absent = {number: files for number, files in _cited().items() if number not in LISTED}
    assert not absent


@pytest.mark.parametrize("number", LISTED)
def test_entry_is_complete_and_names_places_that_exist(number: str):
    entry = LISTED[number]
    assert entry["status"] in {"whole", "part", "none"}
    assert entry["title"]
    assert entry["status"] != "part" or entry.get("note"), "what is left out must be said"
    for place in entry["where"]:
        assert (ROOT / place).exists(), place
    assert entry["status"] == "none" or entry["where"]
