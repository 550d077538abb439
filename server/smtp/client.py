"""One connection to another server: the socket, TLS and deadlines around the client machine.

Owns opening, the TLS handshake, streaming of content with dots stuffed and
backpressure obeyed, and a deadline for every wait. Chooses no host, keeps no
connection after use and settles no delivery. RFC 5321 4.5.2 (transparency),
4.5.3.2 (timeouts), RFC 3207.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from server.smtp.client_machine import (
    WAITING,
    Answer,
    Credentials,
    Dialect,
    Machine,
    State,
    TlsUse,
    Transaction,
)
from server.smtp.client_reply import Extensions
from server.tls import peer_chain
from server.transport.handshake import handshake_fault
from server.transport.security import OPPORTUNISTIC, Fault, ResultType, Security

# Beyond this much unsent content the sender waits for the peer.
WRITE_LIMIT_OCTETS = 256 * 1024
HANDSHAKE_SECONDS = 60.0
DATA_SECONDS = 120.0  # RFC 5321 4.5.3.2.4
NO_STARTTLS = Fault(ResultType.NO_STARTTLS, "the server offers no STARTTLS, which is needed here")
BLOCK_SECONDS = 180.0  # RFC 5321 4.5.3.2.5


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each wait may last, in seconds (RFC 5321 4.5.3.2).

    command: greeting, EHLO, MAIL and RCPT, each. block: writing the next stretch of content.
    final: the reply after the final dot. connect: the TCP connection.
    """

    connect: float = 30.0
    command: float = 300.0
    data: float = DATA_SECONDS
    block: float = BLOCK_SECONDS
    final: float = 600.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect: the host's name (for TLS and reports), its IP address, the port, what it speaks.

    security: what it must prove before it gets content. implicit_tls: TLS from the first octet (RFC 8314).
    login: whom to log in as. source: our address to connect from, '' for any; name: what we are called there.
    """

    host: str
    address: str
    port: int
    dialect: Dialect = Dialect.SMTP
    security: Security = OPPORTUNISTIC
    implicit_tls: bool = False
    login: Credentials | None = None
    source: str = ""
    name: str = ""


class ConnectFailed(Exception):
    """The connection could not be made ready for mail; answer says where and why.

    fault: what of TLS failed, None where TLS is not to blame. source: our address, as far as known.
    """

    def __init__(self, answer: Answer, fault: Fault | None = None, source: str = "") -> None:
        super().__init__(answer.text)
        self.answer = answer
        self.fault = fault
        self.source = source


# Says what is wrong with a server's chain, certificates in DER, its own first; None where nothing is.
Judge = Callable[[Sequence[bytes]], Fault | None]


Content = Callable[[], AsyncIterator[bytes]]
Begin = Callable[[tuple[int, ...]], Awaitable[None]]


class Client(asyncio.Protocol):
    """A connection that carries one transaction at a time; made by `connect`."""

    def __init__(self, machine: Machine, endpoint: Endpoint, timeouts: Timeouts) -> None:
        self.endpoint = endpoint
        self.tls_version: str | None = None
        self.tls_cipher: str | None = None
        self.source = ""
        self.lost: Callable[[], None] | None = None
        self._machine = machine
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._paused = False

    @property
    def ready(self) -> bool:
        """Whether another transaction can begin."""
        return self._machine.state is State.READY and self._transport is not None

    @property
    def extensions(self) -> Extensions:
        """What the server announced last."""
        return self._machine.extensions

    @property
    def greeting_name(self) -> str:
        """The name in the server's greeting, lower-case."""
        return self._machine.greeting_name

    @property
    def transactions(self) -> int:
        """Transactions begun on this connection."""
        return self._machine.transactions

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, plain or under TLS."""
        # uvloop's transports are not subclasses of asyncio's: cast, not checked.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_LIMIT_OCTETS)
        if self.endpoint.implicit_tls:
            self._note_tls(self._transport)
        place = transport.get_extra_info("sockname")
        self.source = place[0] if place else ""

    def data_received(self, data: bytes) -> None:
        """Feed the machine and send what it answers."""
        self._machine.receive(data)
        self._flush()
        self._wake()

    def eof_received(self) -> None:
        """Let the transport close: no server speaks after its end."""

    def connection_lost(self, error: Exception | None) -> None:
        """Tell whoever waits that the server is gone."""
        reason = f": {_reason(error)}" if isinstance(error, OSError) else ""
        self._machine.fail(f"the connection was lost{reason}")
        self._transport = None
        self._resume()
        self._wake()
        if self.lost is not None:
            self.lost()

    def pause_writing(self) -> None:
        """Hold content back: the peer is slower than we are."""
        self._paused = True

    def resume_writing(self) -> None:
        """Let content flow again."""
        self._resume()

    # What the owner calls.

    async def deliver(
        self, transaction: Transaction, *, content: Content, begin: Begin
    ) -> tuple[Answer, ...]:
        """Send one message; returns an answer for each recipient, in order.

        begin is awaited with the indexes of the recipients that were taken, before the first octet of
        content: what it raises ends the connection and is raised here. A lost connection or a missed
        deadline is an answer; afterwards `ready` says whether the connection can go on.
        """
        machine = self._machine
        machine.begin(transaction)
        self._flush()
        try:
            # One deadline for the whole envelope: a server that drips replies gains nothing by it.
            await self._settled(2 * self._timeouts.command + self._timeouts.data)
            if self._state() is State.SEND:
                await begin(machine.accepted)
                if machine.chunking:
                    await self._send_chunk(content, transaction.octets)
                else:
                    await self._send_content(content)
                await self._settled(self._timeouts.final)
        except BaseException:
            self.abort("the transmission was given up")
            raise
        return machine.answers

    def _state(self) -> State:
        return self._machine.state

    async def _send_content(self, content: Content) -> None:
        machine, stuffing = self._machine, Stuffing()
        if self._state() is not State.SEND:
            return
        machine.sending()
        # One piece is held back, so that the final dot goes out with the last one.
        piece = b""
        async for chunk in content():
            if piece and not await self._write(piece):
                return
            piece = stuffing.feed(chunk)
        if await self._write(piece + stuffing.finish()):
            machine.content_sent()

    async def _send_chunk(self, content: Content, octets: int) -> None:
        """Send all as one chunk (RFC 3030 2): its length is announced, and nothing in it is a command."""
        machine = self._machine
        if self._state() is not State.SEND:
            return
        machine.sending()
        piece, left = b"BDAT %d LAST\r\n" % octets, octets
        async for chunk in content():
            left -= len(chunk)
            if left < 0:
                break
            # One piece is held back, so that a small message goes out in one write.
            if len(piece) + len(chunk) <= WRITE_LIMIT_OCTETS:
                piece += chunk
                continue
            if not await self._write(piece):
                return
            piece = chunk
        if left:
            # Anything sent now would be read as content, or content as commands.
            self.abort("the message is not as long as it was")
        elif await self._write(piece):
            machine.content_sent()

    async def _write(self, octets: bytes) -> bool:
        if self._transport is None or self._state() is not State.CONTENT:
            return False
        self._transport.write(octets)
        if self._paused:
            self._drained = self._loop.create_future()
            try:
                async with asyncio.timeout(self._timeouts.block):
                    await self._drained
            except TimeoutError:
                self.abort("the server did not read on in time")
            finally:
                self._drained = None
        return self._state() is State.CONTENT

    async def _settled(self, seconds: float) -> None:
        """Wait until the machine needs its owner; a missed deadline closes the connection."""
        if self._machine.state in WAITING:
            return
        try:
            async with asyncio.timeout(seconds):
                while self._machine.state not in WAITING:
                    self._waiter = self._loop.create_future()
                    await self._waiter
        except TimeoutError:
            self.abort(f"no reply within {seconds:g} seconds")
        finally:
            self._waiter = None

    async def open(self, tls: ssl.SSLContext | None, judge: Judge | None = None) -> None:
        """Bring a fresh connection to READY, under TLS where it is used; raises ConnectFailed.

        judge: asked before anything is said under TLS.
        """
        try:
            await self._settled(self._timeouts.command)
            if self._state() is State.HANDSHAKE:
                assert tls is not None
                await self._shake_hands(tls, judge)
                await self._settled(self._timeouts.command)
            if not self.ready:
                answer = self._machine.failure or Answer("connect", None, "the connection was lost")
                raise ConnectFailed(answer, _refused_tls(answer))
            if self.endpoint.security.needs_tls and self.tls_version is None:
                raise ConnectFailed(Answer("tls", None, NO_STARTTLS.text), NO_STARTTLS)
        except ConnectFailed as failure:
            failure.source = self.source
            self.abort("the connection was given up")
            raise
        except BaseException:
            self.abort("the connection was given up")
            raise

    async def _shake_hands(self, tls: ssl.SSLContext, judge: Judge | None) -> None:
        assert self._transport is not None
        names = self.endpoint.security.names
        plain = self._transport
        try:
            secure = await self._loop.start_tls(
                plain,
                self,
                tls,
                # RFC 7672 8.1: the name that the TLSA records belong to.
                server_hostname=names[0] if names else self.endpoint.host,
                ssl_handshake_timeout=min(HANDSHAKE_SECONDS, self._timeouts.command),
            )
        except (OSError, ssl.SSLError, ValueError) as error:
            fault = handshake_fault(error)
            raise ConnectFailed(
                Answer("tls", None, f"the TLS handshake failed: {fault.text}"), fault
            ) from None
        if secure is None or self._state() is not State.HANDSHAKE:
            text = "the connection was lost in the TLS handshake"
            raise ConnectFailed(Answer("tls", None, text), Fault(ResultType.VALIDATION, text))
        self._transport = secure
        secure.set_write_buffer_limits(high=WRITE_LIMIT_OCTETS)
        self._note_tls(secure)
        found = judge(peer_chain(secure.get_extra_info("ssl_object"))) if judge is not None else None
        if found is not None:
            raise ConnectFailed(Answer("tls", None, found.text), found)
        self._machine.secured()
        self._flush()

    def _note_tls(self, transport: asyncio.Transport) -> None:
        found: Any = transport.get_extra_info("ssl_object")
        if found is not None:
            cipher = found.cipher()
            self.tls_version, self.tls_cipher = found.version(), cipher[0] if cipher else None

    def quit(self) -> None:
        """Say QUIT if that is possible and close, waiting for nothing."""
        self._machine.quit()
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Drop the connection at once; open recipients get the reason, unless one was known before."""
        self._machine.fail(reason)
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        octets = self._machine.take()
        if octets and self._transport is not None:
            self._transport.write(octets)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done() and self._machine.state in WAITING:
            self._waiter.set_result(None)
        if self._machine.state is State.CLOSED:
            self._resume()
            if self._transport is not None:
                self._transport.abort()

    def _resume(self) -> None:
        self._paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)


async def connect(
    endpoint: Endpoint,
    *,
    hostname: str,
    tls: ssl.SSLContext | None,
    timeouts: Timeouts,
    judge: Judge | None = None,
    connected: socket.socket | None = None,
) -> Client:
    """Return a connection that is ready for mail, under TLS if the server offers it and tls is given.

    judge: says whether the chain that the server shows will do. connected: a TCP connection that stands.

    Raises ConnectFailed, whose answer's phase is 'connect', 'ehlo' or 'tls'.
    """
    use = TlsUse.NONE if tls is None else TlsUse.OPPORTUNISTIC
    machine = Machine(
        hostname=endpoint.name or hostname,
        dialect=endpoint.dialect,
        tls=use,
        secure=endpoint.implicit_tls,
        login=endpoint.login,
    )
    loop = asyncio.get_running_loop()
    client = Client(machine, endpoint, timeouts)
    try:
        async with asyncio.timeout(timeouts.connect):
            if connected is not None:
                await loop.create_connection(lambda: client, sock=connected, **_wrapped(endpoint, tls))
            else:
                await loop.create_connection(
                    lambda: client,
                    endpoint.address,
                    endpoint.port,
                    local_addr=(endpoint.source, 0) if endpoint.source else None,
                    **_wrapped(endpoint, tls),
                )
    except ssl.SSLError as error:
        fault = handshake_fault(error)
        text = f"the TLS handshake failed: {fault.text}"
        raise ConnectFailed(Answer("tls", None, text), fault) from None
    except TimeoutError:
        raise ConnectFailed(
            Answer("connect", None, f"no connection within {timeouts.connect:g} seconds")
        ) from None
    except OSError as error:
        raise ConnectFailed(Answer("connect", None, _reason(error))) from None
    await client.open(tls, judge)
    return client


def _wrapped(endpoint: Endpoint, tls: ssl.SSLContext | None) -> dict[str, Any]:
    """Return what makes the transport one under TLS, where that is from the first octet."""
    if not endpoint.implicit_tls:
        return {}
    assert tls is not None, "such a host is never spoken to in clear"
    return {"ssl": tls, "server_hostname": endpoint.host}


def _refused_tls(answer: Answer) -> Fault | None:
    """Return the fault of a server that announced STARTTLS and came no further."""
    if answer.phase != "tls":
        return None
    if answer.reply is None:
        return Fault(ResultType.VALIDATION, answer.text[:300])
    return Fault(ResultType.NO_STARTTLS, f"the server refused STARTTLS: {answer.text}"[:300])


def lost_race(endpoint: Endpoint, error: OSError | None, timeouts: Timeouts) -> ConnectFailed:
    """Return the failure of an address that took no connection; None: another one was quicker."""
    if error is None:
        text = f"another address of {endpoint.host} took the connection sooner"
    elif isinstance(error, TimeoutError):
        text = f"no connection within {timeouts.connect:g} seconds"
    else:
        text = _reason(error)
    return ConnectFailed(Answer("connect", None, text))


def _reason(error: OSError) -> str:
    # asyncio puts the address into strerror; the reason is the number's.
    return os.strerror(error.errno) if error.errno else str(error)


class Stuffing:
    """Makes lines that begin with a dot begin with two, chunk by chunk (RFC 5321 4.5.2)."""

    def __init__(self) -> None:
        self._tail = b"\r\n"

    def feed(self, chunk: bytes) -> bytes:
        """Return the chunk as it goes over the wire."""
        if not chunk:
            return b""
        stuffed = chunk.replace(b"\n.", b"\n..")
        if chunk[:1] == b"." and self._tail.endswith(b"\n"):
            stuffed = b"." + stuffed
        self._tail = (self._tail + chunk[-2:])[-2:]
        return stuffed

    def finish(self) -> bytes:
        """Return the end of content: the last line's CRLF if it lacks one, and the final dot."""
        return b".\r\n" if self._tail == b"\r\n" else b"\r\n.\r\n"
