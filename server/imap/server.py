"""The IMAP server: listeners, their connections, what all share, and the drain.

Owns the limits on connections and the one timer that finds those past their
deadline. Refuses nothing but connections beyond a limit.
RFC 9051 2.1 and 5.4, RFC 8314 (TLS from the first octet).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import TYPE_CHECKING

import structlog

from server.imap import revocation
from server.imap.connection import Connection
from server.imap.folder import OpenFolders
from server.imap.limits import Bounds, ImapSettings
from server.imap.machine import Security
from server.imap.render import render
from server.imap.session import Services
from server.proxied import Proxies, ProxyListener
from server.sockets import network_of
from storage.errors import Missing, StorageError
from storage.watch import Watch

if TYPE_CHECKING:
    import ssl

    from server.clock import Clock
    from server.intake import Intake
    from server.login import Login
    from server.proxy_protocol import Origin
    from server.threads import Hub, Threads
    from storage.db import Notice
    from storage.maildir import Maildir
    from storage.records import Folder

BACKLOG = 1024

log = structlog.get_logger("imap")


class ImapServer:
    """Listens and keeps the connections.

    tls_context: returns the context for a handshake that begins now, None without TLS.
    """

    def __init__(
        self,
        *,
        threads: Threads,
        hub: Hub,
        login: Login,
        intake: Intake,
        maildir: Maildir,
        clock: Clock,
        settings: ImapSettings,
        hostname: str,
        tls_context: Callable[[], ssl.SSLContext | None],
        bounds: Bounds | None = None,
    ) -> None:
        self._services = Services(
            threads=threads,
            login=login,
            intake=intake,
            maildir=maildir,
            clock=clock,
            settings=settings,
            bounds=bounds or Bounds(),
            folders=OpenFolders(threads, hub),
            watch=Watch(database=threads.store.database, maildir=maildir, render=render),
            hostname=hostname,
            tls_context=tls_context,
        )
        self._listeners: list[asyncio.AbstractServer | ProxyListener] = []
        self._connections: set[Connection] = set()
        self._by_network: dict[str, int] = {}
        self._by_mailbox: dict[str, int] = {}
        self._opened = 0
        self._is_draining = False
        self._emptied = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._unsubscribe = hub.subscribe("accounts", None, self._accounts_changed)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(
        self,
        *,
        plain: Sequence[socket.socket] = (),
        implicit: Sequence[socket.socket] = (),
        proxied: Collection[socket.socket] = (),
        proxies: Proxies | None = None,
    ) -> None:
        """Listen on bound sockets; implicit has TLS from the first octet.

        proxied: those whose connections begin with a PROXY header, of which proxies is judge.
        """
        loop = asyncio.get_running_loop()
        for bound in (*plain, *implicit):
            if bound in proxied or bound in implicit:
                self._accept(proxies or Proxies(), bound, tls=bound in implicit, proxied=bound in proxied)
        for bound in plain:
            if bound in proxied:
                continue
            create = loop.create_unix_server if bound.family == socket.AF_UNIX else loop.create_server
            listener = await create(lambda: self._connect(Security.PLAIN), sock=bound, backlog=BACKLOG)
            self._listeners.append(listener)
        if self._timer is None:
            self._sweep_later()
            self._own(self._look_again_and_again())

    def _accept(self, proxies: Proxies, bound: socket.socket, *, tls: bool, proxied: bool) -> None:
        """Accept connections whose first octets are a PROXY header or TLS, or both."""

        async def connect(accepted: socket.socket, origin: Origin | None) -> None:
            if tls:
                await self._handshake(accepted, origin)
            else:
                loop = asyncio.get_running_loop()
                await loop.connect_accepted_socket(lambda: self._connect(Security.PLAIN, origin), accepted)

        listener = ProxyListener(
            bound,
            proxies,
            connect,
            has_header=proxied,
            pending_limit=self._services.settings.max_connections,
            pending_per_network=self._services.bounds.connections_per_network,
        )
        self._listeners.append(listener)

    def _own(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handshake(self, accepted: socket.socket, origin: Origin | None = None) -> None:
        context = self._services.tls_context()
        bounds = self._services.bounds
        try:
            if context is None:
                accepted.close()
                return
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._connect(Security.TLS, origin),
                accepted,
                ssl=context,
                ssl_handshake_timeout=bounds.handshake_seconds,
                ssl_shutdown_timeout=bounds.closing_seconds,
            )
        except (OSError, RuntimeError) as error:  # includes ssl.SSLError and the time limit
            log.info("handshake failed", error=type(error).__name__)

    def _connect(self, security: Security, origin: Origin | None = None) -> Connection:
        self._opened += 1
        return Connection(self, self._services, self._opened, security, origin)

    async def drain(self, limit_seconds: float) -> None:
        """Stop accepting, let running commands end within the limit, then say goodbye to all."""
        self._is_draining = True
        self._unsubscribe()
        for listener in self._listeners:
            listener.close()
        await self._end_tasks()
        for connection in tuple(self._connections):
            if not connection.busy or connection.session.idling:
                connection.stop("Server is shutting down")
        await self._wait_empty(limit_seconds)
        for connection in tuple(self._connections):
            connection.stop("Server is shutting down")
        await self._wait_empty(min(1.0, limit_seconds))
        tasks = [connection.task for connection in self._connections if connection.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        if self._timer is not None:
            self._timer.cancel()
        self._services.folders.close()

    async def _end_tasks(self) -> None:
        """Stop looking, and what else is under way beside the connections."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)

    async def _wait_empty(self, limit_seconds: float) -> None:
        try:
            async with asyncio.timeout(limit_seconds):
                while self._connections:
                    self._emptied.clear()
                    await self._emptied.wait()
        except TimeoutError:
            return

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def sweep(self) -> None:
        """End the connections whose deadline has passed."""
        now = self._services.clock.monotonic()
        for connection in [each for each in self._connections if each.deadline <= now]:
            connection.expire()

    def _sweep_later(self) -> None:
        settings = self._services.settings
        shortest = min(settings.login_timeout_seconds, settings.idle_timeout_seconds)
        seconds = min(self._services.bounds.sweep_seconds, shortest / 4)
        self._timer = asyncio.get_running_loop().call_later(seconds, self._sweep_on_time)

    def _sweep_on_time(self) -> None:
        self.sweep()
        self._sweep_later()

    def _accounts_changed(self, notice: Notice) -> None:
        concerned = [
            connection
            for connection in self._connections
            if connection.session.identity is not None
            and notice.key in ("", connection.session.identity.organization_id)
        ]
        if concerned:
            self._own(self._end_revoked(concerned))

    async def _end_revoked(self, concerned: list[Connection]) -> None:
        identities = {each.session.identity for each in concerned if each.session.identity is not None}
        now = self._services.clock.now()
        ended = await self._services.threads.read(lambda c: revocation.ended(c, identities, now=now))
        for connection in concerned:
            if connection.session.identity in ended:
                connection.stop("This login is no longer valid")

    async def _look_again_and_again(self) -> None:
        """Look for what foreign programs do in the directories of folders that are open."""
        services = self._services
        while True:
            await asyncio.sleep(services.bounds.look_seconds)
            records = services.folders.watched()
            if records:
                await services.threads.run(self._look, records)

    def _look(self, records: list[Folder]) -> None:
        services = self._services
        for record in records:
            try:
                services.watch.look(record, at=services.clock.now())
            except Missing:
                continue  # its sessions hear of that by themselves
            except (StorageError, OSError) as error:
                log.error("directory not scanned", folder=record.id, error=repr(error))

    # What connections ask for

    def admit(self, connection: Connection) -> bool:
        """Count a connection in; False beyond the limit in all or of its network."""
        network = network_of(connection.peer_address)
        count = self._by_network.get(network, 0)
        services = self._services
        if (
            self._is_draining
            or len(self._connections) >= services.settings.max_connections
            or (network and count >= services.bounds.connections_per_network)
        ):
            return False
        self._by_network[network] = count + 1
        self._connections.add(connection)
        return True

    def admit_login(self, connection: Connection) -> bool:
        """Count a login in; False where its inbox has as many sessions as it may."""
        mailbox_id = connection.session.mailbox_id
        count = self._by_mailbox.get(mailbox_id, 0)
        if count >= self._services.settings.max_connections_per_inbox:
            connection.session.identity = None
            return False
        self._by_mailbox[mailbox_id] = count + 1
        return True

    def forget(self, connection: Connection) -> None:
        """Count a connection and its login out."""
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        _count_out(self._by_network, network_of(connection.peer_address))
        if connection.session.identity is not None:
            _count_out(self._by_mailbox, connection.session.mailbox_id)
        if not self._connections:
            self._emptied.set()


def _count_out(counts: dict[str, int], key: str) -> None:
    left = counts[key] - 1
    if left:
        counts[key] = left
    else:
        del counts[key]
