"""Clients of the MX door by where they come from: how much they may bring, and who guesses at names.

Owns the counts, in memory and bounded, by address (an IPv6 /64) and by the network around
it (/24, /48), over sliding windows; the delay before the greeting of whom nobody knows
yet; and the delays of refusals for who asks for many recipients that do not exist. What
is refused here costs no message of a mail server: it is asked to come back, or was no mail server.
RFC 5321 4.2.2 (421, 451), 4.3.1 (a client waits for the greeting), RFC 3463 (4.7.x).
"""

from __future__ import annotations

import ipaddress
from array import array
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from server.refusal import Refusal
from server.sockets import Networks, network_of, plain_address

if TYPE_CHECKING:
    from server.clock import Clock

COUNTED = 40_000  # addresses and networks together; those that came longest ago are forgotten first
MINUTE, HOUR = 60.0, 3600.0
ACQUAINTED_SECONDS = 7 * 86_400.0
# Where each rate lies in a record: the window's start, its count, the count of the one before.
CONNECTIONS, MESSAGES, RECIPIENTS, UNKNOWN = 0, 3, 6, 9
_WINDOWS = {CONNECTIONS: MINUTE, MESSAGES: HOUR, RECIPIENTS: HOUR, UNKNOWN: HOUR}
_ACQUAINTED = 12  # until when the greeting comes at once
_EMPTY = array("d", bytes(8 * 13))


@dataclass(frozen=True, slots=True)
class StrangerLimits:
    """Limits of one address, 0 for none; a network around it has network_factor times as much.

    greeting_delay_seconds: for who has not waited for a greeting in a week. tarpit_after: unknown
    recipients of an address in an hour that are answered at once.
    """

    exempt_networks: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    connections_per_minute: int = 300
    messages_per_hour: int = 10_000
    recipients_per_hour: int = 20_000
    unknown_recipients_per_hour: int = 300
    network_factor: int = 4
    greeting_delay_seconds: float = 1.0
    tarpit_after: int = 10
    tarpit_step_seconds: float = 0.5
    tarpit_most_seconds: float = 10.0


class Strangers:
    """The counts of one process; addresses are as the connection, or a header in front of it, has them."""

    def __init__(self, clock: Clock, limits: StrangerLimits) -> None:
        self._clock = clock
        self._limits = limits
        self._exempt = Networks(limits.exempt_networks)
        self._records: OrderedDict[str, array[float]] = OrderedDict()
        self.refused: dict[str, int] = {}

    def counts(self, address: str) -> bool:
        """Whether a client is counted: not one of the house, nor one on a Unix socket."""
        return bool(address) and not self._exempt.covers(plain_address(address))

    def connect(self, address: str) -> None:
        """Count a connection; raises Refusal 421 4.7.0 beyond a limit."""
        limits = self._limits
        if self._is_over(address, UNKNOWN, limits.unknown_recipients_per_hour):
            raise self._refuse("unknown_recipients", 421, "4.7.0", "Too many unknown recipients")
        if self._is_over(address, CONNECTIONS, limits.connections_per_minute):
            raise self._refuse("connections", 421, "4.7.0", "Too many connections, try again later")
        self._add(address, CONNECTIONS)

    def message(self, address: str) -> None:
        """Count a message that begins; raises Refusal 451 4.7.1 beyond a limit."""
        if self._is_over(address, MESSAGES, self._limits.messages_per_hour):
            raise self._refuse("messages", 451, "4.7.1", "Too many messages, try again later")
        self._add(address, MESSAGES)

    def recipient(self, address: str) -> None:
        """Count a recipient; raises Refusal 451 4.7.1 beyond a limit."""
        if self._is_over(address, RECIPIENTS, self._limits.recipients_per_hour):
            raise self._refuse("recipients", 451, "4.7.1", "Too many recipients, try again later")
        self._add(address, RECIPIENTS)

    def unknown_recipient(self, address: str) -> float:
        """Count a recipient that does not exist; return for how many seconds its answer is kept back."""
        self._add(address, UNKNOWN)
        limits = self._limits
        over = self._rate(network_of(address), UNKNOWN) - limits.tarpit_after
        if over <= 0:
            return 0.0
        self._note("tarpit")
        return min(limits.tarpit_most_seconds, limits.tarpit_step_seconds * over)

    def greeting_delay(self, address: str) -> float:
        """Return for how many seconds the greeting is kept back."""
        record = self._records.get(network_of(address))
        if record is not None and record[_ACQUAINTED] > self._clock.monotonic():
            return 0.0
        return self._limits.greeting_delay_seconds

    def waited(self, address: str) -> None:
        """Remember a client that waited for its greeting."""
        self._record(network_of(address))[_ACQUAINTED] = self._clock.monotonic() + ACQUAINTED_SECONDS

    def spoke_early(self) -> Refusal:
        """Return the refusal of a client that did not wait: 554 5.5.1 in the greeting's place."""
        return self._refuse("early_talker", 554, "5.5.1", "You spoke before the greeting")

    def _refuse(self, reason: str, code: int, status: str, text: str) -> Refusal:
        self._note(reason)
        return Refusal(code, status, text, reason)

    def _note(self, reason: str) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def _is_over(self, address: str, rate: int, limit: int) -> bool:
        """Whether one more would be too many, of an address or of its network; limit: 0 for none."""
        if not limit:
            return False
        return (
            self._rate(network_of(address), rate) + 1 > limit
            or self._rate(_around(address), rate) + 1 > limit * self._limits.network_factor
        )

    def _add(self, address: str, rate: int) -> None:
        for name in (network_of(address), _around(address)):
            record = self._record(name)
            self._turn(record, rate)
            record[rate + 1] += 1

    def _rate(self, name: str, rate: int) -> float:
        """Return the count of the last window, the one before taken in by the part that still overlaps."""
        record = self._records.get(name)
        if record is None:
            return 0.0
        passed = self._turn(record, rate)
        return record[rate + 1] + record[rate + 2] * (1.0 - passed)

    def _turn(self, record: array[float], rate: int) -> float:
        """Begin a new window where the last is over; return the part of it that has passed."""
        window, now = _WINDOWS[rate], self._clock.monotonic()
        passed = (now - record[rate]) / window
        if passed >= 1.0:
            record[rate + 2] = record[rate + 1] if passed < 2.0 else 0.0
            record[rate + 1] = 0.0
            # The windows follow each other without a gap, or begin anew.
            record[rate] = record[rate] + window if passed < 2.0 else now
            passed = (now - record[rate]) / window
        return passed

    def _record(self, name: str) -> array[float]:
        records = self._records
        record = records.get(name)
        if record is None:
            record = records[name] = _EMPTY[:]
            if len(records) > COUNTED:
                records.popitem(last=False)
        else:
            records.move_to_end(name)
        return record


@lru_cache(maxsize=1024)
def _around(address: str) -> str:
    """Return the network around an address: a /24, or a /48 of IPv6."""
    address = plain_address(address)
    bits = 48 if ":" in address else 24
    return str(ipaddress.ip_network((address, bits), strict=False))
