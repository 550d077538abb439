"""Recipient by recipient through the real intake: each has its answer, and none costs another its mail."""

import pytest

from server.arrival import Arrival, Receipt
from server.refusal import Refusal
from server.routing import Refuse
from storage.errors import Full
from storage.records import Envelope, Peer, Recipient, Source
from tests.test_intake import CONTENT, FORGED, Appliance, run

HOST = Peer("", 0, "front.example", extended=True)
CLOSED = Refuse(550, "5.2.1", "Mailbox is closed")
ONE, TWO, OTHER = "one@ours.example", "two@ours.example", "x@other.example"
REFUSE_OTHER = """
[[rule]]
name = "no"
stage = "message"
when = 'source == "lmtp" && recipients.exists(one, one == "x@other.example")'
action = "reject"
code = 552
"""


def arrival(content, *recipients: str, peer: Peer = HOST) -> Arrival:
    return Arrival(Source.LMTP, peer, Envelope("ada@far.example", tuple(map(Recipient, recipients))), content)


def close(appliance: Appliance, *addresses: str) -> None:
    """Let addresses lead nowhere, as if their inboxes had been closed after RCPT."""
    routing = appliance.intake._routing
    asked = routing.resolve

    async def resolve(address: str):
        return CLOSED if address in addresses else await asked(address)

    routing.resolve = resolve


def codes(answers) -> list[int]:
    return [answer.code if isinstance(answer, Refusal) else 250 for answer in answers]


@pytest.mark.parametrize("is_large", [False, True])
def test_recipients_of_two_organizations_are_answered_in_their_order(tmp_path, is_large):
    async def scenario(appliance: Appliance) -> None:
        content = appliance.spool() if is_large else CONTENT
        answers = await appliance.intake.accept_each(arrival(content, ONE, OTHER, TWO, ONE))
        assert codes(answers) == [250] * 4
        assert answers[0] == answers[2] == answers[3] != answers[1]
        assert all(len(answer.message_ids) == 1 for answer in answers)
        named = [[one.address for one in record.envelope.recipients] for record in appliance.accepted]
        assert sorted(named) == [[ONE, TWO, ONE], [OTHER]]
        names = [record.content.name for record in appliance.accepted] if is_large else [1, 2]
        assert len(set(names)) == 2

    run(tmp_path, scenario)


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("closed", [(TWO,), (ONE, TWO, OTHER), ("nobody@nowhere.example",)])
def test_whom_no_mail_is_taken_for_keeps_it_from_nobody(tmp_path, is_large, closed):
    async def scenario(appliance: Appliance) -> None:
        close(appliance, *closed)
        recipients = (ONE, TWO, OTHER, "nobody@nowhere.example")
        content = appliance.spool() if is_large else CONTENT
        answers = await appliance.intake.accept_each(arrival(content, *recipients))
        assert codes(answers) == [550 if one in closed or "nobody" in one else 250 for one in recipients]
        kept = [one.address for record in appliance.accepted for one in record.envelope.recipients]
        assert sorted(kept) == [one for one in recipients if one not in closed and "nobody" not in one]
        if not kept:
            assert appliance.spooled() == []

    run(tmp_path, scenario)


@pytest.mark.parametrize("is_large", [False, True])
def test_a_rule_that_refuses_one_organization_s_mail_leaves_the_other_s(tmp_path, is_large):
    async def scenario(appliance: Appliance) -> None:
        content = appliance.spool() if is_large else CONTENT
        answers = await appliance.intake.accept_each(arrival(content, ONE, OTHER, TWO))
        assert codes(answers) == [250, 552, 250]
        assert len(appliance.accepted) == 1

    run(tmp_path, scenario, REFUSE_OTHER)


def test_who_is_closed_while_the_message_is_judged_is_refused_alone(tmp_path):
    """The others are asked to come again: nothing of theirs was wrong."""

    async def scenario(appliance: Appliance) -> None:
        intake = appliance.intake
        taking = intake.accept

        async def accept(one: Arrival) -> Receipt:
            close(appliance, TWO)
            return await taking(one)

        intake.accept = accept
        answers = await intake.accept_each(arrival(CONTENT, ONE, TWO))
        assert codes(answers) == [451, 550]
        assert appliance.accepted == []

    run(tmp_path, scenario)


@pytest.mark.parametrize(("failure", "code"), [(Full("disk"), 452), (RuntimeError("broken"), 451)])
def test_a_second_name_that_cannot_be_made_costs_the_second_organization_alone(tmp_path, failure, code):
    async def scenario(appliance: Appliance) -> None:
        def duplicate(_content):
            raise failure

        appliance.store.duplicate = duplicate
        answers = await appliance.intake.accept_each(arrival(appliance.spool(), ONE, OTHER))
        assert codes(answers) == [250, code]

    run(tmp_path, scenario)


def test_a_fault_of_the_database_is_temporary_for_each(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        async def resolve(_address):
            raise RuntimeError("database is gone")

        appliance.intake._routing.resolve = resolve
        answers = await appliance.intake.accept_each(arrival(appliance.spool(), ONE, OTHER))
        assert codes(answers) == [451, 451]
        assert appliance.spooled() == []

    run(tmp_path, scenario)


@pytest.mark.parametrize(("peer", "is_checked"), [(HOST, False), (Peer("192.0.2.1", helo="x"), True)])
def test_a_sender_is_checked_only_where_the_client_is_known(tmp_path, peer, is_checked):
    """Forged results go in any case."""

    async def scenario(appliance: Appliance) -> None:
        await appliance.intake.accept_each(arrival(FORGED, ONE, peer=peer))
        (record,) = appliance.accepted
        assert (b"Authentication-Results: mail.example.org; none" in record.trace) is is_checked
        assert b"\r\nAuthentication-Results: mail.example.org; dmarc=pass" not in record.content
        assert b"with LMTP id" in record.trace

    run(tmp_path, scenario)
