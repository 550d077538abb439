"""A file system of a test's own, whose power can be cut: ext4 with a journal on a loop file.

A cut is the file system's own shutdown without a flush of its log: what was not on the disk by
then is gone, and the next mount replays the log as it would after the power came back.
"""

import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

from tests.daemon.running import until

# EXT4_IOC_SHUTDOWN and EXT4_GOING_FLAGS_NOLOGFLUSH of the kernel's fs/ext4/ext4.h.
_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2


def unavailable() -> str | None:
    """Why no file system can be mounted here, None where it can."""
    if os.geteuid() != 0:
        return "only root can mount a file system"
    if not all(shutil.which(program) for program in ("mkfs.ext4", "mount", "umount")):
        return "mkfs.ext4 and mount are not installed"
    return None


class Disk:
    """The mounted file system; place: where. Raises OSError where loop mounts are not to be had."""

    def __init__(self, directory: Path, *, octets: int) -> None:
        self.image, self.place = directory / "disk", directory / "mounted"
        self.place.mkdir()
        with self.image.open("wb") as file:
            file.truncate(octets)
        subprocess.run(["mkfs.ext4", "-q", self.image], check=True)
        self._mount()

    def cut(self) -> None:
        """Cut the power: from now on nothing reaches the disk, and what had not is lost."""
        fd = os.open(self.place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def restore(self) -> None:
        """Bring it back as the next start of the machine finds it; whoever used it must be gone."""
        # A killed process's children may hold it for a moment longer.
        until(lambda: self._unmount() == 0, "the cut disk stays busy")
        self._mount()

    def close(self) -> None:
        """Take it away."""
        subprocess.run(["umount", "-l", self.place], check=False)

    def _unmount(self) -> int:
        return subprocess.run(["umount", self.place], check=False, capture_output=True).returncode

    def _mount(self) -> None:
        made = subprocess.run(
            ["mount", "-o", "loop", self.image, self.place], check=False, capture_output=True, text=True
        )
        if made.returncode:
            raise OSError(f"no loop mount here: {made.stderr.strip()}")
