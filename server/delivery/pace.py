"""How fast mail goes to a domain, and to the provider behind many: rates of the settings, hosts learnt.

Owns the arithmetic of the rates, the name of a provider by that of a host, and which provider each
domain was last seen at. Pure: times are arguments, in seconds of a clock that only goes forward.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from server.delivery.window import Window

DOMAINS_LIMIT = 50_000
PROVIDERS_LIMIT = 10_000
PROVIDER_MARK = "mx:"
# A rate may be used ahead for this long, so that ten a minute are not one every six seconds.
BURST_SECONDS = 10.0
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
_RATE = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour|day)")
# Under these a name of two labels is nobody's own: co.uk, com.au.
_SHARED = frozenset({"ac", "co", "com", "edu", "gov", "ne", "net", "or", "org"})


def parse_rate(text: str) -> float:
    """Return recipients a second of '100/minute' and the like; raises ValueError."""
    found = _RATE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no rate: a number of recipients /second, /minute, /hour or /day")
    return int(found[1]) / _SECONDS[found[2]]


def provider_of(host: str) -> str:
    """Return who runs a host, by its name: its last two labels, three under names such as co.uk.

    '' for an address or a name of one label.
    """
    if "." not in host or ":" in host or host.replace(".", "").isdigit():
        return ""
    labels = host.rstrip(".").lower().split(".")
    is_shared = len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in _SHARED
    return ".".join(labels[-3 if is_shared else -2 :])


@dataclass(slots=True)
class Bucket:
    """One rate: what may go now grows with time up to a burst, and may be overdrawn by what is under way."""

    rate: float
    level: float
    at: float

    @property
    def burst(self) -> float:
        """The most that may go at once."""
        return max(1.0, self.rate * BURST_SECONDS)

    def room(self, now: float) -> int:
        """Return how many may go now."""
        self.level = min(self.burst, self.level + (now - self.at) * self.rate)
        self.at = now
        return max(0, int(self.level))

    def take(self, count: int) -> None:
        """Count what goes."""
        self.level -= count

    def wait(self) -> float:
        """Return the seconds from the last look until one may go."""
        return max(0.0, (1.0 - self.level) / self.rate)


@dataclass(slots=True)
class Provider:
    """What many domains share: attempts at once, and how many there may be."""

    window: Window
    attempts: int = 0


class Pace:
    """Rates and providers. rates: by domain, or by provider as 'mx:google.com'."""

    def __init__(self, rates: Mapping[str, str], *, per_provider_concurrency: int) -> None:
        self._rates = {name: parse_rate(text) for name, text in rates.items()}
        self._per_provider = per_provider_concurrency
        self._buckets: dict[str, Bucket] = {}
        self._provider_of: OrderedDict[str, str] = OrderedDict()
        self._providers: OrderedDict[str, Provider] = OrderedDict()
        self._resting: OrderedDict[tuple[str, str], float] = OrderedDict()

    def rest(self, organization_id: str, domain: str, until: float) -> None:
        """Let nothing of an organization go to a domain for a while."""
        self._resting[organization_id, domain] = until
        if len(self._resting) > DOMAINS_LIMIT:
            self._resting.popitem(last=False)

    def rests_for(self, organization_id: str, domain: str, now: float) -> float:
        """Return the seconds for which nothing goes, 0 where it may."""
        if not self._resting:
            return 0.0
        until = self._resting.get((organization_id, domain), 0.0)
        if 0.0 < until <= now:
            del self._resting[organization_id, domain]
        return max(0.0, until - now)

    def learn(self, domain: str, host: str) -> None:
        """Note which host answered for a domain."""
        provider = provider_of(host)
        if not provider:
            return
        self._provider_of[domain] = provider
        self._provider_of.move_to_end(domain)
        if len(self._provider_of) > DOMAINS_LIMIT:
            self._provider_of.popitem(last=False)

    def provider(self, domain: str) -> Provider | None:
        """Return what a domain shares with others, None as long as nobody answered for it."""
        name = self._provider_of.get(domain)
        if name is None:
            return None
        known = self._providers.get(name)
        if known is None:
            known = self._providers[name] = Provider(Window(self._per_provider, size=self._per_provider))
            if len(self._providers) > PROVIDERS_LIMIT:
                self._forget_idle()
        return known

    def _forget_idle(self) -> None:
        for name in [name for name, one in self._providers.items() if not one.attempts][:100]:
            del self._providers[name]

    def _of(self, domain: str, now: float) -> list[Bucket]:
        names = [domain]
        provider = self._provider_of.get(domain)
        if provider is not None:
            names.append(PROVIDER_MARK + provider)
        found = []
        for name in names:
            rate = self._rates.get(name)
            if rate is not None:
                bucket = self._buckets.get(name)
                if bucket is None:
                    bucket = self._buckets[name] = Bucket(rate, max(1.0, rate * BURST_SECONDS), now)
                found.append(bucket)
        return found

    def room(self, domain: str, now: float) -> int | None:
        """Return how many recipients of a domain may go now, None for as many as there are."""
        if not self._rates:
            return None
        return min((bucket.room(now) for bucket in self._of(domain, now)), default=None)

    def take(self, domain: str, count: int, now: float) -> None:
        """Count recipients that go."""
        if self._rates:
            for bucket in self._of(domain, now):
                bucket.take(count)

    def wait(self, domain: str, now: float) -> float:
        """Return the seconds until one recipient of a domain may go."""
        return max((bucket.wait() for bucket in self._of(domain, now)), default=0.0)
