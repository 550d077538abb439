"""The end of doubts that nobody ends, and the correction of verdicts that turn out to be wrong.

Owns when that is looked for; what is done is storage.doubt's.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import structlog

from server.delivery.ledger import discard_files
from server.turns import Turns
from storage import doubt

if TYPE_CHECKING:
    from server.clock import Clock
    from server.threads import Threads

SECOND = 1_000_000
LOOK_SECONDS = 60.0
LOOK_TURNS = 10  # for evidence, so seldom

log = structlog.get_logger("doubts")


class Doubts:
    """Ends what was in doubt for longer than `seconds`, 0 for never, as `unanswered` says."""

    def __init__(self, *, threads: Threads, clock: Clock, seconds: int, unanswered: str) -> None:
        self._threads = threads
        self._clock = clock
        self._seconds = seconds
        self._unanswered = doubt.Unanswered(unanswered)
        self._turn = 0
        self._turns = Turns("doubts about deliveries", self.turn, seconds=LOOK_SECONDS)

    async def start(self) -> None:
        """Begin to look, at once."""
        self._turns.start()

    async def stop(self) -> None:
        """End."""
        await self._turns.stop()

    async def turn(self) -> None:
        """End what is due, and look at what was said."""
        if self._seconds:
            await self._expire()
        self._turn += 1
        if self._turn % LOOK_TURNS == 1:
            await self._correct(self._clock.now())

    async def _correct(self, now: int) -> None:
        """Look for evidence with a reader: it may be long in finding, and the writer is everybody's."""
        if not await self._threads.read(partial(doubt.watches, at=now)):
            return
        found = await self._threads.read(partial(doubt.contradicted, at=now))
        if found:
            await self._threads.write(partial(doubt.correct, found=found, at=now))
        await self._threads.write(partial(doubt.forget, before=now - 2 * doubt.WATCHED))

    async def _expire(self) -> None:
        ended: tuple[str, ...] = ("",)
        while ended:
            now = self._clock.now()
            before = now - self._seconds * SECOND
            unit = partial(doubt.expire, before=before, unanswered=self._unanswered, at=now)
            ended, finished = await self._threads.write(unit)
            await discard_files(self._threads, finished)
            if ended:
                log.info("doubts ended without a verdict", deliveries=len(ended))
            if len(ended) < doubt.LIMIT:
                return
