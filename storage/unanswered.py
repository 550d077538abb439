"""Failures that nobody may be told of: the delivery is held for a person instead of ended.

Owns the turning of such an end into a hold, HELD_LIMIT an organization, so that a flood of mail
from the null sender fills no queue; beyond that it ends as any other, and the log says so.
RFC 5321 4.5.5 (no notice about mail from the null reverse-path).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sqlalchemy import Connection, func, select

from storage.records import DeliveryState
from storage.schema import deliveries

if TYPE_CHECKING:
    from storage.queue import Settlement

HELD_LIMIT = 1000
FAILED = frozenset({DeliveryState.BOUNCED, DeliveryState.EXPIRED, DeliveryState.SUPPRESSED})

_log = logging.getLogger(__name__)


def held_instead(connection: Connection, settlements: Sequence[Settlement]) -> list[Settlement]:
    """Return settlements with a hold in place of each failure that is `unanswerable`."""
    made: list[Settlement] = []
    left: dict[str, int] = {}
    for one in settlements:
        if one.unanswerable and one.outcome.state in FAILED:
            owner = one.delivery.organization_id
            if owner not in left:
                left[owner] = HELD_LIMIT - _held(connection, owner)
            if left[owner] > 0:
                left[owner] -= 1
                one = replace(one, outcome=replace(one.outcome, state=DeliveryState.HELD))
            else:
                _log.error("delivery %s failed with nobody to tell and is not held", one.delivery.id)
        made.append(one)
    return made


def _held(connection: Connection, organization_id: str) -> int:
    """Return how many deliveries of an organization are held, HELD_LIMIT at most."""
    some = (
        select(deliveries.c.id)
        .where(
            deliveries.c.state == DeliveryState.HELD.value, deliveries.c.organization_id == organization_id
        )
        .limit(HELD_LIMIT)
        .subquery()
    )
    return connection.execute(select(func.count()).select_from(some)).scalar_one()
