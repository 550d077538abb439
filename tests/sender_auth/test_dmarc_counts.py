"""Counting at the door: what is one row, what waits when the database does not take it, what is bounded."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from server.sender_auth import dmarc_counts
from server.sender_auth.dmarc_counts import DmarcCounts
from server.sender_auth.observed import Observation, Observed, Published
from storage import dmarc, report_tables
from storage.db import Database
from storage.errors import StorageError
from storage.records import Action, Envelope, Peer, Recipient, Verdict
from tests.databases import migrated
from tests.fakes import FakeClock

SEEN = Observation(
    published=Published("a.example", "reject", "reject", "reject", "r", "r", "", False, "mailto:r@a.example"),
    header_from="a.example",
    envelope_from="a.example",
    result="pass",
    requested="reject",
    full="reject",
    dkim_aligned=True,
    spf_aligned=False,
    signatures=(("a.example", "s1", "pass"),),
    spf=("b.example", "fail"),
)
ENVELOPE = Envelope("x@a.example", (Recipient("ann@ours.example"),))


class Door:
    """Counts over a real database. fails: whether it takes nothing now."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.fails = False
        self.clock = FakeClock()
        self.counts = DmarcCounts(
            threads=self,  # type: ignore[arg-type]  # the two calls that are made
            clock=self.clock,
            address="reports@ours.example",
            period_seconds=86_400,
            spread_seconds=3600,
        )

    async def compute(self, function: Any, *given: Any) -> Any:
        return function(*given)

    async def write(self, unit: Any) -> Any:
        if self.fails:
            raise StorageError("no room")
        return self.database.write(unit)

    def note(
        self, seen: Observation = SEEN, *, address: str = "192.0.2.1", to: str = "ann@ours.example"
    ) -> None:
        verdicts = (Verdict("spf", "fail"), Observed("dmarc", seen.result, "a.example", observation=seen))
        envelope = replace(ENVELOPE, recipients=(Recipient(to),))
        self.counts.note(Peer(address), envelope, verdicts, [Action.ACCEPT])

    def flush(self) -> None:
        asyncio.run(self.counts.flush())

    def rows(self) -> list[tuple[str, dict[str, Any], int]]:
        period = self.clock.now() - self.clock.now() % report_tables.DAY
        return self.database.read(lambda c: dmarc.counts(c, begin_at=period, domain="a.example"))


@pytest.fixture
def door(tmp_path: Any) -> Any:
    database = Database.open(migrated(tmp_path / "one.sqlite"))
    database.migrate()
    yield Door(database)
    database.close()


def test_messages_of_one_kind_are_one_row(door: Door) -> None:
    for _ in range(3):
        door.note()
    door.note(address="::ffff:192.0.2.1")
    door.flush()
    door.note(address="2001:db8::1")
    door.note()
    door.flush()
    assert [(ip, count) for ip, _, count in door.rows()] == [("192.0.2.1", 5), ("2001:db8::1", 1)]
    facts = door.rows()[0][1]
    assert (facts["disposition"], facts["dkim"], facts["spf"]) == ("pass", "pass", "fail")
    assert "@" not in str(door.rows())


def test_what_the_database_does_not_take_is_written_later(door: Door) -> None:
    door.note()
    door.fails = True
    with pytest.raises(StorageError):
        door.flush()
    door.note()
    door.fails = False
    door.flush()
    assert [count for _, _, count in door.rows()] == [2]


def test_mail_to_report_addresses_and_without_an_address_is_not_counted(door: Door) -> None:
    for to in ("reports@ours.example", "Reports@Ours.example", "dmarc-reports@other.example"):
        door.note(to=to)
    door.note(address="")
    door.counts.note(Peer("192.0.2.1"), ENVELOPE, (), None)
    door.counts.note(Peer("192.0.2.1"), ENVELOPE, (Verdict("dmarc", "pass"),), None)
    door.flush()
    assert door.rows() == []


def test_kinds_that_wait_are_bounded(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dmarc_counts, "MAX_PENDING", 3)
    for number in range(9):
        door.note(address=f"192.0.2.{number}")
    door.note(address="192.0.2.1")
    door.flush()
    assert sorted(count for _, _, count in door.rows()) == [1, 1, 2]


def test_each_domain_has_its_own_moment_within_the_spread(door: Door) -> None:
    for number in range(30):
        name = f"d{number}.example"
        door.note(replace(SEEN, published=replace(SEEN.published, domain=name)))
    door.flush()
    end = door.clock.now() - door.clock.now() % report_tables.DAY + report_tables.DAY
    assert door.database.read(lambda c: dmarc.due(c, at=end + 299 * 1_000_000, limit=99)) == []
    halfway = door.database.read(lambda c: dmarc.due(c, at=end + 2100 * 1_000_000, limit=99))
    assert 5 <= len(halfway) <= 25
    assert len(door.database.read(lambda c: dmarc.due(c, at=end + 3900 * 1_000_000, limit=99))) == 30


def test_period_is_where_the_clock_stands(door: Door) -> None:
    door.note()
    door.clock.advance(86_400)
    door.note()
    door.flush()
    periods = door.database.read(lambda c: dmarc.due(c, at=1 << 60, limit=9))
    assert [one.begin_at % report_tables.DAY for one in periods] == [0, 0]
    assert periods[1].begin_at - periods[0].begin_at == report_tables.DAY
