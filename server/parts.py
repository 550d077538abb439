"""The parts of the chosen roles: what each is made of, in the order in which they start.

The only module that knows every part. Parts made first are started first and stopped last.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy import make_url

from server.config import Settings, read_secret
from server.fresh import Fresh
from server.proxied import Proxies
from server.single import Single
from server.sockets import open_listeners
from server.tls import opportunistic_context, verifying_context
from server.tree import Part, Tree
from storage.errors import StorageError
from storage.mirroring import Mirroring
from storage.ownership import turn
from storage.store import Store

if TYPE_CHECKING:
    from server.clock import Clock
    from server.intake import Intake
    from server.login import Login
    from server.names.zones import Zones
    from server.return_tokens import ReturnTokens
    from server.routing import Routing
    from server.rulebook import Rulebook
    from server.smtp.client_machine import Credentials
    from server.smtp.strangers import Strangers
    from server.tally import Tally
    from server.threads import Hub, Threads
    from server.tls import ServerTls

SECOND = 1_000_000

log = structlog.get_logger("app")


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


class Parts:
    """Makes the parts of one process and puts them into its tree."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock,
        tree: Tree,
        rulebook: Rulebook,
        tls: ServerTls,
        inherited: Any,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self._tree = tree
        self._rulebook = rulebook
        self._tls = tls
        self._inherited = inherited
        self._zones: Zones
        self.resolver: Any
        self._tally: Tally | None = None
        self._strangers: Strangers | None = None
        self._proxied: set[Any] = set()  # sockets whose connections begin with a PROXY header

    def build(self, store: Store) -> Threads:
        """Make the parts over a store; returns what reaches it."""
        from server.arrival import IntakeSettings
        from server.client_facts import ClientFacts
        from server.correspondents import Correspondents
        from server.counters import Counters
        from server.intake import Intake
        from server.login import Login, kept_secret
        from server.names.zones import Zones
        from server.notices_in import NoticeReader
        from server.rejects import Rejects, RejectsSettings
        from server.routing import Routing
        from server.sender_auth.signer import Signer
        from server.standing import Standing
        from server.threads import Hub, Threads

        settings = self.settings
        hub = Hub()
        threads = Threads(store, hub, readers=settings.store.readers)
        self.add("store", stop=lambda: self._close_store(store, threads))
        mirroring = Mirroring(store.database, store.maildir)
        self.add("mirror", start=mirroring.start, stop=lambda: asyncio.to_thread(mirroring.close))
        with turn(settings.server.data_directory):
            secret = kept_secret(settings.server.data_directory / "decoy.secret")
            tokens = self._return_tokens()
        routing = Routing(threads, postmaster=settings.server.postmaster, clock=self.clock, tokens=tokens)
        login = Login(threads, self.clock, decoy_secret=secret)
        resolver = self.resolver = self._resolver()
        self.add("resolver", stop=resolver.close)
        self._zones = Zones(resolver, self.clock, timeout_seconds=settings.dns_lists.timeout_seconds)
        client_facts = ClientFacts(
            resolver=resolver,
            zones=self._zones,
            rulebook=self._rulebook,
            clock=self.clock,
            lists=settings.dns_lists.lists,
            timeout_seconds=settings.dns_lists.timeout_seconds,
            says_names=settings.authentication.iprev,
        )
        self.add("client facts", stop=client_facts.stop)
        self._counters = Counters(threads, self.clock)
        standing = Standing(
            threads=threads,
            clock=self.clock,
            rulebook=self._rulebook,
            counters=self._counters,
            zones=self._zones,
            reload_seconds=settings.policy.list_reload_seconds,
        )
        self.add("standing", start=standing.start, stop=standing.stop)
        correspondents = Correspondents(threads=threads, clock=self.clock, rulebook=self._rulebook)
        self.add("correspondents", start=correspondents.start, stop=correspondents.stop)
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
        self.add("rejects", start=rejects.start, stop=rejects.stop)
        self.add("operator's inbox", start=lambda: self._look_for_operator(threads))
        dmarc_counts = self._dmarc_counts(threads)
        fresh = Fresh(self.clock) if "delivery" in settings.server.roles else None
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
            client_facts=client_facts,
            fresh=fresh,
            notices=NoticeReader(
                threads=threads, clock=self.clock, hostname=settings.server.hostname, tokens=tokens
            ),
            unsubscribing=self._unsubscribing(tokens),
        )
        roles = settings.server.roles
        if "delivery" in roles:
            self._build_delivery(threads, hub, routing, intake, resolver=resolver, tokens=tokens)
        if "smtp" in roles:
            self._build_smtp(threads, intake, login)
        if "imap" in roles:
            self._build_imap(threads, hub, login, intake)
        if "http" in roles:
            self._build_http(threads, hub, login, intake, routing=routing, tokens=tokens)
        return threads

    def add(
        self,
        name: str,
        *,
        start: Callable[[], Awaitable[None] | None] | None = None,
        stop: Callable[[], Awaitable[None] | None] | None = None,
    ) -> None:
        """Put a part behind those that are there."""
        self._tree.addService(Part(name, start=start, stop=stop))

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
            believe_ad=dns.believe_ad,
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
        self.add("dmarc counts", start=counts.start, stop=counts.stop)
        return counts

    def _sts_policies(self, threads: Threads, resolver: Any) -> Any:
        if not self.settings.transport.mta_sts:
            return None
        from server.transport.fetching import PolicyFetcher
        from server.transport.policies import StsPolicies

        fetcher = PolicyFetcher(
            resolver=resolver,
            allow_private=self.settings.delivery.allow_private_addresses,
            make_context=verifying_context,
        )
        policies = StsPolicies(resolver=resolver, fetcher=fetcher, threads=threads, clock=self.clock)
        self.add("mta-sts policies", start=policies.start, stop=policies.stop)
        return policies

    def _tls_results(self, threads: Threads, resolver: Any) -> Any:
        settings = self.settings.tls_reports
        if not settings.sends:
            return None
        from server.transport.results import TlsResults

        results = TlsResults(
            threads=threads, resolver=resolver, clock=self.clock, spread_seconds=settings.spread_seconds
        )
        self.add("tls results", start=results.start, stop=results.stop)
        return results

    def _return_tokens(self) -> ReturnTokens:
        from server.login import kept_secret
        from server.return_tokens import ReturnTokens

        secret = kept_secret(self.settings.server.data_directory / "return.secret")
        return ReturnTokens(secret, lifetime=self.settings.bounces.verp_expiry_seconds * SECOND)

    def _unsubscribing(self, tokens: ReturnTokens) -> Any:
        bounces = self.settings.bounces
        if bounces.unsubscribe == "off" or not bounces.unsubscribe_url:
            return None
        from server.unsubscribe import Unsubscribe

        return Unsubscribe(tokens, url=bounces.unsubscribe_url, is_for_all=bounces.unsubscribe == "all")

    def _suppression_rules(self) -> Any:
        from storage.suppressing import Rules

        bounces = self.settings.bounces
        return Rules(
            soft_failures=bounces.soft_failures,
            soft_window=bounces.soft_window_seconds * SECOND,
            half_life=bounces.half_life_seconds * SECOND,
            hard_expiry=bounces.hard_expiry_seconds * SECOND,
        )

    def _build_delivery(
        self,
        threads: Threads,
        hub: Hub,
        routing: Routing,
        intake: Intake,
        *,
        resolver: Any,
        tokens: ReturnTokens,
    ) -> None:
        from server.alone import SecretUnreadable, Shared, add_to
        from server.delivery.scheduler import Returning, Scheduler
        from server.delivery.sources import Sources, plan_of

        settings = self.settings
        rules = self._suppression_rules()
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
            fresh=intake.fresh,
            logins=self._smart_host_logins(),
            sources=Sources(plan_of(settings.delivery), counters=self._counters, clock=self.clock),
            sts=self._sts_policies(threads, resolver),
            dane=settings.transport.dane,
            tls_results=self._tls_results(threads, resolver),
            returning=Returning(rules, settings.bounces.verp, tokens),
        )
        self._tally = scheduler.tally
        drain = settings.server.drain_seconds
        self.add("delivery", start=scheduler.start, stop=lambda: scheduler.stop(drain))
        single = Tree()
        shared = Shared(
            settings=settings,
            clock=self.clock,
            threads=threads,
            hub=hub,
            intake=intake,
            resolver=resolver,
            zones=self._zones,
            tokens=tokens,
            rules=rules,
            keeper=scheduler.keeper,
        )
        try:
            add_to(single, shared)
        except SecretUnreadable as error:
            raise StartFailed(str(error)) from None
        sole = threads.store.sole("single") if threads.store.is_shared else None
        alone = Single(single, threads=threads, sole=sole)
        self.add("single", start=alone.start, stop=alone.stop)

    def _smart_host_logins(self) -> dict[str, Credentials]:
        from server.delivery.logins import LoginUnreadable, read_logins

        try:
            return read_logins(self.settings.delivery.logins)
        except LoginUnreadable as error:
            raise StartFailed(str(error)) from None

    def _build_smtp(self, threads: Threads, intake: Intake, login: Login) -> None:
        from server.smtp.server import SmtpServer
        from server.smtp.settings import SmtpSettings
        from server.smtp.strangers import StrangerLimits

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
                message_timeout_seconds=smtp.message_timeout_seconds,
                max_errors=smtp.max_errors,
                max_received=smtp.max_received,
                max_hold_seconds=smtp.max_hold_seconds,
                mend_line_ends_of=smtp.mend_line_ends_of,
                lmtp_networks=smtp.lmtp_networks,
                xclient_networks=smtp.xclient_networks,
                submission_hosts=smtp.submission_hosts,
                spool_threshold_octets=self.settings.store.spool_threshold_octets,
                strangers=StrangerLimits(**self.settings.protection.model_dump()),
            ),
            hostname=self.settings.server.hostname,
            tls_context=self._tls.context,
        )

        self._strangers = server.strangers

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
        self.add("smtp", start=start, stop=lambda: server.drain(drain))

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
        self.add("imap", start=start, stop=lambda: server.drain(drain))

    def _build_http(
        self,
        threads: Threads,
        hub: Hub,
        login: Login,
        intake: Intake,
        *,
        routing: Routing,
        tokens: ReturnTokens,
    ) -> None:
        from server.http.api import make_app
        from server.http.listener import HttpListener
        from server.http.name_measures import measures_of

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
            tokens=tokens,
            measures=measures_of(self._zones, self._rulebook.greylist, self._strangers),
            resolver=self.resolver,
            tally=self._tally,
        )
        listener = HttpListener(
            application, settings=http, tls_context=self._tls.context, proxies=self._proxies()
        )

        async def start() -> None:
            await listener.start(open_listeners(http.listen, self._inherited))

        drain = self.settings.server.drain_seconds
        self.add("http", start=start, stop=lambda: listener.stop(drain))

    def _open(self, addresses: tuple[str, ...]) -> list[Any]:
        opened = open_listeners(addresses, self._inherited)
        self._proxied.update(made for listen, made in opened if listen.proxy)
        return [made for _, made in opened]

    def _proxies(self) -> Proxies:
        return Proxies(self.settings.server.proxy_networks)
