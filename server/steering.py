"""Where a group's mail goes when rules say another way than its recipients'.

Owns discarding, redirecting, copying, forwarding and holding: what they make of the
recipients of one organization. Decides nothing: the decision is the rules'.
RFC 3461 4.1 (NOTIFY=NEVER for whom the sender did not name).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.arrival import webhook_calls
from server.refusal import Refusal
from server.routing import Group, Local, Remote, sort
from storage import ids
from storage.records import Action, Event, Recipient, Source

if TYPE_CHECKING:
    from server.arrival import Arrival
    from server.routing import Routing
    from storage.records import Decision

# What our own users send, and what the appliance says, goes through the queue wherever it goes.
QUEUED = frozenset({Source.SUBMISSION, Source.API, Source.NOTICE})


class Steering:
    """Changes groups of recipients as decisions ask."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    async def steer(
        self, arrival: Arrival, group: Group, decision: Decision, *, message_id: str, now: int
    ) -> tuple[Event, ...]:
        """Send a group's mail where the rules say; returns the events of that, and of what was impossible."""
        called = webhook_calls(decision, group.organization_id, message_id=message_id, now=now)
        if decision.action is Action.DISCARD:
            group.discard()
            return called
        if decision.redirect is not None:
            await self._redirect(group, decision.redirect)
        lost: list[str] = []
        for address in (*decision.copies, *decision.forwards):
            if not await self._add(arrival, group, address, is_copy=address in decision.copies):
                lost.append(address)
        if decision.action is Action.HOLD and arrival.source is not Source.LOCAL:
            group.queue_all()
        if not lost:
            return called
        owner = group.organization_id
        data: dict[str, object] = {"recipients": lost, "text": "no such inbox of this organization"}
        return (*called, Event(ids.new("evt"), "message.copy_failed", now, owner, message_id, data=data))

    async def _add(self, arrival: Arrival, group: Group, address: str, *, is_copy: bool) -> bool:
        """Add a recipient that policy names; False where a copy has no inbox to go to."""
        # RFC 3461 4.1: the sender knows nothing of it and is told nothing.
        recipient = Recipient(address=address, notify=frozenset({"NEVER"}))
        resolution = await self._routing.resolve(address)
        is_ours = isinstance(resolution, Local) and (
            resolution.mailbox.organization_id == group.organization_id
        )
        if is_copy and not is_ours:
            return False
        if is_ours and isinstance(resolution, Local) and arrival.source not in QUEUED:
            group.also_place(recipient, resolution)
        else:
            group.also_send(recipient)
        return True

    async def _redirect(self, group: Group, address: str) -> None:
        """Replace a group's recipients by the address that policy names."""
        recipient = Recipient(address=address)
        group.clear()
        scratch = {group.organization_id: group}
        resolution = await self._routing.resolve(address)
        if isinstance(resolution, Local) and resolution.mailbox.organization_id == group.organization_id:
            sort(scratch, recipient, resolution)
        elif isinstance(resolution, Remote):
            group.remote.append((recipient, resolution.domain))
        else:
            raise Refusal(451, "4.3.5", "Mail cannot be delivered for now", f"redirect target {address}")
