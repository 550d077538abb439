"""The doors of the SMTP server: MX, submission with STARTTLS, submission over TLS, LMTP.

Pure. Owns what differs between them: source, TLS, who must log in, and what EHLO
announces and understands in each state. RFC 6409, 8314, 2033, 5321 4.1.1.1, 3030, 3461,
8689 (REQUIRETLS), 4865 (FUTURERELEASE), 9422 (LIMITS).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from server.smtp import sasl
from server.smtp.grammar import Dialect
from storage.records import Source


@dataclass(frozen=True, slots=True)
class Door:
    """One kind of listener.

    needs_login: MAIL is refused before AUTH, and AUTH before TLS. lmtp: LHLO instead of
    EHLO, an answer for each recipient, and clients that are hosts of this house.
    """

    name: str
    source: Source
    implicit_tls: bool
    needs_login: bool
    lmtp: bool = False


MX = Door("mx", Source.MX, implicit_tls=False, needs_login=False)
SUBMISSION = Door("submission", Source.SUBMISSION, implicit_tls=False, needs_login=True)
SUBMISSIONS = Door("submissions", Source.SUBMISSION, implicit_tls=True, needs_login=True)
LMTP = Door("lmtp", Source.LMTP, implicit_tls=False, needs_login=False, lmtp=True)

_MAIL = frozenset({b"SIZE", b"BODY", b"SMTPUTF8", b"RET", b"ENVID"})
_RCPT = frozenset({b"NOTIFY", b"ORCPT"})

PLAIN = Dialect()
EXTENDED = Dialect(_MAIL, _RCPT)
# RFC 8689 2 (3): REQUIRETLS is understood only where TLS protects it.
EXTENDED_TLS = Dialect(_MAIL | {b"REQUIRETLS"}, _RCPT)
# RFC 4954 3: who announces AUTH understands the parameter of MAIL.
SUBMITTING = Dialect(_MAIL | {b"REQUIRETLS", b"AUTH"}, _RCPT)
SUBMITTING_HELD = Dialect(SUBMITTING.mail | {b"HOLDFOR", b"HOLDUNTIL"}, _RCPT)


def widened(dialect: Dialect) -> Dialect:
    """Return a dialect as it is in a transaction begun with SMTPUTF8."""
    return replace(dialect, wide=True)


def keywords(
    door: Door,
    *,
    max_octets: int,
    max_recipients: int,
    tls_offered: bool,
    tls_active: bool,
    hold: str = "",
    xclient: str = "",
) -> tuple[str, ...]:
    """Return the EHLO keywords of a session in its state. hold: FUTURERELEASE's limits, '' for none.

    xclient: how XCLIENT is announced to those who may say it.
    """
    announced = [
        "PIPELINING",
        f"SIZE {max_octets}",
        "8BITMIME",
        "SMTPUTF8",
        "ENHANCEDSTATUSCODES",
        "DSN",
        "CHUNKING",
        "BINARYMIME",
        f"LIMITS RCPTMAX={max_recipients}",
        "HELP",
    ]
    if tls_offered and not tls_active:
        announced.append("STARTTLS")
    if tls_active:
        announced.append("REQUIRETLS")
    if hold:
        announced.append(f"FUTURERELEASE {hold}")
    if door.needs_login and tls_active:
        announced.append("AUTH " + " ".join(sasl.MECHANISMS))
    if xclient:
        announced.append(xclient)
    return tuple(announced)
