"""The life of DKIM keys as rows: one rotation at a time, each step once, nobody else's domain."""

import json

import pytest
from sqlalchemy import Connection, func, insert, select

from storage import accounts, audit, dkim, events, schema
from storage.db import Database
from storage.dkim import Look, NewKey
from storage.errors import Conflict, Missing
from storage.records import DkimKey
from tests.storage.queued import HOUR, NOW, delivery_values, message_values
from tests.storage.tenants import OTHER, OURS, tenants

DOMAIN = "ours.example"
HERE = {"organization_id": OURS, "domain": DOMAIN}


@pytest.fixture
def both(database: Database) -> Database:
    """A database with two tenants, whose domain ours.example has an active key of each algorithm."""
    tenants(database)
    database.write(lambda c: accounts.add_domain(c, organization_id=OURS, name=DOMAIN, at=1) and None)
    for algorithm in ("rsa-sha256", "ed25519-sha256"):
        database.write(
            lambda c, a=algorithm: (
                accounts.add_dkim_key(
                    c,
                    organization_id=OURS,
                    domain=DOMAIN,
                    selector=f"old-{a}",
                    algorithm=a,
                    private_pem=b"pem",
                    public_record="v=DKIM1",
                    at=1,
                )
                and None
            )
        )
    return database


def new(number: int = 1) -> list[NewKey]:
    return [NewKey(f"{a}{number}", a, b"new", "v=DKIM1; new") for a in ("rsa-sha256", "ed25519-sha256")]


def begin(database: Database, at: int = 10, *, number: int = 1, is_told: bool = True) -> list[DkimKey]:
    return database.write(
        lambda c: dkim.begin(c, **HERE, made=new(number), actor="cli:op", is_told=is_told, at=at)
    )


def look(database: Database, keys: list[DkimKey], said: str, at: int, ttl: int = 0) -> list[DkimKey]:
    seen = {key.id: Look(said, ttl) for key in keys}
    return database.write(lambda c: dkim.look(c, **HERE, seen=seen, at=at))


def states(database: Database) -> list[str]:
    return [key.state for key in database.read(lambda c: dkim.keys(c, domain=DOMAIN, with_retired=True))]


def kinds(database: Database) -> list[str]:
    found = database.read(lambda c: events.after(c, seq=0, organization_id=OURS, limit=100))
    return [event.kind.removeprefix("domain.dkim_") for event in found if "dkim" in event.kind]


def test_a_rotation_goes_its_way(both: Database) -> None:
    made = begin(both)
    assert states(both) == ["active", "active", "made", "made"]
    # What is made signs nothing yet.
    assert {key.selector for key in both.read(lambda c: accounts.dkim_keys(c, domain=DOMAIN))} == {
        "old-rsa-sha256",
        "old-ed25519-sha256",
    }
    look(both, made, "right", 20, 60)
    found = look(both, made, "right", 30, 30)
    assert [(key.state, key.seen_at, key.ttl_seconds) for key in found[2:]] == [("published", 20, 60)] * 2
    heard: list[str] = []
    both.listen(lambda notices: heard.extend(one.topic for one in notices))
    both.write(lambda c: dkim.switch(c, **HERE, at=40))
    assert "accounts" in heard  # signers forget what they know
    assert states(both) == ["retiring", "retiring", "active", "active"]
    assert {key.selector for key in both.read(lambda c: accounts.dkim_keys(c, domain=DOMAIN))} == {
        "rsa-sha2561",
        "ed25519-sha2561",
    }
    old = [key.id for key in found[:2]]
    both.write(lambda c: dkim.retire(c, **HERE, key_ids=old, at=50))
    assert states(both) == ["retired", "retired", "active", "active"]
    ended = both.read(lambda c: dkim.keys(c, domain=DOMAIN, with_retired=True))[:2]
    assert [(key.private_pem, key.changed_at) for key in ended] == [(b"", 50)] * 2
    assert kinds(both) == [
        step for step in ("made", "published", "retiring", "active", "retired") for _ in range(2)
    ]
    rows = both.read(lambda c: audit.entries(c, organization_id=OURS))
    assert [(row.actor, row.action) for row in rows if "dkim" in row.action] == [
        ("daemon", "domain.dkim_retire"),
        ("daemon", "domain.dkim_switch"),
        ("cli:op", "domain.dkim_rotate"),
    ]
    assert "new" not in json.dumps([row.detail for row in rows])


def test_a_record_that_goes_again_has_to_be_seen_anew(both: Database) -> None:
    made = begin(both)
    look(both, made, "right", 20, 600)
    found = look(both, made, "unknown", 25)
    assert {(key.state, key.seen_at) for key in found[2:]} == {("published", 20)}
    found = look(both, made, "missing", 30)
    assert {(key.state, key.seen_at) for key in found[2:]} == {("made", None)}
    found = look(both, made, "right", 40, 5)
    assert {(key.state, key.seen_at, key.ttl_seconds) for key in found[2:]} == {("published", 40, 5)}
    assert kinds(both)[-4:] == ["unpublished", "unpublished", "published", "published"]


def test_a_signing_key_whose_record_goes_is_told_of_once(both: Database) -> None:
    active = both.read(lambda c: dkim.keys(c, domain=DOMAIN))[:1]
    for at, said in enumerate(("missing", "right", "unknown", "missing", "missing", "right")):
        look(both, active, said, at)
    assert kinds(both) == ["missing"]
    assert states(both) == ["active", "active"]


def test_one_rotation_at_a_time_and_no_selector_twice(both: Database) -> None:
    begin(both)
    with pytest.raises(Conflict, match="under way"):
        begin(both, number=2)
    cancelled = both.write(lambda c: dkim.cancel(c, **HERE, actor="cli:op", at=11))
    assert [key.state for key in cancelled] == ["made", "made"]
    assert states(both) == ["active", "active", "retired", "retired"]
    with pytest.raises(Conflict, match="selector"):
        begin(both)
    begin(both, number=2)
    assert kinds(both) == ["made", "made", "given_up", "given_up", "made", "made"]


def test_nothing_is_given_up_twice_and_nothing_of_others(both: Database) -> None:
    with pytest.raises(Missing):
        both.write(lambda c: dkim.cancel(c, **HERE, actor="x", at=11))
    with pytest.raises(Missing):
        both.write(
            lambda c: dkim.begin(
                c, organization_id=OTHER, domain=DOMAIN, made=new(), actor="x", is_told=True, at=1
            )
        )
    made = begin(both)
    with pytest.raises(Missing):
        both.write(lambda c: dkim.cancel(c, organization_id=OTHER, domain=DOMAIN, actor="x", at=11))
    assert both.read(lambda c: dkim.keys(c, domain=DOMAIN, organization_id=OTHER)) == []
    key_ids = [key.id for key in made]
    # Only what is retiring retires.
    both.write(lambda c: dkim.retire(c, **HERE, key_ids=key_ids, at=12))
    assert states(both) == ["active", "active", "made", "made"]


def test_the_operator_is_told_of_each_step_once(both: Database) -> None:
    def untold() -> list[str]:
        found = both.read(lambda c: dkim.untold(c, domain=DOMAIN, organization_id=OURS))
        both.write(lambda c: dkim.told(c, key_ids=[key.id for key in found]))
        return [key.state for key in found]

    assert untold() == []
    made = begin(both, is_told=False)
    assert untold() == ["made", "made"]
    assert untold() == []
    look(both, made, "right", 20)
    look(both, made, "missing", 21)
    look(both, made, "right", 22)
    assert untold() == []
    both.write(lambda c: dkim.switch(c, **HERE, at=30))
    assert untold() == ["active", "active"]
    old = [key.id for key in both.read(lambda c: dkim.keys(c, domain=DOMAIN)) if key.state == "retiring"]
    both.write(lambda c: dkim.retire(c, **HERE, key_ids=old, at=40))
    assert untold() == ["retired", "retired"]
    assert untold() == []


def test_domains_come_when_a_key_is_due(both: Database) -> None:
    def due(at: int) -> list[tuple[str, str]]:
        return both.read(lambda c: dkim.due(c, at=at, limit=10))

    assert due(0) == []
    assert due(1) == [(OURS, DOMAIN)]
    keys = both.read(lambda c: dkim.keys(c, domain=DOMAIN))
    both.write(lambda c: dkim.set_due(c, due_at={key.id: 100 for key in keys}))
    assert due(99) == []
    begin(both, at=50)
    assert due(50) == [(OURS, DOMAIN)]


@pytest.mark.parametrize(
    ("state", "created_at", "organization_id", "waits"),
    [
        ("deferred", NOW - HOUR, OURS, True),
        ("held", NOW - 1, OURS, True),
        ("active", NOW - 1, OURS, True),
        ("scheduled", NOW, OURS, False),
        ("delivered", NOW - HOUR, OURS, False),
        ("deferred", NOW - HOUR, OTHER, False),
    ],
)
def test_mail_in_the_queue_keeps_old_keys(
    both: Database, state: str, created_at: int, organization_id: str, waits: bool
) -> None:
    def unit(connection: Connection) -> None:
        message = message_values("msg_1", organization_id=organization_id)
        connection.execute(insert(schema.messages), [message])
        row = delivery_values(
            "dlv_1",
            message_id="msg_1",
            organization_id=organization_id,
            state=state,
            created_at=created_at,
            # As the queue has it: what is final or held comes due no more.
            next_attempt_at=NOW if state in ("deferred", "scheduled") else None,
            lease_until=NOW if state == "active" else None,
        )
        connection.execute(insert(schema.deliveries), [row])

    both.write(unit)
    assert both.read(lambda c: dkim.is_mail_waiting(c, organization_id=OURS, before=NOW)) is waits


def test_rotations_have_a_limit_and_old_keys_are_forgotten(
    both: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dkim, "RETIRED_LIMIT", 50)
    start = 10 * dkim.DAY
    a_day = dkim.KEYS_PER_DAY // 2

    def turn(number: int, at: int) -> None:
        begin(both, at, number=number)
        both.write(lambda c: dkim.cancel(c, **HERE, actor="cli:op", at=at))

    for number in range(a_day):
        turn(number, start + number)
    with pytest.raises(Conflict, match="tomorrow"):
        turn(99, start + 99)
    with pytest.raises(Conflict, match="tomorrow"):
        both.read(lambda c: dkim.require_none(c, **HERE, at=start + 99))
    for number in range(a_day, 2 * a_day):
        turn(number, start + dkim.DAY + number)
    kept = both.read(lambda c: dkim.keys(c, domain=DOMAIN, with_retired=True))
    everything = both.read(lambda c: c.execute(select(func.count()).select_from(schema.dkim_keys)).scalar())
    # Those that sign, what was kept, and the last.
    assert len(kept) == 2 + 50
    assert everything == 2 + 50 + 2
    assert [key.state for key in kept[:2]] == ["active", "active"]
    assert {key.selector for key in kept[-2:]} == {
        f"{a}{2 * a_day - 1}" for a in ("rsa-sha256", "ed25519-sha256")
    }
