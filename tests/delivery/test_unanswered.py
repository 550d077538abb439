"""Forwarded mail from the null sender that fails: held for a person, for nobody may be told."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from server.delivery.forwarding import is_unanswerable
from server.routing import return_address
from storage import ids, queue, queue_acts, schema, unanswered
from storage.codec import envelope_text, read_envelope
from storage.queue import Pick, Settlement
from storage.records import Delivery, DeliveryState, Envelope, Outcome, Recipient, Source
from tests.delivery.test_bounce import catch_up, describe
from tests.delivery.test_scheduler import MakeWorld, routed, run
from tests.delivery.world import World
from tests.smtp.scripted import PLAIN_HELLO, Scripted, script
from tests.storage.queued import HOUR, NOW

REFUSED = Outcome(DeliveryState.BOUNCED, 550, "5.1.1", "no such user", "rcpt", "mx.peer.test", "192.0.2.1")
NO_USER = ("C MAIL", "S 250 ok", "C RCPT", "S 550 5.1.1 no such user", "WAIT")


def described(world: World, message_id: str = "msg_1", *, source: str = "mx", named: str = "") -> None:
    describe(world, message_id, source=source, reverse_path=None)
    if named:
        made = read_envelope(world.database.read(lambda c: stored(c, message_id)))
        text = envelope_text(replace(made, recipients=(Recipient(named),)))
        query = update(schema.messages).where(schema.messages.c.id == message_id).values(envelope=text)
        world.database.write(lambda c: c.execute(query) and None)


def stored(connection: Any, message_id: str) -> str:
    query = schema.messages.select().where(schema.messages.c.id == message_id)
    text: str = connection.execute(query).one().envelope
    return text


def settle(world: World, *, unanswerable: bool = True, outcome: Outcome = REFUSED) -> queue.Settled:
    def unit(connection: Any) -> queue.Settled:
        pick = Pick("org_a", "peer.test", 0, 1000)
        held = queue.lease(connection, picks=[pick], token="t", now=NOW, until=NOW + HOUR)
        made = [Settlement(one, outcome, unanswerable=unanswerable) for one in held]
        return queue.settle(connection, settlements=made, at=NOW)

    return world.database.write(unit)


@pytest.mark.parametrize("source", ["mx", "lmtp", "local", "forward"])
def test_a_forward_from_the_null_sender_that_is_refused_is_held_and_can_be_released(
    make_world: MakeWorld, source: str
) -> None:
    async def test() -> None:
        async with Scripted(script(PLAIN_HELLO, *NO_USER)) as server:
            world = make_world(**routed(server))
            world.queue("dlv_1", message_id="msg_1")
            described(world, source=source)
            async with world.running():
                await world.until(dlv_1="held")
            (told,) = world.data("message.held")
            assert (told["actor"], told["code"], told["text"]) == ("delivery", 550, "no such user")
            assert world.log("message.bounced") == []
            assert world.shelf.message_path("msg_1").exists()
            row = world.row("dlv_1")
            assert (row.lease, row.next_attempt_at) == (None, None)

    run(test())


def test_a_forward_that_expires_is_held_too(make_world: MakeWorld) -> None:
    async def test() -> None:
        async with Scripted(script(PLAIN_HELLO, "C MAIL", "S 451 4.3.0 still no", "WAIT")) as server:
            world = make_world(**routed(server))
            world.queue("dlv_1", message_id="msg_1", tries=9, state="deferred", expires_at=NOW)
            described(world)
            async with world.running():
                await world.until(dlv_1="held")

    run(test())


@pytest.mark.parametrize("source", ["notice", "submission", "api"])
def test_what_this_server_or_its_users_say_ends_as_before(make_world: MakeWorld, source: str) -> None:
    async def test() -> None:
        async with Scripted(script(PLAIN_HELLO, *NO_USER)) as server:
            world = make_world(**routed(server))
            world.queue("dlv_1", message_id="msg_1")
            described(world, source=source)
            async with world.running():
                await world.until(dlv_1="bounced")

    run(test())


def test_a_notice_on_its_way_back_to_a_sender_is_not_held(make_world: MakeWorld) -> None:
    async def test() -> None:
        async with Scripted(script(PLAIN_HELLO, *NO_USER)) as server:
            world = make_world(**routed(server))
            world.queue("dlv_1", message_id="msg_1")
            described(world, named=return_address(ids.new("dlv"), "ours.test"))
            async with world.running():
                await world.until(dlv_1="bounced")

    run(test())


def test_released_it_is_tried_again_and_held_again(world: World) -> None:
    world.queue("dlv_1", message_id="msg_1")
    described(world)
    assert settle(world).finished == ()
    assert world.states() == {"dlv_1": "held"}
    selection = queue_acts.Selection(delivery_id="dlv_1")
    world.database.write(lambda c: queue_acts.release(c, selection=selection, actor="me", at=NOW))
    settle(world)
    assert world.states() == {"dlv_1": "held"}
    asyncio.run(catch_up(world))
    assert world.inbox.arrivals == []


def test_a_flood_is_held_up_to_a_limit_and_ends_beyond_it(world: World, monkeypatch: Any) -> None:
    monkeypatch.setattr(unanswered, "HELD_LIMIT", 3)
    world.queue("dlv_0", message_id="msg_0", state="held", next_attempt_at=None)
    for number in range(1, 6):
        world.queue(f"dlv_{number}", message_id=f"msg_{number}")
        described(world, f"msg_{number}")
    settle(world)
    states = list(world.states().values())
    assert (states.count("held"), states.count("bounced")) == (3, 3)


def test_what_did_not_fail_is_not_held(world: World) -> None:
    world.queue("dlv_1", message_id="msg_1")
    settle(world, outcome=Outcome(DeliveryState.DELIVERED, 250, "2.0.0", "ok"))
    assert world.states() == {"dlv_1": "delivered"}


def test_without_the_word_of_the_sender_a_failure_ends_it(world: World) -> None:
    world.queue("dlv_1", message_id="msg_1")
    settle(world, unanswerable=False)
    assert world.states() == {"dlv_1": "bounced"}


def test_only_the_null_sender_of_mail_from_elsewhere_is_unanswerable() -> None:
    delivery = Delivery(
        id="dlv_1",
        organization_id="org_a",
        message_id="msg_1",
        recipient=Recipient("r@peer.test"),
        domain="peer.test",
        state=DeliveryState.ACTIVE,
        tries=0,
        created_at=0,
        next_attempt_at=0,
        expires_at=0,
        lease=None,
        envelope=Envelope(None, ()),
        octets=1,
        source=Source.MX,
        named=("desk@ours.test",),
    )
    assert is_unanswerable(delivery)
    assert not is_unanswerable(replace(delivery, envelope=Envelope("a@b.test", ())))
    assert not is_unanswerable(replace(delivery, source=Source.NOTICE))
    assert is_unanswerable(replace(delivery, named=("fwd-short@ours.test",)))
