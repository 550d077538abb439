"""The file system that both servers write to, and what a sync costs on it.

As root a fresh ext4 with a journal on a loop file; elsewhere a plain directory,
and the table says so. tmpfs is refused: a sync costs nothing there.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

SIZE_OCTETS = 6 << 30


class Unfit(Exception):
    """The bench cannot be run here; the text says why."""


@contextlib.contextmanager
def workplace(
    *, octets: int = SIZE_OCTETS, options: Sequence[str] = (), image: Path | None = None
) -> Iterator[tuple[Path, str]]:
    """Yield a directory that both servers share, and the words that describe it.

    options: more words for mkfs.ext4. image: a loop file that stays, with all that is on it.
    """
    base = Path(tempfile.mkdtemp(prefix="bench-", dir=os.environ.get("BENCH_DIRECTORY", "/var/tmp")))
    base.chmod(0o755)
    try:
        if _file_system(base) == "tmpfs":
            raise Unfit(f"{base} lies on tmpfs, where a sync costs nothing; set BENCH_DIRECTORY")
        is_kept = image is not None and image.exists()
        image = image or base / "image"
        can_mount = os.geteuid() == 0 and (is_kept or _make_ext4(image, octets, options))
        if not (can_mount and _mount(image, base / "fs")):
            yield base, f"the machine's own {_file_system(base)}, not a fresh one"
            return
        try:
            yield base / "fs", f"{'a kept' if is_kept else 'a fresh'} ext4 with a journal on a loop file"
        finally:
            subprocess.run(["umount", "--lazy", str(base / "fs")], check=False)
    finally:
        shutil.rmtree(base, ignore_errors=True)


@contextlib.contextmanager
def plain_workplace() -> Iterator[Path]:
    """Yield a directory on the machine's own disk, for what is larger than the loop file."""
    base = Path(tempfile.mkdtemp(prefix="bench-", dir=os.environ.get("BENCH_DIRECTORY", "/var/tmp")))
    base.chmod(0o755)
    try:
        if _file_system(base) == "tmpfs":
            raise Unfit(f"{base} lies on tmpfs, which is memory; set BENCH_DIRECTORY")
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _make_ext4(image: Path, octets: int, options: Sequence[str]) -> bool:
    with open(image, "wb") as file:
        file.truncate(octets)
    # Tables are written now, not in the background of the measurement.
    command = ["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", *options, str(image)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def _mount(image: Path, place: Path) -> bool:
    place.mkdir()
    command = ["mount", "-o", "loop", str(image), str(place)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        return False
    place.chmod(0o755)
    return True


def _file_system(path: Path) -> str:
    shown = subprocess.run(["stat", "-f", "-c", "%T", str(path)], check=True, capture_output=True, text=True)
    return shown.stdout.strip()


def fdatasync_milliseconds(directory: Path, *, times: int = 200) -> float:
    """Return the median cost of an fdatasync after 2 KB appended."""
    path = directory / "sync-probe"
    taken = []
    with open(path, "wb", buffering=0) as file:
        for _ in range(times):
            file.write(b"x" * 2048)
            begin = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - begin)
    path.unlink()
    return sorted(taken)[times // 2] * 1000
