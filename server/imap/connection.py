"""One client's connection: octets in, octets out, TLS, deadlines, and the loop over commands.

Owns the transport, the framing and the backpressure in both directions, and
counts bad commands. Understands no command but what framing cuts; the session
does the rest. RFC 9051 2.2, 5.4 (autologout), 6.2.1 and 7.1.5, RFC 7888 4.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import structlog

from server.imap import append, framing, grammar, greeting
from server.imap.answer import Completion, Disconnected
from server.imap.limits import BAD_COMMANDS, PENDING_OCTETS
from server.imap.machine import Security, State
from server.imap.scanner import ImapSyntax
from server.imap.session import Services, Session
from server.sockets import plain_address

if TYPE_CHECKING:
    from server.imap.server import ImapServer
    from server.proxy_protocol import Origin

log = structlog.get_logger("imap")

WRITE_HIGH_OCTETS = 512 * 1024
WRITE_LOW_OCTETS = 128 * 1024

_EXCESS = {
    framing.Excess.LINE: Completion("Command line is too long", b"BAD", b"[TOOBIG]"),
    framing.Excess.LITERAL: Completion("Literal is too large", b"BAD", b"[TOOBIG]"),
    framing.Excess.LITERALS: Completion("Too many literals", b"BAD", b"[TOOBIG]"),
}


class Connection(asyncio.Protocol):
    """The protocol that the loop calls, and the wire that the session sees."""

    __slots__ = (
        "_drained",
        "_framing",
        "_handshaking",
        "_lost",
        "_origin",
        "_reading_paused",
        "_server",
        "_waiter",
        "busy",
        "deadline",
        "id",
        "peer_address",
        "security",
        "session",
        "task",
        "transport",
    )

    def __init__(
        self,
        server: ImapServer,
        services: Services,
        number: int,
        security: Security,
        origin: Origin | None = None,
    ) -> None:
        self._server = server
        self._origin = origin  # who a PROXY header says the client is
        self._framing = framing.Framing()
        self._handshaking = False
        self._lost = False
        self._reading_paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self.id = f"imap-{number}"
        self.peer_address = ""
        self.security = security
        self.busy = False  # a command is being done
        self.deadline = services.clock.monotonic() + services.settings.login_timeout_seconds
        self.session = Session(services, self)
        self.task: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport | None = None

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin a session, or refuse one."""
        self.transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        if self._origin is not None:
            self.peer_address = self._origin.address
        else:
            self.peer_address = plain_address(str(peer[0])) if isinstance(peer, tuple) else ""
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_OCTETS, low=WRITE_LOW_OCTETS)
        if not self._server.admit(self):
            self.transport.write(b"* BYE [UNAVAILABLE] Too many connections, try again later\r\n")
            self.transport.close()
            return
        self.task = asyncio.get_running_loop().create_task(self._serve())

    def data_received(self, data: bytes) -> None:
        """Keep what came; reading pauses while a command runs and much is waiting behind it."""
        self._framing.feed(data)
        if self.session.state is not State.NOT_AUTHENTICATED:
            self._extend()
        if self._waiter is not None:
            self._wake()
        elif self._framing.buffered_octets > PENDING_OCTETS and not self._reading_paused:
            self._reading_paused = True
            cast("asyncio.Transport", self.transport).pause_reading()

    def eof_received(self) -> None:
        """The client sends nothing more: the transport closes."""

    def connection_lost(self, exc: Exception | None) -> None:
        """End the session; what it had handed over is finished without it."""
        self._lost = True
        for future in (self._waiter, self._drained):
            if future is not None and not future.done():
                future.set_result(None)
        if self.task is None:
            self._server.forget(self)
        elif not self.task.done():
            self.task.cancel()

    def pause_writing(self) -> None:
        """The client does not read as fast as it is written to."""
        self._drained = asyncio.get_running_loop().create_future()
        services = self.session.services
        deadline = services.clock.monotonic() + services.bounds.write_seconds
        is_stranger = self.session.state is State.NOT_AUTHENTICATED
        self.deadline = min(self.deadline, deadline) if is_stranger else deadline

    def resume_writing(self) -> None:
        """The client has read."""
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)
        if self.session.state is not State.NOT_AUTHENTICATED:
            self._extend()
        if self.session.idling:
            self.session.wake()

    # What the session asks for

    def write(self, data: bytes) -> None:
        """Send octets, soon."""
        if not self._lost:
            cast("asyncio.Transport", self.transport).write(data)

    async def drain(self) -> None:
        """Wait until the client has read enough of what was written; raises Disconnected."""
        if self._drained is not None:
            await self._drained
        if self._lost:
            raise Disconnected

    async def breathe(self) -> None:
        """Drain, and let others have their turn."""
        if self._drained is None:
            await asyncio.sleep(0)
        await self.drain()

    @property
    def is_writable(self) -> bool:
        """Whether the client reads what it is sent."""
        return self._drained is None and not self._lost

    async def event(self) -> framing.Event:
        """Return the next event of the framing; raises Disconnected."""
        while True:
            event = self._framing.next()
            if event is not None:
                return event
            await self._more()

    async def line(self, limit: int) -> bytes:
        """Return one line, cut to limit + 1 octets; raises Disconnected."""
        while True:
            line = self._framing.next_line(limit)
            if line is not None:
                return line
            await self._more()

    async def _more(self) -> None:
        if self._lost:
            raise Disconnected
        self._resume_reading()
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _resume_reading(self) -> None:
        if self._reading_paused and not self._lost:
            self._reading_paused = False
            cast("asyncio.Transport", self.transport).resume_reading()

    def accept_literal(self) -> None:
        """Take the announced literal."""
        self._framing.accept()

    def refuse_literal(self) -> None:
        """Do without the announced literal and its command."""
        self._framing.refuse()

    def abandon_command(self) -> None:
        """Skip what is left of a command whose literal is being taken."""
        self._framing.abandon()

    def discard_input(self) -> int:
        """Forget what was read and not looked at; returns its octets."""
        return self._framing.discard()

    def logged_in(self) -> bool:
        """Allow what only a client that is logged in may; False where its inbox has too many sessions."""
        if not self._server.admit_login(self):
            return False
        self._framing.limits = framing.Limits()
        self._extend()
        return True

    async def start_tls(self) -> None:
        """Make TLS over the connection; raises Disconnected."""
        context = self.session.services.tls_context()
        # Nothing said before counts (RFC 9051 6.2.1). What comes from here on has passed TLS: a client may
        # send its first command together with the end of its handshake.
        if context is None or self._lost or self._framing.discard():
            self._abort()
            raise Disconnected
        self._handshaking = True
        try:
            transport = await asyncio.get_running_loop().start_tls(
                cast("asyncio.Transport", self.transport),
                self,
                context,
                server_side=True,
                ssl_handshake_timeout=self.session.services.bounds.handshake_seconds,
                ssl_shutdown_timeout=self.session.services.bounds.closing_seconds,
            )
        except (OSError, RuntimeError) as error:  # includes ssl.SSLError and the time limit
            log.info("handshake failed", session=self.id, error=type(error).__name__)
            self._abort()
            raise Disconnected from None
        # A client that left in the very moment of the last octet leaves a transport without TLS behind.
        if transport is None or self._lost or transport.get_extra_info("ssl_object") is None:
            self._abort()
            raise Disconnected
        self._handshaking = False
        self.transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_OCTETS, low=WRITE_LOW_OCTETS)
        self._reading_paused = False
        self.security = Security.TLS

    def close(self) -> None:
        """End the connection once all is sent."""
        services = self.session.services
        self.session.state = State.LOGOUT
        self.deadline = services.clock.monotonic() + services.bounds.closing_seconds
        if self.transport is not None and not self._lost:
            self.transport.close()

    def _abort(self) -> None:
        if self.transport is not None and not self._lost:
            self.transport.abort()

    # Deadlines

    def _extend(self) -> None:
        services = self.session.services
        if self._drained is None and self.session.state is not State.LOGOUT:
            self.deadline = services.clock.monotonic() + services.settings.idle_timeout_seconds

    def expire(self) -> None:
        """End the connection, whose deadline has passed: with a word where the client can hear it."""
        if self._handshaking or self._drained is not None or self.session.state is State.LOGOUT:
            self._abort()
        elif self.busy and self._waiter is None and self.session.state is not State.NOT_AUTHENTICATED:
            self._extend()  # our own work takes its time
        else:
            self.stop("Autologout; idle for too long")

    def stop(self, text: str) -> None:
        """Say goodbye and close."""
        if self._handshaking:
            self._abort()
            return
        if self._waiter is not None or not self.busy:
            # Else a response is being written, and nothing can be put into the middle of it.
            self.write(b"* BYE %b\r\n" % text.encode())
        self.close()
        if self.task is not None and self._waiter is not None:
            self.task.cancel()

    # The loop over commands

    async def _serve(self) -> None:
        try:
            self.write(greeting.banner(self.session))
            bad = 0
            while self.session.state is not State.LOGOUT:
                self.busy = False
                event = await self.event()
                self.busy = True
                completion = await self._take(event)
                await self.drain()
                bad = bad + 1 if completion is not None and completion.status == b"BAD" else 0
                if bad >= BAD_COMMANDS:
                    self.write(b"* BYE Too many bad commands\r\n")
                    break
        except Disconnected:
            pass
        except asyncio.CancelledError:
            if not (self._lost or self.session.state is State.LOGOUT):
                raise
        except Exception:
            log.exception("session failed", session=self.id)
            self.write(b"* BYE The server has a fault\r\n")
        finally:
            self.busy = False
            self.session.end()
            self.close()
            self._server.forget(self)

    async def _take(self, event: framing.Event) -> Completion | None:
        """Do what one event asks for; returns how it ended, None where nothing ended."""
        match event:
            case framing.Command(data):
                return await self._command(data)
            case framing.Continue():
                self.write(b"+ OK\r\n")
                return None
            case framing.Announced():
                return await append.announced(self.session, event)
            case framing.Refused(head, excess):
                return self._refuse(grammar.tag_of(head), _EXCESS[excess])
            case _:
                raise AssertionError(f"out of place: {event!r}")

    async def _command(self, data: bytes) -> Completion:
        try:
            tagged = grammar.parse(data)
        except ImapSyntax as error:
            return self._refuse(error.tag, Completion(error.text, error.status, error.code))
        return await self.session.run(tagged)

    def _refuse(self, tag: bytes, completion: Completion) -> Completion:
        self.write(completion.line(tag or b"*"))
        return completion
