"""A real IMAP server on loopback for tests: SQLite, Maildir, journal, intake and login as always."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from server.arrival import IntakeSettings
from server.clock import SystemClock
from server.imap.limits import Bounds
from server.imap.render import render
from server.imap.server import ImapServer
from server.intake import Intake
from server.login import Login, hash_password, scram_verifier
from server.threads import Hub, Threads
from server.tls import ServerTls, make_self_signed
from storage import accounts, ids, mailboxes
from storage.records import Accepted, Decision, Envelope, LocalTarget, Peer, Placed, Recipient, Source
from storage.store import Store
from tests.databases import migrated

T = TypeVar("T")
PASSWORD = "correct-horse"
HASH = hash_password(PASSWORD)
SCRAM = scram_verifier(PASSWORD)


@dataclass(frozen=True, slots=True)
class Settings:
    max_connections: int = 100
    max_connections_per_inbox: int = 200
    login_timeout_seconds: int = 60
    idle_timeout_seconds: int = 1800
    max_literal_octets: int = 4 * 1024 * 1024


QUICK = Bounds(failure_delay_seconds=0.0, spool_threshold_octets=64 * 1024, closing_seconds=2.0)


@dataclass(frozen=True, slots=True)
class Inbox:
    organization_id: str
    mailbox_id: str
    address: str
    password: str = PASSWORD


@dataclass
class Appliance:
    """The server in a thread of its own, for blocking clients."""

    directory: Path
    settings: Settings = field(default_factory=Settings)
    bounds: Bounds = QUICK
    clock: Any = field(default_factory=SystemClock)
    host: str = "127.0.0.1"
    plain_port: int = 0
    tls_port: int = 0
    _names: Iterator[int] = field(default_factory=itertools.count)

    def start(self) -> None:
        self.store = Store.open(
            directory=self.directory,
            database_url=migrated(self.directory / "mailagents.sqlite"),
            render=render,
            segment_octets=8 << 20,
            spool_threshold_octets=256 * 1024,
        )
        self.tls = ServerTls(*make_self_signed(self.directory / "tls", names=["localhost", "127.0.0.1"]))
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        ready = threading.Event()
        self.loop.call_soon(ready.set)
        self._thread.start()
        ready.wait()
        self.call(self._serve())

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    async def _serve(self) -> None:
        hub = Hub()
        self.threads = Threads(self.store, hub)
        intake = Intake(
            threads=self.threads,
            routing=None,  # type: ignore[arg-type]  # APPEND asks none of these
            rulebook=None,  # type: ignore[arg-type]
            clock=self.clock,
            settings=IntakeSettings("mail.example", 60, 60),
            verifier=None,
            signer=None,  # type: ignore[arg-type]
        )
        self.imap = ImapServer(
            threads=self.threads,
            hub=hub,
            login=Login(self.threads, self.clock),
            intake=intake,
            maildir=self.store.maildir,
            clock=self.clock,
            settings=self.settings,
            hostname="mail.example",
            tls_context=self.tls.context,
            bounds=self.bounds,
        )
        plain, implicit = _listening(), _listening()
        self.plain_port, self.tls_port = plain.getsockname()[1], implicit.getsockname()[1]
        await self.imap.start(plain=[plain], implicit=[implicit])

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the server's loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def stop(self) -> None:
        self.call(self.imap.drain(0.5))
        self.call(self._close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.store.close()

    async def _close(self) -> None:
        await asyncio.to_thread(self.threads.close)

    def new_inbox(self, **values: Any) -> Inbox:
        """Make an organization with one inbox."""
        number = next(self._names)
        domain, at = f"d{number}.example", self.clock.now()

        def unit(connection: Any) -> Inbox:
            organization = accounts.add_organization(connection, name=f"org {number}", at=at)
            accounts.add_domain(connection, organization_id=organization.id, name=domain, at=at)
            mailbox = accounts.add_mailbox(
                connection, organization_id=organization.id, address=f"ann@{domain}", at=at, **values
            )
            accounts.add_credential(
                connection,
                organization_id=organization.id,
                mailbox_id=mailbox.id,
                name="test",
                password_hash=HASH,
                scram_verifier=SCRAM,
                at=at,
            )
            return Inbox(organization.id, mailbox.id, mailbox.address)

        return self.store.database.write(unit)

    def deliver(self, inbox: Inbox, content: bytes, *, prefix: bytes = b"", folder: str = "INBOX") -> Placed:
        """Put a message into a folder as reception does, and wait until it is there."""
        record = Accepted(
            message_id=ids.new("msg"),
            organization_id=inbox.organization_id,
            accepted_at=self.clock.now(),
            source=Source.MX,
            peer=Peer("192.0.2.1"),
            envelope=Envelope("bob@elsewhere.example", (Recipient(inbox.address),)),
            decision=Decision(),
            verdicts=(),
            trace=b"",
            local=(LocalTarget(inbox.mailbox_id, inbox.address, folder, prefix),),
            remote=(),
            content=content,
        )
        return self.call(self.threads.accept_applied(record))[0]

    def folder_id(self, inbox: Inbox, name: str = "INBOX") -> int:
        found = self.store.database.read(
            lambda c: mailboxes.find_folder(c, mailbox_id=inbox.mailbox_id, name=name)
        )
        assert found is not None
        return found.id


def _listening() -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", 0))
    made.listen()
    made.setblocking(False)
    return made


@contextlib.contextmanager
def running(directory: Path, **values: Any) -> Iterator[Appliance]:
    """A started appliance, stopped at the end."""
    appliance = Appliance(directory, **values)
    appliance.start()
    try:
        yield appliance
    finally:
        appliance.stop()


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Wire:
    """A client that speaks by octets: sends lines, reads responses with their literals."""

    def __init__(self, appliance: Appliance, *, tls: bool = True) -> None:
        port = appliance.tls_port if tls else appliance.plain_port
        self.socket: socket.socket = socket.create_connection((appliance.host, port), timeout=20)
        if tls:
            self.socket = client_context().wrap_socket(self.socket)
        self._buffer = b""
        self.greeting = self.line()
        self._tags = itertools.count(1)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> bytes:
        """One response line without CRLF, its literals in place; b'' at the end of the stream."""
        line = self._until(b"\r\n")
        while line.endswith(b"}") and b"{" in line and line[line.rindex(b"{") + 1 : -1].isdigit():
            octets = int(line[line.rindex(b"{") + 1 : -1])
            while len(self._buffer) < octets and self._fill():
                pass
            line += b"\r\n" + self._buffer[:octets]
            self._buffer = self._buffer[octets:]
            line += self._until(b"\r\n")
        return line

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer and self._fill():
            pass
        line, _, self._buffer = self._buffer.partition(mark)
        return line

    def _fill(self) -> bool:
        try:
            data = self.socket.recv(65536)
        except (ConnectionError, ssl.SSLError):
            return False
        self._buffer += data
        return bool(data)

    def command(self, line: bytes | str) -> tuple[list[bytes], bytes]:
        """Send a command; returns its untagged responses and its completion without the tag."""
        tag = b"t%d" % next(self._tags)
        text = line.encode() if isinstance(line, str) else line
        self.send(tag + b" " + text + b"\r\n")
        return self.answer(tag)

    def answer(self, tag: bytes) -> tuple[list[bytes], bytes]:
        untagged = []
        while True:
            found = self.line()
            if found.startswith(tag + b" "):
                return untagged, found[len(tag) + 1 :]
            assert found, f"connection ended; untagged: {untagged}"
            untagged.append(found)

    def ok(self, line: bytes | str) -> list[bytes]:
        untagged, completion = self.command(line)
        assert completion.startswith(b"OK"), completion
        return untagged

    def login(self, inbox: Inbox) -> Wire:
        self.ok(f"LOGIN {inbox.address} {inbox.password}")
        return self

    def append(self, folder: str, message: bytes, extra: str = "") -> bytes:
        tag = b"t%d" % next(self._tags)
        self.send(tag + f" APPEND {folder} {extra}{{{len(message)}+}}\r\n".encode() + message + b"\r\n")
        return self.answer(tag)[1]

    def close(self) -> None:
        self.socket.close()


Unit = Callable[[Any], T]
