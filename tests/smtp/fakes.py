"""Stand-ins for what the SMTP server is given: intake, login, threads. They record and obey."""

import asyncio
import contextlib
import hashlib
import socket
import ssl
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace

from server import scram
from server.arrival import Arrival, Receipt
from server.login import Identity, scram_verifier
from server.refusal import Refusal
from server.smtp.server import SmtpServer
from server.smtp.settings import SmtpSettings
from storage.errors import Full
from storage.records import Spooled
from tests.fakes import FakeClock

Hook = Callable[..., Awaitable[None]]

HOST = "mx.example.org"


@dataclass
class FakeWriter:
    spools: "FakeSpools"
    content: bytearray = field(default_factory=bytearray)
    state: str = "open"

    def write(self, octets) -> None:
        if self.spools.failure is not None:
            raise self.spools.failure
        self.content += octets
        self.spools.largest_write = max(self.spools.largest_write, len(octets))

    def finish(self) -> Spooled:
        self.state = "finished"
        content = bytes(self.content)
        return Spooled(f"spool-{id(self)}", len(content), hashlib.sha256(content).hexdigest())

    def discard(self) -> None:
        self.state = "discarded"


@dataclass
class FakeSpools:
    writers: list[FakeWriter] = field(default_factory=list)
    failure: Exception | None = None
    has_room: bool = True
    largest_write: int = 0

    def open(self) -> FakeWriter:
        if not self.has_room:
            raise Full("at the reserve")
        writer = FakeWriter(self)
        self.writers.append(writer)
        return writer


class FakeIntake:
    """Accepts everything unless told otherwise: `refusals` maps an address or a step's name."""

    def __init__(self) -> None:
        self.spools = FakeSpools()
        self.arrivals: list[Arrival] = []
        self.calls: list[tuple] = []
        self.refusals: dict[str, Exception] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.late: dict[str, Refusal] = {}  # refused at the end of content, by recipient
        self.entered = asyncio.Event()

    def spool(self) -> FakeWriter:
        return self.spools.open()

    async def _step(self, name: str, *details) -> None:
        self.calls.append((name, *details))
        self.entered.set()
        if name in self.gates:
            await self.gates[name].wait()
        if name in self.refusals:
            raise self.refusals[name]

    async def connected(self, peer, *, source) -> None:
        await self._step("connected", peer)

    async def helo(self, peer, *, source) -> None:
        await self._step("helo", peer)

    async def sender(self, peer, identity, envelope, declared_octets, *, source=None) -> None:
        await self._step("sender", peer, identity, envelope, declared_octets)

    async def recipient(self, peer, identity, envelope, recipient, *, source=None) -> None:
        await self._step("recipient", peer, identity, envelope, recipient)
        if recipient.address in self.refusals:
            raise self.refusals[recipient.address]

    async def accept(self, arrival: Arrival, *, wait_applied: bool = False) -> Receipt:
        await self._step("accept", arrival)
        self.arrivals.append(arrival)
        return Receipt((f"msg_{len(self.arrivals)}",))

    async def accept_each(self, arrival: Arrival) -> tuple[Receipt | Refusal, ...]:
        """As intake: whom `late` names is refused, all others get one message."""
        await self._step("accept", arrival)
        kept = [one for one in arrival.envelope.recipients if one.address not in self.late]
        if kept:
            self.arrivals.append(replace(arrival, envelope=replace(arrival.envelope, recipients=tuple(kept))))
        receipt = Receipt((f"msg_{len(self.arrivals)}",))
        return tuple(self.late.get(one.address, receipt) for one in arrival.envelope.recipients)

    def contents(self) -> list[bytes]:
        return [arrival.content for arrival in self.arrivals if isinstance(arrival.content, bytes)]


class FakeLogin:
    """Knows one user."""

    def __init__(self, user: str = "ann@example.org", password: str = "pencil") -> None:
        self.known = (user, password)

    async def check(self, *, protocol: str, user: str, password: str, peer: str) -> Identity:
        assert protocol == "smtp"
        if (user, password) != self.known:
            raise Refusal(535, "5.7.8", "Authentication credentials invalid")
        return Identity("org_1", "inb_1", user, "password", "crd_1")

    async def vouched(self, address: str) -> Identity | None:
        if address != self.known[0]:
            return None
        return Identity("org_1", "inb_1", address, "host", "inb_1")

    async def scram_keys(self, user: str, *, peer: str) -> scram.Keys:
        password = self.known[1] if user == self.known[0] else "made up"
        iterations, *parts = scram_verifier(password, salt=b"salt" * 4).split("$")
        salt, stored, server = map(b64decode, parts)
        return scram.Keys(int(iterations), salt, (scram.Verifier("crd_1", stored, server),))

    async def scram(self, *, protocol: str, user: str, credential_id: str | None, peer: str) -> Identity:
        assert protocol == "smtp"
        if credential_id is None or user != self.known[0]:
            raise Refusal(535, "5.7.8", "Authentication credentials invalid")
        return Identity("org_1", "inb_1", user, "password", credential_id)


class InlineThreads:
    """Runs file work at once; the loop has its turn in between, as with real threads."""

    async def run(self, function, *args):
        await asyncio.sleep(0)
        return function(*args)


@dataclass
class Rig:
    """A running server with what it was given, and the ports of its four doors."""

    server: SmtpServer
    intake: FakeIntake
    login: FakeLogin
    clock: FakeClock
    mx: int
    submission: int
    submissions: int
    lmtp: int


def listener() -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.bind(("127.0.0.1", 0))
    bound.listen(128)
    bound.setblocking(False)
    return bound


@contextlib.asynccontextmanager
async def running(
    settings: SmtpSettings | None = None,
    *,
    tls: ssl.SSLContext | None = None,
    intake=None,
    clock=None,
    proxies=None,
) -> AsyncIterator[Rig]:
    """A server on four loopback ports, drained at the end."""
    sockets = [listener() for _ in range(4)]
    ports = [bound.getsockname()[1] for bound in sockets]
    intake = intake or FakeIntake()
    login, clock = FakeLogin(), clock or FakeClock()
    server = SmtpServer(
        intake=intake,
        login=login,
        threads=InlineThreads(),
        clock=clock,
        settings=settings or SmtpSettings(),
        hostname=HOST,
        tls_context=lambda: tls,
    )
    await server.start(
        mx=sockets[:1],
        submission=sockets[1:2],
        submissions=sockets[2:3],
        lmtp=sockets[3:],
        proxied=sockets if proxies is not None else (),
        proxies=proxies,
    )
    try:
        yield Rig(server, intake, login, clock, *ports)
    finally:
        await server.drain(0.2)


class Client:
    """A raw client: octets out, whole replies in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def reply(self) -> str:
        """The next reply, lines joined by '|'; '' when the server closed."""
        lines = []
        while True:
            async with asyncio.timeout(10):
                line = await self.reader.readline()
            if not line:
                return "|".join(lines)
            assert line.endswith(b"\r\n")
            assert len(line) <= 512
            lines.append(line[:-2].decode())
            if line[3:4] == b" ":
                return "|".join(lines)

    async def ask(self, line: str | bytes) -> str:
        self.send((line.encode() if isinstance(line, str) else line) + b"\r\n")
        return await self.reply()

    async def ask_all(self, *lines: str) -> list[str]:
        return [await self.ask(line) for line in lines]

    def send(self, octets: bytes) -> None:
        self.writer.write(octets)

    async def send_segments(self, segments) -> None:
        """Each segment in a write of its own, handed to the kernel before the next."""
        for segment in segments:
            self.writer.write(segment)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def is_closed(self) -> bool:
        """Whether the server has closed and sent nothing more."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True

    def close(self) -> None:
        self.writer.close()


@contextlib.asynccontextmanager
async def connected(
    port: int, *, tls: bool = False, greet: bool = True, hello: str = "EHLO"
) -> AsyncIterator[Client]:
    """A client behind the greeting, and behind EHLO when asked."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting() if tls else None)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client = Client(reader, writer)
    try:
        assert (await client.reply()).startswith("220 ")
        if greet:
            assert (await client.ask(f"{hello} client.example")).startswith("250-")
        yield client
    finally:
        client.close()


def trusting() -> ssl.SSLContext:
    """A client context that takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def until(condition: Callable[[], bool]) -> None:
    """Give the loop its turns until a condition holds that is certain to come."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)
