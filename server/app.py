"""The composition root: builds the parts of the chosen roles, starts and stops them in order.

The only module that knows every part. Owns the process's signals (SIGTERM and
SIGINT drain, SIGHUP reloads certificates and policies) and the words to the
service manager. Refuses to start with a clear sentence and no traceback.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy import make_url

from policies.compile import PolicyError
from server import logs, notify
from server.clock import SystemClock
from server.config import Settings, locate_secret, read_secret
from server.operations import Context, perform
from server.proxied import Proxies
from server.rulebook import Rulebook
from server.single import Single
from server.sockets import BindFailed, open_listeners
from server.tls import CertificateError, ServerTls, make_self_signed, opportunistic_context
from server.tree import Part, Tree
from storage.errors import StorageError
from storage.mirroring import Mirroring
from storage.ownership import turn
from storage.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from server.intake import Intake
    from server.login import Login
    from server.routing import Routing
    from server.threads import Hub, Threads

log = structlog.get_logger("app")

WhenReady = Callable[[Context, Callable[[], None]], Awaitable[None]]


class StartFailed(Exception):
    """The daemon can't start; the text is a sentence for the operator."""


def open_store(settings: Settings) -> Store:
    """Open the store as the configuration says; raises StorageError with a clear sentence."""
    from server.imap.render import render

    return Store.open(
        directory=settings.server.data_directory,
        database_url=_database_url(settings),
        render=render,
        readers=settings.store.readers,
        segment_octets=settings.store.journal_segment_octets,
        spool_threshold_octets=settings.store.spool_threshold_octets,
        disk_reserve_octets=settings.store.disk_reserve_octets,
        checkpoint_seconds=settings.store.checkpoint_seconds,
    )


def _database_url(settings: Settings) -> str:
    reference = settings.store.database_password_file
    if not reference:
        return settings.database_url
    try:
        password = read_secret(reference)
    except (LookupError, OSError, UnicodeDecodeError) as error:
        raise StorageError(f"store.database_password_file cannot be read: {error}") from None
    return make_url(settings.database_url).set(password=password).render_as_string(hide_password=False)


class Appliance:
    """One process of the appliance with its roles."""

    def __init__(self, settings: Settings, *, when_ready: WhenReady | None = None) -> None:
        self.settings = settings
        self.clock = SystemClock()
        self.tree = Tree()
        self._when_ready = when_ready
        self._inherited = notify.inherited_sockets()
        self._rulebook: Rulebook
        self._tls: ServerTls
        self._tasks: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()
        self._proxied: set[Any] = set()  # sockets whose connections begin with a PROXY header

    async def start(self) -> None:
        """Build and start every part in order; raises StartFailed."""
        try:
            self._rulebook = Rulebook(
                self.settings.policy.directory,
                self.settings.limits.figures,
                self.clock,
                scanners=self.settings.scanners.configured,
            )
            self._tls = self._load_certificate()
            self._build(await asyncio.to_thread(open_store, self.settings))
            await self.tree.begin()
        except PolicyError as error:
            raise StartFailed("\n".join(str(problem) for problem in error.problems)) from None
        except (StorageError, CertificateError, BindFailed, OSError) as error:
            raise StartFailed(str(error)) from None
        notify.ready("serving " + ", ".join(self.settings.server.roles))
        log.info("serving", roles=" ".join(self.settings.server.roles))

    async def stop(self) -> None:
        """Drain and stop every part in reverse order."""
        notify.stopping()
        for task in self._tasks:
            task.cancel()
        await self.tree.end()
        log.info("stopped")

    def reload(self) -> None:
        """Read certificates and policies anew; a faulty one is logged and the old stays in force."""
        self._keep(self._reload())

    async def _reload(self) -> None:
        async with self._reloading:
            await self._read_anew()

    async def _read_anew(self) -> None:
        notify.reloading()
        try:
            # A list may have a million lines: they are read beside the loop and put in force on it.
            self._rulebook.put(await asyncio.to_thread(self._rulebook.read))
        except (PolicyError, OSError) as error:
            log.error("policies not reloaded", problem=str(error))
        for problem in self._tls.reload():
            log.error("certificate not reloaded", problem=problem)
        notify.ready("serving " + ", ".join(self.settings.server.roles))
        log.info("reloaded")

    def _load_certificate(self) -> ServerTls:
        tls = self.settings.tls
        if tls.certificate_file:
            try:
                files = (locate_secret(tls.certificate_file), locate_secret(tls.key_file))
            except LookupError as error:
                raise CertificateError(f"tls.certificate_file, tls.key_file: {error}") from None
            return self._server_tls(*files)
        names = [self.settings.server.hostname, "localhost", "127.0.0.1"]
        directory = self.settings.server.data_directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with turn(directory):
            return self._server_tls(*make_self_signed(directory / "tls", names=list(dict.fromkeys(names))))

    def _server_tls(self, certificate_file: Path, key_file: Path) -> ServerTls:
        tls = self.settings.tls
        made = ServerTls(
            certificate_file,
            key_file,
            domains_directory=tls.domains,
            minimum_version=tls.minimum_version,
        )
        for problem in made.problems:
            # One domain's fault is no reason to serve none.
            log.error("certificate not loaded", problem=problem)
        return made

    def _build(self, store: Store) -> None:
        """Make the parts; those made first are started first and stopped last."""
        from server.arrival import IntakeSettings
        from server.correspondents import Correspondents
        from server.counters import Counters
        from server.intake import Intake
        from server.login import Login, kept_secret
        from server.rejects import Rejects, RejectsSettings
        from server.routing import Routing
        from server.sender_auth.signer import Signer
        from server.standing import Standing
        from server.threads import Hub, Threads

        settings = self.settings
        hub = Hub()
        threads = Threads(store, hub, readers=settings.store.readers)
        self._add("store", stop=lambda: self._close_store(store, threads))
        mirroring = Mirroring(store.database, store.maildir)
        self._add("mirror", start=mirroring.start, stop=lambda: asyncio.to_thread(mirroring.close))
        routing = Routing(threads, postmaster=settings.server.postmaster, clock=self.clock)
        with turn(settings.server.data_directory):
            secret = kept_secret(settings.server.data_directory / "decoy.secret")
        login = Login(threads, self.clock, decoy_secret=secret)
        resolver = self._resolver()
        self._add("resolver", stop=resolver.close)
        standing = Standing(
            threads=threads,
            clock=self.clock,
            rulebook=self._rulebook,
            counters=Counters(threads, self.clock),
            resolver=resolver,
            reload_seconds=settings.policy.list_reload_seconds,
        )
        self._add("standing", start=standing.start, stop=standing.stop)
        correspondents = Correspondents(threads=threads, clock=self.clock, rulebook=self._rulebook)
        self._add("correspondents", start=correspondents.start, stop=correspondents.stop)
        rejects = Rejects(
            threads=threads,
            clock=self.clock,
            settings=RejectsSettings(
                keep_seconds=settings.rejects.keep_seconds,
                messages=settings.rejects.max_messages,
                octets=settings.rejects.max_octets,
            ),
            hostname=settings.server.hostname,
        )
        self._add("rejects", start=rejects.start, stop=rejects.stop)
        self._add("operator's inbox", start=lambda: self._look_for_operator(threads))
        dmarc_counts = self._dmarc_counts(threads)
        intake = Intake(
            threads=threads,
            routing=routing,
            rulebook=self._rulebook,
            clock=self.clock,
            settings=IntakeSettings(
                hostname=settings.server.hostname,
                expiry_api_seconds=settings.delivery.expiry_api_seconds,
                expiry_submission_seconds=settings.delivery.expiry_submission_seconds,
                max_received=settings.smtp.max_received,
                received_spf=settings.authentication.received_spf,
            ),
            verifier=self._verifier(resolver, threads),
            signer=Signer(threads),
            standing=standing,
            correspondents=correspondents,
            rejects=rejects,
            dmarc_counts=dmarc_counts,
            scanning=self._scanning(threads),
        )
        roles = settings.server.roles
        if "delivery" in roles:
            self._build_delivery(threads, hub, routing, intake, resolver)
        if "smtp" in roles:
            self._build_smtp(threads, intake, login)
        if "imap" in roles:
            self._build_imap(threads, hub, login, intake)
        if "http" in roles:
            self._build_http(threads, hub, login, intake, routing)
        self._build_control(store, threads)

    def _add(
        self,
        name: str,
        *,
        start: Callable[[], Awaitable[None] | None] | None = None,
        stop: Callable[[], Awaitable[None] | None] | None = None,
    ) -> None:
        self.tree.addService(Part(name, start=start, stop=stop))

    async def _look_for_operator(self, threads: Threads) -> None:
        """Say where nobody would read what strangers write to postmaster and abuse."""
        from server.routing import operator_fault

        postmaster = self.settings.server.postmaster
        fault = await threads.read(lambda c: operator_fault(c, postmaster=postmaster))
        if fault:
            log.warning("nobody reads mail for the operator", problem=fault)

    async def _close_store(self, store: Store, threads: Threads) -> None:
        await asyncio.to_thread(store.close)
        await asyncio.to_thread(threads.close)

    def _resolver(self) -> Any:
        from server.dns import CachingResolver

        dns = self.settings.dns
        return CachingResolver(
            servers=dns.servers,
            timeout_seconds=dns.timeout_seconds,
            cache_entries=dns.cache_entries,
            clock=self.clock,
        )

    def _scanning(self, threads: Threads) -> Any:
        if not self.settings.scanners.configured:
            return None
        from server.scanners.made import make_scanning

        return make_scanning(self.settings.scanners, threads, self.clock, self.settings.server.hostname)

    def _verifier(self, resolver: Any, threads: Threads) -> Any:
        if not self.settings.authentication.enabled:
            return None
        from server.sender_auth.verify import Verifier

        return Verifier(
            resolver=resolver,
            threads=threads,
            clock=self.clock,
            hostname=self.settings.server.hostname,
            deadline_seconds=self.settings.authentication.deadline_seconds,
            believed_sealers=self.settings.authentication.believed_sealers,
            observes=self.settings.dmarc.sends,
        )

    def _dmarc_counts(self, threads: Threads) -> Any:
        settings = self.settings.dmarc
        if not settings.sends:
            return None
        from server.sender_auth.dmarc_counts import DmarcCounts

        counts = DmarcCounts(
            threads=threads,
            clock=self.clock,
            address=settings.report_address,
            period_seconds=settings.period_hours * 3600,
            spread_seconds=settings.spread_seconds,
        )
        self._add("dmarc counts", start=counts.start, stop=counts.stop)
        return counts

    def _build_delivery(
        self, threads: Threads, hub: Hub, routing: Routing, intake: Intake, resolver: Any
    ) -> None:
        from server.delivery.bounce import Bouncer
        from server.delivery.complaints import Complaints
        from server.delivery.held import HeldExpiry
        from server.delivery.scheduler import Scheduler

        settings = self.settings
        scheduler = Scheduler(
            threads=threads,
            hub=hub,
            resolver=resolver,
            clock=self.clock,
            routing=routing,
            intake=intake,
            settings=settings.delivery,
            hostname=settings.server.hostname,
            outbox=settings.server.data_directory / "outbox",
            tls_context=opportunistic_context(),
            jitter=random.Random(),  # noqa: S311  spreads retries, keeps no secret
            holder=threads.store.instance,
        )
        drain = settings.server.drain_seconds
        self._add("delivery", start=scheduler.start, stop=lambda: scheduler.stop(drain))
        bouncer = Bouncer(
            threads=threads,
            hub=hub,
            intake=intake,
            clock=self.clock,
            hostname=settings.server.hostname,
        )
        single = Tree()
        single.addService(Part("bounces", start=bouncer.start, stop=bouncer.stop))
        expiry = HeldExpiry(
            threads=threads,
            clock=self.clock,
            seconds=settings.delivery.held_expiry_seconds,
            answer=settings.delivery.held_expiry_answer,
        )
        single.addService(Part("held mail", start=expiry.start, stop=expiry.stop))
        complaints = Complaints(threads=threads, hub=hub, clock=self.clock, hostname=settings.server.hostname)
        single.addService(Part("complaints", start=complaints.start, stop=complaints.stop))
        self._add_webhooks(single, threads, hub, resolver)
        self._add_dmarc(single, threads, hub, intake, resolver)
        sole = threads.store.sole("single") if threads.store.is_shared else None
        alone = Single(single, threads=threads, sole=sole)
        self._add("single", start=alone.start, stop=alone.stop)

    def _add_dmarc(self, single: Tree, threads: Threads, hub: Hub, intake: Intake, resolver: Any) -> None:
        from server.delivery.dmarc_reader import DmarcReader
        from server.delivery.dmarc_reporter import DmarcReporter

        settings = self.settings.dmarc
        reporter = DmarcReporter(
            threads=threads,
            intake=intake,
            resolver=resolver,
            clock=self.clock,
            settings=settings,
            hostname=self.settings.server.hostname,
        )
        single.addService(Part("dmarc reports", start=reporter.start, stop=reporter.stop))
        reader = DmarcReader(
            threads=threads,
            hub=hub,
            maildir=threads.store.maildir,
            clock=self.clock,
            address=settings.report_address,
        )
        single.addService(Part("reports of others", start=reader.start, stop=reader.stop))

    def _add_webhooks(self, single: Tree, threads: Threads, hub: Hub, resolver: Any) -> None:
        from server.events.posting import Poster
        from server.events.rule_calls import RuleCalls, content_of
        from server.events.webhooks import Deliverer

        settings = self.settings.webhooks
        poster = Poster(
            resolver=resolver,
            allow_private=settings.allow_private_addresses,
            timeout_seconds=settings.timeout_seconds,
        )
        deliverer = Deliverer(
            threads=threads,
            hub=hub,
            clock=self.clock,
            poster=poster,
            secret=self._webhook_secret(),
            content_of=lambda call: content_of(threads, call),
            timeout_seconds=settings.timeout_seconds,
            concurrency=settings.concurrency,
            dice=random.Random(),  # noqa: S311  spreads retries, keeps no secret
        )
        single.addService(Part("webhooks", start=deliverer.start, stop=deliverer.stop))
        calls = RuleCalls(threads=threads, hub=hub, clock=self.clock, expiry_hours=settings.expiry_hours)
        single.addService(Part("calls of rules", start=calls.start, stop=calls.stop))

    def _webhook_secret(self) -> Callable[[], bytes]:
        """Return what gives the signing secret; the appliance's own is made when it is first asked for."""
        from server.events import posting, rule_calls

        reference = self.settings.webhooks.secret_file
        if not reference:
            return cache(
                partial(rule_calls.kept_secret, self.settings.server.data_directory / "webhook.secret")
            )
        try:
            secret = posting.read_secret(read_secret(reference))
        except (LookupError, OSError, ValueError) as error:
            raise StartFailed(f"webhooks.secret_file: {error}") from None
        return lambda: secret

    def _build_smtp(self, threads: Threads, intake: Intake, login: Login) -> None:
        from server.smtp.server import SmtpServer
        from server.smtp.settings import SmtpSettings

        smtp = self.settings.smtp
        server = SmtpServer(
            intake=intake,
            login=login,
            threads=threads,
            clock=self.clock,
            settings=SmtpSettings(
                max_message_octets=smtp.max_message_octets,
                max_recipients=smtp.max_recipients,
                max_connections=smtp.max_connections,
                max_connections_per_address=smtp.max_connections_per_address,
                command_timeout_seconds=smtp.command_timeout_seconds,
                data_timeout_seconds=smtp.data_timeout_seconds,
                max_errors=smtp.max_errors,
                max_received=smtp.max_received,
                max_hold_seconds=smtp.max_hold_seconds,
                mend_line_ends_of=smtp.mend_line_ends_of,
                lmtp_networks=smtp.lmtp_networks,
                xclient_networks=smtp.xclient_networks,
                spool_threshold_octets=self.settings.store.spool_threshold_octets,
            ),
            hostname=self.settings.server.hostname,
            tls_context=self._tls.context,
        )

        async def start() -> None:
            await server.start(
                mx=self._open(smtp.listen_mx),
                submission=self._open(smtp.listen_submission),
                submissions=self._open(smtp.listen_submissions),
                lmtp=self._open(smtp.listen_lmtp),
                proxied=self._proxied,
                proxies=self._proxies(),
            )

        drain = self.settings.server.drain_seconds
        self._add("smtp", start=start, stop=lambda: server.drain(drain))

    def _build_imap(self, threads: Threads, hub: Hub, login: Login, intake: Intake) -> None:
        from server.imap.server import ImapServer

        imap = self.settings.imap
        server = ImapServer(
            threads=threads,
            hub=hub,
            login=login,
            intake=intake,
            maildir=threads.store.maildir,
            clock=self.clock,
            settings=imap,
            hostname=self.settings.server.hostname,
            tls_context=self._tls.context,
        )

        async def start() -> None:
            await server.start(
                plain=self._open(imap.listen),
                implicit=self._open(imap.listen_tls),
                proxied=self._proxied,
                proxies=self._proxies(),
            )

        drain = self.settings.server.drain_seconds
        self._add("imap", start=start, stop=lambda: server.drain(drain))

    def _build_http(self, threads: Threads, hub: Hub, login: Login, intake: Intake, routing: Routing) -> None:
        from server.http.api import make_app
        from server.http.listener import HttpListener

        http = self.settings.http
        application = make_app(
            threads=threads,
            hub=hub,
            login=login,
            intake=intake,
            routing=routing,
            maildir=threads.store.maildir,
            clock=self.clock,
            settings=self.settings,
        )
        listener = HttpListener(
            application, settings=http, tls_context=self._tls.context, proxies=self._proxies()
        )

        async def start() -> None:
            await listener.start(open_listeners(http.listen, self._inherited))

        drain = self.settings.server.drain_seconds
        self._add("http", start=start, stop=lambda: listener.stop(drain))

    def _build_control(self, store: Store, threads: Threads) -> None:
        from twisted.internet import reactor

        from server.control import ControlListener, socket_of

        server = self.settings.server
        context = Context(
            store,
            self.clock,
            server.hostname,
            actor="cli:daemon",
            roles=server.roles,
            report_address=self.settings.dmarc.report_address,
        )

        async def answer(name: str, arguments: Any) -> dict[str, Any]:
            return await threads.run(perform, context, name, arguments)

        path = self.settings.control.socket
        place = socket_of(path, store.instance) if store.is_shared else path
        listener = ControlListener(place, answer, reactor)
        self._add("control", start=listener.start, stop=listener.stop)
        self._add("reconcile", start=lambda: self._keep(self._reconcile(context, threads)))
        self._add("signs of life", start=lambda: self._begin_signs(context))

    async def _reconcile(self, context: Context, threads: Threads) -> None:
        """Heal what differs since the last run, beside the work that has begun; one process is enough."""
        sole = context.store.sole("reconcile")
        try:
            if not context.store.is_shared or sole.take():
                await threads.run(perform, context, "reconcile", {})
        except StorageError as error:
            log.error("not reconciled", reason=str(error))
        finally:
            sole.release()

    def _begin_signs(self, context: Context) -> None:
        """Start the watchdog's task and tell who waits for readiness."""
        seconds = notify.watchdog_seconds()
        if seconds is not None:
            self._keep(self._live(seconds))
        if self._when_ready is not None:
            self._keep(self._when_ready(context, request_stop))

    def _keep(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _live(self, seconds: float) -> None:
        while True:
            notify.alive()
            await asyncio.sleep(seconds)

    def _open(self, addresses: tuple[str, ...]) -> list[Any]:
        opened = open_listeners(addresses, self._inherited)
        self._proxied.update(made for listen, made in opened if listen.proxy)
        return [made for _, made in opened]

    def _proxies(self) -> Proxies:
        return Proxies(self.settings.server.proxy_networks)


def request_stop() -> None:
    """Ask this process to drain and stop, as SIGTERM does."""
    signal.raise_signal(signal.SIGTERM)


def run(settings: Settings, *, when_ready: WhenReady | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status, 1 when the start failed.

    when_ready: called once all parts serve, with an operations context and what asks to stop.
    """
    from twisted.internet import reactor as installed

    reactor: Any = installed  # its interface in Twisted's stubs lacks what the asyncio reactor takes
    server = settings.server
    logs.configure(level=server.log_level, form=server.log_format, addresses=server.log_addresses)
    appliance = Appliance(settings, when_ready=when_ready)
    loop = asyncio.get_event_loop_policy().get_event_loop()
    status: list[int] = []

    async def serve() -> None:
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        loop.add_signal_handler(signal.SIGHUP, appliance.reload)
        try:
            await appliance.start()
        except StartFailed as error:
            sys.stderr.write(f"mailagents: {error}\n")
            status.append(1)
        else:
            await stopped.wait()
            await appliance.stop()
        finally:
            reactor.stop()

    main: list[asyncio.Task[None]] = []
    reactor.callWhenRunning(lambda: main.append(loop.create_task(serve())))
    reactor.run(installSignalHandlers=False)
    if main and main[0].done() and not main[0].cancelled() and main[0].exception() is not None:
        log.error("the daemon failed", exc_info=main[0].exception())
        return 1
    return status[0] if status else 0
