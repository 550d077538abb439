"""Reputation of correspondents, by what each inbox's owner does: learnt from acts, told as facts.

Owns what an act weighs, how that fades, and the part that makes signs of what storage
noted. Facts are computed only where a rule asks for them, and nothing is read for an
inbox that has no signs. Reads of a message the header alone, where it lies.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from policies.rules import RuleSet, TestKind
from server.evidence import HEADER_LIMIT_OCTETS, Facts, Letter, origin
from server.mail.address import AddressSyntax, normalise
from server.origin import Origin, origin_of
from server.turns import Turns
from storage import events, ids, signs
from storage.records import Event
from storage.signs import JUNK, WELCOME, WRITTEN, Due, Sign
from storage.transactions import UNKNOWN

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from server.rulebook import Rulebook
    from server.threads import Threads
    from storage.db import Notice

SECOND = 1_000_000
DAY = 86_400
HALF_LIFE = 60 * DAY * SECOND
KEPT = 183 * DAY * SECOND
WEIGHTS: Mapping[str, int] = {JUNK: -100, WELCOME: 100, WRITTEN: 100}
KNOWN_POINTS = 25
UNWANTED_POINTS = -150
DOMAIN_UNWANTED_POINTS = -300
TRUTHS = frozenset(
    {
        "correspondent_known",
        "correspondent_unwanted",
        "correspondent_domain_unwanted",
        "owner_wrote_to_sender",
    }
)
NAMES = TRUTHS | {"correspondent_score", "correspondent_domain_score"}
INBOXES_LIMIT = 200_000  # beyond it every inbox is looked up
ASKED_INBOXES = 20  # of one message
CACHE_INBOXES = 10_000
CACHE_CORRESPONDENTS = 50
WRITTEN_LIMIT = 20_000
PAGE = 100
RECIPIENTS_LIMIT = 50  # a message to more is no letter to a correspondent
TURN_SECONDS = 30.0
PRUNE_TURNS = 120

Acts = tuple[tuple[str, int], ...]  # kind and time

log = structlog.get_logger("correspondents")


class Correspondents:
    """Tells what inboxes' owners think of a message's sender, and learns it from what they do."""

    def __init__(self, *, threads: Threads, clock: Clock, rulebook: Rulebook) -> None:
        self._threads = threads
        self._clock = clock
        self._rulebook = rulebook
        self._inboxes: set[str] = set()
        self._known: OrderedDict[str, dict[str, Acts]] = OrderedDict()
        self._written: dict[str, dict[str, int]] = {}  # by inbox: whom it wrote to, and when that was noted
        self._written_count = 0
        self._generation = 0
        self._turns = Turns("learning of correspondents", self.turn, seconds=TURN_SECONDS)
        self._turn = 0
        self._is_behind = False  # news may have been missed
        self._rules: RuleSet | None = None
        self._is_asked = self._is_asked_alone = self._is_asked_at_message = False
        threads.hub.subscribe("signs", None, self._forget)
        threads.hub.subscribe(signs.DUE, None, lambda _: self._turns.wake())

    async def start(self) -> None:
        """Read which inboxes have signs, and begin to learn."""
        await self._read_inboxes()
        self._turns.start()

    async def _read_inboxes(self) -> None:
        self._is_behind = False
        self._inboxes |= set(await self._threads.read(partial(signs.inboxes, limit=INBOXES_LIMIT)))

    async def stop(self) -> None:
        """End; what is not learnt yet is after the next start."""
        await self._turns.stop()

    def _forget(self, notice: Notice) -> None:
        self._generation += 1
        if notice.position == UNKNOWN:
            self._known.clear()
            self._forget_written()
            self._is_behind = True
            self._turns.wake()
            return
        self._known.pop(notice.key, None)
        self._written_count -= len(self._written.pop(notice.key, ()))
        if len(self._inboxes) < INBOXES_LIMIT:
            self._inboxes.add(notice.key)

    # ---- facts ----

    def _look_at_rules(self) -> None:
        rules = self._rules = self._rulebook.rules
        indexes = [rules.by_stage[stage] for stage in ("message", "deliver") if stage in rules.by_stage]
        self._is_asked = any(NAMES.intersection(rule.facts) for index in indexes for rule in index.rules)
        self._is_asked_at_message = "message" in rules.by_stage and any(
            NAMES.intersection(rule.facts) for rule in rules.by_stage["message"].rules
        )
        deliver = rules.by_stage.get("deliver")
        # A rule that wants one of these to be true says nothing about an inbox without signs.
        self._is_asked_alone = deliver is not None and all(
            any(
                test.kind is TestKind.ANY_OF and test.fact in TRUTHS and test.values == {True}
                for test in rule.tests
            )
            for rule in deliver.rules
        )

    def knows(self, mailbox_ids: Iterable[str]) -> bool:
        """Return whether a rule asks and some of these inboxes may have something to say."""
        if self._rulebook.rules is not self._rules:
            self._look_at_rules()
        if not self._is_asked:
            return False
        return len(self._inboxes) >= INBOXES_LIMIT or not self._inboxes.isdisjoint(mailbox_ids)

    def sets_apart(self, mailbox_id: str) -> bool:
        """Return whether the rules at message may rule otherwise for this inbox than for its neighbours."""
        return self.knows((mailbox_id,)) and self._is_asked_at_message

    def spares(self, mailbox_id: str) -> bool:
        """Return whether the rules at deliver are about known correspondents, and this inbox has none."""
        return not self.knows((mailbox_id,)) and self._is_asked_alone

    async def look(self, facts: Facts, mailbox_ids: Sequence[str]) -> None:
        """Put what inboxes think of a message's sender among its facts, where a rule asks for it."""
        if not self.knows(mailbox_ids):
            return
        found = origin(facts.case)
        if not found.correspondent:
            return
        own: list[Acts] = []
        wider: list[Acts] = []
        for mailbox_id in mailbox_ids[:ASKED_INBOXES]:
            own.append(await self._acts(mailbox_id, found.correspondent))
            wider.append(await self._acts(mailbox_id, found.wider))
        if len(mailbox_ids) > ASKED_INBOXES:
            own.append(())
            wider.append(())
        facts.update(told(found, own, wider, now=self._clock.now()))

    async def _acts(self, mailbox_id: str, correspondent: str) -> Acts:
        known = self._known.get(mailbox_id)
        if known is not None and correspondent in known:
            self._known.move_to_end(mailbox_id)
            return known[correspondent]
        generation = self._generation
        unit = partial(signs.of, mailbox_id=mailbox_id, correspondent=correspondent)
        found = await self._threads.read(unit)
        if generation == self._generation:
            known = self._known.setdefault(mailbox_id, {})
            if len(known) >= CACHE_CORRESPONDENTS:
                known.clear()
            known[correspondent] = found
            if len(self._known) > CACHE_INBOXES:
                self._known.popitem(last=False)
        return found

    # ---- learning ----

    async def turn(self) -> None:
        """Learn from all that was noted; now and then forget what is old."""
        if self._is_behind:
            await self._read_inboxes()
        await self.learn()
        self._turn += 1
        if self._turn % PRUNE_TURNS == 1:
            await self._threads.write(partial(signs.prune, before=self._clock.now() - KEPT))

    async def learn(self) -> None:
        """Make signs of all acts that are due."""
        after = 0
        while True:
            acts = await self._threads.read(partial(signs.due, after=after, limit=PAGE))
            if not acts:
                return
            about = await self._threads.read(partial(signs.about, acts=acts))
            found = [
                (act, sign)
                for act, known in zip(acts, about, strict=True)
                for sign in await self._signs(act, known)
            ]
            await self._threads.write(partial(_keep, acts=acts, found=found, at=self._clock.now()))
            self._note_written(sign for _, sign in found if sign.kind == WRITTEN)
            after = acts[-1].seq

    async def _signs(self, act: Due, about: signs.Received | signs.Sent | None) -> list[Sign]:
        if isinstance(about, signs.Sent):
            return [sign for sign in _of_sent(act, about) if not self._is_noted(sign)]
        if act.mailbox_id is None:
            return []
        made = Sign(act.mailbox_id, act.message_id, act.kind, act.at, ())
        if act.kind not in WEIGHTS:
            return [made]
        if about is None:
            return []
        authors = await self._threads.run(_authors, self._paths(act.mailbox_id, about))
        found = origin_of(authors, about.verdicts, about.client)
        if not found.correspondent:
            return []
        return [replace(made, correspondents=(found.correspondent, found.wider))]

    def _is_noted(self, sign: Sign) -> bool:
        noted = self._written.get(sign.mailbox_id, {}).get(sign.message_id)
        return noted is not None and sign.at - noted < signs.RENEWED

    def _note_written(self, found: Iterable[Sign]) -> None:
        """Remember what is written down: most letters go where the last ones went."""
        for sign in found:
            noted = self._written.setdefault(sign.mailbox_id, {})
            self._written_count += sign.message_id not in noted
            noted[sign.message_id] = sign.at
        if self._written_count > WRITTEN_LIMIT:
            self._forget_written()

    def _forget_written(self) -> None:
        self._written.clear()
        self._written_count = 0

    def _paths(self, mailbox_id: str, about: signs.Received) -> list[tuple[Path, int]]:
        maildir = self._threads.store.maildir
        return [
            (maildir.folder_path(mailbox_id, place.folder) / place.file, place.prefix_octets)
            for place in about.places
        ]


def _of_sent(act: Due, sent: signs.Sent) -> list[Sign]:
    """Return a sign for each recipient of a letter; a mailing is none."""
    if len(sent.recipients) > RECIPIENTS_LIMIT:
        return []
    made = []
    for recipient in sent.recipients:
        try:
            address = normalise(recipient)
        except AddressSyntax:
            continue
        told_of = (f"address {address}", f"domain {address.rpartition('@')[2]}")
        made.append(Sign(sent.mailbox_id, f"to {address}", WRITTEN, act.at, told_of))
    return made


def score(found: Iterable[tuple[str, int]], *, now: int) -> int:
    """Return the points that acts come to, each halved in HALF_LIFE."""
    points = (WEIGHTS[kind] * math.pow(0.5, max(0, now - at) / HALF_LIFE) for kind, at in found)
    return round(sum(points))


def told(found: Origin, own: Sequence[Acts], wider: Sequence[Acts], *, now: int) -> dict[str, object]:
    """Return the facts about a correspondent from the acts that each inbox has on record."""
    scores = [score(acts, now=now) for acts in own]
    domain_scores = [score(acts, now=now) for acts in wider]
    pairs = zip(scores, domain_scores, strict=True)
    return {
        "correspondent_score": max(scores, default=0),
        "correspondent_domain_score": max(domain_scores, default=0),
        "correspondent_known": max(scores, default=0) >= KNOWN_POINTS,
        "correspondent_unwanted": max(scores, default=0) <= UNWANTED_POINTS,
        "correspondent_domain_unwanted": bool(scores)
        and all(one <= 0 and domain <= DOMAIN_UNWANTED_POINTS for one, domain in pairs),
        "owner_wrote_to_sender": found.is_authenticated
        and any(kind == WRITTEN for acts in own for kind, _ in acts),
    }


def _authors(paths: Iterable[tuple[Path, int]]) -> Sequence[str]:
    """Return the addresses in a message's one From field; paths: where it may lie, and behind how much."""
    for path, start in paths:
        try:
            with path.open("rb") as file:
                file.seek(start)
                beginning = file.read(HEADER_LIMIT_OCTETS)
        except OSError:
            continue
        letter = Letter(beginning, len(beginning), bytes)
        return letter.from_addresses if letter.from_fields == 1 else ()
    return ()


def _keep(
    connection: Connection, *, acts: Sequence[Due], found: Collection[tuple[Due, Sign]], at: int
) -> None:
    taken = signs.claim(connection, [act.seq for act in acts])
    new = signs.learn(connection, [sign for act, sign in found if act.seq in taken])
    signs.trim(connection, mailbox_ids={sign.mailbox_id for sign in new})
    made = [
        Event(
            id=ids.new("evt"),
            kind="correspondent.judged",
            at=at,
            organization_id=owner,
            message_id=sign.message_id,
            mailbox_id=sign.mailbox_id,
            data={"sign": sign.kind, "correspondents": list(sign.correspondents)},
        )
        for sign, owner in signs.with_owners(connection, [sign for sign in new if sign.kind != WRITTEN])
    ]
    events.append(connection, made)
