"""`mailagents dev`: the one command that carries a message the whole way in front of the user."""

import os
import random
import re
import subprocess
from pathlib import Path

import pytest

from tests.daemon.running import ROOT


def dev(directory: Path) -> str:
    # A hundred ports of its own: several of these run at once.
    base = random.SystemRandom().randrange(120, 310) * 100
    done = subprocess.run(
        [ROOT / "mailagents", "dev", "--once", "--directory", directory, "--port-base", str(base)],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("Traceback", "[warning", "[error"):
        assert words not in done.stdout + done.stderr
    return done.stdout


def timelines(shown: str) -> dict[str, list[str]]:
    """The kinds of steps that were printed, by the title of their timeline."""
    found: dict[str, list[str]] = {}
    title = ""
    for line in shown.splitlines():
        if heading := re.fullmatch(r"(The message|The reply), msg_\w+:", line):
            title = heading[1]
        elif step := re.match(r"\d\d:\d\d:\d\d\.\d{3}\s+(\S+)", line):
            found.setdefault(title, []).append(step[1])
    return found


@pytest.mark.parametrize("name", ["plain", "with a space and ü"])
def test_the_first_command_shows_the_whole_way_twice(tmp_path: Path, name: str) -> None:
    for _ in range(2):
        shown = dev(tmp_path / name)
        assert timelines(shown) == {
            "The message": ["accepted", "received"],
            "The reply": ["accepted", "kept", "delivered"],
        }
        for words in ("DKIM-signed by agents.test", "How to reach it", "Console", "API key"):
            assert words in shown


def test_credentials_of_the_first_command_are_for_the_owner_alone(tmp_path: Path) -> None:
    dev(tmp_path / "dev")
    assert (tmp_path / "dev").stat().st_mode & 0o077 == 0
    assert (tmp_path / "dev" / "credentials.json").stat().st_mode & 0o077 == 0
