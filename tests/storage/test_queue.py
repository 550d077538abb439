"""The queue's leases, outcomes and lanes, on SQLite and on PostgreSQL."""

from typing import Any

import pytest
from sqlalchemy import insert, select, text

from storage import events, queue, queue_acts, schema, suppressing, suppression
from storage.codec import envelope_text
from storage.db import Database
from storage.lanes import Lane, Place, lanes, next_due
from storage.queue import Pick, Settlement
from storage.queue_acts import Selection
from storage.records import Delivery, DeliveryState, Envelope, Outcome, Recipient
from storage.suppressing import Asked
from tests.storage.mailroom import rendition_values
from tests.storage.queued import HOUR, NOW, SECOND, delivery_values, message_values, put

UNTIL = NOW + 900 * SECOND
DELIVERED = Outcome(
    DeliveryState.DELIVERED, 250, "2.0.0", "queued as 1", "final", "mx.peer.test", "192.0.2.1"
)
DEFERRED = Outcome(DeliveryState.DEFERRED, 451, "4.3.0", "try later", "rcpt", "mx.peer.test", "192.0.2.1")
BOUNCED = Outcome(DeliveryState.BOUNCED, 550, "5.1.1", "no such user", "rcpt", "mx.peer.test", "192.0.2.1")


def lease(
    database: Database, *, limit: int = 10, token: str = "lease-1", now: int = NOW, **lane: Any
) -> list[Delivery]:
    pick = Pick(lane.get("org", "org_a"), lane.get("domain", "peer.test"), lane.get("priority", 0), limit)
    return database.write(
        lambda c: queue.lease(c, picks=[pick], token=token, now=now, until=now + 900 * SECOND)
    )


def settle(database: Database, *settlements: Settlement, at: int = NOW, **given: Any) -> queue.Settled:
    return database.write(lambda c: queue.settle(c, settlements=settlements, at=at, **given))


def row(database: Database, delivery_id: str) -> Any:
    query = select(schema.deliveries).where(schema.deliveries.c.id == delivery_id)
    return database.read(lambda c: c.execute(query).one())


def spooled(database: Database, message_id: str) -> int:
    query = select(schema.messages.c.spooled).where(schema.messages.c.id == message_id)
    return int(database.read(lambda c: c.execute(query).scalar_one()))


def log(database: Database) -> list[tuple[str, Any]]:
    found = database.read(lambda c: events.after(c, seq=0, limit=1000))
    return [(event.kind, dict(event.data)) for event in found]


def test_a_lease_takes_the_oldest_due_of_a_lane_and_only_the_due(database: Database) -> None:
    put(
        database,
        delivery_values("dlv_1", message_id="msg_1", next_attempt_at=NOW),
        delivery_values("dlv_2", message_id="msg_2", next_attempt_at=NOW - 5),
        delivery_values("dlv_3", message_id="msg_3", next_attempt_at=NOW + 1),
        delivery_values("dlv_4", message_id="msg_4", next_attempt_at=NOW - 9, domain="other.test"),
        delivery_values("dlv_5", message_id="msg_5", next_attempt_at=NOW - 9, priority=1),
    )
    assert [item.id for item in lease(database, limit=1)] == ["dlv_2"]
    assert [item.id for item in lease(database)] == ["dlv_1"]
    assert lease(database) == []
    held = row(database, "dlv_1")
    assert (held.state, held.lease, held.next_attempt_at, held.tries) == ("active", "lease-1", None, 1)


def test_a_leased_delivery_carries_its_recipient_and_envelope(database: Database) -> None:
    put(
        database,
        delivery_values(
            "dlv_1",
            message_id="msg_1",
            recipient="a@peer.test",
            notify="FAILURE,SUCCESS",
            orcpt="rfc822;b@x.test",
            tries=3,
        ),
    )
    envelope = Envelope(None, (Recipient("x@y.test"), Recipient("z@y.test")), body="8BITMIME", ret="HDRS")
    update = schema.messages.update().values(envelope=envelope_text(envelope))
    database.write(lambda c: c.execute(update) and None)
    (item,) = lease(database)
    assert item.recipient.notify == {"FAILURE", "SUCCESS"}
    assert item.recipient.orcpt == "rfc822;b@x.test"
    assert item.envelope.reverse_path is None
    assert (item.envelope.body, item.envelope.ret, item.envelope.recipients) == (
        "8BITMIME",
        "HDRS",
        (item.recipient,),
    )
    assert (item.tries, item.octets, item.next_attempt_at) == (3, 2000, NOW)


def test_a_delivery_makes_its_event_and_frees_the_spool_file(database: Database) -> None:
    put(database, delivery_values("dlv_1", message_id="msg_1"))
    (item,) = lease(database)
    done = settle(database, Settlement(item, DELIVERED))
    assert done == queue.Settled((), ("msg_1",))
    assert spooled(database, "msg_1") == 0
    kind, data = log(database)[-1]
    assert kind == "message.delivered"
    assert data["attempt"] == 1
    assert (data["host"], data["code"], data["text"]) == ("mx.peer.test", 250, "queued as 1")
    after = row(database, "dlv_1")
    assert (after.state, after.lease, after.lease_until, after.next_attempt_at) == (
        "delivered",
        None,
        None,
        None,
    )


def test_the_spool_file_stays_until_the_last_recipient_is_final(database: Database) -> None:
    put(
        database,
        delivery_values("dlv_1", message_id="msg_1"),
        delivery_values("dlv_2", message_id="msg_1"),
    )
    first, second = lease(database)
    later = NOW + HOUR
    done = settle(database, Settlement(first, DELIVERED), Settlement(second, DEFERRED, later))
    assert done.finished == ()
    assert spooled(database, "msg_1") == 1
    (again,) = lease(database, now=later, token="lease-2")
    assert again.tries == 1
    assert settle(database, Settlement(again, DELIVERED)).finished == ("msg_1",)


def test_what_was_rendered_of_a_message_in_no_folder_goes_with_its_last_delivery(database: Database) -> None:
    rows = [delivery_values(f"dlv_{number}", message_id=f"msg_{number}") for number in (1, 2)]
    put(database, *rows)
    database.write(
        lambda c: (
            c.execute(insert(schema.renditions), [rendition_values("msg_1"), rendition_values("msg_2")])
            and None
        )
    )
    first, second = lease(database)
    settle(database, Settlement(first, DEFERRED, next_attempt_at=NOW + SECOND))
    assert len(database.read(lambda c: c.execute(select(schema.renditions.c.message_id)).all())) == 2
    settle(database, Settlement(second, DELIVERED))
    left = database.read(lambda c: c.execute(select(schema.renditions.c.message_id)).scalars().all())
    assert left == [first.message_id]


def test_a_lost_lease_changes_nothing_and_is_reported(database: Database) -> None:
    put(
        database,
        delivery_values("dlv_1", message_id="msg_1"),
        delivery_values("dlv_2", message_id="msg_2"),
    )
    stale, fresh = lease(database)
    database.write(
        lambda c: c.execute(text("UPDATE deliveries SET lease = 'other' WHERE id = 'dlv_1'")) and None
    )
    done = settle(database, Settlement(stale, BOUNCED), Settlement(fresh, DELIVERED))
    assert done == queue.Settled(("dlv_1",), ("msg_2",))
    assert row(database, "dlv_1").state == "active"
    assert [kind for kind, _ in log(database)] == ["message.delivered"]


def test_settling_twice_counts_once(database: Database) -> None:
    put(database, delivery_values("dlv_1", message_id="msg_1"))
    (item,) = lease(database)
    settle(database, Settlement(item, DELIVERED))
    assert settle(database, Settlement(item, BOUNCED)).stale == ("dlv_1",)
    assert row(database, "dlv_1").state == "delivered"


def test_a_lease_that_ended_is_taken_over_and_the_first_holder_is_fenced_out(database: Database) -> None:
    put(database, delivery_values("dlv_1", message_id="msg_1"))
    (first,) = lease(database)
    assert database.write(lambda c: queue.reclaim(c, now=UNTIL, before=UNTIL)) == 0
    late = UNTIL + 1
    assert database.write(lambda c: queue.reclaim(c, now=late, before=late)) == 1
    assert database.write(lambda c: queue.begin(c, held=[first], at=late)) == ("dlv_1",)
    (second,) = lease(database, token="lease-2", now=late)
    assert second.tries == 1
    assert settle(database, Settlement(first, DELIVERED)).stale == ("dlv_1",)
    assert settle(database, Settlement(second, DELIVERED)).stale == ()


def test_a_renewed_lease_is_not_taken_over(database: Database) -> None:
    put(database, delivery_values("dlv_1", message_id="msg_1"))
    held = lease(database)
    database.write(lambda c: queue.renew(c, held=held, until=UNTIL + HOUR))
    assert database.write(lambda c: queue.reclaim(c, now=UNTIL + 1, before=UNTIL + 1)) == 0
    assert database.read(queue.next_lease_end) == UNTIL + HOUR


def test_a_transmission_that_began_and_was_never_settled_is_in_doubt(database: Database) -> None:
    put(
        database,
        delivery_values("dlv_1", message_id="msg_1"),
        delivery_values("dlv_2", message_id="msg_2"),
    )
    begun, _ = lease(database)
    database.write(lambda c: queue.begin(c, held=[begun], at=NOW + 1))
    assert row(database, "dlv_1").begun_at == NOW + 1
    database.write(lambda c: queue.reclaim(c, now=NOW + 9, before=UNTIL + 1))
    told = {data["recipient"] + str(data.get("in_doubt")): data["text"] for _, data in log(database)}
    assert told == {"r@peer.testTrue": queue.IN_DOUBT, "r@peer.testNone": queue.INTERRUPTED}
    assert row(database, "dlv_1").begun_at is None
    assert row(database, "dlv_1").next_attempt_at == NOW + 9


def test_leases_given_back_count_no_try(database: Database) -> None:
    put(database, delivery_values("dlv_1", message_id="msg_1", tries=2, state="deferred"))
    held = lease(database)
    database.write(lambda c: queue.give_back(c, held=held, at=NOW))
    after = row(database, "dlv_1")
    assert (after.state, after.tries, after.next_attempt_at, after.lease) == ("deferred", 2, NOW, None)


def test_a_failed_message_keeps_its_file_until_its_notice_is_sent(database: Database) -> None:
    put(database, delivery_values("dlv_1", message_id="msg_1"))
    (item,) = lease(database)
    assert settle(database, Settlement(item, BOUNCED)).finished == ()
    assert spooled(database, "msg_1") == 1

    def answered(connection: Any) -> tuple[str, ...]:
        events.advance(connection, name=queue.NOTICE_CURSOR, seq=10)
        return queue.finish(connection, message_ids=["msg_1"])

    assert database.write(answered) == ("msg_1",)
    assert spooled(database, "msg_1") == 0


def test_a_long_wait_is_told_once_a_delivery(database: Database) -> None:
    put(database, delivery_values("dlv_1", message_id="msg_1"))
    for step in (1, 5, 6):
        at = NOW + step * HOUR
        (item,) = lease(database, now=at, token=f"lease-{step}")
        settle(database, Settlement(item, DEFERRED, at + 1), at=at, delay_notice_after=4 * HOUR)
    kinds = [kind for kind, _ in log(database)]
    assert kinds == ["message.deferred"] * 2 + ["message.delayed"] + ["message.deferred"]


def test_lanes_name_organization_domain_and_priority(database: Database) -> None:
    put(
        database,
        delivery_values("dlv_1", message_id="msg_1", next_attempt_at=NOW - 7),
        delivery_values("dlv_2", message_id="msg_2", next_attempt_at=NOW - 3),
        delivery_values("dlv_3", message_id="msg_3", organization_id="org_b"),
        delivery_values("dlv_4", message_id="msg_4", priority=2),
        delivery_values("dlv_5", message_id="msg_5", next_attempt_at=NOW + 1, domain="later.test"),
        delivery_values("dlv_6", message_id="msg_6", next_attempt_at=None, state="held"),
    )
    found, more = database.read(lambda c: lanes(c, now=NOW, place=Place()))
    assert more is None
    assert sorted(found, key=str) == sorted(
        [
            Lane("org_a", "peer.test", 0, NOW - 7, 2),
            Lane("org_b", "peer.test", 0, NOW, 1),
            Lane("org_a", "peer.test", 2, NOW, 1),
        ],
        key=str,
    )
    assert database.read(lambda c: next_due(c, after=NOW)) == NOW + 1
    assert database.read(lambda c: next_due(c, after=NOW + 1)) is None


def test_a_scan_in_windows_finds_every_lane_even_when_all_are_due_at_one_moment(database: Database) -> None:
    put(
        database,
        *[
            delivery_values(f"dlv_{n:03}", message_id="msg_1", domain=f"d{n % 37:02}.test", priority=n % 2)
            for n in range(200)
        ],
    )
    place: Place | None = Place()
    found: set[tuple[str, int]] = set()
    for _ in range(200):
        assert place is not None
        part, place = database.read(lambda c, p=place: lanes(c, now=NOW, place=p, limit=7))
        found |= {(lane.domain, lane.priority) for lane in part}
        if place is None:
            break
    assert len(found) == 74


def test_hold_release_retry_and_cancel_leave_their_events(database: Database) -> None:
    put(
        database,
        delivery_values("dlv_1", message_id="msg_1"),
        delivery_values("dlv_2", message_id="msg_2", state="deferred", next_attempt_at=NOW + HOUR),
        delivery_values("dlv_3", message_id="msg_3", organization_id="org_b"),
    )
    ours = {"selection": Selection(organization_id="org_a"), "actor": "operator", "at": NOW}
    assert set(database.write(lambda c: queue_acts.hold(c, **ours)).changed) == {"dlv_1", "dlv_2"}
    assert lease(database) == []
    assert len(lease(database, org="org_b")) == 1
    one = {**ours, "selection": Selection(delivery_id="dlv_1")}
    assert database.write(lambda c: queue_acts.release(c, **one)).changed == ("dlv_1",)
    assert database.write(lambda c: queue_acts.retry_now(c, **ours)).changed == ()
    two = {**ours, "selection": Selection(message_id="msg_2")}
    assert database.write(lambda c: queue_acts.cancel(c, **two)) == queue_acts.Acted(("dlv_2",), ("msg_2",))
    assert [item.id for item in lease(database)] == ["dlv_1"]
    assert [kind for kind, _ in log(database)] == [
        "message.held",
        "message.held",
        "message.released",
        "message.cancelled",
    ]


def test_retry_now_makes_a_deferred_delivery_due_but_no_active_one(database: Database) -> None:
    put(
        database,
        delivery_values("dlv_1", message_id="msg_1"),
        delivery_values("dlv_2", message_id="msg_2", state="deferred", next_attempt_at=NOW + HOUR),
    )
    lease(database)
    everything = {"selection": Selection(), "actor": "operator", "at": NOW}
    assert database.write(lambda c: queue_acts.retry_now(c, **everything)).changed == ("dlv_2",)
    assert database.write(lambda c: queue_acts.cancel(c, **everything)).changed == ("dlv_2",)
    assert row(database, "dlv_1").state == "active"


def test_views_count_and_list_open_deliveries(database: Database) -> None:
    put(
        database,
        delivery_values("dlv_1", message_id="msg_1"),
        delivery_values("dlv_2", message_id="msg_1", domain="other.test", organization_id="org_b"),
    )
    (item,) = lease(database)
    settle(database, Settlement(item, DEFERRED, NOW + 1))
    assert database.read(queue.counts) == {"active": 0, "deferred": 1, "held": 0, "scheduled": 1}
    assert [item["id"] for item in database.read(lambda c: queue.inspect(c, domain="other.test"))] == [
        "dlv_2"
    ]
    listed = database.read(lambda c: queue.of_message(c, organization_id="org_a", message_id="msg_1"))
    assert [(item["id"], item["last_outcome"]["text"]) for item in listed] == [("dlv_1", "try later")]


def test_a_message_of_many_recipients_is_settled_in_one_unit(database: Database) -> None:
    put(database, *[delivery_values(f"dlv_{n:04}", message_id="msg_1") for n in range(1000)])
    held = lease(database, limit=1000)
    assert settle(database, *[Settlement(item, DELIVERED) for item in held]).finished == ("msg_1",)
    assert len(log(database)) == 1000


def plan(database: Database, statement: Any, values: dict[str, Any]) -> str:
    def unit(connection: Any) -> str:
        bound = statement.params(values)
        compiled = bound.compile(connection, compile_kwargs={"literal_binds": True})
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}")
        return "\n".join(line[3] for line in rows)

    return database.read(unit)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_looking_for_work_reads_indexes_alone(database: Database) -> None:
    from storage import lanes as lanes_module

    scan = plan(database, lanes_module._LANES, {"now": NOW, "a": -1, "o": "", "d": "", "p": 0, "window": 10})
    assert "SEARCH deliveries USING COVERING INDEX ix_deliveries_due" in scan
    assert "SCAN deliveries" not in scan
    due = plan(database, lanes_module._NEXT_DUE, {"after": NOW})
    assert "USING COVERING INDEX ix_deliveries_due" in due
    values = {"organization_id": "o", "domain": "d", "priority": 0, "now": NOW, "count": 5}
    pick = plan(database, queue._PICK, values)
    assert "USING INDEX ix_deliveries_lane" in pick
    assert "TEMP B-TREE" not in pick
    done_with = plan(database, queue._DONE_WITH, {"ids": ["msg_1", "msg_2"]})
    assert "INDEX ix_deliveries_message_state" in done_with
    assert "USING INDEX ix_events_message_id" in done_with
    assert "SCAN" not in done_with.replace("SCALAR", "")
    stopped = plan(database, suppressing._KNOWN, {"addresses": ["a", "b"], "at": 1})
    assert "ix_suppressions_address" in stopped
    assert "ix_deliveries_lease" in plan(database, queue._NEXT_END, {})


def fill(database: Database, count: int) -> None:
    def unit(connection: Any) -> None:
        connection.execute(
            insert(schema.organizations), {"id": "org_a", "name": "a", "state": "active", "created_at": 1}
        )
        connection.execute(insert(schema.messages), message_values("msg_1"))
        rows = [
            delivery_values(
                f"dlv_{n:06}",
                message_id="msg_1",
                domain=f"d{n % 500}.test",
                state="deferred",
                next_attempt_at=NOW + n,
            )
            for n in range(count)
        ]
        for start in range(0, count, 10_000):
            connection.execute(insert(schema.deliveries), rows[start : start + 10_000])

    database.write(unit)


@pytest.mark.whole
@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_work_to_find_the_next_due_does_not_grow_with_the_queue(database: Database) -> None:
    fill(database, 100_000)
    steps = {"count": 0}

    def measured(connection: Any) -> list[Delivery]:
        raw = connection.connection.dbapi_connection

        def count() -> int:
            steps["count"] += 1
            return 0

        raw.set_progress_handler(count, 100)
        try:
            found, _ = lanes(connection, now=NOW + 2, place=Place())
            picks = [Pick(lane.organization_id, lane.domain, lane.priority, 10) for lane in found]
            return queue.lease(connection, picks=picks, token="t", now=NOW + 2, until=UNTIL)
        finally:
            raw.set_progress_handler(None, 0)

    leased = database.write(measured)
    assert sorted(item.id for item in leased) == ["dlv_000000", "dlv_000001", "dlv_000002"]
    # Hundreds of the database's own instructions, where a scan of 100,000 rows takes a million.
    assert steps["count"] < 50


def test_suppressed_recipients_are_told_apart_by_organization_and_time(database: Database) -> None:
    put(database, organizations=("org_a", "org_b"))
    for organization, address, expires_at in (
        ("org_a", "a@peer.test", None),
        ("org_a", "old@peer.test", NOW),
        ("org_b", "b@peer.test", NOW + 1),
    ):
        database.write(
            lambda c, o=organization, a=address, e=expires_at: suppression.add(
                c, organization_id=o, address=a, cause="complaint", expires_at=e, at=1
            )
        )
    wanted = [
        Asked("dlv_1", "org_a", "a@peer.test"),
        Asked("dlv_2", "org_a", "old@peer.test"),
        Asked("dlv_3", "org_a", "b@peer.test"),
        Asked("dlv_4", "org_b", "b@peer.test"),
    ]
    found = database.read(lambda c: suppressing.held(c, wanted, at=NOW))
    assert found.causes == {"dlv_1": "complaint", "dlv_4": "complaint"}
