"""What was sent, counted: rates by kind and key, whom an organization wrote to, and pauses.

Owns the rows of rate_counters, written_to and pauses. A count belongs to a stretch of
time that its kind fixes (grain), so that a key has a bounded number of rows; prune takes
those away that no window reaches. Addresses come here as digests. A pause ends
when it is lifted, which also forgets the counts that led to it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict

from sqlalchemy import Connection, delete, select, tuple_

from storage import events, schema, suppression
from storage.db import Notice, publish
from storage.records import Pause
from storage.selection import insert_rows, run

SECOND = 1_000_000
# Microseconds that one row of a kind covers, and for how long its rows are kept.
SENT, SIMILAR, NEW = "sent", "similar", "new"
SETTLED, BOUNCED, COMPLAINED = "settled", "bounced", "complained"
MINUTES, HOURS = 600 * SECOND, 6 * 3600 * SECOND
GRAIN: Mapping[str, int] = {
    SENT: MINUTES,
    SIMILAR: MINUTES,
    NEW: MINUTES,
    SETTLED: HOURS,
    BOUNCED: HOURS,
    COMPLAINED: HOURS,
}
KEPT = 8 * 86_400 * SECOND
KEPT_TEXTS = 2 * 3600 * SECOND
KEPT_SHORT = 25 * 3600 * SECOND
WRITTEN_KEPT = 183 * 86_400 * SECOND
PRUNE_ROWS = 5000
PAUSES_LIMIT = 10_000
OUTCOMES: Mapping[str, tuple[str, ...]] = {
    "message.delivered": (SETTLED,),
    "message.bounced": (SETTLED, BOUNCED),
    "message.bounced_later": (BOUNCED,),  # it was settled when it was delivered
    "message.expired": (SETTLED,),
    "message.complained": (COMPLAINED,),
}
CURSOR = "tally"
TALLY_EVENTS = 2000

Counted = Mapping[tuple[str, str, int], int]  # (kind, key, start) to how many


def add_counts(connection: Connection, counted: Counted) -> None:
    """Add to counts, made where they are new."""
    for (kind, key, start), count in sorted(counted.items()):
        run(
            connection,
            "INSERT INTO rate_counters (kind, key, start, count) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (kind, key, start) DO UPDATE SET count = rate_counters.count + excluded.count",
            (kind, key, start, count),
        )


def counts(
    connection: Connection, keys: Collection[tuple[str, str]]
) -> dict[tuple[str, str], dict[int, int]]:
    """Return the counts by start of each kind and key asked for."""
    found: dict[tuple[str, str], dict[int, int]] = {pair: {} for pair in keys}
    table = schema.rate_counters
    query = select(table).where(tuple_(table.c.kind, table.c.key).in_(list(keys)))
    for row in connection.execute(query) if keys else ():
        found[row.kind, row.key][row.start] = row[3]
    return found


def texts(connection: Connection, *, since: int, limit: int) -> dict[tuple[str, str], dict[int, int]]:
    """Return the counts of texts since a time by start, those of the most first."""
    table = schema.rate_counters
    query = select(table).where(table.c.start > since, table.c.kind == SIMILAR)
    found: dict[tuple[str, str], dict[int, int]] = {}
    for row in connection.execute(query.order_by(table.c.count.desc()).limit(limit)):
        found.setdefault((row.kind, row.key), {})[row.start] = row[3]
    return found


def add_written(connection: Connection, written: Collection[tuple[str, bytes]], *, at: int) -> None:
    """Note that organizations wrote to addresses."""
    for organization_id, digest in sorted(written):
        run(
            connection,
            "INSERT INTO written_to (organization_id, digest, at) VALUES (?, ?, ?) "
            "ON CONFLICT (organization_id, digest) DO UPDATE SET at = excluded.at",
            (organization_id, digest, at),
        )


def known_of(connection: Connection, *, organization_id: str, digests: Collection[bytes]) -> set[bytes]:
    """Return those addresses that an organization has written to."""
    table = schema.written_to
    query = select(table.c.digest).where(
        table.c.organization_id == organization_id, table.c.digest.in_(list(digests))
    )
    return {bytes(digest) for digest in connection.execute(query).scalars()}


def prune(connection: Connection, *, at: int) -> None:
    """Forget what no window reaches any more, PRUNE_ROWS of each kind at most."""
    rates, written = schema.rate_counters, schema.written_to
    connection.execute(delete(rates).where(rates.c.kind == SIMILAR, rates.c.start < at - KEPT_TEXTS))
    short = [kind for kind, grain in GRAIN.items() if grain == MINUTES]
    old = select(rates.c.kind, rates.c.key, rates.c.start)
    for condition in (
        rates.c.start < at - KEPT,
        (rates.c.start < at - KEPT_SHORT) & rates.c.kind.in_(short),
    ):
        rows = connection.execute(old.where(condition).order_by(rates.c.start).limit(PRUNE_ROWS)).all()
        for row in rows:
            run(connection, "DELETE FROM rate_counters WHERE kind = ? AND key = ? AND start = ?", tuple(row))
    suppression.prune(connection, at=at)
    query = select(written.c.organization_id, written.c.digest).where(written.c.at < at - WRITTEN_KEPT)
    for owner, digest in connection.execute(query.order_by(written.c.at).limit(PRUNE_ROWS)).all():
        run(connection, "DELETE FROM written_to WHERE organization_id = ? AND digest = ?", (owner, digest))


def has_outcomes(connection: Connection) -> bool:
    """Return whether deliveries have ended since the last tally, or the tally lags far behind."""
    seq = events.cursor(connection, name=CURSOR)
    table = schema.events
    query = select(table.c.seq).where(table.c.seq > seq, table.c.kind.in_(sorted(OUTCOMES)))
    if connection.execute(query.limit(1)).first() is not None:
        return True
    newest = connection.execute(select(table.c.seq).order_by(table.c.seq.desc()).limit(1)).scalar()
    return newest is not None and newest - seq > 10 * TALLY_EVENTS


def tally(connection: Connection) -> tuple[set[tuple[str, str]], bool]:
    """Count how deliveries ended, by login and organization, from where the last tally stopped.

    Returns the (kind, key) that changed, and whether there may be more.
    """
    seq = events.hold_cursor(connection, name=CURSOR)
    found = events.after(connection, seq=seq, kinds=OUTCOMES, limit=events.PAGE_LIMIT)
    full = len(found) >= events.PAGE_LIMIT
    if not full:
        table = schema.events
        newest = connection.execute(select(table.c.seq).order_by(table.c.seq.desc()).limit(1)).scalar()
        last = newest or seq
    else:
        last = found[-1].seq
    senders = _senders(connection, {event.message_id for event in found if event.message_id})
    counted: dict[tuple[str, str, int], int] = {}
    for event in found:
        start = event.at - event.at % HOURS
        for key in filter(None, (event.organization_id, senders.get(event.message_id or ""))):
            for kind in OUTCOMES[event.kind]:
                counted[kind, key, start] = counted.get((kind, key, start), 0) + 1
    add_counts(connection, counted)
    events.advance(connection, name=CURSOR, seq=last)
    return {(kind, key) for kind, key, _ in counted}, full


def _senders(connection: Connection, message_ids: Collection[str]) -> dict[str, str]:
    """Return the login that brought each message."""
    table = schema.messages
    query = select(table.c.id, table.c.peer).where(table.c.id.in_(list(message_ids)))
    return {row.id: json.loads(row.peer).get("identity") or "" for row in connection.execute(query)}


def pauses(connection: Connection) -> list[Pause]:
    """Return who may not send, the latest first, PAUSES_LIMIT at most."""
    query = select(schema.pauses).order_by(schema.pauses.c.at.desc()).limit(PAUSES_LIMIT)
    return [Pause(*row) for row in connection.execute(query)]


def pause(connection: Connection, pause: Pause) -> bool:
    """Stop a login or organization from sending; False where it is stopped already."""
    columns = asdict(pause)
    marks = ", ".join("?" * len(columns))
    text = f"INSERT INTO pauses ({', '.join(columns)}) VALUES ({marks}) ON CONFLICT (subject) DO NOTHING"  # noqa: S608 - ours
    if run(connection, text, tuple(columns.values())).rowcount == 0:
        return False
    publish(connection, Notice("pauses", pause.subject, pause.at))
    return True


def lift(connection: Connection, *, subject: str, at: int) -> Pause | None:
    """Let a login or organization send again, its rates counted anew; None where it was not paused."""
    table = schema.pauses
    row = connection.execute(select(table).where(table.c.subject == subject)).first()
    if row is None:
        return None
    connection.execute(delete(table).where(table.c.subject == subject))
    rates = schema.rate_counters
    connection.execute(
        delete(rates).where(rates.c.kind.in_([SETTLED, BOUNCED, COMPLAINED]), rates.c.key == subject)
    )
    publish(connection, Notice("pauses", subject, at))
    return Pause(*row)


def list_entries(connection: Connection, *, limit: int = 1_000_000) -> dict[str, list[str]]:
    """Return the entries of every list that is kept here."""
    table = schema.list_entries
    found: dict[str, list[str]] = {}
    query = select(table.c.list, table.c.entry).order_by(table.c.list, table.c.entry).limit(limit)
    for name, entry in connection.execute(query):
        found.setdefault(name, []).append(entry)
    return found


def add_entries(connection: Connection, *, name: str, entries: Sequence[str], at: int) -> None:
    """Put entries into a list; those that are there stay as they are."""
    remove_entries(connection, name=name, entries=entries)
    insert_rows(connection, "list_entries", "list, entry, added_at", ((name, entry, at) for entry in entries))
    publish(connection, Notice("lists", name, at))


def remove_entries(connection: Connection, *, name: str, entries: Sequence[str]) -> int:
    """Take entries out of a list; returns how many were in it."""
    table = schema.list_entries
    removed = sum(
        connection.execute(delete(table).where(table.c.list == name, table.c.entry == entry)).rowcount
        for entry in entries
    )
    publish(connection, Notice("lists", name, removed))
    return removed
