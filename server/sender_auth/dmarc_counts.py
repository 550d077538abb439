"""What aggregate reports are made of: messages counted at the door, in the database seconds later.

Owns the counting of each message once, whether it was taken or refused, and the writing
of many counts at once; after a crash the last seconds are missing. A message that is on
its way to the reporter's own address is not counted: no report is about reports.
MAX_PENDING kinds wait at most; what is beyond is counted nowhere and logged. RFC 9990 3.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from ipaddress import ip_address
from typing import TYPE_CHECKING

import structlog

from server.sender_auth.observed import Observation, Observed, Published, disposition
from storage import dmarc
from storage.errors import StorageError

if TYPE_CHECKING:
    from server.clock import Clock
    from server.threads import Threads
    from storage.records import Action, Envelope, Peer, Verdict

FLUSH_SECONDS = 2.0
MAX_PENDING = 20_000
GRACE_SECONDS = 300  # after a period's end, for what is counted late
MAX_RUA = 2000
SECOND = 1_000_000
REPORT_LOCAL_PART = "dmarc-reports"

log = structlog.get_logger("dmarc")


@dataclass(frozen=True, slots=True)
class _Kind:
    """Messages that one row counts."""

    begin_at: int
    source_ip: str
    disposition: str
    reason: str
    observation: Observation


class DmarcCounts:
    """Counts what verifiers observed, for one process."""

    def __init__(
        self, *, threads: Threads, clock: Clock, address: str, period_seconds: int, spread_seconds: int
    ) -> None:
        self._threads = threads
        self._clock = clock
        self._address = address
        self._period = period_seconds * SECOND
        self._spread = max(1, spread_seconds)
        self._pending: dict[_Kind, int] = {}
        self._lost = 0
        self._stop = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to write what is counted."""
        self._stop.clear()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Write what was counted, and end."""
        self._stop.set()
        if self._task is not None:
            await self._task

    def note(
        self,
        peer: Peer,
        envelope: Envelope,
        verdicts: Sequence[Verdict],
        actions: Sequence[Action] | None,
    ) -> None:
        """Count a message with what was decided on it, by organization; None: it was refused for good."""
        found = verdicts[-1] if verdicts else None
        if not isinstance(found, Observed) or found.observation is None or not peer.address:
            return
        if any(map(self._is_ours, envelope.recipients)):
            return
        now = self._clock.now()
        seen = found.observation
        done, reason = disposition(seen, actions or (), refused=actions is None)
        kind = _Kind(now - now % self._period, peer.address, done, reason, seen)
        if kind in self._pending or len(self._pending) < MAX_PENDING:
            self._pending[kind] = self._pending.get(kind, 0) + 1
        else:
            self._lost += 1

    def _is_ours(self, recipient: object) -> bool:
        address = str(getattr(recipient, "address", "")).lower()
        return address == self._address or address.partition("@")[0] == REPORT_LOCAL_PART

    async def _run(self) -> None:
        while not self._stop.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self._stop.wait()
            try:
                await self.flush()
            except (StorageError, OSError) as error:
                log.error("counts for reports not written, trying again", problem=str(error))
            except Exception:
                log.exception("counts for reports not written")

    async def flush(self) -> None:
        """Write what was counted since the last time; it stays to be written where that fails."""
        async with self._flushing:
            pending, self._pending = self._pending, {}
            lost, self._lost = self._lost, 0
            if lost:
                log.warning("messages are in no DMARC report: too many kinds at once", messages=lost)
            if not pending:
                return
            try:
                counted = await self._threads.compute(self._counted, pending)
                left_out = await self._threads.write(partial(dmarc.add, counted=counted))
            except BaseException:
                for kind, count in pending.items():
                    self._pending[kind] = self._pending.get(kind, 0) + count
                raise
            if left_out:
                log.warning("messages are in no DMARC report: too many domains", messages=left_out)

    def _counted(self, pending: Mapping[_Kind, int]) -> list[dmarc.Counted]:
        return [self._row(kind, count) for kind, count in pending.items()]

    def _row(self, kind: _Kind, count: int) -> dmarc.Counted:
        seen = kind.observation
        domain = seen.published.domain
        source = _address(kind.source_ip)
        facts = json.dumps(_facts(kind), sort_keys=True, separators=(",", ":"))
        end = kind.begin_at + self._period
        offset = blake2b(f"{domain} {kind.begin_at}".encode(), digest_size=8).digest()
        wait = GRACE_SECONDS + int.from_bytes(offset, "big") % self._spread
        return dmarc.Counted(
            begin_at=kind.begin_at,
            end_at=end,
            due_at=end + wait * SECOND,
            domain=domain,
            policy=_policy(seen.published),
            digest=blake2b(f"{source} {facts}".encode(), digest_size=16).digest(),
            source_ip=source,
            facts=facts,
            count=count,
        )


def _address(text: str) -> str:
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return "0.0.0.0"  # noqa: S104  RFC 9990 wants an address; the peer came by a socket that has none
    return str(getattr(found, "ipv4_mapped", None) or found)


def _facts(kind: _Kind) -> dict[str, object]:
    seen = kind.observation
    return {
        "header_from": seen.header_from,
        "envelope_from": seen.envelope_from,
        "disposition": kind.disposition,
        "reason": kind.reason,
        "forwarder": seen.forwarder if kind.reason == "trusted_forwarder" else "",
        "dkim": "pass" if seen.dkim_aligned else "fail",
        "spf": "pass" if seen.spf_aligned else "fail",
        "signatures": seen.signatures,
        "spf_result": seen.spf,
    }


def _policy(published: Published) -> str:
    return json.dumps(
        {
            "p": published.p,
            "sp": published.sp,
            "np": published.np,
            "adkim": published.adkim,
            "aspf": published.aspf,
            "fo": published.fo,
            "testing": published.is_testing,
            "rua": published.rua[:MAX_RUA],
        },
        sort_keys=True,
    )
