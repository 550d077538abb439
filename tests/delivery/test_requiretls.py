"""A message that requires TLS goes only where its way is proved (RFC 8689 4.2.1), to a server of our own."""

import asyncio
import random
import ssl
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from server.delivery.attempt import Group, Transmitter
from server.delivery.exchangers import Exchangers
from server.delivery.letter import Letter
from server.delivery.pool import Pool
from server.dns import Answer
from server.next_hop import parse_next_hop
from server.smtp.client import Timeouts
from server.tls import ServerTls, make_self_signed, opportunistic_context, verifying_context
from storage.records import DeliveryState, Outcome
from tests.delivery.test_attempt import delivery
from tests.delivery.world import Zone
from tests.fakes import FakeClock
from tests.smtp.fakes import FakeIntake, running

LETTER = Letter(Path("/nowhere"), 14, False, False, False, b"a: b\r\n\r\nbody\r\n")


@dataclass
class Proved(Zone):
    """DNS answers that a validating resolver vouches for."""

    async def resolve(self, name: str, rdtype: str) -> Answer:
        return replace(await super().resolve(name, rdtype), authenticated=True)


def run(test: Awaitable[None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await test

    asyncio.run(limited())


async def send(
    zone: Zone, port: int, *, trusted: Path | None = None, hop: str = "mx", by: str = "require_tls"
) -> Outcome:
    pool = Pool(
        hostname="us.test",
        tls=opportunistic_context(),
        timeouts=Timeouts(connect=2, command=2, data=2, final=2),
        clock=FakeClock(),
        idle_seconds=5,
        messages_per_connection=100,
        verifying=lambda: verifying_context(trusted),
    )
    transmitter = Transmitter(
        pool=pool,
        exchangers=Exchangers(zone, hostname="us.test", allow_private_addresses=True, port=port),
        threads=None,  # type: ignore[arg-type]  # content comes from memory
        clock=FakeClock(),
        hostname="us.test",
        dice=random.Random(1),
    )
    one = delivery(1, "peer.test")
    one = replace(one, envelope=replace(one.envelope, **{by: True}))

    async def begin(_deliveries: object) -> None:
        return

    try:
        return (await transmitter.send(Group("peer.test", parse_next_hop(hop), (one,)), LETTER, begin=begin))[
            one.id
        ]
    finally:
        pool.close()


def server_tls(directory: Path, name: str) -> tuple[ssl.SSLContext, Path]:
    files = make_self_signed(directory, names=[name])
    return ServerTls(*files).context(), files[0]


def hosts(zone: Zone) -> Zone:
    return zone.mx("peer.test", (10, "a.test")).a("a.test", "127.0.0.1")


def test_it_goes_under_verified_tls_with_its_parameter(tmp_path: Path) -> None:
    async def test() -> None:
        tls, certificate = server_tls(tmp_path, "a.test")
        intake = FakeIntake()
        async with running(tls=tls, intake=intake) as rig:
            found = await send(hosts(Proved()), rig.mx, trusted=certificate)
        assert found.state is DeliveryState.DELIVERED, found
        assert found.tls_version == "TLSv1.3"
        assert intake.arrivals[0].envelope.require_tls

    run(test())


def test_a_name_that_the_configuration_gives_needs_no_dnssec(tmp_path: Path) -> None:
    async def test() -> None:
        tls, certificate = server_tls(tmp_path, "127.0.0.1")
        async with running(tls=tls) as rig:
            found = await send(Zone(), 1, trusted=certificate, hop=f"smtp:127.0.0.1:{rig.mx}")
        assert found.state is DeliveryState.DELIVERED, found

    run(test())


@pytest.mark.parametrize("case", ["unproved name", "another name", "stranger's certificate", "no tls"])
def test_it_bounces_where_the_way_is_not_proved(tmp_path: Path, case: str) -> None:
    async def test() -> None:
        tls, certificate = server_tls(tmp_path, "b.test" if case == "another name" else "a.test")
        zone = hosts(Zone() if case == "unproved name" else Proved())
        trusted = None if case == "stranger's certificate" else certificate
        intake = FakeIntake()
        async with running(tls=None if case == "no tls" else tls, intake=intake) as rig:
            found = await send(zone, rig.mx, trusted=trusted)
        assert (found.state, found.code, found.enhanced) == (DeliveryState.BOUNCED, 550, "5.7.30"), found
        assert intake.arrivals == []

    run(test())


def test_by_policy_it_goes_under_tls_to_the_named_host_though_no_dnssec_proves_it(tmp_path: Path) -> None:
    async def test() -> None:
        tls, certificate = server_tls(tmp_path, "a.test")
        intake = FakeIntake()
        async with running(tls=tls, intake=intake) as rig:
            found = await send(hosts(Zone()), rig.mx, trusted=certificate, by="tls_only")
        assert found.state is DeliveryState.DELIVERED, found
        assert found.tls_version == "TLSv1.3"
        assert not intake.arrivals[0].envelope.require_tls

    run(test())


@pytest.mark.parametrize("case", ["another name", "stranger's certificate", "no tls"])
def test_by_policy_it_bounces_where_no_certificate_says_who_is_there(tmp_path: Path, case: str) -> None:
    async def test() -> None:
        tls, certificate = server_tls(tmp_path, "b.test" if case == "another name" else "a.test")
        trusted = None if case == "stranger's certificate" else certificate
        intake = FakeIntake()
        async with running(tls=None if case == "no tls" else tls, intake=intake) as rig:
            found = await send(hosts(Zone()), rig.mx, trusted=trusted, by="tls_only")
        assert (found.state, found.code, found.enhanced) == (DeliveryState.BOUNCED, 550, "5.7.30"), found
        assert intake.arrivals == []

    run(test())


def test_a_host_that_does_not_answer_is_tried_again_later(tmp_path: Path) -> None:
    async def test() -> None:
        async with running() as rig:
            port = rig.mx
        found = await send(hosts(Proved()), port)
        assert found.state is DeliveryState.DEFERRED

    run(test())
