"""What the DNS says of a client and its sender, as facts: lists, reverse names, the EHLO name.

Owns the look-ups of a session, begun as soon as what they are about is known and only where a rule
of a later stage or a setting wants them, so that they cost no time at the end. What is not known in
time counts as not listed: protection never stops mail by its own fault. Keeps what was found for
a minute, CLIENTS at most; the resolver's cache is behind it.
RFC 5782 (DNS lists), RFC 8601 3 (iprev).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import structlog

from policies.rules import ListKind
from server.dns import DnsTemporary, Resolver
from server.mail.address import AddressSyntax, domain_of
from server.names import reverse
from server.names.reverse import TEMPORARY, Reverse, is_name
from server.sockets import Networks
from storage.records import Envelope, Peer, Source

if TYPE_CHECKING:
    from policies.rules import RuleSet
    from server.clock import Clock
    from server.dns_list import DnsList, Lists
    from server.evidence import Facts
    from server.names.zones import Zones
    from server.rulebook import Rulebook
    from storage.records import Verdict

CLIENTS = 10_000
KEPT_SECONDS = 60.0
UNDER_WAY = 2000  # look-ups at once; whoever comes beyond is not asked about
LISTS = frozenset({"dnsbl_listed", "dnsbl_score", "dnsbl_zones", "dnswl_listed", "dnswl_zones"})
REVERSE = frozenset({"reverse_status", "reverse_name", "reverse_names"})
HELO = frozenset({"helo_status"})
DOMAINS = frozenset({"dnsbl_domains"})
NAMES = LISTS | REVERSE | HELO | DOMAINS
# No list has them, and nobody need know which of them there are.
_LOCAL = Networks(
    [
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "::1/128",
        "fe80::/10",
        "fc00::/7",
    ]
)

T = TypeVar("T")

log = structlog.get_logger("clients")


@dataclass(frozen=True, slots=True)
class Listing:
    """What lists say of an address or domain: (zone, weight) of those that have it."""

    blocked: tuple[tuple[str, int], ...] = ()
    allowed: tuple[tuple[str, int], ...] = ()

    def facts(self) -> dict[str, object]:
        """Return the facts about an address."""
        return {
            "dnsbl_listed": bool(self.blocked),
            "dnsbl_score": sum(weight for _, weight in self.blocked),
            "dnsbl_zones": list(dict.fromkeys(zone for zone, _ in self.blocked)),
            "dnswl_listed": bool(self.allowed),
            "dnswl_zones": list(dict.fromkeys(zone for zone, _ in self.allowed)),
        }


UNLISTED = Listing()


class Finding(Generic[T]):
    """What a look-up finds, or what counts where there is none."""

    __slots__ = ("_task", "_value")

    def __init__(self, value: T, task: asyncio.Task[T] | None = None) -> None:
        self._value = value
        self._task = task

    async def wait(self) -> T:
        """Return what is found; the look-up's end is its own affair, whoever waits."""
        task = self._task
        if task is None:
            return self._value
        if not task.done():
            await asyncio.wait((task,))
        return self._value if task.cancelled() else task.result()


class ClientFacts:
    """Looks clients up for a process. says_names: results and Received say a client's name (iprev)."""

    def __init__(
        self,
        *,
        resolver: Resolver,
        zones: Zones,
        rulebook: Rulebook,
        clock: Clock,
        lists: Lists,
        timeout_seconds: float,
        says_names: bool = False,
    ) -> None:
        self._resolver = resolver
        self._zones = zones
        self._rulebook = rulebook
        self._clock = clock
        self._lists = lists
        self._timeout_seconds = timeout_seconds
        self.says_names = says_names
        self._known: OrderedDict[tuple[str, ...], tuple[float, asyncio.Task[Any]]] = OrderedDict()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._rules: RuleSet | None = None
        self._wanted: frozenset[str] = frozenset()
        self._is_full = False

    async def stop(self) -> None:
        """End what is under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._zones.close()

    def _look_at_rules(self) -> frozenset[str]:
        rules = self._rulebook.rules
        if rules is not self._rules:
            asked = {name for index in rules.by_stage.values() for name in index.ahead}
            self._rules, self._wanted = rules, frozenset(asked & NAMES)
        return self._wanted

    def begin(self, peer: Peer, envelope: Envelope | None = None) -> None:
        """Begin what rules will ask about a client, by what is known of it so far; returns at once."""
        wanted = self._look_at_rules()
        if not peer.address or not (wanted or self.says_names):
            return
        if wanted & LISTS:
            self._listing(peer.address)
        if self.says_names or wanted & REVERSE:
            self._reverse(peer)
        if peer.helo and wanted & HELO:
            self._helo(peer)
        if wanted & DOMAINS:
            self._domains(peer, _sender_domain(envelope))

    async def look(self, names: Collection[str], facts: Facts) -> None:
        """Put the values of facts among a stage's facts; waits for the DNS within the deadline."""
        wanted = NAMES.intersection(names)
        case = facts.case
        peer = case.peer
        if not wanted or not peer.address or case.source not in _LOOKED_AT:
            return
        lists = self._listing(peer.address) if wanted & LISTS else None
        named = self._reverse(peer) if wanted & REVERSE else None
        helo = self._helo(peer) if wanted & HELO else None
        domains = self._domains(peer, str(facts["sender_domain"])) if wanted & DOMAINS else None
        if lists is not None:
            facts.update((await lists.wait()).facts())
        if named is not None:
            facts.update(_told(await named.wait()))
        if helo is not None:
            facts["helo_status"] = await helo.wait()
        if domains is not None:
            facts["dnsbl_domains"] = [domain for domain, found in domains if (await found.wait()).blocked]

    async def introduced(self, peer: Peer) -> Peer:
        """Return a client with its confirmed name, where a rule or the setting has it looked up."""
        if peer.reverse_name or not peer.address:
            return peer
        if not (self.says_names or self._look_at_rules() & REVERSE):
            return peer
        name = (await self._reverse(peer).wait()).confirmed
        return replace(peer, reverse_name=name) if name else peer

    async def verdicts(self, peer: Peer) -> tuple[Verdict, ...]:
        """Return the iprev result of a client where results say it."""
        if not self.says_names or not peer.address:
            return ()
        return (reverse.verdict(peer.address, await self._reverse(peer).wait()),)

    # Each of these begins a look-up, or joins the one of the last minute.

    def _listing(self, address: str) -> Finding[Listing]:
        if _LOCAL.covers(address):
            return Finding(UNLISTED)
        return self._shared(("address", address), partial(self._ask_lists, address), UNLISTED)

    def _reverse(self, peer: Peer) -> Finding[Reverse]:
        if peer.reverse_name:
            # A trusted host in front, or a tester by XCLIENT, has looked it up.
            return Finding(Reverse("pass", (peer.reverse_name.lower(),), peer.reverse_name))
        make = partial(self._ask_name, peer.address)
        return self._shared(("reverse", peer.address), make, TEMPORARY)

    def _helo(self, peer: Peer) -> Finding[str]:
        make = partial(self._ask_helo, peer.helo, peer.address)
        return self._shared(("helo", peer.helo.lower(), peer.address), make, "temperror")

    def _domains(self, peer: Peer, sender_domain: str) -> list[tuple[str, Finding[Listing]]]:
        helo = peer.helo.lower().removesuffix(".")
        asked = [domain for domain in dict.fromkeys((sender_domain, helo)) if is_name(domain)]
        return [
            (domain, self._shared(("domain", domain), partial(self._ask_domain, domain), UNLISTED))
            for domain in asked
        ]

    def _shared(
        self, key: tuple[str, ...], make: Callable[[], Coroutine[Any, Any, T]], unknown: T
    ) -> Finding[T]:
        """Return the result of a look-up, begun unless it was lately; unknown: where none can begin."""
        now = self._clock.monotonic()
        known = self._known.get(key)
        if known is not None and known[0] > now:
            return Finding(unknown, known[1])
        if len(self._tasks) >= UNDER_WAY:
            if not self._is_full:
                log.warning("too many clients at once, some are not looked up", limit=UNDER_WAY)
            self._is_full = True
            return Finding(unknown)
        self._is_full = False
        task = asyncio.get_running_loop().create_task(make())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._known[key] = now + KEPT_SECONDS, task
        self._known.move_to_end(key)
        if len(self._known) > CLIENTS:
            self._known.popitem(last=False)
        return Finding(unknown, task)

    async def _ask_lists(self, address: str) -> Listing:
        blocked, allowed = await asyncio.gather(
            self._having(self._lists.block, ListKind.NETWORKS, address),
            self._having(self._lists.allow, ListKind.NETWORKS, address),
        )
        return Listing(blocked, allowed)

    async def _ask_domain(self, domain: str) -> Listing:
        return Listing(await self._having(self._lists.block_domains, ListKind.DOMAINS, domain))

    async def _having(
        self, lists: Sequence[DnsList], kind: ListKind, value: str
    ) -> tuple[tuple[str, int], ...]:
        """Return the zone and weight of the lists that have a value; those that fail have nothing."""
        zones = list(dict.fromkeys(one.zone for one in lists))
        answers = await asyncio.gather(*(self._codes(zone, kind, value) for zone in zones))
        codes = dict(zip(zones, answers, strict=True))
        return tuple((one.zone, one.weight) for one in lists if any(map(one.counts, codes[one.zone])))

    async def _codes(self, zone: str, kind: ListKind, value: str) -> frozenset[str]:
        try:
            return await self._zones.ask(zone, kind, value)
        except DnsTemporary:
            return frozenset()

    async def _ask_name(self, address: str) -> Reverse:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await reverse.look_up(self._resolver, address)
        except TimeoutError:
            return TEMPORARY

    async def _ask_helo(self, helo: str, address: str) -> str:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await reverse.check_helo(self._resolver, helo, address)
        except TimeoutError:
            return "temperror"


# Whom a user or a host of the house sends, no list need say anything about.
_LOOKED_AT = frozenset({Source.MX, Source.LMTP})


def _sender_domain(envelope: Envelope | None) -> str:
    try:
        return domain_of(envelope.reverse_path) if envelope is not None and envelope.reverse_path else ""
    except AddressSyntax:
        return ""


def _told(found: Reverse) -> dict[str, object]:
    return {
        "reverse_status": found.status,
        "reverse_name": found.confirmed.lower(),
        "reverse_names": list(found.names),
    }
