"""What deliveries teach about addresses: at once, after a run, on probation; and whom a row concerns."""

from dataclasses import replace

import pytest
from sqlalchemy import insert, select

from storage import events, schema, suppressing, suppression
from storage.db import Database
from storage.records import Suppression
from storage.suppressing import DAY, Asked, Failure, Held, Rules
from tests.storage.queued import delivery_values, put
from tests.storage.tenants import tenants

RULES = Rules(soft_failures=3, soft_window=10 * DAY, half_life=2 * DAY)
READER = "reader@example.net"


def fail(
    database: Database,
    owner: str,
    address: str = READER,
    *,
    at: int,
    kind: str = "mailbox_full",
    by: str = "",
) -> Suppression | None:
    failure = Failure(owner, address, kind, "452 4.2.2 full", "evt_1", by or None)
    return database.write(lambda c: suppressing.failed(c, failure, rules=RULES, at=at))


def held(
    database: Database, owner: str, address: str = READER, *, at: int, by: str = "dlv_1", sender: str = ""
):
    asked = Asked(by, owner, address, sender)
    return database.write(lambda c: suppressing.held(c, [asked], at=at))


def add(database: Database, owner: str, address: str, **more) -> Suppression:
    more = {"cause": "manual", "at": 1, **more}
    return database.write(lambda c: suppression.add(c, organization_id=owner, address=address, **more))


def test_a_hard_bounce_suppresses_at_once_with_its_evidence(database: Database) -> None:
    ours, other = tenants(database)
    made = fail(database, ours, at=5, kind="hard")
    assert made is not None
    assert (made.cause, made.event_id, made.evidence) == ("hard_bounce", "evt_1", "452 4.2.2 full")
    assert held(database, ours, at=6).causes == {"dlv_1": "hard_bounce"}
    assert held(database, other, at=6) == Held()
    (told,) = database.read(lambda c: events.after(c, seq=0, kinds=["suppression.added"], limit=9))
    assert (told.organization_id, told.data["address"], told.data["event"]) == (ours, READER, "evt_1")


def test_soft_failures_suppress_after_a_run_within_the_window(database: Database) -> None:
    ours, _ = tenants(database)
    assert fail(database, ours, at=1 * DAY) is None
    assert fail(database, ours, at=2 * DAY) is None
    assert held(database, ours, at=2 * DAY) == Held({}, frozenset({"dlv_1"}))
    made = fail(database, ours, at=3 * DAY)
    assert made is not None
    assert (made.cause, made.failures, made.probation_at) == ("soft_bounce", 3, 5 * DAY)
    assert held(database, ours, at=4 * DAY).causes == {"dlv_1": "soft_bounce"}


def test_failures_far_apart_are_no_run(database: Database) -> None:
    ours, _ = tenants(database)
    for day in (1, 8, 15, 22, 29):
        assert fail(database, ours, at=day * DAY) is None


def test_a_delivery_that_is_taken_ends_the_run(database: Database) -> None:
    ours, _ = tenants(database)
    fail(database, ours, at=1)
    fail(database, ours, at=2)
    database.write(lambda c: suppressing.succeeded(c, [Asked("dlv_9", ours, READER)], at=3))
    assert fail(database, ours, at=4) is None
    assert held(database, ours, at=5).causes == {}


def suppressed_softly(database: Database) -> str:
    put(database, delivery_values("dlv_1", message_id="msg_1", state="active"), organizations=("org_a",))
    for at in (1, 2, 3):
        fail(database, "org_a", at=at)
    return "org_a"


def test_one_probe_goes_through_and_its_success_ends_the_suppression(database: Database) -> None:
    owner = suppressed_softly(database)
    after = 3 + 2 * DAY
    assert held(database, owner, at=after - 1).causes
    assert held(database, owner, at=after, by="dlv_1").watched == {"dlv_1"}
    assert held(database, owner, at=after, by="dlv_2").causes == {"dlv_2": "soft_bounce"}
    assert held(database, owner, at=after, by="dlv_1").causes == {}  # asked again at its beginning
    database.write(lambda c: suppressing.succeeded(c, [Asked("dlv_1", owner, READER)], at=after))
    assert held(database, owner, at=after, by="dlv_2") == Held()
    (told,) = database.read(lambda c: events.after(c, seq=0, kinds=["suppression.ended"], limit=9))
    assert told.data["address"] == READER


def test_a_probe_that_fails_doubles_the_half_life(database: Database) -> None:
    owner = suppressed_softly(database)
    after = 3 + 2 * DAY
    held(database, owner, at=after, by="dlv_1")
    made = fail(database, owner, at=after, by="dlv_1")
    assert made is not None
    assert (made.failures, made.probe_id, made.probation_at) == (4, None, after + 4 * DAY)
    assert held(database, owner, at=after + 4 * DAY - 1, by="dlv_2").causes


def test_a_probe_that_came_to_nothing_is_followed_by_another(database: Database) -> None:
    owner = suppressed_softly(database)
    after = 3 + 2 * DAY
    held(database, owner, at=after, by="dlv_1")
    table = schema.deliveries
    database.write(lambda c: c.execute(table.update().values(state="cancelled")) and None)
    assert held(database, owner, at=after, by="dlv_2").watched == {"dlv_2"}


def test_a_hard_bounce_after_soft_ones_holds_without_probation(database: Database) -> None:
    owner = suppressed_softly(database)
    made = fail(database, owner, at=9, kind="hard", by="dlv_5")
    assert made is not None
    assert (made.cause, made.probation_at) == ("hard_bounce", None)


def test_a_bounce_takes_no_persons_word_away(database: Database) -> None:
    ours, _ = tenants(database)
    add(database, ours, READER, cause="complaint")
    assert fail(database, ours, at=9, kind="hard") is None
    assert held(database, ours, at=10).causes == {"dlv_1": "complaint"}
    database.write(lambda c: suppressing.succeeded(c, [Asked("dlv_1", ours, READER)], at=3))
    assert held(database, ours, at=10).causes == {"dlv_1": "complaint"}


def test_a_base_address_covers_its_tags_and_a_tag_only_itself(database: Database) -> None:
    ours, _ = tenants(database)
    fail(database, ours, "a+news@example.net", at=1, kind="hard")
    assert held(database, ours, "a+news@example.net", at=2).causes
    assert not held(database, ours, "a@example.net", at=2).causes
    assert not held(database, ours, "a+other@example.net", at=2).causes
    fail(database, ours, "b@example.net", at=1, kind="hard")
    assert held(database, ours, "b+anything@example.net", at=2).causes
    assert not held(database, ours, '"b+x"@example.net', at=2).causes


@pytest.mark.parametrize(("address", "covering"), [
    ("a@x.test", ("a@x.test",)),
    ("a+b@x.test", ("a+b@x.test", "a@x.test")),
    ("a+b+c@x.test", ("a+b+c@x.test", "a@x.test")),
    ("+b@x.test", ("+b@x.test",)),
    ('"a+b"@x.test', ('"a+b"@x.test',)),
])  # fmt: skip
def test_what_covers_an_address(address: str, covering: tuple[str, ...]) -> None:
    assert suppression.covering(address) == covering


def test_a_scope_says_whose_mail_is_held_back(database: Database) -> None:
    ours, other = tenants(database)
    add(database, ours, READER, cause="unsubscribe", scope="sender", sender="news@ours.test")
    assert held(database, ours, at=2, sender="news@ours.test").causes
    assert not held(database, ours, at=2, sender="bills@ours.test").causes
    assert not held(database, other, at=2, sender="news@ours.test").causes
    add(database, ours, "all@example.net", scope="appliance")
    assert held(database, other, "all@example.net", at=2).causes
    # One row of each sender beside the one for all.
    add(database, ours, READER, cause="complaint")
    assert held(database, ours, at=2, sender="bills@ours.test").causes == {"dlv_1": "complaint"}
    database.write(lambda c: suppression.remove(c, organization_id=ours, address=READER) and None)
    assert held(database, ours, at=2, sender="news@ours.test").causes == {"dlv_1": "unsubscribe"}


@pytest.mark.parametrize(("scope", "sender"), [("sender", ""), ("organization", "a@b.test"), ("world", "")])
def test_a_scope_that_makes_no_sense_is_a_mistake_of_the_caller(
    database: Database, scope: str, sender: str
) -> None:
    ours, _ = tenants(database)
    with pytest.raises(ValueError, match="scope"):
        add(database, ours, READER, scope=scope, sender=sender)


def test_what_had_begun_is_named_and_nothing_else(database: Database) -> None:
    rows = {
        "dlv_1": {"recipient": "A+tag@example.net", "state": "active", "begun_at": 5},
        "dlv_2": {"recipient": "a@example.net", "state": "active", "begun_at": None},
        "dlv_3": {"recipient": "b@example.net", "state": "active", "begun_at": 5},
        "dlv_4": {"recipient": "a@example.net", "state": "delivered", "begun_at": None},
    }
    put(
        database,
        *(
            delivery_values(key, message_id="msg_1", domain="example.net", **more)
            for key, more in rows.items()
        ),
    )

    def unit(c):
        made = suppression.add(c, organization_id="org_a", address="a@example.net", cause="manual", at=9)
        other = replace(made, organization_id="org_b")
        return suppression.in_flight(c, made), suppression.in_flight(c, other)

    ours, others = database.write(unit)
    assert [delivery for _, delivery in ours] == ["dlv_1"]
    assert others == []


def test_the_list_shows_what_holds_back_and_not_what_only_counts(database: Database) -> None:
    ours, _ = tenants(database)
    fail(database, ours, at=1)
    add(database, ours, "b@example.net", cause="complaint")
    found = database.read(lambda c: suppression.suppressions(c, organization_id=ours, at=2))
    assert [one.address for one in found] == ["b@example.net"]
    assert not database.read(
        lambda c: suppression.suppressions(c, organization_id=ours, at=2, cause="manual")
    )


def test_hard_bounces_expire_where_the_rules_say_so(database: Database) -> None:
    ours, _ = tenants(database)
    rules = replace(RULES, hard_expiry=DAY)
    failure = Failure(ours, READER, "hard", "550", None)
    database.write(lambda c: suppressing.failed(c, failure, rules=rules, at=1) and None)
    assert held(database, ours, at=DAY).causes
    assert not held(database, ours, at=DAY + 1).causes
    assert fail(database, ours, at=DAY + 2, kind="hard") is not None


def test_what_expired_long_ago_is_forgotten(database: Database) -> None:
    ours, _ = tenants(database)
    for address, expires_at in (("old@x.test", DAY), ("late@x.test", 99 * DAY), ("ever@x.test", None)):
        add(database, ours, address, expires_at=expires_at)
    database.write(lambda c: suppression.prune(c, at=100 * DAY))
    left = database.read(lambda c: c.execute(select(schema.suppressions.c.address)).scalars().all())
    assert sorted(left) == ["ever@x.test", "late@x.test"]


def test_many_are_asked_for_at_once(database: Database) -> None:
    ours, _ = tenants(database)
    rows = [
        {
            "id": f"sup_{n}",
            "organization_id": ours,
            "address": f"r{n}@example.net",
            "cause": "manual",
            "evidence": "",
            "created_at": 1,
        }
        for n in range(0, 2000, 7)
    ]
    database.write(lambda c: c.execute(insert(schema.suppressions), rows) and None)
    asked = [Asked(f"dlv_{n}", ours, f"r{n}@example.net") for n in range(2000)]
    found = database.write(lambda c: suppressing.held(c, asked, at=2))
    assert (
        len(found.causes)
        == len(rows)
        == len(database.read(lambda c: c.execute(select(schema.suppressions)).all()))
    )
