"""Whom the notices about forwarded mail go back to.

Owns the way from the id of a forwarded delivery to the sender that the message came
with. Knows no addresses of its own and no clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from storage.records import Source
from storage.schema import deliveries, messages

if TYPE_CHECKING:
    from sqlalchemy import Connection

FORWARDED = tuple(source.value for source in (Source.MX, Source.LMTP, Source.LOCAL, Source.FORWARD))


def original_sender(connection: Connection, *, delivery_id: str, organization_id: str) -> str | None:
    """Return the reverse-path of the message that a delivery forwards.

    None where the organization has no such delivery, where it forwards nothing, and for the null sender.
    """
    found = connection.execute(
        select(messages.c.reverse_path)
        .join(deliveries, deliveries.c.message_id == messages.c.id)
        .where(
            deliveries.c.id == delivery_id,
            deliveries.c.organization_id == organization_id,
            messages.c.source.in_(FORWARDED),
        )
    ).first()
    return None if found is None else found.reverse_path


def sender_of(connection: Connection, *, delivery_id: str) -> tuple[str, str] | None:
    """Return the organization and reverse-path of the message that a delivery sends; None: gone, or none."""
    found = connection.execute(
        select(messages.c.organization_id, messages.c.reverse_path)
        .join(deliveries, deliveries.c.message_id == messages.c.id)
        .where(deliveries.c.id == delivery_id, messages.c.reverse_path.is_not(None))
    ).first()
    return None if found is None else (found.organization_id, found.reverse_path)
