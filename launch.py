"""Make the checkout's Python environment and hand over to a command in it.

Owns `.venv` beside this file: made without ensurepip (Debian's python3 has
none), filled from the hash-locked requirements, stamped with the lock's digest
as the last step. An environment without the right stamp is made anew, under a
lock, so that two first runs do not meet. The system's own Python is taken where
its version fits: it is the one that security updates reach, and a distribution
builds it with optimisation, worth two times the speed here. MAILAGENTS_PYTHON
names another one. Standard library only; progress goes to stderr.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
LOCKS = ROOT / "requirements"
SYSTEM_PYTHON = Path("/usr/bin/python3")
OLDEST, NEWEST = (3, 11), (3, 13)


class SetupFailed(Exception):
    """The environment could not be made; the text says at which step."""


def environment_path() -> Path:
    """Return where the environment lies; MAILAGENTS_ENV moves it."""
    return Path(os.environ.get("MAILAGENTS_ENV", ROOT / ".venv"))


def interpreter() -> str:
    """Return the Python that the environment is made from.

    MAILAGENTS_PYTHON if set; the running one if it was called by name rather than found
    as `python3` on the path; else the system's own, if its version is one that is tested.
    """
    if named := os.environ.get("MAILAGENTS_PYTHON"):
        return named
    running = os.path.realpath(sys.executable)
    if os.path.realpath(shutil.which("python3") or "") != running:
        return running
    # The link's target names the version (python3.11), so that nothing need be started.
    target = os.path.realpath(SYSTEM_PYTHON)
    major, _, minor = target.rpartition("python")[2].partition(".")
    if major.isdigit() and minor.isdigit() and OLDEST <= (int(major), int(minor)) <= NEWEST:
        return target
    return running


def _digest(locks: list[Path]) -> str:
    state = hashlib.sha256(interpreter().encode())
    for lock in locks:
        state.update(lock.read_bytes())
    return state.hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    print(f"mailagents: {text}", file=sys.stderr, flush=True)


def _step(text: str, command: list[str]) -> None:
    _say(text)
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    if done.returncode != 0:
        raise SetupFailed(f"{text} failed: {' '.join(command[:6])} … exit {done.returncode}")


def _pip(python: Path) -> list[str]:
    return [
        sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check",
        "install", "--quiet", "--require-hashes", "--use-pep517", "--no-build-isolation",
    ]  # fmt: skip


def ensure(*, check: bool = False) -> Path:
    """Return the environment's python, making the environment where it is absent or stale.

    check: also install what the tests and the checks need.
    Raises SetupFailed with the step that failed.
    """
    place = environment_path()
    python = place / "bin" / "python"
    base = [LOCKS / "build.txt", LOCKS / "appliance.txt"]
    full = [*base, LOCKS / "check.txt"]
    wanted = {_digest(full)} if check else {_digest(base), _digest(full)}
    stamp = place / "stamp"
    if _stamp(stamp) in wanted:
        return python
    with _locked(place.with_name(place.name + ".lock")):
        if _stamp(stamp) in wanted:
            return python
        # A finished environment for the appliance alone only lacks the tests' part.
        if _stamp(stamp) != _digest(base):
            _say(f"making the environment in {place}")
            shutil.rmtree(place, ignore_errors=True)
            _step("python -m venv", [interpreter(), "-m", "venv", "--without-pip", str(place)])
            _step("installing the build backend", [*_pip(python), "-r", str(LOCKS / "build.txt")])
            _step("installing the appliance's libraries", [*_pip(python), "-r", str(base[1])])
        stamp.unlink(missing_ok=True)
        if check:
            _step("installing the tests' libraries", [*_pip(python), "-r", str(full[2])])
        pending = stamp.with_suffix(".new")
        pending.write_text(_digest(full if check else base))
        pending.rename(stamp)
    return python


def _stamp(path: Path) -> str:
    if not os.access(path.with_name("bin") / "python", os.X_OK):
        return ""
    try:
        return path.read_text()
    except OSError:
        return ""


def hand_over(arguments: list[str], *, check: bool = False) -> None:
    """Replace this process by the environment's python with these arguments; does not return."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        sys.exit("mailagents: Python 3.11, 3.12 or 3.13 is needed, this is " + sys.version.split()[0])
    try:
        python = ensure(check=check)
    except (SetupFailed, OSError) as error:
        sys.exit(f"mailagents: {error}")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    os.environ["PYTHONPATH"] = path
    os.execv(python, [str(python), *arguments])
