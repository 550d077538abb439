"""What an operator asks of the DKIM keys of a domain: rotate, status, cancel.

Owns these acts as operations over the open store; arguments and results are JSON-able. The daemon
alone switches keys (delivery/dkim_rotation): an act begins a rotation or gives one up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from server.arguments import WrongArguments
from server.mail.address import AddressSyntax, normalise
from server.sender_auth import zone
from server.sender_auth.keys import ALGORITHMS, make_key, selector_of
from server.sender_auth.rotation import Pace, describe, switch_at
from storage import accounts, dkim
from storage.errors import Missing
from storage.records import DkimKey

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from storage.store import Store


class Context(Protocol):
    """What an operation works on. actor: who asks, for the audit log. pace: of rotations."""

    @property
    def store(self) -> Store: ...  # noqa: D102 - as in operations

    @property
    def clock(self) -> Clock: ...  # noqa: D102

    @property
    def actor(self) -> str: ...  # noqa: D102

    @property
    def pace(self) -> Pace: ...  # noqa: D102


def new_keys(at: int) -> list[dkim.NewKey]:
    """Return a fresh key of each algorithm; takes some 100 ms of a processor."""
    return [dkim.NewKey(selector_of(one, at), one, *make_key(one)) for one in ALGORITHMS]


def domain_dkim_rotate(context: Context, *, name: str) -> dict[str, Any]:
    """Make the next keys of a domain and return the records to publish; the rest follows by itself."""
    domain = _domain_name(name)
    now = context.clock.now()
    made = new_keys(now)

    def unit(connection: Connection) -> list[DkimKey]:
        return dkim.begin(
            connection,
            organization_id=_owner(connection, domain),
            domain=domain,
            made=made,
            actor=context.actor,
            is_told=True,
            at=now,
        )

    keys = context.store.database.write(unit)
    return {"domain": domain, "records": [asdict(one) for one in zone.key_records(keys)]}


def domain_dkim_status(context: Context, *, name: str) -> dict[str, Any]:
    """Return a domain's keys with their states, times and what each waits for."""
    domain = _domain_name(name)

    def unit(connection: Connection) -> list[DkimKey]:
        owner = _owner(connection, domain)
        return dkim.keys(connection, domain=domain, organization_id=owner, with_retired=True)

    keys = context.store.database.read(unit)
    return {"domain": domain, "keys": [shown(key, context.pace) for key in keys]}


def domain_dkim_cancel(context: Context, *, name: str) -> dict[str, Any]:
    """Give up a rotation whose keys do not sign yet."""
    domain = _domain_name(name)
    now = context.clock.now()

    def unit(connection: Connection) -> list[DkimKey]:
        owner = _owner(connection, domain)
        return dkim.cancel(connection, organization_id=owner, domain=domain, actor=context.actor, at=now)

    keys = context.store.database.write(unit)
    return {"domain": domain, "selectors": [key.selector for key in keys]}


def shown(key: DkimKey, pace: Pace) -> dict[str, Any]:
    """Return a key as it is shown: without its private half, with what comes next and when."""
    next_at = switch_at(key, pace)
    if key.state == "retiring":
        next_at = key.changed_at + pace.retire_seconds * 1_000_000
    return {
        "selector": key.selector,
        "algorithm": key.algorithm,
        "state": key.state,
        "since": key.changed_at,
        "seen_at": key.seen_at,
        "looked_at": key.looked_at,
        "looked": key.looked,
        "next_at": next_at,
        "what": describe(key),
        "name": f"{key.selector}._domainkey.{key.domain}",
        "value": key.public_record,
    }


def _owner(connection: Connection, domain: str) -> str:
    found = accounts.find_domain(connection, name=domain)
    if found is None:
        raise Missing(f"{domain} is no domain of this appliance")
    return found.organization_id


def _domain_name(text: str) -> str:
    try:
        return normalise(f"postmaster@{text}").rpartition("@")[2]
    except (AddressSyntax, ValueError):
        raise WrongArguments(f"{text!r} is no domain name") from None


DKIM_ACTS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "domain-dkim-rotate": domain_dkim_rotate,
    "domain-dkim-status": domain_dkim_status,
    "domain-dkim-cancel": domain_dkim_cancel,
}
