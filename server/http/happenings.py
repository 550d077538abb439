"""Routes for events and message timelines.

Owns how a program follows what happens: in order, by cursor, of its own
organization. A key bound to an inbox gets that inbox's events alone, and of a
message's timeline what concerns that inbox.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from server.http import answers, models
from server.http.access import Caller
from server.http.answers import answer
from server.http.openapi import Door
from server.http.problems import not_found
from server.http.services import Services, known_id
from storage import events, messages, queue
from storage.records import Event

if TYPE_CHECKING:
    from sqlalchemy import Connection


class HappeningRoutes:
    """Events and timelines."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def add_to(self, door: Door) -> None:
        """Add the routes."""
        door.add(
            "GET /messages/{message_id}/timeline",
            self.timeline,
            scope="message:read",
            answer=models.Timeline,
            tag="Messages",
        )
        door.add(
            "GET /events",
            self.list_events,
            scope="event:read",
            query=models.EventPageQuery,
            answer=models.EventList,
            tag="Events",
        )

    async def timeline(self, caller: Caller, message_id: str) -> Response:
        """Show all that happened to a message: each step, each delivery, in the remote's own words."""
        known_id(message_id)

        def unit(connection: Connection) -> dict[str, object]:
            return _timeline(connection, caller, message_id)

        return answer(await self._services.threads.read(unit))

    async def list_events(
        self,
        caller: Caller,
        query: models.EventPageQuery,
    ) -> Response:
        """List events, oldest first. `next_cursor` is the place to go on from, also when nothing is new."""

        def unit(connection: Connection) -> list[Event]:
            seq = 0
            if query.cursor:
                known = events.seq_of(
                    connection, organization_id=caller.organization_id, event_id=known_id(query.cursor)
                )
                if known is None:
                    raise not_found()
                seq = known
            return events.after(
                connection,
                seq=seq,
                kinds=query.kind or None,
                organization_id=caller.organization_id,
                mailbox_id=caller.bound_to,
                limit=query.limit,
            )

        page = await self._services.threads.read(unit)
        after = page[-1].id if page else query.cursor or None
        return answer({"events": [answers.event(one) for one in page], "next_cursor": after})


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
