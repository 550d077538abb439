"""A server that says what a script tells it to, for what no ordinary server can be made to do."""

import asyncio
import ssl
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from server.smtp.client import Endpoint, Timeouts
from server.smtp.client_machine import Dialect

FAST = Timeouts(connect=5, command=5, data=5, block=5, final=5)


class Scripted:
    """Plays one script a connection, the last one again and again.

    Lines of a script: `S text` sends a line, `C text` reads a line and holds it against the text's
    beginning (QUIT always ends), `R text` sends octets with escapes, `BODY` reads up to the final
    dot, `OCTETS n` reads so many, `TLS` shakes hands, `WAIT` waits for the client to close, `STALL`
    reads nothing more, `PAUSE` waits for go_on(), `CLOSE` closes, `RESET` drops the connection.
    """

    def __init__(
        self,
        *scripts: str,
        certificate: tuple[Path, Path] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self._place = (host, port)
        self.scripts = [[line.strip() for line in script.splitlines() if line.strip()] for script in scripts]
        self.lines: list[str] = []
        self.bodies: list[bytes] = []
        self.problems: list[str] = []
        self.connections = 0
        self._certificate = certificate
        self._server: asyncio.Server | None = None
        self._going_on = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Scripted":
        self._server = await asyncio.start_server(self._serve, *self._place, limit=1 << 22)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if error is None:
            assert not self.problems, self.problems

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def endpoint(self, dialect: Dialect = Dialect.SMTP) -> Endpoint:
        return Endpoint("mx.peer.test", "127.0.0.1", self.port, dialect)

    def go_on(self) -> None:
        """End the PAUSE of every script."""
        self._going_on.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        script = self.scripts[min(self.connections, len(self.scripts) - 1)]
        self.connections += 1
        try:
            for step in script:
                await self._step(step, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async def _step(self, step: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        verb, _, rest = step.partition(" ")
        if verb == "S":
            writer.write(rest.encode() + b"\r\n")
            await writer.drain()
        elif verb == "R":
            writer.write(rest.encode().decode("unicode_escape").encode("latin-1"))
            await writer.drain()
        elif verb == "C":
            line = (await reader.readuntil(b"\r\n")).decode().removesuffix("\r\n")
            self.lines.append(line)
            if line == "QUIT" and rest != "QUIT":
                raise ConnectionError
            if not line.startswith(rest):
                self.problems.append(f"expected {rest!r}, got {line!r}")
        elif verb == "BODY":
            self.bodies.append(await self._body(reader))
        elif verb == "OCTETS":
            self.bodies.append(await reader.readexactly(int(rest)))
        elif verb == "TLS":
            await self._start_tls(writer)
        elif verb == "WAIT":
            await reader.read()
        elif verb == "PAUSE":
            await self._going_on.wait()
        elif verb == "STALL":
            await asyncio.Event().wait()
        elif verb == "CLOSE":
            raise ConnectionError
        elif verb == "RESET":
            writer.transport.abort()
        else:
            self.problems.append(f"no such step: {step}")

    async def _body(self, reader: asyncio.StreamReader) -> bytes:
        lines: list[bytes] = []
        while (line := await reader.readuntil(b"\r\n")) != b".\r\n":
            lines.append(line[1:] if line.startswith(b".") else line)
        return b"".join(lines)

    async def _start_tls(self, writer: asyncio.StreamWriter) -> None:
        assert self._certificate is not None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._certificate)
        await writer.start_tls(context)


def script(*parts: str | Sequence[str]) -> str:
    """Join parts of a script."""
    return "\n".join(part if isinstance(part, str) else "\n".join(part) for part in parts)


HELLO = """
S 220 mx.peer.test ready
C EHLO
S 250-mx.peer.test
S 250-PIPELINING
S 250-SIZE 60000000
S 250-8BITMIME
S 250-SMTPUTF8
S 250-DSN
S 250 ENHANCEDSTATUSCODES
"""
PLAIN_HELLO = """
S 220 mx.peer.test ready
C EHLO
S 250 mx.peer.test
"""
