"""Messages a second from a submitter to another server, Mailagents beside Postfix on one file system.

A message counts when the sink has answered its final dot. Postfix relays for loopback to the sink by
relayhost, Mailagents takes submissions by smtp.submission_hosts and sends by default_route.
`relay-sick-destinations` is of Mailagents alone: 130 destinations with and without 70 sick ones beside
them, 50 that answer no SYN and 20 that give a byte of their greeting every ten seconds; the mail to
these lies in the queue and is being tried.
"""

import argparse
import asyncio
import contextlib
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import disk, processor, report
from bench.appliance import Appliance
from bench.postfix import Postfix, version

PAIRS, QUICK_PAIRS = 5, 1
MESSAGES, QUICK_MESSAGES = 5000, 1500
PATIENCE_SECONDS = 180
SENDER, HOST = "user@bench.test", "127.0.0.1"
PORTS = {
    "ours": 2620,
    "signed": 2630,
    "sick": 2640,
    "postfix": 2592,
    "sink": 2655,
    "dead": 2656,
    "tarpit": 2657,
}
HEALTHY, DEAD, TARPITS = 130, 50, 20
EACH, QUICK_EACH = 20, 8
SICK_EACH = 10
GOALS = {"relay-2k-c10": 2.0, "relay-2k-c10-signed": 1.0, "relay-sick-destinations": 0.9}
# Rules count what is sent; here all that counts is how fast.
LIMITS = """
[limits]
key_hour = 100000000
key_day = 100000000
organization_hour = 100000000
organization_day = 100000000
similar_bodies_hour = 100000000
warmup_first_days = 100000000
"""


class Sink:
    """A smtp-sink, and how many messages it has taken."""

    def __init__(self, port: int) -> None:
        self.taken = 0
        command = ["smtp-sink", "-u", "nobody", "-c", f"inet:{HOST}:{port}", "1000"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while told := self._process.stdout.read(4096):
            found = re.findall(rb"mesg=(\d+)", told)
            if found:
                self.taken = int(found[-1])

    def wait(self, wanted: int) -> None:
        """Return once so many messages are there."""
        end = time.monotonic() + PATIENCE_SECONDS
        while self.taken < wanted:
            if time.monotonic() > end:
                raise TimeoutError(f"{self.taken} of {wanted} messages arrived")
            time.sleep(0.005)

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def submission() -> str:
    """Return the settings that let loopback submit without a login."""
    return f'submission_hosts = {{ "{HOST}" = "{SENDER}" }}\n'


def unsigned(daemon: Path) -> None:
    """Take the DKIM keys from a daemon that is down."""
    with contextlib.closing(sqlite3.connect(daemon / "data" / "mailagents.sqlite")) as connection:
        connection.execute("DELETE FROM dkim_keys")
        connection.commit()


def relay(sink: Sink, port: int, messages: int) -> float:
    """Submit over ten connections; returns messages a second until all are at the sink."""
    before, begin = sink.taken, time.perf_counter()
    command = ["smtp-source", "-s", "10", "-m", str(messages), "-l", "2048", "-d"]
    command += ["-f", SENDER, "-t", "someone@sink.test", f"{HOST}:{port}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    sink.wait(before + messages)
    return messages / (time.perf_counter() - begin)


@dataclass
class Party:
    """One server of a cell."""

    server: Appliance | Postfix
    port: int


def measure(
    name: str, ours: Party, theirs: Party | None, sink: Sink, *, quick: bool, facts: dict[str, str]
) -> report.Cell:
    """Return a cell; the two take turns at going first."""
    messages = QUICK_MESSAGES if quick else MESSAGES
    parties = [one for one in (ours, theirs) if one is not None]
    for one in parties:
        relay(sink, one.port, messages // 5)
    before = [processor.tree_seconds(one.server.pid) for one in parties]
    pairs: list[list[float]] = []
    for number in range(QUICK_PAIRS if quick else PAIRS):
        order = list(enumerate(parties))
        rates = [0.0] * len(parties)
        for index, one in reversed(order) if number % 2 else order:
            rates[index] = relay(sink, one.port, messages)
        pairs.append(rates)
    used = [
        (processor.tree_seconds(one.server.pid) - start) * 1000 / (len(pairs) * messages)
        for one, start in zip(parties, before, strict=True)
    ]
    facts[f"processor time a message, {name}"] = " beside ".join(f"{one:.2f} ms" for one in used)
    mine = median(rates[0] for rates in pairs)
    if theirs is None:
        return report.Cell(name, mine, None, None, "messages/s")
    ratio = median(rates[0] / rates[1] for rates in pairs)
    return report.Cell(name, mine, median(rates[1] for rates in pairs), ratio, "messages/s")


# Sick destinations.


def domains(kind: str, count: int) -> list[str]:
    """Return names of destinations."""
    return [f"{kind}{number}.test" for number in range(count)]


def sick_routes() -> str:
    """Return a next hop of its own for each destination, by an address of loopback."""
    lines = []
    for kind, count, port in (("good", HEALTHY, "sink"), ("dead", DEAD, "dead"), ("tar", TARPITS, "tarpit")):
        for number, domain in enumerate(domains(kind, count)):
            # The sink listens on one address; what is apart are the destinations.
            address = HOST if kind == "good" else f"127.0.{1 if kind == 'dead' else 2}.{number + 1}"
            lines.append(f'"{domain}" = "smtp:{address}:{PORTS[port]}"')
    return "\n[delivery.routes]\n" + "\n".join(lines) + "\n"


@contextlib.contextmanager
def sick() -> Iterator[None]:
    """Keep addresses on which no connection comes about, and others where a byte comes every ten seconds."""
    kept: list[socket.socket] = []
    for number in range(DEAD):
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((f"127.0.1.{number + 1}", PORTS["dead"]))
        bound.listen(0)
        # With its queue full the kernel lets further SYNs fall.
        for _ in range(2):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(bound.getsockname())
            kept.append(filler)
        kept.append(bound)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    servers = asyncio.run_coroutine_threadsafe(_tarpits(), loop).result()
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(_close(servers), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for one in kept:
            one.close()


async def _close(servers: Sequence[asyncio.Server]) -> None:
    for one in servers:
        one.close()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _tarpits() -> list[asyncio.Server]:
    async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            for octet in b"220 " + b"x" * 1000:
                writer.write(bytes([octet]))
                await writer.drain()
                await asyncio.sleep(10)

    listeners = []
    for number in range(TARPITS):
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((f"127.0.2.{number + 1}", PORTS["tarpit"]))
        listeners.append(bound)
    return [await asyncio.start_server(drip, sock=bound) for bound in listeners]


def submit(port: int, names: Sequence[str], each: int) -> None:
    """Submit `each` messages to every destination in turn, over ten connections."""
    recipients = [f"someone@{name}" for _ in range(each) for name in names]

    async def work(queue: list[str]) -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        await reader.readuntil(b"\r\n")
        await _ask(reader, writer, b"EHLO localhost\r\n")
        while queue:
            recipient = queue.pop().encode()
            await _ask(reader, writer, b"MAIL FROM:<%b>\r\n" % SENDER.encode())
            await _ask(reader, writer, b"RCPT TO:<%b>\r\n" % recipient)
            await _ask(reader, writer, b"DATA\r\n")
            await _ask(reader, writer, CONTENT)
        writer.close()

    async def all_of_them() -> None:
        await asyncio.gather(*(work(recipients) for _ in range(10)))

    asyncio.run(all_of_them())


CONTENT = (
    b"From: <%b>\r\nTo: undisclosed\r\nSubject: relayed\r\n\r\n" % SENDER.encode()
    + (b"x" * 70 + b"\r\n") * 28
) + b".\r\n"


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: bytes) -> None:
    writer.write(line)
    while (reply := await reader.readuntil(b"\r\n"))[3:4] == b"-":
        pass
    if reply[:1] not in b"23":
        raise RuntimeError(f"{line[:40]!r} was answered {reply!r}")


def measure_sick(ours: Appliance, sink: Sink, *, quick: bool) -> report.Cell:
    """Return the rate of the healthy destinations beside sick ones, over that without."""
    each, port = QUICK_EACH if quick else EACH, ours.port + 1
    good = domains("good", HEALTHY)
    ill = [*domains("dead", DEAD), *domains("tar", TARPITS)]

    def rate() -> float:
        before, begin = sink.taken, time.perf_counter()
        submit(port, good, each)
        sink.wait(before + each * len(good))
        return each * len(good) / (time.perf_counter() - begin)

    rate()
    rounds = 1 if quick else 3
    without = [rate() for _ in range(rounds)]
    submit(port, ill, SICK_EACH)
    beside = [rate() for _ in range(rounds)]
    return report.Cell(
        "relay-sick-destinations", median(beside), median(without), median(beside) / median(without),
        "messages/s to the healthy, beside those without the sick",
    )  # fmt: skip


def measure_all(
    place: Path, *, quick: bool, wanted: Sequence[str]
) -> tuple[list[report.Cell], dict[str, str]]:
    """Return the cells that are wanted."""
    facts = report.machine(postfix=version(), dkim="RSA-2048 and Ed25519, relaxed/relaxed")
    cells: list[report.Cell] = []
    with contextlib.ExitStack() as stack:
        sink = Sink(PORTS["sink"])
        stack.callback(sink.stop)
        hop = f"[{HOST}]:{PORTS['sink']}"
        plain = {"relayhost": hop, "mynetworks": "127.0.0.0/8"}
        theirs = Postfix(place / "postfix", port=PORTS["postfix"], more=plain)
        theirs.start()
        stack.callback(theirs.stop)
        for name in [one for one in wanted if one != "relay-sick-destinations"]:
            kind = "signed" if name.endswith("signed") else "ours"
            more = f'\n[delivery]\ndefault_route = "smtp:{HOST}:{PORTS["sink"]}"\n' + LIMITS
            ours = Appliance(place / kind, port=PORTS[kind], smtp=submission(), more=more)
            if kind == "ours":
                unsigned(place / kind)
            ours.start()
            try:
                cells.append(
                    measure(
                        name,
                        Party(ours, ours.port + 1),
                        Party(theirs, theirs.port),
                        sink,
                        quick=quick,
                        facts=facts,
                    )
                )
            finally:
                ours.stop()
        if "relay-sick-destinations" in wanted:
            stack.enter_context(sick())
            more = "\n[delivery]\nconcurrency = 200\n" + sick_routes() + LIMITS
            daemon = Appliance(place / "sick", port=PORTS["sick"], smtp=submission(), more=more)
            daemon.start()
            try:
                cells.append(measure_sick(daemon, sink, quick=quick))
            finally:
                daemon.stop()
    return cells, facts


def main() -> int:
    """Run the bench; 0 when every cell reached its goal."""
    parser = argparse.ArgumentParser(prog="bench/relay", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one pair a cell")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    parser.add_argument(
        "--cell", action="append", choices=list(GOALS), help="only this cell; may be given again"
    )
    options = parser.parse_args()
    with disk.workplace() as (place, described):
        cells, facts = measure_all(place, quick=options.quick, wanted=options.cell or list(GOALS))
    report.show(cells, {**facts, "file system": described}, as_json=options.json)
    short = [one.name for one in cells if one.ratio is not None and one.ratio < GOALS[one.name]]
    if short:
        print(f"below the goal: {', '.join(short)}", file=sys.stderr)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
