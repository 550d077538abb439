"""A message under the hands of intake: read, completed, encoded anew, rid of fields.

Owns the ways in which its content changes before it is committed, and which spool
files it lies in meanwhile. Refuses by raising Refusal: a sender that does not own its
From, binary content that cannot be encoded (554 5.6.3), a full disk (452 4.3.1).
RFC 6409 (submission), 3030 (binary content).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from server import completion, evidence
from server.door import no_room
from server.mail.recoding import Unencodable
from server.refusal import Refusal
from server.threads import at_once
from storage import ids
from storage.errors import Full
from storage.records import Spooled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from server.arrival import Arrival
    from server.clock import Clock
    from server.senders import Senders
    from server.threads import Threads


class Editing:
    """Changes content and reads it again; `files` are the spool files that the message now lies in."""

    def __init__(self, threads: Threads, senders: Senders, clock: Clock, hostname: str) -> None:
        self._threads = threads
        self._senders = senders
        self._clock = clock
        self._hostname = hostname

    async def complete(
        self, arrival: Arrival, letter: evidence.Letter, files: list[Spooled]
    ) -> tuple[Arrival, evidence.Letter]:
        """RFC 6409 8: add Date and Message-ID, take Bcc out; check who the From names."""
        if arrival.identity is not None:
            await self._senders.check(arrival.identity, letter)
        if arrival.envelope.body == "BINARYMIME":
            arrival, letter = await self._recode(arrival, files)
        message_id = arrival.message_id or ids.new("msg")
        arrival = replace(arrival, message_id=message_id)
        added = completion.missing_fields(
            letter, message_id=message_id, hostname=self._hostname, at=self._clock.now()
        ) + completion.sender_field(letter, arrival.identity)
        if added or any(map(letter.has, completion.WITHHELD)):
            return await self.rewrite(arrival, letter, files, added=added, select=completion.withheld_fields)
        return arrival, letter

    async def _recode(self, arrival: Arrival, files: list[Spooled]) -> tuple[Arrival, evidence.Letter]:
        """RFC 3030 3: encode binary parts before the message is signed and sent."""
        try:
            content = await self._threads.run(completion.recoded, arrival.content, self._threads.store)
        except Unencodable as error:
            raise Refusal(554, "5.6.3", f"The message is binary and cannot be converted: {error}") from None
        except Full as error:
            raise no_room() from error
        if isinstance(content, Spooled):
            files[:] = [content]
        arrival = replace(arrival, content=content, envelope=replace(arrival.envelope, body="8BITMIME"))
        return arrival, await self.read(content)

    async def rewrite(
        self,
        arrival: Arrival,
        letter: evidence.Letter,
        files: list[Spooled],
        *,
        select: Callable[[bytes], list[bytes]],
        added: bytes = b"",
    ) -> tuple[Arrival, evidence.Letter]:
        """Put fields on top of a message and take those out that select finds in its header."""
        run = self._threads.run if isinstance(arrival.content, Spooled) else at_once
        store = self._threads.store
        head = await run(completion.head_of, arrival.content, letter.header_octets, store)
        unwanted = select(head)
        if not unwanted and not added:
            return arrival, letter
        try:
            content = await run(
                completion.rewrite,
                arrival.content,
                added=added,
                unwanted=unwanted,
                header_octets=letter.header_octets,
                store=store,
            )
        except Full as error:
            raise no_room() from error
        if isinstance(content, Spooled):
            files[:] = [content]
        return replace(arrival, content=content), await self.read(content)

    async def read(self, content: bytes | Spooled) -> evidence.Letter:
        """Return what the header says, and the size."""
        if isinstance(content, bytes):
            return evidence.read(content, self._threads.store)
        return await self._threads.run(evidence.read, content, self._threads.store)

    async def duplicate(self, content: Spooled, files: list[Spooled]) -> Spooled:
        """Return a file of its own with the same content."""
        try:
            made = await self._threads.run(self._threads.store.duplicate, content)
        except Full as error:
            raise no_room() from error
        files.append(made)
        return made

    async def give_up(self, files: Sequence[Spooled]) -> None:
        """Take files away: nothing was committed."""
        for spooled in files:
            await self._threads.run(self._threads.store.discard, spooled)
