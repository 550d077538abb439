"""What becomes of a message whose inbox went between the 250 and its placing.

Owns the choice: the sender is told by a notice where one may be told (RFC 5321 6.1,
4.5.5; RFC 3461 4.1), else the message stays aside for the operator. Until the notice
is on its way the file lies aside in both cases, and an event says which.
"""

from __future__ import annotations

from storage.records import Accepted, LocalTarget, Recipient, Source

# Doors by which a stranger's mail comes: of one's own Sent copy nobody needs a notice.
_TOLD = frozenset({Source.MX, Source.LMTP, Source.LOCAL, Source.FORWARD})
CODE, ENHANCED, TEXT = 550, "5.2.1", "Mailbox is closed"


def told(record: Accepted, target: LocalTarget, *, file: str) -> tuple[str, dict[str, object]]:
    """Return kind and data of the event for one local target that has no place. file: its name in aside/."""
    recipient = _recipient(record, target)
    data: dict[str, object] = {"recipient": target.recipient, "file": file}
    if recipient is None:
        return "message.aside", data
    data |= {"code": CODE, "enhanced": ENHANCED, "text": TEXT, "orcpt": recipient.orcpt or ""}
    return "message.bounced", data


def _recipient(record: Accepted, target: LocalTarget) -> Recipient | None:
    """Return the recipient whose sender may be told, None where nobody may."""
    if record.source not in _TOLD or record.envelope.reverse_path is None:
        return None
    for recipient in record.envelope.recipients:
        if recipient.address == target.recipient:
            may_tell = recipient.notify is None or "FAILURE" in recipient.notify
            return recipient if may_tell else None
    return None  # a copy that policy made: its sender knows nothing of it
