"""Routes for events, message timelines and the suppression list.

Owns how a program follows what happens: in order, by cursor, of its own
organization. A key bound to an inbox gets that inbox's events alone, and of a
message's timeline what concerns that inbox.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Security
from starlette.requests import Request
from starlette.responses import Response

from server.http import answers, models
from server.http.access import Caller, bearer
from server.http.answers import answer, next_cursor
from server.http.openapi import PREFIX, describe
from server.http.organizations import Cursor, Limit, expiry
from server.http.problems import not_found
from server.http.services import Services, known_id, normal_address, write_audit
from storage import events, messages, queue, suppression
from storage.records import Event, Suppression

if TYPE_CHECKING:
    from sqlalchemy import Connection

EventReader = Annotated[Caller, Security(bearer, scopes=["event:read"])]
MessageReader = Annotated[Caller, Security(bearer, scopes=["message:read"])]
SuppressionWriter = Annotated[Caller, Security(bearer, scopes=["suppression:write"])]
Kinds = Annotated[
    list[Annotated[str, Query(max_length=64)]],
    Query(alias="kind", max_length=50, description="Only events of these kinds; repeat for several."),
]
EventLimit = Annotated[int, Query(ge=1, le=1000, description="Events on a page.")]


class HappeningRoutes:
    """Events, timelines, suppressions."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def router(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter(prefix=PREFIX)
        describe(
            router, "GET", "/messages/{message_id}/timeline", self.timeline, answer=models.Timeline,
            tag="Messages",
        )  # fmt: skip
        describe(router, "GET", "/events", self.list_events, answer=models.EventList, tag="Events")
        describe(
            router, "GET", "/suppressions", self.list_suppressions, answer=models.SuppressionList,
            tag="Suppressions",
        )  # fmt: skip
        describe(
            router, "POST", "/suppressions", self.add_suppression, request=models.SuppressionRequest,
            answer=models.Suppression, status=201, tag="Suppressions",
        )  # fmt: skip
        describe(
            router, "DELETE", "/suppressions/{address}", self.remove_suppression, status=204,
            tag="Suppressions",
        )  # fmt: skip
        return router

    async def timeline(self, caller: MessageReader, message_id: str) -> Response:
        """Show all that happened to a message: each step, each delivery, in the remote's own words."""
        known_id(message_id)

        def unit(connection: Connection) -> dict[str, object]:
            return _timeline(connection, caller, message_id)

        return answer(await self._services.threads.read(unit))

    async def list_events(
        self,
        caller: EventReader,
        limit: EventLimit = 100,
        cursor: Cursor = "",
        kind: Kinds = [],  # noqa: B006 - never changed; the framework shows it as the default
    ) -> Response:
        """List events, oldest first. `next_cursor` is the place to go on from, also when nothing is new."""

        def unit(connection: Connection) -> list[Event]:
            seq = 0
            if cursor:
                known = events.seq_of(
                    connection, organization_id=caller.organization_id, event_id=known_id(cursor)
                )
                if known is None:
                    raise not_found()
                seq = known
            return events.after(
                connection,
                seq=seq,
                kinds=kind or None,
                organization_id=caller.organization_id,
                mailbox_id=caller.bound_to,
                limit=limit,
            )

        page = await self._services.threads.read(unit)
        after = page[-1].id if page else cursor or None
        return answer({"events": [answers.event(one) for one in page], "next_cursor": after})

    async def list_suppressions(
        self, caller: SuppressionWriter, limit: Limit = 50, cursor: Cursor = ""
    ) -> Response:
        """List the addresses that the organization's mail may not go to now."""
        caller.require_unbound()
        now = self._services.clock.now()
        page = await self._services.threads.read(
            lambda c: suppression.suppressions(
                c, organization_id=caller.organization_id, at=now, after=cursor, limit=limit
            )
        )
        after = next_cursor(page, limit, page[-1].id) if page else None
        return answer({"suppressions": [answers.suppression(one) for one in page], "next_cursor": after})

    async def add_suppression(self, caller: SuppressionWriter, request: Request) -> Response:
        """Suppress an address; one that is suppressed already gets the new cause and expiry."""
        caller.require_unbound()
        asked = await self._services.bodies.read(request, models.SuppressionRequest)
        address = normal_address(asked.address)
        now = self._services.clock.now()
        expires_at = expiry(asked.expires_at, now)

        def unit(connection: Connection) -> Suppression:
            made = suppression.add(
                connection,
                organization_id=caller.organization_id,
                address=address,
                cause=asked.cause,
                evidence=asked.evidence,
                expires_at=expires_at,
                at=now,
            )
            write_audit(connection, caller, action="suppression.add", thing=made.id, at=now, address=address)
            return made

        made = await self._services.threads.write(unit)
        return answer(answers.suppression(made), status=201)

    async def remove_suppression(self, caller: SuppressionWriter, address: str) -> Response:
        """Let mail go to an address again."""
        caller.require_unbound()
        wanted = normal_address(address)
        now = self._services.clock.now()

        def unit(connection: Connection) -> None:
            suppression.remove(connection, organization_id=caller.organization_id, address=wanted)
            write_audit(
                connection, caller, action="suppression.remove", thing="suppression", at=now, address=wanted
            )

        await self._services.threads.write(unit)
        return Response(status_code=204)


def _timeline(connection: Connection, caller: Caller, message_id: str) -> dict[str, object]:
    organization_id, inbox_id = caller.organization_id, caller.bound_to
    row = messages.facts(connection, organization_id=organization_id, message_id=message_id)
    if row is None:
        raise not_found()
    is_sender = inbox_id is None or messages.sent_by(connection, message_id=message_id, mailbox_id=inbox_id)
    if not is_sender and not messages.given_to(connection, message_id=message_id, mailbox_id=inbox_id or ""):
        raise not_found()
    steps = events.timeline(connection, organization_id=organization_id, message_id=message_id)
    deliveries: list[Mapping[str, Any]] = []
    if is_sender:
        deliveries = [*queue.of_message(connection, organization_id=organization_id, message_id=message_id)]
    else:
        # Who else got the message is none of this inbox's business.
        steps = [step for step in steps if step.mailbox_id == inbox_id]
    return {
        "id": message_id,
        "source": row.source,
        "accepted_at": answers.time_text(row.accepted_at),
        "octets": row.octets,
        "events": [answers.event(step) for step in steps],
        "deliveries": [answers.delivery(one) for one in deliveries],
    }
