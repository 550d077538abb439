"""Fuzz targets of the doors that are no pure parser: SMTP sessions, replies of servers, control, HTTP.

`check_session`: a whole session of any octets, cut anywhere, breaks nothing (no 451 for
our own faults), answers in well-formed lines, keeps its input and memory in bounds, and
hands on clean content only. `check_replies`: what a server answers to our client ends
the dialogue alike however it is cut, and raises nothing. `check_control`: each line of
the control socket gets one JSON object. `check_body`: a JSON body is its model, with
texts and numbers that every database takes, or a Problem.
"""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

from pydantic import BaseModel
from starlette.requests import Request
from twisted.internet.testing import StringTransport

from server.control import ControlProtocol
from server.http import models
from server.http.bodies import SMALL_OCTETS, Bodies
from server.http.problems import Problem
from server.refusal import Refusal
from server.smtp import door
from server.smtp.client_machine import WAITING, Answer, Dialect, Machine, State, TlsUse, Transaction
from server.smtp.server import SmtpServer
from server.smtp.session import INPUT_OCTETS, Session
from server.smtp.settings import SmtpSettings
from storage.records import Recipient
from tests.fakes import FakeClock
from tests.smtp.fakes import FakeIntake, FakeLogin, InlineThreads

_RUNNER = asyncio.Runner()
SETTINGS = SmtpSettings(
    max_message_octets=4096,
    max_recipients=3,
    max_header_line_octets=300,
    max_header_octets=1024,
    spool_threshold_octets=512,
    lmtp_networks=("192.0.2.0/24",),
    xclient_networks=("192.0.2.0/24",),
)
TURNS = 10_000


class Inline(InlineThreads):
    """Runs work of the processor at once, too."""

    compute = InlineThreads.run


class Wire(asyncio.Transport):
    """A transport that keeps what is written and loses the connection when it is closed."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 4711)})
        self.written = bytearray()
        self.closed = False
        self.half_closed = False
        self.paused = False

    def write(self, data: Any) -> None:
        assert not self.closed
        assert not self.half_closed
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        assert not self.closed
        self.half_closed = True

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


def check_session(data: bytes) -> None:
    """The first two octets choose the door and the cut; the rest is what the client sends."""
    kind, size = (data[:1] or b"\0")[0], (data[1:2] or b"\0")[0] + 1
    chosen = door.LMTP if kind & 4 else (door.MX, door.SUBMISSION)[kind % 2]
    stream = data[2:]
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    _RUNNER.run(_converse(chosen, pieces, is_secure=kind & 2 > 0))


async def _converse(chosen: door.Door, pieces: list[bytes], *, is_secure: bool) -> None:
    intake, wire = FakeIntake(), Wire()
    intake.late["b@example.org"] = Refusal(550, "5.2.1", "Mailbox is closed")
    server = SmtpServer(
        intake=cast("Any", intake),
        login=cast("Any", FakeLogin()),
        threads=cast("Any", InlineThreads()),
        clock=FakeClock(),
        settings=SETTINGS,
        hostname="mx.example.org",
        tls_context=lambda: None,
    )
    session = Session(server, chosen, 1)
    session.connection_made(wire)
    await _settled(session)
    if is_secure:
        session.peer = replace(session.peer, tls_version="TLSv1.3")
    for piece in pieces:
        if wire.closed:
            break
        session.data_received(piece)
        await _settled(session)
        assert len(session._input) <= INPUT_OCTETS + len(piece)
    session.connection_lost(None)
    await _settled(session)
    _check_answers(bytes(wire.written))
    assert server.connections == 0
    assert server._memory.used_octets == 0
    for writer in intake.spools.writers:
        assert writer.state in ("finished", "discarded")
    for content in intake.contents():
        rest = content.replace(b"\r\n", b"")
        assert not any(octet in rest for octet in b"\r\n\0")
        assert len(content) <= SETTINGS.max_message_octets


async def _settled(session: Session) -> None:
    for _ in range(TURNS):
        if session.task is None:
            return
        session.hurry()  # a stranger's wait, for the greeting and after guesses, is over at once
        await asyncio.sleep(0)
    raise AssertionError("a session never comes to rest")


def _check_answers(written: bytes) -> None:
    assert b"451 4.3.0 Local error" not in written
    assert written == b"" or written.endswith(b"\r\n")
    for line in written.split(b"\r\n")[:-1]:
        assert len(line) <= 510
        assert line[:3].isdigit()
        assert line[3:4] in (b" ", b"-")
        assert line.decode("utf-8").isprintable()


def check_replies(data: bytes) -> None:
    """The first octet chooses the cut; the rest is what the server says, line by line and in pieces."""
    size, lines = (data[:1] or b"\0")[0] % 40 + 1, data[1:].splitlines(keepends=True)
    pieces = [line[at : at + size] for line in lines for at in range(0, len(line), size)]
    for dialect in Dialect:
        answers, sent = _dialogue(dialect, lines)
        assert _dialogue(dialect, pieces) == (answers, sent)
        assert sent == b"" or sent.endswith(b"\r\n")
        for answer in answers:
            assert answer.text.isprintable()
            assert all(line.isprintable() for line in (answer.reply.lines if answer.reply else ()))


def _dialogue(dialect: Dialect, pieces: list[bytes]) -> tuple[tuple[Answer, ...], bytes]:
    machine = Machine(hostname="mx.example.org", dialect=dialect, tls=TlsUse.NONE)
    recipients = (Recipient("a@b.example"), Recipient("c@b.example", frozenset({"NEVER"})))
    begun, sent = False, b""
    for piece in pieces:
        machine.receive(piece)
        if machine.state is State.READY and not begun:
            begun = True
            machine.begin(Transaction("x@y.example", recipients, octets=10))
        if machine.state is State.SEND:
            machine.sending()
            machine.content_sent()
        sent += machine.take()
    if machine.state not in WAITING:
        machine.fail("the connection was lost")
    assert len(machine.answers) == (len(recipients) if begun else 0)
    assert set(machine.accepted) <= set(range(len(recipients)))
    return machine.answers, sent


def check_control(data: bytes) -> None:
    """Each whole line gets one JSON object, in order; only a line that is too long ends the connection."""
    _RUNNER.run(_ask(data))


async def _ask(data: bytes) -> None:
    async def echo(name: str, arguments: Any) -> dict[str, Any]:
        return {"name": name, "arguments": arguments}

    transport = StringTransport()
    protocol = ControlProtocol(echo)
    protocol.makeConnection(transport)
    protocol.dataReceived(data)
    expected = data.count(b"\n")
    for _ in range(20 * expected + 20):
        if transport.value().count(b"\n") >= expected:
            break
        await asyncio.sleep(0)
    answers = [json.loads(line) for line in transport.value().splitlines()]
    assert len(answers) == expected
    for answer in answers:
        assert answer.keys() in ({"result"}, {"error"})


BODIES: tuple[type[BaseModel], ...] = (
    models.SendRequest,
    models.InboxRequest,
    models.KeyRequest,
    models.DomainRequest,
)


def check_body(data: bytes) -> None:
    """The first octet chooses the cut; the rest is the body, for each of the models."""
    size, body = (data[:1] or b"\0")[0] + 1, data[1:]
    for model in BODIES:
        made = _RUNNER.run(_read(body, size, model))
        if made is None:
            continue
        # What is said at length is encoded into the message, whatever it holds.
        for value in _values(made.model_dump(exclude={"text", "html"})):
            if isinstance(value, str):
                assert "\0" not in value
                value.encode("utf-8")
            elif isinstance(value, int):
                assert -(1 << 63) <= value < 1 << 63


async def _read(body: bytes, size: int, model: type[BaseModel]) -> BaseModel | None:
    waiting = [body[at : at + size] for at in range(0, len(body), size)] or [b""]

    async def receive() -> dict[str, Any]:
        chunk = waiting.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(waiting)}

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}
    try:
        return await Bodies(cast("Any", Inline())).read(Request(scope, receive), model)
    except Problem as problem:
        assert problem.status_code in (413, 422) or len(body) > SMALL_OCTETS
        members = json.loads(bytes(problem.response().body))
        assert members["status"] == problem.status_code
        return None


def _values(found: object) -> Iterator[object]:
    if isinstance(found, dict):
        for key, value in found.items():
            yield key
            yield from _values(value)
    elif isinstance(found, list):
        for value in found:
            yield from _values(value)
    else:
        yield found
