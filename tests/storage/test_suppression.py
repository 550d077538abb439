"""Suppressed addresses: scope, expiry, one row an address."""

import pytest

from storage import suppression
from storage.db import Database
from storage.errors import Missing
from tests.storage.tenants import tenants


def find(database: Database, organization: str, address: str, at: int = 100):
    return database.read(lambda c: suppression.find(c, organization_id=organization, address=address, at=at))


def add(database: Database, organization: str, address: str, **more):
    more = {"cause": "manual", "at": 100, **more}
    return database.write(lambda c: suppression.add(c, organization_id=organization, address=address, **more))


def test_an_address_is_suppressed_for_its_own_organization_alone(database: Database) -> None:
    ours, other = tenants(database)
    made = add(database, ours, "gone@example.net", cause="hard_bounce", evidence="550 5.1.1")
    assert find(database, ours, "gone@example.net") == made
    assert find(database, other, "gone@example.net") is None
    assert find(database, ours, "here@example.net") is None


def test_a_suppression_ends_when_it_expires(database: Database) -> None:
    ours, _ = tenants(database)
    add(database, ours, "a@example.net", expires_at=200)
    assert find(database, ours, "a@example.net", at=199) is not None
    assert find(database, ours, "a@example.net", at=200) is None


def test_adding_again_replaces_cause_and_expiry(database: Database) -> None:
    ours, _ = tenants(database)
    add(database, ours, "a@example.net", expires_at=200)
    add(database, ours, "a@example.net", cause="complaint")
    found = find(database, ours, "a@example.net", at=10_000)
    assert found is not None
    assert (found.cause, found.expires_at) == ("complaint", None)


def test_an_unknown_cause_is_a_mistake_of_the_caller(database: Database) -> None:
    ours, _ = tenants(database)
    with pytest.raises(ValueError, match="cause"):
        add(database, ours, "a@example.net", cause="because")


def test_removing_lets_mail_through_again_once(database: Database) -> None:
    ours, other = tenants(database)
    add(database, ours, "a@example.net")
    with pytest.raises(Missing):
        database.write(lambda c: suppression.remove(c, organization_id=other, address="a@example.net"))
    database.write(lambda c: suppression.remove(c, organization_id=ours, address="a@example.net"))
    assert find(database, ours, "a@example.net") is None
    with pytest.raises(Missing):
        database.write(lambda c: suppression.remove(c, organization_id=ours, address="a@example.net"))


def test_the_list_pages_and_leaves_out_the_expired(database: Database) -> None:
    ours, other = tenants(database)
    for number in range(5):
        add(database, ours, f"{number}@example.net", expires_at=50 if number == 2 else None)
    add(database, other, "z@example.net")
    seen: list[str] = []
    after = ""
    while True:
        page = database.read(
            lambda c, after=after: suppression.suppressions(
                c, organization_id=ours, at=100, after=after, limit=2
            )
        )
        if not page:
            break
        assert len(page) <= 2
        seen += [row.address for row in page]
        after = page[-1].id
    assert sorted(seen) == [f"{number}@example.net" for number in (0, 1, 3, 4)]
