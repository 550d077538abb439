"""A sender with all of transport security, and other servers' domains: real sockets, DNS, TLS, HTTPS."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import uvloop

from server.delivery.attempt import Group, Transmitter
from server.delivery.exchangers import Exchangers
from server.delivery.letter import Letter
from server.delivery.pool import Pool
from server.delivery.protection import Protection
from server.dns import CachingResolver
from server.next_hop import parse_next_hop
from server.smtp.client import Timeouts
from server.threads import Hub, Threads
from server.tls import opportunistic_context, verifying_context
from server.transport.fetching import PolicyFetcher
from server.transport.policies import StsPolicies
from server.transport.results import TlsResults
from storage.db import Database
from storage.records import Outcome
from tests.databases import migrated
from tests.delivery.test_attempt import delivery
from tests.delivery.world import Shelf
from tests.fakes import FakeClock
from tests.nameserver import Nameserver
from tests.transport.authority import Holder, make, server_context

LETTER = Letter(Path("/nowhere"), 14, False, False, False, b"a: b\r\n\r\nbody\r\n")
DOMAIN, HOST, OTHER = "peer.test", "mx.peer.test", "mx2.peer.test"
ROOT = make("trusted root", ca=True)


@dataclass
class Peer:
    """A mail server of somebody else. context: its TLS, None offers none; garbled: breaks each handshake."""

    context: ssl.SSLContext | None = None
    address: str = "127.0.0.1"
    garbled: bool = False
    refuses: bool = False
    requiretls: bool = False
    messages: list[bytes] = field(default_factory=list)
    clear: list[bytes] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    asked_names: list[str | None] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    server: asyncio.Server | None = None

    async def start(self, port: int = 0) -> None:
        if self.context is not None:
            self.context.sni_callback = lambda _ssl, name, _context: self.asked_names.append(name)
        self.server = await asyncio.start_server(self._serve, self.address, port)
        self.port = self.server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        if self.server is not None:
            self.server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        secure = False
        try:
            writer.write(b"220 peer.example ESMTP\r\n")
            while line := (await reader.readline()).decode("latin-1"):
                verb = line.split()[0].upper()
                self.commands.append(line.strip())
                if verb == "EHLO":
                    offered = self.context is not None or self.garbled or self.refuses
                    more = ["STARTTLS"] if offered and not secure else []
                    more += ["REQUIRETLS"] if self.requiretls and secure else []
                    told = ["peer.example", "8BITMIME", *more]
                    writer.write(
                        "".join(f"250{'-' if one is not told[-1] else ' '}{one}\r\n" for one in told).encode()
                    )
                elif verb == "STARTTLS" and self.refuses:
                    writer.write(b"454 4.7.0 not now\r\n")
                elif verb == "STARTTLS":
                    writer.write(b"220 go on\r\n")
                    await writer.drain()
                    if self.garbled:
                        await reader.readexactly(5)
                        writer.write(b"500 this is no handshake at all\r\n" * 10)
                        break
                    assert self.context is not None
                    await writer.start_tls(self.context)
                    secure = True
                elif verb == "DATA":
                    writer.write(b"354 go on\r\n")
                    content = await reader.readuntil(b"\r\n.\r\n")
                    (self.messages if secure else self.clear).append(content)
                    writer.write(b"250 2.0.0 taken\r\n")
                elif verb == "QUIT":
                    writer.write(b"221 2.0.0 bye\r\n")
                    break
                else:
                    writer.write(b"250 2.0.0 ok\r\n")
            await writer.drain()
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@dataclass
class PolicyHost:
    """The host that serves MTA-STS policies. answer: all of what it says to a request."""

    context: ssl.SSLContext
    policies: dict[str, str] = field(default_factory=dict)
    answer: bytes | None = None
    stalls: bool = False
    requests: list[str] = field(default_factory=list)
    port: int = 0
    server: asyncio.Server | None = None

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)
        self.port = self.server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = head.split("\r\n")
            host = next((one[5:].strip() for one in lines if one.lower().startswith("host:")), "")
            self.requests.append(f"{lines[0]} {host}")
            if self.stalls:
                await reader.read()
            writer.write(self._answer(host))
            await writer.drain()
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _answer(self, host: str) -> bytes:
        if self.answer is not None:
            return self.answer
        text = self.policies.get(host.removeprefix("mta-sts."))
        if text is None:
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        body = text.encode()
        return (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n"
            % len(body)
        ) + body


class World:
    """Our side, with a zone and a policy host that a test fills."""

    def __init__(self, directory: Path, database: Database, clock: FakeClock) -> None:
        self.directory = directory
        self.database = database
        self.clock = clock
        self.dns = Nameserver({})
        self.peers: list[Peer] = []
        self.port = 0
        self.web: PolicyHost
        self.threads: Threads
        self.resolver: CachingResolver
        self.sts: StsPolicies
        self.results: TlsResults
        self.pool: Pool
        self.transmitter: Transmitter

    async def start(self) -> None:
        await self.dns.start()
        names = [f"mta-sts.{DOMAIN}"]
        self.web = PolicyHost(server_context(self.directory / "web", make("web", by=ROOT, names=names)))
        await self.web.start()
        self.threads = Threads(Shelf(self.database, self.directory), Hub())  # type: ignore[arg-type]
        self.begin()

    def trusted(self) -> ssl.SSLContext:
        path = self.directory / "trusted.pem"
        if not path.exists():
            from cryptography.hazmat.primitives.serialization import Encoding

            path.write_bytes(ROOT.certificate.public_bytes(Encoding.PEM))
        return verifying_context(path)

    def begin(self, *, dane: bool = True, sts: bool = True, seconds: float = 10.0) -> None:
        """Make our side anew, as after a restart."""
        self.resolver = CachingResolver(
            servers=(self.dns.address,), timeout_seconds=2.0, cache_entries=1000, clock=self.clock
        )
        fetcher = PolicyFetcher(
            resolver=self.resolver,
            allow_private=True,
            make_context=self.trusted,
            port=self.web.port,
            seconds=seconds,
        )
        self.sts = StsPolicies(
            resolver=self.resolver, fetcher=fetcher, threads=self.threads, clock=self.clock
        )
        self.results = TlsResults(
            threads=self.threads, resolver=self.resolver, clock=self.clock, spread_seconds=1
        )
        self.pool = Pool(
            hostname="us.test",
            tls=opportunistic_context(),
            timeouts=Timeouts(connect=2, command=2, data=2, final=2),
            clock=self.clock,
            idle_seconds=5,
            messages_per_connection=100,
            verifying=self.trusted,
        )
        self.transmitter = Transmitter(
            pool=self.pool,
            exchangers=Exchangers(
                self.resolver, hostname="us.test", allow_private_addresses=True, port=self.port
            ),
            threads=None,  # type: ignore[arg-type]  # content comes from memory
            clock=self.clock,
            hostname="us.test",
            dice=random.Random(1),
            protection=Protection(resolver=self.resolver, sts=self.sts if sts else None, dane=dane),
            results=self.results,
        )

    async def stop(self) -> None:
        self.pool.close()
        await self.resolver.close()
        for peer in self.peers:
            peer.stop()
        assert self.web.server is not None
        self.web.server.close()
        await self.dns.stop()
        await asyncio.to_thread(self.threads.close)

    async def host(self, peer: Peer, name: str = HOST, *, preference: int = 10) -> Peer:
        """Let a server run and be a host of the domain."""
        peer.address = f"127.0.0.{len(self.peers) + 1}"
        await peer.start(self.port)
        self.peers.append(peer)
        if not self.port:
            self.port = peer.port
            self.begin()
        self.dns.update({name: {"A": [peer.address]}})
        records = self.dns.zone.setdefault(DOMAIN, {}).setdefault("MX", [])
        records.append(f"{preference} {name}")
        return peer

    def policy(self, mode: str, *mx: str, id: str = "1", max_age: int = 86400) -> None:
        """Publish an MTA-STS policy."""
        self.dns.update(
            {
                f"_mta-sts.{DOMAIN}": {"TXT": [f"v=STSv1; id={id};"]},
                f"mta-sts.{DOMAIN}": {"A": ["127.0.0.1"]},
            }
        )
        named = "".join(f"mx: {one}\n" for one in mx or (HOST,))
        self.web.policies[DOMAIN] = f"version: STSv1\nmode: {mode}\n{named}max_age: {max_age}\n"

    def tlsa(self, *records: str, name: str = HOST) -> None:
        """Publish TLSA records in a zone that DNSSEC proves."""
        self.dns.authenticated = True
        self.dns.update({f"_25._tcp.{name}": {"TLSA": list(records)}})

    async def send(
        self, *, letter: Letter = LETTER, number: int = 1, hop: str = "mx", **envelope: Any
    ) -> Outcome:
        one = delivery(number, DOMAIN)
        if envelope:
            one = replace(one, envelope=replace(one.envelope, **envelope))

        async def begin(_deliveries: object) -> None:
            return

        sent = await self.transmitter.send(Group(DOMAIN, parse_next_hop(hop), (one,)), letter, begin=begin)
        return sent[one.id]

    async def later(self, seconds: float) -> None:
        """Let time pass; idle connections of before are gone."""
        self.clock.advance(seconds)
        self.pool.close()

    def counted(self) -> dict[tuple[str, str], int]:
        """What was counted for reports and not written yet: by policy and result."""
        found: dict[tuple[str, str], int] = {}
        for (_, session), count in self.results._pending.items():
            key = session.reported.type.value, session.fault.type.value if session.fault else "success"
            found[key] = found.get(key, 0) + count
        return found


def certified(
    directory: Path, name: str, *names: str, by: Holder | None = ROOT, **given: Any
) -> ssl.SSLContext:
    """The context of a server with a certificate for names."""
    return server_context(directory / name, make(name, by=by, names=names, **given))


@asynccontextmanager
async def running(directory: Path, database: Database | None = None) -> AsyncIterator[World]:
    """A world, its sockets closed at the end."""
    opened = database or Database.open(migrated(directory / "one.sqlite"))
    world = World(directory, opened, FakeClock())
    await world.start()
    try:
        yield world
    finally:
        await world.stop()
        if database is None:
            opened.close()


def go(
    directory: Path, scenario: Callable[[World], Awaitable[None]], database: Database | None = None
) -> None:
    """Run a scenario in a world on the loop that the daemon has."""

    async def whole() -> None:
        async with asyncio.timeout(60), running(directory, database) as world:
            await scenario(world)

    uvloop.run(whole())
