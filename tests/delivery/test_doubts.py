"""The part that ends doubts and looks after verdicts, over a real queue."""

import asyncio
from typing import Any

import pytest

from server.delivery.doubts import Doubts
from storage import doubt, events, ids
from storage.doubt import Verdict
from storage.records import Event
from tests.delivery.test_scheduler import MakeWorld, run
from tests.delivery.world import World
from tests.storage.queued import NOW


def doubted(world: World, name: str = "dlv_1") -> None:
    world.queue(name, message_id=f"msg_{name}", state="held", next_attempt_at=None, begun_at=NOW - 1)


def part(world: World, *, seconds: int = 3600, unanswered: str = "bounce") -> Doubts:
    return Doubts(threads=world.threads, clock=world.clock, seconds=seconds, unanswered=unanswered)


@pytest.mark.parametrize(("seconds", "state"), [(3600, "expired"), (0, "held"), (90_000, "held")])
def test_a_doubt_ends_at_its_deadline_and_its_file_goes_where_nobody_is_told(
    make_world: MakeWorld, seconds: int, state: str
) -> None:
    async def test() -> None:
        world = make_world()
        doubted(world)
        async with world.running():
            world.clock.advance(3601)
            await part(world, seconds=seconds).turn()
            assert world.states() == {"dlv_1": state}

    run(test())


def test_later_evidence_is_told_by_the_part(make_world: MakeWorld) -> None:
    async def test() -> None:
        world = make_world()
        doubted(world)

        def decide(connection: Any) -> None:
            doubt.decide(
                connection, delivery_id="dlv_1", verdict=Verdict.NOT_SENT, actor="ann", reason="", at=NOW
            )
            complaint = Event(
                ids.new("evt"),
                "message.complained",
                NOW,
                "org_a",
                "msg_dlv_1",
                data={"recipient": "r@peer.test"},
            )
            events.append(connection, [complaint])

        async with world.running() as scheduler:
            await asyncio.to_thread(world.database.write, decide)
            doubts = part(world)
            for _ in range(2):
                await doubts.turn()
            assert len(world.log("message.verdict_corrected")) == 1
            del scheduler

    run(test())
