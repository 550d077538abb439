"""Where a recipient domain's mail goes: home, by the DNS, to a fixed host, or nowhere.

Owns the table of configured next hops and the order in which it is asked: the
appliance's own domains first, then the domain, then the nearest name above it,
then the default. Resolves no name. RFC 5321 5.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.next_hop import NextHop, NextHopKind, parse_next_hop

if TYPE_CHECKING:
    from server.routing import Routing


@dataclass(frozen=True, slots=True)
class Home:
    """The domain is the appliance's own: its mail comes back through intake."""


Route = Home | NextHop
HOME = Home()


class Routes:
    """Answers which hop serves a domain (lower-case A-labels or an address literal)."""

    def __init__(self, *, routes: Mapping[str, str], default: str, routing: Routing) -> None:
        self._routes = {domain: parse_next_hop(text) for domain, text in routes.items()}
        self._default = parse_next_hop(default)
        self._routing = routing

    async def find(self, domain: str) -> Route:
        """Return the hop of a domain."""
        if await self._routing.is_local(domain):
            return HOME
        return self._configured(domain)

    def _configured(self, domain: str) -> NextHop:
        exact = self._routes.get(domain)
        if exact is not None:
            return exact
        rest = domain
        while "." in rest and not domain.startswith("["):
            rest = rest.partition(".")[2]
            above = self._routes.get("." + rest)
            if above is not None:
                return above
        return self._default


def fixed(hop: Route) -> NextHop | None:
    """Return the hop if it names its host, so that the DNS has no say in it."""
    if isinstance(hop, NextHop) and hop.kind in (NextHopKind.SMTP, NextHopKind.LMTP):
        return hop
    return None
