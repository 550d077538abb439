"""Names resolved: the Resolver port, and the caching resolver behind it.

Owns the typed answers, the three ways in which a lookup fails, a TTL cache
bounded in entries and octets with negative answers, and one query at a time
for one question. Trusts the AD bit of the configured resolver (RFC 4035
3.2.3); validates nothing itself, and asks nothing for what can be no name.
RFC 1035, 2308 (negative caching), 8020 (NXDOMAIN), 9520 (failures).
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver

if TYPE_CHECKING:
    from server.clock import Clock

MAX_TTL_SECONDS = 86_400
NEGATIVE_TTL_SECONDS = 300  # RFC 2308 5 lets us stop at less than the SOA says
FAILURE_TTL_SECONDS = 5  # RFC 9520 3.2: failures are cached too, briefly
EDNS_OCTETS = 1232
MAX_CACHE_OCTETS = 64 << 20
ENTRY_OCTETS = 400  # what one entry costs beside its text, about
MAX_QUERIES = 500  # at one time; more wait for one of them to end
BelieveAd = Literal["loopback", "any", "never"]
TRY_SECONDS = 2.0  # how long one server is waited for before the next


class DnsFailure(Exception):
    """A lookup without records; the text names question and reason."""


class NoSuchDomain(DnsFailure):
    """The name does not exist (NXDOMAIN)."""


class NoAnswer(DnsFailure):
    """The name exists and has no record of the type."""


class DnsTemporary(DnsFailure):
    """Nothing is known: timeout, SERVFAIL, refused; ask again later."""


@dataclass(frozen=True, slots=True)
class Mx:
    """One MX record; host in lower case without the final dot, '' for the null MX (RFC 7505)."""

    preference: int
    host: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The records of one question.

    records by type: A, AAAA, PTR, CNAME, NS: text; MX: Mx; TXT: tuple of octet strings;
    TLSA: (usage, selector, matching type, octets). ttl: seconds left when it was
    fetched. authenticated: the resolver's AD bit. canonical: the name that aliases led to, '' where
    there was none.
    """

    records: tuple[Any, ...]
    ttl: int
    authenticated: bool
    canonical: str = ""


class Resolver(Protocol):
    """Where names are asked for."""

    async def resolve(self, name: str, rdtype: str) -> Answer:
        """Return the records; raises NoSuchDomain, NoAnswer or DnsTemporary."""
        ...


async def mx(resolver: Resolver, domain: str) -> Answer:
    """Return a domain's MX records, lowest preference first."""
    found = await resolver.resolve(domain, "MX")
    ordered = tuple(sorted(found.records, key=lambda record: record.preference))
    return Answer(ordered, found.ttl, found.authenticated)


async def host_addresses(resolver: Resolver, host: str) -> Found:
    """Return a host's addresses and whether DNSSEC proves them.

    Raises NoSuchDomain, NoAnswer where it has neither, DnsTemporary where that is not known.
    """
    answers = await asyncio.gather(
        resolver.resolve(host, "AAAA"), resolver.resolve(host, "A"), return_exceptions=True
    )
    found: list[Answer] = []
    failures: list[BaseException] = []
    for answer in answers:
        if isinstance(answer, BaseException):
            failures.append(answer)
        elif answer.records:
            found.append(answer)
    if found:
        return Found(
            tuple(address for answer in found for address in answer.records),
            all(answer.authenticated for answer in found),
            found[0].canonical if len({answer.canonical for answer in found}) == 1 else "",
        )
    for failure in sorted(failures, key=lambda one: not isinstance(one, DnsTemporary)):
        raise failure
    raise NoAnswer(f"{host}: no address")


@dataclass(frozen=True, slots=True)
class Found:
    """A host's addresses, IPv6 first. authenticated: all answers were; canonical: as Answer has it."""

    addresses: tuple[str, ...]
    authenticated: bool
    canonical: str = ""


async def addresses(resolver: Resolver, host: str) -> tuple[str, ...]:
    """Return a host's addresses, IPv6 first; fails as host_addresses does."""
    return (await host_addresses(resolver, host)).addresses


@dataclass(frozen=True, slots=True)
class _Entry:
    """One cached answer or failure; until by the clock's monotonic time."""

    until: float
    known: Answer | DnsFailure
    octets: int


class CachingResolver:
    """Asks the configured recursive resolvers and remembers what they said."""

    def __init__(
        self,
        *,
        servers: Sequence[str],
        timeout_seconds: float,
        cache_entries: int,
        clock: Clock,
        believe_ad: BelieveAd = "loopback",
    ) -> None:
        self._clock = clock
        self._believe_ad = believe_ad
        self._limit = cache_entries
        self._cache: dict[tuple[str, str], _Entry] = {}
        self._octets = 0
        self._asking: dict[tuple[str, str], asyncio.Future[Answer]] = {}
        self._slots = asyncio.Semaphore(MAX_QUERIES)
        self._resolver = _configured(servers, timeout_seconds)

    async def resolve(self, name: str, rdtype: str) -> Answer:
        """Return the records of a name (A-labels, final dot or not); raises as Resolver says."""
        question = (name.rstrip(".").lower(), rdtype)
        known = self._remembered(question)
        if known is None:
            asking = self._asking.get(question)
            if asking is None:
                asking = self._asking[question] = asyncio.ensure_future(self._ask(question))
                asking.add_done_callback(lambda done: self._asked(question, done))
            # Shielded: one asker's deadline must not end the lookup of the others.
            return await asyncio.shield(asking)
        if isinstance(known, DnsFailure):
            raise type(known)(*known.args)
        return known

    async def close(self) -> None:
        """End the lookups that are under way and wait for their ends."""
        asking = list(self._asking.values())
        for lookup in asking:
            lookup.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    def _asked(self, question: tuple[str, str], done: asyncio.Future[Answer]) -> None:
        del self._asking[question]
        if not done.cancelled():
            done.exception()  # seen here, so that an abandoned lookup is not reported as unhandled

    def _remembered(self, question: tuple[str, str]) -> Answer | DnsFailure | None:
        entry = self._cache.get(question)
        return entry.known if entry is not None and entry.until > self._clock.monotonic() else None

    def _remember(self, question: tuple[str, str], known: Answer | DnsFailure, seconds: float) -> None:
        if seconds <= 0:
            return  # RFC 1035 3.2.1: a TTL of zero is for the transaction in progress
        now = self._clock.monotonic()
        entry = _Entry(now + min(seconds, MAX_TTL_SECONDS), known, _octets(question, known))
        replaced = self._cache.pop(question, None)
        self._octets += entry.octets - (replaced.octets if replaced is not None else 0)
        self._cache[question] = entry
        if len(self._cache) > self._limit or self._octets > MAX_CACHE_OCTETS:
            self._shrink(now)

    def _shrink(self, now: float) -> None:
        """Drop what has expired, then the oldest until a tenth is free: the cost is spread thin."""
        self._cache = {question: entry for question, entry in self._cache.items() if entry.until > now}
        self._octets = sum(entry.octets for entry in self._cache.values())
        for question in list(self._cache):
            if len(self._cache) <= self._limit * 9 // 10 and self._octets <= MAX_CACHE_OCTETS * 9 // 10:
                break
            self._octets -= self._cache.pop(question).octets

    async def _ask(self, question: tuple[str, str]) -> Answer:
        name, rdtype = question
        try:
            async with self._slots:
                answer = await self._query(_wire_name(name), rdtype)
        except _Denied as denied:
            self._remember(question, denied.failure, denied.seconds)
            raise denied.failure from None
        except DnsTemporary as failure:
            self._remember(question, failure, FAILURE_TTL_SECONDS)
            raise
        self._remember(question, answer, answer.ttl)
        return answer

    async def _query(self, name: dns.name.Name, rdtype: str) -> Answer:
        text = f"{name.to_text(omit_final_dot=True)} {rdtype}"
        if self._resolver is None:
            raise DnsTemporary(f"{text}: no resolver is configured")
        try:
            found = await self._resolver.resolve(name, rdtype, raise_on_no_answer=False, search=False)
        except dns.resolver.NXDOMAIN as denial:
            response = denial.response(name)  # type: ignore[no-untyped-call]  # dnspython left it without types
            seconds = _negative_seconds(response)
            raise _Denied(NoSuchDomain(f"{text}: no such domain"), seconds) from None
        except (dns.exception.DNSException, OSError, EOFError, ValueError) as error:
            raise DnsTemporary(f"{text}: {type(error).__name__}") from None
        if found.rrset is None:
            raise _Denied(NoAnswer(f"{text}: no such record"), _negative_seconds(found.response))
        records = tuple(_record(rdtype, record) for record in found.rrset)
        # The least TTL of the whole chain of aliases, not only of its end.
        seconds = min(found.chaining_result.minimum_ttl, MAX_TTL_SECONDS)
        canonical = _host(found.canonical_name) if found.canonical_name != name else ""
        return Answer(records, seconds, self._is_authenticated(found), canonical)

    def _is_authenticated(self, found: dns.resolver.Answer) -> bool:
        """Whether the AD bit is set, and by a resolver from which it means something (RFC 7672 2.2)."""
        if not found.response.flags & dns.flags.AD or self._believe_ad == "never":
            return False
        return self._believe_ad == "any" or _is_loopback(found.nameserver or "")


def _is_loopback(nameserver: str) -> bool:
    """Whether a nameserver is on this machine: nobody writes between us and it."""
    try:
        return ipaddress.ip_address(nameserver).is_loopback
    except ValueError:
        return False


class _Denied(Exception):
    """An authoritative 'there is none', and for how long it holds."""

    def __init__(self, failure: DnsFailure, seconds: int) -> None:
        super().__init__(failure)
        self.failure = failure
        self.seconds = seconds


def _wire_name(name: str) -> dns.name.Name:
    """Return the name label by label: a backslash or a quote from a stranger is a plain octet."""
    try:
        return dns.name.Name([label.encode("ascii") for label in name.split(".")] + [b""])
    except (dns.exception.DNSException, UnicodeError):
        raise _Denied(NoSuchDomain(f"{name[:80]!r}: no domain name"), 0) from None


def _negative_seconds(response: dns.message.Message) -> int:
    """RFC 2308 5: the lesser of the SOA's TTL and its MINIMUM; nothing is kept where there is no SOA."""
    try:
        chain = cast(dns.message.QueryMessage, response).resolve_chaining()
    except dns.exception.DNSException:
        return 0
    has_soa = any(rrset.rdtype == dns.rdatatype.SOA for rrset in response.authority)
    return min(chain.minimum_ttl, NEGATIVE_TTL_SECONDS) if has_soa else FAILURE_TTL_SECONDS


def _octets(question: tuple[str, str], known: Answer | DnsFailure) -> int:
    size = ENTRY_OCTETS + 2 * len(question[0])
    if isinstance(known, Answer):
        for record in known.records:
            size += 100 + (sum(map(len, record)) if question[1] == "TXT" else len(str(record)))
    return size


def _record(rdtype: str, record: Any) -> Any:
    if rdtype in ("A", "AAAA"):
        return str(record.address)
    if rdtype == "MX":
        return Mx(record.preference, _host(record.exchange))
    if rdtype == "TXT":
        return tuple(record.strings)
    if rdtype == "TLSA":
        return (record.usage, record.selector, record.mtype, record.cert)
    return _host(record.target)


def _host(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower() if name != dns.name.root else ""


def _configured(servers: Sequence[str], timeout_seconds: float) -> dns.asyncresolver.Resolver | None:
    """Return dnspython's resolver for servers 'IP' or 'IP:PORT'; none given means /etc/resolv.conf."""
    try:
        resolver = dns.asyncresolver.Resolver(configure=not servers)
    except dns.resolver.NoResolverConfiguration:
        return None
    if servers:
        resolver.nameservers = [_nameserver(server) for server in servers]
    resolver.lifetime = timeout_seconds
    resolver.timeout = min(timeout_seconds, TRY_SECONDS)
    resolver.use_edns(0, 0, EDNS_OCTETS)
    resolver.flags = dns.flags.RD | dns.flags.AD  # RFC 6840 5.7: AD in a query asks for AD in the answer
    resolver.cache = None
    return resolver


def _nameserver(server: str) -> dns.nameserver.Nameserver:
    host, port = server, 53
    if server.startswith("["):
        host, _, rest = server[1:].partition("]")
        port = int(rest[1:]) if rest else 53
    elif server.count(":") == 1:
        host, _, digits = server.partition(":")
        port = int(digits)
    return dns.nameserver.Do53Nameserver(host, port)
