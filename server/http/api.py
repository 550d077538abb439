"""The HTTP application: routes of API v1, the console, health and metrics in one.

Owns how the parts of this package are put together, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from fastapi import FastAPI

from server.http import openapi, problems
from server.http.access import Access
from server.http.bodies import Bodies
from server.http.console import Console
from server.http.delivery_measures import delivery_measures
from server.http.dkim import DkimRoutes
from server.http.edge import Edge
from server.http.happenings import HappeningRoutes
from server.http.health import HealthRoutes
from server.http.inboxes import InboxRoutes
from server.http.message_files import MessageFiles
from server.http.messages import MessageRoutes
from server.http.metrics import Measure, MeasureKind, Metrics
from server.http.openapi import Door
from server.http.organizations import OrganizationRoutes
from server.http.queueing import QueueRoutes
from server.http.sending import SendingRoutes
from server.http.services import Services
from server.http.suppressing import SuppressionRoutes
from server.http.tls_reports import TlsReportRoutes
from server.http.unsubscribing import Unsubscribing
from server.http.upkeep import make_lifespan
from server.http.well_known import WellKnown
from storage import queue

if TYPE_CHECKING:
    from server.clock import Clock
    from server.config import Settings
    from server.dns import Resolver
    from server.intake import Intake
    from server.login import Login
    from server.return_tokens import ReturnTokens
    from server.routing import Routing
    from server.tally import Tally
    from server.threads import Hub, Threads
    from storage.maildir import Maildir

VERSION = "1.0.0"  # of the API, not of the program


def make_app(
    *,
    threads: Threads,
    hub: Hub,
    login: Login,
    intake: Intake,
    routing: Routing,
    maildir: Maildir,
    clock: Clock,
    settings: Settings,
    tokens: ReturnTokens | None = None,
    store_health: Callable[[], Mapping[str, object]] | None = None,
    measures: Sequence[Measure] = (),
    resolver: Resolver | None = None,
    tally: Tally | None = None,
) -> FastAPI:
    """Return the ASGI application; measures: what else /metrics tells."""
    access = Access(login=login, threads=threads, hub=hub, clock=clock)
    metrics = Metrics((*_own_measures(threads), *delivery_measures(threads, clock, tally), *measures))
    services = Services(
        threads=threads,
        intake=intake,
        routing=routing,
        maildir=maildir,
        clock=clock,
        settings=settings,
        bodies=Bodies(threads),
        resolver=resolver,
    )
    app = FastAPI(
        title="Mailagents",
        openapi_url=f"{openapi.PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=make_lifespan(access=access, threads=threads, clock=clock),
    )
    problems.install(app)
    door = Door(app, access)
    _add_routes(door, services)
    health = HealthRoutes(
        threads=threads,
        access=access,
        metrics=metrics,
        store_health=store_health or _default_health(threads),
    )
    health.add_to(door)
    Console(services=services, access=access).add_to(app)
    WellKnown(services).add_to(app)
    if tokens is not None:
        Unsubscribing(threads=threads, clock=clock, tokens=tokens).add_to(app)
    app.add_middleware(Edge, metrics=metrics, clock=clock)
    openapi.install(app, VERSION)
    return app


def _add_routes(door: Door, services: Services) -> None:
    files = MessageFiles(services)
    for routes in (
        OrganizationRoutes(services),
        DkimRoutes(services),
        InboxRoutes(services),
        SendingRoutes(services, files),
        MessageRoutes(services, files),
        HappeningRoutes(services),
        SuppressionRoutes(services),
        QueueRoutes(services),
        TlsReportRoutes(services),
    ):
        routes.add_to(door)


def _default_health(threads: Threads) -> Callable[[], Mapping[str, object]]:
    """Return a question whose answer proves that the database reads and the disk has room."""

    def ask() -> Mapping[str, object]:
        threads.store.database.read(queue.counts)
        return {"ready": threads.store.has_room(0)}

    return ask


def _own_measures(threads: Threads) -> Sequence[Measure]:
    def deliveries() -> Mapping[tuple[str, ...], float]:
        counts = threads.store.database.read(queue.counts)
        return {(state,): float(count) for state, count in counts.items()}

    def backlog() -> Mapping[tuple[str, ...], float]:
        return {(): float(threads.store.backlog_octets)}

    return (
        Measure(
            "mailagents_deliveries",
            "Deliveries that are not final, by state.",
            MeasureKind.GAUGE,
            deliveries,
            ("state",),
        ),
        Measure(
            "mailagents_journal_backlog_octets",
            "Octets accepted and not yet checkpointed.",
            MeasureKind.GAUGE,
            backlog,
        ),
    )
