"""The event log: order, scope, cursors."""

import pytest

from storage import events
from storage.db import Database, Notice
from storage.records import Event


def make(
    number: int, *, kind="message.received", organization="org_a", message="msg_a", mailbox=None, **data
):
    return Event(f"evt_{number:04}", kind, number, organization, message, mailbox, None, data)


def put(database: Database, *made: Event) -> int:
    return database.write(lambda c: events.append(c, made))


def ids_after(database: Database, seq: int, **narrowed) -> list[str]:
    found = database.read(lambda c: events.after(c, seq=seq, limit=narrowed.pop("limit", 100), **narrowed))
    return [event.id for event in found]


def test_append_returns_the_highest_seq_and_publishes_it(database: Database) -> None:
    heard: list[Notice] = []
    database.listen(heard.extend)
    seq = put(database, make(1), make(2), make(3))
    stored = database.read(lambda c: events.after(c, seq=0, limit=10))
    assert [event.seq for event in stored] == sorted(event.seq for event in stored)
    assert stored[-1].seq == seq
    assert Notice("events", "", seq) in heard


def test_nothing_appended_publishes_nothing(database: Database) -> None:
    heard: list[Notice] = []
    database.listen(heard.extend)
    assert put(database) == 0
    assert heard == []


def test_an_event_comes_back_as_it_was_put(database: Database) -> None:
    data = {"text": "Größe \x00 \udc80 \u2028", "nested": {"list": [1, None, True]}}
    event = make(7, mailbox="inb_1", **data)
    put(database, event)
    (found,) = database.read(lambda c: events.after(c, seq=0, limit=1))
    assert found.data == data
    assert (found.id, found.kind, found.at, found.mailbox_id) == ("evt_0007", event.kind, 7, "inb_1")


def test_a_timeline_is_one_message_of_one_organization(database: Database) -> None:
    put(
        database,
        make(1),
        make(2, message="msg_b"),
        make(3, organization="org_b"),
        make(4, kind="message.sent"),
    )
    steps = database.read(lambda c: events.timeline(c, organization_id="org_a", message_id="msg_a"))
    assert [step.id for step in steps] == ["evt_0001", "evt_0004"]
    assert database.read(lambda c: events.timeline(c, organization_id="org_c", message_id="msg_a")) == []


def test_after_pages_in_order_and_narrows(database: Database) -> None:
    put(
        database,
        make(1),
        make(2, organization="org_b"),
        make(3, kind="message.sent"),
        make(4, mailbox="inb_1"),
    )
    everything = database.read(lambda c: events.after(c, seq=0, limit=100))
    assert ids_after(database, 0) == ["evt_0001", "evt_0002", "evt_0003", "evt_0004"]
    assert ids_after(database, everything[1].seq, limit=1) == ["evt_0003"]
    assert ids_after(database, 0, organization_id="org_b") == ["evt_0002"]
    assert ids_after(database, 0, kinds=["message.sent"]) == ["evt_0003"]
    assert ids_after(database, 0, kinds=[]) == []
    assert ids_after(database, 0, mailbox_id="inb_1") == ["evt_0004"]


def test_latest_goes_backwards_from_the_newest(database: Database) -> None:
    put(database, *(make(number) for number in range(1, 6)))
    first = database.read(lambda c: events.latest(c, limit=2))
    assert [event.id for event in first] == ["evt_0005", "evt_0004"]
    rest = database.read(lambda c: events.latest(c, before=first[-1].seq, organization_id="org_a", limit=9))
    assert [event.id for event in rest] == ["evt_0003", "evt_0002", "evt_0001"]


def test_a_page_is_never_longer_than_the_limit_of_pages(database: Database) -> None:
    put(database, *(make(number) for number in range(events.PAGE_LIMIT + 5)))
    assert len(ids_after(database, 0, limit=10_000_000)) == events.PAGE_LIMIT
    assert len(ids_after(database, 0, limit=-3)) == 1


def test_a_cursor_begins_at_zero_and_never_goes_back(database: Database) -> None:
    def at() -> int:
        return database.read(lambda c: events.cursor(c, name="bounces"))

    assert at() == 0
    for seq, expected in ((5, 5), (9, 9), (3, 9), (9, 9)):
        database.write(lambda c, seq=seq: events.advance(c, name="bounces", seq=seq))
        assert at() == expected
    assert database.read(lambda c: events.cursor(c, name="webhooks")) == 0


def test_a_failed_unit_moves_no_cursor(database: Database) -> None:
    def unit(connection) -> None:
        events.advance(connection, name="bounces", seq=4)
        raise RuntimeError("after the cursor")

    with pytest.raises(RuntimeError):
        database.write(unit)
    assert database.read(lambda c: events.cursor(c, name="bounces")) == 0


def test_an_event_is_stored_once(database: Database) -> None:
    put(database, make(1))
    with pytest.raises(Exception, match=r"(?i)unique"):
        put(database, make(1))


def test_facts_of_an_unknown_message_are_none(database: Database) -> None:
    for wanted in ("msg_x", "dlv_x", ""):
        found = database.read(lambda c, w=wanted: events.message_facts(c, message_or_delivery_id=w))
        assert found is None
