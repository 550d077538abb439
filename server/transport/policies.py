"""MTA-STS policies of other domains: looked up, fetched, remembered, and fetched anew in time.

Owns when a policy is fetched, which one counts meanwhile, and how long a failure is held
against a host: RETRY_SECONDS, in which it is not asked again. Memory and database are
bounded. A policy that is kept counts until its max_age ends, whatever becomes of record and
host; where nothing is kept and nothing can be had there is none. RFC 8461 3.1, 3.3, 5.1.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import structlog

from server.dns import DnsFailure, DnsTemporary
from server.transport.fetching import FetchFailed
from server.transport.mtasts import Mode, Policy, PolicySyntax, read_policy, read_record
from storage import tls_policies
from storage.errors import StorageError
from storage.tls_policies import Kept

if TYPE_CHECKING:
    from server.clock import Clock
    from server.dns import Resolver
    from server.threads import Threads
    from server.transport.fetching import PolicyFetcher
    from server.transport.security import Fault

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
MEMORY_LIMIT = 5000
FETCHES_AT_ONCE = 50
# RFC 8461 3.3: five minutes and more after a failure.
RETRY_SECONDS = 300
LOOK_SECONDS = 900.0
REFRESH_PAGE = 50
USED_LATELY = 30 * DAY
MAX_DOMAIN_OCTETS = 253 - len("_mta-sts.")

log = structlog.get_logger("transport")


@dataclass(frozen=True, slots=True)
class Sts:
    """What is known of a domain. policy: None for none; fault: what kept a newer one from us.

    is_unknown: the DNS or the host did not say, so that there may be a policy.
    """

    policy: Policy | None = None
    fault: Fault | None = None
    is_unknown: bool = False
    is_cached: bool = False


@dataclass(slots=True)
class _Entry:
    """What memory holds of a domain: what is kept, read, and until when nothing is asked for."""

    kept: Kept | None
    policy: Policy | None
    not_before: float = 0.0
    fault: Fault | None = None


class StsPolicies:
    """Answers which policy a domain has now, from start to stop."""

    def __init__(self, *, resolver: Resolver, fetcher: PolicyFetcher, threads: Threads, clock: Clock) -> None:
        self._resolver = resolver
        self._fetcher = fetcher
        self._threads = threads
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(FETCHES_AT_ONCE)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to fetch anew what is due."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End; no fetch is waited for."""
        tasks = [*self._fetching.values(), *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def find(self, domain: str) -> Sts:
        """Return a domain's policy; waits for a fetch where nothing is kept. Raises nothing for strangers."""
        if len(domain) > MAX_DOMAIN_OCTETS or "." not in domain:
            return Sts()
        record_id, is_unknown = await self._record(domain)
        entry = await self._entry(domain)
        self._expire(entry)
        if record_id is not None and (entry.kept is None or entry.kept.record_id != record_id):
            await self._fetch(domain, record_id)
            entry = self._entries.get(domain, entry)
        if entry.kept is None:
            fault = entry.fault if record_id is not None else None
            return Sts(None, fault, is_unknown or fault is not None)
        self._note_use(domain, entry.kept)
        policy = entry.policy if entry.policy is not None and entry.policy.mode is not Mode.NONE else None
        is_stale = record_id is not None and entry.kept.record_id != record_id
        return Sts(policy, entry.fault if is_stale else None, is_cached=record_id is None or is_stale)

    async def _record(self, domain: str) -> tuple[str | None, bool]:
        """Return the id of a domain's record, and whether that is not known."""
        try:
            answer = await self._resolver.resolve(f"_mta-sts.{domain}", "TXT")
        except DnsTemporary:
            return None, True
        except DnsFailure:
            return None, False
        return read_record(answer.records), False

    async def _entry(self, domain: str) -> _Entry:
        known = self._entries.get(domain)
        if known is not None:
            self._entries.move_to_end(domain)
            return known
        try:
            kept = await self._threads.read(partial(tls_policies.find, domain=domain))
        except StorageError as error:
            log.error("a kept MTA-STS policy is not read", domain=domain, problem=str(error))
            return _Entry(None, None)
        known = self._entries.get(domain)
        if known is not None:
            return known  # read, or fetched, by somebody else meanwhile
        policy = _read(kept)
        return self._remember(domain, _Entry(kept if policy is not None else None, policy))

    def _remember(self, domain: str, entry: _Entry) -> _Entry:
        self._entries[domain] = entry
        self._entries.move_to_end(domain)
        if len(self._entries) > MEMORY_LIMIT:
            self._entries.popitem(last=False)
        return entry

    def _expire(self, entry: _Entry) -> None:
        if entry.kept is not None and entry.kept.expires_at <= self._clock.now():
            entry.kept, entry.policy = None, None

    async def _fetch(self, domain: str, record_id: str) -> None:
        """Fetch a policy, once for all who ask at one time; what comes of it is in memory."""
        task = self._fetching.get(domain)
        if task is None:
            entry = self._entries.get(domain)
            if entry is not None and entry.not_before > self._clock.monotonic():
                return
            task = asyncio.get_running_loop().create_task(self._fetch_now(domain, record_id))
            self._fetching[domain] = task
            task.add_done_callback(lambda _: self._fetching.pop(domain, None))
        # One who gives up must not take the others' fetch along.
        await asyncio.shield(task)

    async def _fetch_now(self, domain: str, record_id: str) -> None:
        try:
            async with self._slots:
                policy = await self._fetcher.fetch(domain)
        except FetchFailed as failure:
            self._note_failure(domain, failure.fault)
            return
        except Exception:
            log.exception("an MTA-STS policy is not fetched", domain=domain)
            return
        now = self._clock.now()
        age = policy.max_age * SECOND
        kept = Kept(
            domain, record_id, policy.text, now, now + age, refresh_at=now + min(DAY, age // 2), used_at=now
        )
        self._remember(domain, _Entry(kept, policy))
        await self._write(partial(tls_policies.keep, kept=kept))
        log.info("MTA-STS policy fetched", domain=domain, mode=policy.mode.value, seconds=policy.max_age)

    def _note_failure(self, domain: str, fault: Fault) -> None:
        entry = self._entries.get(domain) or _Entry(None, None)
        entry.fault = fault
        entry.not_before = self._clock.monotonic() + RETRY_SECONDS
        self._remember(domain, entry)
        log.warning("no MTA-STS policy", domain=domain, problem=fault.text, result=fault.type.value)

    def _note_use(self, domain: str, kept: Kept) -> None:
        """Write down, once an hour at most, that a policy is of use, so that it is fetched anew in time."""
        now = self._clock.now()
        if now - kept.used_at < HOUR:
            return
        entry = self._entries.get(domain)
        if entry is not None:
            entry.kept = replace(kept, used_at=now)
        task = asyncio.get_running_loop().create_task(
            self._write(partial(tls_policies.note_used, domain=domain, at=now))
        )
        self._fetching[f" {domain}"] = task  # no domain begins with a space
        task.add_done_callback(lambda _: self._fetching.pop(f" {domain}", None))

    async def _write(self, unit: Callable[..., None]) -> None:
        try:
            await self._threads.write(unit)
        except StorageError as error:
            log.error("an MTA-STS policy is not written", problem=str(error))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.refresh()
            except (StorageError, OSError) as error:
                log.error("MTA-STS policies are not looked through", problem=str(error))
            except Exception:
                log.exception("MTA-STS policies are not looked through")

    async def refresh(self) -> None:
        """Fetch anew, before they expire, policies that were of use lately, and forget the expired ones."""
        now = self._clock.now()
        while await self._threads.write(partial(tls_policies.prune, at=now)):
            pass
        page = await self._threads.read(
            partial(tls_policies.due, at=now, used_since=now - USED_LATELY, limit=REFRESH_PAGE)
        )
        for kept in page:
            await self._write(partial(tls_policies.postpone, domain=kept.domain, refresh_at=now + HOUR))
            record_id, _ = await self._record(kept.domain)
            if record_id is not None:
                await self._entry(kept.domain)
                await self._fetch(kept.domain, record_id)


def _read(kept: Kept | None) -> Policy | None:
    if kept is None:
        return None
    try:
        return read_policy(kept.policy.encode("utf-8"))
    except PolicySyntax:
        return None  # a form of some other version of this program: as if nothing were kept
