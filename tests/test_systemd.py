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
    _verify(tmp_path)


def test_units_verify_clean_with_a_process_for_each_role(tmp_path):
    shutil.copytree(UNITS / "roles", tmp_path, dirs_exist_ok=True)
    _verify(tmp_path)


def _verify(tmp_path):
    done = subprocess.run(
        ["systemd-analyze", "verify", *_unit_with(tmp_path, "/bin/true")], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_verify_reads_the_sockets_drop_ins(tmp_path):
    shutil.copytree(UNITS / "roles", tmp_path, dirs_exist_ok=True)
    paths = _unit_with(tmp_path, "/bin/true")
    (tmp_path / "mailagents-imap.socket.d" / "roles.conf").write_text("[Socket]\nService=nonsense\n")
    done = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True)
    assert "nonsense" in done.stderr


def test_each_socket_starts_the_process_of_its_role():
    named = {path.parent.name: path.read_text().split("=")[-1] for path in UNITS.glob("roles/*/*.conf")}
    roles = {"mx": "smtp", "submission": "smtp", "submissions": "smtp"}
    roles |= {"imap": "imap", "imaps": "imap", "http": "http"}
    assert named == {
        f"mailagents-{name}.socket.d": f"mailagents@{role}.service\n" for name, role in roles.items()
    }


def test_a_role_s_unit_is_the_daemon_s_but_for_its_role_and_sockets():
    one, many = (
        (UNITS / name).read_text().splitlines() for name in ("mailagents.service", "mailagents@.service")
    )
    differing = {line.partition("=")[0] for line in set(one) ^ set(many) if not line.startswith("#")}
    assert differing == {"Description", "ExecStart", "Requires", "Sockets", "RuntimeDirectoryPreserve"}


def test_verify_finds_a_planted_fault(tmp_path):
    paths = _unit_with(tmp_path, "/bin/true")
    broken = tmp_path / "mailagents.service"
    broken.write_text(broken.read_text().replace("Type=notify", "Type=nonsense"))
    done = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True)
    assert "nonsense" in done.stderr


@pytest.mark.parametrize("unit", ["mailagents.service", "mailagents@.service"])
def test_exposure_is_1_6_or_less(unit):
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--json=short", "--no-pager", "--threshold=16",
         str(UNITS / unit)],
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
