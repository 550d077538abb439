"""What delivery writes to the database: gathered while a write is under way, then written together.

Owns leasing's unit, the durable word that a transmission begins, the settling
of attempts, and the removal of spool files that no delivery needs. Tries again
what the database cannot take now: an outcome that were dropped would send a
message twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import structlog

from server.delivery.judging import FAILED, TEACHING, asked
from storage import ids, queue, suppressing, suppression
from storage.errors import StorageError
from storage.queue import Pick, Settled, Settlement
from storage.records import DeliveryState
from storage.suppressing import Failure, Held, Rules

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from server.threads import Threads
    from storage.records import Delivery

BATCH = 200
AGAIN_SECONDS = 1.0

log = structlog.get_logger("delivery")


class LeaseLost(Exception):
    """Another process holds a delivery now: nothing may be sent or settled."""


class Suppressed(Exception):
    """Some recipients may not be written to any more; causes by delivery id."""

    def __init__(self, causes: Mapping[str, str]) -> None:
        super().__init__("suppressed meanwhile")
        self.causes = dict(causes)


@dataclass(frozen=True, slots=True)
class Leased:
    """Deliveries leased by one unit, and the causes, by id, of those that are suppressed."""

    deliveries: tuple[Delivery, ...]
    suppressed: Mapping[str, str]
    watched: frozenset[str] = frozenset()  # whose success ends a suppression, or a run of failures


@dataclass(frozen=True, slots=True)
class Learning:
    """How failures suppress, and of which deliveries a success matters."""

    rules: Rules
    watched: frozenset[str]


@dataclass(slots=True)
class _Beginning:
    deliveries: Sequence[Delivery]
    future: asyncio.Future[None]


@dataclass(slots=True)
class _Written:
    settled: Settled = field(default_factory=Settled)
    lost: frozenset[str] = frozenset()
    held: Held = suppressing.NOTHING_HELD


class Ledger:
    """Writes beginnings and settlements, many in one unit.

    settled is called with each batch of settlements once it is durable.
    """

    def __init__(
        self,
        *,
        threads: Threads,
        clock: Clock,
        delay_notice_after: int | None,
        settled: Callable[[Sequence[Settlement]], None],
        rules: Rules | None = None,
    ) -> None:
        self._threads = threads
        self._clock = clock
        self._delay_notice_after = delay_notice_after
        self._settled = settled
        self._rules = rules or Rules()
        self._watched: set[str] = set()
        self._settling: list[Settlement] = []
        self._beginning: list[_Beginning] = []
        self._task: asyncio.Task[None] | None = None

    async def lease(self, picks: Sequence[Pick], *, token: str, until: int) -> Leased:
        """Lease what was picked; who is suppressed is told in the same unit."""
        leased = await self._threads.write(
            partial(_lease, picks=picks, token=token, now=self._clock.now(), until=until)
        )
        self._watched |= leased.watched
        return leased

    async def begin(self, deliveries: Sequence[Delivery]) -> None:
        """Return when it is durable that the transmission of these begins.

        Raises LeaseLost or Suppressed: then nothing of these may be sent in this transaction.
        """
        future = asyncio.get_running_loop().create_future()
        self._beginning.append(_Beginning(deliveries, future))
        self._go()
        await future

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Queue settlements for the next unit."""
        self._settling.extend(settlements)
        self._go()

    async def drain(self) -> None:
        """Wait until all that was given is written."""
        while self._task is not None:
            await asyncio.wait((self._task,))

    def _go(self) -> None:
        if self._task is None and (self._settling or self._beginning):
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._settling or self._beginning:
                settling, self._settling = self._settling[:BATCH], self._settling[BATCH:]
                beginning, self._beginning = self._beginning, []
                await self._write(settling, beginning)
        finally:
            self._task = None

    async def _write(self, settling: list[Settlement], beginning: list[_Beginning]) -> None:
        held = [one for waiting in beginning for one in waiting.deliveries]
        watched = frozenset(one.delivery.id for one in settling) & self._watched
        unit = partial(
            _write,
            settling=settling,
            held=held,
            at=self._clock.now(),
            delay=self._delay_notice_after,
            learning=Learning(self._rules, watched),
        )
        try:
            written = await self._threads.write(unit)
        except StorageError as error:
            # Who waits to begin is told; what is to be settled is kept.
            for waiting in beginning:
                _fail(waiting.future, error)
            if settling:
                log.error("outcomes not written, trying again", count=len(settling), problem=str(error))
                self._settling = [*settling, *self._settling]
                await asyncio.sleep(AGAIN_SECONDS)
            return
        self._watched -= watched
        for waiting in beginning:
            _answer(waiting, written)
        for delivery_id in written.settled.stale:
            log.warning("lease lost before its outcome was written", delivery=delivery_id)
        if settling:
            self._settled(settling)
        await discard_files(self._threads, written.settled.finished)


def _answer(waiting: _Beginning, written: _Written) -> None:
    concerned = {one.id for one in waiting.deliveries}
    lost = concerned & written.lost
    causes = {key: cause for key, cause in written.held.causes.items() if key in concerned}
    if lost:
        _fail(waiting.future, LeaseLost(", ".join(sorted(lost))))
    elif causes:
        _fail(waiting.future, Suppressed(causes))
    elif not waiting.future.done():
        waiting.future.set_result(None)


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _lease(connection: Connection, *, picks: Sequence[Pick], token: str, now: int, until: int) -> Leased:
    leased = queue.lease(connection, picks=picks, token=token, now=now, until=until)
    known = _held(connection, leased, now)
    return Leased(tuple(leased), known.causes, known.watched)


def _write(
    connection: Connection,
    *,
    settling: Sequence[Settlement],
    held: Sequence[Delivery],
    at: int,
    delay: int | None,
    learning: Learning,
) -> _Written:
    written = _Written()
    if settling:
        settling = [_named(one) for one in settling]
        written.settled = queue.settle(connection, settlements=settling, at=at, delay_notice_after=delay)
        _learn(connection, settling, written.settled.stale, learning, at)
    if held:
        suppression.guard(connection, alone=False)
        written.held = _held(connection, held, at)
        going = [one for one in held if one.id not in written.held.causes]
        written.lost = frozenset(queue.begin(connection, held=going, at=at))
    return written


def _held(connection: Connection, held: Sequence[Delivery], at: int) -> Held:
    known = [one for one in map(asked, held) if one is not None]
    return suppressing.held(connection, known, at=at) if known else suppressing.NOTHING_HELD


def _named(item: Settlement) -> Settlement:
    """Give the event of a failure its id ahead: a suppression names it."""
    return item if item.outcome.state not in FAILED else replace(item, event_id=ids.new("evt"))


def _learn(
    connection: Connection, settled: Sequence[Settlement], stale: Sequence[str], learning: Learning, at: int
) -> None:
    """Let addresses' suppressions follow from how deliveries ended, in the unit that says it."""
    taken = []
    for item in settled:
        delivery, outcome = item.delivery, item.outcome
        if delivery.source not in TEACHING or delivery.id in stale:
            continue
        if outcome.state is DeliveryState.DELIVERED and delivery.id in learning.watched:
            taken.append(asked(delivery))
        elif outcome.state in FAILED and item.facts.get("blame") == "recipient":
            _note_failure(connection, item, learning.rules, at)
    suppressing.succeeded(connection, [one for one in taken if one is not None], at=at)


def _note_failure(connection: Connection, item: Settlement, rules: Rules, at: int) -> None:
    known, outcome = asked(item.delivery), item.outcome
    if known is None:
        return
    failure = Failure(
        known.organization_id,
        known.address,
        str(item.facts["class"]),
        " ".join(filter(None, (str(outcome.code or ""), outcome.enhanced, outcome.text))),
        item.event_id or None,
        item.delivery.id,
        item.delivery.message_id,
    )
    suppressing.failed(connection, failure, rules=rules, at=at)


async def discard_files(threads: Threads, message_ids: Sequence[str]) -> None:
    """Remove spool files of finished messages; what cannot be removed is left to reconciling."""
    if message_ids:
        await threads.run(_unlink, threads, message_ids)


def _unlink(threads: Threads, message_ids: Sequence[str]) -> None:
    for message_id in message_ids:
        try:
            threads.store.message_path(message_id).unlink(missing_ok=True)
        except OSError as error:
            log.warning("spool file not removed", message=message_id, problem=str(error))
