"""The judging of facts by rules: pure, without clock or file, one call for one stage.

Owns the order of rules, the index over plain tests, and what a condition that
cannot be evaluated means. Refuses nothing: the caller turns a ruling into an
answer. CEL executes only what no plain test has ruled out already, over one
context that holds only the facts asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from policies import library
from policies.facts import FACTS, PYTHON_TYPES
from policies.rules import (
    Action,
    OnError,
    PlainTest,
    Rule,
    RuleSet,
    Ruling,
    StageIndex,
    Step,
    TestKind,
)

ACCEPTED = Ruling()
ERROR_REPLY = (451, "4.3.5", "The policy of this server cannot be applied now, try again later")


class Unjudged(Exception):
    """A condition cannot be evaluated: a fact is absent or of another type, or an operation failed."""


def judge(rules: RuleSet, stage: str, facts: Mapping[str, object]) -> Ruling:
    """Return what a stage's rules say about facts; a mapping may compute values as they are asked for.

    Every fact of the stage should be given (facts.facts_at), with its declared type. A rule
    that asks for an absent one is skipped, or defers, as its on_error says; the trace has it.
    """
    index = rules.by_stage.get(stage)
    if index is None:
        return ACCEPTED
    positions = _candidates(index, facts)
    if not positions:
        return ACCEPTED
    judging = Judging(stage, facts)
    for position in positions:
        if judging.ask(index.rules[position]):
            break
    return judging.ruling()


def _candidates(index: StageIndex, facts: Mapping[str, object]) -> list[int]:
    """Positions, in order, of the rules that the index does not rule out."""
    positions = list(index.always)
    for fact, table in index.by_fact.items():
        try:
            positions += table.get(_value(facts, fact), ())
        except Unjudged:  # each of its rules is asked, and says so in the trace
            positions += {position for found in table.values() for position in found}
    positions.sort()
    return positions


class Judging:
    """The state of one judging: what the rules asked so far have said."""

    def __init__(self, stage: str, facts: Mapping[str, object]) -> None:
        self._stage = stage
        self._facts = facts
        self._context: Any = None
        self._known: set[str] = set()
        self._final: tuple[Action, int, str, str] | None = None
        self._quarantined = False
        self._tags: dict[str, None] = {}
        self._headers: dict[tuple[str, str], None] = {}
        self._redirect: str | None = None
        self._trace: list[Step] = []

    def ask(self, rule: Rule) -> bool:
        """Judge one rule; return whether it ends the stage."""
        try:
            matched = self.holds(rule)
        except Unjudged as error:
            return self._failed(rule, str(error))
        if not matched:
            return False
        effect = self._apply(rule)
        self._trace.append(Step(rule.name, self._stage, True, effect, rule.place))
        return rule.stop

    def holds(self, rule: Rule) -> bool:
        """Return whether a rule's condition holds; raises Unjudged."""
        missing: Unjudged | None = None
        for test in rule.tests:
            try:
                if not _passes(test, self._facts):
                    return False
            except Unjudged as error:
                missing = error  # what another test rules out needs no answer
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
                self._context.add_variable(name, _value(self._facts, name))
                self._known.add(name)
        return self._context

    def _failed(self, rule: Rule, cause: str) -> bool:
        deferring = rule.on_error is OnError.DEFER
        effect = f"error: {cause}: {'deferred' if deferring else 'skipped'}"
        self._trace.append(Step(rule.name, self._stage, False, effect, rule.place))
        if deferring:
            self._final = (Action.DEFER, *ERROR_REPLY)
        return deferring

    def _apply(self, rule: Rule) -> str:
        action = rule.action
        effects = [action.value]
        if action in {Action.REJECT, Action.DEFER}:
            self._final = (action, rule.code, rule.enhanced, rule.text)
            effects = [f"{action.value} {rule.code} {rule.enhanced}"]
        elif action is Action.QUARANTINE:
            self._quarantined = True
        elif action is Action.REDIRECT:
            kept = self._redirect is not None
            self._redirect = self._redirect or rule.target
            effects = [f"redirect to {rule.target}" + (", after another: without effect" if kept else "")]
        if rule.keyword:
            self._tags[rule.keyword] = None
            effects.append(f"keyword {rule.keyword}")
        if rule.header is not None:
            self._headers[rule.header] = None
            effects.append(f"field {rule.header[0]}")
        return ", ".join(effects)

    def ruling(self) -> Ruling:
        """Return the ruling of the rules asked so far."""
        trace = tuple(self._trace)
        if self._final is not None:
            action, code, enhanced, text = self._final
            return Ruling(action.value, code, enhanced, text, trace=trace)
        return Ruling(
            Action.QUARANTINE.value if self._quarantined else Action.ACCEPT.value,
            tags=tuple(self._tags),
            headers=tuple(self._headers),
            redirect=self._redirect,
            trace=trace,
        )


def _value(facts: Mapping[str, object], name: str) -> object:
    try:
        value = facts[name]  # and not get(), which a mapping that computes its values would not see
    except KeyError:
        raise Unjudged(f"{name} is absent") from None
    if type(value) is not PYTHON_TYPES[FACTS[name].kind]:
        raise Unjudged(f"{name} is of another type")
    return value


def _passes(test: PlainTest, facts: Mapping[str, object]) -> bool:
    value: Any = _value(facts, test.fact)
    if test.kind is TestKind.ANY_OF:
        return value in test.values
    if test.kind is TestKind.NONE_OF:
        return value not in test.values
    (wanted,) = test.values
    return (wanted in value) is (test.kind is TestKind.HAS)
