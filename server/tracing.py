"""What people ask about one address or one delivery: `trace` and `case`, for the command line and the API.

Owns these as operations over the open store, JSON-able both ways, and what the DNS is asked for a case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from server import dns
from server.arguments import WrongArguments
from server.case_file import case_file
from server.dns import DnsFailure, Mx, NoAnswer
from server.mail.address import AddressSyntax, normalise
from storage import events, queue_view, tracing
from storage.errors import Missing

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from server.dns import Resolver
    from storage.store import Store

SECOND = 1_000_000
DAY = 86_400 * SECOND
HOSTS_LIMIT = 10
DNS_SECONDS = 10.0


class Context(Protocol):
    """What these operations need."""

    @property
    def store(self) -> Store:
        """The open store."""
        ...

    @property
    def clock(self) -> Clock:
        """What time it is."""
        ...


def trace(
    context: Context, *, address: str, days: int = 7, limit: int = 100, organization_id: str | None = None
) -> dict[str, Any]:
    """Return the messages to or from an address in the last days, newest first."""
    try:
        wanted = normalise(address)
    except AddressSyntax as error:
        raise WrongArguments(f"{address}: {error}") from None
    now = context.clock.now()
    query = tracing.Query(wanted, now - days * DAY, now, organization_id, limit)
    return {"address": wanted, "messages": context.store.database.read(lambda c: tracing.trace(c, query))}


def case(
    context: Context,
    *,
    id: str,
    hostname: str,
    names: Mapping[str, Sequence[str]] | None = None,
    organization_id: str | None = None,
) -> dict[str, Any]:
    """Return the case file of a delivery; Missing where there is none of the organization."""

    def unit(connection: Connection) -> dict[str, Any]:
        message = events.message_facts(connection, message_or_delivery_id=id)
        owner = None if message is None else str(message["organization_id"])
        if message is None or not id.startswith("dlv_") or organization_id not in (None, owner):
            raise Missing(f"{id}: no delivery has this id")
        assert owner is not None
        message_id = str(message["id"])
        steps = events.timeline(connection, organization_id=owner, message_id=message_id)
        concerned = [
            {"at": step.at, "kind": step.kind, "data": dict(step.data)}
            for step in steps
            if step.delivery_id in (None, id)
        ]
        delivery = queue_view.one(connection, delivery_id=id)
        assert delivery is not None, "its message was found by it"
        return {"message": message, "delivery": delivery, "steps": concerned}

    found = context.store.database.read(unit)
    return case_file(**found, names=names or {}, hostname=hostname, at=context.clock.now())


def domain_of(connection: Connection, *, delivery_id: str, organization_id: str | None = None) -> str:
    """Return the domain that a delivery of an organization goes to, '' for none."""
    row = queue_view.one(connection, delivery_id=delivery_id)
    is_theirs = row is not None and organization_id in (None, row["organization"])
    return str(row["domain"]) if row is not None and is_theirs else ""


async def names_of(resolver: Resolver, domain: str) -> dict[str, list[str]]:
    """Return what the DNS says of a domain's mail hosts now, by question; a failure is told as such."""
    if not domain or domain.startswith("["):
        return {}
    found: dict[str, list[str]] = {}
    try:
        async with asyncio.timeout(DNS_SECONDS):
            for host in (await _hosts(resolver, domain, found))[:HOSTS_LIMIT]:
                try:
                    found[f"addresses of {host}"] = list(await dns.addresses(resolver, host))
                except DnsFailure as failure:
                    found[f"addresses of {host}"] = [f"({failure})"]
    except TimeoutError:
        found["the DNS"] = ["(no answer in time)"]
    return found


async def _hosts(resolver: Resolver, domain: str, found: dict[str, list[str]]) -> list[str]:
    question = f"MX of {domain}"
    try:
        answer = await dns.mx(resolver, domain)
    except NoAnswer:
        found[question] = ["none: the domain is its own host"]
        return [domain]
    except DnsFailure as failure:
        found[question] = [f"({failure})"]
        return []
    records: list[Mx] = list(answer.records)
    proved = ", proved by DNSSEC" if answer.authenticated else ""
    found[question] = [f"{one.preference} {one.host or '.'}{proved}" for one in records]
    return [one.host for one in records if one.host]
