"""The shapes of API v1 for the queue: deliveries, and acts on them.

Owns the pydantic models of these routes; what holds for all shapes is said in models.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from server.http.models import LINE, Answer, Asked, Delivery, PageQuery, Time


class QueuedDelivery(Delivery):
    """A delivery as the queue has it."""

    message_id: str
    domain: str
    priority: int


class DeliveryPageQuery(PageQuery):
    """Which deliveries."""

    state: (
        Literal["", "scheduled", "held", "active", "deferred", "delivered", "bounced", "expired", "cancelled"]
        | Literal["suppressed"]
    ) = Field("", description="Only those in this state; empty: all that are not final.")
    domain: str = Field("", max_length=255, pattern=LINE, description="Only those to this domain.")


class DeliveryList(Answer):
    """A page of deliveries."""

    deliveries: list[QueuedDelivery]
    next_cursor: str | None


class DomainCount(Answer):
    """How many deliveries of one state wait for a domain."""

    domain: str
    state: str
    count: int


class DeliveryStats(Answer):
    """What is in the queue."""

    counts: dict[str, int]
    domains: list[DomainCount]


class QueueActionRequest(Asked):
    """What to do with which deliveries: one, a message's, a domain's, or with neither all that there are."""

    verb: Literal["hold", "release", "retry", "cancel"]
    id: str = Field("", max_length=64, pattern=LINE, description="Id of a delivery or a message.")
    domain: str = Field("", max_length=255, pattern=LINE)
    preview: bool = Field(False, description="Only say what would be changed.")


class ChosenDelivery(Answer):
    """A delivery that an act would change."""

    id: str
    recipient: str
    state: str


class QueueActed(Answer):
    """What was changed, or would be; `action` takes it back."""

    preview: bool
    verb: str
    changed: int
    action: str | None
    sample: list[ChosenDelivery]


class QueueUndone(Answer):
    """What was taken back; `gone_on`: deliveries that had changed since and stay as they are."""

    action: str
    restored: int
    gone_on: int


class QueueAction(Answer):
    """An act on the queue."""

    id: str
    verb: str
    actor: str
    at: Time
    changed: int
    selection: dict[str, str]


class QueueActionList(Answer):
    """The last acts on the queue."""

    actions: list[QueueAction]


class DoubtQuery(BaseModel):
    """How many deliveries in doubt."""

    limit: int = Field(50, ge=1, le=1000)


class DoubtfulDelivery(Answer):
    """A delivery that may have been sent, and waits for somebody to say so."""

    id: str
    message_id: str
    recipient: str
    domain: str
    attempts: int
    begun_at: Time


class DoubtList(Answer):
    """What waits for a verdict, the oldest first."""

    deliveries: list[DoubtfulDelivery]


class VerdictRequest(Asked):
    """What is true of a delivery in doubt."""

    verdict: Literal["sent", "not_sent"]
    reason: str = Field("", max_length=500, description="How it is known; kept with the event.")


class VerdictGiven(Answer):
    """The delivery and what was said of it."""

    delivery: str
    verdict: str
