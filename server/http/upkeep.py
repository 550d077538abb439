"""What HTTP does now and then: write when keys were last used, forget old idempotency keys.

Owns one task that runs while the application does. Nothing waits for it and a
failed round is logged and tried again in the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING

import structlog

from server.http.access import TOUCH_SECONDS, Access
from storage import idempotency

if TYPE_CHECKING:
    from fastapi import FastAPI

    from server.clock import Clock
    from server.threads import Threads

FORGET_ROUNDS = 3600 // TOUCH_SECONDS

log = structlog.get_logger("http")


def make_lifespan(
    *, access: Access, threads: Threads, clock: Clock
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Return the application's lifespan: the upkeep runs in it and has a last round at its end."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(_rounds(access, threads, clock), name="http upkeep")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await _attempt(access.write_use())

    return lifespan


async def _rounds(access: Access, threads: Threads, clock: Clock) -> None:
    number = 0
    while True:
        if number % FORGET_ROUNDS == 0:
            await _attempt(_forget(threads, clock))
        number += 1
        await asyncio.sleep(TOUCH_SECONDS)
        await _attempt(access.write_use())


async def _forget(threads: Threads, clock: Clock) -> None:
    now = clock.now()
    await threads.write(lambda c: idempotency.forget(c, at=now))


async def _attempt(work: Awaitable[None]) -> None:
    try:
        await work
    except Exception:
        log.exception("upkeep failed")
