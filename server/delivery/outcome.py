"""What an attempt's answers mean for a delivery: delivered, deferred or bounced.

Owns the reading of replies and of failures that had none. Temporary is the
default; permanent is proved: by a 5yz reply to MAIL, RCPT, DATA or the final
dot, by a domain that does not exist (NXDOMAIN) or takes no mail (RFC 7505).
Pure. RFC 5321 4.2, RFC 3463, RFC 7505.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from server.smtp.client_machine import Answer
from server.smtp.client_reply import Reply
from storage.records import DeliveryState, Handover, Outcome

# Before MAIL a refusal speaks of us or of the host, not of the recipient: another host or day may differ.
HOST_PHASES = frozenset({"connect", "ehlo", "tls", "auth"})
# 503: we and the server differ about where we are; 530, 535, 538: it wants TLS or a login first.
NOT_PROVED = frozenset({503, 530, 535, 538})


@dataclass(frozen=True, slots=True)
class Hop:
    """The server that answered: name, IP address, TLS as negotiated, and who tells of success behind it.

    tls_policy, tls_reason: which policy its TLS was held to, and why. passed_over: what was tried before.
    """

    host: str = ""
    address: str = ""
    tls_version: str | None = None
    tls_cipher: str | None = None
    handover: Handover = Handover.RELAYED
    tls_policy: str = ""
    tls_reason: str = ""
    passed_over: tuple[str, ...] = ()


NO_HOP = Hop()


def read_answer(
    answer: Answer,
    hop: Hop = NO_HOP,
    *,
    duration: int = 0,
    note: str = "",
    dialogue: tuple[str, ...] = (),
) -> Outcome:
    """Return what an answer means. duration: microseconds; note: put in front of the text."""
    reply = answer.reply
    found = Outcome(
        state=_state(answer.phase, reply),
        code=reply.code if reply else 0,
        enhanced=reply.enhanced if reply else "",
        text=f"{note}: {answer.text}" if note else answer.text,
        phase=answer.phase,
        duration=duration,
        dialogue=dialogue,
    )
    outcome = _placed(found, hop)
    if outcome.phase == "final" and reply is None:
        return replace(
            outcome, text=f"{outcome.text}, after all of the message was sent: it may have arrived"
        )
    return outcome


def _state(phase: str, reply: Reply | None) -> DeliveryState:
    if reply is None:
        return DeliveryState.DEFERRED
    if phase == "final" and 200 <= reply.code < 300:
        return DeliveryState.DELIVERED
    if reply.code < 500 or phase in HOST_PHASES or reply.code in NOT_PROVED:
        return DeliveryState.DEFERRED
    if phase == "rcpt" and too_many_recipients(reply):
        return DeliveryState.DEFERRED
    return DeliveryState.BOUNCED


def too_many_recipients(reply: Reply) -> bool:
    """Whether a reply to RCPT only says that this transaction is full (RFC 5321 4.5.3.1.10)."""
    if reply.enhanced:
        return reply.enhanced[2:] == "5.3"
    return reply.code in (452, 552)


def in_doubt(outcome: Outcome) -> bool:
    """Whether the whole message was sent and no reply came."""
    return outcome.phase == "final" and outcome.code == 0 and outcome.state is DeliveryState.DEFERRED


def slows_down(outcome: Outcome) -> bool:
    """Whether an outcome asks for fewer attempts at once: nobody there, or a plea to come later."""
    if outcome.state is not DeliveryState.DEFERRED:
        return False
    no_answer = outcome.phase in HOST_PHASES or (outcome.code == 0 and outcome.phase != "policy")
    return no_answer or outcome.code == 421 or outcome.enhanced.startswith("4.7.")


def deferred(phase: str, text: str, *, enhanced: str = "", hop: Hop = NO_HOP, duration: int = 0) -> Outcome:
    """Return a temporary failure of our own finding."""
    return _placed(
        Outcome(DeliveryState.DEFERRED, enhanced=enhanced, text=text, phase=phase, duration=duration), hop
    )


def bounced(
    phase: str, code: int, enhanced: str, text: str, *, hop: Hop = NO_HOP, duration: int = 0
) -> Outcome:
    """Return a permanent failure of our own finding, with the code that RFCs give it."""
    return _placed(Outcome(DeliveryState.BOUNCED, code, enhanced, text, phase, duration=duration), hop)


def delivered(text: str, *, handover: Handover, host: str = "") -> Outcome:
    """Return a delivery that needed no other server."""
    return Outcome(DeliveryState.DELIVERED, 250, "2.0.0", text, "final", host=host, handover=handover)


def null_mx(domain: str) -> Outcome:
    """RFC 7505 4.1: the domain says that it takes no mail."""
    return bounced("dns", 556, "5.1.10", f"{domain} takes no mail (null MX)")


def no_such_domain(domain: str) -> Outcome:
    """NXDOMAIN: the name does not exist (RFC 3463 3.2, X.1.2)."""
    return bounced("dns", 550, "5.1.2", f"the domain {domain} does not exist")


def _placed(outcome: Outcome, hop: Hop) -> Outcome:
    return replace(
        outcome,
        host=hop.host,
        address=hop.address,
        tls_version=hop.tls_version,
        tls_cipher=hop.tls_cipher,
        handover=hop.handover,
        tls_policy=hop.tls_policy,
        tls_reason=hop.tls_reason,
        passed_over=hop.passed_over,
    )
