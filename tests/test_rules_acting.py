"""Every action that a rule may take, carried out: from the rule's text, through intake, into the store."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from policies.compile import PolicyError
from server.arrival import Arrival
from server.login import Identity
from server.refusal import Refusal
from storage import accounts, events, ids, queue_acts, schema, sending
from storage.records import Envelope, Event, Peer, Recipient, Source
from tests.test_intake import CONTENT, PEER, Appliance, Resolver, run

MINE = b"From: one@ours.example\r\nSubject: hello\r\n\r\nGood day.\r\n"
LONG = (
    b"From: one@ours.example\r\nSubject: offer\r\n\r\n"
    b"Dear Sir or Madam, we have the pleasure to offer you our new and improved lawn mower, number %d, which "
    b"cuts grass of every length in any weather without noise or smell, at half the price of last year.\r\n"
)
SHIPPED = (Path(__file__).parent.parent / "conf/policies/20-submission.toml").read_text()


def rule(action: str, when: str = "true", stage: str = "message", name: str = "it", **keys: object) -> str:
    lines = ["[[rule]]", f'name = "{name}"', f'stage = "{stage}"', f"when = '''{when}'''"]
    lines += [f'action = "{action}"']
    lines += [
        f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in keys.items()
    ]
    return "\n".join(lines) + "\n"


def rows(appliance: Appliance, table: Any, *columns: str) -> list[tuple[Any, ...]]:
    query = select(*(table.c[name] for name in columns))
    return [tuple(row) for row in appliance.store.database.read(lambda c: c.execute(query).all())]


def files(appliance: Appliance, address: str, folder: str = "") -> list[Path]:
    root = appliance.store.maildir.root / appliance.inbox(address) / folder / "new"
    return sorted(root.iterdir()) if root.exists() else []


def keywords(appliance: Appliance) -> list[str]:
    return [row[0] for row in rows(appliance, schema.entries, "keywords")]


def identity(appliance: Appliance, scopes: Sequence[str] = ()) -> Identity:
    found = appliance.store.database.read(lambda c: accounts.find_mailbox(c, address="one@ours.example"))
    assert found is not None
    return Identity(found.organization_id, found.id, found.address, "password", "cred_1", frozenset(scopes))


async def submit(
    appliance: Appliance, *recipients: str, content: bytes = MINE, scopes: Sequence[str] = ()
) -> Any:
    login = identity(appliance, scopes)
    envelope = Envelope("one@ours.example", tuple(map(Recipient, recipients or ("ada@far.example",))))
    peer = Peer("198.51.100.9", 25, "laptop", extended=True, tls_version="TLSv1.3", identity=login.id)
    arrival = Arrival(Source.SUBMISSION, peer, envelope, content, identity=login)
    return await appliance.intake.accept(arrival, wait_applied=True)


def test_discarded_mail_is_taken_and_nobody_has_it(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await appliance.receive(CONTENT, "one@ours.example")
        assert files(appliance, "one@ours.example") == []
        (data,) = rows(appliance, schema.events, "data")
        assert '"action":"discard"' in data[0]
        assert '"dropped":["one@ours.example"]' in data[0]

    run(tmp_path, scenario, rule("discard"))


def test_mail_discarded_for_one_inbox_reaches_the_other(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await appliance.receive(CONTENT, "one@ours.example", "two@ours.example")
        assert files(appliance, "one@ours.example") == []
        assert len(files(appliance, "two@ours.example")) == 1

    run(tmp_path, scenario, rule("discard", 'recipient == "one@ours.example"', "deliver"))


def test_quarantined_mail_lies_in_junk_with_its_keyword(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await appliance.receive(CONTENT)
        assert files(appliance, "one@ours.example") == []
        assert len(files(appliance, "one@ours.example", ".Junk")) == 1
        assert keywords(appliance) == ["Doubtful"]

    run(tmp_path, scenario, rule("quarantine", keyword="Doubtful"))


@pytest.mark.parametrize("text", [rule("hold"), rule("quarantine", to="held")], ids=["hold", "quarantine"])
def test_held_mail_waits_until_a_person_releases_it(tmp_path, text):
    async def scenario(appliance: Appliance) -> None:
        await appliance.receive(CONTENT, "one@ours.example", "postmaster@ours.example")
        assert files(appliance, "one@ours.example") == []
        held = rows(appliance, schema.deliveries, "recipient", "state", "next_attempt_at")
        assert sorted(held) == [("one@ours.example", "held", None), ("postmaster@ours.example", "held", None)]
        released = appliance.store.database.write(
            lambda c: queue_acts.release(c, selection=queue_acts.Selection(), actor="me", at=5)
        )
        assert len(released.changed) == 2
        # What the queue then brings home passes the same rule.
        envelope = Envelope("ada@far.example", (Recipient("one@ours.example"),))
        await appliance.intake.accept(
            Arrival(Source.LOCAL, Peer("", helo="x"), envelope, CONTENT), wait_applied=True
        )
        assert len(files(appliance, "one@ours.example")) == 1

    run(tmp_path, scenario, text)


def test_submitted_mail_is_held_for_approval(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await submit(appliance, "ada@far.example", "two@ours.example")
        assert {row[0] for row in rows(appliance, schema.deliveries, "state")} == {"held"}

    run(tmp_path, scenario, rule("hold", "true", "submit"))


def test_tagged_mail_has_the_keyword_and_the_field(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await appliance.receive(CONTENT)
        assert keywords(appliance) == ["Seen-by-rule"]
        assert b"\r\nX-Sorted: yes\r\n" in files(appliance, "one@ours.example")[0].read_bytes()

    run(tmp_path, scenario, rule("tag", keyword="Seen-by-rule", header="X-Sorted: yes"))


def test_redirected_mail_goes_to_the_target_alone(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await appliance.receive(CONTENT, "one@ours.example")
        assert files(appliance, "one@ours.example") == []
        assert len(files(appliance, "two@ours.example")) == 1

    run(tmp_path, scenario, rule("redirect", target="two@ours.example"))


def test_a_copy_lies_in_the_inbox_beside_the_recipients(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await appliance.receive(CONTENT, "one@ours.example")
        assert len(files(appliance, "one@ours.example")) == len(files(appliance, "two@ours.example")) == 1
        assert b"two@ours.example" not in files(appliance, "one@ours.example")[0].read_bytes()
        (record,) = appliance.accepted
        assert [one.address for one in record.envelope.recipients] == ["one@ours.example"]

    run(tmp_path, scenario, rule("copy", target="two@ours.example"))


def test_a_copy_never_leaves_the_organization_and_the_timeline_says_so(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await appliance.receive(CONTENT, "one@ours.example")
        assert files(appliance, "x@other.example") == []
        assert rows(appliance, schema.deliveries, "recipient") == []
        assert "message.copy_failed" in {row[0] for row in rows(appliance, schema.events, "kind")}

    run(tmp_path, scenario, rule("copy", target="x@other.example"))


def test_forwarded_mail_goes_on_and_stays(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await appliance.receive(CONTENT, "one@ours.example")
        assert len(files(appliance, "one@ours.example")) == 1
        assert rows(appliance, schema.deliveries, "recipient", "notify") == [("eve@far.example", "NEVER")]

    run(tmp_path, scenario, rule("forward", target="eve@far.example"))


def test_a_copy_of_sent_mail_goes_by_the_queue(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await submit(appliance, "ada@far.example")
        assert {row[0] for row in rows(appliance, schema.deliveries, "recipient")} == {
            "ada@far.example",
            "two@ours.example",
        }

    run(tmp_path, scenario, rule("copy", "true", "submit", target="two@ours.example"))


def test_priority_is_the_queues(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await submit(appliance)
        assert rows(appliance, schema.deliveries, "priority") == [(7,)]

    run(tmp_path, scenario, rule("priority", "true", "submit", priority=7))


def test_a_limit_refuses_beyond_it_for_that_value_alone_and_ends_with_its_period(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        async def come(address: str) -> int:
            try:
                await appliance.intake.connected(replace(PEER, address=address))
            except Refusal as refusal:
                return refusal.code
            return 250

        assert [await come("192.0.2.1") for _ in range(3)] == [250, 250, 451]
        assert await come("192.0.2.2") == 250
        appliance.clock.advance(121)
        assert await come("192.0.2.1") == 250

    keys = {"limit": 2, "period_seconds": 60, "per": "client_ip"}
    run(tmp_path, scenario, rule("limit", "true", "connect", **keys))


def test_a_client_without_tls_is_told_to_use_it(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        envelope = Envelope("ada@far.example", ())
        with pytest.raises(Refusal) as caught:
            await appliance.intake.sender(PEER, None, envelope, None)
        assert (caught.value.code, caught.value.enhanced) == (530, "5.7.0")
        await appliance.intake.sender(replace(PEER, tls_version="TLSv1.3"), None, envelope, None)

    run(tmp_path, scenario, rule("require_tls", "true", "mail"))


def test_accept_and_stop_spare_the_rules_behind_them(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await appliance.receive(CONTENT)
        assert len(files(appliance, "one@ours.example")) == 1

    for word in ("accept", "stop"):
        (tmp_path / word).mkdir()
        run(tmp_path / word, scenario, rule(word, name="first") + rule("reject", name="second"))


def test_a_paused_login_sends_nothing_until_it_is_lifted(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        ended = [_event(appliance, "message.bounced", "msg_1") for _ in range(30)]
        ended += [_event(appliance, "message.delivered", "msg_1") for _ in range(90)]
        await submit(appliance)
        message_id = appliance.accepted[0].message_id
        ended = [replace(event, message_id=message_id) for event in ended]
        appliance.store.database.write(lambda c: events.append(c, ended))
        appliance.standing._events_moved = True
        await appliance.standing.tally()
        with pytest.raises(Refusal, match="Sending is paused") as caught:
            await submit(appliance)
        assert caught.value.cause == "rule bounces-pause-login"
        with pytest.raises(Refusal) as caught:
            await submit(appliance)
        assert caught.value.cause == "rule paused"
        (found,) = appliance.store.database.read(sending.pauses)
        assert (found.subject, found.rule) == ("cred_1", "bounces-pause-login")
        assert "login.paused" in {row[0] for row in rows(appliance, schema.events, "kind")}
        appliance.store.database.write(lambda c: sending.lift(c, subject="cred_1", at=9))
        await _settle(appliance)
        await submit(appliance)
        assert len(appliance.accepted) == 2

    run(tmp_path, scenario, SHIPPED)


def _event(appliance: Appliance, kind: str, message_id: str) -> Event:
    owner = identity(appliance).organization_id
    return Event(ids.new("evt"), kind, appliance.clock.now(), owner, message_id)


async def _settle(appliance: Appliance) -> None:
    """Let the notices of a commit reach the loop: a read follows them."""
    for _ in range(3):
        await appliance.threads.write(lambda c: None)


def test_rates_are_kept_over_a_restart(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await submit(appliance, "a@far.example", "b@far.example")
        await appliance.counters.flush()
        appliance.counters._known.clear()
        with pytest.raises(Refusal, match="sent too much"):
            await submit(appliance, "c@far.example")
        appliance.clock.advance(2 * 3600)
        await submit(appliance, "c@far.example")

    run(tmp_path, scenario, SHIPPED, limits={"key_hour": 2})


def test_rates_count_what_is_not_yet_written(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await submit(appliance, "a@far.example")
        appliance.counters._known.clear()
        await submit(appliance, "a@far.example")
        with pytest.raises(Refusal, match="sent too much"):
            await submit(appliance)

    run(tmp_path, scenario, SHIPPED, limits={"key_hour": 2})


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"organization_day": 2}, "organization has sent too much"),
        ({"warmup_first_days": 2}, "domain is new"),
        ({"message_recipients": 1}, "too many recipients"),
    ],
)
def test_each_figure_of_the_transactional_boundary_is_kept(tmp_path, limits, text):
    async def scenario(appliance: Appliance) -> None:
        appliance.clock.micros = 3600_000_000  # the domain is of the first microsecond
        if "message_recipients" not in limits:
            await submit(appliance, "a@far.example", "b@far.example")
        with pytest.raises(Refusal, match=text):
            await submit(appliance, "c@far.example", "d@far.example")

    run(tmp_path, scenario, SHIPPED, limits=limits)


def test_a_domain_earns_more_with_its_age(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        appliance.clock.micros = 1 + 3 * 86_400_000_000  # the domain is of the first microsecond
        await submit(appliance, "a@far.example", "b@far.example")
        await submit(appliance, "c@far.example", "d@far.example")
        with pytest.raises(Refusal, match="domain is new"):
            await submit(appliance, "e@far.example")

    run(tmp_path, scenario, SHIPPED, limits={"warmup_first_days": 2})


def test_one_text_to_many_is_stopped_and_other_texts_are_not(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        for number in range(5):
            await submit(appliance, f"r{number}@far.example", content=LONG % number)
        with pytest.raises(Refusal, match="same text went to too many recipients"):
            await submit(appliance, "r6@far.example", content=LONG % 6)
        await submit(appliance, "r6@far.example", content=MINE)
        await submit(appliance, "r6@far.example", content=LONG % 6, scopes=["bulk"])

    run(tmp_path, scenario, SHIPPED, limits={"similar_bodies_hour": 5, "new_recipient_percent": 100})


def test_one_text_to_strangers_is_stopped_sooner_than_to_those_written_to_before(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        known = [f"k{number}@far.example" for number in range(4)]
        await submit(appliance, *known)
        await appliance.counters.flush()
        appliance.clock.advance(25 * 3600)
        for address in known:
            await submit(appliance, address, content=LONG % 1)
        appliance.clock.advance(25 * 3600)
        await submit(appliance, "s1@far.example", content=LONG % 1)
        with pytest.raises(Refusal, match="too many new recipients"):
            await submit(appliance, "s2@far.example", content=LONG % 1)

    run(tmp_path, scenario, SHIPPED, limits={"similar_bodies_hour": 9, "new_recipient_percent": 50})


def test_a_list_of_the_dns_is_asked_before_the_stage_and_only_where_a_rule_may_hold(tmp_path):
    text = '[[list]]\nname = "bad"\nkind = "networks"\ndns = "dnsbl.test"\n'
    text += rule("reject", 'source == "mx" && client_ip.in_list("bad")', "mail")
    sane = {"2.0.0.127.dnsbl.test": ("127.0.0.2",)}
    resolver = Resolver({"1.2.0.192.dnsbl.test": ("127.0.0.2",), "3.2.0.192.dnsbl.test": None} | sane)

    async def scenario(appliance: Appliance) -> None:
        async def say(address: str, who: Identity | None = None) -> int:
            try:
                await appliance.intake.sender(replace(PEER, address=address), who, Envelope(None, ()), None)
            except Refusal as refusal:
                return refusal.code
            return 250

        assert [await say(f"192.0.2.{last}") for last in (1, 2, 3)] == [550, 250, 451]
        asked = len(resolver.asked)
        assert await say("192.0.2.1", identity(appliance)) == 250
        assert len(resolver.asked) == asked

    run(tmp_path, scenario, text, resolver=resolver)


def test_a_list_of_a_file_is_read_anew_and_a_fault_in_it_keeps_the_old(tmp_path):
    text = '[[list]]\nname = "good"\nkind = "domains"\nfile = "good.txt"\n'
    text += rule("reject", '!sender_domain.in_list("good")', "mail")
    (tmp_path / "rules").mkdir()
    listed = tmp_path / "rules" / "good.txt"
    listed.write_text("# ours\nfar.example\n")

    async def scenario(appliance: Appliance) -> None:
        async def may(sender: str) -> bool:
            try:
                await appliance.intake.sender(PEER, None, Envelope(sender, ()), None)
            except Refusal:
                return False
            return True

        assert [await may("a@far.example"), await may("a@b.near.example")] == [True, False]
        listed.write_text("*.near.example\n")
        assert appliance.rulebook.refresh_lists()
        assert not appliance.rulebook.refresh_lists()
        assert [await may("a@far.example"), await may("a@b.near.example")] == [False, True]
        listed.write_text("*.near.example\nno domain\n")
        with pytest.raises(PolicyError, match=r"good.txt:2: this is no domain"):
            appliance.rulebook.refresh_lists()
        assert await may("a@b.near.example")

    run(tmp_path, scenario, text)


def test_a_list_of_the_database_follows_its_rows(tmp_path):
    text = '[[list]]\nname = "vip"\nkind = "addresses"\ndatabase = true\n'
    text += rule("tag", 'sender.in_list("vip")', keyword="Vip")

    async def scenario(appliance: Appliance) -> None:
        await appliance.standing._read_lists()
        appliance.store.database.write(
            lambda c: sending.add_entries(c, name="vip", entries=["ada@far.example"], at=1)
        )
        await _settle(appliance)
        assert appliance.rulebook.wants_database_lists
        await appliance.standing._read_lists()
        await appliance.receive(CONTENT)
        assert keywords(appliance) == ["Vip"]

    run(tmp_path, scenario, text)


def test_a_field_that_a_rule_adds_to_sent_mail_is_before_the_signer(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await submit(appliance)
        assert appliance.signer.covered == [b"X-Sorted: yes\r\n"]
        assert b"\r\nX-Sorted: yes\r\n" in b"\r\n" + appliance.accepted[0].trace

    run(tmp_path, scenario, rule("tag", stage="submit", header="X-Sorted: yes"))


def test_require_tls_binds_the_way_onward_of_what_is_submitted_under_tls(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        login = identity(appliance)
        for peer in (replace(PEER, tls_version="TLSv1.3"), replace(PEER, tls_version=None)):
            arrival = Arrival(
                Source.SUBMISSION,
                peer,
                Envelope("one@ours.example", (Recipient("far@away.example"),)),
                MINE,
                login,
            )
            if peer.tls_version:
                await appliance.intake.accept(arrival, wait_applied=True)
            else:
                with pytest.raises(Refusal) as refused:
                    await appliance.intake.accept(arrival)
                assert refused.value.code == 530
        (record,) = appliance.accepted
        assert record.envelope.tls_only
        assert not record.envelope.require_tls
        # Over the API, the way in is HTTP's affair.
        await appliance.intake.accept(replace(arrival, source=Source.API), wait_applied=True)
        assert appliance.accepted[1].envelope.tls_only
        stored = rows(appliance, schema.messages, "envelope")
        assert all('"tls_only":true' in text for (text,) in stored)

    run(tmp_path, scenario, rule("require_tls", stage="submit"))
