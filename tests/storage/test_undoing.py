"""Acts on the queue taken back, on SQLite and on PostgreSQL."""

from typing import Any

import pytest
from sqlalchemy import func, select

from storage import events, queue, queue_acts, schema, undoing
from storage.db import Database
from storage.errors import Missing
from storage.queue import Pick, Settlement
from storage.queue_acts import ACTS, Selection, Verb
from storage.records import DeliveryState, Outcome
from storage.schema_undoing import queue_action_items, queue_actions
from tests.storage.queued import HOUR, NOW, SECOND, delivery_values, put

LATER = NOW + 60 * SECOND


def act(
    database: Database, verb: Verb, selection: Selection | None = None, *, at: int = LATER
) -> tuple[str, queue_acts.Acted]:
    chosen = selection or Selection()

    def unit(connection: Any) -> tuple[str, queue_acts.Acted]:
        action = undoing.begin(connection, verb=verb, selection=chosen, actor="ann", at=at)
        return action, ACTS[verb](connection, selection=chosen, actor="ann", at=at, action=action)

    return database.write(unit)


def undo(database: Database, action: str, **given: Any) -> undoing.Undone:
    return database.write(lambda c: undoing.undo(c, action=action, actor="ann", at=LATER + 1, **given))


def states(database: Database) -> dict[str, tuple[str, int | None, int]]:
    table = schema.deliveries
    rows = database.read(lambda c: c.execute(select(table).order_by(table.c.id)).all())
    return {row.id: (row.state, row.next_attempt_at, row.expires_at) for row in rows}


def number(database: Database, table: Any) -> int:
    return database.read(lambda c: c.execute(select(func.count()).select_from(table)).scalar_one())


def fill(database: Database) -> None:
    put(
        database,
        delivery_values("dlv_1", message_id="msg_1"),
        delivery_values("dlv_2", message_id="msg_2", state="deferred", next_attempt_at=NOW + HOUR),
        delivery_values("dlv_3", message_id="msg_3", state="held", next_attempt_at=None),
        delivery_values("dlv_4", message_id="msg_4", domain="other.test", organization_id="org_b"),
    )


@pytest.mark.parametrize("verb", list(Verb))
def test_what_was_done_is_taken_back_to_the_letter(database: Database, verb: Verb) -> None:
    fill(database)
    before = states(database)
    action, acted = act(database, verb)
    assert acted.changed
    assert states(database) != before
    found = undo(database, action)
    assert set(found.restored) == set(acted.changed)
    assert states(database) == before
    told = database.read(lambda c: events.after(c, seq=0, limit=100))
    assert {event.data["action"] for event in told} == {action}
    assert [event.kind for event in told].count("message.restored") == len(acted.changed)
    assert number(database, queue_action_items) == 0
    assert undo(database, action).looked_at == 0


def test_a_preview_says_what_the_act_then_changes(database: Database) -> None:
    fill(database)
    for verb in Verb:
        shown = database.read(
            lambda c, verb=verb: queue_acts.preview(c, selection=Selection(), verb=verb, at=LATER)
        )
        action, acted = act(database, verb)
        assert (shown.deliveries, {one["id"] for one in shown.sample}) == (
            len(acted.changed),
            set(acted.changed),
        )
        undo(database, action)
    one = database.read(
        lambda c: queue_acts.preview(
            c, selection=Selection(organization_id="org_b"), verb=Verb.CANCEL, at=LATER
        )
    )
    assert (one.deliveries, one.organizations) == (1, 1)


def test_what_has_gone_on_since_is_left_as_it_is(database: Database) -> None:
    fill(database)
    action, acted = act(database, Verb.RELEASE)
    assert acted.changed == ("dlv_3",)
    pick = Pick("org_a", "peer.test", 0, 10)
    leased = database.write(
        lambda c: queue.lease(c, picks=[pick], token="t", now=LATER, until=LATER + 900 * SECOND)
    )
    (ours,) = [one for one in leased if one.id == "dlv_3"]
    assert undo(database, action) == undoing.Undone((), 1)
    outcome = Outcome(DeliveryState.DEFERRED, 451, text="later", phase="rcpt")
    settlement = Settlement(ours, outcome, LATER + HOUR)
    settled = database.write(lambda c: queue.settle(c, settlements=[settlement], at=LATER))
    assert settled.stale == ()
    assert states(database)["dlv_3"][0] == "deferred"


def test_the_later_of_two_acts_stands_until_it_is_taken_back(database: Database) -> None:
    fill(database)
    held, _ = act(database, Verb.HOLD, Selection(delivery_id="dlv_1"))
    cancelled, _ = act(database, Verb.CANCEL, Selection(delivery_id="dlv_1"))
    assert undo(database, held) == undoing.Undone((), 1)
    assert states(database)["dlv_1"][0] == "cancelled"
    assert undo(database, cancelled).restored == ("dlv_1",)
    assert states(database)["dlv_1"][0] == "held"


def test_the_content_of_what_was_cancelled_stays_until_the_act_is_closed(database: Database) -> None:
    fill(database)
    action, acted = act(database, Verb.CANCEL, Selection(message_id="msg_1"))
    assert acted == queue_acts.Acted(("dlv_1",), ())
    assert database.write(lambda c: undoing.close(c, before=LATER)) == queue_acts.Acted()
    closed = database.write(lambda c: undoing.close(c, before=LATER + 1))
    assert closed == queue_acts.Acted(("dlv_1",), ("msg_1",))
    assert undo(database, action).looked_at == 0
    assert states(database)["dlv_1"][0] == "cancelled"


def test_a_message_keeps_its_content_for_its_other_recipients(database: Database) -> None:
    put(
        database,
        delivery_values("dlv_1", message_id="msg_1"),
        delivery_values("dlv_2", message_id="msg_1", domain="other.test"),
    )
    act(database, Verb.CANCEL, Selection(delivery_id="dlv_1"))
    assert database.write(lambda c: undoing.close(c, before=LATER + 1)).finished == ()


def test_an_organization_takes_back_only_what_was_its_own(database: Database) -> None:
    fill(database)
    everybodys, _ = act(database, Verb.HOLD)
    with pytest.raises(Missing):
        undo(database, everybodys, organization_id="org_b")
    own, _ = act(database, Verb.RELEASE, Selection(organization_id="org_b"))
    with pytest.raises(Missing):
        undo(database, own, organization_id="org_a")
    assert undo(database, own, organization_id="org_b").restored == ("dlv_4",)
    assert [one["id"] for one in database.read(lambda c: undoing.recent(c, organization_id="org_b"))] == [own]


def test_records_of_closed_acts_are_dropped_in_the_end(database: Database) -> None:
    fill(database)
    act(database, Verb.HOLD)
    assert database.write(lambda c: undoing.forget(c, before=LATER + HOUR)) == 0
    database.write(lambda c: undoing.close(c, before=LATER + 1))
    assert database.write(lambda c: undoing.forget(c, before=LATER + HOUR)) == 1
    assert number(database, queue_actions) == 0


def test_an_act_in_parts_takes_no_delivery_twice(database: Database) -> None:
    put(
        database,
        delivery_values("dlv_1", message_id="msg_1", state="deferred", next_attempt_at=NOW + HOUR),
        delivery_values("dlv_2", message_id="msg_2", state="deferred", next_attempt_at=NOW + HOUR),
    )
    action, acted = act(database, Verb.RETRY, Selection(delivery_id="dlv_1"))
    assert acted.changed == ("dlv_1",)
    pick = Pick("org_a", "peer.test", 0, 10)
    (ours,) = database.write(
        lambda c: queue.lease(c, picks=[pick], token="t", now=LATER, until=LATER + 900 * SECOND)
    )
    settlement = Settlement(
        ours, Outcome(DeliveryState.DEFERRED, 451, text="later", phase="rcpt"), LATER + HOUR
    )
    database.write(lambda c: queue.settle(c, settlements=[settlement], at=LATER))
    further = database.write(
        lambda c: ACTS[Verb.RETRY](c, selection=Selection(), actor="ann", at=LATER, action=action)
    )
    assert further.changed == ("dlv_2",)


def test_a_large_act_is_taken_back_in_parts(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(database)
    before = states(database)
    action, acted = act(database, Verb.HOLD)
    monkeypatch.setattr(undoing, "LIMIT", 2)
    assert len(acted.changed) == 3
    found = [undo(database, action) for _ in range(3)]
    assert [one.looked_at for one in found] == [2, 1, 0]
    assert states(database) == before
