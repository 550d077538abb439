"""The one door from the loop to blocking work.

Owns the bounded pools for reads, files and computation, hands write units and
journal records to storage, and brings their completions back with one wake-up
of the loop a batch. Owns the hub that tells the loop what a commit changed.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import structlog

from storage.db import Notice
from storage.records import Accepted, Placed
from storage.transactions import EVERYTHING, UNKNOWN

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from storage.store import Store

T = TypeVar("T")
P = ParamSpec("P")
Listener = Callable[[Notice], None]

log = structlog.get_logger("threads")


class Hub:
    """Tells listeners on the loop that a topic moved, after the commit that moved it.

    Topics and keys are those of storage notices; a listener with key None hears
    every key of its topic. After news of other processes may have been missed,
    all hear a notice whose position is UNKNOWN: it says only that they should look.
    """

    def __init__(self) -> None:
        self._listeners: dict[tuple[str, str | None], list[Listener]] = {}

    def subscribe(self, topic: str, key: str | None, listener: Listener) -> Callable[[], None]:
        """Call listener on the loop for each notice of topic and key; returns what ends it."""
        listeners = self._listeners.setdefault((topic, key), [])
        listeners.append(listener)

        def unsubscribe() -> None:
            if listener in listeners:
                listeners.remove(listener)
            if not listeners and self._listeners.get((topic, key)) is listeners:
                del self._listeners[(topic, key)]

        return unsubscribe

    def dispatch(self, notices: Sequence[Notice]) -> None:
        """Hand a committed batch's notices to their listeners; runs on the loop."""
        latest = {(notice.topic, notice.key): notice for notice in notices}
        if (EVERYTHING, "") in latest:
            self._call_all()
            return
        for notice in latest.values():
            for key in (notice.key, None):
                for listener in tuple(self._listeners.get((notice.topic, key), ())):
                    self._call(listener, notice)

    def _call_all(self) -> None:
        for (topic, key), listeners in tuple(self._listeners.items()):
            for listener in tuple(listeners):
                self._call(listener, Notice(topic, key or "", UNKNOWN))

    def _call(self, listener: Listener, notice: Notice) -> None:
        try:
            listener(notice)
        except Exception:
            log.exception("listener failed", topic=notice.topic)


class Threads:
    """Async calls into synchronous storage, files and computation."""

    def __init__(
        self,
        store: Store,
        hub: Hub,
        *,
        readers: int = 4,
        workers: int = 8,
        computers: int = 2,
    ) -> None:
        self.store = store
        self.hub = hub
        self._loop = asyncio.get_running_loop()
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="read")
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="file")
        self._computers = ThreadPoolExecutor(computers, thread_name_prefix="compute")
        store.database.complete = self._complete
        store.database.listen(self._heard)

    def _post(self, function: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            # The loop is closed: whoever waited is gone with it.
            log.debug("completion after the loop's end")

    def _complete(self, callbacks: list[Callable[[], None]]) -> None:
        self._post(functools.partial(_run_all, callbacks))

    def _heard(self, notices: Sequence[Notice]) -> None:
        self._post(functools.partial(self.hub.dispatch, tuple(notices)))

    async def read(self, unit: Callable[[Connection], T]) -> T:
        """Run a unit on a reader's snapshot."""
        return await self._loop.run_in_executor(self._readers, self.store.database.read, unit)

    async def write(self, unit: Callable[[Connection], T]) -> T:
        """Run a unit in the writer's next group commit; returns once it is durable."""
        future: asyncio.Future[T] = self._loop.create_future()
        self.store.database.submit(unit, functools.partial(_settle, future))
        return await future

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking file work."""
        call = functools.partial(function, *args, **kwargs)
        return await self._loop.run_in_executor(self._workers, call)

    async def compute(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work that costs the processor more than a millisecond."""
        call = functools.partial(function, *args, **kwargs)
        return await self._loop.run_in_executor(self._computers, call)

    async def accept(self, record: Accepted) -> None:
        """Commit a record to the journal; returns when it is on stable storage."""
        future: asyncio.Future[None] = self._loop.create_future()

        def durable(error: BaseException | None) -> None:
            _settle(future, None, error)

        self.store.accept(record, durable=durable)
        await future

    async def accept_applied(self, record: Accepted) -> tuple[Placed, ...]:
        """Commit a record and wait until it is applied: visible, with its UIDs."""
        future: asyncio.Future[tuple[Placed, ...]] = self._loop.create_future()

        def durable(error: BaseException | None) -> None:
            if error is not None:
                _settle(future, None, error)

        self.store.accept(record, durable=durable, applied=functools.partial(_settle, future))
        return await future

    def close(self) -> None:
        """Wait for what is running and end the pools."""
        for pool in (self._readers, self._workers, self._computers):
            pool.shutdown(wait=True, cancel_futures=True)


def _run_all(callbacks: list[Callable[[], None]]) -> None:
    for callback in callbacks:
        callback()


def _settle(future: asyncio.Future[T], value: T | None, error: BaseException | None) -> None:
    if future.done():
        return  # cancelled meanwhile; the work itself stands
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)  # type: ignore[arg-type]  # None only where T allows it


async def at_once(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call what is too quick for a thread, in the form of Threads.run."""
    return function(*args, **kwargs)
