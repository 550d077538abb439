"""What a million deferred recipients cost: the start, memory, the disk, and finding the next one due.

Messages to a hundred recipients each lie in the queue, their deliveries deferred over the next hours, and now
and then one is due. The rows are written as apply writes them, by plain inserts while the daemon is down.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, insert, select

from bench import disk, report
from bench.appliance import Appliance
from bench.latencies import percentile
from storage import engine, lanes, queue, schema
from storage.codec import envelope_text
from storage.records import Envelope, Recipient

RECIPIENTS, QUICK_RECIPIENTS = 1_000_000, 100_000
EACH = 100
DOMAINS = 2000
QUERIES, QUICK_QUERIES = 2000, 500
SETTLED_SECONDS = 20.0
HOUR = 3_600_000_000
GOALS = {"start": 3.0, "memory": 150.0, "database": 500.0, "next-due-p99": 1.0}
CONTENT = b"From: <user@bench.test>\r\nSubject: waits\r\n\r\n" + b"x" * 70 + b"\r\n"


def fill(path: Path, spool: Path, recipients: int, *, now: int) -> None:
    """Put messages and their deliveries into the database of a daemon that is down."""
    made = engine.make_engine(engine.parse_url(f"sqlite:///{path}"), engine.Access.WRITE)
    dice = random.Random(1)
    with made.connect() as connection:
        owner = connection.execute(select(schema.organizations.c.id)).scalars().first()
        for start in range(0, recipients // EACH, 100):
            numbers = range(start, min(start + 100, recipients // EACH))
            connection.execute(insert(schema.messages), [_message(n, owner, now) for n in numbers])
            rows = [row for n in numbers for row in _deliveries(n, owner, now, dice)]
            connection.execute(insert(schema.deliveries), rows)
            connection.commit()
            for number in numbers:
                (spool / _message_id(number)).write_bytes(CONTENT)
    made.dispose()


def _message_id(number: int) -> str:
    return f"msg_{number:026d}"


def _message(number: int, owner: str | None, now: int) -> dict[str, Any]:
    listed = tuple(Recipient(f"someone{n}@{_domain(number, n)}") for n in range(EACH))
    return {
        "id": _message_id(number),
        "organization_id": owner,
        "source": "submission",
        "accepted_at": now,
        "octets": len(CONTENT),
        "digest": b"\0" * 32,
        "reverse_path": "user@bench.test",
        "envelope": envelope_text(Envelope("user@bench.test", listed)),
        "peer": "{}",
        "decision": "{}",
        "verdicts": "[]",
        "trace": b"",
        "message_id_header": f"<{number}@bench.test>",
        "subject": "waits",
        "from_": "user@bench.test",
        "to": "",
        "sent_at": now,
        "thread_id": "",
        "spooled": 1,
    }


def _domain(number: int, recipient: int) -> str:
    return f"d{(number * EACH + recipient) * 7919 % DOMAINS}.test"


def _deliveries(number: int, owner: str | None, now: int, dice: random.Random) -> Iterator[dict[str, Any]]:
    for recipient in range(EACH):
        domain = _domain(number, recipient)
        yield {
            "id": f"dlv_{number * EACH + recipient:026d}",
            "organization_id": owner,
            "message_id": _message_id(number),
            "recipient": f"someone{recipient}@{domain}",
            "orcpt": None,
            "notify": None,
            "domain": domain,
            "state": "deferred",
            "priority": 0,
            "tries": 3,
            "created_at": now,
            # Nothing comes due while the daemon is measured.
            "next_attempt_at": now + HOUR + dice.randrange(4 * HOUR),
            "expires_at": now + 48 * HOUR,
            "lease": None,
            "lease_until": None,
            "begun_at": None,
            "last_outcome": '{"state":"deferred","code":451,"text":"try again later","phase":"rcpt"}',
            "updated_at": now,
        }


def next_due_milliseconds(made: Engine, *, begin: int, queries: int) -> list[float]:
    """Return what looks for the next due delivery took, the quickest first, at moments all over the wait."""
    dice, found = random.Random(2), []
    with made.connect() as connection:
        for _ in range(queries):
            moment = begin + HOUR + dice.randrange(4 * HOUR)
            started = time.perf_counter()
            _look(connection, moment)
            found.append((time.perf_counter() - started) * 1000)
            connection.rollback()
    return sorted(found)


def _look(connection: Connection, moment: int) -> None:
    """Find what came due just now, and when the next one does, as the scheduler's look does."""
    place = lanes.Place(next_attempt_at=moment - 1_000_000)
    lanes.lanes(connection, now=moment, place=place)
    lanes.next_due(connection, after=moment)
    queue.next_lease_end(connection)


def measure(place: Path, *, recipients: int, queries: int) -> list[report.Cell]:
    """Fill a queue, start a daemon over it and return the cells."""
    daemon = Appliance(place / "mailagents", port=2700)
    data = place / "mailagents" / "data"
    path, now = data / "mailagents.sqlite", time.time_ns() // 1000
    begin = time.perf_counter()
    fill(path, data / "spool", recipients, now=now)
    print(f"filled in {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    seconds = daemon.start()
    try:
        time.sleep(SETTLED_SECONDS)
        memory = daemon.rss_octets() / (1 << 20)
        octets = sum(one.stat().st_size for one in data.glob("mailagents.sqlite*")) / (1 << 20)
        made = engine.make_engine(engine.parse_url(f"sqlite:///{path}"), engine.Access.READ)
        looks = next_due_milliseconds(made, begin=now, queries=queries)
        made.dispose()
    finally:
        daemon.stop()
    return [
        _cell("start", seconds, "s to the first greeting"),
        _cell("memory", memory, "MiB resident, all roles"),
        _cell("database", octets, "MiB of database and WAL"),
        _cell("next-due-p99", percentile(looks, 0.99), "ms, 99th percentile of finding the next due"),
        report.Cell("next-due-p50", percentile(looks, 0.5), None, None, "ms, median of the same"),
    ]


def _cell(name: str, value: float, unit: str) -> report.Cell:
    # There is no other server here: theirs is the limit that the figure is held to.
    return report.Cell(name, value, GOALS[name], value / GOALS[name], unit)


def main() -> int:
    """Run the bench; 0 when every cell is within its limit."""
    parser = argparse.ArgumentParser(prog="bench/queue", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_RECIPIENTS:,} recipients instead")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    options = parser.parse_args()
    recipients = QUICK_RECIPIENTS if options.quick else RECIPIENTS
    with disk.workplace() as (place, described):
        queries = QUICK_QUERIES if options.quick else QUERIES
        cells = measure(place, recipients=recipients, queries=queries)
    facts = {"file system": described, "recipients": f"{recipients:,}", "domains": f"{DOMAINS:,}"}
    report.show(cells, report.machine(**facts), as_json=options.json)
    over = [cell.name for cell in cells if cell.ratio is not None and cell.ratio > 1]
    if over:
        print(f"over the limit: {', '.join(over)}", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
