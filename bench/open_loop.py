"""The load of bench/latency: messages sent when their time has come, not when the one before is done.

Runs as a process of its own. Every connection keeps a transaction begun, up to the 354, as a sender does
that has a message; at a message's moment its content and the final dot go out in one write on a connection
that is free. The moments are those of a Poisson process, whose seed is fixed. A message is late where no
connection is free or this process is: both are part of the time counted from its scheduled moment.
"""

import argparse
import asyncio
import contextlib
import ctypes
import gc
import json
import os
import random
import resource
import sys
import time
from collections import deque
from typing import cast

import uvloop

LEAD_SECONDS = 0.5
PATIENCE_SECONDS = 60.0
_ABSOLUTE = 1  # TFD_TIMER_ABSTIME
BEGIN = b"MAIL FROM:<sender@source.test>\r\n", b"RCPT TO:<%b>\r\n", b"DATA\r\n"


class Timer:
    """The kernel's timer as a descriptor: the loop's own rounds to milliseconds."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def set(self, moment: float) -> None:
        """Make the descriptor readable at a moment of the monotonic clock, at once where it has passed."""
        seconds = int(moment)
        when = (ctypes.c_long * 4)(0, 0, seconds, max(1, int((moment - seconds) * 1e9)))
        if self._libc.timerfd_settime(self.fd, _ABSOLUTE, when, None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def clear(self) -> None:
        """Make the descriptor unreadable again."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 8)


class Load:
    """The schedule, what waits for a connection, and what was measured, in seconds."""

    def __init__(self, *, rate: float, messages: int, octets: int, recipient: str, seed: int) -> None:
        dice = random.Random(seed)
        self._moments: deque[float] = deque()
        moment = 0.0
        for _ in range(messages):
            moment += dice.expovariate(rate)
            self._moments.append(moment)
        self._begin = 0.0
        self._timer = Timer()
        self.messages = messages
        self.recipient = recipient.encode()
        self._waiting: deque[float] = deque()
        self._free: deque[Connection] = deque()
        self._number = 0
        line = b"x" * 70 + b"\r\n"
        self._body = (line * (octets // len(line) + 1))[: octets - 2] + b"\r\n.\r\n"
        self.from_schedule: list[float] = []
        self.from_sending: list[float] = []
        self.lateness: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> float:
        """Send all at their moments; returns the seconds from the first moment to the last answer."""
        loop = asyncio.get_running_loop()
        self._begin = time.monotonic() + LEAD_SECONDS
        loop.add_reader(self._timer.fd, self._send_due)
        self._timer.set(self._begin)
        try:
            async with asyncio.timeout(LEAD_SECONDS + self._moments[-1] + PATIENCE_SECONDS):
                await self.done
        finally:
            loop.remove_reader(self._timer.fd)
        return time.monotonic() - self._begin

    def _send_due(self) -> None:
        self._timer.clear()
        now = time.monotonic() - self._begin
        while self._moments and self._moments[0] <= now:
            self._send(self._begin + self._moments.popleft())
        if self._moments:
            self._timer.set(self._begin + self._moments[0])

    def free(self, connection: "Connection") -> None:
        """Take a connection whose transaction stands at its 354."""
        if self._waiting:
            connection.send(self._waiting.popleft(), self._content())
        else:
            self._free.append(connection)

    def _send(self, moment: float) -> None:
        if self._free:
            self._free.popleft().send(moment, self._content())
        else:
            self._waiting.append(moment)

    def _content(self) -> bytes:
        self._number += 1
        return (
            b"From: <sender@source.test>\r\nTo: <%b>\r\nSubject: message %d\r\n"
            b"Date: Mon, 23 Nov 2026 10:00:00 +0000\r\nMessage-ID: <%d.%d@source.test>\r\n\r\n"
            % (self.recipient, self._number, self._number, time.time_ns())
        ) + self._body

    def answered(self, scheduled: float, sent: float) -> None:
        """Note a 250."""
        now = time.monotonic()
        self.from_schedule.append(now - scheduled)
        self.from_sending.append(now - sent)
        self.lateness.append(sent - scheduled)
        if len(self.from_schedule) == self.messages:
            self.done.set_result(None)

    def failed(self, text: str) -> None:
        """End the load: an answer was not the one that a good message gets."""
        if not self.done.done():
            self.done.set_exception(RuntimeError(text))


class Connection(asyncio.Protocol):
    """One client: sends the next line when the last one is answered."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._left = b""
        self._scheduled = self._sent = 0.0
        begin = [line if b"%" not in line else line % load.recipient for line in BEGIN]
        self._begin = dict(zip(begin, [b"250", b"250", b"354"], strict=True))
        self._lines: deque[tuple[bytes, bytes]] = deque([(b"EHLO source.test\r\n", b"250")])
        self._lines.extend(self._begin.items())
        self._wanted = b"220"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by descent

    def send(self, scheduled: float, content: bytes) -> None:
        """Send a message's content and its final dot, now."""
        assert self._transport is not None
        self._scheduled, self._wanted = scheduled, b"250"
        self._lines.extend(self._begin.items())
        self._sent = time.monotonic()
        self._transport.write(content)

    def data_received(self, data: bytes) -> None:
        *lines, self._left = (self._left + data).split(b"\n")
        for line in lines:
            if line[3:4] == b" ":
                self._answer(line)

    def _answer(self, line: bytes) -> None:
        if line[:3] != self._wanted:
            self._load.failed(f"the server answered {line!r}, not {self._wanted!r}")
            return
        if self._sent:
            self._load.answered(self._scheduled, self._sent)
            self._sent = 0.0
        if self._lines:
            text, self._wanted = self._lines.popleft()
            assert self._transport is not None
            self._transport.write(text)
        else:
            self._load.free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.failed(f"the server closed a connection: {exc}")


async def drive(options: argparse.Namespace) -> dict[str, object]:
    """Run the load; times in milliseconds."""
    loop = asyncio.get_running_loop()
    load = Load(
        rate=options.rate,
        messages=options.messages,
        octets=options.octets,
        recipient=options.recipient,
        seed=options.seed,
    )
    for _ in range(options.connections):
        await loop.create_connection(lambda: Connection(load), "127.0.0.1", options.port)
    # A pause of this process's own collector would be counted as one of the server's.
    gc.collect()
    gc.disable()
    before = resource.getrusage(resource.RUSAGE_SELF)
    taken = await load.run()
    after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": taken,
        "processor_seconds": used,
        "from_schedule": [round(one * 1000, 3) for one in load.from_schedule],
        "from_sending": [round(one * 1000, 3) for one in load.from_sending],
        "lateness": [round(one * 1000, 3) for one in load.lateness],
    }


def main() -> int:
    """Run the load that the arguments say and print what was measured as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--messages", type=int, required=True)
    parser.add_argument("--octets", type=int, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--recipient", required=True)
    parser.add_argument("--seed", type=int, default=1)
    json.dump(uvloop.run(drive(parser.parse_args())), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
