"""Mail that is refused for reputation alone, from the rule through intake into the folder Rejects."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select

from policies.compile import PolicyError, compile_rules
from server.arrival import Arrival
from server.refusal import Refusal
from server.rejects import Rejects, RejectsSettings
from storage import accounts, events, mailboxes, rejects, schema
from storage.errors import StorageError
from storage.records import Envelope, Recipient, Source
from tests.test_intake import CONTENT, HOST, PEER, Appliance, run
from tests.test_rules_acting import files, rows, rule

DAY = 86_400_000_000
REPUTATION = rule("reject", reason="reputation", code=554, text="We do not know you")
CODE = b"Message-ID: <%d@far.example>\r\nFrom: ada@far.example\r\nSubject: Your code\r\n\r\n123456\r\n"


def keeping(appliance: Appliance, **settings: int) -> Rejects:
    made = Rejects(
        threads=appliance.threads,
        clock=appliance.clock,
        settings=RejectsSettings(**settings),
        hostname=HOST,
    )
    appliance.intake._rejects = made
    return made


async def refused(appliance: Appliance, content: Any = CODE % 1, *recipients: str, **changes: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await appliance.receive(content, *recipients, **changes)
    settle(appliance)
    return caught.value


def settle(appliance: Appliance) -> None:
    """Wait until all that is accepted is applied."""
    appliance.store.checkpoint()


def kept(appliance: Appliance, address: str = "one@ours.example") -> list[Any]:
    return files(appliance, address, ".Rejects")


def test_what_is_refused_for_reputation_lies_in_rejects_and_the_sender_is_refused(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        keeping(appliance)
        refusal = await refused(appliance)
        assert (refusal.code, refusal.public) == (554, "We do not know you")
        assert files(appliance, "one@ours.example") == []
        (path,) = kept(appliance)
        octets = path.read_bytes()
        assert octets.startswith(b"Return-Path: <ada@far.example>\r\nDelivered-To: one@ours.example\r\n")
        assert b"\r\nReceived: from far.example" in octets
        assert octets.endswith(CODE % 1)

    run(tmp_path, scenario, REPUTATION)


def test_the_timeline_tells_the_reason_and_nobody_is_told_of_new_mail(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        keeping(appliance)
        await refused(appliance)
        told = {kind: json.loads(data) for kind, data in rows(appliance, schema.events, "kind", "data")}
        assert told.keys() == {"message.refused", "message.kept"}
        assert told["message.refused"]["rules"] == ["it"]
        assert told["message.refused"]["reason"] == "reputation"
        assert told["message.kept"]["folder"] == "Rejects"
        ((uidnext, recent),) = [
            row[1:]
            for row in rows(appliance, schema.folders, "name", "uidnext", "recent_uid")
            if row[0] == "Rejects"
        ]
        assert uidnext == recent == 2
        ((decision,),) = rows(appliance, schema.messages, "decision")
        assert json.loads(decision)["reason"] == "reputation"

    run(tmp_path, scenario, REPUTATION)


@pytest.mark.parametrize("action", ["reject", "defer"])
def test_a_refusal_for_another_reason_keeps_nothing(tmp_path, action):
    async def scenario(appliance: Appliance) -> None:
        keeping(appliance)
        await refused(appliance)
        assert appliance.accepted == []

    run(tmp_path, scenario, rule(action))


@pytest.mark.parametrize(
    "later",
    [rule("reject", name="virus", text="A virus"), rule("discard", name="gone"), rule("hold", name="held")],
    ids=["reject", "discard", "hold"],
)
def test_a_better_reason_behind_the_reputation_keeps_nothing(tmp_path, later):
    async def scenario(appliance: Appliance) -> None:
        keeping(appliance)
        refusal = await refused(appliance)
        assert refusal.public == ("A virus" if "virus" in later else "We do not know you")
        assert appliance.accepted == []

    run(tmp_path, scenario, REPUTATION + later)


def test_a_retry_is_kept_once_even_before_it_is_applied_and_after_a_restart(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        keeping(appliance)
        for _ in range(3):
            with pytest.raises(Refusal):
                await appliance.receive(CODE % 1)
        settle(appliance)
        keeping(appliance)
        await refused(appliance)
        await refused(appliance, CODE % 2)
        assert len(kept(appliance)) == 2

    run(tmp_path, scenario, REPUTATION)


def test_a_message_without_an_id_is_known_by_its_octets(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        keeping(appliance)
        for content in (CONTENT, CONTENT, CONTENT + b"more\r\n"):
            await refused(appliance, content)
        assert len(kept(appliance)) == 2

    run(tmp_path, scenario, REPUTATION)


def test_a_large_message_is_kept_for_every_organization_and_leaves_no_spool_file(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        keeping(appliance)
        content = CONTENT + b"long line of a message\r\n" * 20_000
        refusal = await refused(
            appliance, appliance.spool(content), "one@ours.example", "two@ours.example", "x@other.example"
        )
        assert refusal.code == 554
        for address in ("one@ours.example", "two@ours.example", "x@other.example"):
            (path,) = kept(appliance, address)
            assert path.read_bytes().endswith(content)
        again = await refused(
            appliance, appliance.spool(content), "one@ours.example", "two@ours.example", "x@other.example"
        )
        assert again.code == 554
        assert appliance.spooled() == []
        for record in appliance.accepted:
            named = {one.address.rpartition("@")[2] for one in record.envelope.recipients}
            assert len(named) == 1  # an organization hears of its own recipients alone

    run(tmp_path, scenario, REPUTATION)


def test_one_inbox_with_two_recipients_keeps_one_copy(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        keeping(appliance)
        await refused(appliance, CODE % 1, "one@ours.example", "one+tag@ours.example")
        assert len(kept(appliance)) == 1

    run(tmp_path, scenario, REPUTATION)


def test_another_organizations_plain_refusal_outweighs_reputation(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        keeping(appliance)
        for recipients in (("one@ours.example", "x@other.example"), ("x@other.example", "one@ours.example")):
            refusal = await refused(appliance, CODE % 1, *recipients)
            assert refusal.public == "Never"
        assert appliance.accepted == []

    text = rule("reject", '!("x@other.example" in recipients) || organization_id != ""', reason="reputation")
    other = rule("reject", 'organization_id == "{}"', name="other", text="Never")

    def with_id(directory):
        return text + other

    async def prepared(appliance: Appliance) -> None:
        owner = appliance.store.database.read(
            lambda c: accounts.find_domain(c, name="other.example")
        ).organization_id
        (appliance.directory / "rules" / "one.toml").write_text(
            text + rule("reject", f'organization_id == "{owner}"', name="other", text="Never")
        )
        appliance.rulebook.reload()
        await scenario(appliance)

    run(tmp_path, prepared, with_id(tmp_path))


def test_keeping_for_no_time_keeps_nothing_and_refuses_all_the_same(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        keeping(appliance, keep_seconds=0)
        assert (await refused(appliance)).code == 554
        assert appliance.accepted == []

    run(tmp_path, scenario, REPUTATION)


def test_mail_that_did_not_come_from_outside_is_not_kept(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        keeping(appliance)
        envelope = Envelope("ada@far.example", (Recipient("one@ours.example"),))
        arrival = Arrival(Source.LOCAL, replace(PEER, address=""), envelope, CODE % 1, message_id="msg_1")
        for _ in range(2):
            # A retry must not find it known and take it for delivered.
            with pytest.raises(Refusal):
                await appliance.intake.accept(arrival)
        assert appliance.accepted == []

    run(tmp_path, scenario, REPUTATION)


def test_a_message_larger_than_the_folder_may_be_is_not_kept(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        keeping(appliance, octets=50)
        await refused(appliance)
        assert appliance.accepted == []

    run(tmp_path, scenario, REPUTATION)


def test_an_inbox_near_its_quota_keeps_nothing(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        keeping(appliance)
        box = appliance.inbox("one@ours.example")
        appliance.store.database.write(
            lambda c: c.execute(
                schema.mailboxes.update()
                .where(schema.mailboxes.c.id == box)
                .values(quota_octets=1000, used_octets=890)
            )
        )
        await refused(appliance)
        assert appliance.accepted == []

    run(tmp_path, scenario, REPUTATION)


def test_where_nothing_can_be_written_the_sender_is_asked_to_come_back(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        keeping(appliance)

        def fail(_record: Any, *, durable: Any, **_: Any) -> None:
            durable(StorageError("no"))

        taking, appliance.store.accept = appliance.store.accept, fail
        with pytest.raises(StorageError):
            await appliance.receive(CODE % 1)
        appliance.store.accept = taking
        await refused(appliance)
        assert len(kept(appliance)) == 1

    run(tmp_path, scenario, REPUTATION)


def test_without_room_on_the_disk_the_sender_is_asked_to_come_back_and_the_retry_is_kept(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        keeping(appliance)
        has_room, appliance.store.has_room = appliance.store.has_room, lambda _octets=0: False
        assert (await refused(appliance)).code == 452
        appliance.store.has_room = has_room
        assert (await refused(appliance)).code == 554
        assert len(kept(appliance)) == 1

    run(tmp_path, scenario, REPUTATION)


@pytest.mark.parametrize("role", ["postmaster@ours.example", "ABUSE@ours.example", "postmaster"])
def test_mail_for_the_operator_is_not_refused_for_reputation_but_goes_to_junk(tmp_path, role):
    async def scenario(appliance: Appliance) -> None:
        keeping(appliance)
        await appliance.receive(CODE % 1, role)
        assert len(files(appliance, "one@ours.example", ".Junk")) == 1
        assert kept(appliance) == []
        (data,) = (
            json.loads(row[1])
            for row in rows(appliance, schema.events, "kind", "data")
            if row[0] == "message.accepted"
        )
        assert data["action"] == "quarantine"

    run(tmp_path, scenario, REPUTATION)


def test_at_rcpt_the_operator_is_spared_reputation_and_nothing_else(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        ask = partial(appliance.intake.recipient, PEER, None, Envelope("ada@far.example", ()))
        await ask(Recipient("postmaster@ours.example"))
        with pytest.raises(Refusal) as caught:
            await ask(Recipient("one@ours.example"))
        assert caught.value.public == "No"
        with pytest.raises(Refusal) as caught:
            await ask(Recipient("abuse@ours.example"))
        assert caught.value.public == "Closed"

    closed = rule("reject", 'recipient == "abuse@ours.example"', stage="rcpt", name="closed", text="Closed")
    run(tmp_path, scenario, rule("reject", stage="rcpt", reason="reputation", text="No") + closed)


def test_reason_stands_only_where_a_recipient_is_known_and_something_is_refused():
    for text in (
        rule("reject", stage="connect", reason="reputation"),
        rule("quarantine", reason="reputation"),
        rule("reject", reason="colour"),
    ):
        with pytest.raises(PolicyError, match="reason"):
            compile_rules([("one.toml", text)])


async def fill(appliance: Appliance, *numbers: int) -> None:
    for number in numbers:
        appliance.clock.advance(1)
        await refused(appliance, CODE % number)


def test_the_oldest_go_first_when_there_are_too_many_or_they_are_too_old(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        keeper = keeping(appliance, messages=3, keep_seconds=100)
        await fill(appliance, 1, 2, 3)
        await refused(appliance, CODE % 4)
        assert len(kept(appliance)) == 3  # full until it was pruned
        await keeper.turn()
        await fill(appliance, 5, 6)
        await keeper.turn()
        subjects = [row[0] for row in rows(appliance, schema.entries, "uid")]
        assert sorted(subjects) == [3, 4, 5]
        appliance.clock.advance(100)
        await keeper.turn()
        left = rows(appliance, schema.entries, "uid")
        assert [row[0] for row in left] == [5]
        appliance.clock.advance(2)
        await keeper.turn()
        assert rows(appliance, schema.entries, "uid") == rows(appliance, schema.rejects, "digest") == []

    run(tmp_path, scenario, REPUTATION)


def test_octets_are_bounded_and_give_way_to_mail_at_the_quota(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        keeper = keeping(appliance, octets=len(CODE % 1) * 2)
        await fill(appliance, 1, 2)
        await keeper.turn()
        await fill(appliance, 3)
        keeper._turn = 0
        await keeper.turn()
        assert [row[0] for row in rows(appliance, schema.entries, "uid")] == [2, 3]
        box = appliance.inbox("one@ours.example")
        used = rows(appliance, schema.mailboxes, "id", "used_octets")
        octets = dict(used)[box]
        appliance.store.database.write(
            lambda c: c.execute(
                schema.mailboxes.update().where(schema.mailboxes.c.id == box).values(quota_octets=octets)
            )
        )
        keeper._turn = 0
        await keeper.turn()
        assert [row[0] for row in rows(appliance, schema.entries, "uid")] == [3]

    run(tmp_path, scenario, REPUTATION)


def test_what_the_owner_put_there_or_took_out_is_never_pruned(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        keeper = keeping(appliance, keep_seconds=100)
        await fill(appliance, 1, 2)
        box = appliance.inbox("one@ours.example")
        names = {
            name: folder
            for folder, mailbox, name in rows(appliance, schema.folders, "id", "mailbox_id", "name")
            if mailbox == box
        }
        (appliance.directory / "rules" / "one.toml").write_text("")
        appliance.rulebook.reload()
        await appliance.receive(CODE % 3)

        def unit(connection: Any) -> None:
            for source, target, uid in (("Rejects", "INBOX", 1), ("INBOX", "Rejects", 1)):
                mailboxes.move(
                    connection,
                    maildir=appliance.store.maildir,
                    source_id=names[source],
                    target_id=names[target],
                    uids=[uid],
                    at=5,
                )

        appliance.store.database.write(unit)
        appliance.clock.advance(1000)
        await keeper.turn()
        left = {(row[0], row[1]) for row in rows(appliance, schema.entries, "folder_id", "uid")}
        assert left == {(names["INBOX"], 2), (names["Rejects"], 3)}

    run(tmp_path, scenario, REPUTATION)


def test_a_deleted_folder_comes_back_and_a_closed_inbox_gets_nothing(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        keeping(appliance)
        await refused(appliance, CODE % 1)
        box = appliance.inbox("one@ours.example")
        appliance.store.database.write(
            lambda c: mailboxes.delete_folder(
                c, mailbox_id=box, name="Rejects", maildir=appliance.store.maildir
            )
        )
        await refused(appliance, CODE % 2)
        assert len(kept(appliance)) == 1
        assert files(appliance, "one@ours.example") == []
        record = appliance.accepted[-1]
        owner = record.organization_id
        appliance.store.database.write(
            lambda c: accounts.set_mailbox_state(c, organization_id=owner, mailbox_id=box, state="closed")
        )
        await appliance.threads.accept_applied(replace(record, message_id="msg_late", events=()))
        assert len(kept(appliance)) == 1
        assert list((appliance.directory / "data" / "aside").iterdir()) == []

    run(tmp_path, scenario, REPUTATION)


def test_events_of_a_refused_message_are_the_tenants_own(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        keeping(appliance)
        await refused(appliance, CODE % 1, "one@ours.example", "x@other.example")
        query = select(schema.messages.c.id, schema.messages.c.organization_id)
        for message_id, owner in appliance.store.database.read(lambda c: c.execute(query).all()):
            read = partial(events.timeline, organization_id=owner, message_id=message_id)
            (first, *_) = appliance.store.database.read(read)
            assert first.kind == rejects.KIND
            assert first.organization_id == owner

    run(tmp_path, scenario, REPUTATION)
