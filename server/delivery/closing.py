"""The end of the time in which actions on the queue can be taken back, and of routes that ended.

Owns when that is looked for; storage lets the deliveries go, and this removes the files.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from server.delivery.ledger import discard_files
from server.turns import Turns
from storage import rerouting, undoing

if TYPE_CHECKING:
    from server.clock import Clock
    from server.threads import Threads

SECOND = 1_000_000
LOOK_SECONDS = 60.0
KEPT_SECONDS = 30 * 86_400  # how long it is told who did what; the audit log has it for longer


class Closing:
    """Closes actions `seconds` after they were done."""

    def __init__(self, *, threads: Threads, clock: Clock, seconds: int) -> None:
        self._threads = threads
        self._clock = clock
        self._seconds = seconds
        self._turns = Turns("closing of actions on the queue", self.turn, seconds=LOOK_SECONDS)

    async def start(self) -> None:
        """Begin to look, at once."""
        self._turns.start()

    async def stop(self) -> None:
        """End."""
        await self._turns.stop()

    async def turn(self) -> None:
        """Close all whose time is over."""
        before = self._clock.now() - self._seconds * SECOND
        while True:
            closed = await self._threads.write(partial(undoing.close, before=before))
            await discard_files(self._threads, closed.finished)
            if len(closed.changed) < undoing.LIMIT:
                break
        kept_since = self._clock.now() - KEPT_SECONDS * SECOND
        await self._threads.write(partial(undoing.forget, before=kept_since))
        await self._threads.write(partial(rerouting.prune, at=self._clock.now()))
