"""TLSA records of a host, where DNSSEC proves that they are its own.

Owns the names that are asked for, their order, and what a failed lookup means. Decides about
no certificate. RFC 7672 2.2.2 and 2.2.3, 3.1.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.dns import DnsFailure, DnsTemporary
from server.transport.dane import usable
from server.transport.security import Fault, ResultType, Tlsa

if TYPE_CHECKING:
    from server.dns import Found, Resolver

SMTP_PORT = 25
MAX_NAME_OCTETS = 253


@dataclass(frozen=True, slots=True)
class Anchors:
    """What DANE asks of a host. base: the name that has the records; records: the usable ones.

    With a base and no records TLS is a must and authenticates nobody (RFC 7672 2.2). fault: nothing is
    known, and the host is passed over.
    """

    base: str = ""
    records: tuple[Tlsa, ...] = ()
    fault: Fault | None = None


NONE = Anchors()


async def base_names(resolver: Resolver, host: str, found: Found) -> tuple[str, ...]:
    """Return the TLSA base domains of a host, the best first; none where DANE does not apply to it."""
    if found.authenticated:
        return (found.canonical, host) if found.canonical else (host,)
    if not found.canonical:
        return ()
    # RFC 7672 2.2.2: an alias in a signed zone that leads out of it still has records of its own.
    try:
        alias = await resolver.resolve(host, "CNAME")
    except DnsFailure:
        return ()
    return (host,) if alias.authenticated else ()


async def find_anchors(resolver: Resolver, names: tuple[str, ...], *, port: int = SMTP_PORT) -> Anchors:
    """Return what the first base domain that has TLSA records asks; never raises for a stranger."""
    for base in names:
        name = f"_{port}._tcp.{base}"
        if len(name) > MAX_NAME_OCTETS:
            continue
        try:
            answer = await resolver.resolve(name, "TLSA")
        except DnsTemporary as failure:
            # RFC 7672 2.1.2: bogus or unreachable, and nobody can say which.
            return Anchors(
                fault=Fault(ResultType.DNSSEC_INVALID, f"the TLSA records are not known: {failure}")
            )
        except DnsFailure:
            continue
        if not answer.authenticated:
            continue
        return Anchors(base, usable(Tlsa(*record) for record in answer.records))
    return NONE
