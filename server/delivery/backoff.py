"""When a deferred delivery is tried again. Pure arithmetic: no clock, no dice.

Doubling waits with jitter, from a first to a longest (RFC 5321 4.5.4.1). Decides
nothing about expiry beyond placing the last attempt on it.
"""

from __future__ import annotations

MICROSECONDS = 1_000_000


def next_delay(tries: int, *, first: float, maximum: float, jitter: float) -> float:
    """Return the seconds to wait after the given number of attempts, one at least.

    first, maximum: seconds. jitter: in [0, 1); spreads the wait over its last fifth, never past maximum.
    """
    # 2**60 would pass any maximum; a count beyond it must not make a number of thousands of digits.
    doubled = min(first * 2.0 ** min(max(tries, 1) - 1, 60), maximum)
    return doubled * (1.0 - 0.2 * jitter)


def next_attempt(
    *, now: int, expires_at: int, tries: int, first: float, maximum: float, jitter: float
) -> int | None:
    """Return when to try again in microseconds, or None when the delivery has expired.

    tries: attempts made, this one included. The last attempt falls on the expiry itself, so that no
    delivery expires without having been tried at its end.
    """
    if now >= expires_at:
        return None
    delay = next_delay(tries, first=first, maximum=maximum, jitter=jitter)
    return min(now + round(delay * MICROSECONDS), expires_at)
