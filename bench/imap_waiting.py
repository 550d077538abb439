"""What sessions that wait cost: memory, and how soon they hear of new mail; and NOOP beside a long FETCH."""

import multiprocessing
import select
import smtplib
import time
from collections.abc import Sequence
from statistics import median, quantiles

from bench import report
from bench.imap_client import ImapClient
from bench.imap_sides import Ours, Side, Theirs

IDLING = 500
NOOPS = 400
NOTICES = 5
_MESSAGE = b"From: a@bench.test\r\nTo: user@bench.test\r\nSubject: new\r\n\r\nnew\r\n"


def waiting_cells(sides: Sequence[Side]) -> list[report.Cell]:
    """Return the cells: KiB an idle session, ms until the last of 500 heard, ms of NOOP."""
    found = {side.name: (*_idling(side), _noop_beside(side)) for side in sides}
    ours, theirs = found[Ours.name], found[Theirs.name]
    names = ("idle-tls-kib", f"notice-{IDLING}", "noop-beside-fetch-p99")
    units = ("KiB PSS a session", "ms until the last knows", "ms")
    return [
        report.Cell(name, mine, other, mine / other, unit)
        for name, unit, mine, other in zip(names, units, ours, theirs, strict=True)
    ]


def _idling(side: Side) -> tuple[float, float]:
    first = side.client()
    first.command(b"SELECT INBOX")
    before = side.pss_octets()
    clients = []
    for _ in range(IDLING):
        client = side.client()
        client.command(b"SELECT INBOX")
        client.idle()
        clients.append(client)
    each = (side.pss_octets() - before) / IDLING / 1024
    took = median(_notice(side, clients) for _ in range(NOTICES))
    for client in (first, *clients):
        client.close()
    return each, took


def _notice(side: Side, clients: list[ImapClient]) -> float:
    """Return the milliseconds from the 250 until all have heard of a message."""
    with smtplib.LMTP("127.0.0.1", side.lmtp_port, timeout=120) as sender:
        sender.sendmail("sender@source.test", ["user@bench.test"], _MESSAGE)
        begin = time.perf_counter()
    waiting = {client.socket.fileno(): client for client in clients}
    poll = select.poll()
    for number in waiting:
        poll.register(number, select.POLLIN)
    while waiting:
        for number, _ in poll.poll(10_000):
            if b"EXISTS" in waiting[number].socket.recv(4096):
                poll.unregister(number)
                del waiting[number]
    took = (time.perf_counter() - begin) * 1000
    for client in clients:
        client.settle()
    return took


def _noop_beside(side: Side) -> float:
    """Return the 99th percentile of NOOP in ms while another session fetches every body."""
    started = multiprocessing.Event()
    other = multiprocessing.Process(target=_fetch_all, args=(side, started), daemon=True)
    other.start()
    started.wait(60)
    client = side.client()
    client.command(b"SELECT Other")
    taken = [client.timed(b"NOOP") for _ in range(NOOPS)]
    client.close()
    other.kill()
    other.join()
    return quantiles(taken, n=100)[98]


def _fetch_all(side: Side, started: object) -> None:
    client = side.client()
    client.command(b"SELECT INBOX")
    started.set()  # type: ignore[attr-defined]  # an Event has no name of its own to annotate with
    while True:
        client.command(b"UID FETCH 1:* (BODY.PEEK[])")
