"""Bounces that come back by mail after a delivery was taken: noted at the message they are about.

Owns the consumer of what the MX door read and proved (server/notices_in.py): each failed delivery
gets the event message.bounced_later once, and its address a suppression where the fault is the
recipient's. What proved nothing changes nothing. RFC 3464.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from server.arrival import NOTICE_READ
from server.events.follower import Follower, Unit
from server.mail.address import AddressSyntax, normalise
from storage import ids, later
from storage.records import Event
from storage.suppressing import Failure, Rules

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from server.threads import Hub, Threads

CURSOR = "notices read"


class LaterBounces:
    """Works through notices, from start to stop."""

    def __init__(self, *, threads: Threads, hub: Hub, clock: Clock, rules: Rules) -> None:
        self._clock = clock
        self._rules = rules
        follower = Follower(name=CURSOR, kinds=(NOTICE_READ,), handle=self.handle, threads=threads, hub=hub)
        self.start, self.stop, self.catch_up = follower.start, follower.stop, follower.catch_up

    async def handle(self, event: Event) -> Unit:
        """Return what is to be written for one notice."""
        told = event.data.get("deliveries")
        failed = [one for one in told if isinstance(one, dict)] if isinstance(told, list) else []
        now = self._clock.now()

        def unit(connection: Connection) -> None:
            for one in failed:
                if one.get("action") == "failed":
                    self._note(connection, event, one, now)

        return unit

    def _note(self, connection: Connection, notice: Event, told: Mapping[str, object], now: int) -> None:
        owner = str(told["organization"])
        names = ("recipient", "class", "blame", "code", "enhanced", "text", "host")
        data = {name: told[name] for name in names} | {"proof": notice.data.get("proof", "")}
        if owner == notice.organization_id:
            data["notice"] = notice.message_id or ""
        made = Event(
            ids.new("evt"),
            later.BOUNCED_LATER,
            now,
            owner,
            str(told["message"]),
            delivery_id=str(told["delivery"]),
            data=data,
        )
        later.note(connection, made, _failure(made, told), rules=self._rules, at=now)


def _failure(event: Event, told: Mapping[str, object]) -> Failure | None:
    if told.get("blame") != "recipient":
        return None
    try:
        address = normalise(str(told["recipient"]))
    except AddressSyntax:
        return None
    evidence = " ".join(str(told[name]) for name in ("code", "enhanced", "text") if told[name])
    return Failure(
        event.organization_id,
        address,
        str(told["class"]),
        evidence,
        event.id,
        event.delivery_id,
        event.message_id,
    )
