"""The forms of suppressions in requests and answers.

Owns them as models.py owns the others.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from server.http.models import LINE, Answer, Asked, PageQuery, Time

Cause = Literal["hard_bounce", "soft_bounce", "complaint", "manual", "unsubscribe"]
Scope = Literal["sender", "organization", "appliance"]


class SuppressionQuery(PageQuery):
    """Which suppressions: all, of an address (what covers it), or of a cause."""

    address: str = Field("", max_length=320)
    cause: Cause | Literal[""] = ""


class RemovalQuery(BaseModel):
    """Which suppression of an address is removed, and why."""

    sender: str = Field("", max_length=320, description="Of the scope sender: whose mail is held back.")
    reason: str = Field("", max_length=1000, description="For the audit log.")


class SuppressionRequest(Asked):
    """An address that mail may not go to."""

    address: str = Field(min_length=3, max_length=320, pattern=LINE)
    cause: Cause = "manual"
    evidence: str = Field("", max_length=1000, pattern=LINE, description="Why, in words.")
    expires_at: Annotated[str, Field(max_length=40)] | None = Field(
        None, description="RFC 3339; none: never."
    )
    scope: Scope = Field(
        "organization", description="Whose mail is held back; appliance needs the scope operator."
    )
    sender: str = Field("", max_length=320, pattern=LINE, description="For the scope sender alone.")


class Suppression(Answer):
    """A suppressed address. probation_at: from then on one message may try the address again."""

    id: str
    address: str
    cause: str
    evidence: str
    created_at: Time
    expires_at: Time | None
    scope: str
    sender: str
    event_id: str | None
    failures: int
    probation_at: Time | None


class InFlight(Answer):
    """A transmission that began before the suppression and may still arrive."""

    message_id: str
    delivery_id: str


class SuppressionMade(Suppression):
    """A suppression just made: no transaction to the address begins any more but for those in flight."""

    in_flight: list[InFlight]


class SuppressionList(Answer):
    """A page of suppressions."""

    suppressions: list[Suppression]
    next_cursor: str | None
