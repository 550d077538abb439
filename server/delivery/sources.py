"""Which of our addresses mail leaves from: pools by organization, and new addresses that are warmed up.

Owns the choice and the allowances. A destination keeps to one address of a pool as long as that
has room, so that connections are used again and reputations stay apart.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

from storage.sending import SENT

if TYPE_CHECKING:
    from server.clock import Clock
    from server.counters import Counters
    from server.sections_delivery import Delivery as DeliverySettings

DAY_SECONDS = 86_400
SECOND = 1_000_000
# The allowance doubles every two days; after four weeks there is none.
DOUBLING_DAYS, WARM_DAYS = 2, 28
REST_SECONDS = 600.0


class Resting(Exception):
    """No address has anything left of its allowance; seconds: when to look again."""

    def __init__(self, text: str, seconds: float = REST_SECONDS) -> None:
        super().__init__(text)
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Source:
    """One of our addresses, and what we are called there, '' for this server's name."""

    address: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """What the settings say. names: by address, of the pool without a name; organizations: pool by id.

    warm_up: the first day of addresses that are new; first_day: recipients that may get mail from one then.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    pools: Mapping[str, Sequence[str]] = field(default_factory=dict)
    organizations: Mapping[str, str] = field(default_factory=dict)
    warm_up: Mapping[str, date] = field(default_factory=dict)
    first_day: int = 500


def plan_of(settings: DeliverySettings) -> SourcePlan:
    """Return the plan that the settings make."""
    return SourcePlan(
        names=settings.source_addresses,
        pools=settings.source_pools,
        organizations=settings.organization_pools,
        warm_up=settings.warm_up,
        first_day=settings.warm_up_first_day,
    )


class Sources:
    """Chooses for each attempt."""

    def __init__(self, plan: SourcePlan, *, counters: Counters | None, clock: Clock) -> None:
        self._plan = plan
        self._counters = counters
        self._clock = clock
        self._shared = tuple(
            address for address in plan.names if not any(address in one for one in plan.pools.values())
        )

    async def choose(self, *, organization_id: str, domain: str) -> dict[bool, Source]:
        """Return a source for each family, True for IPv6; one that is absent is the system's choice.

        Raises Resting where a family's addresses have no allowance left.
        """
        addresses = self._pool(organization_id)
        if not addresses:
            return {}
        found: dict[bool, Source] = {}
        for is_wide in (False, True):
            able = [one for one in addresses if (":" in one) is is_wide]
            if able:
                chosen = await self._with_room(able, domain)
                found[is_wide] = Source(chosen, self._plan.names.get(chosen, ""))
        return found

    def _pool(self, organization_id: str) -> Sequence[str]:
        name = self._plan.organizations.get(organization_id)
        return self._plan.pools.get(name, ()) if name is not None else self._shared

    async def _with_room(self, addresses: Sequence[str], domain: str) -> str:
        first = zlib.crc32(domain.encode()) % len(addresses)
        for address in (*addresses[first:], *addresses[:first]):
            allowance = self.allowance(address)
            if allowance is None or await self._used(address) < allowance:
                return address
        raise Resting(f"the addresses {', '.join(addresses)} have used up what they may send in a day")

    def allowance(self, address: str) -> int | None:
        """Return what an address may send in a day now, None for all there is."""
        begun = self._plan.warm_up.get(address)
        if begun is None:
            return None
        days = self._clock.now() // SECOND // DAY_SECONDS - (begun - date(1970, 1, 1)).days
        if days >= WARM_DAYS:
            return None
        doubled = max(0, days) // DOUBLING_DAYS
        return self._plan.first_day << doubled

    async def _used(self, address: str) -> int:
        if self._counters is None:
            return 0
        key = f"source {address}"
        await self._counters.load([(SENT, key)])
        return self._counters.total(SENT, key, seconds=DAY_SECONDS)

    def count(self, address: str, recipients: int) -> None:
        """Count what an address sent."""
        if self._counters is not None and address in self._plan.warm_up:
            self._counters.count(SENT, f"source {address}", recipients)
