"""After a power cut at any moment of a load, what was promised is there, once and whole."""

from pathlib import Path

import pytest

from tests.power import ledger
from tests.power.cuts import Cuts
from tests.power.disk import NoDisk, disk
from tests.power.ledger import Ledger, State

pytestmark = pytest.mark.whole

FEW, MANY = 12, 100
# A thousand in ten parts, each a run of its own dice.
PARTS = [pytest.param(seed, MANY, marks=pytest.mark.slow, id=f"many-{seed}") for seed in range(10)]


@pytest.mark.parametrize(("seed", "cuts"), [pytest.param(FEW, FEW, id="few"), *PARTS])
def test_what_was_promised_survives_power_cuts(tmp_path: Path, seed: int, cuts: int) -> None:
    try:
        with disk(tmp_path) as ext4:
            run = Cuts(ext4, tmp_path, seed=seed)
            for _ in range(cuts):
                run.once()
            assert run.promised > 0
    except NoDisk as reason:
        pytest.skip(str(reason))


def test_a_ledger_knows_what_is_promised_and_what_may_be(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "ledger")
    marked = {"folder": "INBOX", "flags": 1, "keywords": ["a"]}
    book.note("ask", "msg_1", inboxes=["inb_1"], queued=0)
    book.note("accepted", "msg_1")
    book.note("change", "msg_1", **marked)
    book.note("changed", "msg_1")
    book.note("change", "msg_1", folder="", flags=0, keywords=[])
    book.note("ask", "msg_2", inboxes=["inb_1"], queued=0)
    book.note("cut", "")
    book.note("accepted", "msg_2")
    book.note("changed", "msg_1")
    found = ledger.read(tmp_path / "ledger")
    assert found.accepted == {"msg_1"}
    assert set(found.asked) == {"msg_1", "msg_2"}
    assert found.kept["msg_1"].allowed == [State("INBOX", 1, ("a",)), State("")]
