"""Power cuts at random moments: a load on a store on a disk of its own, the cut, the recovery, the check.

Each cut is a process of its own that is forked from this one, which has no threads.
"""

import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.power import ledger, load
from tests.power.agreement import check
from tests.power.disk import Disk
from tests.storage.samples import fill, opened

ROUNDS = 8  # cuts of one store before a new one is made


def forked(act: Callable[[], None], told: Path) -> int:
    """Run something in a process of its own; its id. It ends with 0 or, told in a file, with 1."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
    try:
        act()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


class Cuts:
    """Cuts of one disk after the other. place: a directory on a disk that stays whole."""

    def __init__(self, disk: Disk, place: Path, seed: int) -> None:
        self.disk, self.place = disk, place
        self.dice = random.Random(seed)
        self.number = 0
        self.promised = 0
        self._begin_anew()

    @property
    def _url(self) -> str:
        return f"sqlite:///{self.disk.directory}/mailagents.sqlite"

    @property
    def _data(self) -> Path:
        return self.disk.directory / "data"

    @property
    def _ledger(self) -> Path:
        return self.place / "ledger"

    @property
    def _told(self) -> Path:
        return self.place / "told"

    def _begin_anew(self) -> None:
        """An empty disk with a closed store that has inboxes."""
        self._ledger.unlink(missing_ok=True)
        self.disk.unmount()
        self.disk.renew()
        self.disk.mount()
        self._wait(forked(self._fill, self._told))

    def _fill(self) -> None:
        with opened(self._data, self._url) as store:
            fill(store.database)

    def once(self) -> None:
        """One cut, and what must be so afterwards; AssertionError with where to look."""
        if self.number and self.number % ROUNDS == 0:
            self._begin_anew()
        self.number += 1
        seconds = self.dice.choice((0.0, 0.05, 0.15, 0.4)) * self.dice.random()
        seed = self.dice.randrange(1 << 30)
        self._cut_after(seconds, lambda: self._run(seed))
        if self.dice.random() < 0.3:
            # Once more, while it recovers.
            self._cut_after(self.dice.random() * 0.1, self._recover, tells=False)
        self._wait(forked(self._check, self._told))

    def _run(self, seed: int) -> None:
        ledger.Ledger(self._ledger).note("run", "")
        load.run(self._data, self._url, self._ledger, seed)
        self._tell()
        threading.Event().wait()

    def _recover(self) -> None:
        self._tell()
        with opened(self._data, self._url):
            pass

    def _tell(self) -> None:
        os.write(self._ready, b".")

    def _cut_after(self, seconds: float, act: Callable[[], None], *, tells: bool = True) -> None:
        """Start a process, cut the power a moment after it says that it is ready, and end it."""
        reading, self._ready = os.pipe()
        pid = forked(act, self._told)
        os.close(self._ready)
        if not os.read(reading, 1):
            self._wait(pid)
            raise AssertionError("the load does not begin")
        os.close(reading)
        time.sleep(seconds)
        ledger.Ledger(self._ledger).note("cut", "")
        self.disk.cut()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.disk.unmount()
        self.disk.mount()

    def _check(self) -> None:
        promises = ledger.read(self._ledger)
        with opened(self._data, self._url) as store:
            check(store, promises)

    def _wait(self, pid: int) -> None:
        _, status = os.waitpid(pid, 0)
        if status:
            kept = self._keep()
            words = self._told.read_text()[-3000:]
            raise AssertionError(f"cut {self.number} was not survived, see {kept}\n{words}")
        self.promised = len(ledger.read(self._ledger).accepted)

    def _keep(self) -> Path:
        kept = self.place / f"failed-{self.number}"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.disk.directory, kept / "disk")
        if self._ledger.exists():
            shutil.copy(self._ledger, kept / "ledger")
        return kept
