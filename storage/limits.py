"""Counts behind the action limit, one row a rule and value: two stretches of the rule's period.

Owns the rows of `limit_windows`. What is written is added to what is there, so that several
processes count together; prune keeps ROWS_LIMIT rows, the latest. Values come as digests.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select

from storage.schema import limit_windows as table
from storage.selection import run

ROWS_LIMIT = 200_000
KEPT = 2 * 86_400 * 1_000_000  # no period is over a day


@dataclass(frozen=True, slots=True)
class Window:
    """How often a rule's condition held for a value: since start, and in the period before that.

    period, start: microseconds.
    """

    rule: str
    digest: bytes
    period: int
    start: int
    count: int
    before: int = 0


_ADD = """
INSERT INTO limit_windows (rule, digest, period, start, count, before, changed_at)
VALUES (?, ?, ?, ?, ?, 0, ?)
ON CONFLICT (rule, digest) DO UPDATE SET
  before = CASE
    WHEN excluded.period <> limit_windows.period THEN 0
    WHEN excluded.start = limit_windows.start THEN limit_windows.before
    WHEN excluded.start = limit_windows.start + limit_windows.period THEN limit_windows.count
    WHEN excluded.start = limit_windows.start - limit_windows.period
      THEN limit_windows.before + excluded.count
    WHEN excluded.start > limit_windows.start THEN 0
    ELSE limit_windows.before END,
  count = CASE
    WHEN excluded.period <> limit_windows.period THEN excluded.count
    WHEN excluded.start = limit_windows.start THEN limit_windows.count + excluded.count
    WHEN excluded.start > limit_windows.start THEN excluded.count
    ELSE limit_windows.count END,
  start = CASE
    WHEN excluded.period <> limit_windows.period OR excluded.start > limit_windows.start
      THEN excluded.start
    ELSE limit_windows.start END,
  period = excluded.period,
  changed_at = excluded.changed_at
"""


def add(connection: Connection, counted: Iterable[Window], *, at: int) -> None:
    """Add counts to what is there; `before` of what is given means nothing."""
    for one in sorted(counted, key=lambda one: (one.rule, one.digest, one.start)):
        run(connection, _ADD, (one.rule, one.digest, one.period, one.start, one.count, at))


def changed(connection: Connection, *, since: int, limit: int) -> list[Window]:
    """Return the rows that changed after a time, the latest first."""
    query = select(table).where(table.c.changed_at > since).order_by(table.c.changed_at.desc()).limit(limit)
    return [
        Window(row.rule, bytes(row.digest), row.period, row.start, row[4], row.before)
        for row in connection.execute(query)
    ]


def prune(connection: Connection, *, at: int) -> None:
    """Forget what no period reaches any more, and the oldest rows beyond ROWS_LIMIT."""
    beyond = select(table.c.changed_at).order_by(table.c.changed_at.desc()).offset(ROWS_LIMIT).limit(1)
    last = connection.execute(beyond).scalar()
    until = max(at - KEPT, last if last is not None else 0)
    connection.execute(delete(table).where(table.c.changed_at <= until))
