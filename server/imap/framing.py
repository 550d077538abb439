"""Cuts the client's octets into commands: incremental, literal-aware, bounded.

Owns the buffer of one connection, the counting of line and literal octets, and
the handing on of APPEND's message literals as a stream. Knows no grammar
beyond line ends, literals and the head of APPEND; does no I/O.
RFC 9051 4.3 and 9 (literal), 7888 (non-synchronising literals), 3516 (literal8).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto

HEAD_OCTETS = 96  # enough of a refused command for its tag and name
CHUNK_OCTETS = 256 * 1024
TAIL_OCTETS = 32  # a literal's announcement at a line's end, the longest allowed

_LITERAL = re.compile(rb"(~?)\{(\d{1,20})(\+?)\}\r?\n\Z")
# The mailbox is there already (an atom, a quoted string or a literal of its own): what follows is a message.
_APPEND = re.compile(rb"[^ \r\n]+ APPEND [^\r\n]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one command may take: text outside literals, one command's literals, their number."""

    line_octets: int = 64 * 1024
    literal_octets: int = 256 * 1024
    literals: int = 1024


# RFC 2971 3.3: ID may have 30 fields of 1024 octets, each with its name.
BEFORE_LOGIN = Limits(line_octets=36 * 1024, literal_octets=8 * 1024, literals=8)


class Excess(Enum):
    """Which limit a command broke."""

    LINE = auto()
    LITERAL = auto()
    LITERALS = auto()


@dataclass(frozen=True, slots=True)
class Command:
    """A whole command without its last line end, literals in place behind their announcements."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Continue:
    """The client waits for a continuation request before it sends a literal."""


@dataclass(frozen=True, slots=True)
class Announced:
    """A message literal of APPEND stands before the reader, who must `accept` or `refuse` it.

    head: the command's text up to the literal, or since the literal before it.
    """

    head: bytes
    octets: int
    synchronising: bool
    binary: bool


@dataclass(frozen=True, slots=True)
class Chunk:
    """Octets of an accepted message literal; last: whether it ends with them."""

    data: bytes
    last: bool


@dataclass(frozen=True, slots=True)
class Tail:
    """What stood behind the last message literal, without its line end."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """A command that broke a limit; what is left of it is skipped. head: its first octets."""

    head: bytes
    excess: Excess


Event = Command | Continue | Announced | Chunk | Tail | Refused


class _State(Enum):
    COMMAND = auto()
    PENDING = auto()  # announced, neither accepted nor refused
    STREAM = auto()
    TAIL = auto()
    SKIP_LINE = auto()
    SKIP_LITERAL = auto()


class Framing:
    """The buffer of one connection; `feed` octets, then take events with `next` until None."""

    __slots__ = (
        "_announced",
        "_buffer",
        "_literal_octets",
        "_literals",
        "_remaining",
        "_resume",
        "_scanned",
        "_state",
        "_text_octets",
        "limits",
    )

    def __init__(self, limits: Limits = BEFORE_LOGIN) -> None:
        self.limits = limits
        self._buffer = bytearray()
        self._state = _State.COMMAND
        self._remaining = 0
        self._announced: Announced | None = None
        self._restart()

    def _restart(self) -> None:
        self._resume = 0  # where the line being read begins: behind the last literal
        self._scanned = 0  # no line end before this offset
        self._text_octets = 0
        self._literals = 0
        self._literal_octets = 0

    def feed(self, data: bytes) -> None:
        """Add what the client sent."""
        self._buffer += data

    @property
    def buffered_octets(self) -> int:
        """Octets fed and not yet taken."""
        return len(self._buffer)

    def discard(self) -> int:
        """Forget all that is buffered and return its octets: plaintext behind STARTTLS (RFC 9051 6.2.1)."""
        octets = len(self._buffer)
        self._buffer.clear()
        self._state = _State.COMMAND
        self._restart()
        return octets

    def next(self) -> Event | None:
        """Return the next event, or None until more octets are fed."""
        while self._state in (_State.SKIP_LINE, _State.SKIP_LITERAL):
            if not self._skip():
                return None
        if self._state is _State.STREAM:
            return self._chunk()
        return None if self._state is _State.PENDING else self._line()

    def next_line(self, limit: int) -> bytes | None:
        """Return one line without its end, whatever it looks like: answers to continuation requests.

        None until it is whole. A line over limit octets is cut to limit + 1, its rest skipped.
        """
        while self._state in (_State.SKIP_LINE, _State.SKIP_LITERAL):
            if not self._skip():
                return None
        end = self._buffer.find(b"\n", self._scanned)
        if end < 0 and len(self._buffer) <= limit + 1:
            self._scanned = len(self._buffer)
            return None
        if end < 0 or end > limit + 1:
            line = bytes(self._buffer[: limit + 1])
            self._state = _State.SKIP_LINE
            self._restart()
            return line
        line = self._cut(end)
        self._restart()
        return line

    def accept(self) -> None:
        """Take the announced literal as chunks."""
        assert self._announced is not None
        self._remaining = self._announced.octets
        self._announced = None
        self._state = _State.STREAM

    def refuse(self) -> None:
        """Give up the command of the announced literal: its octets, if they come, are skipped."""
        assert self._announced is not None
        synchronising, self._remaining = self._announced.synchronising, self._announced.octets
        self._announced = None
        # RFC 9051 4.3: who waits for a continuation and gets a tagged response sends nothing of the literal.
        self._state = _State.COMMAND if synchronising else _State.SKIP_LITERAL
        self._restart()

    def abandon(self) -> None:
        """Give up a command while its literal is being streamed: what is left of it is skipped."""
        self._state = _State.SKIP_LITERAL if self._state is _State.STREAM else _State.SKIP_LINE
        self._restart()

    def _cut(self, end: int) -> bytes:
        """Take the text before the line feed at end, without its line end, out of the buffer."""
        stop = end - 1 if end and self._buffer[end - 1] == 0x0D else end
        data = bytes(self._buffer[:stop])
        del self._buffer[: end + 1]
        return data

    def _line(self) -> Event | None:
        buffer = self._buffer
        while self._resume <= len(buffer):
            end = buffer.find(b"\n", max(self._scanned, self._resume))
            text = (len(buffer) if end < 0 else end + 1) - self._resume
            if self._text_octets + text > self.limits.line_octets:
                return self._exceeded(Excess.LINE)
            if end < 0:
                self._scanned = len(buffer)
                return None
            self._text_octets += text
            match = _LITERAL.search(buffer[max(self._resume, end - TAIL_OCTETS) : end + 1])
            if match is None:
                return self._ended(end)
            event = self._literal(match, end)
            if event is not None or self._state is _State.PENDING:
                return event
        return None

    def _ended(self, end: int) -> Event:
        tail = self._state is _State.TAIL
        data = self._cut(end)
        self._state = _State.COMMAND
        self._restart()
        return Tail(data) if tail else Command(data)

    def _literal(self, match: re.Match[bytes], end: int) -> Event | None:
        octets, synchronising = int(match[2]), not match[3]
        head_end = end + 1 - len(match[0])
        if self._state is _State.TAIL or _APPEND.match(self._buffer, 0, head_end):
            head = bytes(self._buffer[:head_end])
            del self._buffer[: end + 1]
            self._announced = Announced(head, octets, synchronising, bool(match[1]))
            self._state = _State.PENDING
            return self._announced
        self._literals += 1
        self._literal_octets += octets
        if self._literals > self.limits.literals or self._literal_octets > self.limits.literal_octets:
            many = self._literals > self.limits.literals
            return self._too_large(Excess.LITERALS if many else Excess.LITERAL, end, octets, synchronising)
        self._resume = self._scanned = end + 1 + octets
        return Continue() if synchronising else None

    def _exceeded(self, excess: Excess) -> Refused:
        # As much as is there for certain, however the octets came.
        refused = Refused(bytes(self._buffer[: min(HEAD_OCTETS, self.limits.line_octets)]), excess)
        # What was read of the line stays: the skipping looks at its end for a literal.
        del self._buffer[: self._resume]
        self._state = _State.SKIP_LINE
        self._restart()
        return refused

    def _too_large(self, excess: Excess, end: int, octets: int, synchronising: bool) -> Refused:
        refused = Refused(bytes(self._buffer[: min(HEAD_OCTETS, end)]), excess)
        del self._buffer[: end + 1]
        self._remaining = octets
        self._state = _State.COMMAND if synchronising else _State.SKIP_LITERAL
        self._restart()
        return refused

    def _chunk(self) -> Chunk | None:
        if not self._buffer and self._remaining:
            return None
        taken = min(self._remaining, CHUNK_OCTETS, len(self._buffer))
        data = bytes(self._buffer[:taken])
        del self._buffer[:taken]
        self._remaining -= taken
        if not self._remaining:
            self._state = _State.TAIL
            self._restart()
        return Chunk(data, last=not self._remaining)

    def _skip(self) -> bool:
        """Skip what is there of a refused command; whether there may be something to read behind it."""
        buffer = self._buffer
        if self._state is _State.SKIP_LITERAL:
            taken = min(self._remaining, len(buffer))
            del buffer[:taken]
            self._remaining -= taken
            if self._remaining:
                return False
            self._state = _State.SKIP_LINE
        end = buffer.find(b"\n")
        if end < 0:
            if len(buffer) > TAIL_OCTETS:
                del buffer[:-TAIL_OCTETS]
            return False
        match = _LITERAL.search(buffer[max(0, end - TAIL_OCTETS) : end + 1])
        del buffer[: end + 1]
        if match is None or not match[3]:
            self._state = _State.COMMAND
            return True
        self._remaining = int(match[2])
        self._state = _State.SKIP_LITERAL
        return True
