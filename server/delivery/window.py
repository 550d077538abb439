"""How many attempts at once a destination gets: grows on success, halves on trouble. Pure.

Owns the arithmetic alone. A destination that never answered is *unproven*, and
the scheduler keeps such ones from taking every slot.
"""

from __future__ import annotations

from dataclasses import dataclass

UNPROVEN = 2
# A proven destination gets this many deliveries in advance for each attempt at once.
AHEAD = 10


@dataclass(slots=True)
class Window:
    """The size now, between 1 and maximum."""

    maximum: int
    size: int = UNPROVEN
    proven: bool = False

    def __post_init__(self) -> None:
        self.size = min(self.size, self.maximum)

    @property
    def ahead(self) -> int:
        """How many deliveries may be leased at once, those in attempts included."""
        return self.size * (AHEAD if self.proven else UNPROVEN)

    def succeeded(self) -> None:
        """The destination answered and went on."""
        self.size = min(self.size + 1, self.maximum)
        self.proven = True

    def failed(self) -> None:
        """No connection, a greeting that refuses, or a plea to slow down."""
        self.size = max(self.size // 2, 1)
        self.proven = self.proven and self.size > 1
