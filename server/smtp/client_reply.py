"""Replies as a client reads them: lines to replies, enhanced codes, EHLO's extensions.

Owns the bounded, incremental reply reader. Is lenient where harm is impossible
(lines ended by LF alone, a bare code) and refuses what would grow without end.
Does no I/O. RFC 5321 4.2 (replies), RFC 2034 and 3463 (enhanced codes), RFC 9422 (LIMITS).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

# RFC 5321 4.5.3.1.5 allows 512 octets; real servers put whole paragraphs on one line.
LINE_LIMIT = 4096
LINES_LIMIT = 100
TEXT_LIMIT = 2000

_ENHANCED = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?:[ \t]+|$)")

_LIMIT = re.compile(r"[1-9][0-9]{0,5}")


class ReplySyntax(Exception):
    """The server said something that is no reply; the text says what."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply: code, enhanced status ('' if none or of another class), its lines as text."""

    code: int
    enhanced: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The lines as one, cut to TEXT_LIMIT characters."""
        return " ".join(line for line in self.lines if line)[:TEXT_LIMIT]

    @property
    def positive(self) -> bool:
        """Whether the command was done (2yz) or is to be gone on with (3yz)."""
        return self.code < 400

    @property
    def temporary(self) -> bool:
        """Whether the same command may be taken later (4yz)."""
        return 400 <= self.code < 500


@dataclass(frozen=True, slots=True)
class Extensions:
    """What a server announced: upper-case keywords to their parameters (RFC 5321 4.1.1.1)."""

    extended: bool = False
    keywords: Mapping[str, str] = field(default_factory=dict)

    def __contains__(self, keyword: str) -> bool:
        return keyword in self.keywords

    @property
    def size_limit(self) -> int | None:
        """Largest message in octets that SIZE announced; None where there is no fixed limit."""
        # RFC 1870 4: 0 or nothing means that no limit is told.
        value = self.keywords.get("SIZE", "")
        return int(value) or None if value.isascii() and value.isdigit() and len(value) <= 20 else None

    def limit(self, name: str) -> int | None:
        """Return a limit that LIMITS announced, of MAILMAX, RCPTMAX and others; None where it is not told."""
        for item in self.keywords.get("LIMITS", "").upper().split():
            found, _, value = item.partition("=")
            # RFC 9422: one to six digits, the first no zero; what is not known is passed over.
            if found == name and _LIMIT.fullmatch(value):
                return int(value)
        return None


class ReplyReader:
    """Turns octets into replies; holds at most one unfinished reply."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._lines: list[str] = []

    @property
    def pending(self) -> bool:
        """Whether octets or lines wait for the rest of their reply."""
        return bool(self._buffer or self._lines)

    def feed(self, data: bytes) -> Iterator[Reply]:
        """Yield the replies that data completes; raises ReplySyntax."""
        self._buffer += data
        start = 0
        try:
            while (end := self._buffer.find(b"\n", start)) >= 0:
                line = bytes(self._buffer[start:end]).removesuffix(b"\r")
                start = end + 1
                reply = self._take(line)
                if reply is not None:
                    yield reply
        finally:
            del self._buffer[:start]
        if len(self._buffer) > LINE_LIMIT:
            raise ReplySyntax(f"a reply line is longer than {LINE_LIMIT} octets")

    def _take(self, line: bytes) -> Reply | None:
        if len(line) > LINE_LIMIT:
            raise ReplySyntax(f"a reply line is longer than {LINE_LIMIT} octets")
        code, mark, rest = line[:3], line[3:4], line[4:]
        if not (code.isdigit() and b"200" <= code < b"600" and mark in (b"", b" ", b"-")):
            raise ReplySyntax(f"not a reply: {printable(line)[:100]}")
        self._lines.append(printable(rest))
        if mark == b"-":
            if len(self._lines) >= LINES_LIMIT:
                raise ReplySyntax(f"a reply has more than {LINES_LIMIT} lines")
            return None
        lines, self._lines = self._lines, []
        # RFC 5321 4.2.1: all lines bear one code; where they differ, the last one ends the reply.
        return make_reply(int(code), lines)


def make_reply(code: int, lines: list[str]) -> Reply:
    """Return the reply with its enhanced code taken out of its lines."""
    found = _ENHANCED.match(lines[0]) if lines else None
    # RFC 2034 4: the class agrees with the reply code's; one that does not is no status code.
    if found is None or int(found[1][0]) != code // 100:
        return Reply(code, "", tuple(lines))
    enhanced = found[1]
    return Reply(code, enhanced, tuple(line.removeprefix(enhanced).lstrip() for line in lines))


def printable(octets: bytes) -> str:
    """Return octets as text in which nothing controls a terminal; what is no UTF-8 is escaped."""
    text = octets.decode("utf-8", "backslashreplace")
    if text.isascii() and text.isprintable():
        return text
    return "".join(character if character.isprintable() else " " for character in text).strip()


def read_extensions(reply: Reply) -> Extensions:
    """Return what the reply to EHLO or LHLO announces; its first line is the greeting."""
    keywords: dict[str, str] = {}
    for line in reply.lines[1:]:
        keyword, _, parameters = line.strip().partition(" ")
        if keyword:
            keywords.setdefault(keyword.upper(), parameters.strip())
    return Extensions(extended=True, keywords=keywords)
