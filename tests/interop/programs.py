"""Foreign programs: found or their tests skipped, each run in a home of its own."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def program(name: str) -> str:
    """The path of a program; its absence skips the test, or fails it where all are asked for."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        reason = f"{name} is not installed"
        if os.environ.get("MAILAGENTS_REQUIRE_ALL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def run(
    home: Path, *command: object, status: int = 0, text: str = "", seconds: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end in a home; fails on another exit status."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=home,
        env={"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TERM": "dumb"},
        input=text,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
