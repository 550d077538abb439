"""Who may hold and send mail: every function stays inside its organization."""

import hashlib

import pytest

from storage import accounts
from storage.db import Database, Notice
from storage.errors import Conflict, Missing
from storage.records import ApiKey, Mailbox
from tests.storage.tenants import OTHER, OURS, tenants

AT = 1_800_000_000_000_000


@pytest.fixture
def both(database: Database) -> Database:
    """Two organizations, a domain each."""
    tenants(database)
    for organization, name in ((OURS, "ours.example"), (OTHER, "other.example")):
        database.write(
            lambda c, o=organization, n=name: accounts.add_domain(c, organization_id=o, name=n, at=AT)
        )
    return database


def inbox(database: Database, address="a@ours.example", organization=OURS) -> Mailbox:
    return database.write(
        lambda c: accounts.add_mailbox(c, organization_id=organization, address=address, at=AT)
    )


def key(database: Database, secret=b"s", organization=OURS, mailbox_id=None, **more) -> ApiKey:
    return database.write(
        lambda c: accounts.add_api_key(
            c,
            organization_id=organization,
            mailbox_id=mailbox_id,
            name="k",
            prefix="mak_12345678",
            key_hash=hashlib.sha256(secret).digest(),
            scopes=frozenset({"message:send", "message:read"}),
            expires_at=more.get("expires_at"),
            at=AT,
        )
    )


def test_organizations_page_by_id_and_names_are_unique(database: Database) -> None:
    made = [
        database.write(lambda c, n=number: accounts.add_organization(c, name=f"o{n}", at=AT))
        for number in range(5)
    ]
    first = database.read(lambda c: accounts.organizations(c, limit=3))
    rest = database.read(lambda c: accounts.organizations(c, after=first[-1].id, limit=3))
    assert sorted(made, key=lambda one: one.id) == first + rest
    with pytest.raises(Conflict):
        database.write(lambda c: accounts.add_organization(c, name="o3", at=AT))


def test_an_organization_is_suspended_by_state(both: Database) -> None:
    both.write(lambda c: accounts.set_organization_state(c, organization_id=OURS, state="suspended"))
    found = both.read(lambda c: accounts.organization(c, organization_id=OURS))
    assert found is not None
    assert found.state == "suspended"
    with pytest.raises(Missing):
        both.write(lambda c: accounts.set_organization_state(c, organization_id="org_x", state="active"))
    with pytest.raises(ValueError, match="state"):
        both.write(lambda c: accounts.set_organization_state(c, organization_id=OURS, state="odd"))


def test_a_domain_has_one_owner(both: Database) -> None:
    with pytest.raises(Conflict):
        both.write(lambda c: accounts.add_domain(c, organization_id=OTHER, name="ours.example", at=AT))
    with pytest.raises(Missing):
        both.write(lambda c: accounts.add_domain(c, organization_id="org_x", name="new.example", at=AT))
    found = both.read(lambda c: accounts.find_domain(c, name="ours.example"))
    assert found is not None
    assert found.organization_id == OURS
    assert both.read(lambda c: accounts.find_domain(c, name="new.example")) is None
    assert [one.name for one in both.read(lambda c: accounts.domains(c, organization_id=OURS))] == [
        "ours.example"
    ]


def dkim(database: Database, selector="s1", domain="ours.example", organization=OURS):
    return database.write(
        lambda c: accounts.add_dkim_key(
            c,
            organization_id=organization,
            domain=domain,
            selector=selector,
            algorithm="ed25519-sha256",
            private_pem=b"pem\x00",
            public_record="v=DKIM1; k=ed25519; p=",
            at=AT,
        )
    )


def test_signing_keys_are_the_domains_and_a_selector_is_used_once(both: Database) -> None:
    first, second = dkim(both), dkim(both, "s2")
    assert both.read(lambda c: accounts.dkim_keys(c, domain="ours.example")) == [first, second]
    with pytest.raises(Missing):
        dkim(both, "s3", organization=OTHER)
    with pytest.raises(Missing):
        both.write(lambda c: accounts.retire_dkim_key(c, organization_id=OTHER, key_id=first.id))
    both.write(lambda c: accounts.retire_dkim_key(c, organization_id=OURS, key_id=first.id))
    assert both.read(lambda c: accounts.dkim_keys(c, domain="ours.example")) == [second]
    with pytest.raises(Conflict):
        dkim(both)


def test_an_inbox_needs_a_domain_of_its_organization(both: Database) -> None:
    for address in ("a@other.example", "a@nowhere.example", "a", ""):
        with pytest.raises(Missing):
            inbox(both, address)
    made = inbox(both)
    assert both.read(lambda c: accounts.find_mailbox(c, address="a@ours.example")) == made
    with pytest.raises(Conflict):
        inbox(both)


def test_a_refused_inbox_leaves_nothing(both: Database) -> None:
    with pytest.raises(Missing):
        inbox(both, "a@other.example")
    assert both.read(lambda c: accounts.find_mailbox(c, address="a@other.example")) is None


def test_an_inbox_is_read_by_its_own_organization_alone(both: Database) -> None:
    made = inbox(both)

    def read(organization: str) -> Mailbox | None:
        return both.read(lambda c: accounts.mailbox(c, organization_id=organization, mailbox_id=made.id))

    assert read(OURS) == made
    assert read(OTHER) is None
    assert both.read(lambda c: accounts.mailboxes(c, organization_id=OTHER)) == []


def test_inboxes_page_by_id(both: Database) -> None:
    made = [inbox(both, f"u{number}@ours.example") for number in range(5)]
    first = both.read(lambda c: accounts.mailboxes(c, organization_id=OURS, limit=2))
    rest = both.read(lambda c: accounts.mailboxes(c, organization_id=OURS, after=first[-1].id))
    assert first + rest == sorted(made, key=lambda one: one.id)


def test_an_inboxs_state_is_set_by_its_owner(both: Database) -> None:
    made = inbox(both)
    with pytest.raises(Missing):
        both.write(
            lambda c: accounts.set_mailbox_state(c, organization_id=OTHER, mailbox_id=made.id, state="closed")
        )
    changed = both.write(
        lambda c: accounts.set_mailbox_state(c, organization_id=OURS, mailbox_id=made.id, state="suspended")
    )
    assert changed.state == "suspended"
    assert both.read(lambda c: accounts.used_octets(c, organization_id=OTHER, mailbox_id=made.id)) == 0


def route(database: Database, pattern: str, kind="forward", target="x@far.example", organization=OURS):
    return database.write(
        lambda c: accounts.add_route(
            c, organization_id=organization, pattern=pattern, kind=kind, target=target, at=AT
        )
    )


def test_routes_belong_to_a_domain_and_an_organization(both: Database) -> None:
    made = inbox(both)
    exact = route(both, "sales@ours.example", "inbox", made.id)
    wild = route(both, "*@ours.example")
    route(both, "info@other.example", organization=OTHER)
    assert both.read(lambda c: accounts.find_routes(c, domain="ours.example")) == [wild, exact]
    assert both.read(lambda c: accounts.routes(c, organization_id=OURS)) == [wild, exact]
    wanted = ["sales@ours.example", "info@other.example"]
    assert both.read(lambda c: accounts.find_routes(c, domain="ours.example", patterns=wanted)) == [exact]
    with pytest.raises(Missing):
        route(both, "x@other.example")
    with pytest.raises(Missing):
        route(both, "x@other.example", "inbox", made.id, organization=OTHER)
    with pytest.raises(Conflict):
        route(both, "*@ours.example")
    with pytest.raises(Missing):
        both.write(lambda c: accounts.remove_route(c, organization_id=OTHER, route_id=exact.id))
    both.write(lambda c: accounts.remove_route(c, organization_id=OURS, route_id=exact.id))
    assert both.read(lambda c: accounts.routes(c, organization_id=OURS)) == [wild]


@pytest.mark.parametrize("domain", ["%", "_urs.example", "urs.example", "", "%.example"])
def test_a_domains_name_is_no_pattern_when_routes_are_looked_up(both: Database, domain: str) -> None:
    route(both, "*@ours.example")
    assert both.read(lambda c: accounts.find_routes(c, domain=domain)) == []


def credential(database: Database, mailbox: Mailbox, organization=OURS):
    return database.write(
        lambda c: accounts.add_credential(
            c,
            organization_id=organization,
            mailbox_id=mailbox.id,
            name="phone",
            password_hash="$argon2id$",
            scram_verifier="4096$a$b$c",
            at=AT,
        )
    )


def test_app_passwords_work_until_revoked_by_their_organization(both: Database) -> None:
    mailbox = inbox(both)
    with pytest.raises(Missing):
        credential(both, mailbox, OTHER)
    made = credential(both, mailbox)
    assert both.read(lambda c: accounts.credentials(c, mailbox_id=mailbox.id)) == [made]

    def revoke(organization: str) -> None:
        both.write(
            lambda c: accounts.revoke_credential(
                c, organization_id=organization, credential_id=made.id, at=AT
            )
        )

    with pytest.raises(Missing):
        revoke(OTHER)
    revoke(OURS)
    assert both.read(lambda c: accounts.credentials(c, mailbox_id=mailbox.id)) == []
    with pytest.raises(Missing):
        revoke(OURS)


def test_an_inbox_has_so_many_app_passwords_at_most(both: Database) -> None:
    mailbox = inbox(both)
    made = [credential(both, mailbox) for _ in range(accounts.PASSWORDS_LIMIT)]
    with pytest.raises(Conflict, match="app passwords"):
        credential(both, mailbox)
    both.write(lambda c: accounts.revoke_credential(c, organization_id=OURS, credential_id=made[0].id, at=AT))
    credential(both, mailbox)


def test_a_key_is_found_by_its_hash_with_its_scopes(both: Database) -> None:
    made = key(both, b"secret", expires_at=AT + 5)
    found = both.read(lambda c: accounts.find_api_key(c, key_hash=hashlib.sha256(b"secret").digest()))
    assert found == made
    assert found is not None
    assert found.scopes == {"message:send", "message:read"}
    assert both.read(lambda c: accounts.find_api_key(c, key_hash=bytes(32))) is None


def test_a_key_is_bound_to_an_inbox_of_its_organization(both: Database) -> None:
    mailbox = inbox(both)
    assert key(both, mailbox_id=mailbox.id).mailbox_id == mailbox.id
    with pytest.raises(Missing):
        key(both, b"2", OTHER, mailbox.id)
    with pytest.raises(Missing):
        key(both, b"3", "org_x")


def test_a_revoked_key_says_when_and_stays_listed(both: Database) -> None:
    made = key(both)
    with pytest.raises(Missing):
        both.write(lambda c: accounts.revoke_api_key(c, organization_id=OTHER, key_id=made.id, at=AT))
    both.write(lambda c: accounts.revoke_api_key(c, organization_id=OURS, key_id=made.id, at=AT + 9))
    (listed,) = both.read(lambda c: accounts.api_keys(c, organization_id=OURS))
    assert listed.revoked_at == AT + 9
    assert both.read(lambda c: accounts.api_keys(c, organization_id=OTHER)) == []


def test_use_of_secrets_is_noted_without_waking_caches(both: Database) -> None:
    made, mailbox = key(both), inbox(both)
    password = credential(both, mailbox)
    heard: list[Notice] = []
    both.listen(heard.extend)
    both.write(lambda c: accounts.touch_api_keys(c, used={made.id: AT + 1, "key_x": AT}))
    both.write(lambda c: accounts.touch_credentials(c, used={password.id: AT + 1}))
    both.write(lambda c: accounts.touch_api_keys(c, used={}))
    (listed,) = both.read(lambda c: accounts.api_keys(c, organization_id=OURS))
    assert listed.last_used_at == AT + 1
    assert heard == []


def test_each_change_is_heard_under_its_organization(both: Database) -> None:
    heard: list[Notice] = []
    both.listen(heard.extend)
    mailbox = inbox(both)
    made = key(both, mailbox_id=mailbox.id)
    both.write(lambda c: accounts.revoke_api_key(c, organization_id=OURS, key_id=made.id, at=AT))
    assert [one for one in heard if one.topic == "accounts"] == [Notice("accounts", OURS)] * 3


def test_no_message_is_known_before_any_came(both: Database) -> None:
    assert both.read(lambda c: accounts.message_exists(c, message_id="msg_x")) is False
