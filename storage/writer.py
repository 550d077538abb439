"""The one thread that writes to the database, and how another process gets its turn.

Owns the queue of units and when they are run: all that waits goes into one
transaction (storage.transactions says what becomes of it), and callbacks are
made after the commit, never before. While the writer is lent it begins nothing.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from storage.errors import Full, StorageError
from storage.transactions import Notice, Outcome, Transactions, Unit

Done = Callable[[Any, BaseException | None], None]

BATCH_UNITS = 512
QUEUE_UNITS = 100_000


@dataclass(frozen=True, slots=True)
class Item:
    """One queued unit; direct: its callback runs in the writer thread, whatever the hook."""

    unit: Unit[Any]
    done: Done
    direct: bool


class Writer:
    """Runs what is queued, batch by batch."""

    def __init__(
        self,
        *,
        transactions: Transactions,
        finish: Callable[[Sequence[Item], Sequence[Outcome], Sequence[Notice]], None],
    ) -> None:
        self._transactions = transactions
        self._finish = finish
        self._items: deque[Item] = deque()
        lock = threading.Lock()
        self._ready = threading.Condition(lock)
        self._rests = threading.Condition(lock)
        self._closing = False
        self._running = False
        self._borrowers = 0
        self._thread = threading.Thread(target=self._loop, name="database-writer", daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> None:
        """Queue a unit; StorageError after close, Full where QUEUE_UNITS wait already."""
        with self._ready:
            if self._closing:
                raise StorageError("the database is closed")
            if len(self._items) >= QUEUE_UNITS:
                raise Full(f"{QUEUE_UNITS} units wait for the database")
            self._items.append(item)
            self._ready.notify()

    @contextmanager
    def lend(self) -> Iterator[None]:
        """Begin no transaction meanwhile: on SQLite two that write would starve each other."""
        with self._rests:
            self._borrowers += 1
            self._rests.wait_for(lambda: not self._running)
        try:
            yield
        finally:
            with self._ready:
                self._borrowers -= 1
                self._ready.notify()

    def inside(self) -> bool:
        """Return whether the caller runs in the writer's own thread."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Run what is queued, then stop the thread and close its connection."""
        with self._ready:
            self._closing = True
            self._ready.notify()
        if not self.inside():
            self._thread.join()

    def _loop(self) -> None:
        while batch := self._take():
            outcomes, notices = self._transactions.run([item.unit for item in batch])
            self._finish(batch, outcomes, notices)
            del batch, outcomes, notices  # hold no results while idle
            with self._rests:
                self._running = False
                self._rests.notify_all()
        self._transactions.drop_connection()

    def _take(self) -> list[Item]:
        items = self._items
        with self._ready:
            while self._borrowers or not (items or self._closing):
                self._ready.wait()
            self._running = bool(items)
            return [items.popleft() for _ in range(min(len(items), BATCH_UNITS))]
