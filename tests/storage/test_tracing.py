"""`trace` and `case`, as operations over a real store, on SQLite and on PostgreSQL."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import insert

from server import tracing
from server.arguments import WrongArguments
from server.dns import DnsTemporary
from server.tally import OTHER, PROVIDERS_LIMIT, Tally
from storage import events, ids, schema
from storage.db import Database
from storage.errors import Missing
from storage.records import Envelope, Event, Recipient
from tests.delivery.world import Zone
from tests.fakes import FakeClock
from tests.storage.queued import HOUR, NOW, delivery_values, message_values, put

DIALOGUE = ["S: 220 mx.peer.test", "C: MAIL FROM:<sender@ours.test>", "S: 451 4.7.1 greylisted"]


def context(database: Database) -> Any:
    return SimpleNamespace(store=SimpleNamespace(database=database), clock=FakeClock(NOW))


def letter(
    database: Database, name: str, *, source: str, by: str | None, to: tuple[str, ...], **more: Any
) -> None:
    envelope = Envelope(by, tuple(map(Recipient, to)))
    values = message_values(name, source=source, envelope=envelope, **more)
    database.write(lambda c: c.execute(insert(schema.messages).values(values)))


@pytest.fixture
def filled(database: Database) -> Database:
    put(database, organizations=("org_a", "org_b"))
    letter(database, "msg_1", source="submission", by="sender@ours.test", to=("r@peer.test", "x@peer.test"))
    letter(database, "msg_2", source="mx", by="R@peer.test", to=("sender@ours.test",), accepted_at=NOW - HOUR)
    letter(database, "msg_3", source="mx", by="other@peer.test", to=("sender@ours.test",))
    letter(database, "msg_4", source="api", by="b@b.test", to=("r@peer.test",), organization_id="org_b")
    letter(database, "msg_5", source="api", by="s@ours.test", to=("rr@peer.test", "r@peer.testing"))
    put(
        database,
        delivery_values(
            "dlv_1", message_id="msg_1", state="deferred", last_outcome='{"code":451,"text":"later"}'
        ),
        delivery_values("dlv_2", message_id="msg_1", recipient="x@peer.test"),
    )
    attempt = {"attempt": 1, "code": 451, "enhanced": "4.7.1", "text": "greylisted", "host": "mx.peer.test"}
    more = {
        "address": "192.0.2.1",
        "phase": "mail",
        "dialogue": DIALOGUE,
        "next_attempt_at": NOW,
        "duration": 9,
    }
    made = [
        Event(ids.new("evt"), "message.accepted", NOW, "org_a", "msg_1"),
        Event(
            ids.new("evt"),
            "message.deferred",
            NOW,
            "org_a",
            "msg_1",
            delivery_id="dlv_1",
            data=attempt | more,
        ),
        Event(
            ids.new("evt"),
            "message.deferred",
            NOW,
            "org_a",
            "msg_1",
            delivery_id="dlv_2",
            data={"attempt": 1},
        ),
    ]
    database.write(lambda c: events.append(c, made))
    return database


def traced(database: Database, address: str, **given: Any) -> list[str]:
    return [one["id"] for one in tracing.trace(context(database), address=address, **given)["messages"]]


def test_a_trace_has_what_an_address_got_and_sent(filled: Database) -> None:
    assert sorted(traced(filled, "R@PEER.test")) == ["msg_1", "msg_2", "msg_4"]
    assert traced(filled, "r@peer.test", organization_id="org_a") == ["msg_1", "msg_2"]
    assert traced(filled, "r@peer.test", organization_id="org_b") == ["msg_4"]
    assert traced(filled, "nobody@peer.test") == []
    assert len(traced(filled, "r@peer.test", limit=1)) == 1


def test_a_trace_names_the_address_own_deliveries(filled: Database) -> None:
    (got,) = [
        one
        for one in tracing.trace(context(filled), address="r@peer.test")["messages"]
        if one["id"] == "msg_1"
    ]
    assert [one["id"] for one in got["deliveries"]] == ["dlv_1"]
    assert got["deliveries"][0]["last_outcome"]["text"] == "later"
    (sent,) = [
        one
        for one in tracing.trace(context(filled), address="sender@ours.test")["messages"]
        if one["id"] == "msg_1"
    ]
    assert [one["id"] for one in sent["deliveries"]] == ["dlv_1", "dlv_2"]


def test_a_trace_looks_so_far_back(filled: Database) -> None:
    clock = context(filled)
    clock.clock.advance(86_400 - 1800)
    found = tracing.trace(clock, address="r@peer.test", days=1, organization_id="org_a")["messages"]
    assert [one["id"] for one in found] == ["msg_1"]


@pytest.mark.parametrize("address", ["", "x", "a@b@c", "%@peer.test%", 'r"@peer.test'])
def test_what_is_no_address_finds_nothing(filled: Database, address: str) -> None:
    with pytest.raises(WrongArguments):
        traced(filled, address)


def test_wildcards_of_the_database_are_plain_letters(filled: Database) -> None:
    assert traced(filled, "_@peer.test") == []
    assert traced(filled, "%@peer.test") == []


def test_a_case_tells_all_of_one_delivery_and_of_no_other(filled: Database) -> None:
    zone = Zone().mx("peer.test", (10, "mx.peer.test"), (20, "b.peer.test")).a("mx.peer.test", "192.0.2.1")
    zone.fails("b.peer.test", "A", DnsTemporary("silent"))
    zone.fails("b.peer.test", "AAAA", DnsTemporary("silent"))
    names = asyncio.run(tracing.names_of(zone, "peer.test"))
    found = tracing.case(context(filled), id="dlv_1", hostname="us.test", names=names)
    text = found["text"]
    for wanted in (
        "<r@peer.test>", "451 4.7.1 greylisted", "mx.peer.test [192.0.2.1]", *DIALOGUE, "10 mx.peer.test",
        "addresses of b.peer.test: (silent)", "<msg_1@ours.test>", "message.accepted",
    ):  # fmt: skip
        assert wanted in text
    assert "x@peer.test" not in text
    assert len(found["attempts"]) == 1


def test_a_case_is_of_the_own_organization(filled: Database) -> None:
    for wanted, owner in (("dlv_1", "org_b"), ("dlv_9", None), ("msg_1", None)):
        with pytest.raises(Missing):
            tracing.case(context(filled), id=wanted, hostname="us.test", organization_id=owner)
    assert filled.read(lambda c: tracing.domain_of(c, delivery_id="dlv_1", organization_id="org_b")) == ""
    assert filled.read(lambda c: tracing.domain_of(c, delivery_id="dlv_1")) == "peer.test"


def test_the_tally_bounds_providers_and_counts_by_time() -> None:
    tally = Tally()
    for number in range(PROVIDERS_LIMIT + 5):
        tally.attempt(result="delivered", provider=f"p{number}.test", seconds=0.2)
    tally.attempt(result="deferred", provider="", seconds=1000.0, is_in_doubt=True)
    assert tally.results["delivered", OTHER] == 5
    assert tally.results["deferred", OTHER] == 1
    buckets = dict(tally.buckets())
    assert (buckets["0.1"], buckets["0.25"], buckets["+Inf"]) == (0, 55, 56)
    assert tally.in_doubt == 1
