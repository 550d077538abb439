"""Line numbers of the keys in a TOML document, which tomllib does not tell.

Owns a scanner that walks a document tomllib has already accepted and notes
where each key stands: in tables, arrays of tables, dotted and quoted keys and
inline tables, past multi-line strings and arrays. It judges no syntax.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field

KeyPath = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
# Possessive by construction: each alternative begins with a character of its own.
_STRING = re.compile(
    r'"""(?:[^"\\]|\\[\s\S]|"(?!""))*"""+|'
    r"'''(?:[^']|'(?!''))*'''+|"
    r'"(?:[^"\\\n]|\\.)*"|'
    r"'[^'\n]*'"
)
_SCALAR = re.compile(r"[^\s,\]}#]+(?: \d[^\s,\]}#]*)?")


@dataclass(frozen=True, slots=True)
class Positions:
    """Lines, from 1. keys: of each table and key; texts: of the first character inside a text value.

    Elements of arrays of tables have their index in the path. A key that is made by a
    longer dotted key or table header has the line where it appeared first.
    """

    keys: dict[KeyPath, int] = field(default_factory=dict)
    texts: dict[KeyPath, int] = field(default_factory=dict)


def positions(text: str) -> Positions:
    """Return where the keys and texts of a valid TOML document stand; its lines end in LF."""
    scanner = _Scanner(text)
    scanner.document()
    return scanner.found


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0
        self.line = 1
        self.counted = 0
        self.found = Positions()
        self.arrays: dict[KeyPath, int] = {}

    def document(self) -> None:
        table: KeyPath = ()
        while self._skip(_BLANK) < len(self.text):
            if self.text.startswith("[", self.place):
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> KeyPath:
        brackets = 2 if self.text.startswith("[[", self.place) else 1
        self.place += brackets
        keys = self._keys()
        path: KeyPath = ()
        for position, key in enumerate(keys, start=1):
            path = (*path, key)
            self._note(path)
            if brackets == 2 and position == len(keys):
                self.arrays[path] = self.arrays.get(path, -1) + 1
            if path in self.arrays:
                path = (*path, self.arrays[path])
                self._note(path)
        self.place += brackets
        return path

    def _pair(self, table: KeyPath) -> None:
        path = table
        for key in self._keys():
            path = (*path, key)
            self._note(path)
        self.place += 1  # the '='
        self._skip(_SPACE)
        self._value(path)

    def _keys(self) -> list[str]:
        keys: list[str] = []
        while True:
            self._skip(_SPACE)
            quoted = _STRING.match(self.text, self.place)
            found = quoted or _BARE.match(self.text, self.place)
            assert found, "tomllib accepted the document"
            keys.append(tomllib.loads(f"key={found[0]}")["key"] if quoted else found[0])
            self.place = found.end()
            self._skip(_SPACE)
            if not self.text.startswith(".", self.place):
                return keys
            self.place += 1

    def _value(self, path: KeyPath) -> None:
        opening = self.text[self.place : self.place + 1]
        if opening in {"[", "{"}:
            self._container(path, "]" if opening == "[" else "}")
            return
        found = _STRING.match(self.text, self.place) or _SCALAR.match(self.text, self.place)
        assert found, "tomllib accepted the document"
        # A line end right behind three quotes is no part of the text (TOML 1.0, String).
        dropped = found[0][:3] in {'"""', "'''"} and found[0][3:4] == "\n"
        self._count()
        self.found.texts[path] = self.line + dropped
        self.place = found.end()

    def _container(self, path: KeyPath, closing: str) -> None:
        self.place += 1
        count = 0
        self._skip(_BLANK)
        while not self.text.startswith(closing, self.place):
            if closing == "}":
                self._pair(path)
            else:
                self._note((*path, count))
                self._value((*path, count))
            count += 1
            self._skip(_BLANK)
            if self.text.startswith(",", self.place):
                self.place += 1
                self._skip(_BLANK)
        self.place += 1

    def _note(self, path: KeyPath) -> None:
        self._count()
        self.found.keys.setdefault(path, self.line)

    def _count(self) -> None:
        self.line += self.text.count("\n", self.counted, self.place)
        self.counted = self.place

    def _skip(self, pattern: re.Pattern[str]) -> int:
        found = pattern.match(self.text, self.place)
        assert found, "the pattern matches nothing too"
        self.place = found.end()
        return self.place
