"""Where a scanner listens: `tcp:HOST:PORT` or `unix:PATH`.

Owns opening a connection there. The address stands in the configuration, and is
no stranger's choice.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from server.listen import Listen, ListenKind, parse_listen


@dataclass(frozen=True, slots=True)
class Place:
    """One address."""

    listen: Listen

    @classmethod
    def parse(cls, text: str) -> Place:
        """Return the place of a text that the settings took."""
        return cls(parse_listen(text))

    async def connect(self, *, limit: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection; OSError. limit: of what a reader holds, in octets."""
        if self.listen.kind is ListenKind.UNIX:
            return await asyncio.open_unix_connection(self.listen.name, limit=limit)
        return await asyncio.open_connection(self.listen.host, self.listen.port, limit=limit)
