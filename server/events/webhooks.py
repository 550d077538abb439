"""Calls of webhooks made, tried again and given up: the deliverer of all that wants a URL told.

Owns the loop over calls that are due, how many run at once and to one origin, the waits
between tries, and the events of each outcome. What is told, and to whom, comes with the
call: a policy rule makes one (server/events/rule_calls.py), others may. At least once: a
receiver knows a repetition by webhook-id. Standard Webhooks 1.0.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import structlog

from server.events.posting import Posted, Poster, UrlRefused, read_url
from storage import ids, webhooks
from storage.errors import StorageError
from storage.records import Event
from storage.webhooks import Call

if TYPE_CHECKING:
    from server.clock import Clock
    from server.threads import Hub, Threads
    from storage.db import Notice

SECOND = 1_000_000
PER_ORIGIN = 4
FIRST_SECONDS = 5.0
LONGEST_SECONDS = 7200.0
REST_FIRST_SECONDS = 2.0  # of an origin that does not answer; its other calls wait with it
REST_LONGEST_SECONDS = 120.0
ORIGINS_LIMIT = 500
LEASE_MARGIN_SECONDS = 60.0
LOOK_SECONDS = 30.0
TROUBLE_SECONDS = 5.0
CONTENT_OCTETS = 5 << 20
GONE = 410  # RFC 9110 15.5.11: whoever answers so wants no more

log = structlog.get_logger("webhooks")
ContentOf = Callable[[Call], Awaitable[bytes | None]]


def wait_seconds(tries: int, *, jitter: float) -> float:
    """Return how long to wait after so many tries; jitter in [0, 1) takes up to a fifth off."""
    doubled = min(FIRST_SECONDS * 2.0 ** min(max(tries, 1) - 1, 40), LONGEST_SECONDS)
    return doubled * (1 - 0.2 * jitter)


class Deliverer:
    """Makes the calls that wait in the database, from start to stop.

    content_of: reads the message that goes with a call, None where it is gone or over CONTENT_OCTETS.
    dice: spreads the tries.
    """

    def __init__(
        self,
        *,
        threads: Threads,
        hub: Hub,
        clock: Clock,
        poster: Poster,
        secret: Callable[[], bytes],
        content_of: ContentOf,
        timeout_seconds: float,
        concurrency: int,
        dice: random.Random,
    ) -> None:
        self._threads = threads
        self._hub = hub
        self._clock = clock
        self._poster = poster
        self._secret = secret
        self._content_of = content_of
        self._lease_seconds = timeout_seconds + LEASE_MARGIN_SECONDS
        self._concurrency = concurrency
        self._dice = dice
        self._wake = asyncio.Event()
        self._running: Counter[str] = Counter()
        self._resting: OrderedDict[str, tuple[float, float]] = OrderedDict()  # until, and for how long
        self._calls: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] | None = None

    async def start(self) -> None:
        """Begin to call."""
        self._unsubscribe = self._hub.subscribe(webhooks.TOPIC, None, self._on_notice)
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End; calls under way are cut, and made again after the next start."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        tasks = [task for task in (self._task, *self._calls) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _on_notice(self, _notice: Notice) -> None:
        self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            seconds = LOOK_SECONDS
            try:
                await self._begin_due()
                seconds = await self._until_next()
            except StorageError as error:
                log.error("webhooks cannot be read, trying again", problem=str(error))
                seconds = TROUBLE_SECONDS
            except Exception:
                log.exception("webhooks failed, trying again")
                seconds = TROUBLE_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wake.wait()

    async def _until_next(self) -> float:
        due = await self._threads.read(webhooks.next_due)
        if due is None or len(self._calls) >= self._concurrency:
            return LOOK_SECONDS
        # What is due already and not taken waits for its origin.
        return min(max((due - self._clock.now()) / SECOND, 1.0), LOOK_SECONDS)

    async def _begin_due(self) -> None:
        while len(self._calls) < self._concurrency:
            now = self._clock.now()
            unit = partial(
                webhooks.lease,
                now=now,
                until=now + round(self._lease_seconds * SECOND),
                limit=self._concurrency - len(self._calls),
                without=self._held_origins(),
            )
            taken = await self._threads.write(unit)
            if not taken:
                return
            over = [call for call in taken if not self._begin(call)]
            if over:
                await self._threads.write(partial(webhooks.give_back, calls=over, at=now))

    def _held_origins(self) -> set[str]:
        """Origins that get no call now: at their limit, or resting."""
        now = self._clock.monotonic()
        full = {origin for origin, count in self._running.items() if count >= PER_ORIGIN}
        return full | {origin for origin, (until, _) in self._resting.items() if until > now}

    def _begin(self, call: Call) -> bool:
        if self._running[call.origin] >= PER_ORIGIN:
            return False
        self._running[call.origin] += 1
        task = asyncio.get_running_loop().create_task(self._make(call))
        self._calls.add(task)
        task.add_done_callback(partial(self._ended, call))
        return True

    def _ended(self, call: Call, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        self._running[call.origin] -= 1
        if not self._running[call.origin]:
            del self._running[call.origin]
        self._wake.set()

    async def _make(self, call: Call) -> None:
        try:
            posted = await self._post(call)
            await self._settle(call, posted)
        except StorageError as error:
            log.error("webhook not settled, it is called again", call=call.id, problem=str(error))
        except Exception:
            log.exception("webhook failed, it is called again", call=call.id)

    async def _post(self, call: Call) -> Posted:
        try:
            target = read_url(call.url)
        except UrlRefused as refused:
            return Posted(GONE, f"not called: {refused}")
        body = call.payload.encode("utf-8")
        if call.content:
            body = await self._threads.compute(with_content, call.payload, await self._content_of(call))
        return await self._poster.post(
            target,
            call_id=call.id,
            timestamp=self._clock.now() // SECOND,
            body=body,
            secret=self._secret(),
        )

    async def _settle(self, call: Call, posted: Posted) -> None:
        now = self._clock.now()
        again: int | None = None
        outcome = "webhook.delivered"
        if not posted.is_taken:
            self._rest(call.origin)
            again = now + round(wait_seconds(call.tries, jitter=self._dice.random()) * SECOND)
            if posted.status == GONE or again > call.expires_at:
                again = None
            outcome = "webhook.failed" if again is None else "webhook.deferred"
        else:
            self._resting.pop(call.origin, None)
        data: dict[str, object] = {
            "webhook": call.id,
            "origin": call.origin,
            "attempt": call.tries,
            "status": posted.status,
        }
        data |= {"text": posted.text} if posted.text else {}
        data |= {"next_attempt_at": again} if again is not None else {}
        told = Event(ids.new("evt"), outcome, now, call.organization_id, call.message_id, data=data)
        await self._threads.write(partial(webhooks.settle, call=call, next_attempt_at=again, told=told))
        log.info("webhook", call=call.id, outcome=outcome, status=posted.status, attempt=call.tries)

    def _rest(self, origin: str) -> None:
        now = self._clock.monotonic()
        until, seconds = self._resting.pop(origin, (0.0, 0.0))
        if until <= now:
            # The first of those that ran beside each other lengthens the rest, and not each of them.
            seconds = min(max(seconds * 2, REST_FIRST_SECONDS), REST_LONGEST_SECONDS)
            until = now + seconds
        self._resting[origin] = until, seconds
        while len(self._resting) > ORIGINS_LIMIT:
            self._resting.popitem(last=False)


def with_content(payload: str, content: bytes | None) -> bytes:
    """Return a payload with the message in data.content, in base64, null where it cannot be had."""
    told = json.loads(payload)
    told["data"]["content"] = None if content is None else base64.b64encode(content).decode("ascii")
    return json.dumps(told, separators=(",", ":")).encode("ascii")
