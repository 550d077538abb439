"""The command line as a program: its version, its pipes."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

from server.cli.main import VERSION, _roles
from server.control import sockets

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


def test_a_number_behind_a_role_tells_instances_apart():
    assert _roles(["smtp-2"]) == ("smtp",)
    assert _roles(["smtp", "imap", "smtp-10"]) == ("smtp", "imap")
    for wrong in ("smtp-", "smtp2", "-2", "", "smtp-x", "smtp-2-2", "smtp-\u0662"):
        with pytest.raises(typer.BadParameter):
            _roles([wrong])


def test_sockets_of_processes_beside_one_another_are_found_and_nothing_else(tmp_path):
    for name in (
        "control.abcdefgh",
        "control.01234567",
        "control.old",
        "control.abcdefgi",
        "x.abcdefgh",
        "control",
    ):
        (tmp_path / name).touch()
    found = [path.name for path in sockets(tmp_path / "control")]
    # The letters of instances leave out i, l, o and u.
    assert found == ["control", "control.01234567", "control.abcdefgh"]
    assert sockets(tmp_path / "nowhere" / "control") == [tmp_path / "nowhere" / "control"]
