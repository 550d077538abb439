"""What an operator asks of suppressions: list, add, remove, each by organization.

Owns these as operations over the open store; arguments and results are JSON-able, and every change
is in the audit log with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from server.arguments import WrongArguments
from server.mail.address import AddressSyntax, normalise
from server.policy_acts import Context, note
from storage import accounts, suppression
from storage.errors import Missing
from storage.records import Suppression

if TYPE_CHECKING:
    from sqlalchemy import Connection


def suppression_list(
    context: Context, *, organization: str = "", address: str = "", cause: str = "", limit: int = 100
) -> dict[str, Any]:
    """Return suppressions in force of an organization, or of the only one there is."""
    wanted = _normal(address) if address else ""

    def unit(connection: Connection) -> list[Suppression]:
        return suppression.suppressions(
            connection,
            organization_id=_owner(connection, organization),
            at=context.clock.now(),
            limit=limit,
            address=wanted,
            cause=cause,
        )

    return {"suppressions": [asdict(one) for one in context.store.database.read(unit)]}


def suppression_add(
    context: Context,
    *,
    address: str,
    organization: str = "",
    reason: str = "",
    cause: str = "manual",
    scope: str = "organization",
    sender: str = "",
    days: int = 0,
) -> dict[str, Any]:
    """Suppress an address; days: how long, 0 for ever. Names transactions that had begun before."""
    wanted, whose = _normal(address), _normal(sender) if sender else ""
    now = context.clock.now()
    expires_at = now + days * 86_400 * 1_000_000 if days else None

    def unit(connection: Connection) -> tuple[Suppression, list[tuple[str, str]]]:
        owner = _owner(connection, organization)
        try:
            made = suppression.add(
                connection,
                organization_id=owner,
                address=wanted,
                cause=cause,
                evidence=reason,
                expires_at=expires_at,
                at=now,
                scope=scope,
                sender=whose,
            )
        except ValueError as error:
            raise WrongArguments(str(error)) from error
        _note(connection, context, "suppression.add", made, reason)
        return made, suppression.in_flight(connection, made)

    made, begun = context.store.database.write(unit)
    flying = [{"message_id": message, "delivery_id": delivery} for message, delivery in begun]
    return {**asdict(made), "in_flight": flying}


def suppression_remove(
    context: Context, *, address: str, organization: str = "", sender: str = "", reason: str = ""
) -> dict[str, Any]:
    """Let mail go to an address again."""
    wanted, whose = _normal(address), _normal(sender) if sender else ""

    def unit(connection: Connection) -> Suppression:
        owner = _owner(connection, organization)
        try:
            found = suppression.remove(connection, organization_id=owner, address=wanted, sender=whose)
        except Missing:
            raise Missing(f"{wanted} is not suppressed") from None
        _note(connection, context, "suppression.remove", found, reason)
        return found

    return {"address": wanted, "was": context.store.database.write(unit).cause}


def _note(connection: Connection, context: Context, action: str, about: Suppression, reason: str) -> None:
    note(
        connection,
        context,
        owner=about.organization_id,
        action=action,
        thing=about.id,
        address=about.address,
        reason=reason,
        scope=about.scope,
    )


def _normal(address: str) -> str:
    try:
        return normalise(address)
    except (AddressSyntax, ValueError) as error:
        raise WrongArguments(f"{address!r} is no address: {error}") from None


def _owner(connection: Connection, named: str) -> str:
    known = accounts.organizations(connection, limit=1000)
    found = [one for one in known if named in (one.id, one.name)] if named else known[:2]
    if len(found) != 1:
        text = (
            f"{named}: no organization has this name or id" if named else "name one organization of several"
        )
        raise WrongArguments(text if known else "there is no organization yet")
    return found[0].id


SUPPRESSION_OPERATIONS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "suppression-list": suppression_list,
    "suppression-add": suppression_add,
    "suppression-remove": suppression_remove,
}
