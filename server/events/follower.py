"""A consumer of applied events: each is handled once a durable cursor, in order.

Owns the cursor, the waking, and what happens where handling fails: storage trouble is tried
again for as long as it lasts, a fault of ours ATTEMPTS times and is then passed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import structlog

from storage import events
from storage.errors import StorageError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.threads import Hub, Threads
    from storage.db import Notice
    from storage.records import Event

PAGE = 200
PAUSE_SECONDS = 0.5
LOOK_SECONDS = 60.0
TROUBLE_SECONDS = 10.0
CURSOR_LAG = 10_000  # without an event to handle, the cursor is written only so seldom
ATTEMPTS = 3

log = structlog.get_logger("events")
Unit = Callable[["Connection"], None]


class Follower:
    """Handles events of some kinds, from start to stop.

    handle: returns what is to be written for an event, in the transaction that moves the cursor.
    """

    def __init__(
        self,
        *,
        name: str,
        kinds: Collection[str],
        handle: Callable[[Event], Awaitable[Unit]],
        threads: Threads,
        hub: Hub,
    ) -> None:
        self._name = name
        self._kinds = frozenset(kinds)
        self._handle = handle
        self._threads = threads
        self._hub = hub
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._seen = 0
        self._stored = 0
        self._faults = 0

    async def start(self) -> None:
        """Go on where the last run ended."""
        self._seen = self._stored = await self._threads.read(partial(events.cursor, name=self._name))
        self._wake.set()
        self._unsubscribe = self._hub.subscribe("events", None, self._on_notice)
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End; what was not handled yet is handled after the next start."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    def _on_notice(self, _notice: Notice) -> None:
        self._wake.set()

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            pause = PAUSE_SECONDS
            try:
                await self.catch_up()
            except (StorageError, OSError) as error:
                log.error("events not handled, trying again", consumer=self._name, problem=str(error))
                pause = TROUBLE_SECONDS
            except Exception:
                log.exception("events not handled, trying again", consumer=self._name)
                self._faults += 1
                pause = TROUBLE_SECONDS
            if pause == TROUBLE_SECONDS:
                self._wake.set()
            await asyncio.sleep(pause)

    async def catch_up(self) -> None:
        """Handle all events there are."""
        full = True
        while full:
            newest, page = await self._threads.read(self._page)
            full = len(page) >= PAGE
            for event in page:
                await self._take(event)
            if not full:
                self._seen = max(self._seen, newest)
        if self._seen - self._stored >= CURSOR_LAG:
            await self._write(_nothing, self._seen)

    def _page(self, connection: Connection) -> tuple[int, list[Event]]:
        found = events.latest(connection, limit=1)
        newest = found[0].seq if found else 0
        return newest, events.after(connection, seq=self._seen, kinds=self._kinds, limit=PAGE)

    async def _take(self, event: Event) -> None:
        try:
            unit = await self._handle(event)
        except (StorageError, OSError):
            raise
        except Exception:
            if self._faults < ATTEMPTS:
                raise
            log.exception("event passed over", consumer=self._name, event_id=event.id)
            unit = _nothing
        await self._write(unit, event.seq)
        self._faults = 0

    async def _write(self, unit: Unit, seq: int) -> None:
        def whole(connection: Connection) -> None:
            unit(connection)
            events.advance(connection, name=self._name, seq=seq)

        await self._threads.write(whole)
        self._seen = self._stored = seq


def _nothing(_connection: Connection) -> None:
    """Write nothing."""
