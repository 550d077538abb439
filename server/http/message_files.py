"""Files of stored messages, found by message id and read off the loop.

Owns the way from an id to octets: the look-up in one organization and inbox,
the path, and the second look where a flag's mirror renamed the file meanwhile.
Holds no large message beside the few that are being read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from server.http.access import Caller
from server.http.problems import not_found
from server.http.services import Services
from storage import messages

if TYPE_CHECKING:
    from storage.messages import Listed

T = TypeVar("T")

LARGE_OCTETS = 256 * 1024
LARGE_AT_ONCE = 8
LOOKS = 3


class MessageFiles:
    """Reads messages for all routes of a process."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._slots = asyncio.Semaphore(LARGE_AT_ONCE)

    async def find(self, caller: Caller, inbox_id: str, message_id: str) -> Listed:
        """Return a message as it lies in an inbox that the caller may see; Problem 404."""
        caller.reach(inbox_id)
        found = await self._services.threads.read(
            lambda c: messages.find(
                c,
                organization_id=caller.organization_id,
                mailbox_id=inbox_id,
                message_id=message_id,
            )
        )
        if found is None:
            raise not_found()
        return found

    async def read(self, caller: Caller, inbox_id: str, message_id: str, look: Callable[[Path], T]) -> T:
        """Return what a blocking function makes of the message's file; Problem 404."""
        listed = await self.find(caller, inbox_id, message_id)
        async with self.room(listed.entry.octets):
            return await self.look(caller, inbox_id, listed, look)

    async def look(self, caller: Caller, inbox_id: str, listed: Listed, look: Callable[[Path], T]) -> T:
        """Return what a blocking function makes of a found message's file; Problem 404 where it is gone."""
        for attempt in range(LOOKS):
            if attempt:
                listed = await self.find(caller, inbox_id, listed.message.id)
            path = self._services.maildir.entry_path(inbox_id, listed.folder, listed.entry)
            work = self._services.threads
            run = work.run if listed.entry.octets <= LARGE_OCTETS else work.compute
            try:
                return await run(look, path)
            except FileNotFoundError:
                continue
        raise not_found()

    @asynccontextmanager
    async def room(self, octets: int) -> AsyncIterator[None]:
        """Hold one of few slots while a large message is in memory."""
        if octets <= LARGE_OCTETS:
            yield
            return
        async with self._slots:
            yield
