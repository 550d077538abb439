"""Which hop a delivery takes: configuration, routes set at run time, and the relay lane."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from server.delivery.blocklists import BlockLists
from server.delivery.route import HOME, RouteKeeper, Routes
from server.dns import DnsTemporary
from server.next_hop import HopTls, NextHop, NextHopKind, NextHopSyntax, parse_next_hop
from storage import rerouting
from storage.records import Organization
from storage.rerouting import Rerouted, Scope
from tests.delivery.test_backlog import delivery
from tests.delivery.test_scheduler import TAKE, MakeWorld, run
from tests.delivery.world import HomeDomains
from tests.smtp.scripted import HELLO, Scripted, script
from tests.storage.queued import NOW

ONE = replace(delivery(1), domain="peer.test", organization_id="org_a", message_id="msg_1")
REFUSAL = script(HELLO, "C MAIL", "S 554 5.7.1 blocked using zen.spamhaus.org", "WAIT")


def hop(routes: Routes, one: Any = ONE, *, now: int = NOW) -> Any:
    return asyncio.run(routes.find(one, now=now))


def made(**given: Any) -> Routes:
    given = {"routes": {}, "default": "mx", "routing": HomeDomains(frozenset({"home.test"})), **given}
    return Routes(**given)


def rerouted(scope: Scope, subject: str, to: str = "smtp:a.test:25", *, until: int | None = None) -> Rerouted:
    return Rerouted(scope, subject, to, "ann", "", NOW, until)


def test_hops_are_read() -> None:
    assert parse_next_hop("smtps:[2001:db8::1]:465,login=relay") == NextHop(
        NextHopKind.SMTP, "2001:db8::1", 465, HopTls.IMPLICIT, "relay"
    )
    assert parse_next_hop("smtp+tls:relay.test:587").tls is HopTls.VERIFIED
    assert parse_next_hop("relay").kind is NextHopKind.RELAY


@pytest.mark.parametrize(
    "text", ["smtp:relay.test:25,login=x", "lmtp:a:24,login=x", "smtps:a:465,login=", "smtps:a:0", "smtps:a"]
)
def test_a_login_goes_under_verified_tls_alone(text: str) -> None:
    with pytest.raises(NextHopSyntax):
        parse_next_hop(text)


def test_the_order_of_routes() -> None:
    routes = made(
        routes={"exact.test": "smtp:1.test:25", ".wide.test": "smtp:2.test:25"},
        organizations={"org_a": "smtp:3.test:25", "Acme": "smtp:4.test:25"},
    )
    routes.name_organizations([Organization("org_z", "Acme", "active", 0)])
    told = {
        domain: getattr(hop(routes, replace(ONE, domain=domain)), "host", "home")
        for domain in ("exact.test", "x.wide.test", "other.test", "home.test")
    }
    assert told == {
        "exact.test": "1.test", "x.wide.test": "2.test", "other.test": "3.test", "home.test": "home"
    }  # fmt: skip
    assert hop(routes, replace(ONE, organization_id="org_z")).host == "4.test"
    assert hop(routes, replace(ONE, organization_id="org_b")).kind is NextHopKind.MX


def test_the_narrowest_route_that_was_set_counts() -> None:
    routes = made()
    scopes = [
        (Scope.ALL, ""), (Scope.ORGANIZATION, "org_a"), (Scope.DOMAIN, "peer.test"),
        (Scope.MESSAGE, "msg_1"), (Scope.DELIVERY, "dlv_1"),
    ]  # fmt: skip
    found: list[Rerouted] = []
    for number, (scope, subject) in enumerate(scopes):
        found.append(rerouted(scope, subject, f"smtp:h{number}.test:25"))
        routes.put(found)
        assert hop(routes).host == f"h{number}.test"
    assert routes.apart(ONE) == "dlv_1"
    assert routes.apart(replace(ONE, id="dlv_2")) == ""
    assert hop(routes, replace(ONE, domain="home.test")) == HOME


def test_a_route_ends() -> None:
    routes = made()
    routes.put([rerouted(Scope.DOMAIN, "peer.test", until=NOW + 1)])
    assert hop(routes).host == "a.test"
    assert hop(routes, now=NOW + 1).kind is NextHopKind.MX


def test_the_lane_stands_in_for_the_dns_alone() -> None:
    routes = made(routes={"fixed.test": "smtp:f.test:25"}, lane="smtp:lane.test:25")
    routes.put([rerouted(Scope.ALL, "", "relay")])
    assert hop(routes).host == "lane.test"
    assert hop(routes, replace(ONE, domain="fixed.test")).host == "f.test"
    without = made()
    without.put([rerouted(Scope.ALL, "", "relay")])
    assert hop(without).kind is NextHopKind.MX


def test_what_is_refused_for_our_reputation_goes_by_the_lane(make_world: MakeWorld) -> None:
    async def test() -> None:
        async with Scripted(REFUSAL) as peer, Scripted(script(HELLO, TAKE * 3)) as lane:
            world = make_world(relay_lane=f"smtp:127.0.0.1:{lane.port}", allow_private_addresses=True)
            world.zone.mx("peer.test", (10, "mx.peer.test")).a("mx.peer.test", "127.0.0.1")
            world.queue("dlv_1", message_id="msg_1")
            async with world.running() as scheduler:
                scheduler._carrier._transmitter._exchangers._port = peer.port
                await world.until(dlv_1="delivered")
                world.queue("dlv_2", message_id="msg_2")
                scheduler.wake()
                await world.until(dlv_2="delivered")
            assert (peer.connections, len(lane.bodies)) == (1, 2)
            (told,) = world.data("message.deferred")
            assert "relay lane" in str(told["text"])
            assert told["code"] == 554
            (route,) = world.database.read(lambda c: rerouting.routes(c, at=NOW))
            assert (route.subject, route.hop, route.actor) == ("peer.test", "relay", "delivery")

    run(test())


def test_without_a_lane_a_refusal_stands(make_world: MakeWorld) -> None:
    async def test() -> None:
        async with Scripted(REFUSAL) as peer:
            world = make_world(allow_private_addresses=True)
            world.zone.mx("peer.test", (10, "mx.peer.test")).a("mx.peer.test", "127.0.0.1")
            world.queue("dlv_1", message_id="msg_1")
            async with world.running() as scheduler:
                scheduler._carrier._transmitter._exchangers._port = peer.port
                await world.until(dlv_1="bounced")

    run(test())


def test_a_route_set_while_the_server_runs_counts_at_once(make_world: MakeWorld) -> None:
    async def test() -> None:
        async with Scripted(script(HELLO, TAKE)) as server:
            world = make_world()
            async with world.running() as scheduler:
                route = rerouted(Scope.DOMAIN, "peer.test", f"smtp:127.0.0.1:{server.port}")
                await world.threads.write(lambda c: rerouting.put(c, route))
                scheduler._on_routes(None)  # type: ignore[arg-type]  # the hub's word in a daemon
                await asyncio.to_thread(world.queue, "dlv_1", message_id="msg_1")
                scheduler.wake()
                await world.until(dlv_1="delivered")

    run(test())


class Zones:
    """Lists by zone and address; 'silent' does not answer."""

    def __init__(self, **codes: dict[str, str]) -> None:
        self.codes = codes

    async def ask(self, zone: str, _kind: Any, value: str) -> frozenset[str]:
        if zone == "silent":
            raise DnsTemporary(zone)
        return frozenset(filter(None, [self.codes.get(zone, {}).get(value)]))


@pytest.mark.parametrize(("listed", "hops"), [("192.0.2.1", ["relay"]), ("192.0.2.99", [])])
def test_all_goes_by_the_lane_while_we_are_listed(
    make_world: MakeWorld, listed: str, hops: list[str]
) -> None:
    async def test() -> None:
        world = make_world()
        async with world.running() as scheduler:
            keeper = RouteKeeper(made(), threads=world.threads, clock=world.clock)
            lists = BlockLists(
                zones=Zones(bl={listed: "127.0.0.2"}),  # type: ignore[arg-type]  # answers the one question
                lists=["silent", "bl"],
                addresses=["192.0.2.1", "192.0.2.2"],
                keeper=keeper,
            )
            await lists.turn()
            found = await world.threads.read(lambda c: rerouting.routes(c, at=NOW))
            assert [one.hop for one in found] == hops
            assert all("192.0.2.1 is listed by bl: 127.0.0.2" in one.reason for one in found)
            del scheduler

    run(test())
