"""A [[list]] table into its declaration, or every mistake in it with its line.

Owns the keys of a list. Opens no file: where entries stand in one, whoever holds
the files reads them with lists.read.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

from policies.lists import read
from policies.rules import ListDeclaration, ListKind, ListSource

LIST_KEYS: Mapping[str, tuple[type, str]] = {
    "name": (str, "What conditions call the list: lower-case letters, digits and hyphens. Required."),
    "description": (str, "What the list is for."),
    "kind": (
        str,
        "What it holds: `domains` (`example.net`, `*.example.net` for all below it; of an address, "
        "its domain counts), `networks` (`192.0.2.0/24`), `addresses` (`user@example.net`, "
        "`@example.net`) or `texts`. Required.",
    ),
    "values": (list, "The entries themselves."),
    "file": (str, "A file with one entry a line, relative to the rule's own; read anew when it changes."),
    "database": (
        bool,
        "true: the entries are in the database, changed by `mailagents policy list-add` and `list-remove`.",
    ),
    "dns": (
        str,
        "The zone of a DNS list (RFC 5782), asked before the stage is judged. Not for addresses. A "
        "zone without the test entries of RFC 5782 5 is passed over, and the log says so.",
    ),
}
_SOURCES = {
    "values": ListSource.VALUES,
    "file": ListSource.FILE,
    "database": ListSource.DATABASE,
    "dns": ListSource.DNS,
}
_WORDS = {str: "a text", bool: "true or false", list: "a list of texts"}
_ZONE = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")


def read_list(
    table: Mapping[str, Any],
    *,
    path: str,
    line: Callable[[str], int],
    fault: Callable[[int, str], None],
) -> ListDeclaration | None:
    """Return the declaration of a table, None where it is faulty; fault is given each mistake."""
    found: list[tuple[str, str]] = [*_keys(table)]
    if not found:
        found = [*_values(table)]
    for key, message in found:
        fault(line(key), message)
    if found:
        return None
    key = next(key for key in _SOURCES if key in table)
    values = tuple(table["values"]) if key == "values" else ()
    origin = table[key] if key in {"file", "dns"} else ""
    place = f"{path}:{line('name')}"
    return ListDeclaration(table["name"], ListKind(table["kind"]), _SOURCES[key], origin, values, place)


def _keys(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    for key, value in table.items():
        if key not in LIST_KEYS:
            near = difflib.get_close_matches(key, list(LIST_KEYS), n=1)
            found.append((key, f"{key} is unknown" + (f": did you mean {near[0]}?" if near else "")))
        elif type(value) is not LIST_KEYS[key][0]:
            found.append((key, f"{key} is {_WORDS[LIST_KEYS[key][0]]}"))
    found += [(key, f"the list lacks {key}") for key in ("name", "kind") if key not in table]
    if len(_SOURCES.keys() & table.keys()) != 1:
        found.append(("name", "a list has one of values, file, database and dns"))
    return found


def _values(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    name, kind = table["name"], table["kind"]
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", name):
        found.append(("name", f"{name!r} is no name: lower-case letters, digits and hyphens, 64 at most"))
    kinds = [one.value for one in ListKind]
    if kind not in kinds:
        near = difflib.get_close_matches(kind, kinds, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(kinds)}"
        return [*found, ("kind", f"there is no kind {kind}: {hint}")]
    if "dns" in table:
        if kind not in {"domains", "networks"}:
            found.append(("dns", "the DNS lists domains and networks alone"))
        if not _ZONE.fullmatch(table["dns"]):
            found.append(("dns", f"{table['dns']!r} is no zone"))
    if "file" in table and not table["file"]:
        found.append(("file", "file names a file"))
    if not table.get("database", True):
        found.append(("database", "database is true, or left out"))
    values = table.get("values", [])
    if not all(isinstance(value, str) for value in values):
        return [*found, ("values", "values is a list of texts")]
    faults = read(ListKind(kind), [value.replace("\n", " ") for value in values])[1]
    return found + [("values", f"{values[number - 1]!r}: {message}") for number, message in faults]
