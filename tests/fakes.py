"""Stand-ins for the two ports that tests set by hand: the clock, and DNS answers."""

from dataclasses import dataclass


@dataclass
class FakeClock:
    """A clock that moves only when told to; micros is UTC since 1970."""

    micros: int = 1_800_000_000_000_000

    def now(self) -> int:
        return self.micros

    def monotonic(self) -> float:
        return self.micros / 1_000_000

    def advance(self, seconds: float) -> None:
        self.micros += round(seconds * 1_000_000)
