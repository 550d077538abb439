"""The end of held mail that nobody released: bounced or discarded when its time is over.

Owns when that is looked for; storage says what is ended, and the consumer of failures
tells the senders.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import structlog

from server.delivery.ledger import discard_files
from server.turns import Turns
from storage import held

if TYPE_CHECKING:
    from server.clock import Clock
    from server.threads import Threads

SECOND = 1_000_000
LOOK_SECONDS = 600.0

log = structlog.get_logger("held")


class HeldExpiry:
    """Ends what is held for longer than `seconds`; 0 for never."""

    def __init__(self, *, threads: Threads, clock: Clock, seconds: int, answer: str) -> None:
        self._threads = threads
        self._clock = clock
        self._seconds = seconds
        self._answer = held.Answer(answer)
        self._turns = Turns("expiry of held mail", self.turn, seconds=LOOK_SECONDS)

    async def start(self) -> None:
        """Begin to look, at once."""
        if self._seconds:
            self._turns.start()

    async def stop(self) -> None:
        """End."""
        await self._turns.stop()

    async def turn(self) -> None:
        """End all that is due."""
        while True:
            now = self._clock.now()
            before = now - self._seconds * SECOND
            acted = await self._threads.write(
                partial(held.expire, before=before, answer=self._answer, at=now)
            )
            await discard_files(self._threads, acted.finished)
            if acted.changed:
                log.info("held mail ended", deliveries=len(acted.changed))
            if len(acted.changed) < held.LIMIT:
                return
