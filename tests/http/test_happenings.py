"""Events, timelines and suppressions over HTTP."""

import pytest

from server.http import models, suppression_models
from storage import events
from storage.records import Event
from tests.http.world import ALL_SCOPES, World, problem


@pytest.fixture
def key(world: World) -> str:
    return world.key(*ALL_SCOPES)


def put(world: World, number: int, *, kind="test.kind", organization=None, inbox=None, **data) -> str:
    made = Event(
        f"evt_{number:026}", kind, number, organization or world.ours, None, inbox and inbox.id, None, data
    )
    world.run(world.threads.write(lambda c: events.append(c, [made])))
    return made.id


def listed(world: World, key: str, **params) -> tuple[list[str], str | None]:
    answer = world.ask("GET", "/v1/events", key, params=params)
    assert answer.status_code == 200, answer.text
    models.EventList.model_validate_json(answer.content, strict=True)
    return [one["id"] for one in answer.json()["events"]], answer.json()["next_cursor"]


def test_events_come_in_order_and_the_cursor_waits_at_the_end(world: World, key: str) -> None:
    assert listed(world, key) == ([], None)
    made = [put(world, number) for number in range(1, 4)]
    assert listed(world, key, limit=2) == (made[:2], made[1])
    assert listed(world, key, cursor=made[1]) == (made[2:], made[2])
    assert listed(world, key, cursor=made[2]) == ([], made[2])
    later = put(world, 9)
    assert listed(world, key, cursor=made[2]) == ([later], later)


def test_events_of_other_organizations_are_neither_shown_nor_usable_as_cursor(world: World, key: str) -> None:
    foreign = put(world, 1, organization=world.other)
    own = put(world, 2)
    assert listed(world, key) == ([own], own)
    for cursor in (foreign, "evt_" + "0" * 25 + "9", "x", "1"):
        problem(world.ask("GET", "/v1/events", key, params={"cursor": cursor}), 404, "not_found")


def test_events_are_chosen_by_kind(world: World, key: str) -> None:
    made = [put(world, number, kind=kind) for number, kind in enumerate("abc", start=1)]
    assert listed(world, key, kind=["a", "c"])[0] == [made[0], made[2]]
    assert listed(world, key, kind=["none"])[0] == []


def test_a_bound_key_gets_its_inboxs_events_alone(world: World) -> None:
    mine = put(world, 1, inbox=world.two)
    put(world, 2, inbox=world.one)
    put(world, 3)
    bound = world.key("event:read", inbox=world.two)
    assert listed(world, bound)[0] == [mine]


def timeline(world: World, key: str, message_id: str) -> dict:
    answer = world.ask("GET", f"/v1/messages/{message_id}/timeline", key)
    assert answer.status_code == 200, answer.text
    models.Timeline.model_validate_json(answer.content, strict=True)
    return answer.json()


def test_a_timeline_tells_each_step(world: World, key: str) -> None:
    message_id = world.deliver(world.one, others=(world.two,))
    told = timeline(world, key, message_id)
    assert told["source"] == "mx"
    assert [(one["kind"], one["inbox_id"]) for one in told["events"]] == [
        ("message.received", world.one.id),
        ("message.received", world.two.id),
    ]


def test_a_bound_key_learns_nothing_of_the_other_recipients(world: World) -> None:
    message_id = world.deliver(world.one, others=(world.two,))
    bound = world.key("message:read", inbox=world.two)
    answer = world.ask("GET", f"/v1/messages/{message_id}/timeline", bound)
    assert [one["inbox_id"] for one in answer.json()["events"]] == [world.two.id]
    assert world.one.id not in answer.text
    assert world.one.address not in answer.text


def test_a_bound_key_follows_what_its_inbox_sent(world: World) -> None:
    sender = world.key(*ALL_SCOPES, inbox=world.one)
    asked = {"to": ["a@far.example", "b@far.example"], "text": "t"}
    sent = world.ask("POST", f"/v1/inboxes/{world.one.id}/messages", sender, json=asked).json()["id"]
    told = timeline(world, sender, sent)
    assert sorted(one["recipient"] for one in told["deliveries"]) == ["a@far.example", "b@far.example"]
    assert {one["state"] for one in told["deliveries"]} == {"scheduled"}
    stranger = world.key(*ALL_SCOPES, inbox=world.two)
    problem(world.ask("GET", f"/v1/messages/{sent}/timeline", stranger), 404, "not_found")


def test_claiming_an_inboxs_address_from_outside_opens_no_timeline(world: World) -> None:
    forged = world.deliver(world.two, sender=world.one.address)
    bound = world.key("message:read", inbox=world.one)
    problem(world.ask("GET", f"/v1/messages/{forged}/timeline", bound), 404, "not_found")


def suppressed(world: World, key: str, **params) -> list[str]:
    answer = world.ask("GET", "/v1/suppressions", key, params=params)
    suppression_models.SuppressionList.model_validate_json(answer.content, strict=True)
    return [one["address"] for one in answer.json()["suppressions"]]


def test_suppressions_are_added_listed_and_removed(world: World, key: str) -> None:
    asked = {"address": "Gone@FAR.example", "cause": "hard_bounce", "evidence": "550 5.1.1"}
    answer = world.ask("POST", "/v1/suppressions", key, json=asked)
    suppression_models.SuppressionMade.model_validate_json(answer.content, strict=True)
    assert answer.status_code == 201
    assert suppressed(world, key) == ["gone@far.example"]
    assert suppressed(world, world.key(*ALL_SCOPES, organization=world.other)) == []
    assert world.ask("DELETE", "/v1/suppressions/GONE@far.example", key).status_code == 204
    assert suppressed(world, key) == []
    problem(world.ask("DELETE", "/v1/suppressions/gone@far.example", key), 404, "not_found")


def test_a_suppression_ends_when_it_says(world: World, key: str) -> None:
    asked = {"address": "a@far.example", "expires_at": "2027-01-15T08:01:00Z"}
    assert world.ask("POST", "/v1/suppressions", key, json=asked).status_code == 201
    assert suppressed(world, key) == ["a@far.example"]
    world.clock.advance(60)
    assert suppressed(world, key) == []


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"address": "nobody"}, "invalid_address"),
        ({"address": "a@far.example", "cause": "because"}, "invalid"),
        ({"address": "a@far.example", "expires_at": "2020-01-01T00:00:00Z"}, "invalid_time"),
        ({}, "invalid"),
    ],
)
def test_a_suppression_that_cannot_be_is_422(
    world: World, key: str, asked: dict[str, object], code: str
) -> None:
    problem(world.ask("POST", "/v1/suppressions", key, json=asked), 422, code)
