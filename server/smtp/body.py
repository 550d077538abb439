"""Where a message's content gathers while it arrives: in memory, beyond a threshold in a file.

Owns the choice between the two and the count of octets that all sessions keep in
memory. Writes files only through the door to threads; the session stops reading
meanwhile, so that memory does not follow the size of a message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.intake import Intake
    from server.threads import Threads
    from storage.records import Spooled
    from storage.spool import SpoolWriter

BLOCK_OCTETS = 256 * 1024  # what is written to a file at a time
PART_OCTETS = 8 * 1024  # less than this is gathered with what comes next
SHARE_OCTETS = 16 * 1024  # what each session may keep in memory however little there is


class Memory:
    """The octets of unfinished content in memory, over all sessions."""

    __slots__ = ("limit_octets", "used_octets")

    def __init__(self, limit_octets: int) -> None:
        self.limit_octets = limit_octets
        self.used_octets = 0


class Body:
    """The content of one message; every way out ends in `finish` or `discard`."""

    __slots__ = ("_intake", "_memory", "_octets", "_parts", "_threads", "_threshold", "_writer")

    def __init__(self, *, intake: Intake, threads: Threads, memory: Memory, threshold_octets: int) -> None:
        self._intake = intake
        self._threads = threads
        self._memory = memory
        self._threshold = threshold_octets
        self._parts: list[bytes | bytearray] = []  # most messages come in one block: kept as it is
        self._octets = 0
        self._writer: SpoolWriter | None = None

    def add(self, content: bytes) -> None:
        """Keep content; ask `is_full` next."""
        parts = self._parts
        if not parts or len(content) >= PART_OCTETS:
            parts.append(content)
        elif isinstance(parts[-1], bytearray):
            parts[-1] += content
        else:
            parts.append(bytearray(content))
        self._octets += len(content)
        self._memory.used_octets += len(content)

    @property
    def is_full(self) -> bool:
        """Whether `spill` must be awaited before more is added."""
        if self._octets > (self._threshold if self._writer is None else BLOCK_OCTETS):
            return True
        return self._octets > SHARE_OCTETS and self._memory.used_octets > self._memory.limit_octets

    async def spill(self) -> None:
        """Move what is in memory to the file."""
        writer = self._writer
        if writer is None:
            writer = self._writer = await self._threads.run(self._intake.spool)
        await self._threads.run(writer.write, self._take())

    async def finish(self) -> bytes | Spooled:
        """Return the whole content: octets, or the file that holds them, which is synced."""
        writer = self._writer
        if writer is None:
            # Still counted: `release` comes when the message has been taken in.
            return self._whole()
        if self._octets:
            await self._threads.run(writer.write, self._take())
        return await self._threads.run(writer.finish)

    def release(self) -> None:
        """Forget what is in memory."""
        self._forget()

    async def discard(self) -> None:
        """Forget everything, the file too."""
        self._forget()
        if self._writer is not None:
            writer, self._writer = self._writer, None
            await self._threads.run(writer.discard)

    def _take(self) -> bytes:
        content = self._whole()
        self._forget()
        return content

    def _whole(self) -> bytes:
        parts = self._parts
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def _forget(self) -> None:
        self._memory.used_octets -= self._octets
        self._parts, self._octets = [], 0
