"""Held mail whose time is over: ended by the part that looks for it, told by the bouncer."""

import asyncio

import pytest

from server.delivery.held import HeldExpiry
from server.threads import Threads
from tests.delivery.test_bounce import catch_up, content, describe
from tests.delivery.world import World

MONTH = 30 * 86_400


async def turn(world: World, *, seconds: int = MONTH, answer: str = "own", started: bool = False) -> None:
    world.threads = Threads(world.shelf, world.hub)  # type: ignore[arg-type]  # the parts that are used
    expiry = HeldExpiry(threads=world.threads, clock=world.clock, seconds=seconds, answer=answer)
    try:
        if not started:
            await expiry.turn()
            return
        await expiry.start()
        async with asyncio.timeout(20):
            while seconds and "held" in world.states().values():
                await asyncio.sleep(0.01)
    finally:
        await expiry.stop()
        await asyncio.to_thread(world.threads.close)


def fill(world: World, *, source: str = "submission") -> None:
    world.queue("dlv_1", message_id="msg_1", state="held", next_attempt_at=None)
    describe(world, "msg_1", source=source)


def test_a_sender_of_this_server_is_told_that_nobody_decided(world: World) -> None:
    fill(world)
    world.clock.advance(MONTH + 1)
    asyncio.run(turn(world))
    assert world.states() == {"dlv_1": "expired"}
    assert world.shelf.message_path("msg_1").exists()
    asyncio.run(catch_up(world))
    text = content(world)
    assert b"Status: 5.4.7\r\n" in text
    assert b"held for a decision that did not come in time" in text
    assert not world.shelf.message_path("msg_1").exists()


def test_what_came_from_elsewhere_is_discarded_and_its_file_goes(world: World) -> None:
    fill(world, source="mx")
    world.clock.advance(MONTH + 1)
    asyncio.run(turn(world))
    assert world.states() == {"dlv_1": "cancelled"}
    assert not world.shelf.message_path("msg_1").exists()
    asyncio.run(catch_up(world))
    assert world.inbox.arrivals == []
    (event,) = world.log("message.cancelled")
    assert event.data["actor"] == "expiry"


def test_the_part_looks_at_its_start(world: World) -> None:
    fill(world)
    world.clock.advance(MONTH + 1)
    asyncio.run(turn(world, started=True))
    assert world.states() == {"dlv_1": "expired"}


def test_zero_holds_for_ever(world: World) -> None:
    fill(world)
    world.clock.advance(100 * MONTH)
    asyncio.run(turn(world, seconds=0, started=True))
    assert world.states() == {"dlv_1": "held"}


def test_an_unknown_answer_is_no_answer() -> None:
    with pytest.raises(ValueError):
        HeldExpiry(threads=None, clock=None, seconds=1, answer="perhaps")  # type: ignore[arg-type]
