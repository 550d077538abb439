"""What a session is made of beside itself: its phases, its steps, its client's name.

Owns the resuming of a step that was begun outside a task.
"""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from server.sockets import plain_address

if TYPE_CHECKING:
    import asyncio

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
