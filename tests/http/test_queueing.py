"""The queue over HTTP: an organization sees and changes its own deliveries alone."""

from typing import Any

import pytest

from storage import audit, schema
from tests.http.world import World, problem
from tests.storage.queued import delivery_values, message_values

DELIVERIES = "/v1/deliveries"
ACTIONS = DELIVERIES + "/actions"


def put(world: World, number: int, *, organization: str, **given: Any) -> str:
    """One delivery that waits; returns its id."""
    message, delivery = f"msg_{number:026d}", f"dlv_{number:026d}"

    def unit(connection: Any) -> None:
        values = message_values(message, organization_id=organization)
        connection.execute(schema.messages.insert().values(values))
        values = delivery_values(delivery, message_id=message, organization_id=organization, **given)
        connection.execute(schema.deliveries.insert().values(values))

    world.run(world.threads.write(unit))
    return delivery


@pytest.fixture
def admin(world: World) -> str:
    put(world, 1, organization=world.ours)
    put(world, 2, organization=world.ours, domain="other.test", state="deferred")
    put(world, 3, organization=world.other)
    return world.key("org:admin")


def listed(world: World, key: str, **query: str) -> list[tuple[str, str]]:
    found = world.ask("GET", DELIVERIES, key, params=query).json()["deliveries"]
    return [(one["id"][-1], one["state"]) for one in found]


def test_a_list_and_counts_are_of_the_own_organization(world: World, admin: str) -> None:
    assert listed(world, admin) == [("1", "scheduled"), ("2", "deferred")]
    assert listed(world, admin, domain="OTHER.test") == [("2", "deferred")]
    assert listed(world, admin, state="held") == []
    told = world.ask("GET", DELIVERIES + "/stats", admin).json()
    assert (told["counts"]["scheduled"], told["counts"]["deferred"]) == (1, 1)
    assert {one["domain"] for one in told["domains"]} == {"peer.test", "other.test"}
    page = world.ask("GET", DELIVERIES, admin, params={"limit": "1"}).json()
    assert page["next_cursor"] == page["deliveries"][0]["id"]
    problem(world.ask("GET", DELIVERIES, admin, params={"state": "lost"}), 422, "invalid")


def test_a_preview_changes_nothing_and_an_act_is_taken_back(world: World, admin: str) -> None:
    told = world.ask("POST", ACTIONS, admin, json={"verb": "cancel", "preview": True}).json()
    assert (told["changed"], told["action"]) == (2, None)
    assert {one["recipient"] for one in told["sample"]} == {"r@peer.test"}
    assert listed(world, admin) == [("1", "scheduled"), ("2", "deferred")]
    done = world.ask("POST", ACTIONS, admin, json={"verb": "cancel"}).json()
    assert done["changed"] == 2
    assert listed(world, admin) == []
    assert listed(world, world.key("org:admin", organization=world.other)) == [("3", "scheduled")]
    undone = world.ask("DELETE", f"{ACTIONS}/{done['action']}", admin).json()
    assert (undone["restored"], undone["gone_on"]) == (2, 0)
    assert listed(world, admin) == [("1", "scheduled"), ("2", "deferred")]
    (known,) = world.ask("GET", ACTIONS, admin).json()["actions"]
    assert (known["verb"], known["changed"], known["selection"]) == ("cancel", 2, {})
    problem(world.ask("DELETE", f"{ACTIONS}/{done['action']}", admin), 404, "not_found")


def test_others_deliveries_and_acts_are_as_if_they_were_not_there(world: World, admin: str) -> None:
    stranger = world.key("org:admin", organization=world.other)
    done = world.ask("POST", ACTIONS, admin, json={"verb": "hold", "domain": "peer.test"}).json()
    assert done["changed"] == 1
    problem(world.ask("DELETE", f"{ACTIONS}/{done['action']}", stranger), 404, "not_found")
    asked = {"verb": "release", "id": f"dlv_{1:026d}"}
    problem(world.ask("POST", ACTIONS, stranger, json=asked), 404, "not_found")
    assert world.ask("GET", ACTIONS, stranger).json() == {"actions": []}


def test_acts_are_in_the_audit_log(world: World, admin: str) -> None:
    done = world.ask("POST", ACTIONS, admin, json={"verb": "hold"}).json()
    world.ask("DELETE", f"{ACTIONS}/{done['action']}", admin)
    rows = world.run(world.threads.read(lambda c: audit.entries(c, organization_id=world.ours)))
    assert [row.action for row in rows if row.action.startswith("queue.")] == ["queue.undo", "queue.hold"]


def test_a_doubt_is_listed_and_ended_once(world: World, admin: str) -> None:
    delivery = put(world, 5, organization=world.ours, state="held", begun_at=1, next_attempt_at=None)
    put(world, 6, organization=world.other, state="held", begun_at=1, next_attempt_at=None)
    (listed_one,) = world.ask("GET", DELIVERIES + "/doubts", admin).json()["deliveries"]
    assert (listed_one["id"], listed_one["recipient"]) == (delivery, "r@peer.test")
    verdict = f"{DELIVERIES}/{delivery}/verdict"
    problem(world.ask("POST", verdict, admin, json={"verdict": "perhaps"}), 422, "invalid")
    told = world.ask("POST", verdict, admin, json={"verdict": "sent", "reason": "they called"}).json()
    assert told == {"delivery": delivery, "verdict": "sent"}
    assert world.ask("GET", DELIVERIES + "/doubts", admin).json()["deliveries"] == []
    problem(world.ask("POST", verdict, admin, json={"verdict": "sent"}), 409, "conflict")
