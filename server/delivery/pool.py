"""Idle connections kept a few seconds for the next message to the same place.

Owns connections between attempts, their bounded number and age, and what is
known of places that did not answer or whose TLS broke. An attempt owns what it
took until it gives it back. Decides nothing about messages. RFC 7435 (TLS as it
can be had: after a failed handshake the next attempt goes in clear, and says so).
Where a policy asks for TLS nothing goes in clear, ever (RFC 7672 2.2, RFC 8461 5).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from server.smtp import racing
from server.smtp.client import Client, ConnectFailed, Endpoint, Judge, Timeouts, connect, lost_race
from server.tls import opportunistic_context, verifying_context
from server.transport.dane import find_fault
from server.transport.security import OPPORTUNISTIC, WEBPKI, Fault, Level, Security

if TYPE_CHECKING:
    from server.clock import Clock

IDLE_LIMIT = 200
REMEMBERED_LIMIT = 10_000
DEAD_SECONDS = 60.0
CLEAR_SECONDS = 3600.0
SLOWER_SECONDS = 600.0  # RFC 8305 4: how long what was learnt of an address is believed


@dataclass(frozen=True, slots=True)
class Taken:
    """A connection for one attempt. reused: it carried a message before. note: for the outcome's text.

    fault: why its TLS does not pass what it was held against, where it may be used all the same.
    """

    client: Client
    reused: bool
    note: str = ""
    fault: Fault | None = None


class Memory:
    """What failed at a place lately; bounded, the oldest goes first."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._known: OrderedDict[Endpoint, tuple[float, ConnectFailed]] = OrderedDict()

    def find(self, place: Endpoint) -> ConnectFailed | None:
        """Return what failed there, if it was not long ago."""
        until, failure = self._known.get(place, (0.0, None))
        if failure is not None and until <= self._clock.monotonic():
            del self._known[place]
            return None
        return failure

    def remember(self, place: Endpoint, failure: ConnectFailed) -> None:
        """Keep what failed."""
        self._known.pop(place, None)
        # Without the frames that an exception drags along.
        kept = ConnectFailed(failure.answer, failure.fault, failure.source)
        self._known[place] = (self._clock.monotonic() + self._seconds, kept)
        if len(self._known) > REMEMBERED_LIMIT:
            self._known.popitem(last=False)

    def forget(self, place: Endpoint) -> None:
        """The place works again."""
        self._known.pop(place, None)


class Pool:
    """Opens connections and keeps them while they may be of use."""

    def __init__(
        self,
        *,
        hostname: str,
        tls: ssl.SSLContext | None,
        timeouts: Timeouts,
        clock: Clock,
        idle_seconds: float,
        messages_per_connection: int,
        verifying: Callable[[], ssl.SSLContext] = verifying_context,
    ) -> None:
        self._hostname = hostname
        self._clock = clock
        self._tls = tls
        self._verifying: ssl.SSLContext | None = None
        self._make_verifying = verifying
        self._timeouts = timeouts
        self._idle_seconds = idle_seconds
        self._messages = messages_per_connection
        self._idle: dict[Endpoint, list[tuple[Client, asyncio.TimerHandle]]] = {}
        self._count = 0
        self.dead = Memory(clock, DEAD_SECONDS)
        self._slower = Memory(clock, SLOWER_SECONDS)
        self._broken_tls = Memory(clock, CLEAR_SECONDS)
        self._untrusted = Memory(clock, CLEAR_SECONDS)

    @property
    def idle(self) -> int:
        """How many connections wait for a message."""
        return self._count

    def take(self, place: Endpoint) -> Taken | None:
        """Return an idle connection to a place, the one used last; None if there is none."""
        waiting = self._idle.get(place)
        while waiting:
            client, timer = waiting.pop()
            self._dropped(client, timer, place)
            if client.ready:
                # What its TLS lacked was told when it was opened.
                return Taken(client, reused=True, note=self._note(place))
        return None

    async def race(self, places: Sequence[Endpoint]) -> tuple[list[Endpoint], socket.socket | None]:
        """Return a host's addresses, those that failed before the one that took a connection, and that.

        They race where there are both families of them; what was slower comes last for a while.
        """
        quick = [one for one in places if self._slower.find(one) is None]
        ordered = [*quick, *(one for one in places if one not in quick)]
        alive = [one for one in quick if self.dead.find(one) is None]
        if len({":" in one.address for one in alive}) < 2:
            return ordered, None
        starters = [racing.Place(one.address, one.port, one.source) for one in alive]
        found = await racing.race(starters, seconds=self._timeouts.connect)
        winner = None if found.winner is None else alive[found.winner]
        for index, one in enumerate(alive):
            failure = lost_race(one, found.failed.get(index), self._timeouts)
            if index in found.failed:
                self.dead.remember(one, failure)
            elif found.winner is not None and index < found.winner:
                self._slower.remember(one, failure)
        if winner is None:
            return ordered, None
        # Those that failed come first, to be told as passed over.
        failed = [alive[index] for index in sorted(found.failed)]
        rest = [one for one in ordered if one != winner and one not in failed]
        return [*failed, winner, *rest], found.connected

    async def open(self, place: Endpoint, connected: socket.socket | None = None) -> Taken:
        """Return a new connection; raises ConnectFailed, and remembers the place that failed."""
        if place.security.level is Level.TRIED:
            return await self._try(place, connected)
        try:
            client = await self._connect(place, self._context(place), connected)
        except ConnectFailed as failure:
            if failure.answer.phase == "tls" and not place.security.needs_tls:
                self._broken_tls.remember(place, failure)
            else:
                self.dead.remember(place, failure)
            raise
        self.dead.forget(place)
        return Taken(client, reused=False, note=self._note(place), fault=self._fault(place))

    async def _try(self, place: Endpoint, connected: socket.socket | None = None) -> Taken:
        """Open with a certificate asked for, and without where that fails: its fault is told, no more."""
        failed = self._untrusted.find(place)
        if failed is None:
            demanding = replace(place, security=WEBPKI)
            first, connected = connected, None
            try:
                client = await self._connect(demanding, self._context(demanding), first)
            except ConnectFailed as failure:
                if failure.fault is None:
                    self.dead.remember(place, failure)
                    raise
                self._untrusted.remember(place, failure)
                failed = failure
            else:
                client.endpoint = place
                return Taken(client, reused=False)
        taken = await self.open(replace(place, security=OPPORTUNISTIC), connected)
        taken.client.endpoint = place
        return replace(taken, fault=failed.fault)

    async def _connect(
        self, place: Endpoint, context: ssl.SSLContext | None, connected: socket.socket | None = None
    ) -> Client:
        return await connect(
            place,
            hostname=self._hostname,
            tls=context,
            timeouts=self._timeouts,
            judge=self._judge(place.security),
            connected=connected,
        )

    def _judge(self, security: Security) -> Judge | None:
        if security.level is not Level.DANE:
            return None
        now = datetime.fromtimestamp(self._clock.now() / 1_000_000, UTC)
        return partial(find_fault, security=security, now=now)

    def _context(self, place: Endpoint) -> ssl.SSLContext | None:
        if place.security.level is Level.OPPORTUNISTIC:
            return None if self._broken_tls.find(place) is not None else self._tls
        if place.security.level is not Level.WEBPKI:
            # DANE is judged behind the handshake, and ENCRYPTED not at all.
            self._tls = self._tls or opportunistic_context()
            return self._tls
        if self._verifying is None:
            # Reading the system's authorities takes milliseconds and memory: only where it is wanted.
            self._verifying = self._make_verifying()
        return self._verifying

    def _fault(self, place: Endpoint) -> Fault | None:
        """Return why a connection goes in clear though it need not."""
        failed = self._broken_tls.find(place)
        return None if failed is None else failed.fault

    def give(self, client: Client) -> None:
        """Take a connection back: it is kept if it can be used again, else closed."""
        # RFC 9422, MAILMAX: the server said how many transactions a session may have.
        most = min(self._messages, client.extensions.limit("MAILMAX") or self._messages)
        keep = client.ready and client.transactions < most and self._idle_seconds > 0
        if not keep or self._count >= IDLE_LIMIT:
            client.quit()
            return
        place = client.endpoint
        timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._expire, client)
        self._idle.setdefault(place, []).append((client, timer))
        self._count += 1
        client.lost = lambda: self._lost(client)

    def close(self) -> None:
        """Say goodbye on every idle connection."""
        for client in [client for waiting in self._idle.values() for client, _ in waiting]:
            self._expire(client)

    def _note(self, place: Endpoint) -> str:
        failed = self._broken_tls.find(place)
        return "" if failed is None else f"in clear, since {failed.answer.text}"

    def _expire(self, client: Client) -> None:
        if self._remove(client):
            client.quit()

    def _lost(self, client: Client) -> None:
        self._remove(client)

    def _remove(self, client: Client) -> bool:
        waiting = self._idle.get(client.endpoint, [])
        for index, (one, timer) in enumerate(waiting):
            if one is client:
                del waiting[index]
                self._dropped(client, timer, client.endpoint)
                return True
        return False

    def _dropped(self, client: Client, timer: asyncio.TimerHandle, place: Endpoint) -> None:
        timer.cancel()
        client.lost = None
        self._count -= 1
        if not self._idle.get(place):
            self._idle.pop(place, None)
