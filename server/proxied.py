"""Listeners behind a load balancer: the PROXY header is read before the protocol begins.

Owns accepting, the check of who may send a header, its deadline, and how many may
be owed at once. The header is read from the bare socket, never further than its
end; what follows it, TLS included, is the protocol's.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

import structlog

from server.proxy_protocol import HeaderReader, Origin, ProxySyntax
from server.sockets import network_of, plain_address

ACCEPT_PAUSE_SECONDS = 0.1
HEADER_SECONDS = 5.0
PENDING_LIMIT = 1000  # connections whose header, or handshake, is not complete, a listener
PENDING_PER_NETWORK = 100  # handshakes of clients that come by themselves

log = structlog.get_logger("proxy")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# Takes a connected socket and the client behind the proxy; None is the proxy itself.
Connect = Callable[[socket.socket, Origin | None], Awaitable[None]]


class Proxies:
    """The networks whose PROXY headers are believed; who can open a Unix socket is believed too."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks: tuple[Network, ...] = tuple(ipaddress.ip_network(text) for text in networks)

    def __contains__(self, accepted: socket.socket) -> bool:
        if accepted.family == socket.AF_UNIX:
            return True
        try:
            address = ipaddress.ip_address(plain_address(str(accepted.getpeername()[0])))
        except (OSError, ValueError):
            return False
        return any(address in network for network in self._networks)


class ProxyListener:
    """Accepts on one bound socket and hands over connections whose header was read.

    has_header: False where clients come by themselves, and what connects them takes long:
    a TLS handshake, with the context of its moment. pending_limit, pending_per_network:
    connections that owe their header or handshake, in all and by clients that come by themselves.
    """

    def __init__(
        self,
        bound: socket.socket,
        proxies: Proxies,
        connect: Connect,
        *,
        has_header: bool = True,
        header_seconds: float = HEADER_SECONDS,
        pending_limit: int = PENDING_LIMIT,
        pending_per_network: int = PENDING_PER_NETWORK,
    ) -> None:
        self._pending_limit = pending_limit
        self._pending_per_network = pending_per_network
        self._has_header = has_header
        self._pending: Counter[str] = Counter()  # by network
        self._bound = bound
        self._proxies = proxies
        self._connect = connect
        self._header_seconds = header_seconds
        self._tasks: set[asyncio.Task[None]] = set()
        bound.setblocking(False)
        self._own(self._accept())

    def close(self) -> None:
        """Stop accepting; connections that still owe their header are closed."""
        for task in tuple(self._tasks):
            task.cancel()

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    accepted, _ = await loop.sock_accept(self._bound)
                except OSError as error:
                    # Out of descriptors or memory: what is open goes on, newcomers wait.
                    log.warning("connection not accepted", error=str(error))
                    await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
                    continue
                if not self._is_welcome(accepted) or len(self._tasks) > self._pending_limit:
                    log.info("connection refused: its source is no proxy, or too many are waiting")
                    accepted.close()
                    continue
                accepted.setblocking(False)
                self._own(self._take(accepted))
        finally:
            self._bound.close()

    def _is_welcome(self, accepted: socket.socket) -> bool:
        if self._has_header:
            return accepted in self._proxies
        return self._pending[_network(accepted)] < self._pending_per_network

    async def _take(self, accepted: socket.socket) -> None:
        network = _network(accepted)
        self._pending[network] += 1
        try:
            await self._begin(accepted)
        finally:
            self._pending[network] -= 1
            if not self._pending[network]:
                del self._pending[network]

    async def _begin(self, accepted: socket.socket) -> None:
        try:
            async with asyncio.timeout(self._header_seconds):
                origin = await _read_header(accepted) if self._has_header else None
        except (OSError, ProxySyntax) as error:  # OSError includes the time limit
            log.info("connection refused: no PROXY header", reason=str(error) or type(error).__name__)
            accepted.close()
            return
        except asyncio.CancelledError:
            accepted.close()
            raise
        try:
            await self._connect(accepted, origin)
        except (OSError, RuntimeError) as error:  # includes ssl.SSLError and its time limit
            log.info("connection failed before its protocol began", error=type(error).__name__)


def _network(accepted: socket.socket) -> str:
    try:
        name = accepted.getpeername()
    except OSError:  # gone already
        return ""
    return network_of(str(name[0])) if isinstance(name, tuple) else ""


async def _read_header(accepted: socket.socket) -> Origin | None:
    loop = asyncio.get_running_loop()
    reader = HeaderReader()
    while True:
        octets = await loop.sock_recv(accepted, reader.wanted)
        if not octets:
            raise ProxySyntax("the connection ended before its header")
        header = reader.feed(octets)
        if header is not None:
            return header.origin
