"""The service tree: parts started one after another and stopped in reverse.

A part is a pair of coroutines under a name, as a Twisted service; the tree
waits for each before the next, which MultiService alone does not.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

import structlog
from twisted.application import service
from twisted.internet import defer

log = structlog.get_logger("tree")
Step = Callable[[], Awaitable[None] | None]


class Part(service.Service):
    """One part of the daemon: how it starts and how it stops."""

    def __init__(self, name: str, *, start: Step | None = None, stop: Step | None = None) -> None:
        self.setName(name)
        self._start = start
        self._stop = stop

    async def begin(self) -> None:
        """Start the part."""
        if self._start is not None:
            await _done(self._start)
        self.running = 1
        log.debug("started", part=self.name)

    async def end(self) -> None:
        """Stop the part, if it was started."""
        if not self.running:
            return
        self.running = 0
        if self._stop is not None:
            await _done(self._stop)
        log.debug("stopped", part=self.name)

    def stopService(self) -> defer.Deferred[None]:
        """Stop the part, as Twisted's own tree asks."""
        return defer.Deferred.fromFuture(asyncio.ensure_future(self.end()))


class Tree(service.MultiService):
    """Parts in order."""

    async def begin(self) -> None:
        """Start each part in turn; the first failure stops what was started and is raised."""
        try:
            for part in list(self):
                await part.begin()
        except BaseException:
            await self.end()
            raise
        self.running = 1

    async def end(self) -> None:
        """Stop each part in reverse; a failing one is logged and the rest go on."""
        self.running = 0
        for part in reversed(list(self)):
            try:
                await part.end()
            except Exception:
                log.exception("part failed to stop", part=part.name)


async def _done(step: Step) -> None:
    result = step()
    if inspect.isawaitable(result):
        await result
