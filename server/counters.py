"""Counts over the last hour, day and week, in memory, behind them the database.

Owns the windows and the writing of what was counted, a few seconds later and many at
once: after a crash the last seconds are missing. A key is read from the database when
it is first asked for. Keys are LIMIT at most; the longest unasked go first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING

from storage import sending

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from server.threads import Threads

LIMIT = 100_000
BUCKETS_LIMIT = 160  # a day of ten minutes, and some
FRESH_SECONDS = 30.0  # where other processes count too
WRITTEN_LIMIT = 100_000
SECOND = 1_000_000

Key = tuple[str, str]  # kind and key


class Counters:
    """How much of a kind happened lately for a key."""

    def __init__(self, threads: Threads, clock: Clock) -> None:
        self._threads = threads
        self._clock = clock
        self._known: OrderedDict[Key, tuple[float, dict[int, int]]] = OrderedDict()
        self._pending: dict[tuple[str, str, int], int] = {}
        self._written: set[tuple[str, bytes]] = set()
        self._remembered: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._once: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._flushing = asyncio.Lock()
        self.is_alone = threads.store.database.dialect == "sqlite"

    async def load(self, keys: Iterable[Key]) -> None:
        """Have the counts of keys to hand, so that total can tell them."""
        missing = [key for key in dict.fromkeys(keys) if not self._has(key)]
        wanted = [key for key in missing if key[0] != sending.SIMILAR]
        if wanted:
            async with self._flushing:  # what is being written is in neither place
                found = await self._threads.read(partial(sending.counts, keys=wanted))
                for key, buckets in found.items():
                    self._remember(key, buckets)
                for (kind, name, start), count in self._pending.items():
                    if (kind, name) in found:
                        buckets = found[kind, name]
                        buckets[start] = buckets.get(start, 0) + count

    def _has(self, key: Key) -> bool:
        known = self._known.get(key)
        if known is None:
            return False
        self._known.move_to_end(key)
        return self.is_alone or self._clock.monotonic() - known[0] < FRESH_SECONDS

    def _remember(self, key: Key, buckets: dict[int, int]) -> None:
        self._known[key] = self._clock.monotonic(), buckets
        self._known.move_to_end(key)
        while len(self._known) > LIMIT:
            self._known.popitem(last=False)

    def total(self, kind: str, key: str, *, seconds: int) -> int:
        """Return how much happened in a time up to now, the stretch that it begins in counted whole."""
        known = self._known.get((kind, key))
        if known is None:
            return 0
        since = self._clock.now() - seconds * SECOND - sending.GRAIN[kind]
        return sum(count for start, count in known[1].items() if start > since)

    def count(self, kind: str, key: str, amount: int) -> None:
        """Count what happens now."""
        grain = sending.GRAIN[kind]
        now = self._clock.now()
        start = now - now % grain
        if kind == sending.SIMILAR:
            written = self._repeated(key, start, amount)
        else:
            written = amount
        if written:
            self._pending[kind, key, start] = self._pending.get((kind, key, start), 0) + written
        known = self._known.get((kind, key))
        if known is not None:
            buckets = known[1]
            buckets[start] = buckets.get(start, 0) + amount
            if len(buckets) > BUCKETS_LIMIT:
                for old in sorted(buckets)[: len(buckets) - BUCKETS_LIMIT + 10]:
                    del buckets[old]

    def _repeated(self, key: str, start: int, amount: int) -> int:
        """Return what is to be written of a text: nothing the first time it is seen, then all of it."""
        # Most texts are seen once: were each written, they would cost four rows a message.
        kind = sending.SIMILAR
        is_new = (kind, key) not in self._known
        if is_new:
            self._remember((kind, key), {})
            self._once[key, start] = amount
            if len(self._once) > LIMIT:
                self._once.popitem(last=False)
            return 0
        return amount + self._once.pop((key, start), 0)

    async def load_texts(self) -> None:
        """Take the counts of texts that the database keeps: at the start, and other processes' later on."""
        since = self._clock.now() - 3600 * SECOND - sending.GRAIN[sending.SIMILAR]
        async with self._flushing:
            found = await self._threads.read(partial(sending.texts, since=since, limit=LIMIT // 2))
            for (kind, name, start), count in self._pending.items():
                if (kind, name) in found:
                    found[kind, name][start] = found[kind, name].get(start, 0) + count
            for pair, buckets in found.items():
                known = self._known[pair][1] if pair in self._known else {}
                kept = {start: max(count, known.get(start, 0)) for start, count in buckets.items()}
                self._remember(pair, {**known, **kept})

    def write_to(self, organization_id: str, digests: Collection[bytes]) -> None:
        """Note whom an organization wrote to."""
        if len(self._written) < WRITTEN_LIMIT:
            self._written.update((organization_id, digest) for digest in digests)
            self._keep(organization_id, digests)

    async def known_of(self, organization_id: str, digests: Iterable[bytes]) -> set[bytes]:
        """Return those that an organization has written to."""
        digests = set(digests)
        known = {
            digest
            for digest in digests
            if (organization_id, digest) in self._remembered or (organization_id, digest) in self._written
        }
        wanted = digests - known
        if wanted:
            unit = partial(sending.known_of, organization_id=organization_id, digests=wanted)
            found = await self._threads.read(unit)
            self._keep(organization_id, found)
            known |= found
        return known

    def _keep(self, organization_id: str, digests: Iterable[bytes]) -> None:
        """Remember whom an organization has written to: what is true once stays so for half a year."""
        for digest in digests:
            self._remembered[organization_id, digest] = None
        while len(self._remembered) > WRITTEN_LIMIT:
            self._remembered.popitem(last=False)

    def forget(self, keys: Iterable[Key]) -> None:
        """Read these keys anew when they are next asked for."""
        for key in keys:
            self._known.pop(key, None)

    async def flush(self) -> None:
        """Write what was counted since the last time; it stays to be written where that fails."""
        async with self._flushing:
            pending, written = self._pending, self._written
            if not pending and not written:
                return
            self._pending, self._written = {}, set()
            at = self._clock.now()

            def unit(connection: Connection) -> None:
                sending.add_counts(connection, pending)
                sending.add_written(connection, written, at=at)

            try:
                await self._threads.write(unit)
            except BaseException:
                for key, count in pending.items():
                    self._pending[key] = self._pending.get(key, 0) + count
                self._written |= written
                raise
