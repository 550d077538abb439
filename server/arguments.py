"""Arguments of operations held against what an operation says it takes.

Owns the check that stands before every operation: names, types, sizes of
numbers and texts that no database takes. Knows no operation and changes nothing:
what fits here may still be refused there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

NUMBER_LIMIT = 1 << 62
SHOWN_CHARACTERS = 60

_Kind = tuple[str, Callable[[Any], bool]]


class WrongArguments(ValueError):
    """The arguments are not those of the operation; the text says which, and what is wanted."""


def check(operation: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Raise WrongArguments where the arguments are not what an operation declares after its context."""
    wanted = _wanted(operation)
    for name, value in arguments.items():
        if name not in wanted:
            known = ", ".join(wanted) or "none"
            raise WrongArguments(f"there is no argument {name[:SHOWN_CHARACTERS]!r}; known: {known}")
        (words, fits), _ = wanted[name]
        if not fits(value):
            raise WrongArguments(f"{name} is {words}, not {_shown(value)}")
    missing = [name for name, (_, is_needed) in wanted.items() if is_needed and name not in arguments]
    if missing:
        raise WrongArguments(f"missing: {', '.join(missing)}")


@lru_cache(maxsize=256)
def _wanted(operation: Callable[..., Any]) -> dict[str, tuple[_Kind, bool]]:
    """Return, by name, what an argument is and whether it must be given."""
    parameters = list(inspect.signature(operation).parameters.values())[1:]
    return {one.name: (_kind(str(one.annotation)), one.default is one.empty) for one in parameters}


def _kind(annotation: str) -> _Kind:
    """Return the words and the test for an annotation as it is written; KeyError for one unknown here."""
    plain, _, optional = annotation.partition(" | ")
    words, fits = _KINDS[plain]
    if optional == "None":
        return f"{words} or null", lambda value: value is None or fits(value)
    return words, fits


def _is_text(value: Any) -> bool:
    """Tell texts that a database and a file name can hold: no NUL, no half of a surrogate pair."""
    if not isinstance(value, str) or "\0" in value:
        return False
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def _is_number(value: Any) -> bool:
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return is_int and 0 <= value < NUMBER_LIMIT


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


_KINDS: Mapping[str, _Kind] = {
    "str": ("a text without NUL", _is_text),
    "int": ("a whole number from 0 on", _is_number),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "list[str]": ("a list of texts", _is_texts),
    "dict[str, Any]": ("an object", lambda value: isinstance(value, dict)),
}


def _shown(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a fraction", str: "such a text", list: "a list"}
    if value is None:
        return "null"
    text = names.get(type(value), "an object")
    return f"{value}"[:SHOWN_CHARACTERS] if type(value) in (int, float) else text
