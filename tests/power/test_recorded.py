"""A daemon's own calls, cut anywhere: whatever the disk may hold then, what clients were told is so."""

import random
import shutil
from pathlib import Path

import pytest

from tests.daemon.running import Daemon
from tests.power.recorded import moments, record, survives

pytestmark = pytest.mark.whole


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("count", [60, pytest.param(None, marks=pytest.mark.slow)], ids=["few", "all"])
def test_what_clients_were_told_survives_a_cut_at_any_call(tmp_path: Path, count: int | None) -> None:
    template = tmp_path / "template"
    with Daemon(template) as daemon:
        daemon.provision()
    recorded = record(template, tmp_path)
    assert len(recorded.recording.moments) > 1000
    dice = random.Random(7)
    for moment in moments(recorded, dice, count):
        for _ in range(1 if count else 3):
            survives(recorded, moment, dice, tmp_path / "cut")
