"""Held mail that nobody released, on both databases."""

import json

import pytest

from storage import held, queue_acts, schema
from storage.db import Database
from storage.held import Answer
from storage.queue_acts import Selection
from tests.storage.queued import HOUR, NOW, delivery_values, put
from tests.storage.samples import rows

MONTH = 720 * HOUR


def fill(database: Database) -> None:
    put(
        database,
        delivery_values("dlv_own", message_id="msg_own", state="held", next_attempt_at=None),
        delivery_values("dlv_far", message_id="msg_far", state="held", next_attempt_at=None),
        delivery_values(
            "dlv_new", message_id="msg_new", state="held", next_attempt_at=None, updated_at=NOW + HOUR
        ),
        delivery_values("dlv_due", message_id="msg_due"),
    )
    query = schema.messages.update().where(schema.messages.c.id == "msg_far").values(source="mx")
    database.write(lambda c: c.execute(query) and None)


def expire(database: Database, answer: Answer = Answer.OWN, *, at: int = NOW + MONTH + 1) -> queue_acts.Acted:
    return database.write(lambda c: held.expire(c, before=at - MONTH, answer=answer, at=at))


def states(database: Database) -> dict[str, str]:
    return {row.id: row.state for row in rows(database, schema.deliveries)}


@pytest.mark.parametrize(
    ("answer", "own", "far"),
    [
        (Answer.OWN, "expired", "cancelled"),
        (Answer.BOUNCE, "expired", "expired"),
        (Answer.DISCARD, "cancelled", "cancelled"),
    ],
)
def test_what_is_held_too_long_ends_as_configured(
    database: Database, answer: Answer, own: str, far: str
) -> None:
    fill(database)
    acted = expire(database, answer)
    assert set(acted.changed) == {"dlv_own", "dlv_far"}
    # The file of what is bounced stays until its notice is made.
    discarded = {f"msg_{name}" for name, state in (("own", own), ("far", far)) if state == "cancelled"}
    assert set(acted.finished) == discarded
    assert states(database) == {"dlv_own": own, "dlv_far": far, "dlv_new": "held", "dlv_due": "scheduled"}
    made = {row.delivery_id: row for row in rows(database, schema.events)}
    assert {key: row.kind for key, row in made.items()} == {
        "dlv_own": f"message.{own}",
        "dlv_far": f"message.{far}",
    }
    data = json.loads(made["dlv_own"].data)
    assert (data["actor"], data["held_since"], data["text"]) == ("expiry", NOW, held.TEXT)
    assert expire(database, answer).changed == ()


def test_a_month_begins_with_the_holding(database: Database) -> None:
    fill(database)
    assert expire(database, at=NOW + MONTH).changed == ()
    selection = Selection(delivery_id="dlv_due")
    database.write(lambda c: queue_acts.hold(c, selection=selection, actor="me", at=NOW + 10 * HOUR))
    assert "dlv_due" not in expire(database, at=NOW + MONTH + 9 * HOUR).changed
    assert "dlv_due" in expire(database, at=NOW + MONTH + 11 * HOUR).changed


def test_what_is_released_late_has_its_whole_time_to_be_delivered(database: Database) -> None:
    fill(database)
    at = NOW + 480 * HOUR
    database.write(
        lambda c: queue_acts.release(c, selection=Selection(delivery_id="dlv_own"), actor="me", at=at)
    )
    (row,) = rows(database, schema.deliveries, schema.deliveries.c.id == "dlv_own")
    assert (row.next_attempt_at, row.expires_at) == (at, at + 48 * HOUR)


def test_many_end_in_pieces(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(database)
    monkeypatch.setattr(held, "LIMIT", 1)
    found = [expire(database).changed for _ in range(3)]
    assert [len(one) for one in found] == [1, 1, 0]
