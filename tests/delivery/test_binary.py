"""A binary message on its way out of the queue: encoded for every next hop, or bounced."""

import asyncio
from collections.abc import Awaitable, Callable
from email import message_from_bytes

import pytest

from storage.codec import envelope_text
from storage.records import Envelope
from storage.schema import messages
from tests.delivery.world import World
from tests.smtp.fakes import running

MakeWorld = Callable[..., World]
HEADER = b"Subject: b\r\nContent-Type: %b\r\nContent-Transfer-Encoding: binary\r\n\r\n"
BODY = bytes(range(256))


def run(test: Awaitable[None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await test

    asyncio.run(limited())


def queue(world: World, content: bytes) -> None:
    world.queue("dlv_1", message_id="msg_1", content=content)
    text = envelope_text(Envelope("sender@far.test", (), body="BINARYMIME"))
    query = messages.update().values(envelope=text)
    world.database.write(lambda c: c.execute(query) and None)


@pytest.mark.parametrize("times", [1, 4000])
def test_it_goes_out_encoded_whatever_its_size(make_world: MakeWorld, times: int) -> None:
    async def test() -> None:
        async with running() as rig:
            world = make_world(routes={"peer.test": f"smtp:127.0.0.1:{rig.mx}"})
            queue(world, HEADER % b"image/x-any" + BODY * times)
            async with world.running():
                await world.until(dlv_1="delivered")
            (arrival,) = rig.intake.arrivals
            content = arrival.content
            if not isinstance(content, bytes):
                content = bytes(rig.intake.spools.writers[0].content)
            assert arrival.envelope.body == "7BIT"
            assert message_from_bytes(content).get_payload(decode=True) == BODY * times
            declared = next(call[-1] for call in rig.intake.calls if call[0] == "sender")
            assert declared == len(content)

    run(test())


def test_what_cannot_be_encoded_bounces(make_world: MakeWorld) -> None:
    async def test() -> None:
        world = make_world(routes={"peer.test": "smtp:127.0.0.1:1"})
        queue(world, HEADER % b"message/partial" + BODY)
        async with world.running():
            await world.until(dlv_1="bounced")
        (said,) = world.data("message.bounced")
        assert (said["code"], said["enhanced"]) == (554, "5.6.3")

    run(test())
