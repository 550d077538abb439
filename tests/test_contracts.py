"""The import contracts hold, and each fails on a planted violation."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
PLANTS = {
    "server stands on storage and policies, which do not know each other": (
        "storage/ids.py",
        "import policies.facts",
    ),
    "inside server, downward only": ("server/routing.py", "import server.intake"),
    "pure modules do no I/O and read no clock": ("server/mail/dates.py", "import time"),
    "storage knows no event loop": ("storage/ids.py", "import asyncio"),
    "aiosmtpd is imported in server.smtp alone": ("server/intake.py", "import aiosmtpd.smtp"),
    "dkimpy, pyspf and authres are imported in server.sender_auth alone": ("server/intake.py", "import dkim"),
}


def _lint(root: Path) -> subprocess.CompletedProcess[str]:
    linter = Path(sys.executable).with_name("lint-imports")
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(
        [str(linter), "--no-cache"], cwd=root, env=environment, capture_output=True, text=True
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("server", "storage", "policies"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_every_contract_has_a_planted_violation():
    assert {contract["name"] for contract in CONTRACTS} == PLANTS.keys()


@pytest.mark.parametrize("name", PLANTS)
def test_planted_violation_breaks_its_contract(name: str, copy: Path):
    path, line = PLANTS[name]
    target = copy / path
    target.write_text(f"{target.read_text()}\n{line}\n")
    done = _lint(copy)
    assert done.returncode != 0
    assert f"{name} BROKEN" in done.stdout.replace("\n", " ")


def _pure_files() -> list[Path]:
    contract = next(one for one in CONTRACTS if one["name"].startswith("pure modules"))
    files: list[Path] = []
    for module in contract["source_modules"]:
        path = ROOT / module.replace(".", "/")
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    return files


@pytest.mark.parametrize("path", _pure_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_pure_module_opens_no_file_and_reads_no_clock(path: Path):
    called = {
        ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
    }
    assert not called & {"open", "datetime.now", "datetime.datetime.now", "datetime.utcnow", "date.today"}


@pytest.mark.parametrize("package", ["server", "storage", "policies"])
def test_init_files_are_empty(package: str):
    for path in (ROOT / package).rglob("__init__.py"):
        assert path.read_text() == "", path
