"""Whether our own addresses are on a block list; while one is, all mail goes by the relay lane.

Owns when that is looked for, and the route that stands for it. A list that does not answer
changes nothing. RFC 5782 (DNS lists).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

from policies.rules import ListKind
from server.dns import DnsTemporary
from server.turns import Turns
from storage.rerouting import Scope

if TYPE_CHECKING:
    from server.delivery.route import RouteKeeper
    from server.names.zones import Zones

LOOK_SECONDS = 600.0
# Longer than the time between looks: one that fails does not send mail back into a wall.
KEPT_SECONDS = 1800

log = structlog.get_logger("blocklists")


class BlockLists:
    """Looks for addresses in zones, every ten minutes."""

    def __init__(
        self, *, zones: Zones, lists: Sequence[str], addresses: Sequence[str], keeper: RouteKeeper
    ) -> None:
        self._zones = zones
        self._lists = tuple(lists)
        self._addresses = tuple(addresses)
        self._keeper = keeper
        self._turns = Turns("looking for our addresses in block lists", self.turn, seconds=LOOK_SECONDS)

    async def start(self) -> None:
        """Begin to look, at once."""
        if self._lists and self._addresses:
            self._turns.start()

    async def stop(self) -> None:
        """End."""
        await self._turns.stop()

    async def turn(self) -> None:
        """Look once."""
        found = [
            f"{address} is listed by {zone}: {', '.join(sorted(codes))}"
            for address in self._addresses
            for zone in self._lists
            if (codes := await self._codes(zone, address))
        ]
        if found:
            reason = "; ".join(found)
            log.warning("mail goes by the relay lane", reason=reason)
            await self._keeper.divert(scope=Scope.ALL, subject="", reason=reason, seconds=KEPT_SECONDS)

    async def _codes(self, zone: str, address: str) -> frozenset[str]:
        try:
            return await self._zones.ask(zone, ListKind.NETWORKS, address)
        except DnsTemporary:
            return frozenset()
