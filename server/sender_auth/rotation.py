"""The rotation of DKIM keys as decisions: what the DNS proves, and what is to be done next.

Pure. Owns when new keys may sign (all of them seen in the DNS for long enough, without a
gap), when old ones may go, and when the daemon looks again. Nothing is done early because
a lookup failed. RFC 6376 3.6.1, 3.6.2.2 (one record a name), 8.11; RFC 8463.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from server.sender_auth.dkim_tags import Signature, Unusable, public_key
from storage.records import DkimKey

if TYPE_CHECKING:
    from server.sections_identity import Dkim

SECOND = 1_000_000
DAY_SECONDS = 86_400
CARE_SECONDS = DAY_SECONDS  # between looks at keys that sign
WAITING_SECONDS = 3600  # between looks at what should have come by now
PENDING = frozenset({"made", "published"})


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast keys change, in seconds. rotate: age at which they are replaced, 0 for never.

    watches: whether the DNS is asked about keys that sign, too.
    """

    look_seconds: int = 300
    settle_seconds: int = 3600
    retire_seconds: int = 7 * DAY_SECONDS
    rotate_seconds: int = 0
    watches: bool = True


USUAL = Pace()


def pace_of(settings: Dkim) -> Pace:
    """Return the pace that settings ask for."""
    return Pace(
        settings.look_seconds,
        settings.settle_seconds,
        settings.retire_seconds,
        settings.rotate_days * DAY_SECONDS,
        settings.watch_records,
    )


class Act(Enum):
    """What is to be done with a domain's keys."""

    WAIT = "wait"
    BEGIN = "begin"  # make the next keys
    SWITCH = "switch"  # let the published keys sign


def judge(key: DkimKey, records: Sequence[tuple[bytes, ...]]) -> str:
    """Return 'right' where the TXT records of a key's name publish it and no other key, else 'wrong'.

    'missing' where there is none.
    """
    if not records:
        return "missing"
    wanted = Signature(0, domain=key.domain, identity_domain=key.domain, algorithm=key.algorithm)
    try:
        ours = public_key(key.public_record.encode("ascii"), wanted)
        # RFC 6376 3.6.2.2: with several records it is not defined which one counts.
        return "right" if [public_key(b"".join(one), wanted) for one in records] == [ours] else "wrong"
    except Unusable:
        return "wrong"


def next_act(keys: Sequence[DkimKey], *, now: int, pace: Pace, made_at: int = 0) -> Act:
    """Return what a domain's keys need now. keys: all that are not retired; now: microseconds.

    made_at: when its newest key was made, a retired one too: a rotation that was given up is not begun again
    before the next one would be due.
    """
    pending = [key for key in keys if key.state in PENDING]
    if pending:
        return Act.SWITCH if all(_may_sign(key, now=now, pace=pace) for key in pending) else Act.WAIT
    begun_at = min((key.changed_at for key in keys if key.state == "active"), default=now)
    is_old = now >= max(begun_at, made_at) + pace.rotate_seconds * SECOND
    return Act.BEGIN if pace.rotate_seconds and is_old else Act.WAIT


def retirable(keys: Sequence[DkimKey], *, now: int, pace: Pace) -> list[DkimKey]:
    """Return the keys whose time to retire is over, whatever mail still waits."""
    over = now - pace.retire_seconds * SECOND
    return [key for key in keys if key.state == "retiring" and key.changed_at <= over]


def switch_at(key: DkimKey, pace: Pace) -> int | None:
    """Return when a key will have been seen for long enough, None where it is not in the DNS."""
    if key.state != "published" or key.seen_at is None:
        return None
    # Who had asked for it before may remember for as long that there was none.
    return key.seen_at + max(pace.settle_seconds, key.ttl_seconds) * SECOND


def _may_sign(key: DkimKey, *, now: int, pace: Pace) -> bool:
    ready_at = switch_at(key, pace)
    return ready_at is not None and ready_at <= now and key.looked == "right"


def due_at(key: DkimKey, *, now: int, pace: Pace) -> int:
    """Return when a key is looked after again."""
    if key.state in PENDING:
        ready_at = switch_at(key, pace)
        soon = now + pace.look_seconds * SECOND
        return soon if ready_at is None or ready_at <= now else min(soon, ready_at)
    if key.state == "retiring":
        over = key.changed_at + pace.retire_seconds * SECOND
        return over if over > now else now + min(WAITING_SECONDS, pace.look_seconds) * SECOND
    later = now + _care_seconds(key) * SECOND
    if key.state == "active" and pace.rotate_seconds:
        old_at = key.changed_at + pace.rotate_seconds * SECOND
        # A rotation that is under way moves the others; nothing is looked for more often than that.
        later = min(later, max(old_at, now + pace.look_seconds * SECOND))
    return later


def needs_look(key: DkimKey, *, now: int, pace: Pace) -> bool:
    """Whether the DNS is asked about a key now: new ones at each turn, those that sign now and then."""
    if key.state in PENDING:
        return True
    is_stale = key.looked_at is None or now >= key.looked_at + (_care_seconds(key) - 60) * SECOND
    return pace.watches and key.state == "active" and is_stale


def _care_seconds(key: DkimKey) -> int:
    """Return how often a key that signs is looked at: daily, and hourly where its record is missed."""
    return WAITING_SECONDS if key.looked in ("missing", "wrong") else CARE_SECONDS


_STEPS = {
    ("made", "missing"): "publish its record: it is not in the DNS",
    ("made", "wrong"): "mend its record: what is in the DNS is not this key, or not it alone",
    ("made", "unknown"): "waits for the DNS, which does not answer",
    ("made", ""): "publish its record",
    ("published", "unknown"): "waits for the DNS, which does not answer",
    ("published", "right"): "seen; signs when it was seen for long enough",
    ("active", ""): "signs",
    ("active", "right"): "signs",
    ("active", "unknown"): "signs; the DNS did not answer at the last look",
    ("active", "missing"): "signs, and its record is not in the DNS: publish it",
    ("active", "wrong"): "signs, and what is in the DNS is not this key, or not it alone: mend it",
}


def describe(key: DkimKey) -> str:
    """Return where a key stands and what it waits for, for the operator."""
    if key.state == "retiring":
        return "signs no more; leave its record for mail that is on the way"
    if key.state == "retired":
        return "done; its record can be removed"
    return _STEPS.get((key.state, key.looked), key.state)
