"""How TLS went with other servers: counted by each session, in the database seconds later.

Owns the counting of sessions by recipient domain and UTC day, and the writing of many counts
at once; after a crash the last seconds are missing. A domain that asks for no reports is not
kept. MAX_PENDING kinds wait at most; what is beyond is counted nowhere and logged.
RFC 8460 4.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING

import structlog

from server.dns import DnsFailure, DnsTemporary
from server.transport.tlsrpt import read_record
from storage import report_tables, tls_reports
from storage.errors import StorageError

if TYPE_CHECKING:
    from server.clock import Clock
    from server.dns import Resolver
    from server.threads import Threads
    from server.transport.security import Fault, Reported

FLUSH_SECONDS = 5.0
STOP_SECONDS = 5.0
MAX_PENDING = 20_000
LOOKUPS_AT_ONCE = 50
GRACE_SECONDS = 300  # after a day's end, for what is counted late
MAX_NAME_OCTETS = 253
MAX_LINES = 20  # of a policy that are told: each row holds them

log = structlog.get_logger("transport")


@dataclass(frozen=True, slots=True)
class Session:
    """One session, or the failure of one. host: the MX; address, source: theirs and ours, as far as known."""

    domain: str
    reported: Reported
    fault: Fault | None = None
    host: str = ""
    address: str = ""
    source: str = ""


class TlsResults:
    """Counts sessions, for one process."""

    def __init__(self, *, threads: Threads, resolver: Resolver, clock: Clock, spread_seconds: int) -> None:
        self._threads = threads
        self._resolver = resolver
        self._clock = clock
        self._spread = max(1, spread_seconds)
        self._pending: dict[tuple[int, Session], int] = {}
        self._lost = 0
        self._stop = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to write what is counted."""
        self._stop.clear()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Write what was counted, and end; a DNS that does not answer is not waited for long."""
        self._stop.set()
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=STOP_SECONDS)
            self._task.cancel()
            await asyncio.wait((self._task,))

    def note(self, session: Session) -> None:
        """Count a session; what a server said in its own words is told by a code where there is one."""
        if session.fault is not None and session.fault.code:
            session = replace(session, fault=replace(session.fault, text=""))
        now = self._clock.now()
        kind = (now - now % report_tables.DAY, session)
        if kind in self._pending or len(self._pending) < MAX_PENDING:
            self._pending[kind] = self._pending.get(kind, 0) + 1
        else:
            self._lost += 1

    async def _run(self) -> None:
        while not self._stop.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self._stop.wait()
            try:
                await self.flush()
            except (StorageError, OSError) as error:
                log.error("counts for TLS reports not written, trying again", problem=str(error))
            except Exception:
                log.exception("counts for TLS reports not written")

    async def flush(self) -> None:
        """Write what was counted since the last time; it stays to be written where that fails."""
        async with self._flushing:
            pending, self._pending = self._pending, {}
            lost, self._lost = self._lost, 0
            if lost:
                log.warning("sessions are in no TLS report: too many kinds at once", sessions=lost)
            if not pending:
                return
            try:
                wanted = await self._wanted({session.domain for _, session in pending})
                counted = [
                    self._row(begin_at, session, count)
                    for (begin_at, session), count in pending.items()
                    if session.domain in wanted
                ]
                left_out = await self._threads.write(partial(tls_reports.add, counted=counted))
            except BaseException:
                for kind, count in pending.items():
                    self._pending[kind] = self._pending.get(kind, 0) + count
                raise
            if left_out:
                log.warning("sessions are in no TLS report: too many domains", sessions=left_out)

    async def _wanted(self, domains: set[str]) -> set[str]:
        """Return the domains that ask for reports, or of which that is not known now."""
        slots = asyncio.Semaphore(LOOKUPS_AT_ONCE)

        async def ask(domain: str) -> bool:
            async with slots:
                return await self._asks(domain)

        ordered = sorted(domains)
        answers = await asyncio.gather(*map(ask, ordered))
        return {domain for domain, asks in zip(ordered, answers, strict=True) if asks}

    async def _asks(self, domain: str) -> bool:
        name = f"_smtp._tls.{domain}"
        if len(name) > MAX_NAME_OCTETS:
            return False
        try:
            answer = await self._resolver.resolve(name, "TXT")
        except DnsTemporary:
            return True
        except DnsFailure:
            return False
        return bool(read_record(answer.records))

    def _row(self, begin_at: int, session: Session, count: int) -> tls_reports.Counted:
        policy, fault = _policy(session), _fault(session)
        offset = (
            int.from_bytes(blake2b(session.domain.encode(), digest_size=8).digest(), "big") % self._spread
        )
        end_at = begin_at + report_tables.DAY
        return tls_reports.Counted(
            begin_at=begin_at,
            end_at=end_at,
            due_at=end_at + (GRACE_SECONDS + offset) * report_tables.SECOND,
            domain=session.domain,
            policy=policy,
            fault=fault,
            digest=blake2b(f"{policy}\n{fault}".encode(), digest_size=16).digest(),
            count=count,
        )


def _policy(session: Session) -> str:
    told = session.reported
    return _json(
        {
            "type": told.type.value,
            "domain": told.domain,
            "lines": list(told.lines[:MAX_LINES]),
            "hosts": list(told.hosts[:MAX_LINES]),
        }
    )


def _fault(session: Session) -> str:
    if session.fault is None:
        # How often it went well is told by policy alone (RFC 8460 4.2).
        return ""
    return _json(
        {
            "type": session.fault.type.value,
            "text": session.fault.text[:300],
            "code": session.fault.code[:100],
            "host": session.host,
            "address": session.address,
            "source": session.source,
        }
    )


def _json(facts: Mapping[str, object]) -> str:
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))
