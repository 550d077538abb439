"""The steps of `./check`, in order; the first that fails ends it, pytest's summary comes last."""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE = ["server", "storage", "policies", "tests", "bench", "launch.py", "mailagents", "check"]


def main(arguments: list[str]) -> int:
    """Run the steps of a part: '' all, 'quick', 'long' or 'power'."""
    part = arguments[0] if arguments else ""
    if part not in ("", "quick", "long", "power"):
        print("usage: ./check [quick|long|power]", file=sys.stderr)
        return 2
    os.chdir(ROOT)
    compiling = compile_tests()
    try:
        return 0 if all(passes(name, command, compiling) for name, command in steps(part)) else 1
    finally:
        compiling.terminate()
        compiling.wait()


def passes(name: str, command: list[str], compiling: subprocess.Popen[bytes]) -> bool:
    """Run a step and return whether it passed; tests begin when they are compiled."""
    begin = time.monotonic()
    print(f"== {name}", flush=True)
    if "pytest" in command:
        compiling.wait()
    status = subprocess.run(command, check=False).returncode
    if status == 1 and "-n" in command:
        # Daemons and clients of several workers share the cores: what failed is asked again, alone.
        print("== failed beside others, again alone:", flush=True)
        alone = [sys.executable, "-m", "pytest", "-q", "--last-failed", "--last-failed-no-failures=none"]
        status = subprocess.run(alone, check=False).returncode
    seconds = time.monotonic() - begin
    print(f"== {name}: {'passed' if status == 0 else 'FAILED'}, {seconds:.0f} s", flush=True)
    return status == 0


def compile_tests() -> subprocess.Popen[bytes]:
    """Begin to compile modules and tests beside the steps that need one core: workers then need not each."""
    # Where nothing is kept, every process that a test starts compiles the server anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    collect = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
    return subprocess.Popen(collect, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def steps(part: str) -> list[tuple[str, list[str]]]:
    """Return the named steps of a part with their commands."""
    python = [sys.executable, "-m"]
    workers = ["-n", str(min(4, (os.cpu_count() or 1) + 1))]
    if part == "long":
        return [("long tests", [*python, "pytest", "-q", "-m", "slow"])]
    if part == "power":
        return [
            (
                "power cuts",
                [*python, "pytest", "-q", "-m", "slow", "tests/power", "tests/daemon/test_power.py"],
            )
        ]
    lint = [
        ("lint", [*python, "ruff", "check", *CODE]),
        ("format", [*python, "ruff", "format", "--check", *CODE]),
        ("types", [*python, "mypy"]),
        ("import contracts", [str(Path(sys.executable).with_name("lint-imports"))]),
    ]
    quick = "not slow and not interop and not whole and not postgresql"
    chosen = quick if part == "quick" else "not slow"
    return [*lint, ("tests", [*python, "pytest", "-q", *workers, "-m", chosen])]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
