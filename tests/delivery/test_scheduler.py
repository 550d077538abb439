"""The scheduler with a real database, real files and real servers on loopback."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from server.delivery.ledger import LeaseLost, Suppressed
from server.refusal import Refusal
from storage import queue, suppression
from storage.queue import Pick
from storage.records import Source
from tests.delivery.world import MESSAGE, World
from tests.smtp.scripted import HELLO, PLAIN_HELLO, Scripted, script
from tests.storage.queued import HOUR, NOW, SECOND

MakeWorld = Callable[..., World]

TAKE = """
C MAIL
S 250 ok
C RCPT
S 250 ok
C DATA
S 354 go
BODY
S 250 2.0.0 queued as 7
"""


def run(test: Awaitable[None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await test

    asyncio.run(limited())


def routed(server: Scripted, *domains: str) -> dict[str, Any]:
    return {"routes": dict.fromkeys(domains or ("peer.test",), f"smtp:127.0.0.1:{server.port}")}


def test_a_due_message_is_delivered_told_and_its_file_removed(make_world: MakeWorld) -> None:
    async def test() -> None:
        async with Scripted(script(HELLO, TAKE)) as server:
            world = make_world(**routed(server))
            world.queue("dlv_1", message_id="msg_1")
            async with world.running():
                await world.until(dlv_1="delivered")
                while world.shelf.message_path("msg_1").exists():
                    await asyncio.sleep(0.01)
            assert server.bodies == [MESSAGE]
            (told,) = world.data("message.delivered")
            assert told["text"] == "queued as 7"
            assert (told["enhanced"], told["address"], told["attempt"]) == ("2.0.0", "127.0.0.1", 1)

    run(test())


def test_mail_queued_later_is_found_by_its_notice(make_world: MakeWorld) -> None:
    async def test() -> None:
        async with Scripted(script(HELLO, TAKE)) as server:
            world = make_world(**routed(server))
            async with world.running():
                await asyncio.to_thread(
                    world.queue, "dlv_1", message_id="msg_1", state="held", next_attempt_at=None
                )
                from storage import queue_acts

                selection = queue_acts.Selection(delivery_id="dlv_1")
                await world.threads.write(
                    lambda c: queue_acts.release(c, selection=selection, actor="test", at=NOW)
                )
                await world.until(dlv_1="delivered")

    run(test())


def test_messages_to_one_place_share_a_connection(make_world: MakeWorld) -> None:
    async def test() -> None:
        async with Scripted(script(HELLO, TAKE, TAKE, TAKE, "C QUIT")) as server:
            world = make_world(per_domain_concurrency=1, **routed(server))
            for number in range(3):
                world.queue(f"dlv_{number}", message_id=f"msg_{number}")
            async with world.running():
                await world.until(dlv_0="delivered", dlv_1="delivered", dlv_2="delivered")
            assert server.connections == 1

    run(test())


def test_a_connection_that_died_while_idle_costs_no_try(make_world: MakeWorld) -> None:
    async def test() -> None:
        dying = script(HELLO, TAKE, "C MAIL", "S 421 4.4.2 idle too long")
        async with Scripted(dying, script(HELLO, TAKE)) as server:
            world = make_world(per_domain_concurrency=1, **routed(server))
            for number in range(2):
                world.queue(f"dlv_{number}", message_id=f"msg_{number}")
            async with world.running():
                await world.until(dlv_0="delivered", dlv_1="delivered")
            assert world.log("message.deferred") == []
            assert server.connections == 2

    run(test())


def test_recipients_of_one_message_and_domain_go_together_and_end_apart(make_world: MakeWorld) -> None:
    mixed = """
    C MAIL
    C RCPT TO:<a@peer.test>
    C RCPT TO:<b@peer.test>
    C RCPT TO:<c@peer.test>
    C DATA
    S 250 ok
    S 250 ok
    S 550 5.1.1 no such user
    S 450 4.2.1 greylisted
    S 354 go
    BODY
    S 250 ok
    """

    async def test() -> None:
        async with Scripted(script(HELLO, mixed)) as server:
            world = make_world(**routed(server))
            for name in "abc":
                world.queue(f"dlv_{name}", message_id="msg_1", recipient=f"{name}@peer.test")
            async with world.running():
                await world.until(dlv_a="delivered", dlv_b="bounced", dlv_c="deferred")
            assert server.connections == 1
            assert world.data("message.bounced")[0]["text"] == "no such user"
            assert world.shelf.message_path("msg_1").exists()

    run(test())


def test_a_full_transaction_is_followed_by_another_at_once(make_world: MakeWorld) -> None:
    first = """
    C MAIL
    C RCPT TO:<a@peer.test>
    C RCPT TO:<b@peer.test>
    C DATA
    S 250 ok
    S 250 ok
    S 452 4.5.3 too many recipients
    S 354 go
    BODY
    S 250 ok
    """

    async def test() -> None:
        async with Scripted(script(HELLO, first, TAKE)) as server:
            world = make_world(**routed(server))
            for name in "ab":
                world.queue(f"dlv_{name}", message_id="msg_1", recipient=f"{name}@peer.test")
            async with world.running():
                await world.until(dlv_a="delivered", dlv_b="delivered")
            assert len(server.bodies) == 2
            assert world.log("message.deferred") == []

    run(test())


def test_a_deferral_is_tried_again_when_its_time_comes(make_world: MakeWorld) -> None:
    later = script(PLAIN_HELLO, "C MAIL", "S 451 4.3.0 later", "CLOSE")

    async def test() -> None:
        async with Scripted(later, script(HELLO, TAKE)) as server:
            world = make_world(retry_first_seconds=60, **routed(server))
            world.queue("dlv_1", message_id="msg_1")
            async with world.running():
                await world.until(dlv_1="deferred")
                row = world.row("dlv_1")
                assert NOW + 48 * SECOND <= row.next_attempt_at <= NOW + 60 * SECOND
                assert (row.tries, row.lease, row.begun_at) == (1, None, None)
                await world.later(61)
                await world.until(dlv_1="delivered")
            assert world.row("dlv_1").tries == 2

    run(test())


def test_an_expired_delivery_ends_with_the_last_words_of_the_remote(make_world: MakeWorld) -> None:
    async def test() -> None:
        async with Scripted(script(PLAIN_HELLO, "C MAIL", "S 451 4.3.0 still no", "WAIT")) as server:
            world = make_world(**routed(server))
            world.queue("dlv_1", message_id="msg_1", tries=9, state="deferred", expires_at=NOW)
            async with world.running():
                await world.until(dlv_1="expired")
            (told,) = world.data("message.expired")
            assert told["text"] == "still no"
            assert world.row("dlv_1").next_attempt_at is None

    run(test())


def test_the_last_attempt_falls_on_the_expiry(make_world: MakeWorld) -> None:
    async def test() -> None:
        async with Scripted(script(PLAIN_HELLO, "C MAIL", "S 451 later", "WAIT")) as server:
            world = make_world(**routed(server))
            world.queue("dlv_1", message_id="msg_1", expires_at=NOW + SECOND)
            async with world.running():
                await world.until(dlv_1="deferred")
            assert world.row("dlv_1").next_attempt_at == NOW + SECOND

    run(test())


def test_a_drop_after_the_final_dot_is_deferred_in_doubt(make_world: MakeWorld) -> None:
    lost = script(HELLO, TAKE.replace("S 250 2.0.0 queued as 7", "CLOSE"))

    async def test() -> None:
        async with Scripted(lost) as server:
            world = make_world(**routed(server))
            world.queue("dlv_1", message_id="msg_1")
            async with world.running():
                await world.until(dlv_1="deferred")
            (told,) = world.data("message.deferred")
            assert told["in_doubt"] is True
            assert "may have arrived" in str(told["text"])

    run(test())


def test_a_drop_after_the_final_dot_waits_for_a_word_where_that_is_asked_for(make_world: MakeWorld) -> None:
    lost = script(HELLO, TAKE.replace("S 250 2.0.0 queued as 7", "CLOSE"))

    async def test() -> None:
        async with Scripted(lost) as server:
            world = make_world(in_doubt="ask", **routed(server))
            world.queue("dlv_1", message_id="msg_1")
            async with world.running():
                await world.until(dlv_1="held")
            (told,) = world.data("message.held")
            assert told["in_doubt"] is True
            assert world.row("dlv_1").begun_at is not None
            assert server.connections == 1

    run(test())


def test_a_drop_before_the_final_dot_is_in_no_doubt(make_world: MakeWorld) -> None:
    lost = script(PLAIN_HELLO, "C MAIL", "S 250 ok", "C RCPT", "S 250 ok", "C DATA", "S 354 go", "CLOSE")

    async def test() -> None:
        async with Scripted(lost) as server:
            world = make_world(in_doubt="ask", **routed(server))
            world.queue("dlv_1", message_id="msg_1", content=b"Subject: x\r\n\r\n" + b"y" * 30_000_000)
            async with world.running():
                await world.until(dlv_1="deferred")
            assert "in_doubt" not in world.data("message.deferred")[0]

    run(test())


def test_a_recipient_suppressed_meanwhile_makes_nobody_else_get_it_twice(make_world: MakeWorld) -> None:
    one = script("C MAIL", "S 250 ok", "C RCPT", "S 250 ok", "C DATA", "S 354 go", "BODY", "S 250 ok")
    begun = script("C MAIL", "S 250 ok", "C RCPT", "S 250 ok", "C DATA", "S 354 go", "WAIT")
    greeting = script("S 220 mx.peer.test", "C EHLO", "S 250-mx.peer.test", "S 250 LIMITS RCPTMAX=1")

    async def test() -> None:
        first, last = script(greeting, one, begun), script(greeting, one, one)
        async with Scripted(first, last) as server:
            world = make_world(**routed(server))
            for number in range(3):
                world.queue(f"dlv_{number}", message_id="msg_1", recipient=f"r{number}@peer.test")
            async with world.running() as scheduler:
                begin, calls = scheduler._ledger.begin, []

                async def suppressing(deliveries: Any) -> None:
                    calls.append([one.id for one in deliveries])
                    if len(calls) == 2:
                        raise Suppressed({one.id: "manual" for one in deliveries})
                    await begin(deliveries)

                scheduler._ledger.begin = suppressing  # type: ignore[method-assign]
                while sorted(world.states().values()) != ["delivered", "delivered", "suppressed"]:
                    await asyncio.sleep(0.01)
            assert len(server.bodies) == 2
            assert len({line for line in server.lines if line.startswith("RCPT")}) == 3

    run(test())


def test_a_dead_destination_delays_no_other(make_world: MakeWorld) -> None:
    async def test() -> None:
        async with Scripted("WAIT") as tarpit, Scripted(script(HELLO, TAKE * 40)) as healthy:
            routes = {
                "tarpit.test": f"smtp:127.0.0.1:{tarpit.port}",
                "peer.test": f"smtp:127.0.0.1:{healthy.port}",
            }
            world = make_world(
                routes=routes, concurrency=4, per_domain_concurrency=4, command_timeout_seconds=20.0
            )
            for number in range(200):
                world.queue(
                    f"dlv_t{number}", message_id="msg_t", domain="tarpit.test", next_attempt_at=NOW - HOUR
                )
            for number in range(20):
                world.queue(f"dlv_h{number}", message_id=f"msg_h{number}")
            async with world.running() as scheduler:
                await world.until(**{f"dlv_h{number}": "delivered" for number in range(20)})
                assert tarpit.connections <= 2
                assert scheduler.leased <= 4
                # The tarpit's attempts would hold the stop for as long as they may drain.
                for task in list(scheduler._tasks):
                    task.cancel()

    run(test())


def test_organizations_take_turns(make_world: MakeWorld) -> None:
    async def test() -> None:
        async with Scripted(script(HELLO, TAKE * 40)) as server:
            world = make_world(
                concurrency=1, per_domain_concurrency=1, **routed(server, "peer.test", "other.test")
            )
            for number in range(30):
                world.queue(f"dlv_a{number}", message_id=f"msg_a{number}", next_attempt_at=NOW - HOUR)
            world.queue("dlv_b", message_id="msg_b", organization_id="org_b", domain="other.test")
            async with world.running():
                await world.until(dlv_b="delivered")
                assert list(world.states().values()).count("delivered") < 25

    run(test())


def test_a_suppressed_address_gets_nothing_and_its_co_recipients_do(make_world: MakeWorld) -> None:
    async def test() -> None:
        async with Scripted(script(HELLO, TAKE.replace("C RCPT", "C RCPT TO:<b@peer.test>"))) as server:
            world = make_world(**routed(server))
            for name in "ab":
                world.queue(
                    f"dlv_{name}",
                    message_id="msg_1",
                    recipient=f"{name.upper()}@peer.test".replace("B@", "b@"),
                )
            world.database.write(
                lambda c: suppression.add(
                    c, organization_id="org_a", address="a@peer.test", cause="complaint", at=NOW - 1
                )
            )
            async with world.running():
                await world.until(dlv_a="suppressed", dlv_b="delivered")
            (told,) = world.data("message.suppressed")
            assert told["recipient"] == "A@peer.test"
            assert "complaint" in str(told["text"])

    run(test())


def test_own_domains_go_back_through_intake_under_a_lasting_id(world: World) -> None:
    async def test() -> None:
        world.home.domains = frozenset({"peer.test"})
        world.queue("dlv_1", message_id="msg_1")
        async with world.running():
            await world.until(dlv_1="delivered")
        (arrival,) = world.inbox.arrivals
        assert arrival.source is Source.LOCAL
        assert arrival.message_id == "msg_1"
        assert arrival.content == MESSAGE
        assert [one.address for one in arrival.envelope.recipients] == ["r@peer.test"]

    run(test())


@pytest.mark.parametrize(
    ("refusal", "state"),
    [
        (Refusal(550, "5.1.1", "No such mailbox here"), "bounced"),
        (Refusal(452, "4.2.2", "Mailbox full"), "deferred"),
    ],
)
def test_what_intake_refuses_is_an_outcome(world: World, refusal: Refusal, state: str) -> None:
    async def test() -> None:
        world.home.domains = frozenset({"peer.test"})
        world.inbox.refusal = refusal
        world.queue("dlv_1", message_id="msg_1")
        async with world.running():
            await world.until(dlv_1=state)
        (told,) = world.data(f"message.{state}")
        assert (told["code"], told["text"]) == (refusal.code, refusal.public)

    run(test())


def test_captured_mail_lies_in_the_outbox_with_its_envelope(make_world: MakeWorld) -> None:
    async def test() -> None:
        world = make_world(default_route="capture")
        world.queue("dlv_1", message_id="msg_1", recipient="a@peer.test")
        world.queue("dlv_2", message_id="msg_1", recipient="b@peer.test")
        async with world.running():
            await world.until(dlv_1="delivered", dlv_2="delivered")
        (file,) = (world.outbox / "new").iterdir()
        assert file.read_bytes() == (
            b"X-Envelope-From: <sender@ours.test>\r\n"
            b"X-Envelope-To: <a@peer.test>\r\nX-Envelope-To: <b@peer.test>\r\n" + MESSAGE
        )
        assert {told["text"] for told in world.data("message.delivered")} == {"captured in the outbox"}
        assert list((world.outbox / "tmp").iterdir()) == []

    run(test())


def test_a_domain_routed_to_refuse_bounces(make_world: MakeWorld) -> None:
    async def test() -> None:
        world = make_world(routes={".test": "refuse"})
        world.queue("dlv_1", message_id="msg_1")
        async with world.running():
            await world.until(dlv_1="bounced")
        assert world.data("message.bounced")[0]["enhanced"] == "5.7.1"

    run(test())


def test_a_message_whose_file_is_gone_is_deferred(make_world: MakeWorld) -> None:
    async def test() -> None:
        world = make_world(default_route="capture")
        world.queue("dlv_1", message_id="msg_1")
        world.shelf.message_path("msg_1").unlink()
        async with world.running():
            await world.until(dlv_1="deferred")
        assert world.data("message.deferred")[0]["enhanced"] == "4.3.0"

    run(test())


def test_a_message_with_bare_line_ends_is_never_sent(make_world: MakeWorld) -> None:
    async def test() -> None:
        async with Scripted("S 220 x") as server:
            world = make_world(**routed(server))
            world.queue("dlv_1", message_id="msg_1", content=b"a: b\r\n\r\nx\n.\r\nMAIL FROM:<evil@x>\r\n")
            async with world.running():
                await world.until(dlv_1="bounced")
            assert world.data("message.bounced")[0]["enhanced"] == "5.6.0"
            assert server.connections == 0

    run(test())


def test_leases_of_a_dead_process_are_taken_over_at_start(make_world: MakeWorld) -> None:
    async def test() -> None:
        async with Scripted(script(HELLO, TAKE)) as server:
            world = make_world(**routed(server))
            world.queue("dlv_1", message_id="msg_1")
            pick = Pick("org_a", "peer.test", 0, 1)
            dead = world.database.write(
                lambda c: queue.lease(c, picks=[pick], token="dead", now=NOW, until=NOW + HOUR)
            )
            world.database.write(lambda c: queue.begin(c, held=dead, at=NOW))
            async with world.running():
                await world.until(dlv_1="delivered")
            assert world.data("message.deferred")[0]["in_doubt"] is True
            assert world.row("dlv_1").tries == 2

    run(test())


def test_a_lease_lost_before_content_sends_nothing(make_world: MakeWorld) -> None:
    slow = script(HELLO, "C MAIL", "S 250 ok", "C RCPT", "S 250 ok", "C DATA")

    async def test() -> None:
        async with Scripted(script(slow, "STALL")) as server:
            world = make_world(command_timeout_seconds=20.0, **routed(server))
            world.queue("dlv_1", message_id="msg_1")
            async with world.running() as scheduler:
                while not any(line.startswith("DATA") for line in server.lines):
                    await asyncio.sleep(0.01)
                await world.threads.write(lambda c: queue.reclaim(c, now=NOW, before=1 << 62))
                held = list(scheduler._held.values())
                with pytest.raises(LeaseLost):
                    await scheduler._ledger.begin(held)
                for task in list(scheduler._tasks):
                    task.cancel()
            assert server.bodies == []

    run(test())


def test_stop_gives_back_what_did_not_begin(make_world: MakeWorld) -> None:
    async def test() -> None:
        async with Scripted("STALL") as server:
            world = make_world(
                concurrency=1, per_domain_concurrency=1, command_timeout_seconds=20.0, **routed(server)
            )
            for number in range(4):
                world.queue(f"dlv_{number}", message_id=f"msg_{number}")
            async with world.running() as scheduler:
                while server.connections == 0:
                    await asyncio.sleep(0.01)
                await scheduler.stop(0)
                assert scheduler.leased == 0
                assert set(world.states().values()) == {"scheduled"}
                assert {world.row(f"dlv_{number}").tries for number in range(4)} == {0}
                scheduler.stop = _done  # type: ignore[method-assign]  # it is stopped already

    run(test())


async def _done(_seconds: float = 0) -> None:
    return None


def test_stop_says_that_what_was_being_sent_is_in_doubt(make_world: MakeWorld) -> None:
    async def test() -> None:
        async with Scripted(script(HELLO, TAKE.replace("S 250 2.0.0 queued as 7", "STALL"))) as server:
            world = make_world(data_timeout_seconds=20.0, **routed(server))
            world.queue("dlv_1", message_id="msg_1")
            async with world.running() as scheduler:
                while not server.bodies:
                    await asyncio.sleep(0.01)
                await scheduler.stop(0)
                assert world.states() == {"dlv_1": "deferred"}
                assert world.data("message.deferred")[0]["in_doubt"] is True
                scheduler.stop = _done  # type: ignore[method-assign]  # it is stopped already

    run(test())


def test_a_suppression_that_comes_while_an_attempt_runs_stops_it_before_content(
    make_world: MakeWorld,
) -> None:
    slow = script(HELLO, "C MAIL", "C RCPT", "C RCPT", "C DATA", "S 250 ok", "S 250 ok", "S 250 ok")
    second = TAKE.replace("C RCPT", "C RCPT TO:<b@peer.test>")

    async def test() -> None:
        async with Scripted(script(slow, "PAUSE", "S 354 go", "BODY"), script(HELLO, second)) as server:
            world = make_world(command_timeout_seconds=20.0, **routed(server))
            for name in "ab":
                world.queue(f"dlv_{name}", message_id="msg_1", recipient=f"{name}@peer.test")
            async with world.running():
                while "DATA" not in server.lines:
                    await asyncio.sleep(0.01)
                await world.threads.write(
                    lambda c: suppression.add(
                        c, organization_id="org_a", address="a@peer.test", cause="manual", at=NOW - 1
                    )
                )
                server.go_on()
                await world.until(dlv_a="suppressed", dlv_b="delivered")
            assert server.bodies == [MESSAGE]

    run(test())


def test_suppression_is_asked_again_when_transmission_begins(make_world: MakeWorld) -> None:
    async def test() -> None:
        world = make_world(default_route="capture")
        world.queue("dlv_1", message_id="msg_1", next_attempt_at=NOW + HOUR)
        async with world.running() as scheduler:
            pick = Pick("org_a", "peer.test", 0, 1)
            held = await world.threads.write(
                lambda c: queue.lease(c, picks=[pick], token="t", now=NOW + HOUR, until=NOW + 2 * HOUR)
            )
            await scheduler._ledger.begin(held)
            await world.threads.write(
                lambda c: suppression.add(
                    c, organization_id="org_a", address="r@peer.test", cause="manual", at=NOW - 1
                )
            )
            with pytest.raises(Suppressed) as stopped:
                await scheduler._ledger.begin(held)
            assert stopped.value.causes == {"dlv_1": "manual"}

    run(test())
