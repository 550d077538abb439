"""Rules tried on messages: what they would do, and why, with nothing done.

Owns the walk of one message through the stages, as intake goes it, and the replay of
stored mail under two sets of rules. What was sent in the stretch that is replayed is
counted as it goes; rates of bounces, pauses, and who was written to before count as
none: that is not stored with a message. What scanners and DNS lists said is taken from the
message's verdicts and its event of acceptance; where no rule had asked a scanner, its status
is 'unknown', and lists that no rule had asked, or a rule file declares, count as empty.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from policies.engine import Known, judge
from policies.explain import why
from policies.facts import FACTS
from policies.lists import Listed
from server import client_facts, correspondents, evidence
from server.arrival import listed
from server.evidence import Case, Facts
from server.greylist import Greylist, bringer
from server.limits import Limits
from server.login import Identity
from server.rulebook import decision_of, merge
from server.scanners import findings
from server.standing import DAY, EMPTY, HOUR
from storage import accounts, replaying, sending
from storage.records import Action, Decision, Envelope, Source

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from policies.lists import Entries
    from policies.rules import Rule, RuleSet
    from storage.records import Verdict
    from storage.replaying import Stored
    from storage.store import Store

SESSION = frozenset({Source.MX, Source.SUBMISSION, Source.LMTP})
WHOLE: Mapping[Source, tuple[str, ...]] = {
    Source.SUBMISSION: ("submit",),
    Source.API: ("submit", "send"),
}
REFUSALS = frozenset({Action.REJECT, Action.DEFER})
KEYS_LIMIT = 100_000
DIFFERENCES_LIMIT = 1000
CACHE_LIMIT = 10_000
SECOND = 1_000_000


class Recorded:
    """What scanners said of a stored message when it came."""

    def __init__(self, verdicts: Sequence[Verdict]) -> None:
        self.known = findings.recorded(verdicts)

    async def look(self, wanted: Collection[str]) -> None:
        """Nothing is asked anew."""


@dataclass(slots=True)
class Moment:
    """The time of what is tried, as a clock. at: microseconds."""

    at: int = 0

    def now(self) -> int:
        """The time of the message."""
        return self.at

    def monotonic(self) -> float:
        """The same, in seconds."""
        return self.at / SECOND


class Book(Listed):
    """A rule set with its lists, and limits counted by the time of what is tried."""

    def __init__(self, rules: RuleSet, entries: Mapping[str, Entries]) -> None:
        super().__init__(entries)
        self.rules = rules
        self.moment = Moment()
        self._limits = Limits(self.moment)
        self._greylist = Greylist(self.moment)

    def spend(self, rule: Rule, value: str) -> bool:
        """Count one event for a limit."""
        return self._limits.spend(rule.name, value, limit=rule.limit, period_seconds=rule.period_seconds)

    def has_returned(self, stage: str, facts: Mapping[str, Any]) -> bool:
        """Note that mail comes, at the time of what is tried; return whether it would be let through."""
        return self._greylist.passes(**bringer(stage, facts))

    def decide(self, stage: str, facts: Facts) -> Decision:
        """Return a stage's decision."""
        return decision_of(judge(self.rules, stage, facts, self))


def situations(case: Case, inboxes: Iterable[tuple[str, str]] = ()) -> Iterator[tuple[str, Facts]]:
    """Yield each stage that a message passes with its facts. inboxes: (recipient, inbox id) at deliver."""
    envelope = case.envelope
    if case.source in SESSION:
        early = replace(case, envelope=Envelope(None, ()), letter=None, verdicts=())
        # A host of the house that hands over by LMTP is asked neither, unless it tells of the client.
        if case.source is Source.MX or (case.source is Source.LMTP and case.peer.address):
            yield "connect", Facts(early)
            yield "helo", Facts(early)
        opened = replace(case, envelope=replace(envelope, recipients=()), letter=None, verdicts=())
        yield "mail", Facts(opened)
        for number, recipient in enumerate(envelope.recipients, 1):
            so_far = replace(envelope, recipients=envelope.recipients[: number - 1])
            asked = replace(opened, envelope=so_far, recipient=recipient.address, recipient_count=number)
            yield "rcpt", Facts(asked)
    whole = Facts(replace(case, recipient_count=len(envelope.recipients)))
    for stage in WHOLE.get(case.source, ("message",)):
        yield stage, whole
    if case.source not in WHOLE:
        for address, inbox_id in inboxes:
            yield "deliver", evidence.of_placement(whole, address, inbox_id)


def explained(
    book: Book, case: Case, given: Mapping[str, object], inboxes: Iterable[tuple[str, str]] = ()
) -> Iterator[dict[str, Any]]:
    """Yield for each stage what is decided and what each of its rules says, JSON-able; ends at a refusal.

    given: values of facts that only a running server knows, or that the asker sets.
    """
    for stage, facts in situations(case, inboxes):
        facts.update(EMPTY)
        facts.update({name: given[name] for name in given})
        known = Known(book.rules, facts, book)
        rules = [rule for rule in book.rules.rules if stage in rule.stages]
        said = [{"rule": rule.name, "place": rule.place, **why(rule, known)} for rule in rules]
        decision = book.decide(stage, facts)
        _mark_unasked(said, decision)
        used = sorted({name for rule in rules for name in rule.facts})
        yield {
            "stage": stage,
            "about": facts.case.recipient,
            "decision": told(decision),
            "facts": {name: facts[name] for name in used if name in FACTS},
            "rules": said,
        }
        if decision.action in REFUSALS:
            return


def _mark_unasked(said: list[dict[str, Any]], decision: Decision) -> None:
    """Say of rules that would match behind the one that ended the stage that they are not asked."""
    asked = {step.rule for step in decision.trace}
    last = next((step.rule for step in reversed(decision.trace)), "")
    for rule in said:
        if rule["matched"] and rule["rule"] not in asked:
            rule |= {"matched": False, "why": f"not asked, {last} ended the stage: it would match"}


def told(decision: Decision) -> str:
    """Return all that a decision does, on one line."""
    parts = [decision.action.value]
    if decision.action in REFUSALS:
        parts = [f"{decision.action.value} {decision.code} {decision.enhanced} {decision.text}"]
        if decision.pause:
            parts.append(f"pause of the {decision.pause}")
        if decision.reason:
            parts.append(f"for {decision.reason} alone")
        return "; ".join(parts)
    parts += [f"keyword {tag}" for tag in decision.tags]
    parts += [f"field {name}: {value}" for name, value in decision.headers]
    parts += [f"redirect to {decision.redirect}"] * (decision.redirect is not None)
    parts += [f"copy to {address}" for address in decision.copies]
    parts += [f"forward to {address}" for address in decision.forwards]
    parts += [f"priority {decision.priority}"] * bool(decision.priority)
    parts += ["TLS required onward"] * decision.require_tls
    parts += ["not sent again in doubt"] * decision.ask_in_doubt
    parts += [f"webhook to {url}" for _, url, _ in decision.webhooks]
    return "; ".join(parts)


def _known_at(stage: str, listings: Mapping[str, object]) -> dict[str, object]:
    return {name: found for name, found in listings.items() if stage in FACTS[name].stages}


def _by_fields(stored: Stored) -> evidence.Letter:
    """Return a letter of the fields that the rows know, as UTF-8 (RFC 6532 3.2); a stranger wrote them."""
    lines = [
        f"{name}: {''.join(letter if letter.isprintable() else ' ' for letter in value)}\r\n"
        for name, value in stored.fields
        if value
    ]
    head = ("".join(lines) + "\r\n").encode("utf-8", "replace")
    return evidence.Letter(head, stored.octets, lambda: head)


# What replay counts as it goes; the rest of EMPTY stays as it is there.
_TOLD = frozenset(
    {f"{of}sent_last_{span}" for of in ("", "inbox_", "organization_") for span in ("hour", "day")}
    | {"domain_sent_last_day", "domain_age_days", "similar_bodies_last_hour"}
)
_TAKEN_AS_NONE = frozenset(EMPTY) - _TOLD | correspondents.NAMES | client_facts.HELO | client_facts.DOMAINS


def not_known(*rule_sets: RuleSet) -> list[str]:
    """Return the facts and lists that rules ask about and that replay takes as none, by name."""
    asked: set[str] = set()
    for rules in rule_sets:
        for index in rules.by_stage.values():
            asked |= {name for rule in index.rules for name in rule.facts} & _TAKEN_AS_NONE
        asked |= {f'list "{rules.derived[name].argument}"' for name in rules.asked_ahead}
    return sorted(asked)


@dataclass(slots=True)
class _Tally:
    """What was sent in the stretch that is replayed, by key, in buckets as the server's own."""

    counts: dict[tuple[str, str], dict[int, int]]

    def total(self, kind: str, key: str, now: int, seconds: int) -> int:
        since = now - seconds * SECOND - sending.MINUTES
        return sum(n for start, n in self.counts.get((kind, key), {}).items() if start > since)

    def count(self, kind: str, key: str, now: int, amount: int) -> None:
        if len(self.counts) >= KEYS_LIMIT:
            self.counts.clear()
        buckets = self.counts.setdefault((kind, key), {})
        start = now - now % sending.MINUTES
        buckets[start] = buckets.get(start, 0) + amount
        for old in [one for one in buckets if one < now - (DAY + HOUR) * SECOND]:
            del buckets[old]


class Replay:
    """Stored messages under the rules in force and under others; a row for each that fares otherwise."""

    def __init__(self, store: Store, before: Book, after: Book) -> None:
        self._store = store
        self._books = (before, after)
        self._tallies = (_Tally({}), _Tally({}))
        self._ages: dict[str, int] = {}
        self._scopes: dict[str, frozenset[str]] = {}
        self.tried = 0
        self.partly = 0
        self.unscanned = 0
        self.changed = 0
        self.not_known = not_known(before.rules, after.rules)

    def run(self, *, since: int, limit: int) -> Iterator[dict[str, Any]]:
        """Yield the first `limit` differences among messages accepted since a time; counts all of them."""
        last = ""
        while True:
            page = self._store.database.read(
                lambda c, after=last: replaying.page(c, since=since, after=after)  # type: ignore[misc]
            )
            for stored in page:
                difference = self._compare(stored)
                if difference is not None:
                    self.changed += 1
                    if self.changed <= limit:
                        yield difference
            if len(page) < replaying.PAGE:
                return
            last = page[-1].id

    def _compare(self, stored: Stored) -> dict[str, Any] | None:
        letter = self._letter(stored)
        if letter is None:
            # Nobody keeps its octets any more: what the rows know of its header must do.
            self.partly += 1
            letter = _by_fields(stored)
        self.tried += 1
        self.unscanned += not any(map(findings.is_scan, stored.verdicts))
        case = self._case(stored, letter)
        inboxes = [(address, inbox) for inbox, address, _, _ in stored.places]
        before, after = (
            self._judge(book, tally, case, inboxes, stored)
            for book, tally in zip(self._books, self._tallies, strict=True)
        )
        if before[0] == after[0]:
            return None
        return {
            "id": stored.id,
            "at": stored.accepted_at,
            "source": stored.source.value,
            "from": stored.envelope.reverse_path or "",
            "to": [one.address for one in stored.envelope.recipients[:3]],
            "before": before[0],
            "before_rules": before[1],
            "after": after[0],
            "after_rules": after[1],
        }

    def _letter(self, stored: Stored) -> evidence.Letter | None:
        places = [
            (self._store.maildir.entry_path(inbox, folder, entry), entry.prefix_octets)
            for inbox, _, folder, entry in stored.places[:3]
        ]
        for path, start in [*places, (self._store.message_path(stored.id), stored.trace_octets)]:
            try:
                with open(path, "rb") as file:
                    file.seek(start)
                    beginning = file.read(evidence.HEADER_LIMIT_OCTETS)
            except OSError:
                continue
            return evidence.Letter(beginning, stored.octets, lambda: beginning)  # noqa: B023 - returned at once
        return None

    def _case(self, stored: Stored, letter: evidence.Letter) -> Case:
        sent = stored.source in (Source.SUBMISSION, Source.API)
        login = stored.peer.identity or ""
        inbox = stored.places[0][0] if sent and stored.places else None
        identity = (
            Identity(
                stored.organization_id,
                inbox,
                "",
                "key",
                login,
                self._scopes_of(stored.organization_id, login),
            )
            if sent
            else None
        )
        return Case(
            stored.peer,
            identity,
            stored.envelope,
            stored.source,
            declared_octets=stored.octets,
            letter=letter,
            verdicts=stored.verdicts,
            organization_id=stored.organization_id,
            mailbox_id=inbox or "",
            scans=Recorded(stored.verdicts),
        )

    def _judge(
        self, book: Book, tally: _Tally, case: Case, inboxes: list[tuple[str, str]], stored: Stored
    ) -> tuple[str, list[str]]:
        book.moment.at = stored.accepted_at
        listings = listed(stored.accepted)
        decision = Decision()
        for stage, facts in situations(case, inboxes):
            facts.update(EMPTY)
            facts.update(_known_at(stage, listings))
            for name in book.rules.asked_ahead:
                facts[book.rules.derived[name].key] = False
            if case.identity is not None:
                self._tell(facts, tally, case.identity, stored.accepted_at)
            decision = merge(decision, book.decide(stage, facts))
            if decision.action in REFUSALS:
                break
        if case.identity is not None and decision.action not in REFUSALS:
            self._count(tally, case, stored.accepted_at)
        return told(decision), [step.rule for step in decision.trace if step.matched]

    def _tell(self, facts: Facts, tally: _Tally, identity: Identity, now: int) -> None:
        keys = {
            "": identity.id,
            "inbox_": identity.mailbox_id or "",
            "organization_": identity.organization_id,
        }
        for prefix, key in keys.items():
            facts[f"{prefix}sent_last_hour"] = tally.total(sending.SENT, key, now, HOUR)
            facts[f"{prefix}sent_last_day"] = tally.total(sending.SENT, key, now, DAY)
        letter = facts.case.letter
        if letter is None:
            return
        domain = str(facts["header_from_domain"])
        facts["domain_sent_last_day"] = tally.total(sending.SENT, f"domain {domain}", now, DAY)
        facts["domain_age_days"] = max(0, now - self._age(domain, now)) // (DAY * SECOND)
        similar = (
            tally.total(sending.SIMILAR, f"{identity.organization_id} {band}", now, HOUR)
            for band in letter.bands
        )
        facts["similar_bodies_last_hour"] = max(similar, default=0)

    def _count(self, tally: _Tally, case: Case, now: int) -> None:
        identity, amount = case.identity, len(case.envelope.recipients)
        assert identity is not None, "only what was sent is counted"
        domain = f"domain {Facts(case)['header_from_domain']}"
        for key in filter(None, (identity.id, identity.mailbox_id, identity.organization_id, domain)):
            tally.count(sending.SENT, key, now, amount)
        for band in case.letter.bands if case.letter is not None else ():
            tally.count(sending.SIMILAR, f"{identity.organization_id} {band}", now, amount)

    def _age(self, domain: str, now: int) -> int:
        if domain not in self._ages:
            if len(self._ages) >= CACHE_LIMIT:
                self._ages.clear()
            found = self._store.database.read(lambda c: accounts.find_domain(c, name=domain))
            self._ages[domain] = found.created_at if found is not None else now
        return self._ages[domain]

    def _scopes_of(self, organization_id: str, login: str) -> frozenset[str]:
        if login not in self._scopes:
            if len(self._scopes) >= CACHE_LIMIT:
                self._scopes.clear()

            def unit(connection: Connection) -> frozenset[str]:
                key = accounts.api_key(connection, organization_id=organization_id, key_id=login)
                return key.scopes if key is not None else frozenset()

            self._scopes[login] = self._store.database.read(unit)
        return self._scopes[login]
