"""Which Python the environment is made from."""

import os
import shutil
import sys
from pathlib import Path

import pytest

import launch


@pytest.fixture
def found_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAILAGENTS_PYTHON", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _name: sys.executable)


def _system(monkeypatch: pytest.MonkeyPatch, place: Path, name: str) -> str:
    target = place / name
    target.touch()
    (place / "python3").symlink_to(target)
    monkeypatch.setattr(launch, "SYSTEM_PYTHON", place / "python3")
    return str(target)


@pytest.mark.usefixtures("found_on_path")
def test_system_python_of_a_tested_version_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    system = _system(monkeypatch, tmp_path, "python3.13")
    assert launch.interpreter() == system


@pytest.mark.usefixtures("found_on_path")
@pytest.mark.parametrize("name", ["python3.10", "python3.14", "python3", "pypy"])
def test_other_system_python_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    _system(monkeypatch, tmp_path, name if name != "python3" else "python3x")
    assert launch.interpreter() == os.path.realpath(sys.executable)


def test_python_called_by_name_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MAILAGENTS_PYTHON", raising=False)
    _system(monkeypatch, tmp_path, "python3.12")
    monkeypatch.setattr(shutil, "which", lambda _name: "/usr/bin/something-else")
    assert launch.interpreter() == os.path.realpath(sys.executable)


@pytest.mark.usefixtures("found_on_path")
def test_python_named_in_the_environment_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _system(monkeypatch, tmp_path, "python3.12")
    monkeypatch.setenv("MAILAGENTS_PYTHON", "/opt/python")
    assert launch.interpreter() == "/opt/python"
