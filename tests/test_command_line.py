"""The command line as a program: its version, its pipes."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

from server.cli.main import VERSION

ROOT = Path(__file__).parents[1]


def test_version_is_that_of_the_project():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    said = subprocess.run(
        [sys.executable, "-m", "server", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert said.stdout == f"mailagents {declared}\n"
    assert declared == VERSION


def test_reader_that_has_enough_makes_no_traceback():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "server", "config", "defaults"],
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == ""
