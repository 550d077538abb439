"""The first of a host's addresses that takes a TCP connection, IPv6 and IPv4 in turn.

Owns the race: the next address is tried a quarter of a second after the one before, or at once
where that failed, and the first connection that stands ends the others. Speaks no protocol.
RFC 8305 5 (connection attempts), in spirit: the addresses come sorted, and are few.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

DELAY_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Place:
    """Where to connect to, and from; source '' for any of our addresses."""

    address: str
    port: int
    source: str = ""


@dataclass(slots=True)
class Race:
    """How it ended. winner: index of the place that took a connection, None where none did.

    failed: why others did not, by index; one that was still trying is in neither.
    """

    winner: int | None = None
    connected: socket.socket | None = None
    failed: dict[int, OSError] = field(default_factory=dict)


async def race(places: Sequence[Place], *, seconds: float, delay: float = DELAY_SECONDS) -> Race:
    """Return the first connection, within so many seconds for each place; raises nothing of the network's."""
    found = Race()
    waiting = list(enumerate(places))
    running: dict[asyncio.Task[socket.socket], int] = {}
    try:
        while found.winner is None and (waiting or running):
            if waiting:
                index, place = waiting.pop(0)
                running[asyncio.ensure_future(_connect(place, seconds))] = index
            done, _ = await asyncio.wait(
                running, timeout=delay if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                _judge(found, running.pop(task), task)
    finally:
        for task in running:
            task.cancel()
        for late in await asyncio.gather(*running, return_exceptions=True):
            if isinstance(late, socket.socket):
                late.close()
    return found


def _judge(found: Race, index: int, task: asyncio.Task[socket.socket]) -> None:
    error = task.exception()
    if isinstance(error, OSError):
        found.failed[index] = error
    elif error is not None:
        raise error
    elif found.winner is None:
        found.winner, found.connected = index, task.result()
    else:
        task.result().close()


async def _connect(place: Place, seconds: float) -> socket.socket:
    family = socket.AF_INET6 if ":" in place.address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        if place.source:
            made.bind((place.source, 0))
        async with asyncio.timeout(seconds):
            await asyncio.get_running_loop().sock_connect(made, (place.address, place.port))
    except BaseException:
        made.close()
        raise
    return made
