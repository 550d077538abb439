"""The life of DKIM keys: made, published, active, retiring, retired, each step one transaction.

Owns which keys of a domain are at which step, what the DNS was seen to say of them, and
what the operator was told. A domain has one rotation at a time; every step is an event of the
organization. What step is next is the caller's. Retired keys are kept up to RETIRED_LIMIT a domain.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, literal_column, select, update
from sqlalchemy.exc import IntegrityError

from storage import audit, events, ids
from storage.accounts import dkim_key
from storage.db import Notice, publish
from storage.errors import Conflict, Missing
from storage.records import DkimKey, Event
from storage.schema import deliveries, domains
from storage.schema import dkim_keys as table

PENDING = ("made", "published")
RETIRED_LIMIT = 100  # of a domain's retired keys that are kept, the newest
KEYS_PER_DAY = 40  # of one domain
DAY = 86_400 * 1_000_000
DAEMON = "daemon"
LOST = "lost"  # told of a key that signs and whose record is gone


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key to be kept: what keys.make_key gives, and its selector."""

    selector: str
    algorithm: str
    private_pem: bytes
    public_record: str


@dataclass(frozen=True, slots=True)
class Look:
    """What the DNS said of a key: 'right', 'wrong', 'missing' or 'unknown', and the record's TTL."""

    said: str
    ttl_seconds: int = 0


def keys(
    connection: Connection, *, domain: str, organization_id: str | None = None, with_retired: bool = False
) -> list[DkimKey]:
    """Return a domain's keys, oldest first; organization_id: None answers the appliance itself."""
    query = select(table).where(table.c.domain == domain)
    if organization_id is not None:
        query = query.where(table.c.organization_id == organization_id)
    found = [dkim_key(row) for row in connection.execute(query.where(table.c.state != "retired"))]
    if with_retired:
        ended = query.where(table.c.state == "retired").order_by(table.c.id.desc()).limit(RETIRED_LIMIT)
        found += [dkim_key(row) for row in connection.execute(ended)]
    return sorted(found, key=lambda key: key.id)


def untold(connection: Connection, *, domain: str, organization_id: str) -> list[DkimKey]:
    """Return a domain's keys whose state the operator was not told of, oldest first."""
    query = select(table).where(
        table.c.domain == domain,
        table.c.organization_id == organization_id,
        table.c.told != table.c.state,
    )
    return [dkim_key(row) for row in connection.execute(query.order_by(table.c.id))]


def newest_at(connection: Connection, *, organization_id: str, domain: str) -> int:
    """Return when the newest key of a domain was made, retired ones too; 0 where it has none."""
    query = select(func.max(table.c.created_at)).where(
        table.c.domain == domain, table.c.organization_id == organization_id
    )
    return int(connection.execute(query).scalar() or 0)


def due(connection: Connection, *, at: int, limit: int) -> list[tuple[str, str]]:
    """Return up to `limit` (organization, domain) with a key that is due, the longest due first."""
    first = func.min(table.c.due_at)
    query = select(table.c.organization_id, table.c.domain).where(table.c.due_at <= at)
    query = query.group_by(table.c.organization_id, table.c.domain).order_by(first).limit(limit)
    return [(row.organization_id, row.domain) for row in connection.execute(query)]


def begin(
    connection: Connection,
    *,
    organization_id: str,
    domain: str,
    made: Sequence[NewKey],
    actor: str,
    is_told: bool,
    at: int,
) -> list[DkimKey]:
    """Keep the next keys of a domain, which sign nothing yet, and return them.

    is_told: whether the operator has the records already. Missing for a foreign domain, Conflict
    where a rotation is under way.
    """
    lock(connection, organization_id=organization_id, domain=domain)
    require_none(connection, organization_id=organization_id, domain=domain, at=at)
    _prune(connection, domain)
    rows = [
        {
            "id": ids.new("dkm"),
            "organization_id": organization_id,
            "domain": domain,
            "selector": one.selector,
            "algorithm": one.algorithm,
            "private_pem": one.private_pem,
            "public_record": one.public_record,
            "state": "made",
            "created_at": at,
            "changed_at": at,
            "told": "made" if is_told else "",
            "due_at": at,
        }
        for one in made
    ]
    try:
        connection.execute(insert(table), rows)
    except IntegrityError as error:
        raise Conflict(f"a selector of {domain} is taken: try again in a second") from error
    found = [key for key in keys(connection, domain=domain) if key.state == "made"]
    _tell(connection, found, "made", at=at)
    _note(connection, organization_id, "domain.dkim_rotate", domain, found, actor=actor, at=at)
    return found


def require_none(connection: Connection, *, organization_id: str, domain: str, at: int) -> None:
    """Raise Conflict where a rotation is under way, or where there were too many within a day.

    To be asked before keys are made as well, since that costs more than all else.
    """
    mine = table.c.domain == domain, table.c.organization_id == organization_id
    states = select(table.c.state).where(*mine, table.c.state.in_(PENDING)).limit(1)
    if connection.execute(states).first() is not None:
        raise Conflict(f"a rotation of the keys of {domain} is under way")
    lately = select(func.count()).select_from(table).where(*mine, table.c.created_at > at - DAY)
    if int(connection.execute(lately).scalar_one()) >= KEYS_PER_DAY:
        raise Conflict(f"{domain} got {KEYS_PER_DAY} keys within a day: rotate again tomorrow")


def _prune(connection: Connection, domain: str) -> None:
    """Forget the oldest retired keys; their selectors name a second that does not come again."""
    ended = select(table.c.id).where(
        table.c.domain == domain, table.c.state == "retired", table.c.due_at.is_(None)
    )
    kept = ended.order_by(table.c.id.desc()).limit(RETIRED_LIMIT)
    beyond = [row.id for row in connection.execute(ended.where(table.c.id.not_in(kept)))]
    if beyond:
        connection.execute(delete(table).where(table.c.id.in_(beyond)))


def look(
    connection: Connection, *, organization_id: str, domain: str, seen: Mapping[str, Look], at: int
) -> list[DkimKey]:
    """Note what the DNS said of a domain's keys, by their ids, and return all that are not retired.

    A key that is seen with the right record is published, and made again when it is not any more.
    """
    lock(connection, organization_id=organization_id, domain=domain)
    for key in keys(connection, domain=domain, organization_id=organization_id):
        found = seen.get(key.id)
        if found is not None:
            _look(connection, key, found, at)
    return keys(connection, domain=domain, organization_id=organization_id)


def _look(connection: Connection, key: DkimKey, found: Look, at: int) -> None:
    values: dict[str, object] = {"looked": found.said, "looked_at": at}
    if found.said == "right":
        values["seen_at"] = at if key.seen_at is None else key.seen_at
        values["ttl_seconds"] = max(found.ttl_seconds, key.ttl_seconds if key.seen_at is not None else 0)
    elif found.said != "unknown":
        values["seen_at"] = None
    if key.state == "made" and found.said == "right":
        values |= {"state": "published", "changed_at": at, "told": "published"}
    elif key.state == "published" and found.said in ("wrong", "missing"):
        values |= {"state": "made", "changed_at": at, "told": "made"}
    is_lost = key.state == "active" and key.seen_at is not None and found.said in ("wrong", "missing")
    if is_lost:
        values["told"] = LOST
    connection.execute(update(table).where(table.c.id == key.id).values(values))
    if "state" in values:
        _tell(connection, [key], "published" if key.state == "made" else "unpublished", at=at)
    elif is_lost:
        _tell(connection, [key], found.said, at=at)


def switch(connection: Connection, *, organization_id: str, domain: str, at: int) -> None:
    """Let a domain's published keys sign, and those that did retire; call it behind look, in its unit."""
    known = keys(connection, domain=domain, organization_id=organization_id)
    old = [key for key in known if key.state == "active"]
    new = [key for key in known if key.state == "published"]
    _move(connection, old, "retiring", told="retiring", at=at)
    _move(connection, new, "active", told="published", at=at)
    _tell(connection, old, "retiring", at=at)
    _tell(connection, new, "active", at=at)
    _note(connection, organization_id, "domain.dkim_switch", domain, new, actor=DAEMON, at=at)
    _changed(connection, organization_id)


def retire(
    connection: Connection, *, organization_id: str, domain: str, key_ids: Collection[str], at: int
) -> None:
    """End keys that retire: nothing can need their records any more, and their private halves go."""
    known = keys(connection, domain=domain, organization_id=organization_id)
    moved = [key for key in known if key.id in key_ids and key.state == "retiring"]
    if moved:
        _move(connection, moved, "retired", told="retiring", at=at)
        _tell(connection, moved, "retired", at=at)
        _note(connection, organization_id, "domain.dkim_retire", domain, moved, actor=DAEMON, at=at)


def cancel(
    connection: Connection, *, organization_id: str, domain: str, actor: str, at: int
) -> list[DkimKey]:
    """Give up a rotation that has not switched and return its keys; Missing where there is none."""
    lock(connection, organization_id=organization_id, domain=domain)
    moved = [
        key
        for key in keys(connection, domain=domain, organization_id=organization_id)
        if key.state in PENDING
    ]
    if not moved:
        raise Missing(f"a rotation of the keys of {domain}")
    _move(connection, moved, "retired", told="retired", at=at)
    _tell(connection, moved, "given_up", at=at)
    _note(connection, organization_id, "domain.dkim_cancel", domain, moved, actor=actor, at=at)
    return moved


def told(connection: Connection, *, key_ids: Iterable[str]) -> None:
    """Note that the operator knows of the present states of keys."""
    chosen = table.c.id.in_(list(key_ids))
    connection.execute(update(table).where(chosen).values(told=table.c.state))
    connection.execute(update(table).where(chosen, table.c.state == "retired").values(due_at=None))


def set_due(connection: Connection, *, due_at: Mapping[str, int]) -> None:
    """Say when keys are looked after again, by their ids."""
    for key_id, at in due_at.items():
        connection.execute(update(table).where(table.c.id == key_id).values(due_at=at))


def is_mail_waiting(connection: Connection, *, organization_id: str, before: int) -> bool:
    """Return whether an organization has mail in the queue that may have been signed before a moment."""
    mine = deliveries.c.organization_id == organization_id, deliveries.c.created_at < before
    # Each as an index has it that holds what is open alone; the table holds all that was ever sent.
    is_open = (
        deliveries.c.next_attempt_at.is_not(None),
        deliveries.c.lease_until.is_not(None),
        deliveries.c.state == literal_column("'held'"),
    )
    return any(
        connection.execute(select(deliveries.c.id).where(one, *mine).limit(1)).first() for one in is_open
    )


def lock(connection: Connection, *, organization_id: str, domain: str) -> None:
    """Let no other process change a domain's keys in this transaction; Missing for a foreign domain."""
    query = select(domains.c.id).where(domains.c.name == domain, domains.c.organization_id == organization_id)
    if connection.execute(query.with_for_update()).first() is None:
        raise Missing(f"domain {domain}")


def _move(connection: Connection, moved: Sequence[DkimKey], state: str, *, told: str, at: int) -> None:
    values: dict[str, object] = {"state": state, "changed_at": at, "told": told, "due_at": at}
    if state == "retired":
        values["private_pem"] = b""
        if told == state:
            values["due_at"] = None
    chosen = table.c.id.in_([key.id for key in moved])
    connection.execute(update(table).where(chosen).values(values))


def _tell(connection: Connection, about: Sequence[DkimKey], step: str, *, at: int) -> None:
    events.append(
        connection,
        [
            Event(
                ids.new("evt"),
                f"domain.dkim_{step}",
                at,
                key.organization_id,
                data={
                    "domain": key.domain,
                    "selector": key.selector,
                    "algorithm": key.algorithm,
                    "key": key.id,
                },
            )
            for key in about
        ],
    )


def _note(
    connection: Connection,
    organization_id: str,
    action: str,
    domain: str,
    about: Sequence[DkimKey],
    *,
    actor: str,
    at: int,
) -> None:
    audit.append(
        connection,
        organization_id=organization_id,
        actor=actor,
        action=action,
        object=about[0].id if about else domain,
        detail=json.dumps({"domain": domain, "selectors": [key.selector for key in about]}),
        at=at,
    )


def _changed(connection: Connection, organization_id: str) -> None:
    publish(connection, Notice("accounts", organization_id))
