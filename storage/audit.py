"""The audit log: append-only, each row chained to the one before it.

Owns the chain. A row's commitment is HMAC-SHA-256 with the row's own salt over
its detail; its chain value is SHA-256 over the previous chain value, the
commitment and the row's other facts. Detail and salt can be erased without
breaking the chain; then nothing about the detail can be guessed from what is
left. Actor and object are ids, never addresses, since they stay. Cutting off
the end of the log is seen only by who kept the head that `verify` returns.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert, select, text, update

from storage.errors import Missing
from storage.schema import audit as table

GENESIS = bytes(32)
_STEP = 500
# Serialises appends of several processes on PostgreSQL; SQLite has one writer anyway.
_LOCK_NUMBER = 0x6D61_7564


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One action of somebody; detail: JSON text, None once erased."""

    seq: int
    at: int
    organization_id: str | None
    actor: str
    action: str
    detail: str | None
    object: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found: the count of rows and the head up to which the chain holds.

    broken_seq: the first row that does not fit, None if all do. head: chain value of the last good row.
    """

    rows: int
    head_seq: int
    head: bytes
    broken_seq: int | None = None
    reason: str = ""


def append(
    connection: Connection,
    *,
    organization_id: str | None,
    actor: str,
    action: str,
    object: str,
    detail: str,
    at: int,
) -> int:
    """Add a row and return its seq; call it last in a unit, since it holds the log until the commit.

    detail: JSON text, what may be erased later. organization_id: None for the appliance's own acts.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK_NUMBER})
    newest = select(table.c.chain).order_by(table.c.seq.desc()).limit(1)
    previous = connection.execute(newest).scalar()
    salt = secrets.token_bytes(32)
    commitment = _commit(salt, detail)
    facts = _facts(at, organization_id, actor, action, object)
    values = {
        "at": at,
        "organization_id": organization_id,
        "actor": actor,
        "action": action,
        "object": object,
        "detail": detail,
        "salt": salt,
        "commitment": commitment,
        "chain": _link(GENESIS if previous is None else bytes(previous), commitment, facts),
    }
    return int(connection.execute(insert(table).returning(table.c.seq), values).scalar_one())


def entries(
    connection: Connection, *, organization_id: str | None, before: int | None = None, limit: int = 100
) -> list[AuditEntry]:
    """Return up to `limit` rows of one tenant (None: the appliance's own), newest first, below `before`."""
    query = select(table).where(table.c.organization_id == organization_id)
    if before is not None:
        query = query.where(table.c.seq < before)
    rows = connection.execute(query.order_by(table.c.seq.desc()).limit(max(1, min(limit, _STEP))))
    return [_entry(row) for row in rows]


def erase_detail(connection: Connection, *, seq: int) -> None:
    """Forget a row's detail and its salt; the chain stays whole. Missing if there is no such row."""
    query = update(table).where(table.c.seq == seq).values(detail=None, salt=None)
    if connection.execute(query).rowcount == 0:
        raise Missing(f"audit row {seq}")


def verify(connection: Connection) -> Verification:
    """Check every row against its chain, in steps of bounded memory."""
    rows, seq, chain = 0, 0, GENESIS
    while True:
        query = select(table).where(table.c.seq > seq).order_by(table.c.seq).limit(_STEP)
        page = connection.execute(query).all()
        if not page:
            return Verification(rows, seq, chain)
        for row in page:
            reason = _fault(row, chain)
            if reason:
                return Verification(rows, seq, chain, row.seq, reason)
            rows, seq, chain = rows + 1, row.seq, bytes(row.chain)


def _fault(row: Row[Any], previous: bytes) -> str:
    if (row.detail is None) != (row.salt is None):
        return "detail and salt are not erased together"
    commitment = bytes(row.commitment)
    if row.detail is not None and not hmac.compare_digest(_commit(bytes(row.salt), row.detail), commitment):
        return "detail is not what was committed to"
    facts = _facts(row.at, row.organization_id, row.actor, row.action, row.object)
    if not hmac.compare_digest(_link(previous, commitment, facts), bytes(row.chain)):
        return "the row does not follow the one before it"
    return ""


def _commit(salt: bytes, detail: str) -> bytes:
    return hmac.digest(salt, detail.encode(), "sha256")


def _facts(at: int, organization_id: str | None, actor: str, action: str, target: str) -> bytes:
    return json.dumps([at, organization_id, actor, action, target]).encode()


def _link(previous: bytes, commitment: bytes, facts: bytes) -> bytes:
    return hashlib.sha256(previous + commitment + facts).digest()


def _entry(row: Row[Any]) -> AuditEntry:
    return AuditEntry(row.seq, row.at, row.organization_id, row.actor, row.action, row.detail, row.object)
