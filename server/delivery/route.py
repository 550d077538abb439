"""Where a delivery goes: home, by the DNS, to a fixed host, by the relay lane, or nowhere.

Owns the table of next hops and the order in which it is asked: the appliance's own domains
first; then routes set at run time, the narrowest before the wider; then the configuration's by
domain, by the nearest name above it, by organization; then the default. Where that is the DNS
and the lane is on for all, the relay lane. Resolves no name. RFC 5321 5.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from server.next_hop import NextHop, NextHopKind, NextHopSyntax, parse_next_hop
from storage import accounts, rerouting
from storage.rerouting import Rerouted, Scope

if TYPE_CHECKING:
    from server.clock import Clock
    from server.routing import Routing
    from server.threads import Threads
    from storage.records import Delivery, Organization


@dataclass(frozen=True, slots=True)
class Home:
    """The domain is the appliance's own: its mail comes back through intake."""


Route = Home | NextHop
HOME = Home()
BY_MX = NextHop(NextHopKind.MX)
ORGANIZATIONS_LIMIT = 10_000
_ONE = (Scope.DELIVERY, Scope.MESSAGE)


class Routes:
    """Answers which hop serves a delivery; domains are lower-case A-labels or address literals.

    organizations: hops by id, and by name once `name_organizations` has said whose those are. lane: the
    relay lane, '' for none.
    """

    def __init__(
        self,
        *,
        routes: Mapping[str, str],
        default: str,
        routing: Routing,
        organizations: Mapping[str, str] | None = None,
        lane: str = "",
    ) -> None:
        self._routes = {domain: parse_next_hop(text) for domain, text in routes.items()}
        self._organizations = {name: parse_next_hop(text) for name, text in (organizations or {}).items()}
        self._default = parse_next_hop(default)
        self._routing = routing
        self._set: dict[tuple[Scope, str], tuple[NextHop, int | None]] = {}
        self._has_single = False
        self.lane = parse_next_hop(lane) if lane else None

    def name_organizations(self, found: Iterable[Organization]) -> None:
        """Find those that the configuration names."""
        for one in found:
            hop = self._organizations.get(one.name)
            if hop is not None:
                self._organizations.setdefault(one.id, hop)

    @property
    def names_organizations(self) -> bool:
        """Whether an organization has a hop of its own."""
        return bool(self._organizations)

    def put(self, found: Iterable[Rerouted]) -> None:
        """Take the routes that were set at run time, in place of those known."""
        self._set = {}
        for one in found:
            try:
                self._set[one.scope, one.subject] = parse_next_hop(one.hop), one.until
            except NextHopSyntax:
                continue  # of another version
        self._has_single = any(scope in _ONE for scope, _ in self._set)

    def apart(self, delivery: Delivery) -> str:
        """Return what sets a delivery apart from others of its message and domain, '' for nothing."""
        return delivery.id if self._has_single and (Scope.DELIVERY, delivery.id) in self._set else ""

    async def find(self, delivery: Delivery, *, now: int) -> Route:
        """Return the hop of a delivery."""
        if await self._routing.is_local(delivery.domain):
            return HOME
        hop = (self._set and self._rerouted(delivery, now)) or self._configured(delivery)
        if hop.kind is NextHopKind.RELAY:
            return self.lane or BY_MX
        return hop

    def _rerouted(self, delivery: Delivery, now: int) -> NextHop | None:
        places = (
            (Scope.DELIVERY, delivery.id),
            (Scope.MESSAGE, delivery.message_id),
            (Scope.DOMAIN, delivery.domain),
            (Scope.ORGANIZATION, delivery.organization_id),
            (Scope.ALL, ""),
        )
        for scope, subject in places:
            hop, until = self._set.get((scope, subject), (None, None))
            if hop is None or (until is not None and until <= now):
                continue
            if hop.kind is NextHopKind.RELAY and self._configured(delivery).kind is not NextHopKind.MX:
                continue  # the lane stands in for the DNS alone
            return hop
        return None

    def _configured(self, delivery: Delivery) -> NextHop:
        domain = delivery.domain
        exact = self._routes.get(domain)
        if exact is not None:
            return exact
        rest = domain
        while "." in rest and not domain.startswith("["):
            rest = rest.partition(".")[2]
            above = self._routes.get("." + rest)
            if above is not None:
                return above
        return self._organizations.get(delivery.organization_id, self._default)


class RouteKeeper:
    """Keeps a process's routes as the database has them, and sets new ones."""

    def __init__(self, routes: Routes, *, threads: Threads, clock: Clock) -> None:
        self._routes = routes
        self._threads = threads
        self._clock = clock

    async def load(self) -> None:
        """Read what is set."""
        if self._routes.names_organizations:
            unit = partial(accounts.organizations, limit=ORGANIZATIONS_LIMIT)
            self._routes.name_organizations(await self._threads.read(unit))
        self._routes.put(await self._threads.read(partial(rerouting.routes, at=self._clock.now())))

    async def divert(self, *, scope: Scope, subject: str, reason: str, seconds: int) -> None:
        """Send what goes by the DNS through the relay lane for a while."""
        now = self._clock.now()
        route = Rerouted(
            scope, subject, NextHopKind.RELAY.value, "delivery", reason[:500], now, now + seconds * 1_000_000
        )
        await self._threads.write(partial(rerouting.put, route=route))
        await self.load()


def fixed(hop: Route) -> NextHop | None:
    """Return the hop if it names its host, so that the DNS has no say in it."""
    if isinstance(hop, NextHop) and hop.kind in (NextHopKind.SMTP, NextHopKind.LMTP):
        return hop
    return None
