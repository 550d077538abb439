"""What a session is made of beside itself: its phases, its steps, its client's name, its farewell.

Owns the resuming of a step that was begun outside a task, and the hearing out of a client
that sends on when all is said.
"""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from server.sockets import plain_address

if TYPE_CHECKING:
    import asyncio
    import ssl

    from storage.records import Peer

# A client that is refused may have this under way, and reads the refusal behind it.
HEARD_OUT_OCTETS = 16 << 20
Step = Coroutine[Any, Any, None]
T = TypeVar("T")


class Phase(Enum):
    """What the next octets from the client are."""

    COMMAND = "command"
    AUTH = "auth"
    CONTENT = "content"
    CLOSING = "closing"


@types.coroutine
def resume(begun: Coroutine[Any, Any, T], waits_for: object) -> Generator[object, Any, T]:
    """Await a coroutine that was run up to its first wait already."""
    yield waits_for
    result: T = yield from begun
    return result


def name_of(transport: asyncio.BaseTransport) -> tuple[str, int]:
    """Return the client's IP address and port; '' and 0 on a Unix socket."""
    name = transport.get_extra_info("peername")
    if not isinstance(name, tuple):
        return "", 0
    return plain_address(str(name[0])), int(name[1])


def secured(peer: Peer, tls: ssl.SSLObject) -> Peer:
    """Return a client as it is after a handshake: nothing said before counts (RFC 3207 4.2)."""
    cipher = tls.cipher()
    return replace(
        peer,
        helo="",
        extended=False,
        identity=None,
        tls_version=tls.version() or "",
        tls_cipher=cipher[0] if cipher else "",
    )


class Farewell:
    """The end of a connection on a client that may still be sending: what comes is thrown away.

    Closed with octets unread TCP would reset, and the last reply be lost.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._left = HEARD_OUT_OCTETS
        transport.write_eof()

    def hear(self, octets: bytes) -> None:
        """Throw octets away; one too many ends it."""
        self._left -= len(octets)
        if self._left < 0:
            self._transport.abort()
