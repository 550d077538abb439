"""Message content as it arrives: the DATA reader, the BDAT reader, and what both check.

Pure and incremental: blocks of any size go in, content comes out, and the result
is the same however the blocks were cut. Content ends at CRLF.CRLF only. Content
with a bare CR, a bare LF or NUL is read to its real end and refused, so that
nothing in it is ever taken for a command. Scans whole blocks, never lines.
RFC 5321 4.5.2 (transparency), 2.3.8 (line ends), 6.3 (loops), RFC 3030 (chunks).
"""

from __future__ import annotations

from dataclasses import dataclass

from server.refusal import Refusal

END = b"\r\n.\r\n"
_TAILS = (b"\r\n.\r", b"\r\n.", b"\r\n", b"\r")  # what END may have begun with, longest first


@dataclass(frozen=True, slots=True)
class ContentLimits:
    """Limits of one message: octets, Received fields, octets of a header line and of the header."""

    octets: int
    received: int = 100
    header_line_octets: int = 16_384
    header_octets: int = 262_144


class Inspection:
    """What must hold of content, checked block by block; `fault` is the first thing that does not."""

    __slots__ = ("_header", "_limits", "fault", "octets")

    def __init__(self, limits: ContentLimits) -> None:
        self._limits = limits
        self._header: bytearray | None = bytearray()
        self.octets = 0
        self.fault: Refusal | None = None

    def admit(self, block: bytes) -> bytes:
        """Return the block if all is well so far, else nothing; a block never splits a CRLF."""
        if self.fault is None:
            self._check(block)
        return block if self.fault is None else b""

    def finish(self) -> None:
        """Judge a header that content ended in, without a blank line."""
        if self._header is not None and self.fault is None:
            self._judge_header(bytes(self._header))

    def _check(self, block: bytes) -> None:
        self.octets += len(block)
        if self.octets > self._limits.octets:
            self.fault = Refusal(552, "5.3.4", "Message size exceeds the fixed maximum")
            return
        # One pass that blanks the good line ends, at twice the speed of one that removes them; what is
        # left of CR and LF is bare.
        rest = block.replace(b"\r\n", b"  ")
        if b"\r" in rest or b"\n" in rest or b"\0" in rest:
            self.fault = Refusal(
                550,
                "5.5.2",
                "Message refused: it contains a bare CR, a bare LF or NUL; every line must end in CRLF",
            )
        elif self._header is not None:
            self._read_header(block)

    def _read_header(self, block: bytes) -> None:
        header = self._header
        assert header is not None
        # The blank line may begin in an earlier block, or be the first line of all.
        begin = max(0, len(header) - 3)
        whole = header or block
        if header:
            header += block
        if whole[:2] == b"\r\n":
            self._header = None
            return
        end = whole.find(b"\r\n\r\n", begin)
        if end >= 0:
            self._judge_header(bytes(whole[: end + 2]))
        elif len(whole) > self._limits.header_octets:
            self.fault = Refusal(552, "5.3.4", "Message header too large")
        elif whole is block:
            header += block

    def _judge_header(self, header: bytes) -> None:
        self._header = None
        if len(header) > self._limits.header_octets:
            self.fault = Refusal(552, "5.3.4", "Message header too large")
            return
        longest = self._limits.header_line_octets
        if len(header) > longest and max(map(len, header.split(b"\r\n"))) > longest - 2:
            self.fault = Refusal(554, "5.6.0", "A header line is too long")
            return
        folded = header.lower()
        hops = folded.count(b"\r\nreceived:") + folded.startswith(b"received:")
        if hops >= self._limits.received:
            # RFC 5321 6.3: a count of Received fields tells a loop.
            self.fault = Refusal(554, "5.4.6", "Too many Received fields: mail loop")


class DataReader:
    """Reads what follows 354 up to CRLF.CRLF, takes dot transparency away.

    ended: the end was seen; rest: what came behind it. received: octets read in all.
    """

    __slots__ = ("_held", "_opening", "ended", "inspection", "received", "rest")

    def __init__(self, limits: ContentLimits) -> None:
        self.inspection = Inspection(limits)
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
        dot = data.find(b"\r\n.")
        end = data.find(END, dot) if dot >= 0 else -1
        if end >= 0:
            self.ended = True
            self.rest = data[end + 5 :]
            content = data[: end + 2]
            self._held = b""
        else:
            held = _held_octets(data)
            content = data[:-held] if held else data
            self._held = data[-held:] if held else b""
        if not content or self.fault is not None:
            return b""
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
    came behind the chunk. Line ends must be CRLF as in DATA: BINARYMIME is not offered.
    """

    __slots__ = ("_held", "_in_line", "_last", "_left", "ended", "inspection", "received", "rest")

    def __init__(self, limits: ContentLimits) -> None:
        self.inspection = Inspection(limits)
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
        if content:
            self._in_line = not content.endswith(b"\r\n")
        return self.inspection.admit(content)

    def _close(self) -> bytes:
        if not self._last:
            return b""
        self.ended = True
        tail = self._admit(self._held)
        self._held = b""
        if self._in_line:
            # Content that stops inside a line is completed, so that DATA can carry it onward.
            tail += self._admit(b"\r\n")
        self.inspection.finish()
        return tail if self.fault is None else b""


def _held_octets(data: bytes) -> int:
    """Return how many octets at the end of data may be the beginning of END."""
    if data[-1:] not in {b"\r", b"\n", b"."}:
        return 0
    for tail in _TAILS:
        if data.endswith(tail):
            return len(tail)
    return 0
