"""Routes for what an organization has in the queue: see it, act on it, take that back.

Owns how deliveries are chosen over HTTP: always those of the key's own organization.
What is done is server.queue_operations', as for the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from server import queue_operations
from server.arguments import WrongArguments
from server.http import answers, queue_models
from server.http.access import Caller
from server.http.answers import answer, next_cursor
from server.http.openapi import Door
from server.http.problems import Problem
from server.http.services import Services, known_id
from storage import doubt, queue_view, undoing
from storage.errors import Conflict

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from storage.store import Store


@dataclass(frozen=True, slots=True)
class Acting:
    """What an operation works on; actor: the key, for the audit log."""

    store: Store
    clock: Clock
    actor: str


class QueueRoutes:
    """Deliveries and the acts on them."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def add_to(self, door: Door) -> None:
        """Add the routes."""
        door.add(
            "GET /deliveries",
            self.list_open,
            scope="org:admin",
            query=queue_models.DeliveryPageQuery,
            answer=queue_models.DeliveryList,
            tag="Queue",
        )
        door.add(
            "GET /deliveries/stats",
            self.stats,
            scope="org:admin",
            answer=queue_models.DeliveryStats,
            tag="Queue",
        )
        door.add(
            "GET /deliveries/actions",
            self.list_actions,
            scope="org:admin",
            answer=queue_models.QueueActionList,
            tag="Queue",
        )
        door.add(
            "POST /deliveries/actions",
            self.act,
            scope="org:admin",
            request=queue_models.QueueActionRequest,
            answer=queue_models.QueueActed,
            tag="Queue",
        )
        door.add(
            "GET /deliveries/doubts",
            self.list_doubts,
            scope="org:admin",
            query=queue_models.DoubtQuery,
            answer=queue_models.DoubtList,
            tag="Queue",
        )
        door.add(
            "POST /deliveries/{delivery_id}/verdict",
            self.verdict,
            scope="org:admin",
            request=queue_models.VerdictRequest,
            answer=queue_models.VerdictGiven,
            tag="Queue",
        )
        door.add(
            "DELETE /deliveries/actions/{action_id}",
            self.undo,
            scope="org:admin",
            answer=queue_models.QueueUndone,
            tag="Queue",
        )

    async def list_open(self, caller: Caller, query: queue_models.DeliveryPageQuery) -> Response:
        """List deliveries, oldest first; those that are not final unless a state is asked for."""
        caller.require_unbound()

        def unit(connection: Connection) -> list[dict[str, Any]]:
            return queue_view.inspect(
                connection,
                states=[query.state] if query.state else None,
                domain=query.domain.lower() or None,
                organization_id=caller.organization_id,
                after=query.cursor,
                limit=query.limit,
            )

        page = await self._services.threads.read(unit)
        after = next_cursor(page, query.limit, page[-1]["id"]) if page else None
        return answer({"deliveries": [answers.queued(one) for one in page], "next_cursor": after})

    async def stats(self, caller: Caller) -> Response:
        """Count what is in the queue, by state, and by domain those with most."""
        caller.require_unbound()
        owner = caller.organization_id

        def unit(connection: Connection) -> dict[str, object]:
            return {
                "counts": queue_view.counts(connection, organization_id=owner),
                "domains": queue_view.domain_counts(connection, organization_id=owner),
            }

        return answer(await self._services.threads.read(unit))

    async def list_doubts(self, caller: Caller, query: queue_models.DoubtQuery) -> Response:
        """List deliveries that may have been sent and wait for a verdict, the oldest first."""
        caller.require_unbound()
        found = await self._services.threads.read(
            lambda c: doubt.waiting(c, organization_id=caller.organization_id, limit=query.limit)
        )
        return answer({"deliveries": [answers.doubtful(one) for one in found]})

    async def verdict(self, caller: Caller, delivery_id: str, request: Request) -> Response:
        """Say of a delivery in doubt whether it was sent.

        `sent` ends it as delivered; `not_sent` tries it again at once, with the same Message-ID. A verdict
        that known evidence contradicts (an answer, a complaint, an unsubscription) is refused with 409;
        evidence that comes later makes the event `message.verdict_corrected`.
        """
        caller.require_unbound()
        known_id(delivery_id)
        asked = await self._services.bodies.read(request, queue_models.VerdictRequest)
        found = await self._do(
            caller,
            queue_operations.queue_verdict,
            id=delivery_id,
            verdict=asked.verdict,
            reason=asked.reason,
            organization=caller.organization_id,
        )
        return answer(found)

    async def list_actions(self, caller: Caller) -> Response:
        """List the last acts on the organization's deliveries, the newest first."""
        caller.require_unbound()
        found = await self._services.threads.read(
            lambda c: undoing.recent(c, organization_id=caller.organization_id)
        )
        return answer({"actions": [answers.queue_action(one) for one in found]})

    async def act(self, caller: Caller, request: Request) -> Response:
        """Hold, release, retry or cancel deliveries.

        With `preview` nothing is done: the answer says what would be changed. Otherwise `action` takes it
        back while `delivery.undo_seconds` lasts, as far as no delivery has gone on since. Deliveries that
        are being tried at this moment are left alone.
        """
        caller.require_unbound()
        asked = await self._services.bodies.read(request, queue_models.QueueActionRequest)
        found = await self._do(
            caller,
            queue_operations.queue_act,
            verb=asked.verb,
            id=asked.id,
            domain=asked.domain,
            organization=caller.organization_id,
            preview=asked.preview,
        )
        if not asked.preview:
            return answer({"preview": False, "sample": [], **found})
        shown = [{name: str(one[name]) for name in ("id", "recipient", "state")} for one in found["sample"]]
        return answer(
            {
                "preview": True,
                "verb": found["verb"],
                "changed": found["deliveries"],
                "action": None,
                "sample": shown,
            }
        )

    async def undo(self, caller: Caller, action_id: str) -> Response:
        """Give the deliveries of an action back what they were, as far as nothing happened to them since."""
        caller.require_unbound()
        known_id(action_id)
        found = await self._do(
            caller,
            queue_operations.queue_undo,
            action=action_id,
            organization=caller.organization_id,
        )
        return answer(found)

    async def _do(
        self, caller: Caller, operation: Callable[..., dict[str, Any]], **arguments: object
    ) -> Mapping[str, Any]:
        services = self._services
        context = Acting(services.threads.store, services.clock, caller.key_id)
        try:
            return await services.threads.run(partial(operation, context, **arguments))
        except WrongArguments as error:
            raise Problem(422, "invalid", f"{error}.") from None
        except Conflict as error:
            raise Problem(409, "conflict", f"{error}.") from None
