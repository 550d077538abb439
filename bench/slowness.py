"""A good client beside 1,000 slow ones: its worst time from connecting to the 250, and what a slow one costs.

The slow ones say a command, content or a TLS handshake octet by octet, one a second, or read none of the
replies that they asked for. They run in a process of their own; the good client is plain blocking code.
"""

import argparse
import asyncio
import multiprocessing
import smtplib
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from multiprocessing.synchronize import Event
from statistics import median

from bench import disk, report
from bench.appliance import Appliance

CONNECTIONS = 1000
WORST_MILLISECONDS = 1000.0
MESSAGES = 200
QUICK_MESSAGES = 60
LETTER = b"From: a@good.test\r\nTo: user@bench.test\r\nSubject: x\r\n\r\n" + (b"x" * 76 + b"\r\n") * 25
CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
BEGIN = (b"EHLO slow.test", b"MAIL FROM:<a@slow.test>", b"RCPT TO:<user@bench.test>", b"DATA")

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Slow = tuple[asyncio.StreamReader, asyncio.StreamWriter, Iterator[bytes] | None]


def main() -> int:
    """Run the bench; 0 when the good client never waited a second."""
    parser = argparse.ArgumentParser(prog="bench/slow", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_MESSAGES} messages instead of {MESSAGES}"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    options = parser.parse_args()
    with disk.workplace() as (place, described):
        daemon = Appliance(place / "mailagents", port=2600)
        daemon.start()
        try:
            alone = _deliver(daemon.port, 20)
            before = daemon.rss_octets()
            with_slow, octets = _beside_slow(daemon, QUICK_MESSAGES if options.quick else MESSAGES)
        finally:
            daemon.stop()
    worst = max(with_slow)
    cells = [
        report.Cell(
            f"good-beside-{CONNECTIONS}-slow",
            worst,
            WORST_MILLISECONDS,
            worst / WORST_MILLISECONDS,
            f"ms at worst of {len(with_slow)} messages, connection to 250",
        ),
        report.Cell("good-beside-slow-median", median(with_slow), None, None, "ms"),
        report.Cell("good-alone-median", median(alone), None, None, "ms"),
        report.Cell("slow-connection", (octets - before) / CONNECTIONS / 1024, None, None, "KiB each"),
    ]
    report.show(cells, report.machine(**{"file system": described}), as_json=options.json)
    if worst > WORST_MILLISECONDS:
        print("over the limit: the good client waited", file=sys.stderr)
    return int(worst > WORST_MILLISECONDS)


def _deliver(port: int, count: int) -> list[float]:
    """Return the milliseconds that each of so many messages took, on connections of their own."""
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        with smtplib.SMTP("127.0.0.1", port, "good.test", timeout=30) as client:
            client.sendmail("a@good.test", ["user@bench.test"], LETTER)
            times.append((time.perf_counter() - begin) * 1000)
    return times


def _beside_slow(daemon: Appliance, count: int) -> tuple[list[float], int]:
    """Return a good client's milliseconds while all slow ones are there, and the daemon's memory then."""
    context = multiprocessing.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    slow = context.Process(target=_slow, args=(daemon.port, ready, stop), daemon=True)
    slow.start()
    try:
        if not ready.wait(60):
            raise RuntimeError("the slow clients are not served")
        times = _deliver(daemon.port, count)
        octets = daemon.rss_octets()
        if not slow.is_alive():
            raise RuntimeError("a slow client was sent away before the end")
    finally:
        stop.set()
        slow.join(30)
    if slow.exitcode:
        raise RuntimeError("a slow client was sent away before the end")
    return times, octets


def _slow(port: int, ready: Event, stop: Event) -> None:
    asyncio.run(_be_slow(port, ready, stop))


async def _be_slow(port: int, ready: Event, stop: Event) -> None:
    kinds = (_slow_command, _slow_content, _slow_handshake, _slow_reader)
    opened = await asyncio.gather(*(_open(port, kinds[number % 4]) for number in range(CONNECTIONS)))
    ready.set()
    while not stop.is_set():
        for reader, writer, octets in opened:
            if octets is not None:
                if reader.at_eof():
                    raise RuntimeError("sent away")
                writer.write(next(octets))
        await asyncio.sleep(1)


async def _open(port: int, begin: Callable[[Streams], Awaitable[bytes | None]]) -> Slow:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.setblocking(False)
    await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
    streams = await asyncio.open_connection(sock=made, limit=1024)
    await streams[0].readline()
    octets = await begin(streams)
    # A whole round is longer than any measurement.
    return *streams, None if octets is None else (octets[at : at + 1] for at in range(len(octets)))


async def _say(streams: Streams, *lines: bytes) -> None:
    reader, writer = streams
    for line in lines:
        writer.write(line + b"\r\n")
        while (await reader.readline())[3:4] != b" ":
            pass


async def _slow_command(streams: Streams) -> bytes:
    await _say(streams, BEGIN[0])
    return b"NOOP " + b"x" * 450


async def _slow_content(streams: Streams) -> bytes:
    await _say(streams, *BEGIN)
    return b"Subject: a message that never ends " + b"x" * 450


async def _slow_handshake(streams: Streams) -> bytes:
    await _say(streams, BEGIN[0], b"STARTTLS")
    return CLIENT_HELLO


async def _slow_reader(streams: Streams) -> None:
    reader, writer = streams
    reader._transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(b"EHLO slow.test\r\n" * 90)


if __name__ == "__main__":
    sys.exit(main())
