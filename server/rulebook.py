"""The policy rules in force: read from a directory, replaced whole on reload.

Owns the files' reading and the turning of an engine's ruling into a decision
record. A directory with a faulty rule changes nothing: the old rules stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from policies.compile import PolicyError, Problem, compile_rules
from policies.engine import judge
from policies.rules import RuleSet, Ruling
from server.refusal import Refusal
from storage.records import Action, Decision, RuleTrace


class Rulebook:
    """Holds the compiled rules and judges facts by them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._rules = self._read()

    def _read(self) -> RuleSet:
        if not self._directory.is_dir():
            # Without this a mistyped path would switch every rule off.
            raise _faulty(self._directory, "there is no such directory of rules")
        files = sorted(self._directory.glob("*.toml"))
        return compile_rules([(str(path), _text(path)) for path in files])

    def reload(self) -> None:
        """Read the rules again; raises policies.compile.PolicyError and keeps the old ones."""
        self._rules = self._read()

    @property
    def rules(self) -> RuleSet:
        """The rules in force now."""
        return self._rules

    def asks(self, stage: str) -> bool:
        """Whether any rule stands at a stage, so that facts need be gathered for it."""
        return bool(self._rules.by_stage.get(stage))

    def decide(self, stage: str, facts: Mapping[str, object]) -> Decision:
        """Return the decision of a stage's rules over facts."""
        return decision_of(judge(self._rules, stage, facts))


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise _faulty(path, error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise _faulty(path, f"the file is not UTF-8: octet {error.start} cannot be read") from None


def _faulty(path: Path, message: str) -> PolicyError:
    return PolicyError((Problem(str(path), 0, message),))


def decision_of(ruling: Ruling) -> Decision:
    """Turn an engine's ruling into the record that intake keeps."""
    return Decision(
        action=Action(ruling.action),
        code=ruling.code,
        enhanced=ruling.enhanced,
        text=ruling.text,
        tags=tuple(ruling.tags),
        headers=tuple(ruling.headers),
        redirect=ruling.redirect,
        trace=tuple(
            RuleTrace(step.rule, step.stage, step.matched, step.effect, step.place) for step in ruling.trace
        ),
    )


def merge(first: Decision, second: Decision) -> Decision:
    """Return what two stages' decisions say together: the later action where it does more than accept."""
    action, source = (second.action, second) if second.action is not Action.ACCEPT else (first.action, first)
    return Decision(
        action=action,
        code=source.code,
        enhanced=source.enhanced,
        text=source.text,
        tags=tuple(dict.fromkeys((*first.tags, *second.tags))),
        headers=(*first.headers, *second.headers),
        redirect=first.redirect or second.redirect,
        trace=(*first.trace, *second.trace),
    )


def refuse(decision: Decision) -> None:
    """Raise the Refusal of a decision that rejects or defers; return for any other."""
    if decision.action in (Action.REJECT, Action.DEFER):
        rule = next((step.rule for step in decision.trace if step.matched), "")
        raise Refusal(decision.code, decision.enhanced, decision.text, f"rule {rule}")
