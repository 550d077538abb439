"""Who is told of a failure, and that nobody is told twice."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from server.delivery import bounce
from server.delivery.bounce import Bouncer, wants
from server.delivery.home import derived_id
from server.mail.dsn import Returned
from server.refusal import Refusal
from server.threads import Threads
from storage import events, queue, schema
from storage.codec import envelope_text
from storage.queue import Pick, Settlement
from storage.records import DeliveryState, Envelope, Event, Handover, Outcome, Recipient, Source
from tests.delivery.world import MESSAGE, World
from tests.storage.queued import HOUR, NOW

BOUNCED = Outcome(DeliveryState.BOUNCED, 550, "5.1.1", "no such user", "rcpt", "mx.peer.test", "192.0.2.1")
DEFERRED = Outcome(DeliveryState.DEFERRED, 451, "4.3.0", "later", "rcpt", "mx.peer.test", "192.0.2.1")


def run(test: Awaitable[None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await test

    asyncio.run(limited())


def fail(world: World, *, outcome: Outcome = BOUNCED, at: int = NOW, due: int | None = None) -> queue.Settled:
    """Settle all that is due for peer.test with one outcome, in one unit."""

    def unit(connection: Any) -> queue.Settled:
        pick = Pick("org_a", "peer.test", 0, 1000)
        held = queue.lease(connection, picks=[pick], token=f"t{at}", now=at, until=at + HOUR)
        settlements = [Settlement(one, outcome, due) for one in held]
        return queue.settle(connection, settlements=settlements, at=at, delay_notice_after=4 * HOUR)

    return world.database.write(unit)


def describe(world: World, message_id: str, *, source: str = "submission", **envelope: Any) -> None:
    made = Envelope(envelope.pop("reverse_path", "sender@ours.test"), (), **envelope)
    query = schema.messages.update().where(schema.messages.c.id == message_id)
    query = query.values(envelope=envelope_text(made), reverse_path=made.reverse_path, source=source)
    world.database.write(lambda c: c.execute(query) and None)


async def catch_up(world: World, times: int = 1) -> Bouncer:
    world.threads = Threads(world.shelf, world.hub)  # type: ignore[arg-type]  # the parts that are used
    bouncer = make(world)
    for _ in range(times):
        await bouncer.catch_up()
    await asyncio.to_thread(world.threads.close)
    return bouncer


def make(world: World) -> Bouncer:
    return Bouncer(
        threads=world.threads,
        hub=world.hub,
        intake=world.inbox,  # type: ignore[arg-type]  # takes the one call made
        clock=world.clock,
        hostname="us.test",
    )


def content(world: World, index: int = 0) -> bytes:
    found = world.inbox.arrivals[index].content
    assert isinstance(found, bytes)
    return found


def test_a_bounce_goes_to_the_sender_from_the_null_reverse_path(world: World) -> None:
    world.queue("dlv_1", message_id="msg_1", orcpt="rfc822;first@peer.test")
    describe(world, "msg_1", envid="env-1")
    fail(world)
    run(catch_up(world))
    (arrival,) = world.inbox.arrivals
    assert arrival.source is Source.NOTICE
    assert arrival.envelope.reverse_path is None
    assert [one.address for one in arrival.envelope.recipients] == ["sender@ours.test"]
    assert arrival.organization_id == "org_a"
    text = content(world)
    for expected in (
        b"Original-Envelope-Id: env-1\r\n",
        b"Original-Recipient: rfc822;first@peer.test\r\n",
        b"Final-Recipient: rfc822; r@peer.test\r\n",
        b"Action: failed\r\n",
        b"Status: 5.1.1\r\n",
        b"Remote-MTA: dns; mx.peer.test\r\n",
        b"Subject: hello\r\n",
        b"550 5.1.1 no such user",
    ):
        assert expected in text
    assert b".body" not in text
    assert world.data("message.notified")[0]["notice"] == arrival.message_id
    assert not world.shelf.message_path("msg_1").exists()


def test_ret_full_returns_the_whole_message(world: World) -> None:
    world.queue("dlv_1", message_id="msg_1")
    describe(world, "msg_1", ret="FULL")
    fail(world)
    run(catch_up(world))
    assert MESSAGE in content(world)


def test_null_reverse_path_never_bounces(world: World) -> None:
    world.queue("dlv_1", message_id="msg_1")
    describe(world, "msg_1", reverse_path=None)
    fail(world)
    run(catch_up(world))
    assert world.inbox.arrivals == []
    assert not world.shelf.message_path("msg_1").exists()


def test_mail_by_api_is_told_by_events_alone(world: World) -> None:
    world.queue("dlv_1", message_id="msg_1")
    describe(world, "msg_1", source="api")
    fail(world)
    run(catch_up(world))
    assert world.inbox.arrivals == []


@pytest.mark.parametrize(
    ("notify", "failure", "delay"),
    [
        (None, True, True),
        (frozenset({"NEVER"}), False, False),
        (frozenset({"SUCCESS"}), False, False),
        (frozenset({"FAILURE", "SUCCESS"}), True, False),
        (frozenset({"DELAY"}), False, True),
    ],
)
def test_notify_decides_who_is_told(notify: frozenset[str] | None, failure: bool, delay: bool) -> None:
    recipient = Recipient("r@peer.test", notify)
    assert (wants(recipient, "FAILURE"), wants(recipient, "DELAY")) == (failure, delay)


def test_a_recipient_who_wants_no_notice_is_left_out_of_it(world: World) -> None:
    world.queue("dlv_1", message_id="msg_1", recipient="never@peer.test", notify="NEVER")
    world.queue("dlv_2", message_id="msg_1", recipient="told@peer.test", notify="FAILURE")
    fail(world)
    run(catch_up(world))
    assert b"told@peer.test" in content(world)
    assert b"never@peer.test" not in content(world)


def test_recipients_that_failed_together_are_told_together(world: World) -> None:
    for number in range(3):
        world.queue(f"dlv_{number}", message_id="msg_1", recipient=f"r{number}@peer.test")
    fail(world)
    run(catch_up(world))
    assert len(world.inbox.arrivals) == 1
    assert content(world).count(b"Final-Recipient:") == 3


def test_an_expired_message_says_that_its_time_is_over(world: World) -> None:
    world.queue("dlv_1", message_id="msg_1")
    fail(world, outcome=Outcome(DeliveryState.EXPIRED, 451, "4.3.0", "still no", "mail", "mx.peer.test"))
    run(catch_up(world))
    assert b"Status: 5.4.7\r\n" in content(world)
    assert b"451 4.3.0 still no" in content(world)


def test_a_late_message_is_announced_as_late(world: World) -> None:
    world.queue("dlv_1", message_id="msg_1")
    fail(world, outcome=DEFERRED, at=NOW + 5 * HOUR, due=NOW + 6 * HOUR)
    run(catch_up(world))
    assert b"Action: delayed\r\n" in content(world)
    assert b"Will-Retry-Until:" in content(world)
    assert world.shelf.message_path("msg_1").exists()


def test_a_replay_tells_nobody_twice(world: World) -> None:
    world.queue("dlv_1", message_id="msg_1")
    fail(world)
    run(catch_up(world, times=2))
    (told,) = world.log("message.bounced")
    assert [one.message_id for one in world.inbox.arrivals] == [derived_id(told.id)]
    # As after a crash between the notice and the cursor: the same id goes to intake, which knows it.
    world.database.write(lambda c: c.execute(schema.cursors.delete()) and None)
    run(catch_up(world))
    assert len(world.inbox.arrivals) == 1


def test_a_temporary_refusal_stops_and_loses_nothing(world: World) -> None:
    world.queue("dlv_1", message_id="msg_1")
    fail(world)
    world.inbox.refusal = Refusal(452, "4.3.1", "Insufficient system storage")
    with pytest.raises(Refusal):
        run(catch_up(world))
    world.inbox.refusal = None
    run(catch_up(world))
    assert len(world.inbox.arrivals) == 1


def test_a_permanent_refusal_is_an_event_and_the_next_is_told(world: World) -> None:
    world.queue("dlv_1", message_id="msg_1")
    fail(world)
    world.inbox.refusal = Refusal(550, "5.1.1", "No such mailbox here")
    run(catch_up(world))
    (told,) = world.data("message.notice_failed")
    assert told["text"] == "No such mailbox here"
    assert world.database.read(lambda c: events.cursor(c, name=queue.NOTICE_CURSOR)) > 0


def test_a_message_without_its_file_is_told_without_its_header(world: World) -> None:
    world.queue("dlv_1", message_id="msg_1")
    world.shelf.message_path("msg_1").unlink()
    fail(world)
    run(catch_up(world))
    assert b"Final-Recipient:" in content(world)


def test_many_failures_are_worked_through_in_pages(make_world: Callable[..., World]) -> None:
    world = make_world()
    for number in range(30):
        for recipient in range(2):
            world.queue(f"dlv_{number}_{recipient}", message_id=f"msg_{number}")
    fail(world)

    async def test() -> None:
        from server.delivery import bounce

        old, bounce.PAGE = bounce.PAGE, 7
        try:
            await catch_up(world)
        finally:
            bounce.PAGE = old

    run(test())
    assert len(world.inbox.arrivals) == 30
    assert all(content(world, index).count(b"Final-Recipient:") == 2 for index in range(30))


def test_a_failure_wakes_the_bouncer(world: World) -> None:
    async def test() -> None:
        world.threads = Threads(world.shelf, world.hub)  # type: ignore[arg-type]  # the parts that are used
        bouncer = make(world)
        await bouncer.start()
        await asyncio.to_thread(world.queue, "dlv_1", message_id="msg_1")
        await asyncio.to_thread(fail, world)
        while not world.inbox.arrivals:
            await asyncio.sleep(0.01)
        await bouncer.stop()
        await asyncio.to_thread(world.threads.close)

    run(test())


def _success(world: World, notify: str | None, outcome: Outcome) -> list[bytes]:
    world.queue("dlv_1", message_id="msg_1", notify=notify)
    describe(world, "msg_1")
    fail(world, outcome=outcome)
    run(catch_up(world, times=2))
    return [content(world, index) for index in range(len(world.inbox.arrivals))]


RELAYED = Outcome(DeliveryState.DELIVERED, 250, "2.0.0", "queued", "final", "mx.peer.test", "192.0.2.1")
AT_HOME = Outcome(
    DeliveryState.DELIVERED,
    250,
    "2.0.0",
    "delivered to the inbox",
    "final",
    "us.test",
    handover=Handover.DELIVERED,
)
PASSED_ON = Outcome(
    DeliveryState.DELIVERED, 250, "2.0.0", "queued", "final", "mx.peer.test", handover=Handover.PASSED
)


def test_success_beyond_a_server_without_dsn_is_told_once_as_relayed(world: World) -> None:
    (text,) = _success(world, "SUCCESS", RELAYED)
    assert b"Action: relayed\r\n" in text
    assert b"Status: 2.1.9\r\n" in text
    assert MESSAGE not in text


def test_success_in_an_inbox_of_ours_is_told_as_delivered(world: World) -> None:
    (text,) = _success(world, "SUCCESS,FAILURE", AT_HOME)
    assert b"Action: delivered\r\n" in text


@pytest.mark.parametrize(
    ("notify", "outcome"),
    [(None, RELAYED), ("FAILURE", RELAYED), ("NEVER", AT_HOME), ("SUCCESS", PASSED_ON)],
)
def test_success_is_not_told_unasked_nor_where_the_next_server_tells_it(
    world: World, notify: str | None, outcome: Outcome
) -> None:
    assert _success(world, notify, outcome) == []


def test_what_policy_withholds_is_not_told_and_shown_on_the_timeline(world: World) -> None:
    world.queue("dlv_1", message_id="msg_1", recipient="quiet@peer.test")
    world.queue("dlv_2", message_id="msg_1", recipient="told@peer.test")
    world.inbox.silent_about = frozenset({"quiet@peer.test"})
    fail(world)
    run(catch_up(world))
    assert b"told@peer.test" in content(world)
    assert b"quiet@peer.test" not in content(world)
    assert world.data("message.notice_withheld") == [
        {"recipient": "quiet@peer.test", "about": "message.bounced"}
    ]
    judged = next(one for one in world.inbox.judged if one["recipient"] == "quiet@peer.test")
    assert judged == {
        "sender": "sender@ours.test",
        "recipient": "quiet@peer.test",
        "reply_code": 550,
        "reply_status": "5.1.1",
        "notice": "failure",
    }


def test_a_notice_withheld_from_all_is_none_and_the_file_goes(world: World) -> None:
    world.queue("dlv_1", message_id="msg_1")
    world.inbox.silent_about = frozenset({"r@peer.test"})
    fail(world)
    run(catch_up(world))
    assert world.inbox.arrivals == []
    assert world.log("message.notified") == []
    assert not world.shelf.message_path("msg_1").exists()


def test_success_for_the_null_reverse_path_is_no_event_at_all(world: World) -> None:
    world.queue("dlv_1", message_id="msg_1", notify="SUCCESS")
    describe(world, "msg_1", reverse_path=None)
    fail(world, outcome=AT_HOME)
    assert world.log("message.succeeded") == []


def undeliverable(world: World, *recipients: str, at: int = NOW) -> None:
    """What apply says of inboxes that were closed after the 250; its files lie aside."""
    made = [
        Event(
            f"evt_{number}",
            "message.bounced",
            at,
            "org_a",
            "msg_1",
            data={
                "recipient": address,
                "orcpt": "",
                "code": 550,
                "enhanced": "5.2.1",
                "text": "Mailbox is closed",
                "file": f"msg_1-{number}.eml",
            },
        )
        for number, address in enumerate(recipients)
    ]
    for number in range(len(recipients)):
        world.shelf.aside_path(f"msg_1-{number}.eml").write_bytes(MESSAGE)
    world.database.write(lambda c: events.append(c, made) and None)


def test_the_sender_is_told_of_inboxes_that_closed_and_the_files_go(world: World) -> None:
    world.queue("dlv_1", message_id="msg_1", state="delivered", next_attempt_at=None)
    world.shelf.message_path("msg_1").unlink()
    describe(world, "msg_1", source="mx")
    undeliverable(world, "one@ours.test", "two@ours.test")
    run(catch_up(world, times=2))
    (arrival,) = world.inbox.arrivals
    assert [one.address for one in arrival.envelope.recipients] == ["sender@ours.test"]
    text = content(world)
    for expected in (
        b"Final-Recipient: rfc822; one@ours.test\r\n",
        b"Final-Recipient: rfc822; two@ours.test\r\n",
        b"Status: 5.2.1\r\n",
        b"550 5.2.1 Mailbox is closed",
        b"Subject: hello\r\n",
    ):
        assert expected in text
    assert list(world.shelf.directory.iterdir()) == []


def test_a_notice_that_cannot_be_made_now_keeps_the_file(world: World) -> None:
    world.queue("dlv_1", message_id="msg_1", state="delivered", next_attempt_at=None)
    describe(world, "msg_1", source="mx")
    undeliverable(world, "one@ours.test")
    world.inbox.refusal = Refusal(451, "4.3.0", "no room")
    with pytest.raises(Refusal):
        run(catch_up(world))
    assert world.shelf.aside_path("msg_1-0.eml").exists()
    world.inbox.refusal = None
    run(catch_up(world))
    assert not world.shelf.aside_path("msg_1-0.eml").exists()


@pytest.mark.parametrize(("body", "returned"), [(b"x" * 998, Returned.FULL), (b"x" * 999, Returned.HDRS)])
def test_a_message_that_not_every_way_carries_is_returned_by_its_header(
    tmp_path: Path, body: bytes, returned: Returned
) -> None:
    path = tmp_path / "message"
    path.write_bytes(b"Subject: x\r\n\r\n" + body + b"\r\n")
    assert bounce._returned(path, Returned.FULL, 0) == (path.read_bytes(), returned)
