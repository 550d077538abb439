"""The doors of the SMTP server: MX, submission with STARTTLS, submission over TLS.

Pure. Owns what differs between them: source, TLS, who must log in, and what EHLO
announces in each state. RFC 6409, 8314, 5321 4.1.1.1, 9422 (LIMITS).
"""

from __future__ import annotations

from dataclasses import dataclass

from server.smtp import sasl
from server.smtp.grammar import Dialect
from storage.records import Source


@dataclass(frozen=True, slots=True)
class Door:
    """One kind of listener. needs_login: MAIL is refused before AUTH, and AUTH before TLS."""

    name: str
    source: Source
    implicit_tls: bool
    needs_login: bool


MX = Door("mx", Source.MX, implicit_tls=False, needs_login=False)
SUBMISSION = Door("submission", Source.SUBMISSION, implicit_tls=False, needs_login=True)
SUBMISSIONS = Door("submissions", Source.SUBMISSION, implicit_tls=True, needs_login=True)

_MAIL = frozenset({b"SIZE", b"BODY", b"SMTPUTF8", b"RET", b"ENVID"})
_RCPT = frozenset({b"NOTIFY", b"ORCPT"})
# RFC 3461 is spoken with our own users alone: what other servers bring gets no notices of success.
_RECEIVED = frozenset({b"SIZE", b"BODY", b"SMTPUTF8"})

PLAIN = Dialect()
EXTENDED = Dialect(_RECEIVED)
EXTENDED_WIDE = Dialect(_RECEIVED, wide=True)
# RFC 4954 3: who announces AUTH understands the parameter of MAIL.
SUBMITTING = Dialect(_MAIL | {b"AUTH"}, _RCPT)
SUBMITTING_WIDE = Dialect(_MAIL | {b"AUTH"}, _RCPT, wide=True)


def keywords(
    door: Door, *, max_octets: int, max_recipients: int, tls_offered: bool, tls_active: bool
) -> tuple[str, ...]:
    """Return the EHLO keywords of a session in its state."""
    announced = [
        "PIPELINING",
        f"SIZE {max_octets}",
        "8BITMIME",
        "SMTPUTF8",
        "ENHANCEDSTATUSCODES",
        *(["DSN"] if door.needs_login else []),
        "CHUNKING",
        f"LIMITS RCPTMAX={max_recipients}",
        "HELP",
    ]
    if tls_offered and not tls_active:
        announced.append("STARTTLS")
    if door.needs_login and tls_active:
        announced.append("AUTH " + " ".join(sasl.MECHANISMS))
    return tuple(announced)
