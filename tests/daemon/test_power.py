"""The power is cut at random moments under load: what had a 250 is there, once, and whole."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.disk import Disk, unavailable
from tests.daemon.partner import serving
from tests.daemon.running import Daemon
from tests.daemon.storm import Storm, wait_for_more
from tests.daemon.test_crash import check_drafts, check_inbox, check_notices, check_partner, check_residue


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if reason := unavailable():
        pytest.skip(reason)
    try:
        made = Disk(tmp_path, octets=1 << 30)
    except OSError as error:
        pytest.skip(str(error))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("seed", "cuts"), [(1, 4), pytest.param(2, 60, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_every_250_survives_a_cut_of_the_power(
    template: Path, tmp_path: Path, disk: Disk, seed: int, cuts: int
) -> None:
    dice = random.Random(seed)
    with (
        serving(tmp_path / "partner") as partner,
        Daemon(
            tmp_path / "daemon",
            template=template,
            data=disk.place / "data",
            store={"checkpoint_seconds": 1},
            delivery={"routes": partner.route, "retry_first_seconds": 1, "per_domain_concurrency": 4},
        ) as daemon,
    ):
        daemon.start()
        storm = Storm(daemon, seed=seed, mx=4, submissions=2, readers=2)
        storm.begin()
        for _ in range(cuts):
            cut_power(daemon, disk, storm, dice)
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


def cut_power(daemon: Daemon, disk: Disk, storm: Storm, dice: random.Random) -> None:
    """Cut the power at a random moment once more mail was promised; bring disk and daemon back."""
    wait_for_more(daemon, storm, dice, after=dice.randrange(5, 60))
    disk.cut()
    # The daemon lives on for a moment with a disk that takes nothing: it may promise nothing then.
    time.sleep(dice.uniform(0, 0.1))
    daemon.kill()
    disk.restore()
    daemon.start()
