"""Intake against a real store: what a stranger's message may cost, and whom it may tell of whom."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from policies.facts import DEFAULT_LIMITS
from server.arrival import Arrival, IntakeSettings, Receipt
from server.counters import Counters
from server.dns import Answer, DnsTemporary, NoSuchDomain
from server.imap.render import render
from server.intake import Intake
from server.mail import trace
from server.names.zones import Zones
from server.refusal import Refusal
from server.routing import Routing
from server.rulebook import Rulebook
from server.standing import Standing
from server.threads import Hub, Threads
from storage import accounts, codec
from storage.records import Accepted, Envelope, Peer, Recipient, Source, Spooled, Verdict
from storage.store import Store
from tests.databases import migrated
from tests.fakes import FakeClock

HOST = "mail.example.org"
PEER = Peer("198.51.100.9", 25, "far.example", extended=True)
CONTENT = b"From: Ada <ada@far.example>\r\nSubject: hello\r\n\r\nGood day.\r\n"
FORGED = (
    b"X-Authentication-Results: mail.example.org; dmarc=pass\r\nSubject: hello\r\n"
    b"Authentication-Results: mail.example.org; dmarc=pass\r\nFrom: ada@far.example\r\n\r\nGood day.\r\n"
)
REFUSE_ALL = """
[[rule]]
name = "no"
stage = "message"
when = 'subject == "hello"'
action = "reject"
"""
Scenario = Callable[["Appliance"], Awaitable[None]]


class Verifier:
    """Finds nothing out."""

    async def verify(self, **_: object) -> tuple[Verdict, ...]:
        return ()

    def results_field(self, _verdicts: object) -> bytes:
        return b"Authentication-Results: mail.example.org; none\r\n"


class Signer:
    """Has no keys. covered: the fields on top of each content that it was to sign."""

    def __init__(self) -> None:
        self.covered: list[bytes] = []

    async def sign(self, *, added: bytes, **_: object) -> bytes:
        self.covered.append(added)
        return b""

    async def seal(self, **_: object) -> bytes:
        return b""


@dataclass
class Appliance:
    """Two organizations with inboxes, and the intake before them. accepted: what reached the journal."""

    store: Store
    threads: Threads
    intake: Intake
    accepted: list[Accepted]
    rulebook: Rulebook
    standing: Standing
    counters: Counters
    clock: FakeClock
    directory: Path
    signer: Signer

    def spool(self, content: bytes = CONTENT) -> Spooled:
        writer = self.store.spool()
        writer.write(content)
        return writer.finish()

    def spooled(self) -> list[str]:
        """The files in the spool."""
        return [path.name for path in self.store._spool.directory.iterdir()]

    async def receive(self, content: bytes | Spooled, *recipients: str, **changes: Any) -> Receipt:
        envelope = Envelope("ada@far.example", tuple(map(Recipient, recipients or ("one@ours.example",))))
        return await self.intake.accept(
            Arrival(Source.MX, PEER, envelope, content, **changes), wait_applied=True
        )

    def file(self, mailbox: str) -> bytes:
        """The only message in an inbox."""
        (path,) = (self.store.maildir.root / mailbox / "new").iterdir()
        return path.read_bytes()

    def inbox(self, address: str) -> str:
        found = self.store.database.read(lambda c: accounts.find_mailbox(c, address=address))
        assert found is not None
        return found.id


class Resolver:
    """Answers from a table; what is not in it does not exist, and None fails for now."""

    def __init__(self, table: dict[str, tuple[str, ...] | None]) -> None:
        self.table = table
        self.asked: list[str] = []

    async def resolve(self, name: str, rdtype: str) -> Answer:
        self.asked.append(name)
        found = self.table.get(name, ())
        if found is None:
            raise DnsTemporary(name)
        if not found:
            raise NoSuchDomain(name)
        return Answer(found, 60, False)


def run(
    directory: Path,
    scenario: Scenario,
    rules: str = "",
    *,
    limits: dict[str, int] | None = None,
    resolver: Resolver | None = None,
) -> None:
    async def whole() -> None:
        (directory / "rules").mkdir(exist_ok=True)
        (directory / "rules" / "one.toml").write_text(rules)
        store = Store.open(
            directory=directory / "data",
            database_url=migrated(directory / "mailagents.sqlite"),
            render=render,
            segment_octets=1 << 20,
            spool_threshold_octets=256 * 1024,
        )
        threads = Threads(store, Hub())
        try:
            for name in ("one@ours.example", "two@ours.example", "x@other.example"):
                _add_inbox(store, name)
            accepted: list[Accepted] = []
            taking = store.accept

            def accept(record: Accepted, **callbacks: Any) -> None:
                accepted.append(record)
                taking(record, **callbacks)

            store.accept = accept
            clock = FakeClock()
            rulebook = Rulebook(directory / "rules", {**DEFAULT_LIMITS, **(limits or {})}, clock)
            counters = Counters(threads, clock)
            standing = Standing(
                threads=threads,
                clock=clock,
                rulebook=rulebook,
                counters=counters,
                zones=Zones(resolver or Resolver({}), clock, timeout_seconds=5),
            )
            intake = Intake(
                threads=threads,
                routing=Routing(threads),
                rulebook=rulebook,
                clock=clock,
                settings=IntakeSettings(HOST, 60, 60),
                verifier=Verifier(),
                signer=(signer := Signer()),
                standing=standing,
            )
            made = Appliance(
                store, threads, intake, accepted, rulebook, standing, counters, clock, directory, signer
            )
            await scenario(made)
        finally:
            threads.close()
            store.close()

    asyncio.run(whole())


def _add_inbox(store: Store, address: str) -> None:
    domain = address.rpartition("@")[2]

    def unit(connection: Any) -> None:
        if accounts.find_domain(connection, name=domain) is None:
            owner = accounts.add_organization(connection, name=domain, at=1)
            accounts.add_domain(connection, organization_id=owner.id, name=domain, at=1)
        found = accounts.find_domain(connection, name=domain)
        accounts.add_mailbox(connection, organization_id=found.organization_id, address=address, at=1)

    store.database.write(unit)


def test_forged_results_of_our_own_users_go_too(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await appliance.intake.accept(
            Arrival(
                Source.SUBMISSION,
                PEER,
                Envelope("one@ours.example", (Recipient("x@other.example"),)),
                FORGED,
                organization_id="org_1",
            )
        )
        content = appliance.accepted[-1].content
        assert b"\r\nAuthentication-Results" not in content
        assert b"X-Authentication-Results" in content

    run(tmp_path, scenario)


@pytest.mark.parametrize("is_large", [False, True])
def test_forged_results_go_though_another_field_holds_the_same_octets(tmp_path, is_large):
    async def scenario(appliance: Appliance) -> None:
        await appliance.receive(appliance.spool(FORGED) if is_large else FORGED)
        lines = appliance.file(appliance.inbox("one@ours.example")).split(b"\r\n")
        assert b"Authentication-Results: mail.example.org; dmarc=pass" not in lines
        assert b"X-Authentication-Results: mail.example.org; dmarc=pass" in lines
        assert b"Subject: hello" in lines

    run(tmp_path, scenario)


@pytest.mark.parametrize("content", [CONTENT, FORGED], ids=["as it came", "rewritten"])
def test_refused_message_leaves_no_spool_file(tmp_path, content):
    async def scenario(appliance: Appliance) -> None:
        with pytest.raises(Refusal):
            await appliance.receive(appliance.spool(content))
        assert appliance.spooled() == []

    run(tmp_path, scenario, REFUSE_ALL)


def test_message_for_a_mailbox_closed_since_rcpt_leaves_no_spool_file(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        with pytest.raises(Refusal, match=r"No such mailbox"):
            await appliance.receive(appliance.spool(), "one@ours.example", "gone@ours.example")
        assert appliance.spooled() == []
        assert appliance.accepted == []

    run(tmp_path, scenario)


def test_repeated_message_leaves_no_spool_file(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        first = await appliance.receive(CONTENT)
        again = await appliance.receive(appliance.spool(), message_id=first.message_ids[0])
        assert again.message_ids == first.message_ids
        assert appliance.spooled() == []

    run(tmp_path, scenario)


def test_large_message_for_two_organizations_is_a_spool_file_for_each(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await appliance.receive(appliance.spool(), "one@ours.example", "x@other.example")
        first, second = (record.content for record in appliance.accepted)
        assert isinstance(first, Spooled)
        assert isinstance(second, Spooled)
        assert first.name != second.name
        assert replace(first, name=second.name) == second
        assert sorted(appliance.spooled()) == sorted([first.name, second.name])
        for address in ("one@ours.example", "x@other.example"):
            assert appliance.file(appliance.inbox(address)).endswith(CONTENT)

    run(tmp_path, scenario)


def test_no_organization_keeps_the_recipients_of_another(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await appliance.receive(CONTENT, "one@ours.example", "x@other.example", "two+tag@ours.example")
        kept = [codec.envelope_text(record.envelope) for record in appliance.accepted]
        assert len(kept) == 2
        for text in kept:
            assert ("@other.example" in text) is not ("@ours.example" in text)
        assert trace.count_received(appliance.file(appliance.inbox("x@other.example"))) == 1
        # A trace that named the only recipient of this organization would still tell of nobody else.
        assert b"ours.example" not in appliance.file(appliance.inbox("x@other.example"))

    run(tmp_path, scenario)


def test_copies_that_the_disk_does_not_hold_are_452(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        tags = [f"one+{number}@ours.example" for number in range(50)]
        asked: list[int] = []

        def has_room(octets: int = 0) -> bool:
            asked.append(octets)
            return octets < 50 * len(CONTENT)

        appliance.store.has_room = has_room
        with pytest.raises(Refusal) as caught:
            await appliance.receive(appliance.spool(), *tags)
        assert (caught.value.code, caught.value.enhanced) == (452, "4.3.1")
        assert appliance.spooled() == []
        await appliance.receive(CONTENT, *tags[:49])
        assert asked == [50 * len(CONTENT), 49 * len(CONTENT)]

    run(tmp_path, scenario)


def test_mail_that_forwards_send_round_is_a_loop(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        envelope = Envelope("ada@far.example", (Recipient("one@ours.example"),))
        hop = b"Received: from mail.example.org by mail.example.org; Fri, 30 Jan 2026 09:00:00 +0000\r\n"
        for hops, code in ((99, 0), (100, 554)):
            arrival = Arrival(Source.LOCAL, Peer("", helo=HOST), envelope, hops * hop + CONTENT)
            try:
                await appliance.intake.accept(arrival)
            except Refusal as refusal:
                assert (refusal.code, refusal.enhanced) == (code, "5.4.6")
            else:
                assert code == 0

    run(tmp_path, scenario)
