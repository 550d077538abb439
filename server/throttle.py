"""Who has failed to log in too often: by network, and by account whoever asks.

Owns the counts, in memory and bounded, and nothing about secrets. A network that
fails too often waits, whatever names it tries. An account that is guessed at from
many networks is closed to strangers for a while, never to a network that its owner
logged in from lately. Names that no account has are counted like any other.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from server.refusal import Refusal
from server.sockets import network_of

if TYPE_CHECKING:
    from server.clock import Clock

WINDOW_SECONDS = 300
NETWORK_FAILURES = 20
ACCOUNT_FAILURES = 60
COUNTED = 50_000  # networks and accounts, each; those that failed longest ago are forgotten first
KNOWN = 50_000
KNOWN_SECONDS = 30 * 86_400


class Throttle:
    """The counts of one process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._networks: OrderedDict[str, list[float]] = OrderedDict()
        self._accounts: OrderedDict[str, list[float]] = OrderedDict()
        self._known: OrderedDict[tuple[str, str], float] = OrderedDict()

    def require(self, peer: str, account: str = "") -> None:
        """Raise Refusal 454 4.7.0 where this peer, or a stranger to this account, must wait."""
        network = network_of(peer)
        if self._recent(self._networks, network) >= NETWORK_FAILURES:
            raise Refusal(454, "4.7.0", "Too many failed logins, try again later", f"peer {peer}")
        if (
            account
            and self._recent(self._accounts, account) >= ACCOUNT_FAILURES
            and self._known.get((account, network), 0.0) <= self._clock.monotonic()
        ):
            raise Refusal(454, "4.7.0", "Too many failed logins, try again later", "account guessed at")

    def failed(self, peer: str, account: str = "") -> None:
        """Count a failure."""
        now = self._clock.monotonic()
        _count(self._networks, network_of(peer), now, NETWORK_FAILURES)
        if account:
            _count(self._accounts, account, now, ACCOUNT_FAILURES)

    def succeeded(self, peer: str, account: str) -> None:
        """Remember a network as one that the account's owner comes from."""
        key = account, network_of(peer)
        self._known[key] = self._clock.monotonic() + KNOWN_SECONDS
        self._known.move_to_end(key)
        if len(self._known) > KNOWN:
            self._known.popitem(last=False)

    def _recent(self, table: OrderedDict[str, list[float]], name: str) -> int:
        moments = table.get(name)
        if not moments:
            return 0
        horizon = self._clock.monotonic() - WINDOW_SECONDS
        recent = [moment for moment in moments if moment > horizon]
        if recent:
            table[name] = recent
        else:
            del table[name]
        return len(recent)


def _count(table: OrderedDict[str, list[float]], name: str, now: float, most: int) -> None:
    moments = table.setdefault(name, [])
    moments.append(now)
    del moments[:-most]
    table.move_to_end(name)
    if len(table) > COUNTED:
        table.popitem(last=False)
