"""A disk that can lose its power: ext4 on a loop file, shut down without writing its journal out.

The file system's own shutdown call drops everything that was not put on stable storage, as a
power cut does, and mounting it again replays its journal. Needs root and loop devices.
"""

import errno
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

IMAGE_OCTETS = 192 << 20
BUSY_SECONDS = 10.0
# EXT4_IOC_SHUTDOWN is the generic FS_IOC_SHUTDOWN: _IOR('X', 125, __u32).
_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2


class NoDisk(Exception):
    """This machine gives no such disk; the text says why."""


class Disk:
    """One mounted ext4. directory: where it is; cut and mount alternate."""

    def __init__(self, place: Path, template: Path) -> None:
        self.image = template.with_name("image")
        self.directory = place / "disk"
        self._template = template
        self.directory.mkdir(parents=True, exist_ok=True)

    def renew(self) -> None:
        """Begin with an empty file system."""
        subprocess.run(["cp", "--sparse=always", self._template, self.image], check=True)

    def mount(self) -> None:
        """Mount it, which replays the journal of ext4 where there was a cut."""
        # Without commits of its own every few seconds: what survives is what was asked for.
        options = "loop,noatime,commit=300"
        _run("mount", "-t", "ext4", "-o", options, str(self.image), str(self.directory))

    def cut(self) -> None:
        """Lose the power now: every later call on the disk fails, and nothing more is written."""
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def unmount(self) -> None:
        """Take it off; whoever used it is gone, or is going: a killed store's worker ends by itself."""
        end = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                _run("umount", str(self.directory))
                return
            except NoDisk:
                if time.monotonic() > end:
                    raise
            time.sleep(0.01)


@contextmanager
def disk(place: Path, *, octets: int = IMAGE_OCTETS) -> Iterator[Disk]:
    """Yield an empty mounted disk below a directory; NoDisk where the machine cannot give one."""
    if os.geteuid() != 0:
        raise NoDisk("only root can mount a loop file")
    if shutil.which("mkfs.ext4") is None:
        raise NoDisk("mkfs.ext4 is not installed")
    with tempfile.TemporaryDirectory(dir=_memory(octets)) as images:
        template = Path(images) / "template"
        with template.open("wb") as file:
            file.truncate(octets)
        yield from _mounted(place, template)


def _memory(octets: int) -> str | None:
    """Return where images are kept: in memory, for what a cut takes is what ext4 has not written yet."""
    memory = "/dev/shm"
    with suppress(OSError):
        disk = os.statvfs(memory)
        if disk.f_bavail * disk.f_frsize > 3 * octets:
            return memory
    return None


def _mounted(place: Path, template: Path) -> Iterator[Disk]:
    _run(
        "mkfs.ext4",
        "-q",
        "-F",
        "-E",
        "lazy_itable_init=0,lazy_journal_init=0",
        "-J",
        "size=16",
        str(template),
    )
    made = Disk(place, template)
    made.renew()
    made.mount()
    try:
        _check(made)
        yield made
    finally:
        subprocess.run(["umount", "--lazy", str(made.directory)], check=False, capture_output=True)


def _check(made: Disk) -> None:
    """Hold the disk against what it is for: synced octets survive a cut, others do not."""
    for name, is_synced in (("synced", True), ("unsynced", False)):
        fd = os.open(made.directory / name, os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(fd, b"x" * 5000)
        if is_synced:
            os.fsync(fd)
        os.close(fd)
    try:
        made.cut()
    except OSError as error:
        raise NoDisk(f"ext4 here has no shutdown call ({errno.errorcode.get(error.errno or 0)})") from error
    made.unmount()
    made.mount()
    synced, unsynced = made.directory / "synced", made.directory / "unsynced"
    if synced.read_bytes() != b"x" * 5000 or (unsynced.exists() and unsynced.stat().st_size):
        raise NoDisk("a cut of this disk is not what a power cut is")
    synced.unlink()
    unsynced.unlink(missing_ok=True)


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise NoDisk(f"{command[0]} failed: {done.stderr.strip()}")
