"""The tree of mailbox names: which names a pattern means, and what LIST says of each.

Owns the wildcards of LIST (linear in the name whatever the pattern) and the
rows for a set of folders. What a name may be is storage's to say. Pure. RFC 9051 5.1 and 6.3.9,
RFC 5258 (selection and return options), 6154 (special use), 3348 (children).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from storage.records import Folder

DELIMITER = "/"
PATTERN_CHARACTERS = 1000
SPECIAL_USES = frozenset({"\\Archive", "\\Drafts", "\\Junk", "\\Sent", "\\Trash"})

_WILDCARDS = re.compile(r"[*%]{2,}")


def parents(name: str) -> Iterator[str]:
    """Give the names above a name, the nearest first."""
    while DELIMITER in name:
        name = name.rpartition(DELIMITER)[0]
        yield name


def matcher(reference: str, patterns: Iterable[str]) -> Callable[[str], bool]:
    """Return the test whether a name matches any of the patterns below a reference."""
    tests = [_matcher(reference + pattern) for pattern in patterns]
    return tests[0] if len(tests) == 1 else lambda name: any(test(name) for test in tests)


def _matcher(pattern: str) -> Callable[[str], bool]:
    if len(pattern) > PATTERN_CHARACTERS:
        return lambda _name: False
    pattern = _WILDCARDS.sub(lambda run: "*" if "*" in run[0] else "%", pattern)
    head, slash, rest = pattern.partition(DELIMITER)
    if head.upper() == "INBOX":
        pattern = "INBOX" + slash + rest
    if pattern == "*":
        return lambda _name: True
    if pattern == "%":
        return lambda name: DELIMITER not in name
    if "*" not in pattern and "%" not in pattern:
        return lambda name: name == pattern
    return _Automaton(pattern).matches


class _Automaton:
    """A pattern as bits: one state a character, all states moved at once by each character of a name."""

    __slots__ = ("_accept", "_any", "_any_but_delimiter", "_letters")

    def __init__(self, pattern: str) -> None:
        self._letters: dict[str, int] = {}
        self._any = self._any_but_delimiter = 0
        for place, character in enumerate(pattern):
            if character == "*":
                self._any |= 1 << place
            elif character == "%":
                self._any_but_delimiter |= 1 << place
            else:
                self._letters[character] = self._letters.get(character, 0) | 1 << place
        self._accept = 1 << len(pattern)

    def matches(self, name: str) -> bool:
        wild, tame = self._any, self._any | self._any_but_delimiter
        states = self._skip(1)
        for character in name:
            kept = states & (wild if character == DELIMITER else tame)
            states = self._skip((states & self._letters.get(character, 0)) << 1 | kept)
            if not states:
                return False
        return bool(states & self._accept)

    def _skip(self, states: int) -> int:
        # A wildcard may stand for nothing; no two stand side by side.
        return states | (states & (self._any | self._any_but_delimiter)) << 1


@dataclass(frozen=True, slots=True)
class Row:
    """One line of LIST. folder: None for a name that only has others below it."""

    name: str
    attributes: tuple[str, ...]
    folder: Folder | None
    subscribed_below: bool = False


def rows(
    folders: Iterable[Folder],
    *,
    matches: Callable[[str], bool],
    selection: frozenset[str],
    returns: frozenset[str],
) -> list[Row]:
    """Return the lines of LIST in the order of names, INBOX first."""
    known = {folder.name: folder for folder in folders}
    with_children = {parent for name in known for parent in parents(name)}
    subscribed_above = {
        parent for folder in known.values() if folder.subscribed for parent in parents(folder.name)
    }
    found = []
    for name in sorted(known.keys() | with_children, key=lambda name: (name != "INBOX", name)):
        if not matches(name):
            continue
        folder = known.get(name)
        below = "RECURSIVEMATCH" in selection and "SUBSCRIBED" in selection and name in subscribed_above
        if not below and not _selected(folder, selection):
            continue
        attributes = _attributes(folder, selection | returns)
        attributes.append("\\HasChildren" if name in with_children else "\\HasNoChildren")
        found.append(Row(name, tuple(attributes), folder, below))
    return found


def _selected(folder: Folder | None, selection: frozenset[str]) -> bool:
    if "SUBSCRIBED" in selection and not (folder and folder.subscribed):
        return False
    return not ("SPECIAL-USE" in selection and not (folder and folder.special_use))


def _attributes(folder: Folder | None, asked: frozenset[str]) -> list[str]:
    if folder is None:
        return ["\\NonExistent", "\\Noselect"]
    attributes = ["\\Subscribed"] if folder.subscribed and "SUBSCRIBED" in asked else []
    # RFC 6154 2: plain LIST may show special uses too, and every client likes to know.
    if folder.special_use:
        attributes.append(folder.special_use)
    return attributes
