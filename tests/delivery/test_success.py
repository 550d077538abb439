"""Who tells of success after a delivery: one notice a recipient, by whoever knows (RFC 3461 5.2, 6.2)."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from storage.codec import envelope_text
from storage.records import Envelope
from storage.schema import messages
from tests.delivery.world import World
from tests.smtp.scripted import HELLO, Scripted, script

MakeWorld = Callable[..., World]
WITHOUT_DSN = HELLO.replace("S 250-DSN\n", "")
TAKE = """
C MAIL
S 250 ok
C RCPT
S 250 ok
C DATA
S 354 go
BODY
S 250 2.0.0 queued
"""


def run(test: Awaitable[None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await test

    asyncio.run(limited())


def queue(world: World, notify: str | None = "SUCCESS") -> None:
    world.queue("dlv_1", message_id="msg_1", notify=notify, orcpt="rfc822;first@peer.test")
    envelope = Envelope("sender@ours.test", (), ret="HDRS", envid="env-1")
    query = messages.update().values(envelope=envelope_text(envelope))
    world.database.write(lambda c: c.execute(query) and None)


async def deliver(world: World) -> list[object]:
    """Deliver and return what each event of success says of the handover."""
    async with world.running():
        await world.until(dlv_1="delivered")
    return [said["handover"] for said in world.data("message.succeeded")]


@pytest.mark.parametrize(
    ("hello", "protocol", "told"),
    [
        (HELLO, "smtp", []),
        (WITHOUT_DSN, "smtp", ["relayed"]),
        (WITHOUT_DSN.replace("EHLO", "LHLO"), "lmtp", ["delivered"]),
        (HELLO.replace("EHLO", "LHLO"), "lmtp", []),
    ],
)
def test_the_next_hop_tells_where_it_took_the_parameters(
    make_world: MakeWorld, hello: str, protocol: str, told: list[str]
) -> None:
    async def test() -> None:
        async with Scripted(script(hello, TAKE)) as server:
            world = make_world(routes={"peer.test": f"{protocol}:127.0.0.1:{server.port}"})
            queue(world)
            assert await deliver(world) == told
            (rcpt,) = [line for line in server.lines if line.startswith("RCPT")]
            assert ("NOTIFY=SUCCESS" in rcpt) == (told == [])

    run(test())


@pytest.mark.parametrize("notify", [None, "NEVER", "FAILURE,DELAY"])
def test_success_nobody_asked_for_is_not_told(make_world: MakeWorld, notify: str | None) -> None:
    async def test() -> None:
        async with Scripted(script(WITHOUT_DSN, TAKE)) as server:
            world = make_world(routes={"peer.test": f"smtp:127.0.0.1:{server.port}"})
            queue(world, notify)
            assert await deliver(world) == []

    run(test())


def test_what_the_outbox_captures_is_not_called_delivered(make_world: MakeWorld) -> None:
    world = make_world(default_route="capture")
    queue(world)

    async def test() -> None:
        assert await deliver(world) == ["relayed"]

    run(test())


def test_an_inbox_of_ours_ends_the_parameters_and_is_told_once(world: World) -> None:
    world.home.domains = frozenset({"peer.test"})
    queue(world)

    async def test() -> None:
        assert await deliver(world) == ["delivered"]

    run(test())
    (arrival,) = world.inbox.arrivals
    (recipient,) = arrival.envelope.recipients
    assert (recipient.notify, recipient.orcpt) == (None, None)
    assert (arrival.envelope.ret, arrival.envelope.envid) == (None, None)


def test_a_forward_takes_the_parameters_along_and_nothing_is_told_before_it(world: World) -> None:
    world.home.domains = frozenset({"peer.test"})
    world.home.forwards["r@peer.test"] = "elsewhere@far.test"
    queue(world)

    async def test() -> None:
        assert await deliver(world) == []

    run(test())
    (arrival,) = world.inbox.arrivals
    (recipient,) = arrival.envelope.recipients
    assert (recipient.notify, recipient.orcpt) == (frozenset({"SUCCESS"}), "rfc822;first@peer.test")
    assert (arrival.envelope.ret, arrival.envelope.envid) == ("HDRS", "env-1")
