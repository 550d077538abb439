"""How often the conditions of limits held lately, in memory, behind them the database.

Owns the sliding count of the action limit, bounded in keys, and what of it is written a few
seconds later and read at the next start: after a crash the last seconds are missing, and so
may be a value's first time where the limit is no small number. Values are kept as digests.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING

from storage import limits
from storage.limits import Window

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from server.threads import Threads

KEYS_LIMIT = 100_000
PENDING_LIMIT = 5000  # of what is written at once; under a flood the rest stays in memory alone
LOADED_LIMIT = 50_000
WRITTEN_PERIOD = 10  # seconds; shorter ones are over before a restart is
SMALL_LIMIT = 10  # up to this, the first time counts enough to be written
OVERLAP = 60_000_000  # microseconds, for clocks of several machines that differ
SECOND = 1_000_000
DIGEST_OCTETS = 16

Key = tuple[str, bytes]


class Count:
    """One rule's count for one value: of the stretch that begins at start, and of the one before."""

    __slots__ = ("before", "count", "period", "start")

    def __init__(self, period: int, start: int, count: int = 0, before: int = 0) -> None:
        self.period = period
        self.start = start
        self.count = count
        self.before = before

    def move(self, period: int, start: int) -> None:
        """Go on to the stretch that begins at start."""
        if period != self.period:
            self.period, self.start, self.count, self.before = period, start, 0, 0
        elif start > self.start:
            self.before = self.count if start == self.start + period else 0
            self.start, self.count = start, 0

    def reached(self, now: int) -> float:
        """Return how often it was in the period up to now, the former stretch by the share still in it."""
        gone = min(max(now - self.start, 0), self.period)
        return self.count + self.before * (1 - gone / self.period)


class Limits:
    """The counts of all limits of a process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counts: dict[Key, Count] = {}
        self._pending: dict[tuple[str, bytes, int, int], int] = {}  # rule, digest, period, start
        self._heard_at = 0

    def spend(self, rule: str, value: str, *, limit: int, period_seconds: int) -> bool:
        """Count one for a rule and value if that is within the limit; return whether it is."""
        key = rule, hashlib.blake2b(value.encode("utf-8", "replace"), digest_size=DIGEST_OCTETS).digest()
        now, period = self._clock.now(), period_seconds * SECOND
        start = now - now % period
        found = self._counts.get(key)
        if found is None:
            if len(self._counts) >= KEYS_LIMIT:
                self._make_room(now)
            found = self._counts[key] = Count(period, start)
        found.move(period, start)
        if found.reached(now) >= limit:
            return False
        found.count += 1
        if period_seconds >= WRITTEN_PERIOD:
            self._note(key, found, limit)
        return True

    def _note(self, key: Key, found: Count, limit: int) -> None:
        if found.count == 1 and limit > SMALL_LIMIT:
            return  # most values of a flood come once, and once is far from the limit
        pending = (*key, found.period, found.start)
        # The first time, left out above, is made up for with the second.
        amount = 2 if found.count == 2 and limit > SMALL_LIMIT else 1
        if pending in self._pending or len(self._pending) < PENDING_LIMIT:
            self._pending[pending] = self._pending.get(pending, 0) + amount

    def _make_room(self, now: int) -> None:
        """Drop what is over, then the oldest until a tenth is free."""
        counts = self._counts
        self._counts = {key: one for key, one in counts.items() if now - one.start < 2 * one.period}
        for key in list(self._counts)[: max(0, len(self._counts) - KEYS_LIMIT * 9 // 10)]:
            del self._counts[key]

    async def load(self, threads: Threads) -> None:
        """Take what the database has that changed since the last time, other processes' counts too."""
        since, self._heard_at = self._heard_at, self._clock.now()
        unit = partial(limits.changed, since=max(0, since - OVERLAP), limit=LOADED_LIMIT)
        pending = dict(self._pending)  # what is not in the rows that are about to be read
        for row in reversed(await threads.read(unit)):
            self._take(row, pending)

    def _take(self, row: Window, pending: dict[tuple[str, bytes, int, int], int]) -> None:
        if self._clock.now() - row.start >= 2 * row.period:
            return
        mine = pending.get((row.rule, row.digest, row.period, row.start), 0)
        key = row.rule, row.digest
        known = self._counts.get(key)
        if known is None:
            if len(self._counts) < KEYS_LIMIT:
                self._counts[key] = Count(row.period, row.start, row.count + mine, row.before)
        elif (known.period, known.start) == (row.period, row.start):
            # A count never falls by hearing of others: what one left out is in the other.
            known.count = max(known.count, row.count + mine)
            known.before = max(known.before, row.before)
        elif known.period == row.period and known.start == row.start + row.period:
            known.before = max(known.before, row.count + mine)

    async def flush(self, threads: Threads) -> None:
        """Write what was counted since the last time; it stays to be written where that fails."""
        pending, self._pending = self._pending, {}
        if not pending:
            return
        counted = [
            Window(rule, digest, period, start, count)
            for (rule, digest, period, start), count in pending.items()
        ]
        at = self._clock.now()

        def unit(connection: Connection) -> None:
            limits.add(connection, counted, at=at)

        try:
            await threads.write(unit)
        except BaseException:
            for key, count in pending.items():
                self._pending[key] = self._pending.get(key, 0) + count
            raise

    async def prune(self, threads: Threads) -> None:
        """Forget old rows."""
        await threads.write(partial(limits.prune, at=self._clock.now()))
