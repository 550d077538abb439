"""The composition root: starts the parts of the chosen roles and stops them in order.

Owns the process's signals (SIGTERM and SIGINT drain, SIGHUP reloads certificates
and policies) and the words to the service manager. Refuses to start with a clear sentence and no traceback.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from policies.compile import PolicyError
from server import logs, notify
from server.clock import SystemClock
from server.config import Settings, locate_secret
from server.greylist import GreylistSettings
from server.operations import Context, perform
from server.parts import Parts, StartFailed, open_store
from server.rulebook import Rulebook
from server.sender_auth.rotation import pace_of
from server.sockets import BindFailed
from server.tls import CertificateError, ServerTls, make_self_signed
from server.transport.publishing import read_published
from server.tree import Tree
from storage.errors import StorageError
from storage.ownership import turn
from storage.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from server.threads import Threads

log = structlog.get_logger("app")

WhenReady = Callable[[Context, Callable[[], None]], Awaitable[None]]


class Appliance:
    """One process of the appliance with its roles."""

    def __init__(self, settings: Settings, *, when_ready: WhenReady | None = None) -> None:
        self.settings = settings
        self.clock = SystemClock()
        self.tree = Tree()
        self._when_ready = when_ready
        self._rulebook: Rulebook
        self._tls: ServerTls
        self._parts: Parts
        self._tasks: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()

    async def start(self) -> None:
        """Build and start every part in order; raises StartFailed."""
        try:
            self._rulebook = Rulebook(
                self.settings.policy.directory,
                self.settings.limits.figures,
                self.clock,
                services=self.settings.services,
                greylist=GreylistSettings(
                    delay_seconds=self.settings.greylist.delay_seconds,
                    window_seconds=self.settings.greylist.window_seconds,
                    keep_days=self.settings.greylist.keep_days,
                ),
            )
            self._tls = self._load_certificate()
            store = await asyncio.to_thread(open_store, self.settings)
            self._parts = Parts(
                self.settings,
                clock=self.clock,
                tree=self.tree,
                rulebook=self._rulebook,
                tls=self._tls,
                inherited=notify.inherited_sockets(),
            )
            self._build_control(store, self._parts.build(store))
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
            published=partial(read_published, self.settings),
            pace=pace_of(self.settings.dkim),
        )

        async def answer(name: str, arguments: Any) -> dict[str, Any]:
            return await threads.run(perform, context, name, arguments)

        path = self.settings.control.socket
        place = socket_of(path, store.instance) if store.is_shared else path
        listener = ControlListener(place, answer, reactor)
        self._parts.add("control", start=listener.start, stop=listener.stop)
        self._parts.add("reconcile", start=lambda: self._keep(self._reconcile(context, threads)))
        self._parts.add("signs of life", start=lambda: self._begin_signs(context))

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
