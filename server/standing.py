"""What rules ask that takes a wait: what was sent lately, who is paused, what DNS lists say.

Owns those facts and nothing of a decision: before a stage is judged, `look` puts the
values that its rules want among the facts, and none that no rule asks for. Owns the
part that keeps the counts written, tells how deliveries ended, and reads lists anew.
RFC 5782 (DNS lists).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import structlog

from policies.compile import PolicyError
from policies.rules import ListKind
from server.dns import DnsTemporary
from storage import accounts, events, ids, sending
from storage.errors import StorageError
from storage.records import Event, Pause

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from policies.rules import Derived, ListDeclaration
    from server.clock import Clock
    from server.counters import Counters, Key
    from server.evidence import Facts
    from server.login import Identity
    from server.names.zones import Zones
    from server.rulebook import Rulebook
    from server.threads import Threads
    from storage.db import Notice
    from storage.records import Decision

HOUR, DAY, WEEK = 3600, 86_400, 7 * 86_400
SECOND = 1_000_000
DIGEST_OCTETS = 16
TURN_SECONDS = 2.0
TALLY_TURNS = 3
PRUNE_TURNS = 1800
HEAR_TURNS = 15
INLINE_OCTETS = 4096
ASKED_LIMIT = 1000  # values of a fact that are asked of one DNS list
AGES_LIMIT = 10_000

# Facts that are a total: whose, of which kind, over which seconds.
_TOTALS: Mapping[str, tuple[str, str, int]] = {
    "sent_last_hour": ("identity", sending.SENT, HOUR),
    "sent_last_day": ("identity", sending.SENT, DAY),
    "inbox_sent_last_hour": ("inbox", sending.SENT, HOUR),
    "inbox_sent_last_day": ("inbox", sending.SENT, DAY),
    "organization_sent_last_hour": ("organization", sending.SENT, HOUR),
    "organization_sent_last_day": ("organization", sending.SENT, DAY),
    "domain_sent_last_day": ("domain", sending.SENT, DAY),
    "settled_7d": ("identity", sending.SETTLED, WEEK),
    "organization_settled_7d": ("organization", sending.SETTLED, WEEK),
}
# Facts that are a share, in per mille, of what was settled: whose, and of which kind.
_RATES: Mapping[str, tuple[str, str]] = {
    "bounce_rate_7d": ("identity", sending.BOUNCED),
    "complaint_rate_7d": ("identity", sending.COMPLAINED),
    "organization_bounce_rate_7d": ("organization", sending.BOUNCED),
    "organization_complaint_rate_7d": ("organization", sending.COMPLAINED),
}
_NEW = frozenset({"new_recipients", "new_recipient_share"})
EMPTY: Mapping[str, object] = {
    **dict.fromkeys((*_TOTALS, *_RATES, *_NEW, "domain_age_days", "similar_bodies_last_hour"), 0),
    "paused": False,
}

log = structlog.get_logger("standing")


def digest_of(address: str) -> bytes:
    """Return what is kept of an address that was written to."""
    return hashlib.blake2b(address.lower().encode("utf-8", "replace"), digest_size=DIGEST_OCTETS).digest()


class Standing:
    """Answers for a process what rules want to know ahead, and keeps what was counted."""

    def __init__(
        self,
        *,
        threads: Threads,
        clock: Clock,
        rulebook: Rulebook,
        counters: Counters,
        zones: Zones,
        reload_seconds: float = 10.0,
    ) -> None:
        self._threads = threads
        self._clock = clock
        self._rulebook = rulebook
        self._counters = counters
        self._zones = zones
        self._reload_seconds = reload_seconds
        self._pauses: dict[str, Pause] | None = None
        self._ages: dict[str, int] = {}
        self._events_moved = True
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        threads.hub.subscribe("pauses", None, self._forget_pause)
        threads.hub.subscribe("accounts", None, lambda _: self._ages.clear())
        threads.hub.subscribe("events", None, self._note_events)
        threads.hub.subscribe("lists", None, lambda _: self._rulebook.outdate_lists())

    def _forget_pause(self, notice: Notice) -> None:
        self._pauses = None
        self._counters.forget(
            (kind, notice.key) for kind in (sending.SETTLED, sending.BOUNCED, sending.COMPLAINED)
        )

    def _note_events(self, _notice: Notice) -> None:
        self._events_moved = True

    async def start(self) -> None:
        """Read the lists of the database, and begin to keep all up to date."""
        await self._read_lists()
        await self._rulebook.limits.load(self._threads)
        await self._rulebook.greylist.load(self._threads)
        await self._counters.load_texts()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Write what was counted, and end."""
        self._stop.set()
        if self._task is not None:
            await asyncio.wait((self._task,))
        with contextlib.suppress(StorageError):
            await self._counters.flush()
            await self._rulebook.limits.flush(self._threads)
            await self._rulebook.greylist.flush(self._threads)

    async def look(self, names: Iterable[str], facts: Facts) -> None:
        """Put the values of facts and derived bools among a stage's facts; a failed look-up is left out."""
        wanted = {name for name in names if name not in facts}
        asked = [one for one in self._rulebook.derived(wanted) if one.key not in facts]
        plain = wanted & EMPTY.keys()
        if asked:
            await asyncio.gather(*(self._ask(one, facts) for one in asked))
        if plain and facts.case.identity is None:
            facts.update({name: EMPTY[name] for name in plain})
        elif plain:
            await self._of_sender(plain, facts, facts.case.identity)

    async def _ask(self, derived: Derived, facts: Facts) -> None:
        declared = self._rulebook.rules.lists[derived.argument]
        values = facts[derived.fact]
        texts = list(map(str, values if isinstance(values, list) else [values]))
        if declared.kind is ListKind.DOMAINS:  # of an address its domain counts
            texts = [text.rpartition("@")[2] for text in texts]
        asked = list(dict.fromkeys(texts))[:ASKED_LIMIT]
        found = await asyncio.gather(*(self._is_listed(declared, value) for value in asked))
        if True in found or None not in found:
            facts[derived.key] = True in found

    async def _is_listed(self, declared: ListDeclaration, value: str) -> bool | None:
        try:
            return bool(await self._zones.ask(declared.origin, declared.kind, value))
        except DnsTemporary:
            return None

    async def _of_sender(self, wanted: set[str], facts: Facts, identity: Identity | None) -> None:
        assert identity is not None, "nobody else sends"
        keys = self._keys(wanted, facts, identity)
        await self._counters.load(keys.values())
        total = self._counters.total
        for name in wanted & _TOTALS.keys():
            kind, key = keys[name]
            facts[name] = total(kind, key, seconds=_TOTALS[name][2])
        for name in wanted & _RATES.keys():
            kind, key = keys[name]
            settled = total(sending.SETTLED, key, seconds=WEEK)
            facts[name] = total(kind, key, seconds=WEEK) * 1000 // settled if settled else 0
        if wanted & _NEW:
            await self._count_new(facts, identity)
        if "similar_bodies_last_hour" in wanted:
            await self._read_text(facts)
            pairs = [(sending.SIMILAR, f"{identity.organization_id} {band}") for band in _bands(facts)]
            facts["similar_bodies_last_hour"] = max((total(*pair, seconds=HOUR) for pair in pairs), default=0)
        if "paused" in wanted:
            facts["paused"] = await self._is_paused(identity)
        if "domain_age_days" in wanted:
            facts["domain_age_days"] = await self._age(str(facts["header_from_domain"]))

    async def _read_text(self, facts: Facts) -> None:
        """Have the text's fingerprint made, off the loop where that may take more than a millisecond."""
        letter = facts.case.letter
        if letter is not None and letter.octets > INLINE_OCTETS:
            await self._threads.compute(lambda: letter.bands)

    def _keys(self, wanted: set[str], facts: Facts, identity: Identity) -> dict[str, Key]:
        """Return which counter each fact is told from, and those that shares are shares of."""
        owners: dict[str, Callable[[], str]] = {
            "identity": lambda: identity.id,
            "inbox": lambda: identity.mailbox_id or "",
            "organization": lambda: identity.organization_id,
            "domain": lambda: f"domain {facts['header_from_domain']}",
        }
        keys: dict[str, Key] = {}
        for name in wanted & _TOTALS.keys():
            owner, kind, _ = _TOTALS[name]
            keys[name] = kind, owners[owner]()
        for name in wanted & _RATES.keys():
            owner, kind = _RATES[name]
            keys[name] = kind, owners[owner]()
            keys[name + " of"] = sending.SETTLED, owners[owner]()
        if wanted & _NEW:
            keys["new"] = sending.NEW, identity.organization_id
            keys["all"] = sending.SENT, identity.organization_id
        return keys

    async def _count_new(self, facts: Facts, identity: Identity) -> None:
        owner = identity.organization_id
        digests = {digest_of(one.address) for one in facts.case.envelope.recipients}
        fresh = digests - await self._counters.known_of(owner, digests)
        facts.written = digests
        sent = self._counters.total(sending.SENT, owner, seconds=DAY) + len(digests)
        new = self._counters.total(sending.NEW, owner, seconds=DAY) + len(fresh)
        facts["new_recipients"] = len(fresh)
        facts["new_recipient_share"] = min(100, new * 100 // sent) if sent else 0

    async def _is_paused(self, identity: Identity) -> bool:
        if self._pauses is None:
            found = await self._threads.read(sending.pauses)
            self._pauses = {one.subject: one for one in found}
        return identity.id in self._pauses or identity.organization_id in self._pauses

    async def _age(self, domain: str) -> int:
        made = self._ages.get(domain)
        if made is None:
            row = await self._threads.read(lambda c: accounts.find_domain(c, name=domain))
            if len(self._ages) >= AGES_LIMIT:
                self._ages.clear()
            made = self._ages[domain] = row.created_at if row is not None else self._clock.now()
        return max(0, self._clock.now() - made) // (DAY * SECOND)

    def record(self, facts: Facts) -> None:
        """Count a message that was taken from a sender; called between its judging and its commit."""
        identity, amount = facts.case.identity, len(facts.case.envelope.recipients)
        if identity is None:
            return
        count = self._counters.count
        domain = f"domain {facts['header_from_domain']}"
        for key in filter(None, (identity.id, identity.mailbox_id, identity.organization_id, domain)):
            count(sending.SENT, key, amount)
        if facts.written:
            new = facts.get("new_recipients")
            count(sending.NEW, identity.organization_id, new if isinstance(new, int) else 0)
            self._counters.write_to(identity.organization_id, facts.written)
        if "similar_bodies_last_hour" in facts:
            for band in _bands(facts):
                count(sending.SIMILAR, f"{identity.organization_id} {band}", amount)

    async def pause(self, identity: Identity, decision: Decision) -> None:
        """Stop a login or its organization from sending, as a rule said; the event tells of it once."""
        is_whole = decision.pause == "organization"
        step = next((step for step in reversed(decision.trace) if step.matched), None)
        made = Pause(
            identity.organization_id if is_whole else identity.id,
            identity.organization_id,
            step.rule if step else "",
            decision.text,
            self._clock.now(),
        )

        def unit(connection: Connection) -> None:
            if sending.pause(connection, made):
                kind = "organization.paused" if is_whole else "login.paused"
                data = {"subject": made.subject, "rule": made.rule, "text": made.text}
                owner = made.organization_id
                events.append(connection, [Event(ids.new("evt"), kind, made.at, owner, data=data)])

        await self._threads.write(unit)
        log.warning("sending paused", subject=made.subject, rule=made.rule)

    async def _run(self) -> None:
        turn, looked_at = 0, time.monotonic()
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), TURN_SECONDS)
            turn += 1
            try:
                await self._counters.flush()
                await self._keep_limits(turn)
                if turn % TALLY_TURNS == 0:
                    await self.tally()
                if turn % PRUNE_TURNS == 0:
                    await self._threads.write(partial(sending.prune, at=self._clock.now()))
                if self._rulebook.wants_database_lists:
                    await self._read_lists()
                if 0 < self._reload_seconds <= time.monotonic() - looked_at:
                    looked_at = time.monotonic()
                    self._rulebook.put_lists(await self._threads.run(self._rulebook.read_lists))
            except PolicyError as error:
                log.error("lists not read anew", problem=str(error))
            except (StorageError, OSError) as error:
                log.error("counts not written, trying again", problem=str(error))
            except Exception:
                log.exception("counts not kept, trying again")

    async def _keep_limits(self, turn: int) -> None:
        limits, greylist = self._rulebook.limits, self._rulebook.greylist
        await limits.flush(self._threads)
        await greylist.flush(self._threads)
        if turn % HEAR_TURNS == 0:
            await limits.prune(self._threads)
            await greylist.prune(self._threads)
            if not self._counters.is_alone:
                await limits.load(self._threads)
                await greylist.load(self._threads)
                await self._counters.load_texts()

    async def _read_lists(self) -> None:
        if self._rulebook.wants_database_lists:
            entries = await self._threads.read(sending.list_entries)
            found = await self._threads.run(self._rulebook.read_database_lists, entries)
            self._rulebook.put_database_lists(entries, found)

    async def tally(self) -> None:
        """Count the deliveries that ended since the last time."""
        if not self._events_moved:
            return
        self._events_moved = False
        while await self._threads.read(sending.has_outcomes):
            changed, full = await self._threads.write(sending.tally)
            self._counters.forget(changed)
            if not full:
                return


def _bands(facts: Facts) -> tuple[str, ...]:
    letter = facts.case.letter
    return letter.bands if letter is not None else ()
