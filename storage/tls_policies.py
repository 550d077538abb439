"""MTA-STS policies of other domains as rows, so that a restart forgets none.

Owns the table, its limit and its pruning. Reads no policy's text: what it means is
the caller's. Times in microseconds. RFC 8461 3.3, 5.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from storage import schema_tls
from storage.selection import run

MAX_POLICIES = 50_000
PRUNE_ROWS = 500
_COLUMNS = "domain, record_id, policy, fetched_at, expires_at, refresh_at, used_at"


@dataclass(frozen=True, slots=True)
class Kept:
    """A policy as it was fetched. record_id: of the TXT record then; policy: the form of its file."""

    domain: str
    record_id: str
    policy: str
    fetched_at: int
    expires_at: int
    refresh_at: int
    used_at: int


def find(connection: Connection, *, domain: str) -> Kept | None:
    """Return what is kept of a domain, expired or not."""
    table = schema_tls.tls_policies
    row = connection.execute(select(table).where(table.c.domain == domain)).first()
    return None if row is None else _kept(row)


def keep(connection: Connection, kept: Kept) -> None:
    """Put a policy into the place of an older one; beyond MAX_POLICIES the longest unused go."""
    values = (
        kept.domain, kept.record_id, kept.policy, kept.fetched_at, kept.expires_at, kept.refresh_at,
        kept.used_at,
    )  # fmt: skip
    run(
        connection,
        f"INSERT INTO tls_policies ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?) "  # noqa: S608 - our own names
        "ON CONFLICT (domain) DO UPDATE SET record_id = excluded.record_id, policy = excluded.policy, "
        "fetched_at = excluded.fetched_at, expires_at = excluded.expires_at, "
        "refresh_at = excluded.refresh_at, used_at = excluded.used_at",
        values,
    )
    table = schema_tls.tls_policies
    total = connection.execute(select(func.count()).select_from(table)).scalar_one()
    if total > MAX_POLICIES:
        spare = min(total - MAX_POLICIES, PRUNE_ROWS)
        oldest = select(table.c.domain).order_by(table.c.used_at, table.c.domain).limit(spare)
        for domain in connection.execute(oldest).scalars().all():
            forget(connection, domain=domain)


def note_used(connection: Connection, *, domain: str, at: int) -> None:
    """Say that a policy was of use."""
    run(connection, "UPDATE tls_policies SET used_at = ? WHERE domain = ? AND used_at < ?", (at, domain, at))


def postpone(connection: Connection, *, domain: str, refresh_at: int) -> None:
    """Fetch a policy anew later."""
    run(connection, "UPDATE tls_policies SET refresh_at = ? WHERE domain = ?", (refresh_at, domain))


def forget(connection: Connection, *, domain: str) -> None:
    """Take a policy away."""
    run(connection, "DELETE FROM tls_policies WHERE domain = ?", (domain,))


def due(connection: Connection, *, at: int, used_since: int, limit: int) -> list[Kept]:
    """Return policies that are to be fetched anew and were of use lately, the longest due first."""
    table = schema_tls.tls_policies
    query = select(table).where(table.c.refresh_at <= at, table.c.used_at >= used_since)
    return [_kept(row) for row in connection.execute(query.order_by(table.c.refresh_at).limit(limit))]


def newest(connection: Connection, *, limit: int) -> list[Kept]:
    """Return the policies that were of use last."""
    table = schema_tls.tls_policies
    query = select(table).order_by(table.c.used_at.desc(), table.c.domain).limit(limit)
    return [_kept(row) for row in connection.execute(query)]


def prune(connection: Connection, *, at: int) -> bool:
    """Take away what has expired, PRUNE_ROWS at most; whether there may be more."""
    table = schema_tls.tls_policies
    old = select(table.c.domain).where(table.c.expires_at <= at).limit(PRUNE_ROWS)
    gone = connection.execute(old).scalars().all()
    for domain in gone:
        forget(connection, domain=domain)
    return len(gone) == PRUNE_ROWS


def _kept(row: object) -> Kept:
    names = _COLUMNS.split(", ")
    return Kept(*(getattr(row, name) for name in names))
