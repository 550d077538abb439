"""Two whole appliances in one process: real doors, real DNS, real queue; the clock alone is a fake."""

import asyncio
import random
import smtplib
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.facts import DEFAULT_LIMITS
from server.arrival import IntakeSettings
from server.delivery.dmarc_reader import DmarcReader
from server.delivery.dmarc_reporter import DmarcReporter
from server.delivery.scheduler import Scheduler
from server.delivery.tls_reader import TlsReader
from server.dns import CachingResolver
from server.imap.render import render
from server.intake import Intake
from server.login import Login
from server.operations import Context, domain_add, inbox_add, organization_add
from server.routing import Routing
from server.rulebook import Rulebook
from server.sections import Dmarc
from server.sections_delivery import Delivery
from server.sender_auth.dmarc_counts import DmarcCounts
from server.sender_auth.signer import Signer
from server.sender_auth.verify import Verifier
from server.smtp.server import SmtpServer
from server.smtp.settings import SmtpSettings
from server.threads import Hub, Threads
from storage import events
from storage.records import Event
from storage.store import Store
from tests.databases import migrated
from tests.fakes import FakeClock
from tests.nameserver import Nameserver

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Appliance:
    """One appliance with the parts that a test reaches for."""

    hostname: str
    store: Store
    threads: Threads
    clock: FakeClock
    intake: Intake
    counts: DmarcCounts
    reporter: DmarcReporter
    reader: DmarcReader
    context: Context
    port: int
    resolver: CachingResolver
    settings: Dmarc

    def new_reporter(self) -> DmarcReporter:
        """A reporter as a restarted daemon has it."""
        return DmarcReporter(
            threads=self.threads,
            intake=self.intake,
            resolver=self.resolver,
            clock=self.clock,
            settings=self.settings,
            hostname=self.hostname,
        )

    def log(self, *kinds: str) -> list[Event]:
        return self.store.database.read(lambda c: events.after(c, seq=0, kinds=kinds or None, limit=1000))

    async def told(self, kind: str, count: int) -> list[Event]:
        """Wait for so many events of a kind."""
        async with asyncio.timeout(30):
            while len(found := await asyncio.to_thread(self.log, kind)) < count:
                await asyncio.sleep(0.02)
        return found

    async def hand_in(self, content: bytes, recipient: str, *, sender: str) -> tuple[int, bytes]:
        """Bring a message as a foreign server does."""

        def talk() -> tuple[int, bytes]:
            with smtplib.SMTP("127.0.0.1", self.port, local_hostname="client.test", timeout=20) as client:
                client.ehlo()
                assert client.mail(sender)[0] == 250
                assert client.rcpt(recipient)[0] == 250
                return client.data(content)

        return await asyncio.to_thread(talk)


@asynccontextmanager
async def running(
    directory: Path,
    hostname: str,
    nameserver: Nameserver,
    clock: FakeClock,
    *,
    database_url: str = "",
    inboxes: Mapping[str, str],
    routes: Mapping[str, str] | None = None,
    **dmarc: Any,
) -> AsyncIterator[Appliance]:
    """An appliance that serves; inboxes: address to organization, whose DNS records are published."""
    directory.mkdir(exist_ok=True)
    settings = Dmarc(**{"spread_seconds": 0, **dmarc})
    store = Store.open(
        directory=directory / "data",
        database_url=database_url or migrated(directory / "one.sqlite"),
        render=render,
        segment_octets=1 << 20,
        spool_threshold_octets=256 * 1024,
    )
    hub = Hub()
    threads = Threads(store, hub)
    context = Context(store, clock, hostname, report_address=settings.report_address)
    await asyncio.to_thread(_provision, context, nameserver, inboxes)
    resolver = CachingResolver(
        servers=(nameserver.address,), timeout_seconds=3.0, cache_entries=1000, clock=clock
    )
    rulebook = Rulebook(ROOT / "conf/policies", DEFAULT_LIMITS, clock)
    routing = Routing(threads)
    counts = DmarcCounts(
        threads=threads,
        clock=clock,
        address=settings.report_address,
        period_seconds=settings.period_hours * 3600,
        spread_seconds=settings.spread_seconds,
    )
    intake = Intake(
        threads=threads,
        routing=routing,
        rulebook=rulebook,
        clock=clock,
        settings=IntakeSettings(hostname, 3600, 3600),
        verifier=Verifier(
            resolver=resolver,
            threads=threads,
            clock=clock,
            hostname=hostname,
            deadline_seconds=10,
            observes=True,
        ),
        signer=Signer(threads),
        dmarc_counts=counts,
    )
    smtp = SmtpServer(
        intake=intake,
        login=Login(threads, clock),
        threads=threads,
        clock=clock,
        settings=SmtpSettings(),
        hostname=hostname,
        tls_context=lambda: None,
    )
    door = socket.create_server(("127.0.0.1", 0))
    port = door.getsockname()[1]
    await smtp.start(mx=[door])
    scheduler = Scheduler(
        threads=threads,
        hub=hub,
        resolver=resolver,
        clock=clock,
        routing=routing,
        intake=intake,
        settings=Delivery(routes=dict(routes or {}), default_route="refuse"),
        hostname=hostname,
        outbox=directory / "outbox",
        tls_context=None,
        jitter=random.Random(1),
    )
    await scheduler.start()
    made = Appliance(
        hostname=hostname,
        store=store,
        threads=threads,
        clock=clock,
        intake=intake,
        counts=counts,
        reporter=None,  # type: ignore[arg-type]  # made in the next line
        reader=DmarcReader(
            threads=threads,
            hub=hub,
            maildir=store.maildir,
            clock=clock,
            address=settings.report_address,
            tls=TlsReader(threads=threads, clock=clock),
        ),
        context=context,
        port=port,
        resolver=resolver,
        settings=settings,
    )
    made.reporter = made.new_reporter()
    try:
        yield made
    finally:
        await smtp.drain(1)
        await scheduler.stop(1)
        await resolver.close()
        await asyncio.to_thread(store.close)
        await asyncio.to_thread(threads.close)


def _provision(context: Context, nameserver: Nameserver, inboxes: Mapping[str, str]) -> None:
    owners: dict[str, str] = {}
    known: set[str] = set()
    for address, organization in inboxes.items():
        if organization not in owners:
            owners[organization] = organization_add(context, name=organization)["id"]
        domain = address.partition("@")[2]
        if domain not in known:
            known.add(domain)
            publish(nameserver, domain_add(context, name=domain, organization=organization)["records"])
        inbox_add(context, address=address)


def publish(nameserver: Nameserver, records: list[dict[str, str]]) -> None:
    """Put the records that the appliance tells into the zone."""
    for record in records:
        name = nameserver.zone.setdefault(record["name"], {})
        name.setdefault(record["type"], []).append(record["value"].rstrip("."))
