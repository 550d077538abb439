"""SPF: may this address send for this domain.

Owns the use of pyspf with its DNS door replaced: the evaluation runs on what is
known, a miss ends it, the name is resolved asynchronously and it runs again.
The limits of RFC 7208 4.6.4 are pyspf's own; ours bound the size of what it
reads. HELO stands in for a null sender (2.4). RFC 7208, 8616 (A-labels).
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import spf

from server.dns import DnsFailure, DnsTemporary, Resolver
from server.sender_auth.names import domain_name
from storage.records import Verdict

if TYPE_CHECKING:
    from server.clock import Clock
    from server.threads import Threads

# 10 terms with 10 names each, their records, and an explanation (RFC 7208 4.6.4).
MAX_RUNS = 140
INLINE_OCTETS = 2048  # of records: up to this, an evaluation takes less than a millisecond
MAX_RECORDS = 100
MAX_RECORD_OCTETS = 8192
MAX_TERM_OCTETS = 512
MAX_EXPLANATION_OCTETS = 512
MEMORY_SECONDS = 60.0  # for which an outcome is remembered at most
MEMORY_LIMIT = 10_000
MAX_NAMES = 10  # of MX and PTR, whose addresses are asked for at once (RFC 7208 4.6.4)

Question = tuple[str, str]
Record = tuple[Question, Any]


class _Missing(Exception):
    """An answer that the evaluation needs is not known yet."""


@dataclass(slots=True)
class _Known:
    """The answers so far, None for a temporary failure.

    family: the client's address records, A or AAAA. missing: the question the last run ended at.
    """

    family: str
    answers: dict[Question, list[Record] | None] = field(default_factory=dict)
    missing: Question | None = None
    octets: int = 0  # of all answers, about
    seconds: float = MEMORY_SECONDS  # for which all answers hold

    def add(self, question: Question, answers: list[Record] | None) -> None:
        self.answers[question] = answers
        self.octets += sum(map(_octets, answers or ()))

    def has_macros(self) -> bool:
        """Return whether any text may be another one for another sender (RFC 7208 7)."""
        return any(
            b"%{" in b"".join(value)
            for (_, rdtype), answers in self.answers.items()
            if rdtype == "TXT"
            for _, value in answers or ()
        )


class _Running(threading.local):
    """The evaluation that runs in this thread: pyspf asks by a module-level function."""

    known: _Known


_running = _Running()


def _look_up(name: str, rdtype: str, _strict: Any = True, _timeout: Any = 0) -> list[Record]:
    question = (name.lower(), rdtype)
    known = _running.known
    if question not in known.answers:
        known.missing = question
        raise _Missing
    answers = known.answers[question]
    if answers is None:
        raise spf.TempError("DNS lookup failed")
    return [((name, rdtype), value) for _, value in answers]


@dataclass(frozen=True, slots=True)
class _Client:
    """Whom the check is about: local part and domain are those of the identity."""

    address: str
    local: str
    domain: str
    helo: str
    receiver: str


class _InvalidMacro:
    """pyspf searches one text for bad macros once for each of its labels: the answer is kept."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern
        self._last: tuple[str, object] = ("", None)

    def search(self, text: str) -> object:
        last = self._last
        if last[0] != text:
            last = self._last = (text, self._pattern.search(text))
        return last[1]


spf.DNSLookup = _look_up
spf.RE_INVALID_MACRO = _InvalidMacro(spf.RE_INVALID_MACRO)
# The same language as pyspf's pattern, without its two ways through a run of letters.
_TOP_LABEL = r"\.(?:[0-9]*[a-z][0-9a-z]*|[0-9a-z]+-[0-9a-z-]*[0-9a-z])\.?$|"
spf.RE_TOPLAB = re.compile(_TOP_LABEL + spf.PAT_CHAR, re.IGNORECASE)


class _Query(spf.query):  # type: ignore[misc]  # pyspf carries no types
    """One evaluation over known answers, with bounds on the records it reads."""

    def check0(self, text: str, recursion: int) -> Any:
        if text and max(map(len, text.split(" "))) > MAX_TERM_OCTETS:
            raise spf.PermError("a term is too long")
        return super().check0(text, recursion)

    def dns_mx(self, domainname: str) -> list[str]:
        # RFC 7208 4.6.4 counts void terms: one whose MX or PTR exists is none, whatever its hosts have.
        found = sorted(self.dns(domainname, "MX"))
        if len(found) > spf.MAX_MX:
            raise spf.PermError(f"more than {spf.MAX_MX} MX records")
        return [address for _, host in found for address in self._addresses(host)]

    def _addresses(self, host: str) -> list[str]:
        return list(self.dns(host, self.A, ignore_void=True)) if host else []

    def validated_ptrs(self) -> list[str]:
        # RFC 7208 5.5: a name whose lookup fails is passed over, and without PTR nothing matches.
        try:
            names = self.dns_ptr(self.i)[: spf.MAX_PTR]
        except spf.TempError:
            return []
        return [name for name in names if self._is_at(name)]

    def _is_at(self, name: str) -> bool:
        try:
            return bool(self.cidrmatch(self._addresses(name), self.cidrmax))
        except spf.TempError:
            return False

    def get_explanation(self, spec: str) -> Any:
        texts = self.dns_txt(spec, ignore_void=True)
        # RFC 7208 6.2: an explanation that can't be used is as if there were none.
        if len(texts) != 1 or len(texts[0]) > MAX_EXPLANATION_OCTETS:
            return None
        return super().get_explanation(spec)


class Memory:
    """Outcomes that hold for a client's address and a domain, whoever the sender is there.

    Remembered for as long as the answers that they follow from, and a minute at most; what a
    macro took part in, or a failed lookup, is not.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._outcomes: dict[tuple[str, str], tuple[float, str, str]] = {}

    def find(self, address: str, domain: str) -> tuple[str, str] | None:
        """Return result and reason, None where they are not known."""
        found = self._outcomes.get((address, domain))
        return found[1:] if found is not None and found[0] > self._clock.monotonic() else None

    def keep(self, address: str, domain: str, outcome: tuple[str, str], known: _Known) -> None:
        """Remember an outcome if it may be."""
        if known.seconds > 0 and not known.has_macros():
            if len(self._outcomes) >= MEMORY_LIMIT:
                self._outcomes.clear()
            self._outcomes[address, domain] = (self._clock.monotonic() + known.seconds, *outcome)


async def check_spf(
    resolver: Resolver,
    threads: Threads,
    *,
    address: str,
    sender: str | None,
    helo: str,
    receiver: str,
    memory: Memory | None = None,
) -> Verdict:
    """Return the SPF verdict on a client's address for MAIL FROM, or HELO where that is null.

    address: IP address as text; sender: reverse-path; receiver: our own name, for macros.
    """
    nothing = unchecked(sender=sender, helo=helo)
    domain, properties, family = nothing.domain, nothing.properties, _family(address)
    if not domain or family is None:
        return nothing
    local = sender.rpartition("@")[0] if sender else ""
    client = _Client(address, local or "postmaster", domain, helo, receiver)
    remembered = memory.find(address, domain) if memory is not None else None
    if remembered is not None:
        return Verdict("spf", remembered[0], domain, remembered[1], properties)
    known = _Known(family)
    await _learn(resolver, known, (domain, "TXT"))  # what every evaluation begins with
    for _ in range(MAX_RUNS):
        known.missing = None
        if known.octets <= INLINE_OCTETS:
            result, reason = _evaluate(known, client)
        else:
            result, reason = await threads.compute(_evaluate, known, client)
        # pyspf passes over any failure to find an explanation, which only 'fail' has a use for.
        if known.missing is None or result not in ("", "fail"):
            if memory is not None:
                memory.keep(address, domain, (result, reason), known)
            return Verdict("spf", result, domain, reason, properties)
        await _learn(resolver, known, known.missing)
    return Verdict("spf", "permerror", domain, "too many lookups", properties)


def unchecked(*, sender: str | None, helo: str, result: str = "none") -> Verdict:
    """Return the verdict on an identity that was not, or not wholly, checked."""
    domain = domain_name((sender or helo).rpartition("@")[2]) or ""
    properties = {"smtp.mailfrom": sender} if sender else {"smtp.helo": helo}
    return Verdict("spf", result, domain, "", properties if domain else {})


def _family(address: str) -> str | None:
    """Return the type of a client's address records; None where the text is no IP address."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv4Address) or found.ipv4_mapped is not None:
        return "A"
    return None if found.scope_id else "AAAA"


def _evaluate(known: _Known, client: _Client) -> tuple[str, str]:
    """Return result and reason; result '' where an answer is missing."""
    _running.known = known
    try:
        sender = f"{client.local}@{client.domain}"
        query = _Query(i=client.address, s=sender, h=client.helo, receiver=client.receiver)
        # pyspf parts an address at its first '@', which may stand in a quoted local part.
        query.l, query.o, query.d = client.local, client.domain, client.domain
        result, _code, explanation = query.check()
    except _Missing:
        return "", ""
    except Exception:  # noqa: BLE001  pyspf raises whatever a hostile record makes its code raise
        return "permerror", "record"
    return str(result), "" if result == "pass" else _printable(str(explanation))


async def _learn(resolver: Resolver, known: _Known, question: Question) -> None:
    """Resolve a question; with MX and PTR also the addresses that will be asked for next."""
    answers = await _ask(resolver, question, known)
    known.add(question, answers)
    if question[1] == "MX":
        hosts = [host for _, (_, host) in sorted(answers or [])]
    elif question[1] == "PTR":
        hosts = [host for _, host in answers or []]
    else:
        return
    wanted = [(host, known.family) for host in hosts[:MAX_NAMES] if host]
    found = await asyncio.gather(*(_ask(resolver, one, known) for one in wanted))
    for one, addresses in zip(wanted, found, strict=True):
        known.add(one, addresses)


def _octets(record: Record) -> int:
    question, value = record
    return sum(map(len, value)) if question[1] == "TXT" else 16


async def _ask(resolver: Resolver, question: Question, known: _Known) -> list[Record] | None:
    try:
        answer = await resolver.resolve(*question)
    except DnsTemporary:
        known.seconds = 0.0
        return None
    except DnsFailure:
        return []
    known.seconds = min(known.seconds, answer.ttl)
    return [(question, _value(question[1], record)) for record in answer.records[:MAX_RECORDS]]


def _value(rdtype: str, record: Any) -> Any:
    if rdtype == "MX":
        return (record.preference, record.host)
    if rdtype == "TXT" and sum(map(len, record)) > MAX_RECORD_OCTETS:
        # Too long to be judged: an SPF record becomes one that is in error, anything else is nothing.
        return (b"v=spf1 ", b"too-long") if b"".join(record)[:7].lower() == b"v=spf1 " else (b"",)
    return record


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() and letter.isascii() else "?" for letter in text[:200])
