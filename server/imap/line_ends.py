"""Line ends of a message that comes in pieces: bare LF becomes CRLF.

RFC 9051 6.3.12 wants CRLF of the client; many tools append files as they lie on
a Unix disk, and a store with one form of line end is worth more than a refusal.
A CR that ends no line stays as it is. Refuses NUL, which no message may hold.
"""

from __future__ import annotations

import re

_BARE = re.compile(rb"(?<!\r)\n")


class NulFound(ValueError):
    """The message holds NUL (RFC 9051 4.3.1: for BINARY only)."""


class LineEnds:
    """One message being normalised."""

    __slots__ = ("_after_cr",)

    def __init__(self) -> None:
        self._after_cr = False

    def feed(self, data: bytes) -> bytes:
        """Return a piece with CRLF line ends; raises NulFound."""
        if not data:
            return data
        if b"\0" in data:
            raise NulFound
        continues = self._after_cr and data[:1] == b"\n"
        self._after_cr = data[-1:] == b"\r"
        if data.count(b"\n") == data.count(b"\r\n") + continues:
            return data
        return b"\n" + _BARE.sub(b"\r\n", data[1:]) if continues else _BARE.sub(b"\r\n", data)
