"""Next hops as the configuration writes them: `mx`, `smtp:192.0.2.1:25`, `lmtp:…`, `capture`, `refuse`.

Owns the grammar of delivery routes and the dataclass that carries a parsed one.
Resolves no name and opens no connection.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum


class NextHopKind(str, Enum):
    """How mail leaves: by the DNS, to a fixed host, into the outbox, or not at all."""

    MX = "mx"
    SMTP = "smtp"
    LMTP = "lmtp"
    CAPTURE = "capture"
    REFUSE = "refuse"


class NextHopSyntax(ValueError):
    """A next hop that cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class NextHop:
    """Where mail for a domain goes. host and port: of smtp and lmtp; host is a name or an IP address."""

    kind: NextHopKind
    host: str = ""
    port: int = 0


def parse_next_hop(text: str) -> NextHop:
    """Return the next hop that `mx`, `smtp:HOST:PORT`, `lmtp:HOST:PORT`, `capture` or `refuse` names.

    HOST is a name, an IPv4 address or an IPv6 address in brackets. Raises NextHopSyntax.
    """
    if text in {"mx", "capture", "refuse"}:
        return NextHop(NextHopKind(text))
    found = re.fullmatch(r"(smtp|lmtp):(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", text)
    if not found or not 1 <= int(found[4]) <= 65535:
        raise NextHopSyntax(f"{text!r} is none of mx, smtp:HOST:PORT, lmtp:HOST:PORT, capture, refuse")
    return NextHop(NextHopKind(found[1]), found[2] or found[3], int(found[4]))
