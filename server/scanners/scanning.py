"""The scans of messages: which scanner is asked when, within which limits, and what its absence means.

Owns deadline, size limit and concurrency of each scanner, the rest that one gets which does
not answer, and the scans of one message from their beginning to their end. Decides nothing:
rules read the facts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

import structlog

from policies.facts import SCANNER_FACTS
from server.scanners import findings
from server.scanners.request import Held, Lying, Request, Scanner, ScannerFault
from storage.records import Envelope, Peer, Spooled, Verdict

if TYPE_CHECKING:
    from server.clock import Clock
    from server.threads import Threads

FAULTS_LIMIT = 3  # in a row, after which a scanner rests
REST_SECONDS = 5.0

log = structlog.get_logger("scanners")


class Guard:
    """One scanner within its limits. absence: 'accept', 'defer' or 'tag', for rules to read."""

    def __init__(
        self,
        scanner: Scanner,
        *,
        clock: Clock,
        absence: str,
        timeout_seconds: float,
        max_octets: int,
        concurrency: int,
    ) -> None:
        self.name = scanner.name
        self._scanner = scanner
        self._clock = clock
        self._absence = absence
        self._timeout_seconds = timeout_seconds
        self._max_octets = max_octets
        self._slots = asyncio.Semaphore(concurrency)
        self._faults = 0
        self._rests_until = 0.0

    async def scan(self, request: Request) -> Verdict:
        """Return the scanner's verdict, or that it is absent or the message too large; never raises."""
        if request.octets.count > self._max_octets:
            return findings.too_large(self.name, request.octets.count)
        if self._clock.monotonic() < self._rests_until:
            # Who waits for a scanner that hangs would hold its client for nothing.
            return self._absent("not asked: it did not answer lately")
        try:
            async with asyncio.timeout(self._timeout_seconds), self._slots:
                found = await self._scanner.scan(request)
        except TimeoutError:
            return self._failed(f"no answer within {self._timeout_seconds:g} seconds")
        except (OSError, ScannerFault, EOFError) as error:
            return self._failed(f"{type(error).__name__}: {error}")
        if self._faults >= FAULTS_LIMIT:
            log.info("scanner answers again", scanner=self.name)
        self._faults = 0
        return found

    def _failed(self, reason: str) -> Verdict:
        self._faults += 1
        if self._faults >= FAULTS_LIMIT:
            self._rests_until = self._clock.monotonic() + REST_SECONDS
        if self._faults in (1, FAULTS_LIMIT):
            log.warning("scanner does not answer", scanner=self.name, reason=reason)
        return self._absent(reason)

    def _absent(self, reason: str) -> Verdict:
        return findings.absent(self.name, absence=self._absence, reason=reason)


class Scanning:
    """The configured scanners of a process."""

    def __init__(self, guards: Iterable[Guard], threads: Threads) -> None:
        self.guards = {guard.name: guard for guard in guards}
        self._threads = threads

    async def begin(
        self,
        wanted: Collection[str],
        *,
        peer: Peer,
        envelope: Envelope,
        content: bytes | Spooled,
        queue_id: str = "",
        user: str = "",
    ) -> Scans:
        """Begin the scans that these facts need and return at once; end() must follow. OSError."""
        octets: Held | Lying
        if isinstance(content, bytes):
            octets = Held(content)
        else:
            path = self._threads.store.read_spooled(content)
            octets = await Lying.open(self._threads, path, content.octets)
        scans = Scans(self.guards, Request(peer, envelope, octets, queue_id, user), octets)
        scans.start(wanted)
        return scans


class Scans:
    """The scans of one message. known: facts by name, of those that have been waited for."""

    def __init__(self, guards: dict[str, Guard], request: Request, octets: Held | Lying) -> None:
        self._guards = guards
        self._request = request
        self._octets = octets
        self._tasks: dict[str, asyncio.Task[Verdict]] = {}
        self._verdicts: dict[str, Verdict] = {}
        self.known: dict[str, object] = {
            name: value
            for name, value in findings.NOT_CONFIGURED.items()
            if not guards.keys() & set(SCANNER_FACTS[name])
        }

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """What the scanners said that rules asked for."""
        return tuple(self._verdicts.values())

    def start(self, wanted: Collection[str]) -> None:
        """Begin what these facts need and is not under way."""
        for name in self._needed(wanted):
            if name not in self._tasks:
                scan = self._guards[name].scan(self._request)
                self._tasks[name] = asyncio.get_running_loop().create_task(scan)

    async def look(self, wanted: Collection[str]) -> None:
        """Wait for what these facts need, and know them."""
        names = self._needed(wanted)
        self.start(wanted)
        for name in names:
            if name not in self._verdicts:
                found = self._verdicts[name] = await self._tasks[name]
                self.known |= findings.facts_of(found)
                log.info("scanned", scanner=name, result=found.result, reason=found.reason)
        if "scanner_absence" in wanted:
            self.known["scanner_absence"] = findings.absence_of(self._verdicts.values())

    def _needed(self, wanted: Collection[str]) -> list[str]:
        needed = {name for fact in wanted for name in SCANNER_FACTS.get(fact, ())}
        return [name for name in self._guards if name in needed]

    async def end(self) -> None:
        """End what nobody waits for any more, and let the file go."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                await asyncio.wait(tasks)
        finally:
            await self._octets.close()
