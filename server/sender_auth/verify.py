"""Sender authentication of one message: SPF, every DKIM signature, ARC, and DMARC.

Owns the order of the checks, what runs beside what, and the one deadline: a
lookup that is open then counts as a temporary failure, alone, so that a slow
name of a stranger's choice hides no other result. The mechanisms themselves
are in the modules beside this one. RFC 7208, 6376, 8617, 9989, 8601.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.dns import DnsFailure, DnsTemporary, Resolver
from server.mail import header
from server.sender_auth import arc, dkim_verify, dmarc, results
from server.sender_auth.authors import Authors, read_authors
from server.sender_auth.dkim_tags import Key, Signature, key_of, signatures
from server.sender_auth.lookups import Lookups, until
from server.sender_auth.observed import Observed, observe
from server.sender_auth.spf_check import Memory, check_spf, unchecked
from storage.records import Envelope, Peer, Verdict

if TYPE_CHECKING:
    from server.clock import Clock
    from server.threads import Threads

MAX_HEADER_OCTETS = 1 << 20
INLINE_OCTETS = 16_384  # up to this, all that is computed here takes less than a millisecond
INLINE_SIGNATURES = 3
FIRST_SHARE = 0.8  # of the deadline; what DMARC asks afterwards has the rest


@dataclass(frozen=True, slots=True)
class _Letter:
    """A message's header as the checks need it."""

    header_octets: int
    fields: list[header.HeaderField]
    signatures: tuple[Signature, ...]
    chain: arc.Chain | None
    authors: Authors


def _read(head: bytes) -> _Letter:
    fields = header.fields(head)
    return _Letter(len(head), fields, signatures(fields), arc.read_chain(fields), read_authors(fields))


def _read_head(path: Path) -> bytes:
    with open(path, "rb") as file:
        beginning = file.read(MAX_HEADER_OCTETS)
    return beginning[: header.split(beginning)]


async def _beside(
    walk: Coroutine[Any, Any, None],
    spf: Coroutine[Any, Any, Verdict],
    dkim: Coroutine[Any, Any, tuple[Verdict, ...]],
) -> tuple[Verdict, tuple[Verdict, ...]]:
    """Run the three beside each other and return what two of them find; no task outlives this."""
    every: list[Coroutine[Any, Any, Any]] = [walk, spf, dkim]
    found: list[Any] = await until(None, every)
    return found[1], found[2]


class Verifier:
    """Authenticates the senders of messages from outside."""

    def __init__(
        self,
        *,
        resolver: Resolver,
        threads: Threads,
        clock: Clock,
        hostname: str,
        deadline_seconds: float,
        believed_sealers: Collection[str] = (),
        observes: bool = False,
    ) -> None:
        """observes: whether verdicts carry what aggregate reports tell (observed.Observed)."""
        self._observes = observes
        self._resolver = resolver
        self._threads = threads
        self._clock = clock
        self._hostname = hostname
        self._memory = Memory(clock)
        self._deadline_seconds = deadline_seconds
        self._believed_sealers = frozenset(domain.lower() for domain in believed_sealers)

    def results_field(self, verdicts: Sequence[Verdict]) -> bytes:
        """Return the Authentication-Results field that says these verdicts, with CRLF."""
        return results.field(self._hostname, verdicts)

    async def verify(self, *, peer: Peer, envelope: Envelope, content: bytes | Path) -> tuple[Verdict, ...]:
        """Return the verdicts: SPF, each DKIM signature the topmost first, ARC if there is any, DMARC.

        OSError where a file of content can't be read.
        """
        now = asyncio.get_running_loop().time()
        first, last = now + self._deadline_seconds * FIRST_SHARE, now + self._deadline_seconds
        letter = await self._letter(content)
        lookups = Lookups(self._resolver)
        walk = lookups.walk(letter.authors.domains, by=first)
        spf, dkim = await _beside(
            walk, self._spf(peer, envelope, by=first), self._dkim(content, letter, by=first, last=last)
        )
        sealed = await self._arc(content, letter, by=first, last=last)
        found = await self._dmarc(letter, lookups, [spf, *dkim, *sealed], by=last)
        return spf, *dkim, *sealed, found

    async def _letter(self, content: bytes | Path) -> _Letter:
        if isinstance(content, Path):
            head = await self._threads.run(_read_head, content)
        else:
            head = content[: header.split(content)]
        if len(head) <= INLINE_OCTETS:
            return _read(head)
        return await self._threads.compute(_read, head)

    async def _spf(self, peer: Peer, envelope: Envelope, *, by: float) -> Verdict:
        sender, helo = envelope.reverse_path, peer.helo
        check = check_spf(
            self._resolver,
            self._threads,
            address=peer.address,
            sender=sender,
            helo=helo,
            receiver=self._hostname,
            memory=self._memory,
        )
        [verdict] = await until(by, [check])
        return verdict or unchecked(sender=sender, helo=helo, result="temperror")

    async def _dkim(
        self, content: bytes | Path, letter: _Letter, *, by: float, last: float
    ) -> tuple[Verdict, ...]:
        found = letter.signatures
        if not found:
            return ()
        keys = await self._keys({one.key_name for one in found if one.fault is None}, by=by)
        now = self._clock.now() // 1_000_000
        arguments = (content, letter.fields, letter.header_octets, found)
        is_small = isinstance(content, bytes) and len(content) <= INLINE_OCTETS
        if is_small and len(found) <= INLINE_SIGNATURES:
            return dkim_verify.verify(*arguments, keys, now=now)
        computing = self._threads.compute(dkim_verify.verify, *arguments, keys, now=now)
        [verdicts] = await until(last, [computing])
        # Too much is waiting to be computed: without keys every signature is a temporary failure.
        return dkim_verify.verify(*arguments, {}, now=now) if verdicts is None else verdicts

    async def _arc(
        self, content: bytes | Path, letter: _Letter, *, by: float, last: float
    ) -> tuple[Verdict, ...]:
        chain = letter.chain
        if chain is None:
            return ()
        keys = {} if chain.fault else await self._keys(chain.key_names, by=by)
        computing = self._threads.compute(
            arc.verify,
            content,
            letter.fields,
            letter.header_octets,
            chain,
            keys,
            authors=letter.authors.domains,
            believed=self._believed_sealers,
        )
        [verdict] = await until(last, [computing])
        return (verdict or Verdict("arc", "fail", "", arc.NOT_IN_TIME),)

    async def _keys(self, wanted: Iterable[str], *, by: float) -> dict[str, Key]:
        """Return the keys that were found, or told absent, in time."""
        names = list(wanted)
        answers = await until(by, [self._key(name) for name in names])
        return {name: key for name, key in zip(names, answers, strict=True) if key is not None}

    async def _key(self, name: str) -> Key:
        try:
            return key_of((await self._resolver.resolve(name, "TXT")).records)
        except DnsTemporary:
            return Key(failure="temperror")
        except DnsFailure:
            return Key(failure="none")

    async def _dmarc(
        self, letter: _Letter, lookups: Lookups, verdicts: Sequence[Verdict], *, by: float
    ) -> Verdict:
        """Return the DMARC verdict on all author domains; see dmarc.combine."""
        authors = letter.authors
        if not authors.domains:
            return Verdict("dmarc", "permerror", "", authors.fault)
        identifiers = _Identifiers.of(verdicts)
        await lookups.complete(authors.domains, identifiers.all, by=by)
        chosen = dmarc.combine([_evaluate(one, lookups, identifiers) for one in authors.domains])
        if authors.fault and chosen.result != "fail":
            chosen = replace(chosen, result="permerror", policy="", reason=authors.fault)
        properties = {"header.from": chosen.author}
        if chosen.policy:
            properties["policy.dmarc"] = chosen.policy
        verdict = "dmarc", chosen.result, chosen.record_domain, chosen.reason, properties
        if self._observes:
            exists = lookups.exists.get(chosen.author) is not False
            seen = observe(chosen, lookups.records, verdicts, letter.fields, exists=exists)
            if seen is not None:
                return Observed(*verdict, seen)
        return Verdict(*verdict)


@dataclass(frozen=True, slots=True)
class _Identifiers:
    """The domains that passed, and those that might have, had a lookup not failed."""

    spf: str | None
    dkim: tuple[str, ...]
    open_spf: str | None
    open_dkim: tuple[str, ...]

    @classmethod
    def of(cls, verdicts: Sequence[Verdict]) -> _Identifiers:
        found: dict[tuple[str, str], dict[str, None]] = {}
        for verdict in verdicts:
            if verdict.domain:
                found.setdefault((verdict.method, verdict.result), {})[verdict.domain] = None
        return cls(
            next(iter(found.get(("spf", "pass"), ())), None),
            tuple(found.get(("dkim", "pass"), ())),
            next(iter(found.get(("spf", "temperror"), ())), None),
            tuple(found.get(("dkim", "temperror"), ())),
        )

    @property
    def all(self) -> set[str]:
        """Every domain that may turn out to be aligned."""
        return {*self.dkim, *self.open_dkim, *filter(None, (self.spf, self.open_spf))}


def _evaluate(author: str, lookups: Lookups, identifiers: _Identifiers) -> dmarc.Evaluation:
    """Return one author domain's evaluation; a fail that a failed lookup may have made is no fail."""
    records, exists = lookups.records, lookups.exists.get(author)
    known = dmarc.evaluate(author, records, spf=identifiers.spf, dkim=identifiers.dkim, exists=exists)
    if known.result != "fail":
        return known
    # RFC 9989 5.3.6: where a query did not complete, the message neither passes nor fails.
    hoped = dmarc.evaluate(
        author, records, spf=identifiers.open_spf, dkim=identifiers.open_dkim, exists=exists
    )
    if hoped.result == "fail":
        return known
    reason = f"{hoped.aligned} could not be checked" if hoped.aligned else hoped.reason
    return replace(known, result="temperror", policy="", reason=reason)
