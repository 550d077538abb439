"""What one IMAP server, connection and command may take, each bound once.

Owns the settings that the composition root hands in, and the fixed bounds that
no operator needs to turn. RFC 9051 5.4 (autologout), 7889 (APPENDLIMIT).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

ROWS = 512  # of one turn of FETCH: read, rendered, sent, then others have their turn
ROW_OCTETS = 1024 * 1024  # of bodies that one turn holds in memory
CHUNK_OCTETS = 256 * 1024  # of a body that is sent piece by piece
PENDING_OCTETS = 128 * 1024  # pipelined behind a running command before reading pauses
BAD_COMMANDS = 20  # one after another; then the session ends
LOGIN_FAILURES = 3  # on one connection
LINE_OCTETS = 12 * 1024  # of an answer to a continuation request: SASL (RFC 9051 6.2.2), DONE
KEYWORDS_PER_FOLDER = 1024


class ImapSettings(Protocol):
    """What the operator sets; times in seconds."""

    @property
    def max_connections(self) -> int:
        """Connections at once."""
        ...

    @property
    def max_connections_per_inbox(self) -> int:
        """Sessions of one inbox at once."""
        ...

    @property
    def login_timeout_seconds(self) -> int:
        """From the connection to the login."""
        ...

    @property
    def idle_timeout_seconds(self) -> int:
        """Without a word from a client that is logged in."""
        ...

    @property
    def max_literal_octets(self) -> int:
        """Largest message that APPEND takes."""
        ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the operator need not set; times in seconds."""

    connections_per_network: int = 1000
    handshake_seconds: float = 30.0
    write_seconds: float = 300.0  # of a client that reads nothing while there is something for it
    closing_seconds: float = 10.0
    failure_delay_seconds: float = 2.0
    sweep_seconds: float = 5.0
    look_seconds: float = 0.75  # between looks at the directories of open folders
    spool_threshold_octets: int = 256 * 1024
