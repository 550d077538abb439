"""Routes for the suppression list.

Owns who may change what of it: an organization's key its own, an operator's the appliance's as well.
After an address was suppressed here, no transaction to it begins; what had begun is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from server.http import answers
from server.http import suppression_models as models
from server.http.access import Caller
from server.http.answers import answer, next_cursor
from server.http.openapi import Door
from server.http.organizations import expiry
from server.http.problems import Problem
from server.http.services import Services, normal_address, write_audit
from storage import suppression
from storage.records import Suppression

if TYPE_CHECKING:
    from sqlalchemy import Connection


class SuppressionRoutes:
    """List, add, remove."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def add_to(self, door: Door) -> None:
        """Add the routes."""
        door.add(
            "GET /suppressions",
            self.list_suppressions,
            scope="suppression:write",
            query=models.SuppressionQuery,
            answer=models.SuppressionList,
            tag="Suppressions",
        )
        door.add(
            "POST /suppressions",
            self.add_suppression,
            scope="suppression:write",
            request=models.SuppressionRequest,
            answer=models.SuppressionMade,
            status=201,
            tag="Suppressions",
        )
        door.add(
            "DELETE /suppressions/{address}",
            self.remove_suppression,
            scope="suppression:write",
            query=models.RemovalQuery,
            status=204,
            tag="Suppressions",
        )

    async def list_suppressions(self, caller: Caller, query: models.SuppressionQuery) -> Response:
        """List the addresses that the organization's mail may not go to now, with what holds it back."""
        caller.require_unbound()
        now = self._services.clock.now()
        address = normal_address(query.address) if query.address else ""
        page = await self._services.threads.read(
            lambda c: suppression.suppressions(
                c,
                organization_id=caller.organization_id,
                at=now,
                after=query.cursor,
                limit=query.limit,
                address=address,
                cause=query.cause,
            )
        )
        after = next_cursor(page, query.limit, page[-1].id) if page else None
        return answer({"suppressions": [answers.suppression(one) for one in page], "next_cursor": after})

    async def add_suppression(self, caller: Caller, request: Request) -> Response:
        """Suppress an address; one that is suppressed already gets the new cause and expiry.

        Once this is answered no transaction to the address begins. `in_flight` names those that had begun.
        """
        caller.require_unbound()
        asked = await self._services.bodies.read(request, models.SuppressionRequest)
        address = normal_address(asked.address)
        sender = _sender(asked)
        if asked.scope == "appliance" and not caller.is_operator:
            raise Problem(403, "scope_missing", "The scope appliance needs a key with the scope operator.")
        now = self._services.clock.now()
        expires_at = expiry(asked.expires_at, now)

        def unit(connection: Connection) -> tuple[Suppression, list[tuple[str, str]]]:
            made = suppression.add(
                connection,
                organization_id=caller.organization_id,
                address=address,
                cause=asked.cause,
                evidence=asked.evidence,
                expires_at=expires_at,
                at=now,
                scope=asked.scope,
                sender=sender,
            )
            begun = suppression.in_flight(connection, made)
            write_audit(
                connection,
                caller,
                action="suppression.add",
                thing=made.id,
                at=now,
                address=address,
                reason=asked.evidence,
                scope=asked.scope,
            )
            return made, begun

        made, begun = await self._services.threads.write(unit)
        flying = [{"message_id": message, "delivery_id": delivery} for message, delivery in begun]
        return answer({**answers.suppression(made), "in_flight": flying}, status=201)

    async def remove_suppression(self, caller: Caller, address: str, query: models.RemovalQuery) -> Response:
        """Let mail go to an address again."""
        caller.require_unbound()
        wanted = normal_address(address)
        sender = normal_address(query.sender) if query.sender else ""
        now = self._services.clock.now()

        def unit(connection: Connection) -> None:
            found = suppression.own(
                connection, organization_id=caller.organization_id, address=wanted, sender=sender
            )
            if found is not None and found.scope == "appliance" and not caller.is_operator:
                raise Problem(
                    403, "scope_missing", "The scope appliance needs a key with the scope operator."
                )
            removed = suppression.remove(
                connection, organization_id=caller.organization_id, address=wanted, sender=sender
            )
            write_audit(
                connection,
                caller,
                action="suppression.remove",
                thing=removed.id,
                at=now,
                address=wanted,
                reason=query.reason,
                cause=removed.cause,
            )

        await self._services.threads.write(unit)
        return Response(status_code=204)


def _sender(asked: models.SuppressionRequest) -> str:
    if (asked.scope == "sender") != bool(asked.sender):
        raise Problem(422, "invalid", "`sender` goes with the scope sender, and only with it.")
    return normal_address(asked.sender) if asked.sender else ""
