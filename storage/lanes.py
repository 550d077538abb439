"""Lanes of the queue: what is due, by organization, domain and priority.

Owns the scan that finds lanes by the due index alone, in windows, so that the
cost of a look does not grow with the queue. Leases nothing: that is queue's.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import BigInteger, Connection, Integer, Text, bindparam, func, select, tuple_

from storage.schema import deliveries

WINDOW = 4096


@dataclass(frozen=True, slots=True)
class Place:
    """Where a scan for lanes goes on: behind this key of the due index."""

    next_attempt_at: int = -1
    organization_id: str = ""
    domain: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Lane:
    """What is due for one domain from one organization at one priority; oldest: microseconds."""

    organization_id: str
    domain: str
    priority: int
    oldest: int
    waiting: int


_FOUND = (
    select(
        deliveries.c.organization_id,
        deliveries.c.domain,
        deliveries.c.priority,
        deliveries.c.next_attempt_at,
    )
    .where(
        deliveries.c.next_attempt_at <= bindparam("now"),
        tuple_(
            deliveries.c.next_attempt_at,
            deliveries.c.organization_id,
            deliveries.c.domain,
            deliveries.c.priority,
        )
        > tuple_(
            bindparam("a", type_=BigInteger),
            bindparam("o", type_=Text),
            bindparam("d", type_=Text),
            bindparam("p", type_=Integer),
        ),
    )
    .order_by(
        deliveries.c.next_attempt_at,
        deliveries.c.organization_id,
        deliveries.c.domain,
        deliveries.c.priority,
    )
    .limit(bindparam("window", type_=Integer))
    .subquery()
)
_LANES = select(
    _FOUND.c.organization_id,
    _FOUND.c.domain,
    _FOUND.c.priority,
    func.min(_FOUND.c.next_attempt_at).label("oldest"),
    func.max(_FOUND.c.next_attempt_at).label("newest"),
    func.count().label("waiting"),
).group_by(_FOUND.c.organization_id, _FOUND.c.domain, _FOUND.c.priority)
_NEXT_DUE = select(func.min(deliveries.c.next_attempt_at)).where(
    deliveries.c.next_attempt_at > bindparam("after")
)


def lanes(
    connection: Connection, *, now: int, place: Place, limit: int = WINDOW
) -> tuple[list[Lane], Place | None]:
    """Return the lanes found in the next `limit` due deliveries behind place, and where to go on, or None.

    Reads the due index alone; a lane may be found again in the next window.
    """
    values = {
        "now": now,
        "a": place.next_attempt_at,
        "o": place.organization_id,
        "d": place.domain,
        "p": place.priority,
        "window": limit,
    }
    rows = connection.execute(_LANES, values).all()
    found = [Lane(row.organization_id, row.domain, row.priority, row.oldest, row.waiting) for row in rows]
    if sum(lane.waiting for lane in found) < limit:
        return found, None
    last = max(rows, key=lambda row: (row.newest, row.organization_id, row.domain, row.priority))
    return found, Place(last.newest, last.organization_id, last.domain, last.priority)


def next_due(connection: Connection, *, after: int) -> int | None:
    """Return when the next delivery comes due later than `after`, in microseconds."""
    return connection.execute(_NEXT_DUE, {"after": after}).scalar()
