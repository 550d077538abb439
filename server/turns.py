"""Work that is done again and again beside the rest: at an interval, and soon where it is called for.

Owns the task and its end. A failed turn is logged and the next one comes as usual.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from storage.errors import StorageError

# What calls for a turn calls for many at once: they become one.
GATHER_SECONDS = 0.3

log = structlog.get_logger("turns")


class Turns:
    """Calls `act` every `seconds`, and soon after wake(), from start to stop."""

    def __init__(self, name: str, act: Callable[[], Awaitable[None]], *, seconds: float) -> None:
        self._name = name
        self._act = act
        self._seconds = seconds
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Ask for a turn soon; on the loop alone."""
        self._wake.set()

    def start(self) -> None:
        """Begin, with a turn at once."""
        self._wake.set()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End when the turn under way is done."""
        self._stop.set()
        self._wake.set()
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._seconds)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), GATHER_SECONDS)
            if self._stop.is_set():
                return
            self._wake.clear()
            try:
                await self._act()
            except (StorageError, OSError) as error:
                log.error("not done, trying again", what=self._name, problem=str(error))
            except Exception:
                log.exception("failed, trying again", what=self._name)
