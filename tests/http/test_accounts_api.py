"""Organizations, domains, inboxes, app passwords and keys over HTTP."""

import json

import pytest

from server.http import models
from server.http.dkim import DkimKeyList
from server.login import SCRAM_ITERATIONS
from storage import accounts, audit
from tests.http.world import ALL_SCOPES, SECOND, World, problem


def valid(model, answer, status=200):
    """Assert that an answer is as the schema says, and return it."""
    assert answer.status_code == status, answer.text
    model.model_validate_json(answer.content, strict=True)
    return answer.json()


def test_an_operator_makes_an_organization_and_hands_over_its_first_key(world: World) -> None:
    operator = world.key("operator")
    made = valid(
        models.Organization, world.ask("POST", "/v1/organizations", operator, json={"name": "n"}), 201
    )
    asked = {"name": "first", "scopes": sorted(ALL_SCOPES)}
    path = f"/v1/organizations/{made['id']}/keys"
    key = valid(models.KeySecret, world.ask("POST", path, operator, json=asked), 201)
    listed = valid(models.OrganizationList, world.ask("GET", "/v1/organizations", key["key"]))
    assert [one["id"] for one in listed["organizations"]] == [made["id"]]
    problem(world.ask("POST", "/v1/organizations", operator, json={"name": "n"}), 409, "exists_already")


def test_an_operator_sees_all_organizations_by_pages_and_others_their_own(world: World) -> None:
    operator = world.key("operator")
    first = valid(models.OrganizationList, world.ask("GET", "/v1/organizations?limit=1", operator))
    cursor = first["next_cursor"]
    rest = valid(models.OrganizationList, world.ask("GET", f"/v1/organizations?cursor={cursor}", operator))
    seen = {one["id"] for one in (*first["organizations"], *rest["organizations"])}
    assert seen == {world.ours, world.other}
    own = valid(models.OrganizationList, world.ask("GET", "/v1/organizations", world.key("org:admin")))
    assert [one["id"] for one in own["organizations"]] == [world.ours]


def test_nobody_but_an_operator_hands_out_the_operators_scope(world: World) -> None:
    asked = {"name": "k", "scopes": ["operator"]}
    problem(world.ask("POST", "/v1/keys", world.key(*ALL_SCOPES), json=asked), 403, "scope_missing")
    operator = world.key("operator")
    valid(models.KeySecret, world.ask("POST", "/v1/keys", operator, json=asked), 201)
    bound = {**asked, "inbox_id": world.one.id}
    problem(world.ask("POST", "/v1/keys", operator, json=bound), 422, "invalid")
    path = f"/v1/organizations/{world.other}/keys"
    problem(world.ask("POST", path, operator, json=asked), 422, "invalid")


def test_a_domain_comes_with_its_records(world: World) -> None:
    operator = world.key("operator")
    asked = {"name": "Bücher.Example.", "organization_id": world.other}
    made = valid(models.DomainRecords, world.ask("POST", "/v1/domains", operator, json=asked), 201)
    assert (made["name"], made["organization_id"]) == ("xn--bcher-kva.example", world.other)
    assert [one["type"] for one in made["records"]] == ["MX", "TXT", "TXT", "TXT", "TXT", "TXT"]
    assert sum("v=DKIM1" in one["value"] for one in made["records"]) == 2
    assert not any("PRIVATE" in one["value"] for one in made["records"])
    theirs = world.key("domain:admin", organization=world.other)
    assert valid(models.DomainRecords, world.ask("GET", "/v1/domains/xn--bcher-kva.example", theirs)) == made
    assert len(valid(models.DomainList, world.ask("GET", "/v1/domains", theirs))["domains"]) == 2
    problem(world.ask("POST", "/v1/domains", operator, json=asked), 409, "exists_already")


def test_the_keys_of_a_domain_are_rotated(world: World) -> None:
    operator, ours = world.key("operator"), world.key("domain:admin")
    asked = {"name": "turn.example", "organization_id": world.ours}
    valid(models.DomainRecords, world.ask("POST", "/v1/domains", operator, json=asked), 201)
    path = "/v1/domains/turn.example/dkim"
    before = valid(DkimKeyList, world.ask("GET", path, ours))
    assert [one["state"] for one in before["keys"]] == ["active", "active"]
    world.clock.advance(1)
    made = valid(DkimKeyList, world.ask("POST", path + "/rotation", ours), 201)
    assert [one["state"] for one in made["keys"]] == ["active", "active", "made", "made"]
    assert made["keys"][:2] == before["keys"]
    assert "PRIVATE" not in json.dumps(made)
    problem(world.ask("POST", path + "/rotation", ours), 409, "exists_already")
    published = valid(models.DomainRecords, world.ask("GET", "/v1/domains/turn.example", ours))["records"]
    assert {one["name"] for one in made["keys"]} <= {one["name"] for one in published}
    for _ in range(2):
        ended = valid(DkimKeyList, world.ask("DELETE", path + "/rotation", ours))
        assert [one["state"] for one in ended["keys"]] == ["active", "active", "retired", "retired"]


@pytest.mark.parametrize("name", ["-a.example", "a..example", "localhost", "[192.0.2.1]", "a b.example", "."])
def test_what_is_no_domain_is_refused(world: World, name: str) -> None:
    problem(
        world.ask("POST", "/v1/domains", world.key("operator"), json={"name": name}), 422, "invalid_domain"
    )


def test_an_inbox_is_made_at_an_address_in_normal_form(world: World) -> None:
    key = world.key("inbox:write", "inbox:read")
    asked = {"address": "New.One@OURS.example", "display_name": "Neue", "quota_octets": 1000}
    made = valid(models.Inbox, world.ask("POST", "/v1/inboxes", key, json=asked), 201)
    assert made["address"] == "new.one@ours.example"
    shown = valid(models.InboxDetails, world.ask("GET", f"/v1/inboxes/{made['id']}", key))
    assert {"INBOX", "Sent"} <= {folder["name"] for folder in shown["folders"]}
    problem(world.ask("POST", "/v1/inboxes", key, json=asked), 409, "exists_already")


def test_an_inbox_at_a_made_up_address_is_on_the_domain(world: World) -> None:
    key = world.key("inbox:write")
    made = [world.ask("POST", "/v1/inboxes", key, json={"domain": "ours.example"}).json() for _ in range(2)]
    assert all(one["address"].endswith("@ours.example") for one in made)
    assert made[0]["address"] != made[1]["address"]


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"address": "a@other.example"}, "domain_not_owned"),
        ({"address": "a@nowhere.example"}, "domain_not_owned"),
        ({"domain": "other.example"}, "domain_not_owned"),
        ({"address": "no address"}, "invalid_address"),
        ({"address": "a@ours.example", "domain": "ours.example"}, "invalid"),
        ({}, "invalid"),
        ({"address": "a\nb@ours.example"}, "invalid"),
        ({"address": "a@ours.example", "colour": "red"}, "invalid"),
        ({"address": "a@ours.example", "quota_octets": -1}, "invalid"),
    ],
)
def test_an_inbox_that_cannot_be_is_422(world: World, asked: dict[str, object], code: str) -> None:
    found = problem(world.ask("POST", "/v1/inboxes", world.key("inbox:write"), json=asked), 422, code)
    assert "red" not in json.dumps(found)


def test_foreign_domains_and_unknown_ones_are_refused_alike(world: World) -> None:
    key = world.key("inbox:write")
    foreign = world.ask("POST", "/v1/inboxes", key, json={"address": "a@other.example"})
    unknown = world.ask("POST", "/v1/inboxes", key, json={"address": "a@nowhere.example"})
    taken = world.ask("POST", "/v1/inboxes", key, json={"address": "x@other.example"})
    assert foreign.json() == unknown.json() == taken.json()


def test_inboxes_are_listed_page_by_page(world: World) -> None:
    key = world.key("inbox:read")
    seen, cursor = [], ""
    while True:
        page = valid(
            models.InboxList, world.ask("GET", "/v1/inboxes", key, params={"limit": 1, "cursor": cursor})
        )
        seen += [one["address"] for one in page["inboxes"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ["one@ours.example", "two@ours.example"]


def test_a_bound_key_lists_its_own_inbox(world: World) -> None:
    page = world.ask("GET", "/v1/inboxes", world.key("inbox:read", inbox=world.two)).json()
    assert [one["id"] for one in page["inboxes"]] == [world.two.id]


def test_an_inbox_is_suspended_and_then_sends_nothing(world: World) -> None:
    key = world.key("inbox:write", "message:send")
    path = f"/v1/inboxes/{world.one.id}"
    changed = valid(models.Inbox, world.ask("PATCH", path, key, json={"state": "suspended"}))
    assert changed["state"] == "suspended"
    answer = world.ask("POST", f"{path}/messages", key, json={"to": ["a@far.example"]})
    problem(answer, 403, "inbox_not_active")
    problem(world.ask("PATCH", path, key, json={"state": "odd"}), 422, "invalid")


def test_an_app_password_is_shown_once_and_logs_in_until_revoked(world: World) -> None:
    key = world.key(*ALL_SCOPES)
    path = f"/v1/inboxes/{world.one.id}/credentials"
    made = valid(models.CredentialSecret, world.ask("POST", path, key, json={"name": "phone"}), 201)
    login = world.login.check(
        protocol="imap", user=made["username"], password=made["password"], peer="192.0.2.1"
    )
    assert world.run(login).mailbox_id == world.one.id
    listed = world.ask("GET", path, key)
    assert [one["id"] for one in valid(models.CredentialList, listed)["credentials"]] == [made["id"]]
    assert made["password"] not in listed.text
    assert str(SCRAM_ITERATIONS) + "$" not in listed.text
    assert world.ask("DELETE", f"{path}/{made['id']}", key).status_code == 204
    assert world.ask("GET", path, key).json() == {"credentials": []}
    problem(world.ask("DELETE", f"{path}/{made['id']}", key), 404, "not_found")


def test_an_inbox_takes_so_many_app_passwords_at_most(world: World, monkeypatch) -> None:
    monkeypatch.setattr(accounts, "PASSWORDS_LIMIT", 2)
    key = world.key(*ALL_SCOPES)
    path = f"/v1/inboxes/{world.one.id}/credentials"
    for name in ("first", "second"):
        assert world.ask("POST", path, key, json={"name": name}).status_code == 201
    found = problem(world.ask("POST", path, key, json={"name": "third"}), 409, "too_many_passwords")
    assert found["limit"] == 2


def test_an_app_password_is_revoked_through_its_own_inbox_alone(world: World) -> None:
    key = world.key(*ALL_SCOPES)
    path = f"/v1/inboxes/{world.one.id}/credentials"
    made = world.ask("POST", path, key, json={"name": "phone"}).json()
    wrong = f"/v1/inboxes/{world.two.id}/credentials/{made['id']}"
    problem(world.ask("DELETE", wrong, key), 404, "not_found")


def test_a_key_is_shown_once_works_at_once_and_is_revoked_at_once(world: World) -> None:
    admin = world.key(*ALL_SCOPES)
    asked = {"name": "agent", "scopes": ["inbox:read"], "inbox_id": world.one.id}
    made = valid(models.KeySecret, world.ask("POST", "/v1/keys", admin, json=asked), 201)
    assert made["key"].startswith(made["prefix"])
    assert world.ask("GET", f"/v1/inboxes/{world.one.id}", made["key"]).status_code == 200
    listed = world.ask("GET", "/v1/keys", admin)
    assert made["id"] in {one["id"] for one in valid(models.KeyList, listed)["keys"]}
    assert made["key"] not in listed.text
    assert world.ask("DELETE", f"/v1/keys/{made['id']}", admin).status_code == 204
    problem(world.ask("GET", f"/v1/inboxes/{world.one.id}", made["key"]), 401, "unauthenticated")
    problem(world.ask("DELETE", f"/v1/keys/{made['id']}", admin), 404, "not_found")


def test_a_key_hands_out_no_more_than_it_holds(world: World) -> None:
    admin = world.key("org:admin", "inbox:read")
    asked = {"name": "k", "scopes": ["inbox:read", "message:read"]}
    assert problem(world.ask("POST", "/v1/keys", admin, json=asked), 403, "scope_missing")["scopes"] == [
        "message:read"
    ]


def test_a_key_for_a_foreign_inbox_is_404(world: World) -> None:
    asked = {"name": "k", "scopes": ["inbox:read"], "inbox_id": world.theirs.id}
    problem(world.ask("POST", "/v1/keys", world.key(*ALL_SCOPES), json=asked), 404, "not_found")


def test_a_key_expires_when_it_says(world: World) -> None:
    admin = world.key(*ALL_SCOPES)
    asked = {"name": "k", "scopes": ["inbox:read"], "expires_at": "2027-01-15T09:00:30+01:00"}
    made = world.ask("POST", "/v1/keys", admin, json=asked).json()
    assert made["expires_at"] == "2027-01-15T08:00:30.000000Z"
    assert world.ask("GET", "/v1/inboxes", made["key"]).status_code == 200
    world.clock.advance(30)
    problem(world.ask("GET", "/v1/inboxes", made["key"]), 401, "unauthenticated")


@pytest.mark.parametrize("text", ["soon", "2020-01-01T00:00:00Z", "2027-06-01T00:00:00", "9" * 40, ""])
def test_an_expiry_that_is_none_is_422(world: World, text: str) -> None:
    asked = {"name": "k", "scopes": ["inbox:read"], "expires_at": text}
    problem(world.ask("POST", "/v1/keys", world.key(*ALL_SCOPES), json=asked), 422, "invalid_time")


def test_use_of_keys_is_written_in_batches(world: World) -> None:
    secret, key = world.key_with_id("inbox:read")
    world.clock.advance(5)
    world.ask("GET", "/v1/inboxes", secret)

    def last_used() -> int | None:
        found = world.run(
            world.threads.read(lambda c: accounts.api_key(c, organization_id=world.ours, key_id=key.id))
        )
        return found.last_used_at

    assert last_used() is None
    world.run(world.end_lifespan())
    assert last_used() == world.clock.now() == key.created_at + 5 * SECOND


def test_changes_are_in_the_audit_log_by_the_key_that_made_them(world: World) -> None:
    secret, key = world.key_with_id(*ALL_SCOPES)
    world.ask("POST", "/v1/inboxes", secret, json={"address": "n@ours.example"})
    world.ask("POST", "/v1/suppressions", secret, json={"address": "gone@far.example"})
    entries = world.run(world.threads.read(lambda c: audit.entries(c, organization_id=world.ours)))
    assert [(one.action, one.actor) for one in entries] == [
        ("suppression.add", key.id),
        ("inbox.add", key.id),
    ]
    assert world.run(world.threads.read(audit.verify)).broken_seq is None
