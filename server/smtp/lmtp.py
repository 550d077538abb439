"""What LMTP does otherwise than SMTP: hosts that are vouched for, and an answer for each recipient.

Owns the replies to a whole message. The clients are servers of this house that have
taken the message in before: nothing is asked about them, and the sender of what they
bring is not checked again, unless a PROXY header or XCLIENT says who the client was.
RFC 2033 4.2 and 4.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.refusal import Refusal
from server.smtp import replies

if TYPE_CHECKING:
    from server.arrival import Arrival
    from server.smtp.session import Session


def is_vouched(session: Session) -> bool:
    """Whether the client is a host of this house that speaks for nobody else."""
    return session.door.lmtp and not session.peer.address


def answers_owed(session: Session) -> int:
    """Return how many replies the end of content owes (RFC 2033 4.2), one over SMTP."""
    if not session.door.lmtp or session.transaction is None:
        return 1
    return max(1, len(session.transaction.recipients))


async def take(session: Session, arrival: Arrival) -> bytes:
    """Hand a message to intake; returns the replies, one a recipient in the order of RCPT."""
    answers = await session.server.intake.accept_each(arrival)
    repertoire = replies.Repertoire.UTF8 if arrival.envelope.smtputf8 else replies.Repertoire.ASCII
    return b"".join(
        replies.of_refusal(_for_one(answer), repertoire)
        if isinstance(answer, Refusal)
        else replies.taken(answer.message_ids)
        for answer in answers
    )


def _for_one(refusal: Refusal) -> Refusal:
    # RFC 5321 3.8: 421 speaks of the connection, and here of one recipient's mail.
    if refusal.code != 421:
        return refusal
    return Refusal(451, refusal.enhanced, refusal.public, refusal.cause)


def refuse_message(session: Session, refusal: Refusal) -> None:
    """Refuse a whole message, to each recipient that is owed an answer."""
    for _ in range(answers_owed(session) - 1):
        session.reply(replies.of_refusal(refusal))
    session.refuse(refusal)
