"""Sent messages that were just accepted, in memory for their first attempt, which comes at once.

Owns nothing that counts: the store has each message too, and whoever misses one here reads
it there. Bounded in octets and in time, and each is given out once for each domain.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.clock import Clock
    from storage.records import Accepted

MESSAGE_OCTETS = 64 * 1024
LIMIT_OCTETS = 8 << 20
KEPT_SECONDS = 30.0


@dataclass(slots=True)
class _Kept:
    octets: bytes
    takers: int
    until: float


class Fresh:
    """Messages by id, the oldest first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._octets = 0
        self._timer: asyncio.TimerHandle | None = None

    def put(self, records: Iterable[Accepted]) -> None:
        """Keep what goes to other servers and is small."""
        now = self._clock.monotonic()
        for record in records:
            content = record.content
            if not isinstance(content, bytes) or len(content) > MESSAGE_OCTETS:
                continue
            if not any(target.next_attempt_at is not None for target in record.remote):
                continue  # nothing goes, or it is held
            takers = len({target.domain for target in record.remote})
            octets = record.trace + content
            self._kept[record.message_id] = _Kept(octets, takers, now + KEPT_SECONDS)
            self._octets += len(octets)
        self._forget(now)
        if self._kept and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(KEPT_SECONDS, self._later)

    def _forget(self, now: float) -> None:
        while self._kept:
            message_id, oldest = next(iter(self._kept.items()))
            if oldest.until > now and self._octets <= LIMIT_OCTETS:
                return
            self._drop(message_id)

    def _later(self) -> None:
        """Forget what nobody took, though no other message comes."""
        self._timer = None
        self._forget(self._clock.monotonic())
        if self._kept:
            self._timer = asyncio.get_running_loop().call_later(KEPT_SECONDS, self._later)

    def take(self, message_id: str) -> bytes | None:
        """Return a message as the store has it, None where it is not here (any more)."""
        kept = self._kept.get(message_id)
        if kept is None:
            return None
        kept.takers -= 1
        if kept.takers <= 0:
            self._drop(message_id)
        return kept.octets if kept.until > self._clock.monotonic() else None

    def _drop(self, message_id: str) -> None:
        self._octets -= len(self._kept.pop(message_id).octets)
