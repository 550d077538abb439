"""The part of a condition that a dictionary can answer, taken out of its tree.

Owns the cut of a condition into plain tests (a fact equals a literal, is in a list
of literals, is true; a list has a literal), choices between such tests, and the rest,
which CEL executes. The condition is the conjunction of all three.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce

from policies.expression import Binary, Call, Expression, ListOf, Literal, Name, Unary
from policies.facts import DEFAULT_LIMITS, FACTS, LIMIT_PREFIX, Kind
from policies.patterns import compile_pattern
from policies.rules import Derived, Function, PlainTest, TestKind

DERIVED_PREFIX = "derived_"
_DERIVED = frozenset(function.value for function in Function)


class Derivations:
    """The in_list and matches of a rule set, each once under a name of its own; limits: the figures."""

    def __init__(self, limits: Mapping[str, int] = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self.found: dict[tuple[str, str, str], Derived] = {}

    def name(self, function: str, fact: str, argument: str) -> str:
        """Return the name of a derived bool, made where it is new."""
        key = (function, fact, argument)
        known = self.found.get(key)
        if known is None:
            pattern = compile_pattern(argument) if function == Function.MATCHES.value else None
            name = f"{DERIVED_PREFIX}{len(self.found)}"
            known = self.found[key] = Derived(name, Function(function), fact, argument, pattern)
        return known.name

    def by_name(self) -> dict[str, Derived]:
        """Return all by their names."""
        return {one.name: one for one in self.found.values()}


def derive(tree: Expression, derivations: Derivations) -> Expression:
    """Return a checked tree in which derived bools stand as names, and figures for limits."""
    match tree:
        case Name(name=name) if name.startswith(LIMIT_PREFIX):
            return Literal(derivations.limits[name.removeprefix(LIMIT_PREFIX)], tree.at)
        case Call(function=function, target=Name(name=fact), arguments=(Literal(value=argument),)) if (
            function in _DERIVED
        ):
            return Name(derivations.name(function, fact, str(argument)), tree.at)
        case Unary():
            return replace(tree, operand=derive(tree.operand, derivations))
        case Binary():
            return replace(tree, left=derive(tree.left, derivations), right=derive(tree.right, derivations))
        case Call():
            target = None if tree.target is None else derive(tree.target, derivations)
            arguments = tuple(derive(argument, derivations) for argument in tree.arguments)
            return replace(tree, target=target, arguments=arguments)
        case _:
            return tree


@dataclass(frozen=True, slots=True)
class Cut:
    """A condition in parts, of which all have to hold; rest: None where nothing is left for CEL."""

    tests: tuple[PlainTest, ...]
    choices: tuple[tuple[PlainTest, ...], ...]
    rest: Expression | None


def cut(tree: Expression) -> Cut:
    """Return the parts of a checked condition."""
    tests: list[PlainTest] = []
    choices: list[tuple[PlainTest, ...]] = []
    rest: list[Expression] = []
    for term in _terms(tree, "&&"):
        found = [_plain(one) for one in _terms(term, "||")]
        choice = tuple(one for one in found if one is not None)
        if len(choice) < len(found):
            rest.append(term)
        elif len(choice) == 1:
            tests += choice
        else:
            choices.append(choice)
    whole = reduce(lambda left, right: Binary("&&", left, right, right.at), rest) if rest else None
    return Cut(tuple(tests), tuple(choices), whole)


def names(tree: Expression | None) -> tuple[str, ...]:
    """Return the facts and derived bools that a tree asks for, each once, in order."""
    found: dict[str, None] = {}
    pending = [tree] if tree is not None else []
    while pending:
        node = pending.pop()
        match node:
            case Name(name=name) if name in FACTS or name.startswith(DERIVED_PREFIX):
                found[name] = None
            case Unary(operand=operand):
                pending.append(operand)
            case Binary(left=left, right=right):
                pending += [right, left]
            case Call(target=target, arguments=arguments):
                pending += [*reversed(arguments), *([target] if target is not None else [])]
            case _:
                pass
    return tuple(found)


def _terms(tree: Expression, operator: str) -> list[Expression]:
    if isinstance(tree, Binary) and tree.operator == operator:
        return [*_terms(tree.left, operator), *_terms(tree.right, operator)]
    return [tree]


def _plain(term: Expression) -> PlainTest | None:
    match term:
        case Name(name=name):
            return _any_of(name, True)
        case Unary(operator="!", operand=operand):
            inner = _plain(operand)
            return _opposite(inner) if inner else None
        case Binary(operator="==" | "!=", left=Name(name=name), right=Literal(value=value)):
            test = _any_of(name, value)
            return test if term.operator == "==" else _opposite(test)
        case Binary(operator="==" | "!=", left=Literal(value=value), right=Name(name=name)):
            test = _any_of(name, value)
            return test if term.operator == "==" else _opposite(test)
        case Binary(operator="in", left=Name(name=name), right=ListOf(items=items)):
            return PlainTest(name, TestKind.ANY_OF, frozenset(item.value for item in items))
        case Binary(operator="in", left=Literal(value=value), right=Name(name=name)):
            return PlainTest(name, TestKind.HAS, frozenset([value]))
        case _:
            return None


def _any_of(name: str, value: object) -> PlainTest:
    # A bool has two values, so that 'is not true' may be looked up as well.
    return PlainTest(name, TestKind.ANY_OF, frozenset([value]))


_OPPOSITES = {
    TestKind.ANY_OF: TestKind.NONE_OF,
    TestKind.NONE_OF: TestKind.ANY_OF,
    TestKind.HAS: TestKind.LACKS,
    TestKind.LACKS: TestKind.HAS,
}


def _opposite(test: PlainTest) -> PlainTest:
    if test.fact not in FACTS or FACTS[test.fact].kind is Kind.BOOL:
        return PlainTest(test.fact, TestKind.ANY_OF, frozenset([True, False]) - test.values)
    return PlainTest(test.fact, _OPPOSITES[test.kind], test.values)
