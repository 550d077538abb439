"""Grants: whose address may be used by whom, within one organization."""

import pytest

from storage import accounts, grants
from storage.db import Database
from storage.errors import Conflict, Missing


class Tenants:
    """Two organizations with a domain, two inboxes and a key each."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.ours, self.one, self.two, self.key = self._make("ours")
        self.theirs, self.third, _, _ = self._make("theirs")

    def _make(self, name: str) -> tuple[str, str, str, str]:
        def unit(c):
            owner = accounts.add_organization(c, name=name, at=1).id
            accounts.add_domain(c, organization_id=owner, name=f"{name}.example", at=1)
            made = [
                accounts.add_mailbox(
                    c,
                    organization_id=owner,
                    address=f"{local}@{name}.example",
                    display_name="",
                    quota_octets=0,
                    at=1,
                ).id
                for local in ("one", "two")
            ]
            key = accounts.add_api_key(
                c,
                organization_id=owner,
                mailbox_id=None,
                name="k",
                prefix="mak_",
                key_hash=name.encode(),
                scopes=frozenset(),
                expires_at=None,
                at=1,
            )
            return owner, *made, key.id

        return self.database.write(unit)

    def add(self, pattern: str, organization: str | None = None, **holder):
        owner = organization or self.ours
        return self.database.write(
            lambda c: grants.add(c, organization_id=owner, pattern=pattern, at=2, **holder)
        )

    def may(self, *addresses: str, organization: str | None = None, mailbox=None, key=None) -> bool:
        return self.database.read(
            lambda c: grants.may_send_as(
                c,
                organization_id=organization or self.ours,
                mailbox_id=mailbox,
                api_key_id=key,
                addresses=addresses,
            )
        )


@pytest.fixture
def tenants(database: Database) -> Tenants:
    return Tenants(database)


def test_an_address_is_granted_to_one_inbox_alone(tenants: Tenants) -> None:
    tenants.add("sales@ours.example", mailbox_id=tenants.one)
    assert tenants.may("sales@ours.example", mailbox=tenants.one)
    assert tenants.may("sales+x@ours.example", "sales@ours.example", mailbox=tenants.one, key=tenants.key)
    assert not tenants.may("sales@ours.example", mailbox=tenants.two)
    assert not tenants.may("sales@ours.example", key=tenants.key)
    assert not tenants.may("sales@ours.example")
    assert not tenants.may("other@ours.example", mailbox=tenants.one)
    assert not tenants.may("sales@ours.example", organization=tenants.theirs, mailbox=tenants.one)


def test_a_domain_is_granted_to_a_key(tenants: Tenants) -> None:
    tenants.add("*@ours.example", api_key_id=tenants.key)
    assert tenants.may("anybody@ours.example", key=tenants.key)
    assert not tenants.may("anybody@theirs.example", key=tenants.key)
    assert not tenants.may("anybody@sub.ours.example", key=tenants.key)


@pytest.mark.parametrize("pattern", ["one@theirs.example", "*@theirs.example", "a@nowhere.example"])
def test_no_domain_of_others_is_granted(tenants: Tenants, pattern: str) -> None:
    with pytest.raises(Missing):
        tenants.add(pattern, mailbox_id=tenants.one)


def test_no_inbox_or_key_of_others_gets_a_grant(tenants: Tenants) -> None:
    for holder in ({"mailbox_id": tenants.third}, {"api_key_id": "key_none"}):
        with pytest.raises(Missing):
            tenants.add("one@ours.example", **holder)
    with pytest.raises(ValueError, match="for an inbox or for a key"):
        tenants.add("one@ours.example")


def test_a_grant_is_listed_and_taken_back_by_its_organization_alone(tenants: Tenants) -> None:
    made = tenants.add("sales@ours.example", mailbox_id=tenants.one)
    with pytest.raises(Conflict):
        tenants.add("sales@ours.example", mailbox_id=tenants.one)
    tenants.add("sales@ours.example", mailbox_id=tenants.two)
    database = tenants.database
    assert database.read(lambda c: grants.grants(c, organization_id=tenants.theirs)) == []
    assert database.read(lambda c: grants.grants(c, organization_id=tenants.ours, limit=1)) == [made]
    with pytest.raises(Missing):
        database.write(lambda c: grants.remove(c, organization_id=tenants.theirs, grant_id=made.id))
    database.write(lambda c: grants.remove(c, organization_id=tenants.ours, grant_id=made.id))
    assert not tenants.may("sales@ours.example", mailbox=tenants.one)
    assert tenants.may("sales@ours.example", mailbox=tenants.two)
