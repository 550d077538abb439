"""Every route, against every kind of key: 401, 403 or 404, and never a hint that the other's exists."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute

from storage import accounts, schema
from tests.http.world import ALL_SCOPES, World, problem
from tests.storage.queued import delivery_values, message_values

EVERYTHING = ALL_SCOPES | {"operator"}


@dataclass(frozen=True)
class Row:
    """One route. kind: what its path names, '' for the organization itself; bound: what a bound key gets."""

    method: str
    path: str
    scope: str
    status: int
    body: object = None
    kind: str = ""
    bound: int = 404


INBOX = "/v1/inboxes/{inbox_id}"
ONE = INBOX + "/messages/{message_id}"
DOUBT = "/v1/deliveries/{delivery_id}/verdict"
ROWS = [
    Row("POST", "/v1/organizations", "operator", 201, {"name": "new{number}"}, bound=403),
    Row("GET", "/v1/organizations", "org:admin", 200, bound=403),
    Row(
        "POST", "/v1/organizations/{organization_id}/keys", "operator", 201,
        {"name": "k", "scopes": ["org:admin"]}, "organization", 403,
    ),
    Row("POST", "/v1/domains", "operator", 201, {"name": "new{number}.example"}, bound=403),
    Row("GET", "/v1/domains", "domain:admin", 200, bound=403),
    Row("GET", "/v1/domains/{name}", "domain:admin", 200, None, "domain", 403),
    Row("GET", "/v1/domains/{name}/dmarc-reports", "domain:admin", 200, None, "domain", 403),
    Row("GET", "/v1/domains/{name}/tls-reports", "domain:admin", 200, None, "domain", 403),
    Row("GET", "/v1/domains/{name}/dkim", "domain:admin", 200, None, "domain", 403),
    Row("POST", "/v1/domains/{name}/dkim/rotation", "domain:admin", 201, None, "domain", 403),
    Row("DELETE", "/v1/domains/{name}/dkim/rotation", "domain:admin", 200, None, "domain", 403),
    Row("POST", "/v1/keys", "org:admin", 201, {"name": "k", "scopes": ["org:admin"]}, bound=403),
    Row("GET", "/v1/keys", "org:admin", 200, bound=403),
    Row("DELETE", "/v1/keys/{key_id}", "org:admin", 204, None, "key", 403),
    Row("POST", "/v1/inboxes", "inbox:write", 201, {"address": "n{number}@ours.example"}, bound=403),
    Row("GET", "/v1/inboxes", "inbox:read", 200, bound=200),
    Row("GET", INBOX, "inbox:read", 200, None, "inbox"),
    Row("PATCH", INBOX, "inbox:write", 200, {"state": "suspended"}, "inbox", 403),
    Row("POST", INBOX + "/credentials", "inbox:write", 403, {"name": "c"}, "inbox"),
    Row("GET", INBOX + "/credentials", "inbox:read", 200, None, "inbox"),
    Row("DELETE", INBOX + "/credentials/{credential_id}", "inbox:write", 204, None, "credential"),
    Row("POST", INBOX + "/messages", "message:send", 202, {"to": ["a@far.example"]}, "inbox"),
    Row("GET", INBOX + "/messages", "message:read", 200, None, "inbox"),
    Row("POST", ONE + "/reply", "message:send", 202, {"text": "x"}, "message"),
    Row("GET", ONE, "message:read", 200, None, "message"),
    Row("DELETE", ONE, "message:delete", 204, None, "message"),
    Row("POST", ONE + "/move", "message:delete", 204, {"folder": "Archive"}, "message"),
    Row("GET", ONE + "/raw", "message:read", 200, None, "message"),
    Row("GET", ONE + "/attachments/{part}", "message:read", 200, None, "message"),
    Row("GET", "/v1/messages/{message_id}/timeline", "message:read", 200, None, "message"),
    Row("GET", "/v1/events", "event:read", 200, bound=200),
    Row("GET", "/v1/deliveries", "org:admin", 200, bound=403),
    Row("GET", "/v1/deliveries/stats", "org:admin", 200, bound=403),
    Row("GET", "/v1/deliveries/doubts", "org:admin", 200, bound=403),
    Row("POST", DOUBT, "org:admin", 200, {"verdict": "not_sent"}, "doubt", 403),
    Row("GET", "/v1/deliveries/actions", "org:admin", 200, bound=403),
    Row("POST", "/v1/deliveries/actions", "org:admin", 200, {"verb": "hold", "preview": True}, bound=403),
    Row("DELETE", "/v1/deliveries/actions/{action_id}", "org:admin", 200, None, "action", 403),
    Row("GET", "/v1/suppressions", "suppression:write", 200, bound=403),
    Row("POST", "/v1/suppressions", "suppression:write", 201, {"address": "a@far.example"}, bound=403),
    Row("DELETE", "/v1/suppressions/{address}", "suppression:write", 204, None, "suppression", 403),
]  # fmt: skip
IDS = [f"{row.method} {row.path}" for row in ROWS]
NAMED = [row for row in ROWS if row.kind]
OWNED = [row for row in NAMED if row.kind != "organization"]  # an operator sees every organization


@pytest.fixture(scope="module")
def shared(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One appliance for all rows: what one of them changes, no other looks at."""
    directory = tmp_path_factory.mktemp("matrix") / "data"
    shutil.copytree(template, directory)
    with World(directory) as made:
        yield made


@pytest.fixture
def names(shared: World) -> dict[str, str]:
    """What our organization has, made anew, by the names that paths use."""
    # Past the window in which failed logins are counted.
    shared.clock.advance(1000)
    return make_names(shared)


def make_names(world: World) -> dict[str, str]:
    _, key = world.key_with_id("inbox:read")
    number = key.id[-8:]
    inbox = world.inbox(f"u{number}@ours.example")
    credential = world.run(
        world.threads.write(
            lambda c: accounts.add_credential(
                c,
                organization_id=world.ours,
                mailbox_id=inbox.id,
                name="c",
                password_hash="$argon2id$",
                scram_verifier="",
                at=1,
            )
        )
    )
    writer = world.key("suppression:write")
    # Of each domain's rotation there is one at a time.
    world.ask("DELETE", "/v1/domains/ours.example/dkim/rotation", world.key("domain:admin"))
    world.ask("POST", "/v1/suppressions", writer, json={"address": f"u{number}@far.example"})
    return {
        "organization_id": world.ours,
        "name": "ours.example",
        "key_id": key.id,
        "inbox_id": inbox.id,
        "credential_id": credential.id,
        "message_id": world.deliver(inbox),
        "part": "3",
        "address": f"u{number}@far.example",
        "action_id": make_action(world, number),
        "delivery_id": make_doubt(world, number),
        "number": number,
    }


def make_action(world: World, number: str) -> str:
    """An act of ours on a delivery of our own."""
    message, delivery = f"msg_{number:0>26}", f"dlv_{number:0>26}"

    def unit(connection: Any) -> None:
        values = message_values(message, organization_id=world.ours)
        connection.execute(schema.messages.insert().values(values))
        values = delivery_values(delivery, message_id=message, organization_id=world.ours)
        connection.execute(schema.deliveries.insert().values(values))

    world.run(world.threads.write(unit))
    asked = {"verb": "hold", "id": delivery}
    answer = world.ask("POST", "/v1/deliveries/actions", world.key("org:admin"), json=asked)
    made: str = answer.json()["action"]
    return made


def make_doubt(world: World, number: str) -> str:
    """A delivery of ours that may have been sent."""
    message, delivery = f"msg_{number:1>26}", f"dlv_{number:1>26}"

    def unit(connection: Any) -> None:
        values = message_values(message, organization_id=world.ours)
        connection.execute(schema.messages.insert().values(values))
        values = delivery_values(
            delivery, message_id=message, organization_id=world.ours, state="held", begun_at=1
        )
        connection.execute(schema.deliveries.insert().values(values))

    world.run(world.threads.write(unit))
    return delivery


def missing(names: dict[str, str]) -> dict[str, str]:
    """The same names, none of which anybody has."""
    changed = {name: value[:4] + "0" * 26 for name, value in names.items() if name.endswith("_id")}
    return {**names, **changed, "name": "nowhere.example", "address": "nobody@far.example"}


def call(world: World, row: Row, names: dict[str, str], key: str | None):
    body = row.body
    if isinstance(body, dict):
        body = {
            name: value.replace("{number}", names["number"]) if isinstance(value, str) else value
            for name, value in body.items()
        }
    return world.ask(row.method, row.path.format(**names), key, json=body)


def test_the_table_names_every_route_of_the_api(shared: World) -> None:
    found = {
        f"{method} {path}"
        for path, operations in shared.app.openapi()["paths"].items()
        for method in map(str.upper, operations)
        if path.startswith("/v1/")
    }
    served = {route.path for route in shared.app.routes if isinstance(route, APIRoute)}
    assert found == set(IDS)
    # Nor is there one that the schema hides.
    assert {path for path in served if path.startswith("/v1/")} == {row.path for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_the_schema_names_the_scope_that_the_route_asks_for(shared: World, row: Row) -> None:
    operation = shared.app.openapi()["paths"][row.path][row.method.lower()]
    assert operation["security"] == [{"key": [row.scope]}]


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_without_a_key_it_is_401(shared: World, names: dict[str, str], row: Row) -> None:
    answer = call(shared, row, names, None)
    problem(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Bearer")
    problem(call(shared, row, names, "mak_unknown"), 401, "unauthenticated")


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_every_other_scope_together_is_403(shared: World, names: dict[str, str], row: Row) -> None:
    # An operator administers by that scope alone, so it is left out where that would open the door.
    others = ALL_SCOPES - {row.scope}
    answer = call(shared, row, names, shared.key(*others))
    assert problem(answer, 403, "scope_missing")["scopes"] == [row.scope]
    assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_its_own_scope_alone_opens_it(shared: World, names: dict[str, str], row: Row) -> None:
    answer = call(shared, row, names, shared.key(row.scope))
    assert answer.status_code == row.status, answer.text
    if row.status == 403:
        # An app password can read, send and delete: a key hands out no more than it holds.
        held = {row.scope, "message:read", "message:send", "message:delete"}
        assert call(shared, row, names, shared.key(*held)).status_code == 201


@pytest.mark.parametrize("row", OWNED, ids=[f"{row.method} {row.path}" for row in OWNED])
def test_what_belongs_to_others_is_as_if_it_were_not_there(
    shared: World, names: dict[str, str], row: Row
) -> None:
    stranger = shared.key(*EVERYTHING, organization=shared.other)
    foreign = call(shared, row, names, stranger)
    absent = call(shared, row, missing(names), stranger)
    problem(foreign, 404, "not_found")
    assert foreign.json() == absent.json()
    assert dict(foreign.headers) == dict(absent.headers)
    # And nothing happened to it: its owner still finds it.
    assert call(shared, row, names, shared.key(*EVERYTHING)).status_code < 300


@pytest.mark.parametrize("row", NAMED, ids=[f"{row.method} {row.path}" for row in NAMED])
@pytest.mark.parametrize("mistake", ["x", "inb_", "%2e%2e", "inb_" + "Z" * 26, "inb_" + "0" * 27, "'--"])
def test_an_id_that_nobody_can_have_is_404(
    shared: World, names: dict[str, str], row: Row, mistake: str
) -> None:
    ids = {name: mistake for name, value in names.items() if name.endswith("_id")}
    wrong = {**names, **ids, "name": mistake, "address": "nobody@far.example"}
    assert call(shared, row, wrong, shared.key(*EVERYTHING)).status_code == 404


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_key_bound_to_another_inbox_reaches_nothing(shared: World, names: dict[str, str], row: Row) -> None:
    bound = shared.key(*EVERYTHING, inbox=shared.two)
    answer = call(shared, row, names, bound)
    if row.bound == 403:
        problem(answer, 403, "key_bound_to_inbox")
    elif row.bound == 404:
        problem(answer, 404, "not_found")
    else:
        assert answer.status_code == row.bound
        assert shared.one.address not in answer.text
        assert shared.one.id not in answer.text


@pytest.mark.parametrize("row", NAMED, ids=[f"{row.method} {row.path}" for row in NAMED])
def test_a_key_bound_to_the_inbox_itself_works_there(shared: World, names: dict[str, str], row: Row) -> None:
    bound = shared.key(*EVERYTHING, inbox=shared.mailbox(names["inbox_id"]))
    answer = call(shared, row, names, bound)
    if row.bound == 403:
        problem(answer, 403, "key_bound_to_inbox")
    else:
        assert answer.status_code < 300, answer.text


def test_expired_and_revoked_keys_open_nothing(shared: World, names: dict[str, str]) -> None:
    for row in ROWS:
        shared.clock.advance(1000)
        expired = shared.key(*EVERYTHING, expires_at=shared.clock.now())
        problem(call(shared, row, names, expired), 401, "unauthenticated")
    secret, key = shared.key_with_id(*EVERYTHING)
    assert shared.ask("GET", "/v1/inboxes", secret).status_code == 200
    shared.run(
        shared.threads.write(
            lambda c: accounts.revoke_api_key(c, organization_id=shared.ours, key_id=key.id, at=2)
        )
    )
    for row in ROWS:
        shared.clock.advance(1000)
        problem(call(shared, row, names, secret), 401, "unauthenticated")


def test_keys_of_a_suspended_organization_open_nothing(world: World) -> None:
    names = make_names(world)
    secret = world.key(*EVERYTHING)
    assert world.ask("GET", "/v1/inboxes", secret).status_code == 200
    world.run(
        world.threads.write(
            lambda c: accounts.set_organization_state(c, organization_id=world.ours, state="suspended")
        )
    )
    for row in ROWS:
        problem(call(world, row, names, secret), 403, "organization_suspended")


def test_too_many_wrong_keys_from_one_address_are_429(world: World) -> None:
    answers = [world.ask("GET", "/v1/inboxes", f"mak_wrong{number}") for number in range(25)]
    assert [one.status_code for one in answers[:20]] == [401] * 20
    refused = problem(answers[-1], 429, "too_many_requests")
    assert answers[-1].headers["retry-after"].isdigit()
    assert "192.0.2.7" not in str(refused)
