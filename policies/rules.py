"""Rules, rule sets and rulings: the frozen shapes that compile makes and engine returns.

Owns the actions and where each may be used. Does nothing: no parsing, no judging.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, Protocol


class Action(str, Enum):
    """What a rule does when its condition holds."""

    ACCEPT = "accept"
    REJECT = "reject"
    DEFER = "defer"
    QUARANTINE = "quarantine"
    TAG = "tag"
    REDIRECT = "redirect"


class OnError(str, Enum):
    """What becomes of a rule whose condition cannot be evaluated."""

    SKIP = "skip"
    DEFER = "defer"


FINAL_ACTIONS = frozenset({Action.ACCEPT, Action.REJECT, Action.DEFER})

_DOORS = ("connect", "helo", "mail", "rcpt", "message", "submit", "send")

ACTION_STAGES: Mapping[Action, tuple[str, ...]] = MappingProxyType(
    {
        Action.ACCEPT: (*_DOORS[:5], "deliver", "submit", "send", "bounce"),
        Action.REJECT: (*_DOORS, "bounce"),
        Action.DEFER: _DOORS,
        Action.QUARANTINE: ("message", "deliver"),
        Action.TAG: ("message", "deliver", "submit", "send"),
        Action.REDIRECT: ("message", "submit", "send"),
    }
)

ACTION_MEANINGS: Mapping[Action, str] = MappingProxyType(
    {
        Action.ACCEPT: "No later rule is asked at this stage. What earlier rules did stays.",
        Action.REJECT: "The command or message is refused for good with code, enhanced and text. At bounce "
        "no notice is made.",
        Action.DEFER: "It is refused for now with code, enhanced and text: the client will try again.",
        Action.QUARANTINE: "The message is taken and placed into the Junk folder of its local recipients.",
        Action.TAG: "The message gets the IMAP keyword, the header field, or both.",
        Action.REDIRECT: "The message goes to target instead of its recipients. The first such rule wins.",
    }
)


class TestKind(str, Enum):
    """The tests that are decided without CEL, since a dictionary can answer them."""

    __test__ = False  # no test case, whatever its name begins with

    ANY_OF = "any_of"
    NONE_OF = "none_of"
    HAS = "has"
    LACKS = "lacks"


@dataclass(frozen=True, slots=True)
class PlainTest:
    """A fact is one of values or none of them; or a list fact has or lacks the one value."""

    fact: str
    kind: TestKind
    values: frozenset[object]


class Program(Protocol):
    """A compiled CEL expression."""

    def execute(self, context: Any) -> object:
        """Return the expression's value over a context."""
        ...


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. Its condition holds when all plain tests do and the program, if any, says true.

    when: the condition as written; canonical: the same, fully in parentheses, as CEL gets it.
    facts: names that the condition asks for; program_facts: those that the program does.
    place: 'file:line'.
    """

    name: str
    stages: tuple[str, ...]
    when: str
    canonical: str
    action: Action
    place: str
    tests: tuple[PlainTest, ...]
    program: Program | None
    facts: tuple[str, ...]
    program_facts: tuple[str, ...]
    description: str = ""
    code: int = 250
    enhanced: str = "2.0.0"
    text: str = ""
    keyword: str = ""
    header: tuple[str, str] | None = None
    target: str = ""
    stop: bool = False
    enabled: bool = True
    on_error: OnError = OnError.SKIP


@dataclass(frozen=True, slots=True)
class StageIndex:
    """The enabled rules of one stage in order, and which of them a fact's value can make true.

    always: positions of rules without a plain test. by_fact: fact to its values to positions;
    each rule stands in exactly one of the two.
    """

    rules: tuple[Rule, ...]
    always: tuple[int, ...]
    by_fact: Mapping[str, Mapping[object, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All rules in order, disabled ones too; by_stage has the stages at which enabled rules stand."""

    rules: tuple[Rule, ...] = ()
    by_stage: Mapping[str, StageIndex] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """One rule that was asked and mattered: it matched, or could not be evaluated."""

    rule: str
    stage: str
    matched: bool
    effect: str
    place: str


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a stage's rules say: 'accept', 'reject', 'defer' or 'quarantine', and what goes with it."""

    action: str = "accept"
    code: int = 250
    enhanced: str = "2.0.0"
    text: str = ""
    tags: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    redirect: str | None = None
    trace: tuple[Step, ...] = ()
