"""Message content as it arrives: the DATA reader, the BDAT reader, and what both check.

Pure and incremental: blocks of any size go in, content comes out, and the result
is the same however the blocks were cut. Content ends at CRLF.CRLF only. Content
with a bare CR, a bare LF or NUL is read to its real end and refused, so that
nothing in it is ever taken for a command; or its line ends are mended, where the
client is trusted with that; or it is binary and kept as it is. Scans whole blocks.
RFC 5321 4.5.2 (transparency), 2.3.8 (line ends), 6.3 (loops), RFC 3030 (chunks).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from server.refusal import Refusal

END = b"\r\n.\r\n"
_TAILS = (b"\r\n.\r", b"\r\n.", b"\r\n", b"\r")  # what END may have begun with, longest first
_LOOSE_TAILS = (*_TAILS, b"\n.\r", b"\n.", b"\n")  # where a bare LF begins a line too


class LineEnds(Enum):
    """What becomes of a bare CR, a bare LF and NUL."""

    STRICT = "strict"  # the message is refused
    MENDED = "mended"  # each bare one becomes CRLF, and NUL goes
    BINARY = "binary"  # the body keeps them (RFC 3030 3); the header may have none


@dataclass(frozen=True, slots=True)
class ContentLimits:
    """Limits of one message: octets, Received fields, octets of a header line and of the header."""

    octets: int
    received: int = 50
    header_line_octets: int = 16_384
    header_octets: int = 1_048_576


class Inspection:
    """What must hold of content, checked block by block; `fault` is the first thing that does not.

    Of the header it keeps the line under way alone.
    """

    __slots__ = ("_ends", "_header_octets", "_hops", "_limits", "_line", "fault", "octets")

    def __init__(self, limits: ContentLimits, ends: LineEnds = LineEnds.STRICT) -> None:
        self._limits = limits
        self._ends = ends
        self._line: bytes | None = b""  # with the CRLF before it; None behind the header
        self._header_octets = 0
        self._hops = 0
        self.octets = 0
        self.fault: Refusal | None = None

    def admit(self, block: bytes) -> bytes:
        """Return the block, mended, if all is well so far, else nothing; it never splits a CRLF."""
        if self.fault is not None:
            return b""
        if self._ends is not LineEnds.BINARY and _is_bare(block):
            if self._ends is LineEnds.STRICT:
                self._count(block)
                self.fault = self.fault or _bare()
                return b""
            block = _mended(block)
        self._count(block)
        if self._line is not None and self.fault is None:
            self._read_header(block)
        return block if self.fault is None else b""

    def finish(self) -> None:
        """Judge a header that content ended in, without a blank line."""
        if self._line is not None and self.fault is None:
            self._judge(self._line)
            self._line = None

    def _count(self, block: bytes) -> None:
        self.octets += len(block)
        if self.octets > self._limits.octets:
            self.fault = Refusal(552, "5.3.4", "Message size exceeds the fixed maximum")

    def _read_header(self, block: bytes) -> None:
        line = self._line
        # The CRLF in front makes the first line like all others: a blank one ends the header.
        data = line + block if line else b"\r\n" + block
        end = data.find(b"\r\n\r\n")
        if end >= 0:
            self._line = None
            self._judge(data[:end])
            return
        end = data.rfind(b"\r\n")
        self._judge(data[:end])
        self._line = data[end:]
        if self.fault is None and len(self._line) > self._limits.header_line_octets:
            self.fault = _line_too_long()

    def _judge(self, lines: bytes) -> None:
        """Judge whole lines of the header, each with the CRLF in front of it."""
        self._header_octets += len(lines)
        longest = self._limits.header_line_octets
        if self._header_octets > self._limits.header_octets:
            self.fault = Refusal(552, "5.3.4", "Message header too large")
        elif self._ends is LineEnds.BINARY and _is_bare(lines):
            self.fault = _bare()
        elif len(lines) > longest and max(map(len, lines.split(b"\r\n"))) > longest - 2:
            self.fault = _line_too_long()
        else:
            self._hops += lines.lower().count(b"\r\nreceived:")
            if self._hops >= self._limits.received:
                # RFC 5321 6.3: a count of Received fields tells a loop.
                self.fault = Refusal(554, "5.4.6", "Too many Received fields: mail loop")


def _is_bare(block: bytes) -> bool:
    # Good line ends are blanked, at twice the speed of taking them out; what is left of CR and LF is bare.
    rest = block.replace(b"\r\n", b"  ")
    return b"\r" in rest or b"\n" in rest or b"\0" in rest


def _mended(block: bytes) -> bytes:
    # NUL goes last: it is no seam where a CR and an LF would become one line end.
    return _with_line_ends(block).replace(b"\0", b"")


def _with_line_ends(block: bytes) -> bytes:
    return block.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")


def _bare() -> Refusal:
    return Refusal(
        550,
        "5.5.2",
        "Message refused: it contains a bare CR, a bare LF or NUL; every line must end in CRLF",
    )


def _line_too_long() -> Refusal:
    return Refusal(554, "5.6.0", "A header line is too long")


class DataReader:
    """Reads what follows 354 up to CRLF.CRLF, takes dot transparency away.

    ended: the end was seen; rest: what came behind it. received: octets read in all.
    """

    __slots__ = ("_held", "_mends", "_opening", "ended", "inspection", "received", "rest")

    def __init__(self, limits: ContentLimits, ends: LineEnds = LineEnds.STRICT) -> None:
        self.inspection = Inspection(limits, ends)
        self._mends = ends is LineEnds.MENDED
        # The CRLF of the DATA line counts as the one before a lone dot (RFC 5321 4.1.1.4).
        self._held = b"\r\n"
        self._opening = True
        self.ended = False
        self.rest = b""
        self.received = 0

    @property
    def fault(self) -> Refusal | None:
        """The first thing wrong with the content."""
        return self.inspection.fault

    @property
    def complete(self) -> bool:
        """Whether no more content is to come."""
        return self.ended

    def feed(self, block: bytes) -> bytes:
        """Take octets from the wire; return the content that they complete."""
        self.received += len(block)
        data = self._held + block if self._held else block
        # One octet is sought many times as fast as three, and encoded attachments hold no dot at all.
        dot = data.find(b"\r\n.") if b"." in data else -1
        end = data.find(END, dot) if dot >= 0 else -1
        if end >= 0:
            self.ended = True
            self.rest = data[end + 5 :]
            content = data[: end + 2]
            self._held = b""
        else:
            held = _held_octets(data, _LOOSE_TAILS if self._mends else _TAILS)
            content = data[:-held] if held else data
            self._held = data[-held:] if held else b""
        if not content or self.fault is not None:
            return b""
        if self._mends and _is_bare(content):
            content = _with_line_ends(content)
            dot = 0
        if dot >= 0:
            content = content.replace(b"\r\n.", b"\r\n")
        if self._opening:
            self._opening = False
            content = content[2:]
        content = self.inspection.admit(content)
        if self.ended:
            self.inspection.finish()
        return content if self.fault is None else b""


class ChunkReader:
    """Reads the octets that BDAT commands announce, as one message (RFC 3030 2).

    complete: the open chunk was read whole; ended: so was the last one; rest: what
    came behind the chunk. Line ends must be CRLF as in DATA, but for binary content.
    """

    __slots__ = ("_binary", "_held", "_in_line", "_last", "_left", "ended", "inspection", "received", "rest")

    def __init__(self, limits: ContentLimits, ends: LineEnds = LineEnds.STRICT) -> None:
        self.inspection = Inspection(limits, ends)
        self._binary = ends is LineEnds.BINARY
        self._held = b""
        self._in_line = False
        self._left = 0
        self._last = False
        self.ended = False
        self.rest = b""
        self.received = 0

    @property
    def fault(self) -> Refusal | None:
        """The first thing wrong with the content."""
        return self.inspection.fault

    @property
    def complete(self) -> bool:
        """Whether the chunk that was opened last has been read."""
        return self._left == 0

    def open(self, octets: int, *, last: bool) -> bytes:
        """Begin a chunk; return what content an empty last chunk completes."""
        self._left = octets
        self._last = last
        return self._close() if octets == 0 else b""

    def feed(self, block: bytes) -> bytes:
        """Take octets from the wire; return the content that they complete."""
        taken, self.rest = block[: self._left], block[self._left :]
        self._left -= len(taken)
        self.received += len(taken)
        data = self._held + taken if self._held else taken
        # A block for inspection never ends between CR and LF.
        self._held = b"\r" if data[-1:] == b"\r" else b""
        content = self._admit(data[:-1] if self._held else data)
        return content + self._close() if self._left == 0 else content

    def _admit(self, content: bytes) -> bytes:
        if not content:
            return b""
        admitted = self.inspection.admit(content)
        if admitted:  # of NUL alone nothing is left
            self._in_line = not admitted.endswith(b"\r\n")
        return admitted

    def _close(self) -> bytes:
        if not self._last:
            return b""
        self.ended = True
        tail = self._admit(self._held)
        self._held = b""
        if self._in_line and not self._binary:
            # Content that stops inside a line is completed, so that DATA can carry it onward.
            tail += self._admit(b"\r\n")
        self.inspection.finish()
        return tail if self.fault is None else b""


def _held_octets(data: bytes, tails: tuple[bytes, ...]) -> int:
    """Return how many octets at the end of data may be the beginning of END."""
    if data[-1:] not in {b"\r", b"\n", b"."}:
        return 0
    for tail in tails:
        if data.endswith(tail):
            return len(tail)
    return 0
