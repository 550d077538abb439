"""What attempts came to, counted in memory: by result and provider, how long they took, what was in doubt.

Owns the counts of this process since its start. Providers are PROVIDERS_LIMIT names at most, the rest
are 'other': a stranger who has many domains makes no metrics grow.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

PROVIDERS_LIMIT = 50
OTHER = "other"
BOUNDS_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Tally:
    """Counts of attempts."""

    def __init__(self) -> None:
        self.results: Counter[tuple[str, str]] = Counter()  # result and provider
        self.seconds_sum = 0.0
        self.in_doubt = 0
        self._seconds = [0] * (len(BOUNDS_SECONDS) + 1)
        self._providers: set[str] = set()

    def attempt(self, *, result: str, provider: str, seconds: float, is_in_doubt: bool = False) -> None:
        """Count one delivery's attempt."""
        self.results[result, self._named(provider)] += 1
        self.seconds_sum += seconds
        self._seconds[bisect_left(BOUNDS_SECONDS, seconds)] += 1
        self.in_doubt += is_in_doubt

    def _named(self, provider: str) -> str:
        if provider in self._providers:
            return provider
        if not provider or len(self._providers) >= PROVIDERS_LIMIT:
            return OTHER
        self._providers.add(provider)
        return provider

    def buckets(self) -> Iterable[tuple[str, float]]:
        """Yield the histogram's upper bounds with how many attempts took no longer."""
        count = 0
        for bound, found in zip((*map(str, BOUNDS_SECONDS), "+Inf"), self._seconds, strict=True):
            count += found
            yield bound, float(count)
