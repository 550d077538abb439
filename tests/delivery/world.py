"""A queue with a real database and real files, and stand-ins for what lies around it."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select

from server.arrival import Arrival, Receipt
from server.delivery.scheduler import Scheduler
from server.dns import Answer, DnsFailure, Mx, NoAnswer, NoSuchDomain
from server.refusal import Refusal
from server.routing import Forward, Local, Resolution
from server.sections_delivery import Delivery as DeliverySettings
from server.threads import Hub, Threads
from storage import events, schema
from storage.db import Database
from storage.records import Event, Mailbox
from tests.fakes import FakeClock
from tests.storage.queued import NOW, delivery_values, put

MESSAGE = b"Subject: hello\r\n\r\n.body\r\n"


@dataclass
class Zone:
    """DNS answers by name and type: records, or the failure to raise."""

    records: dict[tuple[str, str], Sequence[Any] | DnsFailure] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def mx(self, domain: str, *hosts: tuple[int, str]) -> "Zone":
        self.records[domain, "MX"] = [Mx(*host) for host in hosts]
        return self

    def a(self, host: str, *addresses: str) -> "Zone":
        for address in addresses:
            kind = "AAAA" if ":" in address else "A"
            self.records.setdefault((host, kind), [])
            self.records[host, kind] = [*self._list(host, kind), address]
        return self

    def fails(self, name: str, kind: str, failure: DnsFailure) -> "Zone":
        self.records[name, kind] = failure
        return self

    def _list(self, host: str, kind: str) -> Sequence[Any]:
        found = self.records[host, kind]
        assert not isinstance(found, DnsFailure)
        return found

    async def resolve(self, name: str, rdtype: str) -> Answer:
        self.asked.append((name, rdtype))
        found = self.records.get((name, rdtype))
        if isinstance(found, DnsFailure):
            raise found
        if found is None:
            known = any(key == name for key, _ in self.records)
            raise NoAnswer(f"{name}: no {rdtype}") if known else NoSuchDomain(f"{name}: no such domain")
        return Answer(tuple(found), 60, authenticated=False)


@dataclass
class HomeDomains:
    """Routing's two questions: all addresses are inboxes, but those that go on elsewhere."""

    domains: frozenset[str] = frozenset()
    forwards: dict[str, str] = field(default_factory=dict)

    async def is_local(self, domain: str) -> bool:
        return domain in self.domains

    async def resolve(self, address: str) -> Resolution:
        target = self.forwards.get(address)
        if target is not None:
            return Forward("org_a", target)
        return Local(Mailbox("inb_1", "org_a", address, "", "active", 0, 0, "", 0), address)


@dataclass
class Inbox:
    """An intake that keeps what it gets, or refuses it."""

    arrivals: list[Arrival] = field(default_factory=list)
    refusal: Refusal | None = None
    silent_about: frozenset[str] = frozenset()
    judged: list[dict[str, Any]] = field(default_factory=list)

    def may_notify(self, **facts: Any) -> bool:
        self.judged.append(facts)
        return facts["recipient"] not in self.silent_about

    async def accept(self, arrival: Arrival, *, wait_applied: bool = False) -> Receipt:
        if self.refusal is not None:
            raise self.refusal
        if arrival.message_id not in [one.message_id for one in self.arrivals]:
            self.arrivals.append(arrival)
        return Receipt((arrival.message_id or "msg_made",))


@dataclass
class Shelf:
    """The parts of the store that delivery uses."""

    database: Database
    directory: Path

    def message_path(self, message_id: str) -> Path:
        return self.directory / message_id

    def aside_path(self, name: str) -> Path:
        return self.directory / name


class World:
    """One scheduler with everything around it."""

    def __init__(self, database: Database, directory: Path, **settings: Any) -> None:
        self.database = database
        self.shelf = Shelf(database, directory / "spool")
        self.shelf.directory.mkdir(exist_ok=True)
        self.outbox = directory / "outbox"
        self.clock = FakeClock(NOW)
        self.zone = Zone()
        self.home = HomeDomains()
        self.inbox = Inbox()
        self.hub = Hub()
        self.settings = settings
        self.threads: Threads
        self.scheduler: Scheduler

    def queue(self, delivery_id: str, *, message_id: str, content: bytes = MESSAGE, **given: Any) -> None:
        """Put one delivery and its message's file into the queue."""
        self.shelf.message_path(message_id).write_bytes(content)
        put(self.database, delivery_values(delivery_id, message_id=message_id, **given))

    def make(self, **given: Any) -> Scheduler:
        """Make a scheduler on this world's loop."""
        settings = {
            "connect_timeout_seconds": 2.0,
            "command_timeout_seconds": 2.0,
            "data_timeout_seconds": 2.0,
            **self.settings,
        }
        return Scheduler(
            threads=self.threads,
            hub=self.hub,
            resolver=self.zone,
            clock=self.clock,
            routing=self.home,  # type: ignore[arg-type]  # answers the questions asked
            intake=self.inbox,  # type: ignore[arg-type]  # takes the one call made
            settings=DeliverySettings(**settings),
            hostname="us.test",
            outbox=self.outbox,
            tls_context=given.get("tls"),
            jitter=random.Random(1),
            sources=given.get("sources"),
        )

    @asynccontextmanager
    async def running(self, **given: Any) -> AsyncIterator[Scheduler]:
        """Run the scheduler for a while."""
        self.threads = Threads(self.shelf, self.hub)  # type: ignore[arg-type]  # the parts that are used
        self.scheduler = self.make(**given)
        await self.scheduler.start()
        try:
            yield self.scheduler
        finally:
            await self.scheduler.stop(2)
            await asyncio.to_thread(self.threads.close)

    async def later(self, seconds: float) -> None:
        """Let time pass and the scheduler see it."""
        self.clock.advance(seconds)
        self.scheduler.wake()

    def states(self) -> dict[str, str]:
        """Return the state of every delivery."""
        query = select(schema.deliveries.c.id, schema.deliveries.c.state)
        return self.database.read(lambda c: {row[0]: row[1] for row in c.execute(query)})

    async def until(self, **states: str) -> None:
        """Wait until deliveries have these states."""
        while True:
            now = await asyncio.to_thread(self.states)
            if all(now.get(key) == state for key, state in states.items()):
                return
            await asyncio.sleep(0.01)

    def row(self, delivery_id: str) -> Any:
        """Return a delivery's row."""
        query = select(schema.deliveries).where(schema.deliveries.c.id == delivery_id)
        return self.database.read(lambda c: c.execute(query).one())

    def log(self, *kinds: str) -> list[Event]:
        """Return the events of these kinds, or all."""
        return self.database.read(lambda c: events.after(c, seq=0, kinds=kinds or None, limit=1000))

    def data(self, kind: str) -> list[Mapping[str, object]]:
        """Return what events of one kind say."""
        return [event.data for event in self.log(kind)]
