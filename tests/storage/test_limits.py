"""Counts of limits and of texts: sliding, bounded, there again after a restart, shared by processes."""

import asyncio
import threading
from functools import partial

import pytest

import server.limits
from server.counters import Counters
from server.limits import Limits
from server.rulebook import Rulebook
from storage import limits, sending
from storage.db import Database
from storage.limits import Window
from tests.fakes import FakeClock
from tests.test_intake import CONTENT, Appliance, run
from tests.test_rules_acting import rule

HOUR = 3600
SECOND = 1_000_000


class Direct:
    """The door to a database, without threads."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def read(self, unit):
        return self.database.read(unit)

    async def write(self, unit):
        return self.database.write(unit)


def spend(made: Limits, value: str = "a", *, limit: int = 3, period: int = HOUR) -> bool:
    return made.spend("rule", value, limit=limit, period_seconds=period)


def test_a_limit_slides_and_each_value_has_its_own():
    clock = FakeClock()
    made = Limits(clock)
    assert [spend(made) for _ in range(5)] == [True, True, True, False, False]
    assert spend(made, "b")
    clock.advance(HOUR)
    # Of the hour before, most is still in the window.
    assert [spend(made) for _ in range(3)].count(True) < 3
    clock.advance(2 * HOUR)
    assert [spend(made) for _ in range(4)] == [True, True, True, False]


def test_what_was_spent_is_spent_after_a_restart(database: Database) -> None:
    async def scenario() -> None:
        clock, door = FakeClock(), Direct(database)
        made = Limits(clock)
        assert [spend(made) for _ in range(2)] == [True, True]
        assert [spend(made, "many", limit=100) for _ in range(60)].count(True) == 60
        await made.flush(door)
        assert spend(made)
        await made.flush(door)
        again = Limits(clock)
        await again.load(door)
        assert not spend(again)
        assert [spend(again, "many", limit=100) for _ in range(60)].count(True) == 40
        clock.advance(HOUR)
        later = Limits(clock)
        await later.load(door)
        assert [spend(later) for _ in range(3)].count(True) < 3

    asyncio.run(scenario())


def test_two_processes_count_together(database: Database) -> None:
    async def scenario() -> None:
        clock, door = FakeClock(), Direct(database)
        one, other = Limits(clock), Limits(clock)
        for made in (one, other):
            for _ in range(4):
                assert spend(made, limit=10)
        await one.flush(door)
        await other.flush(door)
        await one.load(door)
        assert [spend(one, limit=10) for _ in range(4)] == [True, True, False, False]
        # What was spent since, and not written yet, counts on top of what others wrote.
        await one.load(door)
        assert not spend(one, limit=10)

    asyncio.run(scenario())


def test_rows_go_from_period_to_period(database: Database) -> None:
    def row() -> Window:
        (found,) = database.read(partial(limits.changed, since=0, limit=10))
        return found

    def add(start: int, count: int, period: int = 10) -> None:
        one = Window("r", b"d", period, start, count)
        database.write(partial(limits.add, counted=[one], at=1))

    add(100, 5)
    add(100, 2)
    assert (row().count, row().before) == (7, 0)
    add(110, 1)
    assert (row().start, row().count, row().before) == (110, 1, 7)
    add(100, 3)  # late, of another process
    assert (row().start, row().count, row().before) == (110, 1, 10)
    add(140, 4)
    assert (row().count, row().before) == (4, 0)
    add(90, 9)
    assert (row().start, row().count, row().before) == (140, 4, 0)
    add(60, 2, period=60)
    assert (row().period, row().start, row().count, row().before) == (60, 60, 2, 0)


def test_rows_are_bounded_and_old_ones_go(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ROWS_LIMIT", 3)
    now = 10 * limits.KEPT
    for number in range(6):
        one = Window("r", b"%d" % number, HOUR * SECOND, now, 1)
        database.write(partial(limits.add, counted=[one], at=now + number))
    database.write(partial(limits.prune, at=now + 10))
    kept = database.read(partial(limits.changed, since=0, limit=10))
    assert [one.digest for one in kept] == [b"5", b"4", b"3"]
    database.write(partial(limits.prune, at=now + limits.KEPT + 100))
    assert database.read(partial(limits.changed, since=0, limit=10)) == []


def test_a_flood_of_values_takes_bounded_memory_and_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.limits, "KEYS_LIMIT", 1000)
    monkeypatch.setattr(server.limits, "PENDING_LIMIT", 100)
    made = Limits(FakeClock())
    for number in range(5000):
        spend(made, str(number), limit=50)
    assert len(made._counts) <= 1000
    assert made._pending == {}
    for number in range(5000):
        spend(made, str(number), limit=5)
    assert len(made._pending) <= 100


def test_a_limit_of_a_rule_holds_over_a_restart_of_the_daemons_parts(tmp_path):
    text = rule("limit", stage="rcpt", limit=2, period_seconds=3600, per="sender")

    async def scenario(appliance: Appliance) -> None:
        from server.refusal import Refusal
        from storage.records import Envelope, Recipient
        from tests.test_intake import PEER

        envelope = Envelope("ada@far.example", ())

        async def ask(intake) -> bool:
            try:
                await intake.recipient(PEER, None, envelope, Recipient("one@ours.example"))
            except Refusal:
                return False
            return True

        assert [await ask(appliance.intake) for _ in range(2)] == [True, True]
        await appliance.standing.stop()
        fresh = Rulebook(tmp_path / "rules", clock=appliance.clock)
        await fresh.limits.load(appliance.threads)
        appliance.intake._rulebook = fresh
        assert not await ask(appliance.intake)

    run(tmp_path, scenario, text)


def test_texts_that_come_again_are_counted_after_a_restart(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        counters, clock = appliance.counters, appliance.clock
        counters.count(sending.SIMILAR, "org band", 1)
        counters.count(sending.SIMILAR, "org once", 1)
        counters.count(sending.SIMILAR, "org band", 5)
        counters.count(sending.SIMILAR, "org band", 2)
        await counters.flush()
        again = Counters(appliance.threads, clock)
        await again.load_texts()
        assert again.total(sending.SIMILAR, "org band", seconds=HOUR) == 8
        assert again.total(sending.SIMILAR, "org once", seconds=HOUR) == 0
        again.count(sending.SIMILAR, "org band", 1)
        await again.load_texts()
        assert again.total(sending.SIMILAR, "org band", seconds=HOUR) == 9
        clock.advance(3 * HOUR)
        await appliance.threads.write(partial(sending.prune, at=clock.now()))
        late = Counters(appliance.threads, clock)
        await late.load_texts()
        assert late._known == {}

    run(tmp_path, scenario)


LISTED = """
[[list]]
name = "bad"
kind = "addresses"
file = "bad.txt"

[[rule]]
name = "it"
stage = "mail"
when = 'sender.in_list("bad")'
action = "reject"
"""


def test_reading_anew_changes_nothing_until_it_is_put_in_force(tmp_path):
    (tmp_path / "rules.toml").write_text(LISTED)
    (tmp_path / "bad.txt").write_text("a@b.test\n")
    book = Rulebook(tmp_path)
    (tmp_path / "bad.txt").write_text("c@d.test\n")
    found = book.read_lists()
    assert book.is_listed("bad", "a@b.test")
    assert book.put_lists(found)
    assert book.is_listed("bad", "c@d.test")
    loaded, stale = book.read(), book.read_lists()
    assert stale is None
    (tmp_path / "bad.txt").write_text("e@f.test\n")
    stale = book.read_lists()
    book.put(loaded)
    book.put_lists(stale)  # of rules that are no more
    assert book.is_listed("bad", "c@d.test")
    assert book.refresh_lists()
    assert book.is_listed("bad", "e@f.test")


def test_the_loop_goes_on_while_a_long_list_is_read(tmp_path):
    (tmp_path / "rules.toml").write_text(LISTED)
    (tmp_path / "bad.txt").write_text("".join(f"u{n}@b.test\n" for n in range(30_000)))
    book = Rulebook(tmp_path)

    async def scenario() -> None:
        readers: list[int] = []
        ours = threading.get_ident()
        read = book._read

        def watched():
            readers.append(threading.get_ident())
            return read()

        book._read = watched
        reading = asyncio.ensure_future(asyncio.to_thread(book.read))
        turns = 0
        while not reading.done():
            turns += 1
            await asyncio.sleep(0)
        book.put(reading.result())
        assert turns > 1
        assert readers and ours not in readers

    asyncio.run(scenario())
    assert book.is_listed("bad", "u29999@b.test")


def test_a_message_under_a_limit_is_taken(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        assert (await appliance.receive(CONTENT)).message_ids

    run(tmp_path, scenario, rule("limit", limit=5, period_seconds=60, per="client_ip"))
