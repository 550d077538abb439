"""The zones of DNS lists: asked within a deadline, and only while they are sane.

Owns the tests of each zone by the entries that every list has or never has, once an hour: a zone
that lists everything, or nothing at all, or does not serve this resolver is passed over and the log
says why, as does one that gives no answer for a while. Answers are the resolver's, cached there.
RFC 5782 2.1, 2.4 (IPv6) and 5 (test entries).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

import structlog

from policies.lists import question
from policies.rules import ListKind
from server import dns_list
from server.dns import DnsFailure, DnsTemporary, Resolver
from server.dns_list import NOTHING, Said

if TYPE_CHECKING:
    from server.clock import Clock

TEST_SECONDS = 3600.0
RETEST_SECONDS = 60.0  # after a test that came to nothing
REST_SECONDS = 60.0
REFUSED_SECONDS = 600.0
FAULTS_LIMIT = 3  # in a row, after which a zone rests
ZONES_LIMIT = 1000

log = structlog.get_logger("lists")


class Family(Enum):
    """What a zone is asked about: addresses of either kind, or names."""

    IPV4 = "IPv4"
    IPV6 = "IPv6"
    NAMES = "names"


# RFC 5782 5: what every list has, and what none has.
LISTED = {Family.IPV4: "127.0.0.2", Family.IPV6: "::ffff:127.0.0.2", Family.NAMES: "test"}
UNLISTED = {Family.IPV4: "127.0.0.1", Family.IPV6: "::ffff:127.0.0.1", Family.NAMES: "invalid"}


@dataclass(slots=True)
class _Zone:
    """What is known of a zone for a family. until: when it is to be tested again."""

    fault: str | None = None  # None: never tested
    until: float = 0.0
    testing: asyncio.Task[None] | None = None
    faults: int = 0
    rests_until: float = 0.0
    is_strange: bool = False


class Zones:
    """Asks DNS lists. counts: answers by zone and kind: listed, unlisted, failed, passed over."""

    def __init__(self, resolver: Resolver, clock: Clock, *, timeout_seconds: float) -> None:
        self._resolver = resolver
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._zones: dict[tuple[str, Family], _Zone] = {}
        self.counts: Counter[tuple[str, ...]] = Counter()

    async def ask(self, zone: str, kind: ListKind, value: str) -> frozenset[str]:
        """Return the codes under which a zone lists an address or domain; none where it is passed over.

        Raises DnsTemporary where it does not answer in time.
        """
        if kind is ListKind.NETWORKS:
            value = _plain(value)
        name = question(kind, zone, value)
        if name is None:
            return NOTHING.codes
        family = _family(kind, value)
        if len(self._zones) >= ZONES_LIMIT and (zone, family) not in self._zones:
            return NOTHING.codes
        known = self._zones.setdefault((zone, family), _Zone())
        if self._clock.monotonic() < known.rests_until:
            return self._counted(zone, "passed over")
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._test(zone, family, known)
                if known.fault:
                    return self._counted(zone, "passed over")
                answer = await self._said(name)
        except (TimeoutError, DnsTemporary) as error:
            self._failed(zone, known)
            raise DnsTemporary(f"{zone}: {type(error).__name__}") from None
        known.faults = 0
        return self._heard(zone, family, known, answer)

    def _counted(self, zone: str, what: str, codes: frozenset[str] = NOTHING.codes) -> frozenset[str]:
        self.counts[zone, what] += 1
        return codes

    def _heard(self, zone: str, family: Family, known: _Zone, answer: Said) -> frozenset[str]:
        if answer.refused:
            self._judge(zone, family, known, "it refuses to answer this resolver", REFUSED_SECONDS)
            return self._counted(zone, "passed over")
        if answer.strange and not known.is_strange:
            known.is_strange = True
            log.warning("DNS list answers what is no code", zone=zone, answer=answer.strange)
        return self._counted(zone, "listed" if answer.codes else "unlisted", answer.codes)

    def _failed(self, zone: str, known: _Zone) -> None:
        self.counts[zone, "failed"] += 1
        known.faults += 1
        if known.faults >= FAULTS_LIMIT:
            # Whoever waits for a list that is gone would hold each client for nothing.
            known.faults = 0
            known.rests_until = self._clock.monotonic() + REST_SECONDS
            log.warning("DNS list does not answer and is passed over", zone=zone, seconds=REST_SECONDS)

    async def _said(self, name: str) -> Said:
        """Return what a name's addresses say; raises DnsTemporary."""
        try:
            return dns_list.said((await self._resolver.resolve(name, "A")).records)
        except DnsTemporary:
            raise
        except DnsFailure:
            return NOTHING

    async def _test(self, zone: str, family: Family, known: _Zone) -> None:
        """Have a zone tested: the first time it is waited for, later the old result holds meanwhile."""
        if self._clock.monotonic() >= known.until and known.testing is None:
            known.testing = asyncio.get_running_loop().create_task(self._run_test(zone, family, known))
        if known.fault is None and known.testing is not None:
            await asyncio.shield(known.testing)

    async def _run_test(self, zone: str, family: Family, known: _Zone) -> None:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                fault = await self._fault(zone, family)
        except (TimeoutError, DnsTemporary):
            self._judge(zone, family, known, "its test entries give no answer", RETEST_SECONDS)
        else:
            self._judge(zone, family, known, fault, TEST_SECONDS)
        finally:
            known.testing = None

    async def _fault(self, zone: str, family: Family) -> str:
        """Return why a zone is of no use, '' where it is sane; raises DnsTemporary."""
        unlisted, listed = await asyncio.gather(
            self._entry(zone, family, UNLISTED), self._entry(zone, family, LISTED)
        )
        if unlisted.refused or listed.refused:
            return "it refuses to answer this resolver"
        if unlisted.codes or unlisted.strange:
            return "it lists everything"
        if not listed.codes and family is Family.IPV6:
            # A list of both kinds need not have the entry twice.
            listed = await self._entry(zone, Family.IPV4, LISTED)
        return "" if listed.codes else "it does not list its test entry"

    async def _entry(self, zone: str, family: Family, entries: dict[Family, str]) -> Said:
        kind = ListKind.DOMAINS if family is Family.NAMES else ListKind.NETWORKS
        name = question(kind, zone, entries[family])
        assert name is not None, "test entries are addresses and names"
        return await self._said(name)

    def _judge(self, zone: str, family: Family, known: _Zone, fault: str, seconds: float) -> None:
        if fault and fault != known.fault:
            log.warning("DNS list passed over", zone=zone, of=family.value, reason=fault)
        elif known.fault and not fault:
            log.info("DNS list is asked again", zone=zone, of=family.value)
        known.fault, known.until = fault, self._clock.monotonic() + seconds
        known.is_strange = False

    def usable(self) -> dict[tuple[str, ...], float]:
        """Return for each zone and family that was tested whether it is asked, as 1 or 0."""
        now = self._clock.monotonic()
        return {
            (zone, family.value): float(not known.fault and now >= known.rests_until)
            for (zone, family), known in self._zones.items()
            if known.fault is not None
        }

    async def close(self) -> None:
        """End the tests under way."""
        tasks = [known.testing for known in self._zones.values() if known.testing is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _plain(value: str) -> str:
    """Return an IPv4 address that is written as an IPv6 one as what it is (RFC 4291 2.5.5.2)."""
    try:
        mapped = IPv6Address(value).ipv4_mapped
    except ValueError:
        return value
    return value if mapped is None else str(mapped)


def _family(kind: ListKind, value: str) -> Family:
    if kind is not ListKind.NETWORKS:
        return Family.NAMES
    return Family.IPV6 if ":" in value else Family.IPV4
