"""Next hops as the configuration writes them: `mx`, `smtp:192.0.2.1:25`, `lmtp:…`, `capture`, `refuse`.

Owns the grammar of delivery routes and the dataclass that carries a parsed one.
Resolves no name and opens no connection.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

_HOST = re.compile(
    r"(smtp|smtp\+tls|smtps|lmtp):(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})"
    r"(?:,login=([A-Za-z0-9._-]{1,64}))?"
)
FORMS = (
    "mx, smtp:HOST:PORT, smtp+tls:HOST:PORT, smtps:HOST:PORT, lmtp:HOST:PORT, relay, capture or refuse; "
    "behind smtp+tls and smtps perhaps ,login=NAME"
)


class NextHopKind(str, Enum):
    """How mail leaves: by the DNS, to a fixed host, by the relay lane, into the outbox, or not at all."""

    MX = "mx"
    SMTP = "smtp"
    LMTP = "lmtp"
    RELAY = "relay"
    CAPTURE = "capture"
    REFUSE = "refuse"


class HopTls(str, Enum):
    """What a fixed host's TLS must be: as it can be had, verified by STARTTLS, verified from the start."""

    OPPORTUNISTIC = "smtp"
    VERIFIED = "smtp+tls"
    IMPLICIT = "smtps"


class NextHopSyntax(ValueError):
    """A next hop that cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class NextHop:
    """Where mail for a domain goes. host and port: of smtp and lmtp; host is a name or an IP address.

    login: the name in `delivery.logins` of what is shown there, '' for none.
    """

    kind: NextHopKind
    host: str = ""
    port: int = 0
    tls: HopTls = HopTls.OPPORTUNISTIC
    login: str = ""


def parse_next_hop(text: str) -> NextHop:
    """Return the next hop that a text names, in one of FORMS.

    HOST is a name, an IPv4 address or an IPv6 address in brackets. Raises NextHopSyntax.
    """
    if text in {"mx", "relay", "capture", "refuse"}:
        return NextHop(NextHopKind(text))
    found = _HOST.fullmatch(text)
    if not found or not 1 <= int(found[4]) <= 65535:
        raise NextHopSyntax(f"{text!r} is none of {FORMS}")
    scheme, login = found[1], found[5] or ""
    if login and scheme not in (HopTls.VERIFIED.value, HopTls.IMPLICIT.value):
        raise NextHopSyntax(f"{text!r}: a login is shown under verified TLS alone: smtp+tls or smtps")
    kind = NextHopKind.LMTP if scheme == "lmtp" else NextHopKind.SMTP
    tls = HopTls.OPPORTUNISTIC if scheme == "lmtp" else HopTls(scheme)
    return NextHop(kind, found[2] or found[3], int(found[4]), tls, login)
