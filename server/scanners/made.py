"""The scanners that the settings name, made.

Owns nothing beyond that; the server and the command line make theirs here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.scanners.clamav import ClamAv
from server.scanners.place import Place
from server.scanners.rspamd import Rspamd
from server.scanners.scanning import Guard, Scanning

if TYPE_CHECKING:
    from server.clock import Clock
    from server.sections_policy import Scanners
    from server.threads import Threads


def make_scanning(settings: Scanners, threads: Threads, clock: Clock, hostname: str) -> Scanning:
    """Return the configured scanners, none of them asked yet; needs a running loop."""
    guards = []
    if settings.clamav_address:
        guards.append(
            Guard(
                ClamAv(Place.parse(settings.clamav_address)),
                clock=clock,
                absence=settings.clamav_if_absent,
                timeout_seconds=settings.clamav_timeout_seconds,
                max_octets=settings.clamav_max_octets,
                concurrency=settings.clamav_concurrency,
            )
        )
    if settings.rspamd_address:
        guards.append(
            Guard(
                Rspamd(Place.parse(settings.rspamd_address), hostname=hostname),
                clock=clock,
                absence=settings.rspamd_if_absent,
                timeout_seconds=settings.rspamd_timeout_seconds,
                max_octets=settings.rspamd_max_octets,
                concurrency=settings.rspamd_concurrency,
            )
        )
    return Scanning(guards, threads)
