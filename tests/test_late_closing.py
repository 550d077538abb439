"""An inbox that closes between the 250 and its apply: the sender hears of it, or the message is held."""

import json
from typing import Any

import pytest
from sqlalchemy import update

from server.arrival import Arrival
from server.delivery.bounce import Bouncer
from server.refusal import Refusal
from storage import accounts, events, schema
from storage.records import Envelope, Recipient, Source
from tests.test_intake import CONTENT, HOST, PEER, Appliance, run
from tests.test_rules_acting import files, rows, rule


async def close_quietly(appliance: Appliance, address: str, state: str = "closed") -> None:
    """Close an inbox as another process would an instant ago: this one's routing has not heard of it."""
    while address not in appliance.intake._routing._cache:
        await appliance.intake._routing.resolve(address)
    query = update(schema.mailboxes).where(schema.mailboxes.c.address == address).values(state=state)
    appliance.store.database.write(lambda c: c.execute(query) and None)


async def tell(appliance: Appliance) -> None:
    bouncer = Bouncer(
        threads=appliance.threads,
        hub=appliance.threads.hub,
        intake=appliance.intake,
        clock=appliance.clock,
        hostname=HOST,
    )
    await bouncer.catch_up()
    await bouncer.catch_up()
    appliance.store.checkpoint()


def aside(appliance: Appliance) -> list[str]:
    return sorted(path.name for path in (appliance.directory / "data" / "aside").iterdir())


def kinds(appliance: Appliance, message_id: str) -> list[str]:
    return [
        kind for kind, about in rows(appliance, schema.events, "kind", "message_id") if about == message_id
    ]


def test_the_sender_gets_a_notice_and_the_others_their_mail(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await appliance.receive(CONTENT, "one@ours.example", "two@ours.example")
        await close_quietly(appliance, "one@ours.example")
        receipt = await appliance.receive(CONTENT, "one@ours.example", "two@ours.example")
        assert len(files(appliance, "one@ours.example")) == 1
        assert len(files(appliance, "two@ours.example")) == 2
        (message_id,) = receipt.message_ids
        assert aside(appliance) == [f"{message_id}-0.eml"]
        await tell(appliance)
        (notice,) = [record for record in appliance.accepted if record.source is Source.NOTICE]
        assert notice.envelope.reverse_path is None
        assert [one.recipient.address for one in notice.remote] == ["ada@far.example"]
        assert b"Final-Recipient: rfc822; one@ours.example\r\n" in notice.content
        assert b"550 5.2.1 Mailbox is closed" in notice.content
        assert b"Subject: hello" in notice.content
        assert b"two@ours.example" not in notice.content
        assert aside(appliance) == []
        assert kinds(appliance, message_id) == [
            "message.accepted",
            "message.bounced",
            "message.received",
            "message.notified",
        ]

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("sender", "notify"), [(None, None), ("ada@far.example", frozenset({"NEVER"}))], ids=["null", "never"]
)
def test_where_nobody_may_be_told_the_message_is_held_aside(tmp_path, sender, notify):
    async def scenario(appliance: Appliance) -> None:
        await appliance.receive(CONTENT)
        await close_quietly(appliance, "one@ours.example")
        envelope = Envelope(sender, (Recipient("one@ours.example", notify),))
        await appliance.intake.accept(Arrival(Source.MX, PEER, envelope, CONTENT), wait_applied=True)
        await tell(appliance)
        assert len(aside(appliance)) == 1
        assert [record.source for record in appliance.accepted] == [Source.MX] * 2
        (data,) = [
            json.loads(data)
            for kind, data in rows(appliance, schema.events, "kind", "data")
            if kind == "message.aside"
        ]
        assert data["file"] == aside(appliance)[0]

    run(tmp_path, scenario)


def test_a_notice_that_policy_withholds_leaves_the_message_aside(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await appliance.receive(CONTENT)
        await close_quietly(appliance, "one@ours.example")
        await appliance.receive(CONTENT)
        await tell(appliance)
        assert len(aside(appliance)) == 1

    run(tmp_path, scenario, rule("reject", stage="bounce"))


def test_a_suspended_inbox_keeps_it_until_it_opens(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await appliance.receive(CONTENT)
        await close_quietly(appliance, "one@ours.example", "suspended")
        await appliance.receive(CONTENT)
        assert len(files(appliance, "one@ours.example")) == 2

    run(tmp_path, scenario)


def test_a_copy_that_policy_made_never_tells_the_sender(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await appliance.receive(CONTENT)
        await close_quietly(appliance, "two@ours.example")
        await appliance.receive(CONTENT)
        await tell(appliance)
        assert [record.source for record in appliance.accepted] == [Source.MX] * 2
        assert len(aside(appliance)) == 1

    run(tmp_path, scenario, rule("copy", target="two@ours.example"))


def test_a_redirect_to_an_inbox_that_is_closed_is_put_off_and_not_lost(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        owner, box = (
            appliance.store.database.read(
                lambda c: accounts.find_mailbox(c, address="two@ours.example")
            ).organization_id,
            appliance.inbox("two@ours.example"),
        )
        appliance.store.database.write(
            lambda c: accounts.set_mailbox_state(c, organization_id=owner, mailbox_id=box, state="closed")
        )
        with pytest.raises(Refusal) as caught:
            await appliance.receive(CONTENT)
        assert caught.value.temporary

    run(tmp_path, scenario, rule("redirect", target="two@ours.example"))


def test_a_redirect_whose_inbox_closes_late_is_told_to_the_sender(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await appliance.receive(CONTENT)
        await close_quietly(appliance, "two@ours.example")
        (message_id,) = (await appliance.receive(CONTENT)).message_ids
        await tell(appliance)
        assert "message.notified" in kinds(appliance, message_id)
        (notice,) = [record for record in appliance.accepted if record.source is Source.NOTICE]
        # Where mail is redirected to is not the sender's affair.
        assert b"two@ours.example" not in notice.content
        assert b"Final-Recipient: rfc822; one@ours.example" in notice.content

    run(tmp_path, scenario, rule("redirect", target="two@ours.example"))


def test_a_forward_that_fails_for_good_is_told_to_the_sender(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        def unit(connection: Any) -> None:
            owner = accounts.find_domain(connection, name="ours.example").organization_id
            accounts.add_route(
                connection,
                organization_id=owner,
                pattern="desk@ours.example",
                kind="forward",
                target="desk@far.example",
                at=1,
            )

        appliance.store.database.write(unit)
        (message_id,) = (await appliance.receive(CONTENT, "desk@ours.example")).message_ids
        (delivery,) = rows(appliance, schema.deliveries, "id", "organization_id")

        def fail(connection: Any) -> None:
            made = events.Event(
                "evt_failed",
                "message.bounced",
                appliance.clock.now(),
                delivery[1],
                message_id,
                delivery_id=delivery[0],
                data={"recipient": "desk@far.example", "code": 550, "enhanced": "5.1.1", "text": "no"},
            )
            events.append(connection, [made])

        appliance.store.database.write(fail)
        await tell(appliance)
        assert "message.notified" in kinds(appliance, message_id)

    run(tmp_path, scenario)
