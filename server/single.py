"""Parts that one of several processes runs at a time: begun when this process gets the task.

Owns the asking, again and again while another process has it, and the order of
their start and stop. Where the database is SQLite there is one process anyway.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from server.tree import Tree

if TYPE_CHECKING:
    from server.threads import Threads
    from storage.ownership import Sole

# A process that ended leaves the task free; another begins within this time.
ASK_SECONDS = 2.0

log = structlog.get_logger("single")


class Single:
    """Runs parts while this process has a task. sole: None where there is no other process."""

    def __init__(self, parts: Tree, *, threads: Threads, sole: Sole | None) -> None:
        self._parts = parts
        self._threads = threads
        self._sole = sole
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the parts now, or as soon as no other process has them."""
        if await self._is_ours():
            await self._parts.begin()
        else:
            self._task = asyncio.get_running_loop().create_task(self._wait())

    async def stop(self) -> None:
        """Stop the parts and leave the task to another process."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        await self._parts.end()
        if self._sole is not None:
            self._sole.release()

    async def _is_ours(self) -> bool:
        return self._sole is None or await self._threads.run(self._sole.take)

    async def _wait(self) -> None:
        while True:
            await asyncio.sleep(ASK_SECONDS)
            try:
                if await self._is_ours():
                    await self._parts.begin()
                    log.info("this process goes on with what one at a time does")
                    return
            except Exception:
                # Whatever was begun is stopped again; the next try may meet a database that answers.
                log.exception("parts for one process not started, trying again")
