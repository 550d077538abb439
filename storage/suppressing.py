"""What deliveries teach about addresses: when one is suppressed, tried again, and let go.

Owns the rules of it: a hard bounce suppresses at once; soft failures of the recipient's making do
after a run of them within a window, for a half-life, after which one delivery goes through as a
probe: it ends the suppression by its success and doubles the half-life by its failure. Only the
recipient's own faults count: the classes and blames are judged above. Every change is an event.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection, bindparam, or_, select, update

from storage import events, ids, suppression
from storage.records import FINAL_STATES, Event, Suppression
from storage.schema import deliveries
from storage.schema import suppressions as table

DAY = 86_400 * 1_000_000
EVIDENCE_LIMIT = 300
HALF_LIVES_LIMIT = 6  # doublings of a half-life
_ASKED_AT_ONCE = 500
_CHANGED = "suppression.added"
ENDED = "suppression.ended"
_BY_BOUNCES = frozenset({"hard_bounce", "soft_bounce"})


@dataclass(frozen=True, slots=True)
class Rules:
    """When failures suppress; times in microseconds. hard_expiry: 0 for no end."""

    soft_failures: int = 3
    soft_window: int = 30 * DAY
    half_life: int = 7 * DAY
    hard_expiry: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """A delivery about to be tried. address, sender: in normal form, sender '' for the null one."""

    delivery_id: str
    organization_id: str
    address: str
    sender: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """What is known of deliveries: causes of those that may not go, and those whose success matters."""

    causes: Mapping[str, str] = field(default_factory=dict)
    watched: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure that was the recipient's own. bounce_class: 'hard' suppresses at once, others count."""

    organization_id: str
    address: str
    bounce_class: str
    evidence: str
    event_id: str | None
    delivery_id: str | None = None
    message_id: str | None = None


NOTHING_HELD = Held()
# Asked for each lease and each beginning.
_KNOWN = select(table).where(
    table.c.address.in_(bindparam("addresses", expanding=True)),
    or_(table.c.expires_at.is_(None), table.c.expires_at > bindparam("at")),
)


def held(connection: Connection, asked: Sequence[Asked], *, at: int) -> Held:
    """Return who of those asked for may not be written to; lets probes through.

    In the unit of a lease or of a beginning, so that nothing comes between.
    """
    wanted = {name for one in asked for name in suppression.covering(one.address)}
    found: dict[str, list[Suppression]] = {}
    names = sorted(wanted)
    for start in range(0, len(names), _ASKED_AT_ONCE):
        values = {"addresses": names[start : start + _ASKED_AT_ONCE], "at": at}
        for row in map(suppression.of_row, connection.execute(_KNOWN, values)):
            found.setdefault(row.address, []).append(row)
    if not found:
        return NOTHING_HELD
    causes: dict[str, str] = {}
    watched: set[str] = set()
    for one in asked:
        for row in _of(one, found):
            if row.state != suppression.ACTIVE or _may_probe(connection, row, one, at):
                watched.add(one.delivery_id)
            else:
                causes.setdefault(one.delivery_id, row.cause)
    return Held(causes, frozenset(watched - causes.keys()))


def _of(asked: Asked, found: Mapping[str, Sequence[Suppression]]) -> list[Suppression]:
    rows = [row for name in suppression.covering(asked.address) for row in found.get(name, ())]
    return [
        row
        for row in rows
        if (row.organization_id == asked.organization_id or row.scope == "appliance")
        and (row.scope != "sender" or row.sender == asked.sender)
        # Failures are counted for the address alone that they were of.
        and (row.state == suppression.ACTIVE or row.address == asked.address)
    ]


def _may_probe(connection: Connection, row: Suppression, asked: Asked, at: int) -> bool:
    """Whether a delivery is, or now becomes, the one that tries a suppressed address again."""
    if row.probation_at is None or row.probation_at > at:
        return False
    if row.probe_id == asked.delivery_id:
        return True
    if row.probe_id is not None:
        query = select(deliveries.c.state).where(deliveries.c.id == row.probe_id)
        state = connection.execute(query).scalar()
        if state is not None and state not in {one.value for one in FINAL_STATES}:
            return False
    taken = connection.execute(
        update(table)
        .where(
            table.c.id == row.id,
            or_(table.c.probe_id.is_(None), table.c.probe_id == row.probe_id),
        )
        .values(probe_id=asked.delivery_id)
    ).rowcount
    return bool(taken)


def failed(connection: Connection, failure: Failure, *, rules: Rules, at: int) -> Suppression | None:
    """Note a failure that was the recipient's own; returns the suppression that follows from it, if any."""
    known = suppression.own(connection, organization_id=failure.organization_id, address=failure.address)
    if known is not None and known.expires_at is not None and known.expires_at <= at:
        known = None
    if known is not None and known.state == suppression.ACTIVE:
        return _failed_again(connection, known, failure, rules=rules, at=at)
    if failure.bounce_class == "hard":
        expires_at = at + rules.hard_expiry if rules.hard_expiry else None
        return _suppress(connection, failure, cause="hard_bounce", expires_at=expires_at, at=at)
    is_run = known is not None and at - known.created_at <= rules.soft_window
    failures = known.failures + 1 if known is not None and is_run else 1
    if failures >= rules.soft_failures:
        return _suppress(
            connection,
            failure,
            cause="soft_bounce",
            failures=failures,
            probation_at=at + rules.half_life,
            at=at,
        )
    begun = known.created_at if known is not None and is_run else at
    counting = Suppression(
        ids.new("sup"),
        failure.organization_id,
        failure.address,
        "soft_bounce",
        failure.evidence[:EVIDENCE_LIMIT],
        begun,
        begun + rules.soft_window,
        state=suppression.COUNTING,
        event_id=failure.event_id,
        failures=failures,
    )
    suppression.put(connection, counting)
    return None


def _suppress(
    connection: Connection,
    failure: Failure,
    *,
    cause: str,
    at: int,
    expires_at: int | None = None,
    failures: int = 1,
    probation_at: int | None = None,
) -> Suppression:
    made = Suppression(
        ids.new("sup"),
        failure.organization_id,
        failure.address,
        cause,
        failure.evidence[:EVIDENCE_LIMIT],
        at,
        expires_at,
        event_id=failure.event_id,
        failures=failures,
        probation_at=probation_at,
    )
    suppression.guard(connection, alone=True)
    suppression.put(connection, made)
    data = {"address": made.address, "cause": cause, "suppression": made.id, "evidence": made.evidence}
    if failure.event_id:
        data["event"] = failure.event_id
    events.append(connection, [_event(_CHANGED, made, at, data, failure)])
    return made


def _failed_again(
    connection: Connection, known: Suppression, failure: Failure, *, rules: Rules, at: int
) -> Suppression | None:
    """A probe failed, or what was under way when the suppression came: it stays, and for longer."""
    if known.cause not in _BY_BOUNCES:
        return None
    if failure.bounce_class == "hard" and known.cause == "soft_bounce":
        expires_at = at + rules.hard_expiry if rules.hard_expiry else None
        return _suppress(connection, failure, cause="hard_bounce", expires_at=expires_at, at=at)
    if known.probation_at is None or known.probe_id is None or known.probe_id != failure.delivery_id:
        return None
    failures = known.failures + 1
    doublings = min(max(failures - rules.soft_failures, 0), HALF_LIVES_LIMIT)
    again = replace(
        known,
        failures=failures,
        probe_id=None,
        probation_at=at + (rules.half_life << doublings),
        evidence=failure.evidence[:EVIDENCE_LIMIT],
        event_id=failure.event_id,
    )
    suppression.put(connection, again)
    return again


def succeeded(connection: Connection, taken: Collection[Asked], *, at: int) -> None:
    """End runs of failures, and suppressions on probation, of addresses that took mail."""
    for one in taken:
        known = suppression.own(connection, organization_id=one.organization_id, address=one.address)
        if known is None or known.cause not in _BY_BOUNCES:
            continue
        if known.state == suppression.COUNTING:
            suppression.forget(connection, known)
        elif known.probe_id == one.delivery_id:
            suppression.forget(connection, known)
            data = {"address": known.address, "cause": known.cause, "suppression": known.id}
            made = _event(ENDED, known, at, {**data, "why": "a delivery on probation was taken"}, None)
            events.append(connection, [made])


def _event(
    kind: str, about: Suppression, at: int, data: Mapping[str, object], failure: Failure | None
) -> Event:
    return Event(
        ids.new("evt"),
        kind,
        at,
        about.organization_id,
        failure.message_id if failure else None,
        delivery_id=failure.delivery_id if failure else None,
        data=data,
    )
