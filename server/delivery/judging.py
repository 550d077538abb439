"""Why our own attempts failed: class and blame of outcomes, and the address a delivery is known by.

Owns what a settled failure's event says beside the remote's words, and what of it an address's
suppression follows from. Judges by server.mail.bounce_class alone. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from server.mail.address import AddressSyntax, normalise
from server.mail.bounce_class import Blame, BounceClass, Judged, classify
from storage.records import DeliveryState, Source
from storage.suppressing import Asked

if TYPE_CHECKING:
    from storage.records import Delivery, Outcome

FAILED = frozenset({DeliveryState.BOUNCED, DeliveryState.EXPIRED})
# Whose failures teach something of an address: forwards carry what others wrote.
TEACHING = frozenset({Source.SUBMISSION, Source.API})


def judge(outcome: Outcome) -> Judged:
    """Return the class and blame of a failure."""
    judged = classify(outcome.code, outcome.enhanced, outcome.text, phase=outcome.phase)
    if outcome.phase == "policy" and not outcome.enhanced.startswith("5.1."):
        # This server's own decision: no word of the recipient's.
        return Judged(BounceClass.POLICY, Blame.OURS, outcome.enhanced)
    return judged


def facts_of(outcome: Outcome) -> Mapping[str, object]:
    """Return what the event of a failure says of its class; nothing for other outcomes."""
    if outcome.state not in FAILED:
        return {}
    judged = judge(outcome)
    return {"class": judged.bounce_class.value, "blame": judged.blame.value}


def blames_us(outcome: Outcome) -> bool:
    """Whether another server refused for the reputation of our address or domain, for good or for now."""
    if not outcome.code or outcome.state is DeliveryState.DELIVERED:
        return False
    return judge(outcome).bounce_class is BounceClass.BLOCK


def asked(delivery: Delivery) -> Asked | None:
    """Return a delivery's addresses in normal form; None where its recipient was never one."""
    try:
        address = normalise(delivery.recipient.address)
    except AddressSyntax:
        return None  # nothing that was never an address can have been suppressed
    return Asked(delivery.id, delivery.organization_id, address, sender_of(delivery.envelope.reverse_path))


def sender_of(reverse_path: str | None) -> str:
    """Return a reverse-path in normal form, '' for the null one and for what is no address."""
    try:
        return normalise(reverse_path) if reverse_path else ""
    except AddressSyntax:
        return ""
