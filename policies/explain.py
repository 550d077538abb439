"""Rulings and rules as lines for a reader.

Owns the words in which a ruling is told, and the slow, complete telling that asks
every rule of a stage, past the index and past what ends a stage: for the command
line, where a rule's author wants to know what it would do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from policies.engine import NOWHERE, Judging, Known, Surroundings, Unjudged, one_passes, passes
from policies.rules import PlainTest, Rule, RuleSet, Ruling, Step


def explain(ruling: Ruling) -> list[str]:
    """Return a ruling as lines: what is done, what goes with it, and each rule that mattered."""
    lines = [_outcome(ruling)]
    lines += [f"  keyword {tag}" for tag in ruling.tags]
    lines += [f"  field {name}: {value}" for name, value in ruling.headers]
    lines += [f"  redirect to {ruling.redirect}"] * (ruling.redirect is not None)
    lines += [f"  copy to {target}" for target in ruling.copies]
    lines += [f"  forward to {target}" for target in ruling.forwards]
    lines += [f"  priority {ruling.priority}"] * (ruling.priority is not None)
    lines += ["  TLS required onward"] * ruling.require_tls
    lines += ["  not sent again in doubt"] * ruling.ask_in_doubt
    lines += [f"  webhook to {one.url}" for one in ruling.webhooks]
    lines += [f"  pause of the {ruling.pause}"] * bool(ruling.pause)
    lines += [f"  for {ruling.reason} alone"] * bool(ruling.reason)
    return lines + [f"  {line}" for line in explain_trace(ruling.trace)]


def explain_trace(trace: Sequence[Step]) -> list[str]:
    """Return a line for each step: the rule, its place, whether it matched and what it did."""
    if not trace:
        return ["no rule matched"]
    return [
        f"rule {step.rule} ({step.place}) at {step.stage}: "
        + (f"matched: {step.effect}" if step.matched else step.effect or "did not match")
        for step in trace
    ]


def ask_all(
    rules: RuleSet, stage: str, facts: Mapping[str, object], surroundings: Surroundings = NOWHERE
) -> tuple[Step, ...]:
    """Return a step for every rule of a stage, disabled ones too, each judged by itself."""
    steps = []
    known = Known(rules, facts, surroundings)
    for rule in rules.rules:
        if stage not in rule.stages:
            continue
        matched, effect = False, ""
        try:
            matched = Judging(stage, known, surroundings).holds(rule)
        except Unjudged as error:
            effect = f"error: {error}"
        if not rule.enabled:
            effect = "disabled" + (", would match" if matched else "")
        elif matched:
            effect = rule.action.value
        steps.append(Step(rule.name, stage, matched and rule.enabled, effect, rule.place))
    return tuple(steps)


def why(rule: Rule, known: Known) -> dict[str, object]:
    """Return whether a rule's condition holds over facts, and why."""
    matched = False
    try:
        matched = Judging("", known).holds(rule)
        cause = "" if matched else next(_failing(rule, known), "the rest of the condition does not hold")
    except Unjudged as error:
        cause = f"error: {error}"
    if not rule.enabled:
        cause = "disabled" + (": it would match" if matched else "")
    return {"matched": matched and rule.enabled, "why": cause, "effect": rule.action.value}


def _failing(rule: Rule, known: Known) -> Iterator[str]:
    """Yield in words each plain test of a rule that fails, and each choice of which all do."""
    for test in rule.tests:
        if not passes(test, known):
            yield _words(test, known)
    for choice in rule.choices:
        if not one_passes(choice, known):
            yield " and ".join(dict.fromkeys(_words(test, known) for test in choice))


def _words(test: PlainTest, known: Known) -> str:
    derived = known.rules.derived.get(test.fact)
    if derived is None:
        return f"{test.fact} is {json.dumps(known[test.fact], ensure_ascii=False)}"
    words = f'{derived.fact}.{derived.function.value}("{derived.argument}")'
    return f"{words} is {json.dumps(known[test.fact])}"


def _outcome(ruling: Ruling) -> str:
    if ruling.text:
        return f"{ruling.action} {ruling.code} {ruling.enhanced} {ruling.text}"
    return ruling.action
