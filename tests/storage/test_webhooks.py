"""Calls that wait: once an event, leased without loss, bounded, gone when settled."""

from dataclasses import replace
from functools import partial

import pytest

from storage import accounts, events, ids, webhooks
from storage.db import Database
from storage.records import Event
from storage.webhooks import Call

NOW = 1_800_000_000_000_000


@pytest.fixture
def owner(database: Database) -> str:
    return database.write(lambda c: accounts.add_organization(c, name="one", at=1)).id


def call(owner: str, number: int = 1, **changes: object) -> Call:
    made = Call(
        id=f"whc_{number}",
        organization_id=owner,
        event_id=f"evt_{number}",
        message_id="msg_1",
        url="https://a.test/x",
        origin="https://a.test:443",
        kind="message.webhook",
        payload="{}",
        content=False,
        created_at=NOW,
        next_attempt_at=NOW,
        expires_at=NOW + 10,
    )
    return replace(made, **changes)


def lease(
    database: Database, *, now: int = NOW, limit: int = 10, without: tuple[str, ...] = ()
) -> list[Call]:
    return database.write(partial(webhooks.lease, now=now, until=now + 100, limit=limit, without=without))


def test_an_event_has_one_call_however_often_it_is_handled(database: Database, owner: str) -> None:
    for identity in ("whc_1", "whc_2"):
        made = replace(call(owner), id=identity)
        assert database.write(partial(webhooks.add, call=made))
    assert database.read(webhooks.waiting) == 1


def test_a_leased_call_is_nobodys_until_its_lease_ends(database: Database, owner: str) -> None:
    database.write(partial(webhooks.add, call=call(owner, content=True)))
    (taken,) = lease(database)
    assert (taken.tries, taken.content) == (1, True)
    assert lease(database) == []
    assert database.read(webhooks.next_due) == NOW + 100
    (again,) = lease(database, now=NOW + 100)
    assert again.tries == 2


def test_the_longest_due_goes_first_and_held_origins_wait(database: Database, owner: str) -> None:
    for number in range(5):
        origin = "https://b.test:443" if number == 3 else "https://a.test:443"
        made = call(owner, number, origin=origin, next_attempt_at=NOW - number)
        database.write(partial(webhooks.add, call=made))
    assert [one.id for one in lease(database, limit=1)] == ["whc_4"]
    assert [one.id for one in lease(database, without=("https://a.test:443",))] == ["whc_3"]
    assert [one.id for one in lease(database)] == ["whc_2", "whc_1", "whc_0"]


def test_what_was_leased_and_not_begun_is_given_back_whole(database: Database, owner: str) -> None:
    database.write(partial(webhooks.add, call=call(owner)))
    taken = lease(database)
    database.write(partial(webhooks.give_back, calls=taken, at=NOW))
    assert lease(database)[0].tries == 1


def test_a_settled_call_is_gone_and_a_deferred_one_waits_and_both_are_events(
    database: Database, owner: str
) -> None:
    database.write(partial(webhooks.add, call=call(owner)))
    for when, left in ((NOW + 500, 1), (None, 0)):
        (taken,) = lease(database, now=NOW + 1000 if when is None else NOW)
        told = Event(ids.new("evt"), "webhook.x", NOW, owner, "msg_1", data={"status": 200})
        database.write(partial(webhooks.settle, call=taken, next_attempt_at=when, told=told))
        assert database.read(webhooks.waiting) == left
    assert len(database.read(lambda c: events.after(c, seq=0, kinds=["webhook.x"], limit=10))) == 2


def test_the_number_that_waits_is_bounded(
    database: Database, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "WAITING_LIMIT", 2)
    found = [database.write(partial(webhooks.add, call=call(owner, number))) for number in range(4)]
    assert found == [True, True, False, False]
