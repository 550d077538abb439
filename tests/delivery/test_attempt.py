"""The walk over hosts, pooled connections, and TLS as it can be had."""

import asyncio
import random
import socket
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

import pytest

from server.delivery.attempt import Group, Transmitter
from server.delivery.exchangers import Exchangers
from server.delivery.letter import Letter
from server.delivery.pool import Pool
from server.next_hop import parse_next_hop
from server.smtp.client import Timeouts
from server.tls import make_self_signed, opportunistic_context
from storage.records import Delivery, Outcome
from tests.delivery.test_backlog import delivery
from tests.delivery.world import Zone
from tests.fakes import FakeClock
from tests.smtp.scripted import HELLO, PLAIN_HELLO, Scripted, script

BODY = b"a: b\r\n\r\nx\r\n"
LETTER = Letter(Path("/nowhere"), len(BODY), False, False, False, BODY)
TAKE = "C MAIL\nS 250 ok\nC RCPT\nS 250 ok\nC DATA\nS 354 go\nBODY\nS 250 ok"


def run(test: Awaitable[None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await test

    asyncio.run(limited())


class Sender:
    """A transmitter whose hosts all listen on one port."""

    def __init__(self, zone: Zone, port: int, *, tls: bool = False, idle_seconds: float = 5.0) -> None:
        self.clock = FakeClock()
        self.begun: list[str] = []
        self.pool = Pool(
            hostname="us.test",
            tls=opportunistic_context() if tls else None,
            timeouts=Timeouts(connect=2, command=1, data=1, final=1),
            clock=self.clock,
            idle_seconds=idle_seconds,
            messages_per_connection=100,
        )
        exchangers = Exchangers(zone, hostname="us.test", allow_private_addresses=True, port=port)
        self.transmitter = Transmitter(
            pool=self.pool,
            exchangers=exchangers,
            threads=None,  # type: ignore[arg-type]  # content comes from memory
            clock=self.clock,
            hostname="us.test",
            dice=random.Random(1),
        )

    async def send(self, number: int = 1, domain: str = "peer.test", **given: Any) -> Outcome:
        one = delivery(number, domain)

        async def begin(deliveries: Sequence[Delivery]) -> None:
            self.begun += [item.id for item in deliveries]

        group = Group(domain, parse_next_hop(given.get("hop", "mx")), (one,))
        return (await self.transmitter.send(group, LETTER, begin=begin))[one.id]


def two_hosts() -> Zone:
    zone = Zone().mx("peer.test", (10, "a.test"), (20, "b.test"))
    return zone.a("a.test", "127.0.0.1").a("b.test", "127.0.0.2")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("first", ["S 554 no", "S 421 busy", "CLOSE", "S 220 a\nC EHLO\nS 421 no"])
def test_a_host_that_takes_no_mail_gives_way_to_the_next(first: str) -> None:
    async def test() -> None:
        async with (
            Scripted(first) as bad,
            Scripted(script(HELLO, TAKE), host="127.0.0.2", port=bad.port) as good,
        ):
            sender = Sender(two_hosts(), good.port)
            found = await sender.send()
            assert (found.state.value, found.host, found.address) == ("delivered", "b.test", "127.0.0.2")
            assert sender.begun == ["dlv_1"]
            # For a while the first one is passed over without a wait.
            await sender.send(2)
            assert bad.connections == 1
            sender.clock.advance(61)
            await sender.send(3)

    run(test())


def both_families(zone: Zone) -> Zone:
    return zone.mx("peer.test", (10, "a.test")).a("a.test", "::1").a("a.test", "127.0.0.1")


def test_a_family_that_refuses_gives_way_to_the_other() -> None:
    async def test() -> None:
        async with Scripted(script(HELLO, TAKE)) as server:
            found = await Sender(both_families(Zone()), server.port).send()
            assert (found.state.value, found.address) == ("delivered", "127.0.0.1")
            assert "::1" in found.passed_over[0]

    run(test())


def test_of_two_families_that_answer_one_is_spoken_to() -> None:
    async def test() -> None:
        async with (
            Scripted(script(HELLO, TAKE), host="::1") as wide,
            Scripted("S 554 not here", port=wide.port) as narrow,
        ):
            found = await Sender(both_families(Zone()), wide.port).send()
            assert (found.state.value, found.address) == ("delivered", "::1")
            assert narrow.connections == 0

    run(test())


def test_a_family_that_is_slower_comes_last_for_a_while() -> None:
    async def test() -> None:
        with socket.socket(socket.AF_INET6) as silent, socket.socket(socket.AF_INET6) as filler:
            async with Scripted(script(HELLO, TAKE)) as server:
                silent.bind(("::1", server.port))
                silent.listen(0)
                filler.setblocking(False)
                filler.connect_ex(("::1", server.port))
                with socket.socket(socket.AF_INET6) as more:
                    more.setblocking(False)
                    more.connect_ex(("::1", server.port))
                    sender = Sender(both_families(Zone()), server.port, idle_seconds=0)
                    for number in (1, 2):
                        found = await sender.send(number)
                        assert (found.state.value, found.address) == ("delivered", "127.0.0.1")

    run(test())


def test_a_refusal_after_the_greeting_is_the_answer_and_no_other_host_is_asked() -> None:
    async def test() -> None:
        refusing = script(PLAIN_HELLO, "C MAIL", "S 550 5.7.1 not you")
        async with (
            Scripted(refusing) as first,
            Scripted("S 220 x", host="127.0.0.2", port=first.port) as second,
        ):
            found = await Sender(two_hosts(), first.port).send()
            assert (found.state.value, found.phase, found.host) == ("bounced", "mail", "a.test")
            assert second.connections == 0

    run(test())


def test_a_host_that_bears_our_name_is_a_loop() -> None:
    async def test() -> None:
        async with Scripted("S 220 US.test ESMTP\nC EHLO\nS 250 us.test\nC QUIT") as server:
            found = await Sender(two_hosts(), server.port).send()
            assert (found.state.value, found.enhanced) == ("bounced", "5.4.6")

    run(test())


def test_nobody_there_is_temporary_and_named() -> None:
    async def test() -> None:
        zone = Zone().mx("peer.test", (10, "a.test")).a("a.test", "127.0.0.1")
        sender = Sender(zone, free_port())
        found = await sender.send()
        assert (found.state.value, found.phase, found.host) == ("deferred", "connect", "a.test")
        assert "refused" in found.text.lower()
        # While that is remembered the answer comes at once, and is the same.
        assert (await sender.send(2)).text == found.text

    run(test())


def test_an_idle_connection_is_used_again_and_closed_when_it_was_idle_for_long() -> None:
    async def test() -> None:
        async with Scripted(script(HELLO, TAKE, TAKE, "C QUIT")) as server:
            sender = Sender(Zone().a("peer.test", "127.0.0.1"), server.port, idle_seconds=0.2)
            await sender.send(1)
            await sender.send(2)
            assert sender.pool.idle == 1
            while sender.pool.idle:
                await asyncio.sleep(0.01)
            while server.lines[-1] != "QUIT":
                await asyncio.sleep(0.01)
            assert server.connections == 1

    run(test())


def test_a_server_that_hangs_up_while_idle_leaves_the_pool() -> None:
    async def test() -> None:
        async with Scripted(script(HELLO, TAKE)) as server:
            sender = Sender(Zone().a("peer.test", "127.0.0.1"), server.port)
            for number in range(3):
                assert (await sender.send(number)).state.value == "delivered"
                while sender.pool.idle:
                    await asyncio.sleep(0.01)
            assert server.connections == 3

    run(test())


def test_after_a_failed_handshake_the_next_attempt_goes_in_clear_and_says_so(tmp_path: Path) -> None:
    starttls = "S 220 mx\nC EHLO\nS 250-mx\nS 250 STARTTLS"
    broken = script(starttls, "C STARTTLS", "S 220 go", "CLOSE")
    clear = script(starttls, TAKE)

    async def test() -> None:
        async with Scripted(broken, clear) as server:
            sender = Sender(Zone().a("peer.test", "127.0.0.1"), server.port, tls=True)
            first = await sender.send(1)
            assert (first.state.value, first.phase) == ("deferred", "tls")
            second = await sender.send(2)
            assert second.state.value == "delivered"
            assert second.text.startswith("in clear, since the TLS handshake failed")
            assert second.tls_version is None

    run(test())


def test_tls_is_named_in_the_outcome(tmp_path: Path) -> None:
    certificate = make_self_signed(tmp_path, names=["mx.peer.test"])
    secure = script(
        "S 220 mx\nC EHLO\nS 250-mx\nS 250 STARTTLS\nC STARTTLS\nS 220 go\nTLS\nC EHLO\nS 250 mx", TAKE
    )

    async def test() -> None:
        async with Scripted(secure, certificate=certificate) as server:
            sender = Sender(Zone().a("peer.test", "127.0.0.1"), server.port, tls=True)
            found = await sender.send()
            assert (found.state.value, found.tls_version) == ("delivered", "TLSv1.3")
            assert found.tls_cipher

    run(test())


@pytest.mark.parametrize(
    ("announced", "transactions", "sessions"),
    [
        ("PIPELINING", [100, 100, 50], 1),
        ("LIMITS RCPTMAX=60", [60, 60, 60, 60, 10], 1),
        ("LIMITS RCPTMAX=5000 MAILMAX=2", [100, 100, 50], 2),
        ("limits mailmax=1 RCPTDOMAINMAX=1 rcptmax=125 OTHER=x", [100, 100, 50], 3),
        ("LIMITS RCPTMAX=0 MAILMAX=0x2", [100, 100, 50], 1),
    ],
)
def test_more_recipients_than_one_transaction_holds_go_in_several(
    announced: str, transactions: list[int], sessions: int
) -> None:
    received: list[int] = []
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.write(b"220 mx\r\n")
        count = 0
        while line := await reader.readline():
            if line.startswith(b"EHLO"):
                writer.write(f"250-mx\r\n250 {announced}\r\n".encode())
            elif line.startswith(b"RCPT"):
                count += 1
                writer.write(b"250 ok\r\n")
            elif line.startswith(b"DATA"):
                writer.write(b"354 go\r\n")
                while await reader.readline() != b".\r\n":
                    pass
                received.append(count)
                count = 0
                writer.write(b"250 ok\r\n")
            else:
                writer.write(b"250 ok\r\n")
        writer.close()

    async def test() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        sender = Sender(Zone().a("peer.test", "127.0.0.1"), server.sockets[0].getsockname()[1])
        members = tuple(delivery(number) for number in range(250))

        async def begin(_deliveries: Sequence[Delivery]) -> None:
            return None

        group = Group("peer.test", parse_next_hop("mx"), members)
        found = await sender.transmitter.send(group, LETTER, begin=begin)
        assert {one.state.value for one in found.values()} == {"delivered"}
        assert len(found) == 250
        assert (received, connections) == (transactions, sessions)
        sender.pool.close()
        server.close()

    run(test())


def test_a_server_without_smtputf8_is_told_the_domain_in_a_labels() -> None:
    from dataclasses import replace

    async def test() -> None:
        take = TAKE.replace("C RCPT", "C RCPT TO:<r@xn--bcher-kva.test>")
        async with Scripted(script(PLAIN_HELLO, take)) as server:
            sender = Sender(Zone().a("xn--bcher-kva.test", "127.0.0.1"), server.port)
            one = delivery(1, "xn--bcher-kva.test")
            recipient = replace(one.recipient, address="r@b\u00fccher.test")
            one = replace(one, recipient=recipient)

            async def begin(_deliveries: Sequence[Delivery]) -> None:
                return None

            group = Group(one.domain, parse_next_hop("mx"), (one,))
            found = await sender.transmitter.send(group, LETTER, begin=begin)
            assert found[one.id].state.value == "delivered"

    run(test())
