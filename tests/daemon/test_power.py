"""The power is cut at random moments under load: what had a 250 is there, once, and whole."""

import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.daemon.partner import serving
from tests.daemon.running import Daemon, children, until
from tests.daemon.storm import LIMITS, Storm, wait_for_more
from tests.daemon.test_crash import check_drafts, check_inbox, check_notices, check_partner, check_residue
from tests.power.disk import Disk, NoDisk, disk


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Disk]:
    try:
        with disk(tmp_path, octets=8 << 30) as made:  # sixty cuts bring more than a gigabyte of mail
            yield made
    except NoDisk as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize(
    ("seed", "cuts"), [(1, 4), pytest.param(2, 60, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_every_250_survives_a_cut_of_the_power(
    template: Path, tmp_path: Path, ext4: Disk, seed: int, cuts: int
) -> None:
    dice = random.Random(seed)
    with (
        serving(tmp_path / "partner") as partner,
        Daemon(
            tmp_path / "daemon",
            template=template,
            data=ext4.directory / "data",
            store={"checkpoint_seconds": 1},
            delivery={"routes": partner.route, "retry_first_seconds": 1, "per_domain_concurrency": 4},
            limits=LIMITS,
        ) as daemon,
    ):
        os.sync()  # the accounts were copied here, which no installation does
        daemon.start()
        storm = Storm(daemon, seed=seed, mx=4, submissions=2, readers=2)
        storm.begin()
        for _ in range(cuts):
            cut_power(daemon, ext4, storm, dice)
        storm.end()
        assert storm.surprises == []
        daemon.drained(seconds=60)
        for inbox in (daemon.alice, daemon.bob):
            check_inbox(daemon, storm, inbox)
        check_drafts(daemon, storm)
        check_notices(daemon, storm)
        check_partner(storm, Counter(), kills=cuts, taken=[
            (str(one.message["Subject"]), str(one.message["Message-ID"]), storm.is_whole(one.message))
            for one in partner.taken
        ])  # fmt: skip
        check_residue(daemon)


def cut_power(daemon: Daemon, ext4: Disk, storm: Storm, dice: random.Random) -> None:
    """Cut the power at a random moment once more mail was promised; bring disk and daemon back."""
    wait_for_more(daemon, storm, dice, after=dice.randrange(5, 60))
    # A power cut takes processor and disk at once. Kept running, the daemon could be told by the kernel
    # that a page is synced which the file system's shutdown has just thrown away.
    stopped = stand_still(daemon.pid)
    ext4.cut()
    daemon.kill()
    for child in stopped:
        # One that was only just started does not yet end with its parent.
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    ext4.unmount()
    ext4.mount()
    daemon.start()


def stand_still(pid: int) -> list[int]:
    """Stop a process and its children, every thread of them, wherever they are; return the children."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: stands_still(pid), "the daemon goes on running")
    found = children(pid)
    for child in found:
        os.kill(child, signal.SIGSTOP)
    until(lambda: all(map(stands_still, found)), "a child goes on running")
    return found


def stands_still(pid: int) -> bool:
    """Whether no thread of a process runs its own code; one in the kernel stops on its way out."""
    states = [
        path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")
    ]
    return all(state in "TDZ" for state in states)
