"""What one process does for all of them: notices, reports, rotation of keys, webhooks, and ends of waiting.

Owns the making of these parts and their order; which process runs them is server.single's.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from server.config import Settings, read_secret
from server.delivery.blocklists import BlockLists
from server.delivery.bounce import Bouncer
from server.delivery.closing import Closing
from server.delivery.complaints import Complaints
from server.delivery.dkim_rotation import DkimRotation
from server.delivery.dmarc_reader import DmarcReader
from server.delivery.dmarc_reporter import DmarcReporter
from server.delivery.doubts import Doubts
from server.delivery.held import HeldExpiry
from server.delivery.later_bounces import LaterBounces
from server.delivery.tls_reader import TlsReader
from server.delivery.tls_reporter import TlsReporter
from server.events import posting, rule_calls
from server.events.posting import Poster
from server.events.rule_calls import RuleCalls, content_of
from server.events.webhooks import Deliverer
from server.sender_auth.rotation import pace_of
from server.tree import Part, Tree

if TYPE_CHECKING:
    from server.clock import Clock
    from server.delivery.route import RouteKeeper
    from server.intake import Intake
    from server.names.zones import Zones
    from server.return_tokens import ReturnTokens
    from server.threads import Hub, Threads
    from storage.suppressing import Rules


class SecretUnreadable(Exception):
    """A secret that the settings name cannot be used; the text says which."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What these parts are made of."""

    settings: Settings
    clock: Clock
    threads: Threads
    hub: Hub
    intake: Intake
    resolver: Any
    zones: Zones
    tokens: ReturnTokens
    rules: Rules
    keeper: RouteKeeper


def add_to(single: Tree, shared: Shared) -> None:
    """Make all of them; raises SecretUnreadable."""
    block_lists = BlockLists(
        zones=shared.zones,
        lists=shared.settings.delivery.blocklists if shared.settings.delivery.relay_lane else (),
        addresses=shared.settings.delivery.public_addresses,
        keeper=shared.keeper,
    )
    bouncer = Bouncer(
        threads=shared.threads,
        hub=shared.hub,
        intake=shared.intake,
        clock=shared.clock,
        hostname=shared.settings.server.hostname,
    )
    single.addService(Part("bounces", start=bouncer.start, stop=bouncer.stop))
    expiry = HeldExpiry(
        threads=shared.threads,
        clock=shared.clock,
        seconds=shared.settings.delivery.held_expiry_seconds,
        answer=shared.settings.delivery.held_expiry_answer,
    )
    single.addService(Part("held mail", start=expiry.start, stop=expiry.stop))
    closing = Closing(
        threads=shared.threads, clock=shared.clock, seconds=shared.settings.delivery.undo_seconds
    )
    single.addService(Part("actions", start=closing.start, stop=closing.stop))
    doubts = Doubts(
        threads=shared.threads,
        clock=shared.clock,
        seconds=shared.settings.delivery.in_doubt_deadline_seconds,
        unanswered=shared.settings.delivery.in_doubt_unanswered,
    )
    single.addService(Part("block lists", start=block_lists.start, stop=block_lists.stop))
    single.addService(Part("doubts", start=doubts.start, stop=doubts.stop))
    later = LaterBounces(threads=shared.threads, hub=shared.hub, clock=shared.clock, rules=shared.rules)
    single.addService(Part("bounces that came later", start=later.start, stop=later.stop))
    complaints = Complaints(
        threads=shared.threads,
        hub=shared.hub,
        clock=shared.clock,
        hostname=shared.settings.server.hostname,
        tokens=shared.tokens,
    )
    single.addService(Part("complaints", start=complaints.start, stop=complaints.stop))
    _add_webhooks(single, shared)
    _add_dmarc(single, shared)
    _add_rotation(single, shared)


def _add_dmarc(single: Tree, shared: Shared) -> None:
    settings = shared.settings.dmarc
    reporter = DmarcReporter(
        threads=shared.threads,
        intake=shared.intake,
        resolver=shared.resolver,
        clock=shared.clock,
        settings=settings,
        hostname=shared.settings.server.hostname,
    )
    single.addService(Part("dmarc reports", start=reporter.start, stop=reporter.stop))
    reader = DmarcReader(
        threads=shared.threads,
        hub=shared.hub,
        maildir=shared.threads.store.maildir,
        clock=shared.clock,
        address=settings.report_address,
        tls=TlsReader(
            threads=shared.threads, clock=shared.clock, address=shared.settings.tls_reports.report_address
        ),
    )
    single.addService(Part("reports of others", start=reader.start, stop=reader.stop))
    _add_tls_reports(single, shared)


def _add_tls_reports(single: Tree, shared: Shared) -> None:
    settings = shared.settings.tls_reports
    reporter = TlsReporter(
        threads=shared.threads,
        intake=shared.intake,
        resolver=shared.resolver,
        clock=shared.clock,
        poster=Poster(
            resolver=shared.resolver,
            allow_private=shared.settings.delivery.allow_private_addresses,
            timeout_seconds=shared.settings.webhooks.timeout_seconds,
        ),
        settings=settings,
        hostname=shared.settings.server.hostname,
    )
    single.addService(Part("tls reports", start=reporter.start, stop=reporter.stop))


def _add_rotation(single: Tree, shared: Shared) -> None:
    rotation = DkimRotation(
        threads=shared.threads,
        intake=shared.intake,
        resolver=shared.resolver,
        clock=shared.clock,
        pace=pace_of(shared.settings.dkim),
        hostname=shared.settings.server.hostname,
    )
    single.addService(Part("dkim rotation", start=rotation.start, stop=rotation.stop))


def _add_webhooks(single: Tree, shared: Shared) -> None:
    settings = shared.settings.webhooks
    poster = Poster(
        resolver=shared.resolver,
        allow_private=settings.allow_private_addresses,
        timeout_seconds=settings.timeout_seconds,
    )
    deliverer = Deliverer(
        threads=shared.threads,
        hub=shared.hub,
        clock=shared.clock,
        poster=poster,
        secret=_webhook_secret(shared),
        content_of=lambda call: content_of(shared.threads, call),
        timeout_seconds=settings.timeout_seconds,
        concurrency=settings.concurrency,
        dice=random.Random(),  # noqa: S311  spreads retries, keeps no secret
    )
    single.addService(Part("webhooks", start=deliverer.start, stop=deliverer.stop))
    calls = RuleCalls(
        threads=shared.threads, hub=shared.hub, clock=shared.clock, expiry_hours=settings.expiry_hours
    )
    single.addService(Part("calls of rules", start=calls.start, stop=calls.stop))


def _webhook_secret(shared: Shared) -> Callable[[], bytes]:
    """Return what gives the signing secret; the appliance's own is made when it is first asked for."""
    reference = shared.settings.webhooks.secret_file
    if not reference:
        return cache(
            partial(rule_calls.kept_secret, shared.settings.server.data_directory / "webhook.secret")
        )
    try:
        secret = posting.read_secret(read_secret(reference))
    except (LookupError, OSError, ValueError) as error:
        raise SecretUnreadable(f"webhooks.secret_file: {error}") from None
    return lambda: secret
