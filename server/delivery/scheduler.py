"""The queue's engine: finds what is due, leases it, has it tried, and has it settled.

Owns the one task that looks for work, the tasks of attempts, and the renewal of
leases while they live. Sleeps until something is due or a commit says so. Opens
no connection itself. On stop it leases no more, lets attempts finish within a
limit, and gives back what did not begin.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from server.delivery.attempt import Group, Outcomes, Transmitter
from server.delivery.backlog import Backlog, Turn
from server.delivery.backoff import next_attempt
from server.delivery.carrier import Carrier, suppressed
from server.delivery.exchangers import Exchangers
from server.delivery.forwarding import Forwarding, is_unanswerable
from server.delivery.home import Homeward
from server.delivery.judging import blames_us, facts_of
from server.delivery.ledger import LeaseLost, Ledger
from server.delivery.outcome import in_doubt, slows_down
from server.delivery.pace import Pace, provider_of
from server.delivery.pool import Pool
from server.delivery.protection import Protection
from server.delivery.route import BY_MX, RouteKeeper, Routes
from server.delivery.sources import Resting, Sources
from server.smtp.client import BLOCK_SECONDS, DATA_SECONDS, Timeouts
from server.tally import Tally
from storage import queue
from storage.errors import StorageError
from storage.lanes import Lane, Place, lanes, next_due
from storage.queue import Pick, Settlement
from storage.records import Delivery, DeliveryState, Outcome
from storage.rerouting import TOPIC, Scope
from storage.suppressing import Rules

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from server.dns import Resolver
    from server.fresh import Fresh
    from server.intake import Intake
    from server.return_tokens import ReturnTokens
    from server.routing import Routing
    from server.sections_delivery import Delivery as DeliverySettings
    from server.smtp.client_machine import Credentials
    from server.threads import Hub, Threads
    from server.transport.policies import StsPolicies
    from server.transport.results import TlsResults
    from storage.db import Notice

SECOND = 1_000_000
# A lease outlives the longest single wait of an attempt, so that a late renewal costs nothing.
LEASE_MARGIN_SECONDS = 300
LOOK_SECONDS = 60.0
# Where looking takes long, it is done seldom: at most a tenth of the time goes into it.
LOOK_SHARE = 10
TROUBLE_SECONDS = 1.0
FOREVER = 1 << 62

log = structlog.get_logger("delivery")


RULES = Rules()


@dataclass(frozen=True, slots=True)
class Returning:
    """What becomes of mail that comes back: how addresses are suppressed, who gets signed return paths."""

    rules: Rules = RULES
    verp: tuple[str, ...] = ()
    tokens: ReturnTokens | None = None


RETURNING = Returning()


class Scheduler:
    """Delivers what the queue holds, from start to stop.

    dice: spreads retries and shuffles hosts of one preference; needs no secrecy. holder: this
    process's instance, by which its leases are known should it die. sts, dane: the policies that are
    held to; tls_results: where sessions are counted for reports.
    """

    def __init__(
        self,
        *,
        threads: Threads,
        hub: Hub,
        resolver: Resolver,
        clock: Clock,
        routing: Routing,
        intake: Intake,
        settings: DeliverySettings,
        hostname: str,
        outbox: Path,
        tls_context: ssl.SSLContext | None,
        jitter: random.Random,
        holder: str = "",
        fresh: Fresh | None = None,
        logins: Mapping[str, Credentials] | None = None,
        sources: Sources | None = None,
        sts: StsPolicies | None = None,
        dane: bool = False,
        tls_results: TlsResults | None = None,
        returning: Returning = RETURNING,
    ) -> None:
        self._threads = threads
        self._hub = hub
        self._clock = clock
        self._settings = settings
        self._dice = jitter
        self._holder = holder
        self._asks_in_doubt = settings.in_doubt == "ask"
        self._lease_seconds = settings.data_timeout_seconds + LEASE_MARGIN_SECONDS
        self._routes = Routes(
            routes=settings.routes,
            default=settings.default_route,
            routing=routing,
            organizations=settings.organization_routes,
            lane=settings.relay_lane,
        )
        self.keeper = RouteKeeper(self._routes, threads=threads, clock=clock)
        self._lane_seconds = settings.relay_lane_seconds
        self._pool = Pool(
            hostname=hostname,
            tls=tls_context,
            timeouts=Timeouts(
                connect=settings.connect_timeout_seconds,
                command=settings.command_timeout_seconds,
                data=min(DATA_SECONDS, settings.command_timeout_seconds),
                block=min(BLOCK_SECONDS, settings.command_timeout_seconds),
                final=settings.data_timeout_seconds,
            ),
            clock=clock,
            idle_seconds=settings.connection_idle_seconds,
            messages_per_connection=settings.messages_per_connection,
        )
        delay = settings.delay_notice_seconds * SECOND
        self._ledger = Ledger(
            threads=threads,
            clock=clock,
            delay_notice_after=delay or None,
            settled=self._on_settled,
            rules=returning.rules,
        )
        exchangers = Exchangers(
            resolver,
            hostname=hostname,
            allow_private_addresses=settings.allow_private_addresses,
            logins=logins,
        )
        self._carrier = Carrier(
            threads=threads,
            ledger=self._ledger,
            transmitter=Transmitter(
                pool=self._pool,
                exchangers=exchangers,
                threads=threads,
                clock=clock,
                hostname=hostname,
                dice=jitter,
                sources=sources,
                forwarding=_forwarding(threads, routing, settings, returning),
                protection=Protection(resolver=resolver, sts=sts, dane=dane),
                results=tls_results,
            ),
            homeward=Homeward(
                intake=intake, routing=routing, threads=threads, clock=clock, hostname=hostname
            ),
            outbox=outbox,
            fresh=fresh,
        )
        self.tally = Tally()
        self._pace = Pace(settings.rates, per_provider_concurrency=settings.per_provider_concurrency)
        self._backlog = Backlog(
            concurrency=settings.concurrency,
            per_domain_concurrency=settings.per_domain_concurrency,
            pace=self._pace,
            monotonic=clock.monotonic,
        )
        self._held: dict[str, Delivery] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._stopping = False
        self._news = True
        self._looked_at = 0.0
        self._look_pause = 0.0
        self._next_due: int | None = None
        self._next_end: int | None = None
        self._main: list[asyncio.Task[None]] = []
        self._unsubscribe: Callable[[], None] = _nothing
        self._forget_routes: Callable[[], None] = _nothing
        self._has_new_routes = False

    async def start(self) -> None:
        """Take back what a dead process left behind and begin to deliver."""
        await self._reclaim(FOREVER if self._threads.store.database.dialect == "sqlite" else None)
        await self.keeper.load()
        self._unsubscribe = self._hub.subscribe("queue", None, self._on_notice)
        self._forget_routes = self._hub.subscribe(TOPIC, None, self._on_routes)
        loop = asyncio.get_running_loop()
        self._main = [loop.create_task(self._run()), loop.create_task(self._renew())]

    async def stop(self, drain_seconds: float = 0) -> None:
        """Lease no more, wait for attempts as long as the limit allows, give back the rest."""
        self._stopping = True
        self._unsubscribe()
        self._forget_routes()
        # Not cancelled: a lease under way would be lost to everybody until it ended.
        self._wake.set()
        await asyncio.wait(self._main[:1])
        ready = [one for group in self._backlog.clear_ready() for one in group.deliveries]
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=drain_seconds)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._give_back(ready)
        await self._ledger.drain()
        self._main[1].cancel()
        await asyncio.wait(self._main[1:])
        self._pool.close()

    @property
    def leased(self) -> int:
        """How many deliveries this process holds."""
        return len(self._held)

    def wake(self) -> None:
        """Look for work now, whatever the timer says."""
        self._news = True
        self._wake.set()

    def _on_notice(self, _notice: Notice) -> None:
        self.wake()

    def _on_routes(self, _notice: Notice) -> None:
        self._has_new_routes = True
        self._wake.set()

    # Looking and leasing: one task, so that a scan and a lease never overtake each other.

    async def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                await self._turn()
            except StorageError as error:
                log.error("the queue cannot be read, trying again", problem=str(error))
                await asyncio.sleep(TROUBLE_SECONDS)
                continue
            except Exception:
                log.exception("the scheduler failed, trying again")
                await asyncio.sleep(TROUBLE_SECONDS)
                continue
            await self._sleep()

    async def _turn(self) -> None:
        if self._has_new_routes:
            self._has_new_routes = False
            await self.keeper.load()
        if self._may_look():
            await self._look()
        while not self._stopping and (picks := self._backlog.choose()):
            await self._lease(picks)
            self._dispatch()
        self._dispatch()

    def _may_look(self) -> bool:
        """Look when there is news, at once while nothing is known, else not too often."""
        rested = self._clock.monotonic() - self._looked_at >= self._look_pause
        due = self._next_due is not None and self._clock.now() >= self._next_due
        return (self._news or due) and (rested or self._backlog.lanes == 0)

    async def _look(self) -> None:
        started = self._clock.monotonic()
        self._news = False
        if self._next_end is not None and self._clock.now() > self._next_end:
            await self._reclaim(None)
        place: Place | None = Place()
        while place is not None and not self._backlog.full:
            unit = partial(_scan, now=self._clock.now(), place=place)
            found, place, self._next_due, self._next_end = await self._threads.read(unit)
            self._backlog.note(found)
        self._news = self._news or place is not None
        self._looked_at = self._clock.monotonic()
        self._look_pause = (self._looked_at - started) * LOOK_SHARE

    async def _lease(self, picks: Sequence[Pick]) -> None:
        until = self._lease_end(self._clock.now())
        leased = await self._ledger.lease(picks, token=queue.token(self._holder), until=until)
        self._held.update((one.id, one) for one in leased.deliveries)
        counts = Counter((one.organization_id, one.domain) for one in leased.deliveries)
        for pick in picks:
            if counts[pick.organization_id, pick.domain] < pick.limit:
                self._backlog.drained(pick)
        stopped = [one for one in leased.deliveries if one.id in leased.suppressed]
        for one in stopped:
            self._backlog.took(one.domain, 1)
        self._settle(stopped, {one.id: suppressed(leased.suppressed[one.id]) for one in stopped})
        going = [one for one in leased.deliveries if one.id not in leased.suppressed]
        for group in await self._group(going):
            self._backlog.add(group)

    async def _group(self, deliveries: Sequence[Delivery]) -> list[Group]:
        together: dict[tuple[str, str, str], list[Delivery]] = {}
        for one in deliveries:
            key = one.domain, one.message_id, self._routes.apart(one)
            together.setdefault(key, []).append(one)
        now = self._clock.now()
        return [
            Group(domain, await self._routes.find(members[0], now=now), tuple(members))
            for (domain, *_), members in together.items()
        ]

    def _lease_end(self, now: int) -> int:
        return now + round(self._lease_seconds * SECOND)

    async def _reclaim(self, before: int | None) -> None:
        """Take back leases that ended; before: another time than now, where all holders are dead."""
        now = self._clock.now()
        count = 1
        while count:
            unit = partial(
                queue.reclaim, now=now, before=now if before is None else before, ask=self._asks_in_doubt
            )
            count = await self._threads.write(unit)
            if count:
                log.warning("deliveries taken back from ended leases", count=count)

    async def _sleep(self) -> None:
        seconds = LOOK_SECONDS
        if self._news:
            seconds = max(self._look_pause, 0.01)
        elif self._next_due is not None:
            # A clock that was set back must not make this spin, nor one set forward sleep for years.
            seconds = min(max((self._next_due - self._clock.now()) / SECOND, 0.01), LOOK_SECONDS)
        if self._backlog.next_room_in is not None:
            seconds = min(seconds, max(self._backlog.next_room_in, 0.01))
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            self._news = True

    # Attempts.

    def _dispatch(self) -> None:
        while not self._stopping and (turn := self._backlog.next()) is not None:
            task = asyncio.get_running_loop().create_task(self._attempt(turn))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _attempt(self, turn: Turn) -> None:
        group = turn.group
        outcomes: Outcomes = {}
        try:
            await self._carrier.carry(group, outcomes)
        except LeaseLost:
            log.warning("lease lost before sending", message=group.message_id)
            # Those that are still ours are due again at once; the lost ones are fenced off.
            await self._give_back(self._rest(group, outcomes))
        except Resting as rest:
            await self._put_off(self._rest(group, outcomes), rest)
        except asyncio.CancelledError:
            await self._interrupted(group, self._rest(group, outcomes))
            raise
        except Exception:
            log.exception("attempt failed", message=group.message_id)
            broken = Outcome(DeliveryState.DEFERRED, text="an error in this server", phase="policy")
            rest_of_them = self._rest(group, outcomes)
            self._settle(rest_of_them, {one.id: broken for one in rest_of_them})
        else:
            # Not above: what is settled here is not settled once more by what goes wrong meanwhile.
            self._adapt(turn, outcomes)
            await self._settle_group(group, outcomes)
        finally:
            self._carrier.begun(group)
            self._backlog.ended(turn)
            self._dispatch()
            if not self._stopping and self._backlog.lanes:
                self._wake.set()

    def _rest(self, group: Group, outcomes: Outcomes) -> list[Delivery]:
        """Settle what an attempt that was cut short had come to; returns those of whom it says nothing."""
        told = [one for one in group.deliveries if one.id in outcomes]
        self._settle(told, outcomes)
        return [one for one in group.deliveries if one.id not in outcomes]

    def _adapt(self, turn: Turn, outcomes: Mapping[str, Outcome]) -> None:
        turn.adapt(is_slowed=all(slows_down(one) for one in outcomes.values()))
        if turn.group.hop == BY_MX:
            self._pace.learn(turn.group.domain, next((one.host for one in outcomes.values()), ""))

    async def _settle_group(self, group: Group, outcomes: Outcomes) -> None:
        """Settle an attempt; what our reputation stopped goes by the relay lane, where there is one."""
        stopped: list[Delivery] = []
        if self._routes.lane is not None and group.hop == BY_MX:
            stopped = [one for one in group.deliveries if blames_us(outcomes[one.id])]
        others = [one for one in group.deliveries if one not in stopped]
        self._settle(others, outcomes)
        if not stopped:
            return
        reason = outcomes[stopped[0].id].text
        try:
            await self.keeper.divert(
                scope=Scope.DOMAIN, subject=group.domain, reason=reason, seconds=self._lane_seconds
            )
        except (StorageError, asyncio.CancelledError) as error:
            log.error("not sent by the relay lane", domain=group.domain, problem=str(error))
            self._settle(stopped, outcomes)
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        diverted = [self._diverted(one, outcomes[one.id]) for one in stopped]
        for settlement in diverted:
            self._count(settlement)
        self._ledger.settle(diverted)

    def _diverted(self, delivery: Delivery, outcome: Outcome) -> Settlement:
        text = f"{outcome.text} (refused for this server's reputation: it goes by the relay lane now)"
        return Settlement(
            delivery, replace(outcome, state=DeliveryState.DEFERRED, text=text), self._clock.now()
        )

    def _settle(self, deliveries: Sequence[Delivery], outcomes: Mapping[str, Outcome]) -> None:
        settlements = [self._settlement(one, outcomes[one.id]) for one in deliveries]
        for settlement in settlements:
            self._count(settlement)
        self._ledger.settle(settlements)

    def _count(self, settlement: Settlement) -> None:
        outcome = settlement.outcome
        _log(settlement)
        self.tally.attempt(
            result=outcome.state.value,
            provider=provider_of(outcome.host),
            seconds=outcome.duration / SECOND,
            is_in_doubt=settlement.in_doubt,
        )

    def _settlement(self, delivery: Delivery, outcome: Outcome) -> Settlement:
        unanswerable = is_unanswerable(delivery)
        if outcome.state is not DeliveryState.DEFERRED:
            return Settlement(delivery, outcome, unanswerable=unanswerable, facts=facts_of(outcome))
        due = next_attempt(
            now=self._clock.now(),
            expires_at=delivery.expires_at,
            tries=delivery.tries + 1,
            first=self._settings.retry_first_seconds,
            maximum=self._settings.retry_max_seconds,
            jitter=self._dice.random(),
        )
        if in_doubt(outcome) and (due is not None or self._asks(delivery)):
            return self._doubted(delivery, outcome, due=due)
        if due is None:
            expired = replace(outcome, state=DeliveryState.EXPIRED)
            return Settlement(delivery, expired, unanswerable=unanswerable, facts=facts_of(expired))
        return Settlement(delivery, outcome, due)

    def _asks(self, delivery: Delivery) -> bool:
        return self._asks_in_doubt or delivery.envelope.ask_in_doubt

    def _doubted(self, delivery: Delivery, outcome: Outcome, *, due: int | None) -> Settlement:
        """Return what becomes of a message that the next server may have: sent again, or held for a word."""
        if self._asks(delivery):
            return Settlement(delivery, replace(outcome, state=DeliveryState.HELD), in_doubt=True)
        return Settlement(delivery, outcome, due, in_doubt=True)

    def _on_settled(self, settlements: Sequence[Settlement]) -> None:
        self._release([one.delivery for one in settlements])
        if self._backlog.lanes:
            self._wake.set()

    def _release(self, deliveries: Sequence[Delivery]) -> None:
        for one in deliveries:
            if self._held.pop(one.id, None) is not None:
                self._backlog.settled(one.domain, 1)

    # Leases.

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            held = list(self._held.values())
            try:
                until = self._lease_end(self._clock.now())
                await self._threads.write(partial(queue.renew, held=held, until=until))
            except StorageError as error:
                log.error("leases not renewed", count=len(held), problem=str(error))

    async def _interrupted(self, group: Group, deliveries: Sequence[Delivery]) -> None:
        """Give back a cancelled attempt's leases, or say that what was being sent is in doubt."""
        begun = [one for one in self._carrier.begun(group) if one in deliveries]
        doubtful = Outcome(DeliveryState.DEFERRED, text=queue.IN_DOUBT, phase="final")
        self._ledger.settle([self._doubted(one, doubtful, due=self._clock.now()) for one in begun])
        await asyncio.shield(self._give_back([one for one in deliveries if one not in begun]))

    async def _give_back(self, deliveries: Sequence[Delivery]) -> None:
        await self._hand_back(deliveries, partial(queue.give_back, held=deliveries, at=self._clock.now()))

    async def _hand_back(self, deliveries: Sequence[Delivery], unit: Callable[[Connection], None]) -> None:
        if not deliveries:
            return
        try:
            await self._threads.write(unit)
        except StorageError as error:
            log.error("leases not given back", count=len(deliveries), problem=str(error))
        self._release(deliveries)

    async def _put_off(self, deliveries: Sequence[Delivery], rest: Resting) -> None:
        """Give deliveries back for later, without a try counted: nothing is wrong with them."""
        now = self._clock.now()
        due = now + round(rest.seconds * SECOND)
        until = self._clock.monotonic() + rest.seconds
        for one in deliveries:
            # So that what waits behind them is not leased only to be put off too.
            self._pace.rest(one.organization_id, one.domain, until)
        log.info("put off", count=len(deliveries), reason=str(rest), seconds=rest.seconds)
        unit = partial(queue.put_off, held=deliveries, due=due, reason=str(rest), at=now)
        await self._hand_back(deliveries, unit)


def _forwarding(
    threads: Threads, routing: Routing, settings: DeliverySettings, returning: Returning
) -> Forwarding | None:
    forwards = settings.forwarded_sender == "ours"
    if not forwards and not returning.verp:
        return None
    return Forwarding(
        routing, forwards=forwards, verp=returning.verp, tokens=returning.tokens, threads=threads
    )


def _nothing() -> None:
    """Stand where there is no subscription yet."""


def _scan(
    connection: Connection, *, now: int, place: Place
) -> tuple[list[Lane], Place | None, int | None, int | None]:
    """Return lanes, where to go on, when the next delivery comes due and when the next lease ends."""
    found, further = lanes(connection, now=now, place=place)
    return found, further, next_due(connection, after=now), queue.next_lease_end(connection)


def _log(settlement: Settlement) -> None:
    delivery, outcome = settlement.delivery, settlement.outcome
    log.info(
        "attempt",
        delivery=delivery.id,
        message=delivery.message_id,
        organization=delivery.organization_id,
        state=outcome.state.value,
        attempt=delivery.tries + 1,
        code=outcome.code,
        enhanced=outcome.enhanced,
        phase=outcome.phase,
        host=outcome.host,
        address=outcome.address,
        tls=outcome.tls_version or "",
        tls_policy=outcome.tls_policy,
        seconds=round(outcome.duration / SECOND, 3),
        provider=provider_of(outcome.host),
        in_doubt=settlement.in_doubt,
        next_attempt_at=settlement.next_attempt_at,
    )
