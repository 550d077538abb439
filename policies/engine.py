"""The judging of facts by rules: pure, without clock or file, one call for one stage.

Owns the order of rules, the index over plain tests, and what a condition that
cannot be evaluated means. Refuses nothing: the caller turns a ruling into an
answer. CEL executes only what no plain test has ruled out already, over one
context that holds only the facts asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from policies import library
from policies.facts import FACTS, PYTHON_TYPES
from policies.rules import (
    Action,
    Derived,
    Function,
    OnError,
    PlainTest,
    Rule,
    RuleSet,
    Ruling,
    StageIndex,
    Step,
    TestKind,
    Webhook,
)

ACCEPTED = Ruling()
ERROR_REPLY = (451, "4.3.5", "The policy of this server cannot be applied now, try again later")


# Looked up here, once: an enumeration's members are slow to reach and to hash.
_TYPES = {name: PYTHON_TYPES[fact.kind] for name, fact in FACTS.items()}
_ANY_OF, _NONE_OF, _HAS = TestKind.ANY_OF, TestKind.NONE_OF, TestKind.HAS


class Unjudged(Exception):
    """A condition cannot be evaluated: a fact is absent or of another type, or an operation failed."""


class Surroundings(Protocol):
    """What judging asks of the world at once: lists as they stand now, and what limits have left."""

    def is_listed(self, name: str, value: str) -> bool:
        """Return whether a value is in a list; LookupError where the list has no entries to hand."""
        ...

    def spend(self, rule: Rule, value: str) -> bool:
        """Count one event for a limit and a value of its fact; return whether it is still within."""
        ...

    def has_returned(self, stage: str, facts: Mapping[str, Any]) -> bool:
        """Note that mail comes, and return whether its client need not come back for it."""
        ...


class Nowhere:
    """Surroundings without lists and limits."""

    def is_listed(self, name: str, value: str) -> bool:
        """No list is known."""
        raise LookupError(f"the list {name} is not to hand")

    def spend(self, rule: Rule, value: str) -> bool:
        """Nothing is counted."""
        return True

    def has_returned(self, stage: str, facts: Mapping[str, Any]) -> bool:
        """Nobody is new."""
        return True


NOWHERE = Nowhere()


class Known(dict[str, Any]):
    """Facts and derived bools by name, each checked or computed when it is first asked for."""

    __slots__ = ("_facts", "_surroundings", "rules")

    def __init__(self, rules: RuleSet, facts: Mapping[str, object], surroundings: Surroundings) -> None:
        self.rules = rules
        self._facts = facts
        self._surroundings = surroundings

    def __missing__(self, name: str) -> Any:
        declared = _TYPES.get(name)
        if declared is None:
            value: object = self._derived(self.rules.derived[name])
        else:
            try:
                value = self._facts[name]  # and not get(), which a mapping that computes would not see
            except KeyError:
                raise Unjudged(f"{name} is absent") from None
            if type(value) is not declared:
                raise Unjudged(f"{name} is of another type")
        self[name] = value
        return value

    def _derived(self, derived: Derived) -> bool:
        if derived.name in self.rules.asked_ahead:
            try:
                return self._facts[derived.key] is True
            except KeyError:
                raise Unjudged(f"the list {derived.argument} gave no answer") from None
        value = self[derived.fact]
        values = value if isinstance(value, list) else [value]
        if derived.function is Function.MATCHES:
            assert derived.pattern is not None, "compile made it"
            return any(derived.pattern.search(one) is not None for one in values)
        try:
            return any(self._surroundings.is_listed(derived.argument, one) for one in values)
        except LookupError as error:
            raise Unjudged(str(error.args[0])) from None


def judge(
    rules: RuleSet, stage: str, facts: Mapping[str, object], surroundings: Surroundings = NOWHERE
) -> Ruling:
    """Return what a stage's rules say about facts; a mapping may compute values as they are asked for.

    Every fact of the stage should be given (facts.facts_at), with its declared type. A rule
    that asks for an absent one is skipped, or defers, as its on_error says; the trace has it.
    """
    index = rules.by_stage.get(stage)
    if index is None:
        return ACCEPTED
    known = Known(rules, facts, surroundings)
    positions = _candidates(index, known)
    if not positions:
        return ACCEPTED
    judging = Judging(stage, known, surroundings)
    for position in positions:
        if judging.ask(index.rules[position]):
            break
    return judging.ruling()


def wanted(rules: RuleSet, stage: str, facts: Mapping[str, object]) -> set[str]:
    """Return what must be asked of the DNS or the database before a stage is judged over these facts.

    Rules that their plain tests rule out already want nothing.
    """
    index = rules.by_stage.get(stage)
    if index is None or not index.ahead:
        return set()
    found: set[str] = set()
    known = Known(rules, facts, NOWHERE)
    for rule in index.rules:
        names = index.ahead.intersection(rule.facts)
        if names and not names <= found and _may_hold(rule, known, index.ahead):
            found |= names
    return found


def _may_hold(rule: Rule, known: Known, ahead: frozenset[str]) -> bool:
    for test in rule.tests:
        if test.fact in ahead:
            continue
        try:
            if not passes(test, known):
                return False
        except Unjudged:
            continue
    return True


def _candidates(index: StageIndex, facts: Known) -> list[int]:
    """Positions, in order, of the rules that the index does not rule out."""
    positions = list(index.always)
    for fact, table in index.by_fact.items():
        try:
            positions += table.get(facts[fact], ())
        except Unjudged:  # each of its rules is asked, and says so in the trace
            positions += {position for found in table.values() for position in found}
    positions.sort()
    return positions


@dataclass(slots=True)
class _Effects:
    """What the rules that matched have said; made with the first of them."""

    final: tuple[Action, int, str, str] | None = None
    pause: str = ""
    weight: Action = Action.ACCEPT
    tags: dict[str, None] = field(default_factory=dict)
    headers: dict[tuple[str, str], None] = field(default_factory=dict)
    redirect: str | None = None
    copies: dict[str, None] = field(default_factory=dict)
    forwards: dict[str, None] = field(default_factory=dict)
    priority: int | None = None
    reason: str = ""
    require_tls: bool = False
    ask_in_doubt: bool = False
    webhooks: dict[Webhook, None] = field(default_factory=dict)
    trace: list[Step] = field(default_factory=list)


class Judging:
    """The state of one judging: what the rules asked so far have said."""

    __slots__ = ("_context", "_effects", "_facts", "_known", "_stage", "_surroundings")

    def __init__(self, stage: str, facts: Known, surroundings: Surroundings = NOWHERE) -> None:
        self._stage = stage
        self._facts = facts
        self._surroundings = surroundings
        self._context: Any = None
        self._known: set[str] = set()
        self._effects: _Effects | None = None

    def ask(self, rule: Rule) -> bool:
        """Judge one rule; return whether it ends the stage."""
        try:
            matched = self.holds(rule)
            effect = self._apply(rule) if matched else ""
        except Unjudged as error:
            return self._failed(rule, str(error))
        if not matched:
            return False
        effects = self._so_far()
        effects.trace.append(Step(rule.name, self._stage, True, effect, rule.place))
        return rule.stop or (effects.final is not None and not effects.reason)

    def _so_far(self) -> _Effects:
        if self._effects is None:
            self._effects = _Effects()
        return self._effects

    def holds(self, rule: Rule) -> bool:
        """Return whether a rule's condition holds; raises Unjudged."""
        facts = self._facts
        missing: Unjudged | None = None
        for test in rule.tests:
            try:
                if not passes(test, facts):
                    return False
            except Unjudged as error:
                missing = error  # what another test rules out needs no answer
        for choice in rule.choices:
            try:
                if not one_passes(choice, facts):
                    return False
            except Unjudged as error:
                missing = error
        if missing is not None:
            raise missing
        if rule.program is None:
            return True
        try:
            result = rule.program.execute(self._over(rule.program_facts))
        except library.EVALUATION_ERRORS as error:
            raise Unjudged(f"{type(error).__name__}: {str(error).partition('. ')[0][:120]}") from None
        if result is True or result is False:
            return result
        raise Unjudged(f"the condition gave {type(result).__name__}")

    def _over(self, names: tuple[str, ...]) -> Any:
        if self._context is None:
            self._context = library.context({})
        for name in names:
            if name not in self._known:
                self._context.add_variable(name, self._facts[name])
                self._known.add(name)
        return self._context

    def _failed(self, rule: Rule, cause: str) -> bool:
        effects = self._so_far()
        deferring = rule.on_error is OnError.DEFER
        effect = f"error: {cause}: {'deferred' if deferring else 'skipped'}"
        effects.trace.append(Step(rule.name, self._stage, False, effect, rule.place))
        if deferring:
            effects.final = (Action.DEFER, *ERROR_REPLY)
            effects.reason = ""
        return deferring

    def _apply(self, rule: Rule) -> str:
        effects = self._so_far()
        told = [self._act(rule, effects)]
        if rule.keyword:
            effects.tags[rule.keyword] = None
            told.append(f"keyword {rule.keyword}")
        if rule.header is not None:
            effects.headers[rule.header] = None
            told.append(f"field {rule.header[0]}")
        return ", ".join(told)

    def _act(self, rule: Rule, effects: _Effects) -> str:
        action = rule.action
        if action in _WEIGHTS:
            heavier = Action.HOLD if rule.to == "held" else action
            effects.weight = max(effects.weight, heavier, key=_WEIGHTS.__getitem__)
            return f"{action.value} to the queue" if heavier is not action else action.value
        match action:
            case Action.REJECT | Action.DEFER | Action.PAUSE:
                return self._refuse(rule, effects)
            case Action.LIMIT:
                within = self._surroundings.spend(rule, self._facts[rule.per])
                return f"within {rule.limit}" if within else self._refuse(rule, effects)
            case Action.GREYLIST:
                if effects.final is not None:
                    return "greylist: refused already"
                returned = self._surroundings.has_returned(self._stage, self._facts)
                return "came back" if returned else self._refuse(rule, effects)
            case Action.REQUIRE_TLS:
                return self._require_tls(rule, effects)
            case Action.ASK_IN_DOUBT:
                effects.ask_in_doubt = True
                return "not sent again in doubt"
            case Action.WEBHOOK:
                effects.webhooks[Webhook(rule.name, rule.url, rule.content)] = None
                return f"webhook to {rule.url}"
            case Action.REDIRECT:
                kept = effects.redirect is not None
                effects.redirect = effects.redirect or rule.target
                return f"redirect to {rule.target}" + (", after another: without effect" if kept else "")
            case Action.COPY:
                effects.copies[rule.target] = None
            case Action.FORWARD:
                effects.forwards[rule.target] = None
            case Action.PRIORITY:
                effects.priority = rule.priority
                return f"priority {rule.priority}"
            case _:
                return str(action.value)
        return f"{action.value} to {rule.target}"

    def _require_tls(self, rule: Rule, effects: _Effects) -> str:
        # Over the API, TLS is HTTP's matter and perhaps a proxy's: only the way onward is bound.
        has_client = self._facts["client_ip"] and self._facts["source"] != "api"
        if has_client and not self._facts["tls"]:
            return self._refuse(rule, effects)
        effects.require_tls = effects.require_tls or self._stage not in _ENVELOPE_STAGES
        return "under TLS" if has_client else "no network"

    def _refuse(self, rule: Rule, effects: _Effects) -> str:
        action = rule.action
        kind = Action.DEFER if rule.code // 100 == 4 else Action.REJECT
        if effects.final is None or not rule.reason:
            # The first refusal stands, until one comes for another reason than reputation.
            effects.final = (kind, rule.code, rule.enhanced, rule.text)
            effects.reason = rule.reason
        words = f"{kind.value} {rule.code} {rule.enhanced}"
        if action is Action.PAUSE:
            effects.pause = rule.pause
            return f"pause of the {rule.pause}, {words}"
        return words if action is kind else f"{action.value}, {words}"

    def ruling(self) -> Ruling:
        """Return the ruling of the rules asked so far."""
        effects = self._effects
        if effects is None:
            return ACCEPTED
        trace = tuple(effects.trace)
        if effects.final is not None:
            action, code, enhanced, text = effects.final
            # What some rule would discard or hold is not kept for its recipients.
            reason = effects.reason if _WEIGHTS[effects.weight] < _WEIGHTS[Action.HOLD] else ""
            return Ruling(action.value, code, enhanced, text, pause=effects.pause, reason=reason, trace=trace)
        return Ruling(
            effects.weight.value,
            tags=tuple(effects.tags),
            headers=tuple(effects.headers),
            redirect=effects.redirect,
            copies=tuple(effects.copies),
            forwards=tuple(effects.forwards),
            priority=effects.priority,
            require_tls=effects.require_tls,
            ask_in_doubt=effects.ask_in_doubt,
            webhooks=tuple(effects.webhooks),
            trace=trace,
        )


# Where there is no message yet whose way onward could be bound.
_ENVELOPE_STAGES = frozenset({"mail", "rcpt"})
# What a message comes to where several rules say different things: the heavier one.
_WEIGHTS = {Action.ACCEPT: 0, Action.QUARANTINE: 1, Action.HOLD: 2, Action.DISCARD: 3}


def passes(test: PlainTest, facts: Known) -> bool:
    """Return whether a plain test holds; raises Unjudged."""
    value: Any = facts[test.fact]
    kind = test.kind
    if kind is _ANY_OF:
        return value in test.values
    if kind is _NONE_OF:
        return value not in test.values
    (wanted,) = test.values
    return (wanted in value) is (kind is _HAS)


def one_passes(choice: tuple[PlainTest, ...], facts: Known) -> bool:
    """Return whether a test of several holds; raises Unjudged where none does and one has no answer."""
    missing: Unjudged | None = None
    for test in choice:
        try:
            if passes(test, facts):
                return True
        except Unjudged as error:
            missing = error  # as CEL's ||: another test may hold without an answer to this one
    if missing is not None:
        raise missing
    return False
