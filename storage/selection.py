"""UIDs as SQL: a set of messages of one folder, chosen in one statement whatever its size.

Owns the difference between SQLite and PostgreSQL here: contiguous UIDs become
BETWEEN, others one JSON or array argument, never one mark a UID. Owns the two
other ways in which storage's modules speak to a driver directly too: running a
text, and inserting many rows by few statements. Knows no table.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from sqlalchemy import Connection

Values = tuple[Any, ...]
INSERT_ROWS = 64


@dataclass(frozen=True, slots=True)
class Selection:
    """A condition on the column uid, to be put after AND, with its arguments."""

    text: str
    values: Values


def select_uids(connection: Connection, uids: Sequence[int]) -> Selection:
    """Return the condition that a row's uid is one of these; a range or a gapless list is cheapest."""
    if not len(uids):
        return Selection("1 = 0", ())
    if isinstance(uids, range):
        low, high, count = min(uids[0], uids[-1]), max(uids[0], uids[-1]), len(uids)
    else:
        low, high, count = min(uids), max(uids), len(set(uids))
    if high - low + 1 == count:
        return Selection("uid BETWEEN ? AND ?", (low, high))
    return Selection(f"uid IN {members(connection)}", (pack(connection, uids),))


def members(connection: Connection, kind: str = "bigint") -> str:
    """Return the subquery of the numbers or texts that pack made one argument of."""
    if connection.dialect.name == "sqlite":
        return "(SELECT value FROM json_each(?))"
    return f"(SELECT unnest(?::{kind}[]))"


def pack(connection: Connection, values: Iterable[int] | Iterable[str]) -> Any:
    """Return numbers or texts as one argument."""
    listed = list(values)
    return json.dumps(listed) if connection.dialect.name == "sqlite" else listed


def run(connection: Connection, text: str, values: Values = ()) -> Any:
    """Run a statement on the driver's own cursor and return it; '?' marks an argument on every database."""
    cursor = connection.connection.cursor()
    if connection.dialect.name == "sqlite":
        cursor.execute(text, values)
    else:
        cursor.execute(text.replace("?", "%s"), values)
    return cursor


def insert_rows(connection: Connection, table: str, columns: str, rows: Iterable[Values]) -> None:
    """Insert rows, tuples in the order of columns ('a, b, c'), INSERT_ROWS a statement."""
    waiting = iter(rows)
    marks = "(" + ", ".join("?" * (columns.count(",") + 1)) + ")"
    while part := list(islice(waiting, INSERT_ROWS)):
        text = f"INSERT INTO {table} ({columns}) VALUES " + ", ".join([marks] * len(part))  # noqa: S608 - names of our own schema
        run(connection, text, tuple(chain.from_iterable(part)))
