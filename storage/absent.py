"""What becomes of a message whose inbox went between the 250 and its placing.

Owns the choice: the sender is told by a notice where one may be told (RFC 5321 6.1,
4.5.5; RFC 3461 4.1), else the message stays aside for the operator. Until the notice
is on its way the file lies aside in both cases, and an event says which.
"""

from __future__ import annotations

from storage.codec import Encoded, read_decision, read_envelope
from storage.records import LocalTarget, Recipient, Source

# Doors by which a stranger's mail comes: of one's own Sent copy nobody needs a notice.
_TOLD = frozenset({Source.MX, Source.LMTP, Source.LOCAL, Source.FORWARD})
CODE, ENHANCED, TEXT = 550, "5.2.1", "Mailbox is closed"


def told(encoded: Encoded, target: LocalTarget, *, file: str) -> list[tuple[str, dict[str, object]]]:
    """Return kind and data of the events for one local target that has no place. file: its name in aside/."""
    recipients = _recipients(encoded, target)
    if not recipients:
        return [("message.aside", {"recipient": target.recipient, "file": file})]
    data: dict[str, object] = {"code": CODE, "enhanced": ENHANCED, "text": TEXT, "file": file}
    # What stands on top of this inbox's copy is not the sender's affair.
    data["prefix_octets"] = len(target.prefix)
    return [
        ("message.bounced", {"recipient": one.address, "orcpt": one.orcpt or "", **data})
        for one in recipients
    ]


def _recipients(encoded: Encoded, target: LocalTarget) -> list[Recipient]:
    """Return the recipients whose sender may be told.

    A redirect stands for all that the sender named; a copy that policy made for none of them.
    """
    record = encoded.record
    if record.source not in _TOLD or record.envelope.reverse_path is None:
        return []
    # By the texts: a worker's record has no objects made of them.
    is_redirect = read_decision(encoded.decision).redirect == target.recipient
    recipients = read_envelope(encoded.envelope).recipients
    named = [one for one in recipients if is_redirect or one.address == target.recipient]
    return [one for one in named if one.notify is None or "FAILURE" in one.notify]
