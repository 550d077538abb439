"""The tree of mailbox names: which names a pattern means, and what LIST says of each.

Owns the wildcards of LIST (linear in the name whatever the pattern) and the
rows for a set of folders. What a name may be is storage's to say. Pure. RFC 9051 5.1 and 6.3.9,
RFC 5258 (selection and return options), 6154 (special use), 3348 (children).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
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


Match = Callable[[str], bool]


def matchers(reference: str, patterns: Iterable[str]) -> list[Match]:
    """Return for each pattern the test whether a name matches it below a reference."""
    return [_matcher(reference + pattern) for pattern in patterns]


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
    matches: Sequence[Match],
    selection: frozenset[str],
    returns: frozenset[str],
    lapsed: Collection[str] = (),
) -> list[Row]:
    """Return the lines of LIST in the order of names, INBOX first.

    matches: a test for each pattern. lapsed: subscribed names that have no folder.
    """
    known = {folder.name: folder for folder in folders}
    with_children = {parent for name in known for parent in parents(name)}
    subscribed = {folder.name for folder in known.values() if folder.subscribed}.union(lapsed)
    names = known.keys() | with_children
    if "SUBSCRIBED" in selection:
        names |= subscribed
    below = _above(subscribed, matches) if {"RECURSIVEMATCH", "SUBSCRIBED"} <= selection else frozenset()
    found = []
    for name in sorted(names, key=lambda name: (name != "INBOX", name)):
        if not any(test(name) for test in matches):
            continue
        folder = known.get(name)
        if name not in below and not _selected(folder, selection, is_subscribed=name in subscribed):
            continue
        is_subscribed = name in subscribed and "SUBSCRIBED" in selection | returns
        attributes = _attributes(folder, is_subscribed=is_subscribed)
        attributes.append("\\HasChildren" if name in with_children else "\\HasNoChildren")
        found.append(Row(name, tuple(attributes), folder, name in below))
    return found


def _above(subscribed: Iterable[str], matches: Sequence[Match]) -> frozenset[str]:
    """Return the names above subscribed ones, but for those that another pattern than the parent's shows."""
    found: set[str] = set()
    for name in subscribed:
        shown = [test(name) for test in matches]
        for parent in parents(name):
            # RFC 5258 3.1 leaves open whether a parent named beside its child tells of it: it does not here.
            if not any(hit and not test(parent) for hit, test in zip(shown, matches, strict=True)):
                found.add(parent)
    return frozenset(found)


def _selected(folder: Folder | None, selection: frozenset[str], *, is_subscribed: bool) -> bool:
    if "SUBSCRIBED" in selection and not is_subscribed:
        return False
    return not ("SPECIAL-USE" in selection and not (folder and folder.special_use))


def _attributes(folder: Folder | None, *, is_subscribed: bool) -> list[str]:
    attributes = ["\\Subscribed"] if is_subscribed else []
    if folder is None:
        # Who asks for subscriptions knows \\NonExistent, which says the other too (RFC 5258 3).
        return [*attributes, "\\NonExistent"] if is_subscribed else ["\\NonExistent", "\\Noselect"]
    # RFC 6154 2: plain LIST may show special uses too, and every client likes to know.
    if folder.special_use:
        attributes.append(folder.special_use)
    return attributes
