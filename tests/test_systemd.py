"""The units, judged by systemd's own tools."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parent.parent / "systemd"
pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None and "MAILAGENTS_REQUIRE_ALL" not in os.environ,
    reason="systemd is not installed",
)


def _unit_with(tmp_path: Path, executable: str) -> list[str]:
    """Copy the units with a program that exists, which verify asks for."""
    paths = []
    for unit in sorted(UNITS.glob("*.service")) + sorted(UNITS.glob("*.socket")):
        copy = tmp_path / unit.name
        copy.write_text(unit.read_text().replace("/opt/mailagents/bin/mailagents", executable))
        paths.append(str(copy))
    return paths


def test_units_verify_clean(tmp_path):
    done = subprocess.run(
        ["systemd-analyze", "verify", *_unit_with(tmp_path, "/bin/true")], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_verify_finds_a_planted_fault(tmp_path):
    paths = _unit_with(tmp_path, "/bin/true")
    broken = tmp_path / "mailagents.service"
    broken.write_text(broken.read_text().replace("Type=notify", "Type=nonsense"))
    done = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True)
    assert "nonsense" in done.stderr


def test_exposure_is_1_6_or_less():
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--json=short", "--no-pager", "--threshold=16",
         str(UNITS / "mailagents.service")],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_every_socket_has_a_listener_name_of_its_own():
    names = [
        line.partition("=")[2]
        for unit in UNITS.glob("*.socket")
        for line in unit.read_text().splitlines()
        if line.startswith("FileDescriptorName=")
    ]
    assert len(names) == len(set(names)) == len(list(UNITS.glob("*.socket")))
