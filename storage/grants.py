"""Grants: addresses that an inbox or a key may send as beside its own.

Owns the rows of `grants`. A pattern is an address in normal form, or `*@domain`;
its domain belongs to the grant's organization, when the grant is made and whenever
it is used. Answers within one organization alone. RFC 6409 6.1.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Row, delete, exists, insert, or_, select

from storage import ids
from storage.errors import Conflict, Missing
from storage.records import Grant
from storage.schema import api_keys, domains, mailboxes
from storage.schema import grants as table

PAGE_LIMIT = 1000


def add(
    connection: Connection,
    *,
    organization_id: str,
    pattern: str,
    mailbox_id: str | None = None,
    api_key_id: str | None = None,
    at: int,
) -> Grant:
    """Let one inbox or one key send as an address or a whole domain.

    Missing where the domain, the inbox or the key is not the organization's; Conflict where it may already.
    """
    if (mailbox_id is None) == (api_key_id is None):
        raise ValueError("a grant is for an inbox or for a key")
    domain = pattern.rpartition("@")[2]
    holder, wanted = (mailboxes, mailbox_id) if mailbox_id is not None else (api_keys, api_key_id)
    for owned, condition, what in (
        (domains, domains.c.name == domain, f"domain {domain}"),
        (holder, holder.c.id == wanted, f"holder {wanted}"),
    ):
        query = select(owned.c.id).where(condition, owned.c.organization_id == organization_id)
        if connection.execute(query).first() is None:
            raise Missing(what)
    is_same = table.c.mailbox_id == mailbox_id if api_key_id is None else table.c.api_key_id == api_key_id
    query = select(table.c.id).where(
        table.c.organization_id == organization_id, table.c.pattern == pattern, is_same
    )
    if connection.execute(query).first() is not None:
        raise Conflict(f"grant {pattern}")
    made = Grant(ids.new("grt"), organization_id, mailbox_id, api_key_id, pattern, at)
    connection.execute(insert(table), {name: getattr(made, name) for name in made.__slots__})
    return made


def remove(connection: Connection, *, organization_id: str, grant_id: str) -> None:
    """Take a grant back; Missing if there is none of this id."""
    query = delete(table).where(table.c.id == grant_id, table.c.organization_id == organization_id)
    if connection.execute(query).rowcount == 0:
        raise Missing(f"grant {grant_id}")


def grants(connection: Connection, *, organization_id: str, after: str = "", limit: int = 100) -> list[Grant]:
    """Return up to `limit` grants of a tenant with ids above `after`, oldest first."""
    query = select(table).where(table.c.organization_id == organization_id, table.c.id > after)
    rows = connection.execute(query.order_by(table.c.id).limit(max(1, min(limit, PAGE_LIMIT))))
    return [_grant(row) for row in rows]


def may_send_as(
    connection: Connection,
    *,
    organization_id: str,
    mailbox_id: str | None,
    api_key_id: str | None,
    addresses: Collection[str],
) -> bool:
    """Return whether an inbox or a key holds a grant for one of these addresses, or for its domain.

    addresses: the forms of one address, in normal form.
    """
    patterns = set(addresses) | {f"*@{address.rpartition('@')[2]}" for address in addresses}
    own = {address.rpartition("@")[2] for address in addresses}
    holders = []
    if mailbox_id is not None:
        holders.append(table.c.mailbox_id == mailbox_id)
    if api_key_id is not None:
        holders.append(table.c.api_key_id == api_key_id)
    if not holders:
        return False
    is_own = exists().where(domains.c.name.in_(own), domains.c.organization_id == organization_id)
    query = select(table.c.id).where(
        table.c.organization_id == organization_id, table.c.pattern.in_(patterns), or_(*holders), is_own
    )
    return connection.execute(query.limit(1)).first() is not None


def _grant(row: Row[Any]) -> Grant:
    return Grant(row.id, row.organization_id, row.mailbox_id, row.api_key_id, row.pattern, row.created_at)
