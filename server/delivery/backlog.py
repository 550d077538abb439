"""What is known to be due, and whose turn it is: bookkeeping without I/O.

Owns the lanes found by scans, the destinations with their windows and leased
groups, and the choice of what to lease and what to start next: organizations in
turn, then priority, then age; no destination or provider beyond its window or its rate; unproven
destinations never more than half of all.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from server.delivery.pace import Pace, Provider
from server.delivery.window import Window
from storage.lanes import Lane
from storage.queue import Pick

if TYPE_CHECKING:
    from server.delivery.attempt import Group

LANES_LIMIT = 4096
DESTINATIONS_LIMIT = 10_000
PICKS_LIMIT = 32
LEASED_FACTOR = 20


@dataclass(slots=True)
class Destination:
    """One recipient domain: its window, its leased groups, and how much of it is under way."""

    domain: str
    window: Window
    ready: deque[Group] = field(default_factory=deque)
    attempts: int = 0
    leased: int = 0  # deliveries leased and not settled yet

    @property
    def room(self) -> int:
        """How many more deliveries may be leased: none until half of the last ones are done."""
        free = self.window.ahead - self.leased
        return free if 2 * free >= self.window.ahead else 0


@dataclass(frozen=True, slots=True)
class Turn:
    """A group whose attempt begins now. unproven: the destination had not answered yet."""

    destination: Destination
    group: Group
    unproven: bool
    provider: Provider | None = None

    def adapt(self, *, is_slowed: bool) -> None:
        """Note how the attempt went for all who share the destination."""
        windows = [self.destination.window]
        if self.provider is not None:
            windows.append(self.provider.window)
        for window in windows:
            if is_slowed:
                window.failed()
            else:
                window.succeeded()


class Backlog:
    """Lanes by organization, destinations by domain, and the limits that hold for all together."""

    def __init__(
        self,
        *,
        concurrency: int,
        per_domain_concurrency: int,
        pace: Pace | None = None,
        monotonic: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._pace = pace or Pace({}, per_provider_concurrency=concurrency)
        self._monotonic = monotonic
        self.next_room_in: float | None = None  # seconds, where a rate alone held something back
        self.attempts = 0
        self.leased = 0
        self._concurrency = concurrency
        self._per_domain = per_domain_concurrency
        self._lanes: OrderedDict[str, dict[int, dict[str, Lane]]] = OrderedDict()
        self._lane_count = 0
        self._destinations: OrderedDict[str, Destination] = OrderedDict()
        self._waiting: OrderedDict[str, Destination] = OrderedDict()
        self._unproven_attempts = 0

    @property
    def lanes(self) -> int:
        """How many lanes are known."""
        return self._lane_count

    @property
    def full(self) -> bool:
        """Whether no further lane is to be noted for now."""
        return self._lane_count >= LANES_LIMIT

    def note(self, lanes: Sequence[Lane]) -> None:
        """Remember lanes that have something due."""
        for lane in lanes:
            if self.full:
                return
            domains = self._lanes.setdefault(lane.organization_id, {}).setdefault(lane.priority, {})
            self._lane_count += lane.domain not in domains
            domains.setdefault(lane.domain, lane)

    def drained(self, pick: Pick) -> None:
        """Forget a lane that had less than was asked of it."""
        priorities = self._lanes.get(pick.organization_id, {})
        domains = priorities.get(pick.priority, {})
        if domains.pop(pick.domain, None) is not None:
            self._lane_count -= 1
        if not domains:
            priorities.pop(pick.priority, None)
        if not priorities:
            self._lanes.pop(pick.organization_id, None)

    def choose(self) -> list[Pick]:
        """Return what to lease now: a lane of each organization in turn, as far as there is room."""
        self.next_room_in = None
        room = self._concurrency * LEASED_FACTOR - self.leased
        taken: dict[str, int] = {}
        streams = deque((name, self._stream(name, taken)) for name in self._lanes)
        picks: list[Pick] = []
        while streams and room > 0 and len(picks) < PICKS_LIMIT:
            name, stream = streams.popleft()
            pick = next(stream, None)
            if pick is None:
                continue
            pick = replace(pick, limit=min(pick.limit, room))
            picks.append(pick)
            taken[pick.domain] = taken.get(pick.domain, 0) + pick.limit
            room -= pick.limit
            streams.append((name, stream))
            # Whoever was served goes to the end of the line.
            self._lanes.move_to_end(name)
        return picks

    def _stream(self, organization_id: str, taken: Mapping[str, int]) -> Iterator[Pick]:
        """Yield an organization's lanes with room, best priority first, then in the order they were found."""
        priorities = self._lanes[organization_id]
        seen: set[str] = set()
        for priority in sorted(priorities, reverse=True):
            for domain in priorities[priority]:
                if self._rests(organization_id, domain):
                    continue
                room = 0 if domain in seen else self._room(domain) - taken.get(domain, 0)
                if room > 0:
                    # One priority of a domain at a time: what comes back says whether its lane is drained.
                    seen.add(domain)
                    yield Pick(organization_id, domain, priority, room)

    def _rests(self, organization_id: str, domain: str) -> bool:
        wait = self._pace.rests_for(organization_id, domain, self._monotonic())
        if wait:
            self.next_room_in = wait if self.next_room_in is None else min(wait, self.next_room_in)
        return wait > 0

    def _room(self, domain: str) -> int:
        known = self._destinations.get(domain)
        room = known.room if known else Window(self._per_domain).ahead
        now = self._monotonic()
        paced = self._pace.room(domain, now) if room else None
        if paced == 0:
            wait = self._pace.wait(domain, now)
            self.next_room_in = wait if self.next_room_in is None else min(wait, self.next_room_in)
        return room if paced is None else min(room, paced)

    def destination(self, domain: str) -> Destination:
        """Return a domain's destination, made when it is new."""
        known = self._destinations.get(domain)
        if known is None:
            known = self._destinations[domain] = Destination(domain, Window(self._per_domain))
            self._forget_idle()
        return known

    def _forget_idle(self) -> None:
        for domain in list(self._destinations)[: max(0, len(self._destinations) - DESTINATIONS_LIMIT)]:
            if self._destinations[domain].leased == 0:
                del self._destinations[domain]

    def add(self, group: Group) -> None:
        """Put a leased group behind those that wait for the same domain."""
        destination = self.took(group.domain, len(group.deliveries))
        destination.ready.append(group)
        self._waiting[group.domain] = destination

    def took(self, domain: str, count: int) -> Destination:
        """Count deliveries of a domain as leased; returns its destination."""
        destination = self.destination(domain)
        self._pace.take(domain, count, self._monotonic())
        destination.leased += count
        self.leased += count
        return destination

    def next(self) -> Turn | None:
        """Return the group to try now, destinations in turn; None where nothing may start."""
        if self.attempts >= self._concurrency:
            return None
        for domain, destination in list(self._waiting.items()):
            if not self._may_start(destination):
                continue
            group = destination.ready.popleft()
            if destination.ready:
                self._waiting.move_to_end(domain)
            else:
                del self._waiting[domain]
            return self._start(destination, group)
        return None

    def _may_start(self, destination: Destination) -> bool:
        if destination.attempts >= destination.window.size:
            return False
        provider = self._pace.provider(destination.domain)
        if provider is not None and provider.attempts >= provider.window.size:
            return False
        # The sick and the unknown never take more than half of all slots.
        return destination.window.proven or 2 * self._unproven_attempts < self._concurrency

    def _start(self, destination: Destination, group: Group) -> Turn:
        provider = self._pace.provider(destination.domain)
        turn = Turn(destination, group, unproven=not destination.window.proven, provider=provider)
        if provider is not None:
            provider.attempts += 1
        destination.attempts += 1
        self.attempts += 1
        self._unproven_attempts += turn.unproven
        return turn

    def ended(self, turn: Turn) -> None:
        """Free an attempt's slot; its deliveries stay leased until `settled`."""
        turn.destination.attempts -= 1
        if turn.provider is not None:
            turn.provider.attempts -= 1
        self.attempts -= 1
        self._unproven_attempts -= turn.unproven

    def settled(self, domain: str, count: int) -> None:
        """Count deliveries of a domain as no longer leased."""
        self.destination(domain).leased -= count
        self.leased -= count

    def clear_ready(self) -> list[Group]:
        """Take out every group that has not started, to be given back."""
        groups = [group for destination in self._waiting.values() for group in destination.ready]
        for destination in self._waiting.values():
            destination.ready.clear()
        self._waiting.clear()
        return groups
