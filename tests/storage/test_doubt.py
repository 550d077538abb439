"""Deliveries in doubt, on SQLite and on PostgreSQL: held for a verdict, which evidence may contradict."""

from typing import Any

import pytest
from sqlalchemy import insert, update

from storage import doubt, events, held, ids, queue, queue_acts, schema
from storage.db import Database
from storage.doubt import Unanswered, Verdict
from storage.errors import Conflict, Missing
from storage.queue import Pick, Settlement
from storage.queue_acts import Selection
from storage.records import DeliveryState, Envelope, Event, Outcome, Recipient
from tests.storage.queued import HOUR, NOW, SECOND, delivery_values, message_values, put

LATER = NOW + 60 * SECOND


def row(database: Database, name: str = "dlv_1") -> Any:
    query = schema.deliveries.select().where(schema.deliveries.c.id == name)
    return database.read(lambda c: c.execute(query).one())


def log(database: Database) -> list[tuple[str, dict[str, Any]]]:
    found = database.read(lambda c: events.after(c, seq=0, limit=100))
    return [(event.kind, dict(event.data)) for event in found]


def begin(database: Database, *, asks: bool = False) -> Any:
    """Lease one delivery whose transmission then begins."""
    put(database, delivery_values("dlv_1", message_id="msg_1"))
    if asks:
        cautious = Envelope("sender@ours.test", (Recipient("r@peer.test"),), ask_in_doubt=True)
        values = message_values("msg_1", envelope=cautious)
        database.write(lambda c: c.execute(update(schema.messages).values(envelope=values["envelope"])))
    pick = Pick("org_a", "peer.test", 0, 1)
    (leased,) = database.write(lambda c: queue.lease(c, picks=[pick], token="t", now=NOW, until=NOW + HOUR))
    database.write(lambda c: queue.begin(c, held=[leased], at=NOW + 1))
    return leased


def doubted(database: Database) -> None:
    begin(database)
    assert database.write(lambda c: queue.reclaim(c, now=NOW + 9, before=1 << 62, ask=True)) == 1


def decide(database: Database, verdict: Verdict, **given: Any) -> tuple[str, ...]:
    return database.write(
        lambda c: doubt.decide(
            c, delivery_id="dlv_1", verdict=verdict, actor="ann", reason="asked them", at=LATER, **given
        )
    )


def tell(database: Database, kind: str, recipient: str = "R@peer.test") -> None:
    event = Event(ids.new("evt"), kind, LATER, "org_a", "msg_1", data={"recipient": recipient})
    database.write(lambda c: events.append(c, [event]))


def correct(database: Database) -> int:
    found = database.read(lambda c: doubt.contradicted(c, at=LATER))
    return database.write(lambda c: doubt.correct(c, found, at=LATER))


def test_a_crash_leaves_what_had_begun_to_a_persons_word_where_that_is_asked_for(database: Database) -> None:
    doubted(database)
    found = row(database)
    assert (found.state, found.begun_at, found.next_attempt_at) == ("held", NOW + 1, None)
    (told,) = log(database)
    assert told[0] == "message.held"
    assert (told[1]["in_doubt"], told[1]["cause"]) == (True, queue.WAITS_FOR_VERDICT)
    (waits,) = database.read(doubt.waiting)
    assert (waits["id"], waits["begun_at"]) == ("dlv_1", NOW + 1)
    assert database.read(lambda c: doubt.waiting(c, organization_id="org_b")) == []


def test_policy_may_ask_for_one_message_alone(database: Database) -> None:
    begin(database, asks=True)
    database.write(lambda c: queue.reclaim(c, now=NOW + 9, before=1 << 62))
    assert row(database).state == "held"


def test_a_live_drop_keeps_the_moment_it_began(database: Database) -> None:
    leased = begin(database)
    outcome = Outcome(DeliveryState.HELD, text="lost", phase="final")
    settlement = Settlement(leased, outcome, in_doubt=True)
    database.write(lambda c: queue.settle(c, settlements=[settlement], at=NOW + 5))
    assert row(database).begun_at == NOW + 1
    assert log(database)[0][1]["cause"] == queue.WAITS_FOR_VERDICT


def test_sent_ends_it_and_not_sent_tries_it_again(database: Database) -> None:
    doubted(database)
    assert decide(database, Verdict.NOT_SENT) == ()
    found = row(database)
    assert (found.state, found.next_attempt_at, found.begun_at) == ("deferred", LATER, None)
    kind, data = log(database)[-1]
    assert (kind, data["verdict"], data["actor"]) == ("message.deferred", "not_sent", "ann")
    assert "asked them" in data["text"]
    with pytest.raises(Conflict, match="not in doubt"):
        decide(database, Verdict.SENT)


def test_what_was_sent_leaves_the_spool(database: Database) -> None:
    doubted(database)
    assert decide(database, Verdict.SENT) == ("msg_1",)
    assert row(database).state == "delivered"
    kind, data = log(database)[-1]
    assert (kind, data["verdict"]) == ("message.delivered", "sent")


def test_another_organizations_delivery_is_not_there(database: Database) -> None:
    doubted(database)
    with pytest.raises(Missing):
        decide(database, Verdict.SENT, organization_id="org_b")


@pytest.mark.parametrize("kind", sorted(doubt.ARRIVED))
def test_a_verdict_that_evidence_contradicts_is_refused(database: Database, kind: str) -> None:
    doubted(database)
    tell(database, kind)
    with pytest.raises(doubt.Contradicted, match=kind):
        decide(database, Verdict.NOT_SENT)
    assert row(database).state == "held"
    assert decide(database, Verdict.SENT) == ("msg_1",)


def test_what_somebody_else_did_is_no_evidence(database: Database) -> None:
    doubted(database)
    tell(database, "message.complained", "other@peer.test")
    assert decide(database, Verdict.NOT_SENT) == ()


def answer(database: Database, *, by: str = "r@peer.test", thread: str = "thr_1", at: int = LATER) -> None:
    def unit(connection: Any) -> None:
        connection.execute(update(schema.messages).values(thread_id="thr_1"))
        values = message_values(
            "msg_9", source="mx", thread_id=thread, accepted_at=at, envelope=Envelope(by, ())
        )
        connection.execute(insert(schema.messages).values(values))

    database.write(unit)


def test_an_answer_shows_that_the_message_arrived(database: Database) -> None:
    doubted(database)
    answer(database)
    with pytest.raises(doubt.Contradicted, match="reply msg_9"):
        decide(database, Verdict.NOT_SENT)


@pytest.mark.parametrize(
    "given", [{"by": "x@peer.test"}, {"thread": "thr_2"}, {"at": NOW - 1}], ids=["by", "thread", "before"]
)
def test_other_mail_is_no_answer(database: Database, given: dict[str, Any]) -> None:
    doubted(database)
    answer(database, **given)
    assert decide(database, Verdict.NOT_SENT) == ()


def test_later_evidence_corrects_a_verdict_once(database: Database) -> None:
    doubted(database)
    assert database.read(lambda c: doubt.watches(c, at=LATER)) is False
    decide(database, Verdict.NOT_SENT)
    assert database.read(lambda c: doubt.watches(c, at=LATER)) is True
    assert correct(database) == 0
    tell(database, "message.complained")
    assert correct(database) == 1
    kind, data = log(database)[-1]
    assert (kind, data["evidence"], data["by"]) == ("message.verdict_corrected", "message.complained", "ann")
    assert correct(database) == 0
    assert database.read(lambda c: doubt.watches(c, at=LATER)) is False
    database.write(lambda c: doubt.forget(c, before=LATER + 1))


def test_evidence_is_looked_for_for_a_month(database: Database) -> None:
    doubted(database)
    decide(database, Verdict.NOT_SENT)
    assert database.read(lambda c: doubt.watches(c, at=LATER + doubt.WATCHED)) is False


@pytest.mark.parametrize(
    ("unanswered", "state", "kind"),
    [
        (Unanswered.BOUNCE, "expired", "message.expired"),
        (Unanswered.RETRY, "deferred", "message.deferred"),
        (Unanswered.SENT, "delivered", "message.delivered"),
    ],
)
def test_the_deadline_ends_a_doubt(database: Database, unanswered: Unanswered, state: str, kind: str) -> None:
    doubted(database)
    early, _ = database.write(lambda c: doubt.expire(c, before=NOW + 9, unanswered=unanswered, at=LATER))
    assert early == ()
    ended, _ = database.write(lambda c: doubt.expire(c, before=LATER, unanswered=unanswered, at=LATER))
    assert ended == ("dlv_1",)
    assert (row(database).state, row(database).begun_at) == (state, None)
    assert (log(database)[-1][0], log(database)[-1][1]["actor"]) == (kind, "deadline")


def test_acts_on_many_and_the_end_of_held_mail_leave_doubts_alone(database: Database) -> None:
    doubted(database)
    released = database.write(lambda c: queue_acts.release(c, selection=Selection(), actor="ann", at=LATER))
    assert released.changed == ()
    ended = database.write(lambda c: held.expire(c, before=LATER, answer=held.Answer.BOUNCE, at=LATER))
    assert ended.changed == ()
    assert row(database).state == "held"
