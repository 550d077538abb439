"""Routes set at run time, by people and by what other servers said: for a delivery up to all there are.

Owns the rows of `queue_routes`, ROUTES_LIMIT of them, one a scope and subject; the later one counts.
Resolves nothing: what a hop's text means is the layers' above.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum

from sqlalchemy import Connection, delete, exists, func, insert, or_, select

from storage.db import Notice, publish
from storage.errors import Full, Missing
from storage.queue import OPEN_STATES
from storage.schema import deliveries
from storage.schema_routes import queue_routes as table

ROUTES_LIMIT = 10_000
TOPIC = "routes"


class Scope(str, Enum):
    """What a route is for, the narrowest first: it counts before the wider ones."""

    DELIVERY = "delivery"
    MESSAGE = "message"
    DOMAIN = "domain"
    ORGANIZATION = "organization"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Rerouted:
    """One route. subject: an id or a domain, '' for all; until: microseconds, None for no end."""

    scope: Scope
    subject: str
    hop: str
    actor: str
    reason: str
    at: int
    until: int | None = None


def put(connection: Connection, route: Rerouted) -> None:
    """Set a route in place of the one there is; Full beyond ROUTES_LIMIT."""
    _remove(connection, route.scope, route.subject)
    if connection.execute(select(func.count()).select_from(table)).scalar_one() >= ROUTES_LIMIT:
        raise Full(f"{ROUTES_LIMIT} routes are set already")
    connection.execute(insert(table).values({**asdict(route), "scope": route.scope.value}))
    publish(connection, Notice(TOPIC, "", route.at))


def remove(connection: Connection, *, scope: Scope, subject: str, at: int) -> None:
    """Take a route back; Missing where there is none."""
    if not _remove(connection, scope, subject):
        raise Missing(f"no route is set for {scope.value} {subject}".rstrip())
    publish(connection, Notice(TOPIC, "", at))


def _remove(connection: Connection, scope: Scope, subject: str) -> int:
    query = delete(table).where(table.c.scope == scope.value, table.c.subject == subject)
    return connection.execute(query).rowcount


def routes(connection: Connection, *, at: int) -> list[Rerouted]:
    """Return the routes in force at a time, the latest first."""
    query = select(table).where(or_(table.c.until.is_(None), table.c.until > at))
    rows = connection.execute(query.order_by(table.c.at.desc(), table.c.subject).limit(ROUTES_LIMIT))
    return [Rerouted(Scope(row[0]), *row[1:]) for row in rows]


def prune(connection: Connection, *, at: int) -> None:
    """Forget routes that ended, and those of deliveries and messages that are done with."""
    connection.execute(delete(table).where(table.c.until <= at))
    for scope, column in ((Scope.DELIVERY, deliveries.c.id), (Scope.MESSAGE, deliveries.c.message_id)):
        is_open = exists().where(column == table.c.subject, deliveries.c.state.in_(OPEN_STATES))
        connection.execute(delete(table).where(table.c.scope == scope.value, ~is_open))
