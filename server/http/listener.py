"""HTTP listeners: uvicorn inside the running loop, on sockets that are given.

Owns start, stop and the limits that the HTTP library lacks: octets of a header,
time for a header to come, connections at once. Signals are the process's own
affair, so uvicorn's capture of them is never entered.
RFC 9112 (HTTP/1.1), RFC 6585 5 (431).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.listen import Listen, ListenKind
from server.proxied import Connect, Proxies, ProxyListener
from server.sockets import BACKLOG

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from server.proxy_protocol import Origin
    from server.sections import Http

HEADER_OCTETS = 64 * 1024
HEADER_SECONDS = 20.0
HANDSHAKE_SECONDS = 30.0
LINGER_SECONDS = 5.0
KEEP_ALIVE_SECONDS = 30
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: application/problem+json\r\nconnection: close\r\n"
)
_TOO_LARGE_BODY = (
    b'{"type":"about:blank","title":"Request Header Fields Too Large","status":431,'
    b'"code":"headers_too_large","detail":"The header is too large."}'
)


class Connection(HttpToolsProtocol):
    """uvicorn's connection with limits on a request's header in octets and seconds."""

    _header_octets = 0
    _in_header = True
    _deadline: asyncio.TimerHandle | None = None

    def __init__(
        self, server: uvicorn.Server, lost: Callable[[], None], origin: Origin | None = None
    ) -> None:
        super().__init__(server.config, server.server_state, server.lifespan.state)
        self._origin = origin  # who a PROXY header says the client is
        self._lost = lost

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin to wait for a first request."""
        super().connection_made(transport)
        if self._origin is not None:
            self.client = (self._origin.address, self._origin.port)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._disarm()
        super().connection_lost(exc)
        self._lost()

    def data_received(self, data: bytes) -> None:
        """Take octets in, as long as the header they belong to stays small."""
        if self._in_header:
            self._header_octets += len(data)
            if self._header_octets > HEADER_OCTETS and not self._is_body_begun(data):
                self._refuse()
                return
        super().data_received(data)

    def _is_body_begun(self, data: bytes) -> bool:
        # A whole small header and much body may come in one piece.
        return self._header_octets == len(data) and data.find(b"\r\n\r\n", 0, HEADER_OCTETS) >= 0

    def on_message_begin(self) -> None:
        """Note that a request's header begins."""
        super().on_message_begin()
        self._in_header = True
        if self._deadline is None:
            self._arm()

    def on_headers_complete(self) -> None:
        """Note that a request's header is whole."""
        self._in_header = False
        self._header_octets = 0
        self._disarm()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that the next octets are a header's again."""
        super().on_message_complete()
        self._in_header = True
        self._header_octets = 0

    def on_response_complete(self) -> None:
        """Give a body that nobody reads a moment to end, so that its sender sees the answer."""
        super().on_response_complete()
        if not self._in_header and not self.transport.is_closing():
            self._disarm()
            self._arm(LINGER_SECONDS)

    def _arm(self, seconds: float = HEADER_SECONDS) -> None:
        self._deadline = self.loop.call_later(seconds, self._expire)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.close()

    def _refuse(self) -> None:
        length = b"content-length: %d\r\n\r\n" % len(_TOO_LARGE_BODY)
        if not self.transport.is_closing():
            self.transport.write(_TOO_LARGE + length + _TOO_LARGE_BODY)
            self.transport.close()


class HttpListener:
    """Serves one application on any number of sockets, with TLS where the listener says so.

    tls_context: returns the context for handshakes that begin now.
    """

    def __init__(
        self,
        application: ASGIApp,
        *,
        settings: Http,
        tls_context: Callable[[], ssl.SSLContext],
        proxies: Proxies | None = None,
    ) -> None:
        self._proxies = proxies or Proxies()
        self._tls_context = tls_context
        config = uvicorn.Config(
            application,
            http=Connection,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            limit_concurrency=settings.max_connections,
        )
        self._server = uvicorn.Server(config)
        self._listeners: list[asyncio.AbstractServer | ProxyListener] = []
        self._ticking: asyncio.Task[None] | None = None
        self._emptied = asyncio.Event()

    async def start(self, bound: Sequence[tuple[Listen, socket.socket]]) -> None:
        """Begin to serve on bound sockets."""
        config = self._server.config
        if not config.loaded:
            config.load()
        # uvicorn's own start with no sockets: the lifespan begins, and nothing captures signals.
        self._server.lifespan = config.lifespan_class(config)
        await self._server.startup(sockets=[])
        loop = asyncio.get_running_loop()
        for listen, made in bound:
            if listen.proxy or listen.kind is ListenKind.TLS:
                connect = self._connector(listen)
                self._listeners.append(ProxyListener(made, self._proxies, connect, has_header=listen.proxy))
                continue
            create: Any = loop.create_unix_server if listen.kind is ListenKind.UNIX else loop.create_server
            self._listeners.append(await create(self._connection, sock=made, backlog=BACKLOG))
        self._ticking = asyncio.create_task(self._tick(), name="http dates")

    def _connector(self, listen: Listen) -> Connect:
        async def connect(accepted: socket.socket, origin: Origin | None) -> None:
            is_tls = listen.kind is ListenKind.TLS
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._connection(origin),
                accepted,
                ssl=self._tls_context() if is_tls else None,
                ssl_handshake_timeout=HANDSHAKE_SECONDS if is_tls else None,
            )

        return connect

    def _connection(self, origin: Origin | None = None) -> Connection:
        return Connection(self._server, self._note_lost, origin)

    def _note_lost(self) -> None:
        if not self._server.server_state.connections:
            self._emptied.set()

    async def _tick(self) -> None:
        """Keep the Date field current, as uvicorn's main loop would."""
        while True:
            await self._server.on_tick(0)
            await asyncio.sleep(1.0)

    async def stop(self, drain_seconds: float) -> None:
        """Stop accepting, let requests end within the limit, close what is left."""
        for listener in self._listeners:
            listener.close()
        server = self._server
        for connection in list(server.server_state.connections):
            connection.shutdown()
        await self._wait_empty(drain_seconds)
        for task in list(server.server_state.tasks):
            task.cancel()
        for connection in list(server.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        if self._ticking is not None:
            self._ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticking
            await server.lifespan.shutdown()
        self._listeners.clear()

    async def _wait_empty(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._server.server_state.connections:
                    self._emptied.clear()
                    await self._emptied.wait()
