"""Whom an inbox knows: learnt from what its owner does over IMAP's and the API's calls, told to rules."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from server.apiece import INBOXES_APART, Owner, _together
from server.arrival import Arrival
from server.correspondents import HALF_LIFE, Correspondents, score, told
from server.origin import Origin
from server.refusal import Refusal
from storage import accounts, mailboxes, schema, signs
from storage.mailboxes import FlagMode
from storage.records import Envelope, Peer, Recipient, Source, Verdict
from tests.test_intake import PEER, Appliance, run
from tests.test_rules_acting import MINE, identity, rows, rule, submit

NOW = 1_800_000_000_000_000
DAY = 86_400_000_000
SHIPPED = (Path(__file__).parent.parent / "conf/policies/15-correspondents.toml").read_text()
MAIL = b"From: Ada <ada@far.example>\r\nSubject: offer\r\n\r\nBuy.\r\n"
OTHER = b"From: Bob <bob@far.example>\r\nSubject: offer\r\n\r\nBuy.\r\n"


class Vouching:
    """Says that DMARC passes for what comes from a domain that vouches."""

    def __init__(self, result: str = "pass") -> None:
        self.result = result

    async def verify(self, **_: object) -> tuple[Verdict, ...]:
        return (Verdict("dmarc", self.result, "far.example"),)

    def results_field(self, _verdicts: object) -> bytes:
        return b""


def learning(appliance: Appliance, *, vouching: str = "pass") -> Correspondents:
    made = Correspondents(threads=appliance.threads, clock=appliance.clock, rulebook=appliance.rulebook)
    appliance.intake._correspondents = made
    appliance.intake._verifier = Vouching(vouching)
    return made


def folder(appliance: Appliance, name: str, address: str = "one@ours.example") -> int:
    box = appliance.inbox(address)
    found = appliance.store.database.read(lambda c: mailboxes.find_folder(c, mailbox_id=box, name=name))
    assert found is not None
    return found.id


def shift(appliance: Appliance, source: str, target: str, *uids: int, how: Any = mailboxes.move) -> None:
    ends = folder(appliance, source), folder(appliance, target)
    maildir = appliance.store.maildir
    at = appliance.clock.now()
    appliance.store.database.write(
        lambda c: how(c, maildir=maildir, source_id=ends[0], target_id=ends[1], uids=uids, at=at)
    )


def mark(appliance: Appliance, name: str, uid: int, mode: FlagMode, *keywords: str) -> None:
    number = folder(appliance, name)
    appliance.store.database.write(
        lambda c: mailboxes.store_flags(
            c, folder_id=number, uids=[uid], mode=mode, flags=0, keywords=keywords
        )
    )


def known(appliance: Appliance) -> set[tuple[str, str]]:
    return set(rows(appliance, schema.signs, "correspondent", "kind"))


def in_junk(appliance: Appliance, address: str = "one@ours.example") -> int:
    return count(appliance, "Junk", address)


def count(appliance: Appliance, name: str, address: str = "one@ours.example") -> int:
    number = folder(appliance, name, address)
    return sum(row[0] == number for row in rows(appliance, schema.entries, "folder_id"))


async def receive(appliance: Appliance, content: bytes = MAIL, *recipients: str) -> None:
    await appliance.receive(content, *recipients)


def test_mail_of_a_correspondent_put_into_junk_twice_goes_there_by_itself(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        learner = learning(appliance)
        for uid in (1, 2):
            await receive(appliance)
            shift(appliance, "INBOX", "Junk", uid)
            await learner.learn()
        before = in_junk(appliance)
        await receive(appliance)
        assert in_junk(appliance) == before + 1
        assert len(rows(appliance, schema.signs, "message_id")) == 4
        await receive(appliance, MAIL, "two@ours.example")
        assert in_junk(appliance, "two@ours.example") == 0
        await receive(appliance, OTHER)
        assert count(appliance, "INBOX") == 1
        await receive(appliance, MAIL, "one@ours.example", "two@ours.example")
        assert (in_junk(appliance), in_junk(appliance, "two@ours.example")) == (before + 2, 0)

    run(tmp_path, scenario, SHIPPED)


def test_taking_it_out_again_outweighs_and_the_sign_of_a_message_is_one(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        learner = learning(appliance)
        await receive(appliance)
        shift(appliance, "INBOX", "Junk", 1)
        mark(appliance, "Junk", 1, FlagMode.ADD, "$Junk")
        await learner.learn()
        assert known(appliance) == {("address ada@far.example", "junk"), ("domain far.example", "junk")}
        assert len(rows(appliance, schema.signs, "kind")) == 2
        shift(appliance, "Junk", "INBOX", 1)
        await learner.learn()
        assert known(appliance) == {("address ada@far.example", "welcome"), ("domain far.example", "welcome")}

    run(tmp_path, scenario, SHIPPED)


@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ([("Junk", "INBOX")], "welcome"),
        ([("Junk", "Archive")], "welcome"),
        ([("Junk", "Trash")], None),
        ([("INBOX", "Trash")], None),
        ([("INBOX", "Archive")], None),
        ([("INBOX", "Junk"), ("Junk", "Trash")], "junk"),
    ],
)
def test_only_junk_and_rejects_tell_something(tmp_path, steps, kind):
    async def scenario(appliance: Appliance) -> None:
        learner = learning(appliance)
        await receive(appliance)
        if steps[0][0] == "Junk":
            shift(appliance, "INBOX", "Junk", 1)
            appliance.store.database.write(lambda c: c.execute(schema.signs_due.delete()))
        for source, target in steps:
            shift(appliance, source, target, 1)
        await learner.learn()
        assert {found for _, found in known(appliance)} == ({kind} if kind else set())

    run(tmp_path, scenario, SHIPPED)


def test_a_copy_tells_as_much_as_a_move(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        learner = learning(appliance)
        await receive(appliance)
        shift(appliance, "INBOX", "Junk", 1, how=mailboxes.copy)
        await learner.learn()
        assert {kind for _, kind in known(appliance)} == {"junk"}

    run(tmp_path, scenario, SHIPPED)


@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ([(FlagMode.ADD, "$Junk")], "junk"),
        ([(FlagMode.ADD, "$junk")], "junk"),
        ([(FlagMode.SET, "Junk")], "junk"),
        ([(FlagMode.ADD, "$NotJunk")], "welcome"),
        ([(FlagMode.ADD, "NonJunk")], "welcome"),
        ([(FlagMode.ADD, "$Junk"), (FlagMode.REMOVE, "$Junk")], None),
        # What clients do for 'not junk', in either order.
        ([(FlagMode.ADD, "$Junk"), (FlagMode.ADD, "$NotJunk"), (FlagMode.REMOVE, "$Junk")], "welcome"),
        ([(FlagMode.ADD, "$Junk"), (FlagMode.REMOVE, "$Junk"), (FlagMode.ADD, "$NotJunk")], "welcome"),
        ([(FlagMode.ADD, "Work")], None),
    ],
)
def test_keywords_tell_what_clients_mean_by_them(tmp_path, steps, kind):
    async def scenario(appliance: Appliance) -> None:
        learner = learning(appliance)
        await receive(appliance)
        for mode, word in steps:
            mark(appliance, "INBOX", 1, mode, word)
        await learner.learn()
        assert {found for _, found in known(appliance)} == ({kind} if kind else set())
        assert rows(appliance, schema.signs_due, "seq") == []

    run(tmp_path, scenario, SHIPPED)


def test_whom_the_owner_wrote_to_is_known_and_a_forger_is_not(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        learner = learning(appliance)
        await submit(appliance, "Ada@far.example")
        await learner.learn()
        await receive(appliance)
        assert ("address ada@far.example", "written") in known(appliance)
        tags = dict(rows(appliance, schema.entries, "message_id", "keywords"))
        assert list(tags.values()) == ["Known"]
        learning(appliance, vouching="fail")
        await receive(appliance)
        assert sorted(row[0] for row in rows(appliance, schema.entries, "keywords")) == ["", "Known"]

    text = rule("tag", "correspondent_known && owner_wrote_to_sender", keyword="Known")
    run(tmp_path, scenario, text)


def test_what_is_not_authenticated_is_known_with_its_network_alone(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        learner = learning(appliance, vouching="none")
        for uid in (1, 2):
            await receive(appliance)
            shift(appliance, "INBOX", "Junk", uid)
        await learner.learn()
        assert {one for one, _ in known(appliance)} == {
            "address ada@far.example from 198.51.100.0/24",
            "network 198.51.100.0/24",
        }
        before = in_junk(appliance)
        envelope = Envelope("ada@far.example", (Recipient("one@ours.example"),))
        for client, more in (("198.51.100.77", 1), ("203.0.113.9", 0)):
            peer = Peer(client, 25, "far.example")
            await appliance.intake.accept(Arrival(Source.MX, peer, envelope, MAIL), wait_applied=True)
            assert in_junk(appliance) == before + more
            before += more

    run(tmp_path, scenario, SHIPPED)


def test_a_domain_that_writes_under_many_names_is_known_by_its_domain(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        learner = learning(appliance)
        for number in range(3):
            await receive(appliance, MAIL.replace(b"ada@", b"n%d@" % number))
            shift(appliance, "INBOX", "Junk", number + 1)
        await learner.learn()
        before = in_junk(appliance)
        await receive(appliance, MAIL.replace(b"ada@", b"new@"))
        assert in_junk(appliance) == before + 1

    run(tmp_path, scenario, SHIPPED)


def test_a_message_with_two_authors_teaches_nothing(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        learner = learning(appliance)
        await receive(appliance, MAIL.replace(b"Subject", b"From: eve@near.example\r\nSubject"))
        shift(appliance, "INBOX", "Junk", 1)
        await learner.learn()
        assert known(appliance) == set()
        assert rows(appliance, schema.signs_due, "seq") == []

    run(tmp_path, scenario, SHIPPED)


def test_what_is_learnt_stands_on_the_timeline(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        learner = learning(appliance)
        await receive(appliance)
        shift(appliance, "INBOX", "Junk", 1)
        await learner.learn()
        (data,) = (
            json.loads(data)
            for kind, data in rows(appliance, schema.events, "kind", "data")
            if kind == "correspondent.judged"
        )
        assert data == {
            "sign": "junk",
            "correspondents": ["address ada@far.example", "domain far.example"],
        }

    run(tmp_path, scenario, SHIPPED)


def test_closing_an_inbox_erases_what_it_knew(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        learner = learning(appliance)
        await receive(appliance)
        shift(appliance, "INBOX", "Junk", 1)
        await learner.learn()
        await receive(appliance, OTHER)
        shift(appliance, "INBOX", "Junk", 2)
        box = appliance.inbox("one@ours.example")
        owner = identity(appliance).organization_id
        appliance.store.database.write(
            lambda c: accounts.set_mailbox_state(c, organization_id=owner, mailbox_id=box, state="closed")
        )
        assert known(appliance) == set()
        await learner.learn()
        assert known(appliance) == set()
        assert rows(appliance, schema.signs_due, "seq") == []

    run(tmp_path, scenario, SHIPPED)


def test_nothing_is_asked_where_no_rule_wants_it_or_no_inbox_has_signs(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        learner = learning(appliance)
        box = appliance.inbox("one@ours.example")
        assert not learner.knows([box])
        assert learner.spares(box)
        await receive(appliance)
        shift(appliance, "INBOX", "Junk", 1)
        await learner.learn()
        await until(lambda: learner.knows([box]))
        assert not learner.spares(box)
        (appliance.directory / "rules" / "one.toml").write_text(rule("tag", "true", "deliver", keyword="X"))
        appliance.rulebook.reload()
        assert not learner.knows([box])
        assert not learner.spares(box)

    run(tmp_path, scenario, SHIPPED)


async def until(check: Any) -> None:
    async with asyncio.timeout(10):
        while not check():
            await asyncio.sleep(0.01)


def test_another_start_knows_what_was_learnt(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        learner = learning(appliance)
        for uid in (1, 2):
            await receive(appliance)
            shift(appliance, "INBOX", "Junk", uid)
        await learner.learn()
        before = in_junk(appliance)
        again = learning(appliance)
        await again.start()
        try:
            await receive(appliance)
            assert in_junk(appliance) == before + 1
        finally:
            await again.stop()

    run(tmp_path, scenario, SHIPPED)


def test_a_mailing_makes_no_correspondents(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        learner = learning(appliance)
        await submit(appliance, *[f"n{number}@far.example" for number in range(51)], content=MINE)
        await learner.learn()
        assert known(appliance) == set()

    run(tmp_path, scenario)


def test_acts_fade():
    assert score([("junk", NOW)], now=NOW) == -100
    assert score([("junk", NOW - HALF_LIFE), ("welcome", NOW)], now=NOW) == 50
    assert score([("written", NOW - 3 * HALF_LIFE)], now=NOW) == 12
    assert score([("junk", NOW + DAY)], now=NOW) == -100  # a clock that was set back
    assert score([], now=NOW) == 0


def test_at_message_the_best_inbox_counts():
    loved, hated = (("welcome", NOW),), (("junk", NOW), ("junk", NOW))
    found = told(Origin("a", "d"), [loved, hated], [(), ()], now=NOW)
    assert found["correspondent_known"] is True
    assert found["correspondent_unwanted"] is False
    found = told(Origin("a", "d"), [hated, ()], [(), ()], now=NOW)
    assert found["correspondent_unwanted"] is False
    found = told(Origin("a", "d"), [hated], [hated * 2], now=NOW)
    assert found["correspondent_unwanted"] is True
    assert found["correspondent_domain_unwanted"] is True
    found = told(Origin("a", "d"), [loved], [hated * 2], now=NOW)
    assert found["correspondent_domain_unwanted"] is False


def test_signs_are_pruned_by_age_and_number(tmp_path, monkeypatch):
    async def scenario(appliance: Appliance) -> None:
        box = appliance.inbox("one@ours.example")
        made = [signs.Sign(box, f"msg_{n}", "junk", NOW + n, ("address a@b", "domain b")) for n in range(10)]
        appliance.store.database.write(lambda c: signs.learn(c, made))
        appliance.store.database.write(lambda c: signs.prune(c, before=NOW + 2))
        assert len(rows(appliance, schema.signs, "at")) == 16
        monkeypatch.setattr(signs, "LIMIT", 5)
        appliance.store.database.write(lambda c: signs.trim(c, mailbox_ids={box}))
        assert len(rows(appliance, schema.signs, "at")) == 16
        monkeypatch.setattr(signs, "SLACK", 10)
        appliance.store.database.write(lambda c: signs.trim(c, mailbox_ids={box}))
        left = sorted(row[0] - NOW for row in rows(appliance, schema.signs, "at"))
        assert left == [7, 8, 8, 9, 9]

    run(tmp_path, scenario)


def test_an_act_on_many_messages_is_noted_up_to_a_limit(tmp_path, monkeypatch):
    async def scenario(appliance: Appliance) -> None:
        monkeypatch.setattr(signs, "AT_ONCE", 3)
        for number in range(5):
            await receive(appliance, MAIL + b"%d\r\n" % number)
        shift(appliance, "INBOX", "Junk", 1, 2, 3, 4, 5)
        assert len(rows(appliance, schema.signs_due, "seq")) == 3

    run(tmp_path, scenario)


def test_the_header_of_peer_is_not_what_is_learnt(tmp_path):
    """PEER's HELO is far.example: a name that a client gives itself vouches for nothing."""

    async def scenario(appliance: Appliance) -> None:
        assert PEER.helo == "far.example"
        learner = learning(appliance, vouching="none")
        await receive(appliance)
        shift(appliance, "INBOX", "Junk", 1)
        await learner.learn()
        assert not any(one.startswith("domain") for one, _ in known(appliance))

    run(tmp_path, scenario)


KNOWN_ALONE = """
[[rule]]
name = "known-alone"
stage = "message"
when = 'source == "lmtp" && correspondent_unwanted'
action = "reject"
"""


@pytest.mark.parametrize("is_large", [False, True])
def test_over_lmtp_each_inbox_answers_by_its_own_owner(tmp_path, is_large):
    """One owner has put the sender into Junk: the other one's mail comes, and a third's too."""

    async def scenario(appliance: Appliance) -> None:
        learner = learning(appliance)
        for uid in (1, 2):
            await receive(appliance)
            shift(appliance, "INBOX", "Junk", uid)
            await learner.learn()
        to = ("two@ours.example", "one@ours.example", "x@other.example", "one@ours.example")
        envelope = Envelope("ada@far.example", tuple(map(Recipient, to)))
        content = appliance.spool(MAIL) if is_large else MAIL
        answers = await appliance.intake.accept_each(Arrival(Source.LMTP, PEER, envelope, content))
        codes = [answer.code if isinstance(answer, Refusal) else 250 for answer in answers]
        assert codes == [250, 550, 250, 550]
        named = [[one.address for one in record.envelope.recipients] for record in appliance.accepted[-2:]]
        assert sorted(named) == [["two@ours.example"], ["x@other.example"]]
        # Without the rule all of an organization share one message again.
        shared = await shared_by(appliance)
        assert shared == [["one@ours.example", "two@ours.example"]]

    run(tmp_path, scenario, KNOWN_ALONE)


async def shared_by(appliance: Appliance) -> list[list[str]]:
    """The recipients of each record that a message to two inboxes makes without a rule about them."""
    for path in appliance.rulebook._directory.glob("*.toml"):
        path.write_text("")
    appliance.rulebook.reload()
    accepted = len(appliance.accepted)
    to = ("one@ours.example", "two@ours.example")
    envelope = Envelope("ada@far.example", tuple(map(Recipient, to)))
    await appliance.intake.accept_each(Arrival(Source.LMTP, PEER, envelope, MAIL))
    return [[one.address for one in record.envelope.recipients] for record in appliance.accepted[accepted:]]


def test_not_more_than_some_inboxes_of_a_message_are_judged_alone():
    owners = [Owner("org_1", f"inb_{number}") for number in range(INBOXES_APART + 9)]
    together = _together([*owners, Refusal(550, "5.2.1", "no"), Owner("org_1")])
    assert len({one for one in together if isinstance(one, Owner)}) == INBOXES_APART + 1
    assert together[:INBOXES_APART] == owners[:INBOXES_APART]
    assert isinstance(together[-2], Refusal)
