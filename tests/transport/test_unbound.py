"""DANE behind Debian's unbound: zones that are signed, plain, or bogus."""

import os
from pathlib import Path

import pytest

from server.dns import CachingResolver
from server.transport.security import Tlsa
from storage.records import DeliveryState
from tests.daemon.running import free_ports
from tests.transport import unbound
from tests.transport.authority import Holder, make, server_context
from tests.transport.test_dane import tlsa
from tests.transport.world import DOMAIN, HOST, Peer, World, go

pytestmark = [
    pytest.mark.skipif(not os.path.exists(unbound.UNBOUND), reason="no unbound"),
    pytest.mark.interop,
]
OWN = make("self")


def zone(*records: Tlsa) -> unbound.Zone:
    return {
        DOMAIN: {"MX": [f"10 {HOST}."]},
        HOST: {"A": ["127.0.0.1"]},
        f"_25._tcp.{HOST}": {"TLSA": [str(one) for one in records]},
    }


async def attempt(world: World, address: str, own: Holder = OWN) -> tuple[DeliveryState, str, bool]:
    await world.host(Peer(server_context(world.directory / "p", own)))
    await world.resolver.close()
    world.resolver = CachingResolver(
        servers=(address,), timeout_seconds=5.0, cache_entries=100, clock=world.clock
    )
    exchangers, protection = world.transmitter._exchangers, world.transmitter._protection
    assert protection is not None
    exchangers._resolver = protection._resolver = world.resolver
    found = await world.send()
    return found.state, found.tls_policy, found.tls_version is not None


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("signed", (DeliveryState.DELIVERED, "dane", True)),
        ("another key", (DeliveryState.DEFERRED, "dane", False)),
        ("bogus", (DeliveryState.DEFERRED, "dane", False)),
        ("plain", (DeliveryState.DELIVERED, "opportunistic", True)),
        ("no record", (DeliveryState.DELIVERED, "opportunistic", True)),
    ],
)
def test_what_a_validating_resolver_says_decides(
    tmp_path: Path, case: str, expected: tuple[DeliveryState, str, bool]
) -> None:
    told = zone(tlsa(3, 1, 1, make("x") if case == "another key" else OWN))
    if case == "no record":
        told = {name: records for name, records in told.items() if not name.startswith("_25.")}
    signed = {} if case == "plain" else {DOMAIN: told}
    plain = {DOMAIN: told} if case == "plain" else {}
    (port,) = free_ports(1)
    bogus = [f"_25._tcp.{HOST}."] if case == "bogus" else []

    async def scenario(world: World) -> None:
        assert await attempt(world, f"127.0.0.1:{port}") == expected

    with unbound.running(tmp_path / "unbound", port, signed, plain=plain, bogus=bogus):
        go(tmp_path, scenario)
