"""The SMTP server: listeners, their sessions, what all sessions share, and the drain.

Owns the limits on connections and the one timer that finds sessions past their
deadline. Refuses nothing but connections beyond a limit.
RFC 5321 3.8 and 4.5.3.2, 6409 (submission), 8314 (TLS from the first octet), 2033 (LMTP).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from server.proxied import Proxies, ProxyListener
from server.smtp import door as doors
from server.smtp import replies, xclient
from server.smtp.body import Body, Memory
from server.smtp.data import ContentLimits, LineEnds
from server.smtp.door import Door
from server.smtp.session import Session
from server.smtp.settings import MEBI, SmtpSettings
from server.smtp.strangers import Strangers
from server.sockets import Assigned, Networks, network_of

if TYPE_CHECKING:
    import ssl

    from server.clock import Clock
    from server.intake import Intake
    from server.login import Login
    from server.proxy_protocol import Origin
    from server.smtp.grammar import Dialect
    from server.threads import Threads
    from storage.records import Peer

BACKLOG = 1024
SWEEP_SECONDS = 5.0


class SmtpServer:
    """Listens for MX, submission and LMTP and keeps the sessions.

    tls_context: returns the context for a handshake that begins now, None without TLS.
    """

    def __init__(
        self,
        *,
        intake: Intake,
        login: Login,
        threads: Threads,
        clock: Clock,
        settings: SmtpSettings,
        hostname: str,
        tls_context: Callable[[], ssl.SSLContext | None],
    ) -> None:
        self.intake = intake
        self.login = login
        self.threads = threads
        self.clock = clock
        self.settings = settings
        self.tls_context = tls_context
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.limits = ContentLimits(
            octets=settings.max_message_octets,
            received=settings.max_received,
            header_line_octets=settings.max_header_line_octets,
            header_octets=settings.max_header_octets,
        )
        # Refused content is still read to its end, but not for ever.
        self.patience_octets = 2 * settings.max_message_octets + MEBI
        self.greeting = replies.reply(220, "", f"{hostname} ESMTP")
        self.greeting_lmtp = replies.reply(220, "", f"{hostname} LMTP")
        self.hello_plain = replies.reply(250, "", hostname)
        self.is_draining = False
        self.strangers = Strangers(clock, settings.strangers)
        self._hostname = hostname
        self._hellos: dict[tuple[str, bool, bool, bool], bytes] = {}
        self._memory = Memory(settings.max_memory_octets)
        self.lmtp_hosts = Networks(settings.lmtp_networks)
        self._testers = Networks(settings.xclient_networks) if settings.xclient_networks else None
        self._submitters = Assigned(settings.submission_hosts) if settings.submission_hosts else None
        self._mended = Networks(settings.mend_line_ends_of) if settings.mend_line_ends_of else None
        self._listeners: list[asyncio.AbstractServer | ProxyListener] = []
        self._sessions: set[Session] = set()
        self._by_network: dict[str, int] = {}
        self._opened = 0
        self._emptied = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    async def start(
        self,
        *,
        mx: Sequence[socket.socket] = (),
        submission: Sequence[socket.socket] = (),
        submissions: Sequence[socket.socket] = (),
        lmtp: Sequence[socket.socket] = (),
        proxied: Collection[socket.socket] = (),
        proxies: Proxies | None = None,
    ) -> None:
        """Listen on bound sockets, by kind of door; submissions has TLS from the first octet.

        proxied: those whose connections begin with a PROXY header, of which proxies is judge.
        """
        for door, sockets in (
            (doors.MX, mx),
            (doors.SUBMISSION, submission),
            (doors.SUBMISSIONS, submissions),
            (doors.LMTP, lmtp),
        ):
            for bound in sockets:
                if bound in proxied:
                    self._listen_behind(proxies or Proxies(), door, bound)
                else:
                    await self._listen(door, bound)
        if self._timer is None:
            self._sweep_later()

    async def _listen(self, door: Door, bound: socket.socket) -> None:
        unix = bound.family == socket.AF_UNIX
        create = self.loop.create_unix_server if unix else self.loop.create_server
        self._listeners.append(await create(lambda: self._new_session(door), sock=bound, backlog=BACKLOG))

    def _listen_behind(self, proxies: Proxies, door: Door, bound: socket.socket) -> None:
        async def connect(accepted: socket.socket, origin: Origin | None) -> None:
            await self.loop.connect_accepted_socket(lambda: self._new_session(door, origin), accepted)

        self._listeners.append(ProxyListener(bound, proxies, connect))

    async def drain(self, limit_seconds: float) -> None:
        """Stop accepting, let transactions end within the limit, close what is left with 421 4.3.2."""
        self.is_draining = True
        for listener in self._listeners:
            listener.close()
        for session in tuple(self._sessions):
            session.hurry()
            if session.is_idle:
                session.stop()
        await self._wait_empty(limit_seconds)
        for session in tuple(self._sessions):
            session.stop()
        # What intake has begun to take in is not cut off: its answer decides who keeps the message.
        tasks = [session.task for session in self._sessions if session.task is not None]
        await self._wait_empty(min(1.0, limit_seconds))
        for session in tuple(self._sessions):
            if session.transport is not None:
                session.transport.abort()
        if tasks:
            await asyncio.wait(tasks, timeout=limit_seconds)
        await self._wait_empty(1.0)
        if self._timer is not None:
            self._timer.cancel()

    async def _wait_empty(self, limit_seconds: float) -> None:
        try:
            async with asyncio.timeout(limit_seconds):
                while self._sessions:
                    self._emptied.clear()
                    await self._emptied.wait()
        except TimeoutError:
            return

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._sessions)

    def sweep(self) -> None:
        """Expire the sessions whose deadline has passed."""
        now = self.clock.monotonic()
        for session in [session for session in self._sessions if session.deadline <= now]:
            session.expire()

    def _sweep_later(self) -> None:
        settings = self.settings
        shortest = min(settings.command_timeout_seconds, settings.data_timeout_seconds)
        self._timer = self.loop.call_later(min(SWEEP_SECONDS, shortest / 4), self._sweep_on_time)

    def _sweep_on_time(self) -> None:
        self.sweep()
        self._sweep_later()

    # What sessions ask for

    def _new_session(self, door: Door, origin: Origin | None = None) -> Session:
        self._opened += 1
        return Session(self, door, self._opened, origin)

    @property
    def is_crowded(self) -> bool:
        """Whether connections are too many for any of them to be kept waiting."""
        return len(self._sessions) > self.settings.max_connections // 2

    def admit(self, session: Session) -> bool:
        """Count a connection in; False beyond the limit in all or of its network."""
        session.network = network = network_of(session.peer.address)
        count = self._by_network.get(network, 0)
        settings = self.settings
        if (
            len(self._sessions) >= settings.max_connections
            or (count >= settings.max_connections_per_address and network)
            or self.is_draining
        ):
            return False
        self._by_network[network] = count + 1
        self._sessions.add(session)
        return True

    def forget(self, session: Session) -> None:
        """Count a connection out."""
        if session not in self._sessions:
            return
        self._sessions.remove(session)
        network = session.network
        left = self._by_network[network] - 1
        if left:
            self._by_network[network] = left
        else:
            del self._by_network[network]
        if not self._sessions:
            self._emptied.set()

    def new_body(self) -> Body:
        """Return the place where one message gathers."""
        return Body(
            intake=self.intake,
            threads=self.threads,
            memory=self._memory,
            threshold_octets=self.settings.spool_threshold_octets,
        )

    def line_ends(self, peer: Peer) -> LineEnds:
        """Return what becomes of bare CR, bare LF and NUL in what a client sends."""
        if self._mended is None or not self._mended.covers(peer.address):
            return LineEnds.STRICT
        return LineEnds.MENDED

    def may_stand_for_others(self, session: Session) -> bool:
        """Whether a client may say XCLIENT."""
        testers = self._testers
        return testers is not None and not session.door.needs_login and testers.covers(session.client_address)

    def submits_as(self, address: str) -> str:
        """Return the inbox that a client submits as without login, '' for none."""
        return self._submitters.find(address) if self._submitters is not None else ""

    def dialect(self, session: Session) -> Dialect:
        """Return what a session understands between transactions."""
        if not session.peer.extended:
            return doors.PLAIN
        if session.door.needs_login:
            return doors.SUBMITTING_HELD if self.settings.max_hold_seconds else doors.SUBMITTING
        return doors.EXTENDED_TLS if session.peer.tls_version is not None else doors.EXTENDED

    def hello_extended(self, session: Session) -> bytes:
        """Return the reply to EHLO in the session's state."""
        state = (
            session.door.name,
            self.tls_context() is not None,
            session.peer.tls_version is not None,
            self._testers is not None and self.may_stand_for_others(session),
        )
        if (
            session.door.needs_login
            and session.peer.tls_version is not None
            and self.settings.max_hold_seconds
        ):
            # It names the latest date that is taken at this moment.
            return replies.hello(self._hostname, self._announced(session.door, state, hold=self._hold()))
        cached = self._hellos.get(state)
        if cached is None:
            announced = self._announced(session.door, state)
            cached = self._hellos[state] = replies.hello(self._hostname, announced)
        return cached

    def _announced(
        self, door: Door, state: tuple[str, bool, bool, bool], *, hold: str = ""
    ) -> tuple[str, ...]:
        return doors.keywords(
            door,
            max_octets=self.settings.max_message_octets,
            max_recipients=self.settings.max_recipients,
            tls_offered=state[1],
            tls_active=state[2],
            hold=hold,
            xclient=xclient.KEYWORD if state[3] else "",
        )

    def _hold(self) -> str:
        """Return FUTURERELEASE's limits: seconds, and the date they lead to (RFC 4865 3 (3))."""
        seconds = self.settings.max_hold_seconds
        latest = datetime.fromtimestamp(self.clock.now() // 1_000_000 + seconds, UTC)
        return f"{seconds} {latest:%Y-%m-%dT%H:%M:%SZ}"
