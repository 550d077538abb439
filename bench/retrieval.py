"""IMAP beside Dovecot: the same 10,000 messages (72 MB), the same commands, over TLS, in one run.

Each round asks both, in turn first. Warm: a new session of a daemon that has served the folder
before. Cold: both daemons started anew, Dovecot's indexes as its own LMTP delivery left them.
Milliseconds; the ratio is ours over theirs, the median over the rounds.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median

from bench import disk, report
from bench.imap_client import ImapClient, Refused
from bench.imap_sides import Ours, Side, Theirs
from bench.imap_waiting import waiting_cells

MESSAGES = 10_000
ROUNDS, QUICK_ROUNDS = 5, 2
MOVED = 1000
APPENDED, MULTI = 50, 20
APPENDED_MESSAGE = (
    b"From: a@bench.test\r\nTo: user@bench.test\r\nSubject: appended\r\n"
    b"Date: Mon, 1 Jun 2026 10:00:00 +0000\r\nMessage-ID: <a@bench.test>\r\n\r\n"
    + b"A line of text that is appended.\r\n"
    * 55
)
ENVELOPE = b"UID FETCH 1:* (UID FLAGS ENVELOPE INTERNALDATE RFC822.SIZE)"
STRUCTURE = b"UID FETCH 1:* (BODYSTRUCTURE)"
HEADERS = (
    b"UID FETCH 1:* (BODY.PEEK[HEADER.FIELDS (DATE FROM TO CC SUBJECT MESSAGE-ID REFERENCES IN-REPLY-TO "
    b"REPLY-TO LIST-ID CONTENT-TYPE)])"
)
SELECT = b"SELECT INBOX"

# Ours over Dovecot's at most.
GOALS = {
    "select-warm": 0.2,
    "select-cold": 0.5,
    "flags-warm": 1.0,
    "envelope-warm": 0.8,
    "envelope-cold": 0.25,
    "bodystructure-warm": 0.9,
    "bodystructure-cold": 0.2,
    "headers-warm": 1.2,
    "headers-cold": 0.4,
    "bodies": 0.8,
    "search-text": 0.2,
    "search-from": 1.0,
    "sort-date": 1.2,
    "thread": 1.2,
    "store-all": 0.5,
    "copy": 1.0,
    "move": 0.7,
    "expunge": 1.0,
    "qresync": 0.3,
    "append-durable": 0.8,
    "append-multi": 1.0,
    "idle-tls-kib": 0.1,
}
READING: dict[str, tuple[bytes, ...]] = {
    "flags-warm": (b"UID FETCH 1:* (FLAGS)",),
    "envelope-warm": (ENVELOPE,),
    "bodystructure-warm": (STRUCTURE,),
    "headers-warm": (HEADERS,),
    "bodies": (b"UID FETCH 3001:3500 (BODY.PEEK[])",),
    "search-text": (b"SEARCH TEXT zanzibar", b"SEARCH BODY zanzibar"),
    "search-from": (b"SEARCH FROM person42", b"SEARCH SINCE 1-Mar-2025", b"SEARCH UNSEEN"),
    "sort-date": (b"SORT (DATE) UTF-8 ALL",),
    "thread": (b"THREAD REFERENCES UTF-8 ALL",),
}
COLD = {
    "select-cold": None,
    "envelope-cold": ENVELOPE,
    "bodystructure-cold": STRUCTURE,
    "headers-cold": HEADERS,
}

Found = dict[str, float]


def reading(side: Side, wanted: set[str]) -> Found:
    """Return the milliseconds of what only reads, in one new session."""
    found: Found = {}
    client = side.client()
    found["select-warm"] = client.timed(SELECT)
    for name, commands in READING.items():
        if name in wanted:
            with suppress(Refused):
                found[name] = sum(client.timed(command) for command in commands)
    client.close()
    return found


def writing(side: Side, wanted: set[str]) -> Found:
    """Return the milliseconds of what changes; the folders end as they began."""
    found: Found = {}
    client = side.client()
    client.command(SELECT)
    if "store-all" in wanted:
        adding = client.timed(b"STORE 1:* +FLAGS.SILENT (\\Flagged)")
        found["store-all"] = median([adding, client.timed(b"STORE 1:* -FLAGS.SILENT (\\Flagged)")])
    if wanted & {"copy", "move", "expunge"}:
        for folder in (b"Other", b"Third"):
            with suppress(Refused):
                client.command(b"CREATE " + folder)
        found["copy"] = client.timed(b"COPY 1:%d Other" % MOVED)
        client.command(b"SELECT Other")
        found["move"] = client.timed(b"MOVE 1:* Third")
        client.command(b"SELECT Third")
        client.command(b"STORE 1:* +FLAGS.SILENT (\\Deleted)")
        found["expunge"] = client.timed(b"EXPUNGE")
    if wanted & {"append-durable", "append-multi"}:
        found |= appending(client)
    client.close()
    return found


def appending(client: ImapClient) -> Found:
    """Return the milliseconds a message of APPEND alone and of MULTIAPPEND; empties the folder again."""
    with suppress(Refused):
        client.command(b"CREATE Appended")
    found = {"append-durable": median(_append(client, 1) for _ in range(APPENDED))}
    with suppress(Refused):
        found["append-multi"] = median(_append(client, MULTI) / MULTI for _ in range(5))
    client.command(b"SELECT Appended")
    client.command(b"STORE 1:* +FLAGS.SILENT (\\Deleted)")
    client.command(b"EXPUNGE")
    return found


def _append(client: ImapClient, count: int) -> float:
    return client.append([APPENDED_MESSAGE] * count, folder=b"Appended")


def resynchronising(side: Side) -> Found:
    """Return the milliseconds of a reconnect after ten changes."""
    first = side.client()
    first.command(b"ENABLE QRESYNC")
    answer = first.command(SELECT)
    known = re.search(rb"UIDVALIDITY (\d+)", answer), re.search(rb"HIGHESTMODSEQ (\d+)", answer)
    assert known[0] and known[1]
    for number in range(100, 1100, 100):
        first.command(b"STORE %d +FLAGS.SILENT (\\Answered)" % number)
    second = side.client()
    second.command(b"ENABLE QRESYNC")
    took = second.timed(b"SELECT INBOX (QRESYNC (%b %b))" % (known[0][1], known[1][1]))
    first.command(b"STORE 1:* -FLAGS.SILENT (\\Answered)")
    first.close()
    second.close()
    return {"qresync": took}


def cold(side: Side, wanted: set[str], *, indexed: bool = True) -> Found:
    """Return the milliseconds of the first command of a kind after a start."""
    found: Found = {}
    for name, command in COLD.items():
        if name not in wanted:
            continue
        side.stop()
        side.make_cold(indexed=indexed)
        side.start()
        client = side.client()
        selected = client.timed(SELECT)
        found[name] = client.timed(command) if command else selected
        client.close()
    return found


def measure(sides: Sequence[Side], wanted: set[str], *, rounds: int) -> list[dict[str, Found]]:
    """Return what each round found of each side."""
    steps: list[Callable[[Side], Found]] = []
    if wanted & set(COLD):
        steps.append(lambda side: cold(side, wanted))
    if wanted & (set(READING) | {"select-warm"}):
        steps.append(lambda side: reading(side, wanted))
    if wanted & {"store-all", "copy", "move", "expunge", "append-durable", "append-multi"}:
        steps.append(lambda side: writing(side, wanted))
    if "qresync" in wanted:
        steps.append(resynchronising)
    for side in sides:
        reading(side, wanted)  # whatever is built at the first asking is built
    found: list[dict[str, Found]] = []
    for number in range(rounds):
        results: dict[str, Found] = {side.name: {} for side in sides}
        for step in steps:
            for side in sides if number % 2 else tuple(reversed(sides)):
                results[side.name] |= step(side)
        found.append(results)
    return found


def cells_of(rounds: list[dict[str, Found]], wanted: set[str]) -> list[report.Cell]:
    """Return the cells of what both could do, and ours or theirs alone where one could not."""
    cells = []
    for name in GOALS:
        ours = [each["mailagents"][name] for each in rounds if name in each["mailagents"]]
        theirs = [each["dovecot"][name] for each in rounds if name in each["dovecot"]]
        if name not in wanted or not ours:
            continue
        ratio = median(mine / other for mine, other in zip(ours, theirs, strict=True)) if theirs else None
        cells.append(report.Cell(name, median(ours), median(theirs) if theirs else None, ratio, "ms"))
    return cells


def main() -> int:
    """Run the bench; 0 when every cell is within its goal."""
    parser = argparse.ArgumentParser(prog="bench/imap", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds instead of {ROUNDS}")
    parser.add_argument("--messages", type=int, default=MESSAGES, help="another number of messages")
    parser.add_argument("--cell", action="append", choices=list(GOALS), help="that cell alone")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    options = parser.parse_args()
    wanted = set(options.cell or GOALS)
    with disk.workplace() as (place, described):
        cells, facts = _measure_all(place, options.messages, wanted, quick=options.quick)
    facts["file system"] = described
    report.show(cells, facts, as_json=options.json)
    short = [cell.name for cell in cells if cell.ratio is not None and cell.ratio > GOALS.get(cell.name, 1e9)]
    if short:
        print(f"over the goal: {', '.join(short)}", file=sys.stderr)
    return 1 if short else 0


def _measure_all(
    place: Path, count: int, wanted: set[str], *, quick: bool
) -> tuple[list[report.Cell], dict[str, str]]:
    ours = Ours(place / "mailagents")
    theirs = Theirs(place / "dovecot", certificate=place)
    sides = (ours, theirs)
    try:
        for side in sides:
            side.start()
            side.deliver(count)
        theirs.keep_indexes()
        rounds = measure(sides, wanted, rounds=QUICK_ROUNDS if quick else ROUNDS)
        cells = cells_of(rounds, wanted)
        if "idle-tls-kib" in wanted:
            cells += waiting_cells(sides)
        bare = cold(theirs, wanted, indexed=False)
    finally:
        for side in sides:
            side.stop()
    facts = report.machine(
        dovecot=theirs.version,
        load=f"{count} messages, {len(rounds)} rounds, TLS 1.3 on both sides",
    )
    if bare:
        facts["dovecot without indexes"] = ", ".join(f"{name} {took:,.0f} ms" for name, took in bare.items())
    return cells, facts


if __name__ == "__main__":
    sys.exit(main())
