"""Mail that goes on to another server: sealed over what was found, and its bounces come back."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from policies.facts import DEFAULT_LIMITS
from server.arrival import Arrival, IntakeSettings
from server.delivery.forwarding import Forwarding
from server.imap.render import render
from server.intake import Intake
from server.refusal import Refusal
from server.routing import Forward, Routing, return_address
from server.rulebook import Rulebook
from server.sender_auth.keys import make_key
from server.sender_auth.signer import Signer
from server.sender_auth.verify import Verifier
from server.threads import Hub, Threads
from storage import accounts, ids, schema
from storage.records import Accepted, Delivery, DeliveryState, Envelope, Peer, Recipient, Source, Verdict
from storage.store import Store
from tests.databases import migrated
from tests.fakes import FakeClock
from tests.sender_auth.letters import AT, LETTER, record, rsa_key, sign
from tests.sender_auth.test_arc import PEM, PUBLIC, sealed
from tests.sender_auth.zone import TIMEOUT, InlineThreads, ZoneResolver

HOST = "mx.ours.example"
SENDER = "ann@example.com"
PEER = Peer("192.0.2.1", 25, "mail.example.com", extended=True)
OWN_KEY = {algorithm: make_key(algorithm) for algorithm in ("rsa-sha256", "ed25519-sha256")}
assert PEM
ZONE: dict[str, dict[str, list[Any]]] = {
    "example.com": {"TXT": ["v=spf1 ip4:192.0.2.1 -all"]},
    "_dmarc.example.com": {"TXT": ["v=DMARC1; p=reject"]},
    "sel._domainkey.example.com": {"TXT": [record(rsa_key())]},
    "our._domainkey.ours.example": {"TXT": [OWN_KEY["rsa-sha256"][1]]},
    "s._domainkey.list.example": {"TXT": [f"v=DKIM1; k=rsa; p={PUBLIC}"]},
}
SIGNED = sign(LETTER, rsa_key())
Scenario = Callable[["Stand"], Awaitable[None]]


@dataclass
class Stand:
    """One organization with an inbox and a forward, and its intake. accepted: what reached the journal."""

    store: Store
    intake: Intake
    routing: Routing
    accepted: list[Accepted]
    clock: FakeClock
    owner: str
    resolver: ZoneResolver

    async def receive(
        self,
        content: bytes = SIGNED,
        *recipients: str,
        source: Source = Source.MX,
        sender: str | None = SENDER,
    ) -> Accepted:
        envelope = Envelope(sender, tuple(map(Recipient, recipients or ("alias@ours.example",))))
        await self.intake.accept(Arrival(source, PEER, envelope, content), wait_applied=True)
        return self.accepted[-1]

    async def forwarded(self, content: bytes = SIGNED, **given: Any) -> bytes:
        """What the next server gets of a message."""
        accepted = await self.receive(content, **given)
        assert isinstance(accepted.content, bytes)
        return accepted.trace + accepted.content

    def delivery(self, accepted: Accepted) -> Delivery:
        """The first delivery of a message, as an attempt has it."""
        target = accepted.remote[0]
        return Delivery(
            id=target.delivery_id,
            organization_id=accepted.organization_id,
            message_id=accepted.message_id,
            recipient=target.recipient,
            domain=target.domain,
            state=DeliveryState.ACTIVE,
            tries=0,
            created_at=accepted.accepted_at,
            next_attempt_at=0,
            expires_at=0,
            lease=None,
            envelope=replace(accepted.envelope, recipients=(target.recipient,)),
            octets=1,
            source=accepted.source,
            named=tuple(one.address for one in accepted.envelope.recipients),
        )


def run(directory: Path, scenario: Scenario, *, algorithm: str = "rsa-sha256", rules: str = "") -> None:
    async def whole() -> None:
        (directory / "rules").mkdir()
        (directory / "rules" / "one.toml").write_text(rules)
        store = Store.open(
            directory=directory / "data",
            database_url=migrated(directory / "mailagents.sqlite"),
            render=render,
            segment_octets=1 << 20,
            spool_threshold_octets=256 * 1024,
        )
        threads = Threads(store, Hub())
        accepted: list[Accepted] = []
        taking = store.accept

        def accept(record: Accepted, **callbacks: Any) -> None:
            accepted.append(record)
            taking(record, **callbacks)

        store.accept = accept  # type: ignore[method-assign]
        clock = FakeClock((AT + 60) * 1_000_000)
        routing, resolver = Routing(threads, clock=clock), ZoneResolver(ZONE)
        try:
            intake = Intake(
                threads=threads,
                routing=routing,
                rulebook=Rulebook(directory / "rules", DEFAULT_LIMITS, clock),
                clock=clock,
                settings=IntakeSettings(HOST, 60, 60),
                verifier=Verifier(
                    resolver=resolver, threads=threads, clock=clock, hostname=HOST, deadline_seconds=20
                ),
                signer=Signer(threads),
            )
            owner = store.database.write(lambda c: _provision(c, algorithm))
            await scenario(Stand(store, intake, routing, accepted, clock, owner, resolver))
        finally:
            threads.close()
            store.close()

    asyncio.run(whole())


def _provision(connection: Any, algorithm: str) -> str:
    owner = accounts.add_organization(connection, name="ours", at=1).id
    accounts.add_domain(connection, organization_id=owner, name="ours.example", at=1)
    accounts.add_mailbox(connection, organization_id=owner, address="one@ours.example", at=1)
    accounts.add_route(
        connection,
        organization_id=owner,
        pattern="alias@ours.example",
        kind="forward",
        target="bob@far.example",
        at=1,
    )
    pem, text = OWN_KEY[algorithm]
    accounts.add_dkim_key(
        connection,
        organization_id=owner,
        domain="ours.example",
        selector="our",
        algorithm=algorithm,
        private_pem=pem,
        public_record=text,
        at=1,
    )
    return owner


async def at_the_next(content: bytes) -> dict[str, Verdict]:
    """What the next server finds, which believes us."""
    verifier = Verifier(
        resolver=ZoneResolver(ZONE),
        threads=InlineThreads(),  # type: ignore[arg-type]  # stands in for Threads
        clock=FakeClock((AT + 120) * 1_000_000),
        hostname="mx.far.example",
        deadline_seconds=20,
        believed_sealers=("ours.example",),
    )
    found = await verifier.verify(
        peer=Peer("203.0.113.5", helo="mx.ours.example"), envelope=Envelope(SENDER, ()), content=content
    )
    return {verdict.method: verdict for verdict in found}


def test_forwarded_message_keeps_its_signature_and_carries_our_seal(tmp_path: Path) -> None:
    async def scenario(stand: Stand) -> None:
        found = await at_the_next(await stand.forwarded())
        assert (found["dkim"].result, found["spf"].result) == ("pass", "fail")
        assert (found["arc"].result, found["arc"].domain) == ("pass", "ours.example")
        assert found["arc"].properties["policy.believed"] == "dmarc"

    run(tmp_path, scenario)


def test_seal_says_what_was_found_here_and_nothing_a_stranger_wrote(tmp_path: Path) -> None:
    async def scenario(stand: Stand) -> None:
        forged = b"Authentication-Results: mx.ours.example; dmarc=pass header.from=bank.example\r\n"
        content = await stand.forwarded(forged + LETTER, sender="x@evil.example")
        head = content[: content.index(b"\r\n\r\n")]
        assert b"bank.example" not in head
        assert b"dmarc=fail" in head[: head.index(b"\r\nAuthentication-Results")]
        found = await at_the_next(content)
        assert found["arc"].result == "pass"
        assert "policy.believed" not in found["arc"].properties

    run(tmp_path, scenario)


def test_second_set_goes_on_top_of_a_chain_that_passes(tmp_path: Path) -> None:
    async def scenario(stand: Stand) -> None:
        content = await stand.forwarded(sealed(SIGNED, status="none"))
        assert content.startswith(b"ARC-Seal: a=rsa-sha256;")
        assert b"i=2;" in content.partition(b"ARC-Message-Signature")[0]
        assert b"cv=pass" in content.partition(b"ARC-Message-Signature")[0]
        assert (await at_the_next(content))["arc"].result == "pass"

    run(tmp_path, scenario)


def test_broken_chain_is_sealed_as_failed_once_and_no_more(tmp_path: Path) -> None:
    async def scenario(stand: Stand) -> None:
        broken = sealed(SIGNED, status="none").replace(b"From: Ann", b"From: Eve")
        content = await stand.forwarded(broken)
        assert b"cv=fail" in content.partition(b"ARC-Message-Signature")[0]
        assert (await at_the_next(content))["arc"].result == "fail"
        again = await stand.forwarded(content)
        assert again.lower().count(b"arc-seal:") == 2

    run(tmp_path, scenario)


def test_chain_that_could_not_be_checked_is_left_as_it_is(tmp_path: Path) -> None:
    async def scenario(stand: Stand) -> None:
        stand.resolver.zone["s._domainkey.list.example"] = {TIMEOUT: []}
        content = await stand.forwarded(sealed(SIGNED, status="none"))
        assert content.lower().count(b"arc-seal:") == 1

    run(tmp_path, scenario)


def test_domain_without_an_rsa_key_forwards_unsealed(tmp_path: Path) -> None:
    async def scenario(stand: Stand) -> None:
        assert b"ARC-Seal" not in await stand.forwarded()

    run(tmp_path, scenario, algorithm="ed25519-sha256")


def test_message_for_an_inbox_alone_gets_no_seal(tmp_path: Path) -> None:
    async def scenario(stand: Stand) -> None:
        assert b"ARC-Seal" not in (await stand.receive(SIGNED, "one@ours.example")).trace

    run(tmp_path, scenario)


RULE = """
[[rule]]
name = "on"
stage = "message"
when = 'subject != ""'
action = "{action}"
target = "else@far.example"
"""


@pytest.mark.parametrize("action", ["forward", "redirect"])
def test_what_a_rule_sends_on_is_sealed_too(tmp_path: Path, action: str) -> None:
    async def scenario(stand: Stand) -> None:
        accepted = await stand.receive(SIGNED, "one@ours.example")
        assert [one.recipient.address for one in accepted.remote] == ["else@far.example"]
        assert isinstance(accepted.content, bytes)
        assert (await at_the_next(accepted.trace + accepted.content))["arc"].result == "pass"

    run(tmp_path, scenario, rules=RULE.format(action=action))


def test_large_message_is_sealed_from_its_file(tmp_path: Path) -> None:
    async def scenario(stand: Stand) -> None:
        content = sign(LETTER + b"a line of text\r\n" * 40_000, rsa_key())
        writer = stand.intake.spool()
        writer.write(content)
        envelope = Envelope(SENDER, (Recipient("alias@ours.example"),))
        await stand.intake.accept(Arrival(Source.MX, PEER, envelope, writer.finish()))
        found = await at_the_next(stand.accepted[-1].trace + content)
        assert (found["arc"].result, found["dkim"].result) == ("pass", "pass")

    run(tmp_path, scenario)


def test_forwarded_mail_goes_out_from_an_address_of_ours_and_its_bounce_goes_back(tmp_path: Path) -> None:
    async def scenario(stand: Stand) -> None:
        accepted = await stand.receive()
        sender = await Forwarding(stand.routing).sender(stand.delivery(accepted))
        assert sender is not None
        local, _, domain = sender.partition("@")
        assert domain == "ours.example"
        assert len(local) <= 64
        for written in (sender, sender.upper(), f"{local.upper()}@{domain}"):
            found = await stand.routing.resolve(written)
            assert found == Forward(stand.owner, SENDER, is_return=True)
        # A bounce passes the door and is queued for the sender under the null reverse-path.
        await stand.intake.recipient(PEER, None, Envelope(None, ()), Recipient(sender))
        bounce = await stand.receive(b"From: <>\r\n\r\n", sender, sender=None)
        assert [(one.recipient.address, one.domain) for one in bounce.remote] == [(SENDER, "example.com")]
        assert await Forwarding(stand.routing).sender(stand.delivery(bounce)) is None

    run(tmp_path, scenario)


def test_return_address_takes_notices_alone(tmp_path: Path) -> None:
    async def scenario(stand: Stand) -> None:
        sender = return_address((await stand.receive()).remote[0].delivery_id, "ours.example")
        with pytest.raises(Refusal) as refused:
            await stand.intake.recipient(PEER, None, Envelope("x@spam.example", ()), Recipient(sender))
        assert (refused.value.code, refused.value.enhanced) == (550, "5.7.1")

    run(tmp_path, scenario)


def test_made_up_foreign_and_old_return_addresses_lead_nowhere(tmp_path: Path) -> None:
    async def scenario(stand: Stand) -> None:
        accepted = await stand.receive()
        real = accepted.remote[0].delivery_id
        local_only = await stand.receive(SIGNED, "one@ours.example")
        for identifier, domain in (
            (ids.new("dlv"), "ours.example"),
            (real, "example.com"),
            (ids.of("dlv", local_only.message_id), "ours.example"),
        ):
            found = await stand.routing.resolve(return_address(identifier, domain))
            assert not isinstance(found, Forward)
        other = stand.store.database.write(_other_tenant)
        assert other != stand.owner
        assert not isinstance(await stand.routing.resolve(return_address(real, "other.example")), Forward)
        stand.clock.micros = ids_time(real) + 29 * 86_400 * 1_000_000
        assert isinstance(await stand.routing.resolve(return_address(real, "ours.example")), Forward)
        stand.clock.advance(2 * 86_400)
        assert not isinstance(await stand.routing.resolve(return_address(real, "ours.example")), Forward)

    run(tmp_path, scenario)


def ids_time(identifier: str) -> int:
    """When an id was made, in microseconds."""
    digits = "0123456789abcdefghjkmnpqrstvwxyz"
    number = 0
    for digit in identifier.partition("_")[2]:
        number = number * 32 + digits.index(digit)
    return (number >> 80) * 1000


def _other_tenant(connection: Any) -> str:
    owner = accounts.add_organization(connection, name="other", at=1).id
    accounts.add_domain(connection, organization_id=owner, name="other.example", at=1)
    return owner


def test_submitted_message_has_no_return_address(tmp_path: Path) -> None:
    async def scenario(stand: Stand) -> None:
        accepted = await stand.receive()
        real = accepted.remote[0].delivery_id

        def unit(connection: Any) -> None:
            connection.execute(update(schema.messages).values(source="submission"))

        stand.store.database.write(unit)
        assert not isinstance(await stand.routing.resolve(return_address(real, "ours.example")), Forward)

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("sender", "source"),
    [(None, Source.MX), ("one@ours.example", Source.LOCAL), (SENDER, Source.SUBMISSION)],
)
def test_null_own_and_submitted_senders_stay(tmp_path: Path, sender: str | None, source: Source) -> None:
    async def scenario(stand: Stand) -> None:
        made = stand.delivery(await stand.receive(sender=sender))
        assert await Forwarding(stand.routing).sender(replace(made, source=source)) == sender

    run(tmp_path, scenario)
