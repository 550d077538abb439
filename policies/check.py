"""The checks that a condition must pass before it may be executed: names, stages, types.

Owns what the library leaves unsaid: it compiles unknown names, compares texts with
numbers and swallows errors beside `||`. Refuses a fact at a stage where it does not
exist, functions outside a short list, quantifiers inside quantifiers, and any
condition that is no bool.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from policies.expression import Binary, Call, Expression, ListOf, Literal, Name, Unary
from policies.facts import FACTS, LIMIT_PREFIX, LIMITS, Fact, Kind
from policies.patterns import compile_pattern
from policies.rules import Function, ListDeclaration, ListKind, ListSource


@dataclass(frozen=True, slots=True)
class Fault:
    """One mistake in a condition. at: index of the character where it stands."""

    message: str
    at: int


FUNCTIONS = MappingProxyType(
    {
        "startsWith": "text.startsWith(text): whether the text begins so.",
        "endsWith": "text.endsWith(text): whether the text ends so.",
        "contains": "text.contains(text): whether the one is part of the other.",
        "size": "size(x) or x.size(): items of a list, UTF-8 octets of a text.",
        "in_list": "fact.in_list(text): whether the fact, or an item of it, is in the [[list]] of that name.",
        "matches": "fact.matches(text): whether the pattern (RE2) is found anywhere in the fact, or in an "
        "item of it; ^ and $ bind it to the ends.",
        "exists": "list.exists(item, condition): whether the condition holds for one item.",
        "all": "list.all(item, condition): whether it holds for all; true for an empty list.",
        "exists_one": "list.exists_one(item, condition): whether it holds for exactly one.",
    }
)
_ON_TEXTS = ("startsWith", "endsWith", "contains")
_DERIVED = frozenset(function.value for function in Function)
_NETWORK_FACTS = frozenset({"client_ip"})
_NAMES = [*FACTS, *(LIMIT_PREFIX + name for name in LIMITS)]
NO_LISTS: Mapping[str, ListDeclaration] = MappingProxyType({})
_QUANTIFIERS = ("exists", "all", "exists_one")
_REFUSED = MappingProxyType(
    {
        "map": "use exists or all",
        "filter": "use exists or all",
        "has": "every fact is always there: compare it with ''",
    }
)


def check(
    tree: Expression, stages: Sequence[str], lists: Mapping[str, ListDeclaration] = NO_LISTS
) -> list[Fault]:
    """Return every mistake of a condition that is to be judged at these stages, in order of place."""
    checker = _Checker(stages, lists)
    kind = checker.kind_of(tree)
    if kind not in {Kind.BOOL, None}:
        checker.fault(f"the condition must be true or false, this is {_named(kind)}", 0)
    return sorted(checker.faults, key=lambda fault: fault.at)


def _named(kind: Kind | None) -> str:
    return "unknown" if kind is None else f"of type {kind.value}"


class _Checker:
    """Types a tree from its leaves up; None is the type of what is faulty already."""

    def __init__(self, stages: Sequence[str], lists: Mapping[str, ListDeclaration]) -> None:
        self.stages = stages
        self.lists = lists
        self.faults: list[Fault] = []
        self.variable: str | None = None

    def fault(self, message: str, at: int) -> None:
        self.faults.append(Fault(message, at))

    def kind_of(self, tree: Expression) -> Kind | None:
        match tree:
            case Literal(value=bool()):
                return Kind.BOOL
            case Literal(value=int()):
                return Kind.INT
            case Literal():
                return Kind.STRING
            case Name():
                return self.name(tree)
            case ListOf():
                self.fault("a list may stand only behind in", tree.at)
                return None
            case Unary():
                wanted = Kind.BOOL if tree.operator == "!" else Kind.INT
                self.want(tree.operand, wanted, f"behind {tree.operator}")
                return wanted
            case Binary():
                return self.binary(tree)
            case Call():
                return self.call(tree)

    def want(self, tree: Expression, wanted: Kind, place: str) -> None:
        kind = self.kind_of(tree)
        if kind not in {wanted, None}:
            self.fault(f"{wanted.value} is wanted {place}, this is {_named(kind)}", tree.at)

    def name(self, tree: Name) -> Kind | None:
        if tree.name == self.variable:
            return Kind.STRING
        if tree.name.removeprefix(LIMIT_PREFIX) in LIMITS and tree.name.startswith(LIMIT_PREFIX):
            return Kind.INT
        fact = FACTS.get(tree.name)
        if fact is None:
            near = difflib.get_close_matches(tree.name, _NAMES, n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            self.fault(f"there is no fact {tree.name}{hint}", tree.at)
            return None
        for stage in self.stages:
            if stage not in fact.stages:
                self.fault(_absent(fact, stage), tree.at)
        return fact.kind

    def binary(self, tree: Binary) -> Kind | None:
        operator, place = tree.operator, f"beside {tree.operator}"
        if operator in {"&&", "||"}:
            self.want(tree.left, Kind.BOOL, place)
            self.want(tree.right, Kind.BOOL, place)
            return Kind.BOOL
        if operator in {"+", "-", "*"}:
            self.want(tree.left, Kind.INT, place)
            self.want(tree.right, Kind.INT, place)
            return Kind.INT
        if operator in {"<", "<=", ">", ">="}:
            self.want(tree.left, Kind.INT, place)
            self.want(tree.right, Kind.INT, place)
        elif operator == "in":
            self.membership(tree)
        else:
            self.equality(tree)
        return Kind.BOOL

    def equality(self, tree: Binary) -> None:
        left, right = self.kind_of(tree.left), self.kind_of(tree.right)
        if left is None or right is None:
            return
        if left is not right:
            self.fault(f"{left.value} and {right.value} are never equal", tree.at)
        elif left is Kind.STRINGS:
            self.fault("lists are not compared: use in, exists or all", tree.at)

    def membership(self, tree: Binary) -> None:
        left = self.kind_of(tree.left)
        if not isinstance(tree.right, ListOf):
            self.want(tree.right, Kind.STRINGS, "behind in")
            if left not in {Kind.STRING, None}:
                self.fault(
                    f"a list<string> holds no value of type {left.value if left else ''}", tree.left.at
                )
            return
        if not tree.right.items:
            self.fault("nothing is in an empty list", tree.right.at)
        for item in tree.right.items:
            kind = self.kind_of(item)
            if left is not None and kind is not left:
                self.fault(f"the list should hold {left.value}, this is {_named(kind)}", item.at)

    def call(self, tree: Call) -> Kind | None:
        if tree.function in _ON_TEXTS:
            self.on_text(tree)
            return Kind.BOOL
        if tree.function in _DERIVED:
            self.derived(tree)
            return Kind.BOOL
        if tree.function in _QUANTIFIERS:
            self.quantifier(tree)
            return Kind.BOOL
        if tree.function == "size":
            self.size(tree)
            return Kind.INT
        reason = _REFUSED.get(tree.function)
        near = difflib.get_close_matches(tree.function, list(FUNCTIONS), n=1)
        hint = f": {reason}" if reason else f": did you mean {near[0]}?" if near else ""
        self.fault(f"there is no function {tree.function} here{hint}", tree.at)
        return None

    def on_text(self, tree: Call) -> None:
        if tree.target is None or len(tree.arguments) != 1:
            self.fault(f"{tree.function} is written text.{tree.function}(text)", tree.at)
            return
        self.want(tree.target, Kind.STRING, f"before .{tree.function}")
        self.want(tree.arguments[0], Kind.STRING, f"in {tree.function}()")

    def derived(self, tree: Call) -> None:
        """A function beside CEL: its target is a fact itself and its argument a text that stands there."""
        arguments = tree.arguments
        if not isinstance(tree.target, Name) or len(arguments) != 1 or not isinstance(arguments[0], Literal):
            self.fault(f"{tree.function} is written fact.{tree.function}(text)", tree.at)
            return
        argument = arguments[0]
        if tree.target.name == self.variable:
            self.fault(f"ask the fact itself: {tree.function} looks at each item of a list", tree.at)
            return
        kind = self.kind_of(tree.target)
        if kind not in {Kind.STRING, Kind.STRINGS, None}:
            self.fault(f"only texts and lists of texts have .{tree.function}", tree.target.at)
        elif not isinstance(argument.value, str):
            self.fault(f"a text is wanted in {tree.function}()", argument.at)
        elif tree.function == Function.MATCHES.value:
            self.pattern(argument.value, argument.at)
        else:
            self.listed(tree.target, argument.value, argument.at)

    def pattern(self, text: str, at: int) -> None:
        try:
            compile_pattern(text)
        except ValueError as error:
            self.fault(f"this is no pattern of RE2: {error}", at)

    def listed(self, target: Name, name: str, at: int) -> None:
        declared = self.lists.get(name)
        if declared is None:
            near = difflib.get_close_matches(name, list(self.lists), n=1)
            hint = f": did you mean {near[0]}?" if near else ": declare it as [[list]]"
            self.fault(f"there is no list {name}{hint}", at)
            return
        if (declared.kind is ListKind.NETWORKS) is not (target.name in _NETWORK_FACTS):
            wanted = "a client's address" if declared.kind is ListKind.NETWORKS else f"{declared.kind.value}"
            self.fault(
                f"the list {name} holds {declared.kind.value}, {target.name} is not {wanted}", target.at
            )
        if declared.source is ListSource.DNS and "bounce" in self.stages:
            self.fault(f"the list {name} comes from the DNS, which is not asked at stage bounce", at)

    def size(self, tree: Call) -> None:
        operands = [tree.target, *tree.arguments] if tree.target is not None else [*tree.arguments]
        if len(operands) != 1 or operands[0] is None:
            self.fault("size is written size(x) or x.size()", tree.at)
            return
        kind = self.kind_of(operands[0])
        if kind in {Kind.INT, Kind.BOOL}:
            self.fault(f"only texts and lists have a size, this is {_named(kind)}", operands[0].at)

    def quantifier(self, tree: Call) -> None:
        form = f"{tree.function} is written list.{tree.function}(item, condition)"
        if tree.target is None or len(tree.arguments) != 2 or not isinstance(tree.arguments[0], Name):
            self.fault(form, tree.at)
            return
        variable, condition = tree.arguments[0], tree.arguments[1]
        if self.variable is not None:
            # Nested, their cost is the product of the lists' lengths.
            self.fault(f"{tree.function} may not stand inside another exists or all", tree.at)
            return
        if variable.name in FACTS:
            self.fault(f"{variable.name} is a fact: give the item another name", variable.at)
            return
        self.want(tree.target, Kind.STRINGS, f"before .{tree.function}")
        self.variable = variable.name
        self.want(condition, Kind.BOOL, f"as the condition of {tree.function}")
        self.variable = None


def _absent(fact: Fact, stage: str) -> str:
    others = ", ".join(fact.stages)
    return f"{fact.name} does not exist at stage {stage}: it exists at {others}"
