"""Counts, whom was written to, pauses and list entries, on every database."""

import json

from sqlalchemy import func, insert, select

from storage import events, ids, schema, sending
from storage.db import Database
from storage.records import Event, Pause
from tests.storage.tenants import tenants

HOUR = 3600 * 1_000_000


def counts(database: Database, *keys):
    return database.read(lambda c: sending.counts(c, list(keys)))


def test_counts_add_up_by_kind_key_and_start(database: Database) -> None:
    database.write(
        lambda c: sending.add_counts(c, {("sent", "a", 0): 2, ("sent", "a", 10): 1, ("new", "a", 0): 5})
    )
    database.write(lambda c: sending.add_counts(c, {("sent", "a", 0): 3}))
    found = counts(database, ("sent", "a"), ("new", "a"), ("sent", "b"))
    assert found == {("sent", "a"): {0: 5, 10: 1}, ("new", "a"): {0: 5}, ("sent", "b"): {}}
    assert counts(database) == {}


def test_who_was_written_to_is_known_to_that_organization_alone(database: Database) -> None:
    ours, other = tenants(database)
    database.write(lambda c: sending.add_written(c, {(ours, b"1"), (ours, b"2")}, at=5))
    database.write(lambda c: sending.add_written(c, {(ours, b"2")}, at=6))
    assert _known(database, ours) == {b"1", b"2"}
    assert _known(database, other) == set()


def _known(database: Database, owner: str) -> set[bytes]:
    return database.read(lambda c: sending.known_of(c, organization_id=owner, digests=[b"1", b"2", b"3"]))


def test_what_no_window_reaches_is_pruned_and_nothing_else(database: Database) -> None:
    ours, _ = tenants(database)
    now = 400 * 24 * HOUR
    ages = {"sent": (1, 26), "bounced": (26, 9 * 24)}
    counted = {(kind, "k", now - age * HOUR): 1 for kind, hours in ages.items() for age in hours}
    database.write(lambda c: sending.add_counts(c, counted))
    database.write(lambda c: sending.add_written(c, {(ours, b"1")}, at=now - 200 * 24 * HOUR))
    database.write(lambda c: sending.add_written(c, {(ours, b"2")}, at=now - 100 * 24 * HOUR))
    database.write(lambda c: sending.prune(c, at=now))
    left = counts(database, ("sent", "k"), ("bounced", "k"))
    assert left == {("sent", "k"): {now - HOUR: 1}, ("bounced", "k"): {now - 26 * HOUR: 1}}
    assert _known(database, ours) == {b"2"}


def _message(database: Database, message_id: str, owner: str, login: str) -> None:
    values = dict.fromkeys(
        (
            "source",
            "envelope",
            "decision",
            "verdicts",
            "message_id_header",
            "subject",
            "from_",
            "to",
            "thread_id",
        ),
        "",
    )
    row = {**values, "id": message_id, "organization_id": owner, "peer": json.dumps({"identity": login})}
    row |= dict.fromkeys(("accepted_at", "octets", "sent_at", "spooled"), 0) | {"digest": b"", "trace": b""}
    database.write(lambda c: c.execute(insert(schema.messages), row))


def test_outcomes_are_counted_once_for_the_login_and_the_organization(database: Database) -> None:
    ours, _ = tenants(database)
    _message(database, "msg_1", ours, "key_1")
    kinds = ["message.delivered"] * 3 + ["message.bounced", "message.deferred", "message.complained"]
    made = [Event(ids.new("evt"), kind, 7 * HOUR, ours, "msg_1") for kind in kinds]
    database.write(lambda c: events.append(c, made))
    assert database.read(sending.has_outcomes)
    changed, full = database.write(sending.tally)
    assert not full
    assert not database.read(sending.has_outcomes)
    assert database.write(sending.tally) == (set(), False)
    start = 6 * HOUR
    for key in (ours, "key_1"):
        found = counts(database, ("settled", key), ("bounced", key), ("complained", key))
        assert list(found.values()) == [{start: 4}, {start: 1}, {start: 1}]
        assert ("settled", key) in changed


def test_more_outcomes_than_a_page_are_counted_page_by_page(database: Database) -> None:
    ours, _ = tenants(database)
    made = [Event(ids.new("evt"), "message.delivered", HOUR, ours) for _ in range(events.PAGE_LIMIT + 5)]
    database.write(lambda c: events.append(c, made))
    assert database.write(sending.tally)[1]
    assert not database.write(sending.tally)[1]
    assert counts(database, ("settled", ours)) == {("settled", ours): {0: events.PAGE_LIMIT + 5}}


def test_a_pause_stands_once_and_its_end_forgets_the_rates(database: Database) -> None:
    ours, _ = tenants(database)
    pause = Pause("key_1", ours, "bounces", "Paused", 3)
    assert database.write(lambda c: sending.pause(c, pause))
    assert not database.write(lambda c: sending.pause(c, pause))
    assert database.read(sending.pauses) == [pause]
    database.write(lambda c: sending.add_counts(c, {("bounced", "key_1", 0): 9, ("sent", "key_1", 0): 9}))
    assert database.write(lambda c: sending.lift(c, subject="key_1", at=4)) == pause
    assert database.write(lambda c: sending.lift(c, subject="key_1", at=5)) is None
    assert counts(database, ("bounced", "key_1"), ("sent", "key_1")) == {
        ("bounced", "key_1"): {},
        ("sent", "key_1"): {0: 9},
    }


def test_entries_of_a_list_are_there_once(database: Database) -> None:
    database.write(lambda c: sending.add_entries(c, name="vip", entries=["b", "a"], at=1))
    database.write(lambda c: sending.add_entries(c, name="vip", entries=["a"], at=2))
    assert database.read(sending.list_entries) == {"vip": ["a", "b"]}
    assert database.write(lambda c: sending.remove_entries(c, name="vip", entries=["a", "x"])) == 1
    table = schema.list_entries
    assert database.read(lambda c: c.execute(select(func.count()).select_from(table)).scalar()) == 1
