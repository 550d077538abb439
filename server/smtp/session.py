"""One SMTP connection: octets in, command lines and content out, replies back.

Subclasses aiosmtpd's protocol and is the only file that imports it. Its stream
reader, its task per connection and its introspection per connection are replaced:
lines are cut straight from what arrives, a task lives only while a step waits for
something. Owns framing, batching of replies, deadlines, backpressure and TLS; what
a command means stands in `commands`. RFC 5321 2.3.8, 4.5.3.2; 2920; 3207; 4954.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from typing import TYPE_CHECKING, cast

import structlog
from aiosmtpd.smtp import SMTP

from server.refusal import Refusal
from server.smtp import commands, grammar, lmtp, replies
from server.smtp import door as doors
from server.smtp.body import Body
from server.smtp.data import ChunkReader, DataReader
from server.smtp.steps import Farewell, Phase, Step, name_of, resume, secured
from storage.errors import Full
from storage.records import Peer

if TYPE_CHECKING:
    from server.login import Identity
    from server.proxy_protocol import Origin
    from server.smtp.door import Door
    from server.smtp.sasl import Exchange
    from server.smtp.server import SmtpServer
    from storage.records import Envelope

log = structlog.get_logger("smtp")

INPUT_OCTETS = 16 * 1024  # what may wait unread before reading pauses
SPREE = 64
LINGER_SECONDS = 10  # for the last reply to leave before the connection is cut


class Session(SMTP):
    """A connection of one client.

    peer, identity: who it is. transaction: the envelope of the one under way, with the
    recipients accepted so far, None outside. reader, body: its content.
    refusal: why the connection was refused in the greeting. deadline: monotonic
    seconds at which the server calls `expire`.
    """

    def __init__(self, server: SmtpServer, door: Door, number: int, origin: Origin | None = None) -> None:
        # The base class's own constructor builds a stream reader and inspects every
        # method: 30 KB and 300 µs a connection that nothing here needs.
        self.server = server
        self.door = door
        self.number = number
        self.transport: asyncio.Transport | None = None
        self.origin = origin  # who a PROXY header says the client is
        self.peer = Peer("")
        self.client_address = ""  # as the connection has it, whatever XCLIENT says
        self.network = ""  # by which the connection is counted
        self.is_stranger = False  # whose rates are counted
        self.identity: Identity | None = None
        self.dialect = doors.PLAIN
        self.transaction: Envelope | None = None
        self.reader: DataReader | ChunkReader | None = None
        self.body: Body | None = None
        self.exchange: Exchange | None = None
        self.refusal: Refusal | None = None
        self.phase = Phase.COMMAND
        self.deadline = math.inf
        self.errors = 0
        self.refused_recipients = 0
        self.has_refused = False  # a recipient of the transaction under way
        self.idle_commands = 0
        self.login_failures = 0
        self._input = b""
        self._at = 0  # octets of _input that were dealt with
        self._overlong: Refusal | None = None  # the line under way is refused; skip to its CRLF
        self._replies: list[bytes] = []
        self._task: asyncio.Task[None] | None = None
        self._reading_paused = False
        self._writing_paused = False
        self._at_eof = False
        self._spree = 0  # lines and steps since other connections had their turn
        self._lost = False
        self._farewell: Farewell | None = None
        self._pause: asyncio.Future[None] | None = None
        self._content_since = 0.0  # moved on by what we took for our own part of it
        self.useful_at = 0.0  # when the last message was complete, or the connection began

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin: greet, or secure the connection first where TLS is implicit."""
        self.transport = cast("asyncio.Transport", transport)
        self.useful_at = self.server.clock.monotonic()
        origin = self.origin
        address, port = name_of(transport) if origin is None else (origin.address, origin.port)
        self.client_address = address
        if self.door.lmtp and origin is None:
            if address and not self.server.lmtp_hosts.covers(address):
                self.reply(replies.NOT_OF_THIS_HOUSE)
                self.close()
                return
            address, port = "", 0  # a host of this house is nobody's client: nothing of it is judged
        self.peer = Peer(address, port)
        if not self.server.admit(self):
            self.reply(replies.TOO_MANY_CONNECTIONS)
            self.close()
            return
        if self.door.implicit_tls:
            self._start(self._shake_hands())
            return
        step = self._run(commands.greet(self)) or self._next_step()
        if step is not None:
            self._start(step)

    def data_received(self, data: bytes) -> None:
        """Take octets; deal with what is complete unless a step is under way."""
        if self.phase is Phase.CLOSING:
            if self._farewell is not None:
                self._farewell.hear(data)
            return
        if self._at < len(self._input):
            self._input = self._input[self._at :] + data
        else:
            self._input = data
        self._at = 0
        if self._task is None and not self._writing_paused:
            self._advance()
        elif len(self._input) > INPUT_OCTETS:
            self._pause_reading()

    def eof_received(self) -> bool:
        """The client sent its last octet: answer what came before, then close."""
        self._at_eof = True
        self.hurry()
        # A TLS transport closes itself; a plain one stays open while a step is under way.
        return self._task is not None and self.peer.tls_version is None and self.phase is not Phase.CLOSING

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone: an unfinished message is discarded."""
        if self._lost:
            return
        self._lost = True
        self.phase = Phase.CLOSING
        self._input, self._at = b"", 0
        self.deadline = math.inf
        self.server.forget(self)
        self.hurry()
        if self._task is None and self.body is not None:
            # A step under way cleans up itself when it ends.
            self._start(self._abandon())

    def pause_writing(self) -> None:
        """The client reads too slowly: no further command until it has read its replies."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """The client has read."""
        self._writing_paused = False
        if self._task is None and self.phase is not Phase.CLOSING:
            self._advance()
            if self._task is None:
                self._settle()

    # What the server calls

    def expire(self) -> None:
        """The deadline has passed: say so and close, or cut what does not close."""
        if self.phase is Phase.CLOSING:
            self.deadline = math.inf
            if self.transport is not None:
                self.transport.abort()
            return
        self.reply(replies.TIMED_OUT)
        self.close()

    @property
    def is_idle(self) -> bool:
        """Whether nothing was begun that a drain should wait for."""
        return self.transaction is None and self._task is None

    def stop(self) -> None:
        """Close with 421 at once, whatever is under way."""
        self.hurry()
        if self.phase is not Phase.CLOSING:
            self.reply(replies.STOPPING)
            self.close()

    async def pause(self, seconds: float) -> None:
        """Keep the client waiting; ends early with the connection, or with the server."""
        if self._lost or self.phase is Phase.CLOSING:
            return
        self._pause = pause = self.server.loop.create_future()
        timer = self.server.loop.call_later(seconds, self.hurry)
        try:
            await pause
        finally:
            timer.cancel()
            self._pause = None

    def hurry(self) -> None:
        """End a pause at once."""
        if self._pause is not None and not self._pause.done():
            self._pause.set_result(None)

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The step under way."""
        return self._task

    # What commands call

    def reply(self, octets: bytes) -> None:
        """Queue a reply; it leaves with all others once no complete command is waiting."""
        self._replies.append(octets)

    def refuse(self, refusal: Refusal) -> None:
        """Queue the reply that a refusal owes; a 421 closes."""
        utf8 = self.transaction is not None and self.transaction.smtputf8
        repertoire = replies.Repertoire.UTF8 if utf8 else replies.Repertoire.ASCII
        self.reply(replies.of_refusal(refusal, repertoire))
        if refusal.code == 421:
            self.dismiss()

    def count_error(self) -> bool:
        """Count a wrong command; return whether it was one too many."""
        self.errors += 1
        return self.errors >= self.server.settings.max_errors

    def _rebuke(self, reply: bytes) -> None:
        """Queue the reply to a wrong command; at too many, 421 takes its place and all ends."""
        if self.count_error():
            self.reply(replies.TOO_MANY_ERRORS)
            self.dismiss()
        else:
            self.reply(reply)

    def close(self) -> None:
        """Send what is queued and close; nothing more is read."""
        if self.phase is Phase.CLOSING:
            return
        self._leave()
        assert self.transport is not None
        self.transport.close()

    def dismiss(self) -> None:
        """Close on a client that may still be sending, and let it read what is queued."""
        assert self.transport is not None
        if self.phase is Phase.CLOSING or self._at_eof or not self.transport.can_write_eof():
            self.close()
            return
        self._leave()
        self._resume_reading()
        self._farewell = Farewell(self.transport)

    def _leave(self) -> None:
        self._flush()
        self.phase = Phase.CLOSING
        self._input, self._at = b"", 0
        self.deadline = self.server.clock.monotonic() + LINGER_SECONDS

    @property
    def is_waiting(self) -> bool:
        """Whether the client is still there, and has not said that it leaves."""
        return not (self._lost or self._at_eof or self.phase is Phase.CLOSING)

    @property
    def has_input(self) -> bool:
        """Whether octets wait behind the command at hand."""
        return self._at < len(self._input)

    def reset(self) -> None:
        """End the transaction; content must be gone already."""
        self.transaction = None
        self.reader = None
        self.body = None
        self.dialect = self.server.dialect(self)

    def begin_content(self, reader: DataReader | ChunkReader) -> None:
        """Read content from here on."""
        self.reader = reader
        if self.body is None:
            self.body = self.server.new_body()
            self._content_since = self.server.clock.monotonic()
        self.phase = Phase.CONTENT

    def begin_tls(self) -> Step:
        """Announce TLS and begin it this instant; return the step that waits for it."""
        self.reply(replies.READY_FOR_TLS)
        self._flush()
        return self._shake_hands()

    # Steps

    def _start(self, step: Step) -> None:
        if self.phase is not Phase.CLOSING:
            self.deadline = math.inf
        self._task = self.server.loop.create_task(self._work(step))

    def _advance(self) -> None:
        step = self._next_step()
        if step is not None:
            self._start(step)

    async def _work(self, first: Step) -> None:
        step: Step | None = first
        while step is not None:
            try:
                await step
            except Refusal as refusal:
                self.refuse(refusal)
            except Exception:  # noqa: BLE001  # the top of a session: logged there
                self._broke()
            self._spree += 1
            step = self._breathe() if self._spree >= SPREE else self._next_step()
        self._task = None
        self._settle()

    def _settle(self) -> None:
        """Go on after the last step: clean up, close, or read."""
        if self._lost and self.body is not None:
            self._start(self._abandon())
        elif self._at_eof and not self._writing_paused:
            self.close()
        else:
            self._resume_reading()

    def _next_step(self) -> Step | None:
        """Deal with what has arrived until a step has to wait, or nothing complete is left."""
        while self.phase is not Phase.CLOSING and not self._writing_paused:
            if self.phase is Phase.CONTENT:
                assert self.reader is not None
                if self._at >= len(self._input) and not self.reader.complete:
                    break
                step = self._take_content()
            else:
                if self.transaction is None and self.server.is_draining:
                    self.stop()
                    break
                line = self._take_line()
                if line is None:
                    break
                step = self._obey(line)
            if step is not None:
                return step
            self._spree += 1
            if self._spree >= SPREE:
                return self._breathe()
        if self._at >= len(self._input):
            self._input, self._at = b"", 0  # an idle session keeps nothing
        self._await_peer()
        self._flush()
        return None

    async def _breathe(self) -> None:
        """Let other connections have their turn."""
        self._spree = 0
        await asyncio.sleep(0)

    def _await_peer(self) -> None:
        """Set the deadline of what the client owes now (RFC 5321 4.5.3.2)."""
        settings, now = self.server.settings, self.server.clock.monotonic()
        if self.phase is Phase.CONTENT:
            # Each block moves it on, but not by more than it is worth: content may not trickle for ever.
            assert self.reader is not None
            latest = settings.content_deadline(since=self._content_since, octets=self.reader.received)
            self.deadline = min(now + settings.data_timeout_seconds, latest)
        elif self.deadline == math.inf:
            # Half a line moves nothing: a command has its time as a whole.
            self.deadline = now + settings.command_timeout_seconds
            if self.reader is not None:
                # Between chunks: many small ones are no better than one that trickles.
                latest = settings.content_deadline(since=self._content_since, octets=self.reader.received)
                self.deadline = min(self.deadline, latest)
            elif self.identity is None and not lmtp.is_vouched(self):
                self.deadline = min(self.deadline, self.useful_at + settings.message_timeout_seconds)

    def _take_line(self) -> bytes | None:
        """Return the next line without CRLF, or None; a line that never gets whole is refused."""
        while True:
            end = self._input.find(b"\r\n", self._at)
            if end < 0:
                self._refuse_early()
                return None
            line = self._input[self._at : end]
            self._at = end + 2
            self.deadline = math.inf  # what was owed has come; `_await_peer` sets the next one
            if self._overlong is None:
                return line
            self._overlong = None
            if self.phase is Phase.CLOSING:
                return None

    def _refuse_early(self) -> None:
        """Judge the beginning of a line: answer once what can't become a command, forget its octets."""
        waiting = self._input[self._at :] if self._at else self._input
        if self._overlong is None:
            if len(waiting) > grammar.LONGEST_LINE_OCTETS:
                self._overlong = grammar.too_long()
            elif b"\n" in waiting:
                self._overlong = grammar.bare_line_end()
            else:
                return
            self.end_exchange()
            self._rebuke(replies.of_refusal(self._overlong))
        if self.phase is not Phase.CLOSING:
            self._input, self._at = (b"\r" if waiting.endswith(b"\r") else b""), 0

    def _obey(self, line: bytes) -> Step | None:
        """Begin what a line asks for; return the step that remains, if any."""
        try:
            if b"\n" in line or b"\r" in line or b"\0" in line:
                raise grammar.bare_line_end()
            if self.phase is Phase.AUTH:
                assert self.exchange is not None
                return commands.continue_exchange(self, self.exchange.answer(line))
            command = grammar.parse(line, self.dialect)
            step = commands.HANDLERS[type(command)](self, command)
            return self._run(step) if step is not None and type(command) in commands.PROMPT else step
        except Refusal as refusal:
            self._refuse_line(line, refusal)
        except Exception:  # noqa: BLE001  # the top of a session: logged there
            self._broke()
        return None

    def _run(self, step: Step) -> Step | None:
        """Run a step up to its first wait, without a task; return what remains of it, if anything."""
        try:
            waits_for = step.send(None)
        except StopIteration:
            return None
        except Refusal as refusal:
            self.refuse(refusal)
            return None
        except Exception:  # noqa: BLE001  # the top of a session: logged there
            self._broke()
            return None
        return resume(step, waits_for)

    def _refuse_line(self, line: bytes, refusal: Refusal) -> None:
        verb = b"" if self.phase is Phase.AUTH else line[:4].upper()
        self.end_exchange()
        if refusal.code == 421:
            self.refuse(refusal)
        elif verb in {b"EHLO", b"HELO", b"LHLO"}:
            # RFC 2034 4: replies to EHLO and HELO have no enhanced code.
            self._rebuke(replies.bare(refusal))
        else:
            self._rebuke(replies.of_refusal(refusal))
        # What follows would be content, or another protocol: never to be read as commands.
        if verb == b"BDAT" or (verb == b"DATA" and self.has_input) or (verb and commands.is_foreign(line)):
            self.dismiss()

    def _broke(self) -> None:
        log.exception("session step failed", session=self.number)
        self.end_exchange()
        self.reply(replies.BROKEN)

    # Content

    def _take_content(self) -> Step | None:
        reader, body = self.reader, self.body
        assert reader is not None
        assert body is not None
        if not reader.complete:
            block = self._input[self._at :] if self._at else self._input
            content = reader.feed(block)
            self._input, self._at = (reader.rest if reader.complete else b""), 0
            if content:
                body.add(content)
            elif reader.fault is not None:
                body.release()
                if reader.received > self.server.patience_octets:
                    self.refuse(reader.fault)
                    self.close()
                    return self._abandon()
        if body.is_full:
            return self._spill(reader, body)
        if not reader.complete:
            return None
        self.phase = Phase.COMMAND
        return commands.end_content(self)

    async def _spill(self, reader: DataReader | ChunkReader, body: Body) -> None:
        begun = self.server.clock.monotonic()
        try:
            await body.spill()
            # A slow disk is not the client's fault.
            self._content_since += self.server.clock.monotonic() - begun
        except Full:
            body.release()
            reader.inspection.fault = Refusal(452, "4.3.1", "Insufficient system storage, try again later")
        except Exception:
            log.exception("content cannot be written", session=self.number)
            body.release()
            reader.inspection.fault = Refusal(451, "4.3.0", "Local error, try again later")

    async def _abandon(self) -> None:
        """Discard an unfinished message."""
        body, self.body = self.body, None
        self.transaction = None
        self.reader = None
        if body is not None:
            await body.discard()

    # AUTH

    def begin_exchange(self, exchange: Exchange, initial: bytes | None) -> Step | None:
        """Begin an AUTH dialogue; raises Refusal."""
        self.exchange = exchange
        return commands.continue_exchange(self, exchange.begin(initial))

    def end_exchange(self) -> None:
        """Leave the AUTH dialogue, if one is under way."""
        self.exchange = None
        if self.phase is Phase.AUTH:
            self.phase = Phase.COMMAND

    # TLS

    def _shake_hands(self) -> Step:
        """Put TLS between the wire and the session at once; return the step that waits for it."""
        context = self.server.tls_context()
        assert self.transport is not None
        if context is None:
            return self._cut_off()
        handshake = self.server.loop.start_tls(
            self.transport,
            self,
            context,
            server_side=True,
            ssl_handshake_timeout=self.server.settings.handshake_timeout_seconds,
            ssl_shutdown_timeout=LINGER_SECONDS,
        )
        try:
            # Run up to its first wait here and now: a task would begin too late, after the
            # client's first octets have been handed to this protocol instead of TLS.
            waits_for = handshake.send(None)
        except (OSError, RuntimeError):
            return self._cut_off()
        return self._secure(resume(handshake, waits_for))

    async def _secure(self, handshake: Awaitable[asyncio.Transport | None]) -> None:
        """Wait for the handshake, then forget all that was said before (RFC 3207 4.2)."""
        try:
            transport = await handshake
        except OSError:  # includes ssl.SSLError and the time limit
            transport = None
        # A client that left in the very moment of the last octet leaves a transport without TLS behind.
        if transport is None or self._lost or transport.get_extra_info("ssl_object") is None:
            await self._cut_off()
            return
        self.transport = transport
        self._note_tls()
        if self.door.implicit_tls:
            await commands.greet(self)

    async def _cut_off(self) -> None:
        assert self.transport is not None
        self.transport.abort()
        self.connection_lost(None)

    def _note_tls(self) -> None:
        assert self.transport is not None
        self.peer = secured(self.peer, self.transport.get_extra_info("ssl_object"))
        self.identity = None
        self.reset()

    # The transport

    def _flush(self) -> None:
        transport = self.transport
        if self._replies and transport is not None and self._farewell is None and not transport.is_closing():
            # RFC 2920 3.2: replies to commands that came together leave together.
            transport.write(b"".join(self._replies))
        self._replies.clear()

    def _pause_reading(self) -> None:
        if not self._reading_paused and self.transport is not None and not self.transport.is_closing():
            self._reading_paused = True
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and self.transport is not None and not self.transport.is_closing():
            self._reading_paused = False
            self.transport.resume_reading()
