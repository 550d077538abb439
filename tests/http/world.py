"""The appliance that HTTP tests ask: organizations `ours` and `other`, and a client with keys."""

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from server import sections
from server.arrival import Arrival, Receipt
from server.config import Settings
from server.http.api import make_app
from server.imap.render import render
from server.login import KEY_MARK, Login
from server.mail.address import domain_of
from server.routing import Routing
from server.sections import Http, Server, Smtp
from server.threads import Hub, Threads
from storage import accounts, ids
from storage.records import (
    Accepted,
    ApiKey,
    Decision,
    Envelope,
    Event,
    LocalTarget,
    Mailbox,
    Peer,
    Recipient,
    RemoteTarget,
    Source,
    Spooled,
    Verdict,
)
from storage.store import Store
from tests.fakes import FakeClock

SECOND = 1_000_000
HOSTNAME = "mail.example.org"
ALL_SCOPES = frozenset(
    {
        "inbox:read",
        "inbox:write",
        "message:read",
        "message:send",
        "message:delete",
        "domain:admin",
        "event:read",
        "suppression:write",
        "org:admin",
    }
)
MESSAGE = (
    b"From: Ada <ada@far.example>\r\nTo: one@ours.example\r\nCc: <c@far.example>\r\n"
    b"Subject: Hello =?utf-8?q?W=C3=B6rld?=\r\nMessage-ID: <first@far.example>\r\n"
    b"Date: Fri, 30 Jan 2026 09:00:00 +0100\r\nMIME-Version: 1.0\r\n"
    b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n'
    b"--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nGood day.\r\n"
    b"--b\r\nContent-Type: text/html\r\n\r\n<p onclick='x()'>Good day.</p>\r\n"
    b'--b\r\nContent-Type: application/pdf; name="a.pdf"\r\nContent-Disposition: attachment; '
    b'filename="a.pdf"\r\nContent-Transfer-Encoding: base64\r\n\r\nJVBERg==\r\n--b--\r\n'
)


@dataclass
class FakeIntake:
    """Takes what it is given into the real store, unless a test says it refuses."""

    threads: Threads
    clock: FakeClock
    arrivals: list[Arrival] = field(default_factory=list)
    refuse_sender: BaseException | None = None
    refuse_recipient: BaseException | None = None
    refuse_content: BaseException | None = None
    hold: asyncio.Event | None = None

    def spool(self):
        return self.threads.store.spool()

    async def sender(self, peer, identity, envelope, declared_octets) -> None:
        if self.refuse_sender is not None:
            raise self.refuse_sender

    async def recipient(self, peer, identity, envelope, recipient) -> None:
        if self.refuse_recipient is not None:
            raise self.refuse_recipient

    async def accept(self, arrival: Arrival, *, wait_applied: bool = False) -> Receipt:
        if self.hold is not None:
            await self.hold.wait()
        if self.refuse_content is not None:
            raise self.refuse_content
        self.arrivals.append(arrival)
        now = self.clock.now()
        record = Accepted(
            message_id=ids.new("msg"),
            organization_id=arrival.organization_id or "",
            accepted_at=now,
            source=arrival.source,
            peer=arrival.peer,
            envelope=arrival.envelope,
            decision=Decision(),
            verdicts=(),
            trace=b"",
            local=() if arrival.keep is None else (arrival.keep,),
            remote=tuple(
                RemoteTarget(ids.new("dlv"), one, domain_of(one.address), now, now + 3600 * SECOND)
                for one in arrival.envelope.recipients
            ),
            content=arrival.content,
            idempotency_key=arrival.idempotency_key,
        )
        await self.threads.accept_applied(record)
        return Receipt((record.message_id,))

    def content(self, position: int = -1) -> bytes:
        """The octets of an arrival."""
        content = self.arrivals[position].content
        if isinstance(content, Spooled):
            return self.threads.store.read_spooled(content).read_bytes()
        return content


class World:
    """Everything, with a client that answers like a blocking one."""

    def __init__(self, directory: Path, **sections: Any) -> None:
        self._directory = directory
        self._sections = sections
        self._runner = asyncio.Runner()
        self._stack = contextlib.AsyncExitStack()
        self._number = 0

    def __enter__(self) -> "World":
        self._runner.__enter__()
        self.run(self._open())
        return self

    def __exit__(self, *_) -> None:
        self.run(self._stack.aclose())
        self._runner.__exit__(None, None, None)

    def run(self, work: Awaitable[Any]) -> Any:
        async def whole():
            return await work

        return self._runner.run(whole())

    async def _open(self) -> None:
        self.clock = FakeClock()
        self.store = Store.open(
            directory=self._directory,
            database_url=f"sqlite:///{self._directory / 'mailagents.sqlite'}",
            render=render,
            segment_octets=1 << 20,
            spool_threshold_octets=256 * 1024,
        )
        self._stack.callback(self.store.close)
        self.hub = Hub()
        self.threads = Threads(self.store, self.hub)
        self._stack.callback(self.threads.close)
        self.login = Login(self.threads, self.clock)
        self.intake = FakeIntake(self.threads, self.clock)
        self.settings = Settings(
            server=Server(hostname=HOSTNAME, data_directory=self._directory),
            store=sections.Store(spool_threshold_octets=256 * 1024),
            http=Http(max_body_octets=4 << 20),
            smtp=Smtp(max_message_octets=2 << 20, max_recipients=100),
            **self._sections,
        )
        self.health: Callable[[], dict[str, object]] = lambda: {"ready": True}
        self.app = make_app(
            threads=self.threads,
            hub=self.hub,
            login=self.login,
            intake=self.intake,  # type: ignore[arg-type]  # it stands in
            routing=Routing(self.threads),
            maildir=self.store.maildir,
            clock=self.clock,
            settings=self.settings,
            store_health=lambda: self.health(),
        )
        self.ours, self.other = await self._tenant("ours"), await self._tenant("other")
        self.one, self.two = await self._inbox("one@ours.example"), await self._inbox("two@ours.example")
        self.theirs = await self._inbox("x@other.example")
        self.client = await self._stack.enter_async_context(self.new_client())

    def new_client(self, address: str = "192.0.2.7") -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, client=(address, 4711))
        return httpx.AsyncClient(transport=transport, base_url=f"http://{HOSTNAME}")

    async def end_lifespan(self) -> None:
        """Let the application begin and end once, as a listener does."""
        async with self.app.router.lifespan_context(self.app):
            pass

    async def _tenant(self, name: str) -> str:
        def unit(connection):
            made = accounts.add_organization(connection, name=name, at=self.clock.now())
            accounts.add_domain(
                connection, organization_id=made.id, name=f"{name}.example", at=self.clock.now()
            )
            return made.id

        return await self.threads.write(unit)

    async def _inbox(self, address: str) -> Mailbox:
        def unit(connection):
            domain = accounts.find_domain(connection, name=address.rpartition("@")[2])
            return accounts.add_mailbox(
                connection, organization_id=domain.organization_id, address=address, at=self.clock.now()
            )

        return await self.threads.write(unit)

    def inbox(self, address: str) -> Mailbox:
        """Make an inbox in the organization of its domain."""
        return self.run(self._inbox(address))

    def mailbox(self, mailbox_id: str) -> Mailbox:
        """Read one of our inboxes."""
        return self.run(
            self.threads.read(lambda c: accounts.mailbox(c, organization_id=self.ours, mailbox_id=mailbox_id))
        )

    def key(
        self,
        *scopes: str,
        organization: str | None = None,
        inbox: Mailbox | None = None,
        expires_at: int | None = None,
    ) -> str:
        """Make a key and return its secret."""
        return self.key_with_id(*scopes, organization=organization, inbox=inbox, expires_at=expires_at)[0]

    def key_with_id(
        self, *scopes: str, organization=None, inbox: Mailbox | None = None, expires_at=None
    ) -> tuple[str, ApiKey]:
        self._number += 1
        secret = f"{KEY_MARK}{'s' * 30}{self._number}"
        made = self.run(
            self.threads.write(
                lambda c: accounts.add_api_key(
                    c,
                    organization_id=organization or self.ours,
                    mailbox_id=None if inbox is None else inbox.id,
                    name="test",
                    prefix=secret[:12],
                    key_hash=hashlib.sha256(secret.encode()).digest(),
                    scopes=frozenset(scopes),
                    expires_at=expires_at,
                    at=self.clock.now(),
                )
            )
        )
        return secret, made

    def deliver(
        self,
        mailbox: Mailbox,
        content: bytes = MESSAGE,
        *,
        folder: str = "INBOX",
        verdicts: tuple[Verdict, ...] = (),
        events: tuple[Event, ...] = (),
        others: tuple[Mailbox, ...] = (),
        sender: str | None = "ada@far.example",
    ) -> str:
        """Put a message into inboxes as if it came from outside; returns its id."""
        record = Accepted(
            message_id=ids.new("msg"),
            organization_id=mailbox.organization_id,
            accepted_at=self.clock.now(),
            source=Source.MX,
            peer=Peer("198.51.100.9", 25, "far.example"),
            envelope=Envelope(sender, (Recipient(mailbox.address),)),
            decision=Decision(),
            verdicts=verdicts,
            trace=b"Received: from far.example by mail.example.org; Fri, 30 Jan 2026 09:00:01 +0100\r\n",
            local=tuple(
                LocalTarget(
                    one.id,
                    one.address,
                    folder=folder,
                    prefix=f"Delivered-To: {one.address}\r\n".encode(),
                )
                for one in (mailbox, *others)
            ),
            remote=(),
            content=content,
            events=events,
        )
        self.run(self.threads.accept_applied(record))
        return record.message_id

    def ask(
        self,
        method: str,
        path: str,
        key: str | None = None,
        *,
        json: object = None,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
        params: dict[str, object] | None = None,
    ) -> httpx.Response:
        """Send one request and return the answer."""
        given = dict(headers or {})
        if key is not None:
            given["Authorization"] = f"Bearer {key}"
        if content is not None:
            given.setdefault("Content-Type", "application/json")
        more: dict[str, Any] = {"headers": given, "params": params}
        if json is not None:
            more["json"] = json
        if content is not None:
            more["content"] = content
        return self.run(self.client.request(method, path, **more))


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Assert that an answer is a problem and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert (found["status"], found["code"]) == (status, code), found
    assert "Traceback" not in answer.text
    return found
