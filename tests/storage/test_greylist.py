"""Greylisting: who is new comes back, who came back is known, and nobody is lost by our own limits."""

import asyncio
from collections.abc import Sequence
from functools import partial

import pytest

import server.greylist
from policies.compile import PolicyError, compile_rules
from server.greylist import LIMIT, Greylist, GreylistSettings
from server.refusal import Refusal
from storage import greylist
from storage.db import Database
from storage.greylist import Sight
from storage.records import Verdict
from tests.fakes import FakeClock
from tests.storage.test_limits import Direct
from tests.test_intake import CONTENT, Appliance, run
from tests.test_rules_acting import rule

SETTINGS = GreylistSettings(delay_seconds=300, window_seconds=7200, keep_days=10)
DAY = 86_400
RULE = rule("greylist", 'source == "mx"')


def brought(
    made: Greylist,
    client: str = "192.0.2.0/24",
    sender: str = "ada@far.example",
    recipients: Sequence[str] = ("one@ours.example",),
) -> bool:
    return made.passes(client=client, sender=sender, recipients=recipients)


def test_who_comes_back_in_time_is_known_for_days():
    clock = FakeClock()
    made = Greylist(clock, SETTINGS)
    assert not brought(made)
    clock.advance(299)
    assert not brought(made)
    clock.advance(1)
    assert brought(made)
    # The client is known for the sender's domain now, whoever of it writes and to whom.
    assert brought(made, sender="bob@far.example", recipients=["two@ours.example"])
    assert not brought(made, sender="ada@else.example")
    assert not brought(made, client="198.51.100.0/24")
    clock.advance(9 * DAY)
    assert brought(made)
    clock.advance(9 * DAY)
    assert brought(made)  # each message counts anew
    clock.advance(10 * DAY + 1)
    assert not brought(made)


def test_who_comes_back_too_late_is_new():
    clock = FakeClock()
    made = Greylist(clock, SETTINGS)
    assert not brought(made)
    clock.advance(7201)
    assert not brought(made)
    clock.advance(300)
    assert brought(made)


def test_every_recipient_has_to_have_waited():
    clock = FakeClock()
    made = Greylist(clock, SETTINGS)
    assert not brought(made, recipients=["one@ours.example"])
    clock.advance(200)
    assert not brought(made, recipients=["one@ours.example", "two@ours.example"])
    clock.advance(200)
    assert not brought(made, recipients=["two@ours.example", "one@ours.example"])
    clock.advance(200)
    assert brought(made, recipients=["two@ours.example", "one@ours.example"])


def test_the_null_sender_is_a_sender_and_nobody_without_an_address_waits():
    clock = FakeClock()
    made = Greylist(clock, SETTINGS)
    assert not brought(made, sender="")
    clock.advance(300)
    assert brought(made, sender="")
    assert not brought(made)
    assert brought(made, client="")


def test_a_flood_of_strangers_makes_nobody_wait_for_ever(monkeypatch):
    monkeypatch.setattr(server.greylist, "LIMIT", 100)
    clock = FakeClock()
    made = Greylist(clock, SETTINGS)
    assert not brought(made)
    for number in range(200):
        brought(made, sender=f"x{number}@flood.example")
    assert len(made._awaited) == 100
    # No room to remember anybody for an hour: let through, and who is remembered keeps the place.
    assert brought(made, sender="new@honest.example")
    clock.advance(301)
    assert brought(made)
    clock.advance(3600)
    assert not brought(made, sender="new@honest.example")
    clock.advance(301)
    assert brought(made, sender="new@honest.example")
    assert made.counts["no room"] == 101 + 1
    assert LIMIT > 100


def test_what_was_seen_outlives_a_restart(database: Database) -> None:
    async def scenario() -> None:
        clock, door = FakeClock(), Direct(database)
        made = Greylist(clock, SETTINGS)
        assert not brought(made)
        assert not brought(made, sender="late@else.example")
        await made.flush(door)
        clock.advance(400)
        again = Greylist(clock, SETTINGS)
        await again.load(door)
        assert brought(again)
        await again.flush(door)
        clock.advance(DAY)
        later = Greylist(clock, SETTINGS)
        await later.load(door)
        assert brought(later, sender="bob@far.example")
        assert not brought(later, sender="late@else.example")

    asyncio.run(scenario())


def test_processes_hear_of_each_others_strangers(database: Database) -> None:
    async def scenario() -> None:
        clock, door = FakeClock(), Direct(database)
        one, two = Greylist(clock, SETTINGS), Greylist(clock, SETTINGS)
        assert not brought(one)
        clock.advance(200)
        assert not brought(two)
        await one.flush(door)
        await two.flush(door)
        clock.advance(100)
        await two.load(door)
        assert brought(two)  # 300 seconds after the first sight, wherever that was
        await two.flush(door)
        await one.load(door)
        assert brought(one, recipients=["other@ours.example"])

    asyncio.run(scenario())


def test_a_failed_write_is_made_up_for(database: Database) -> None:
    class Broken:
        async def write(self, _unit: object) -> None:
            raise OSError("no disk")

    async def scenario() -> None:
        clock, door = FakeClock(), Direct(database)
        made = Greylist(clock, SETTINGS)
        assert not brought(made)
        with pytest.raises(OSError, match="no disk"):
            await made.flush(Broken())
        await made.flush(door)
        assert len(database.read(partial(greylist.changed, since=0, limit=10))) == 1

    asyncio.run(scenario())


def test_rows_that_are_over_go_and_so_do_the_oldest_of_too_many(database: Database, monkeypatch) -> None:
    monkeypatch.setattr(greylist, "ROWS_LIMIT", 5)

    def sight(number: int, until: int) -> Sight:
        return Sight(bytes([number]) * 16, False, number, until)

    for number in range(10):
        database.write(partial(greylist.add, seen=[sight(number, 20 if number == 9 else 100)], at=number))
    database.write(partial(greylist.prune, at=50))
    left = database.read(partial(greylist.changed, since=0, limit=100))
    assert [one.since for one in left] == [8, 7, 6, 5]


def test_a_row_that_is_over_begins_anew_and_one_that_holds_stays(database: Database) -> None:
    digest = b"d" * 16

    def stored() -> tuple[int, int]:
        (one,) = database.read(partial(greylist.changed, since=0, limit=10))
        return one.since, one.until

    for since, expected in [(10, (10, 110)), (50, (10, 110)), (111, (111, 211))]:
        database.write(partial(greylist.add, seen=[Sight(digest, False, since, since + 100)], at=since))
        assert stored() == expected
    database.write(partial(greylist.add, seen=[Sight(digest, True, 150, 400)], at=150))
    assert stored() == (111, 400)


class Passing:
    """SPF passes for the domain of the sender."""

    async def verify(self, **_: object) -> tuple[Verdict, ...]:
        return (Verdict("spf", "pass", "far.example"),)

    def results_field(self, _verdicts: object) -> bytes:
        return b""


def test_a_stranger_is_told_to_come_back_and_is_let_in_then(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        with pytest.raises(Refusal, match="please try again") as caught:
            await appliance.receive(CONTENT)
        assert (caught.value.code, caught.value.enhanced) == (451, "4.7.1")
        assert appliance.accepted == []
        appliance.clock.advance(301)
        await appliance.receive(CONTENT)
        await appliance.receive(CONTENT, "two@ours.example")
        assert [step.effect for step in appliance.accepted[0].decision.trace] == ["came back"]

    run(tmp_path, scenario, RULE)


def test_a_message_for_two_organizations_waits_once(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        recipients = ("one@ours.example", "x@other.example")
        with pytest.raises(Refusal):
            await appliance.receive(CONTENT, *recipients)
        appliance.clock.advance(301)
        await appliance.receive(CONTENT, *recipients)
        assert len(appliance.accepted) == 2

    run(tmp_path, scenario, RULE)


def test_a_retry_from_another_host_that_spf_names_too_counts(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        appliance.intake._verifier = Passing()
        with pytest.raises(Refusal):
            await appliance.receive(CONTENT)
        appliance.clock.advance(301)
        await appliance.receive(CONTENT)
        (seen,) = appliance.rulebook.greylist._awaited
        assert seen == server.greylist._digest(
            "awaited", "domain far.example", "ada@far.example", "one@ours.example"
        )

    run(tmp_path, scenario, RULE)


def test_another_rule_may_spare_whom_it_likes(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await appliance.receive(CONTENT)
        assert not appliance.rulebook.greylist._awaited

    run(tmp_path, scenario, rule("accept", 'sender == "ada@far.example"', name="friend") + RULE)


def test_who_is_refused_for_reputation_is_not_asked_to_come_back(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        with pytest.raises(Refusal, match="We do not know you"):
            await appliance.receive(CONTENT)
        assert not appliance.rulebook.greylist._awaited

    refusing = rule("reject", reason="reputation", name="known", text="We do not know you")
    run(tmp_path, scenario, refusing + RULE)


def test_it_may_stand_at_rcpt_and_has_no_other_code_than_a_temporary_one():
    compile_rules([("one", rule("greylist", stage="rcpt", text="Come back", code=450))])
    for keys in ({"code": 550}, {"stage": "connect"}):
        with pytest.raises(PolicyError):
            compile_rules([("one", rule("greylist", **keys))])
