"""The clock as a port: what reads time asks for it, so that tests can set it."""

import time
from typing import Protocol


class Clock(Protocol):
    """Wall and monotonic time."""

    def now(self) -> int:
        """Return microseconds of UTC since 1970."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back; only differences mean anything."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> int:
        """Return microseconds of UTC since 1970."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return time.monotonic()
