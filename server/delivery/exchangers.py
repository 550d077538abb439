"""The hosts that take a domain's mail, in the order in which they are tried.

Owns the reading of MX and address records: preference, implicit MX, null MX,
loops to ourselves, addresses that mail must not go to. Opens no connection.
RFC 5321 5.1, RFC 7505 (null MX).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

from server import dns
from server.delivery import outcome
from server.dns import DnsFailure, DnsTemporary, Mx, NoAnswer, NoSuchDomain
from server.mail.address import literal_address
from server.mail.network import is_public
from server.next_hop import HopTls, NextHop, NextHopKind
from server.smtp.client import Endpoint
from server.smtp.client_machine import Credentials, Dialect
from server.transport.security import NO_POLICY, OPPORTUNISTIC, WEBPKI, Applied, Fault
from server.transport.tlsa import base_names

if TYPE_CHECKING:
    from server.dns import Resolver
    from storage.records import Outcome

SMTP_PORT = 25
# RFC 5321 5.1 asks for at least two addresses; beyond these a domain gains nothing by more.
HOSTS_LIMIT = 10
ADDRESSES_LIMIT = 8


class Unroutable(Exception):
    """No host can be named now; outcome says whether that may change."""

    def __init__(self, found: Outcome) -> None:
        super().__init__(found.text)
        self.outcome = found


@dataclass(frozen=True, slots=True)
class Exchanger:
    """One host of a domain with its addresses; those of one preference are equals.

    authenticated: its name is beyond doubt, by DNSSEC or by configuration. tlsa_names: where its TLSA
    records would be, none where DNSSEC does not prove all of the way there. applied, obstacle: which policy
    there is, and why it forbids the host. is_named: MTA-STS names it; is_unknown: there may be a policy.
    """

    preference: int
    endpoints: tuple[Endpoint, ...]
    authenticated: bool = False
    domain: str = ""
    tlsa_names: tuple[str, ...] = ()
    applied: Applied = NO_POLICY
    obstacle: Fault | None = None
    is_named: bool = False
    is_unknown: bool = False

    @property
    def host(self) -> str:
        """The name that the MX record gives."""
        return self.endpoints[0].host


class Exchangers:
    """Finds hosts by a resolver. hostname: our own, whose MX records mark a loop."""

    def __init__(
        self,
        resolver: Resolver,
        *,
        hostname: str,
        allow_private_addresses: bool,
        port: int = SMTP_PORT,
        logins: Mapping[str, Credentials] | None = None,
    ) -> None:
        self._logins = logins or {}
        self._resolver = resolver
        self._hostname = hostname.lower()
        self._allow_private = allow_private_addresses
        self._port = port

    async def of_hop(self, hop: NextHop) -> tuple[Exchanger, ...]:
        """Return the one host that a configured hop names; raises Unroutable."""
        dialect = Dialect.LMTP if hop.kind is NextHopKind.LMTP else Dialect.SMTP
        if hop.login and hop.login not in self._logins:
            text = f"the next hop wants the login {hop.login}, which delivery.logins has not"
            raise Unroutable(outcome.deferred("policy", text, enhanced="4.3.5"))
        try:
            ip_address(hop.host)
            found: tuple[str, ...] = (hop.host,)
        except ValueError:
            try:
                found = await dns.addresses(self._resolver, hop.host)
            except DnsFailure as failure:
                # Configured by hand: whatever is wrong with it, the mail is not to blame.
                raise Unroutable(outcome.deferred("dns", str(failure), enhanced="4.4.3")) from None
        place = Endpoint(
            hop.host,
            "",
            hop.port,
            dialect,
            security=OPPORTUNISTIC if hop.tls is HopTls.OPPORTUNISTIC else WEBPKI,
            implicit_tls=hop.tls is HopTls.IMPLICIT,
            login=self._logins.get(hop.login),
        )
        return (Exchanger(0, tuple(replace(place, address=one) for one in found), True),)

    async def of_domain(self, domain: str) -> tuple[Exchanger, ...]:
        """Return a domain's hosts, best preference first; raises Unroutable."""
        if domain.startswith("["):
            return (self._literal(domain),)
        hosts, implicit, authenticated = await self._hosts(domain)
        found: list[Exchanger] = []
        problems: list[str] = []
        unknown = False
        for record in hosts[:HOSTS_LIMIT]:
            try:
                addresses = await dns.host_addresses(self._resolver, record.host)
            except DnsFailure as failure:
                problems.append(str(failure))
                unknown = unknown or isinstance(failure, DnsTemporary)
                continue
            exchanger = self._exchanger(record, addresses.addresses)
            if exchanger.endpoints:
                # The zone that proves its address proves as well that it has no MX record (RFC 7672 2.2.1).
                is_proved = addresses.authenticated and not addresses.canonical if implicit else authenticated
                names = await base_names(self._resolver, record.host, addresses) if is_proved else ()
                found.append(replace(exchanger, authenticated=is_proved, domain=domain, tlsa_names=names))
            else:
                problems.append(f"{record.host} has addresses of private networks only")
                unknown = True
        if found:
            return tuple(found)
        text = f"{domain} has no host that takes mail: {'; '.join(problems)}"
        if implicit and not unknown:
            raise Unroutable(outcome.bounced("dns", 550, "5.4.4", text))
        raise Unroutable(outcome.deferred("dns", text, enhanced="4.4.4"))

    async def _hosts(self, domain: str) -> tuple[Sequence[Mx], bool, bool]:
        """Return the MX records to try, whether they are the implicit one, and whether DNSSEC proves them."""
        try:
            answer = await dns.mx(self._resolver, domain)
            records: Sequence[Mx] = answer.records
        except NoSuchDomain:
            raise Unroutable(outcome.no_such_domain(domain)) from None
        except NoAnswer:
            # RFC 5321 5.1: without MX records the domain is its own host.
            return (Mx(0, domain),), True, False
        except DnsTemporary as failure:
            raise Unroutable(outcome.deferred("dns", str(failure), enhanced="4.4.3")) from None
        if all(not record.host for record in records):
            raise Unroutable(outcome.null_mx(domain))
        named = self._without_loop(domain, [record for record in records if record.host])
        return named, False, answer.authenticated

    def _without_loop(self, domain: str, records: list[Mx]) -> list[Mx]:
        ours = [record.preference for record in records if record.host == self._hostname]
        if not ours:
            return records
        # RFC 5321 5.1: where we are listed, only better ones are tried.
        better = [record for record in records if record.preference < min(ours)]
        if not better:
            raise Unroutable(
                outcome.bounced("dns", 554, "5.4.6", f"the MX records of {domain} lead back to this server")
            )
        return better

    def _exchanger(self, record: Mx, addresses: Sequence[str]) -> Exchanger:
        usable = [one for one in addresses if self._allow_private or is_public(one)]
        chosen = interleave(usable)[:ADDRESSES_LIMIT]
        return Exchanger(record.preference, tuple(Endpoint(record.host, one, self._port) for one in chosen))

    def _literal(self, domain: str) -> Exchanger:
        address = literal_address(domain)
        if address is None:
            raise Unroutable(outcome.bounced("dns", 550, "5.1.2", f"{domain} names no IP address"))
        if not (self._allow_private or is_public(address)):
            text = f"{domain} is an address of a private network"
            raise Unroutable(outcome.bounced("dns", 550, "5.4.4", text))
        return Exchanger(0, (Endpoint(domain, address, self._port),))


def interleave(addresses: Sequence[str]) -> list[str]:
    """Return addresses with the families in turn, IPv6 first, so that one dead family costs one wait."""
    wide = [one for one in addresses if ":" in one]
    narrow = [one for one in addresses if ":" not in one]
    paired = [one for pair in zip(wide, narrow, strict=False) for one in pair]
    shorter = min(len(wide), len(narrow))
    return [*paired, *wide[shorter:], *narrow[shorter:]]


def in_order(exchangers: Sequence[Exchanger], dice: random.Random) -> list[Exchanger]:
    """Return exchangers by preference, equals in random order (RFC 5321 5.1)."""
    shuffled = list(exchangers)
    dice.shuffle(shuffled)
    shuffled.sort(key=lambda one: one.preference)
    return shuffled
