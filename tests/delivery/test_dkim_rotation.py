"""The daemon's part in the rotation of DKIM keys: by a clock that tests set, with a DNS that they fill."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from policies.facts import DEFAULT_LIMITS
from server.arrival import IntakeSettings
from server.delivery.dkim_rotation import DkimRotation
from server.dns import Answer, DnsTemporary, NoSuchDomain
from server.imap.render import render
from server.intake import Intake
from server.refusal import Refusal
from server.routing import Routing
from server.rulebook import Rulebook
from server.sender_auth.keys import ALGORITHMS, make_key
from server.sender_auth.rotation import SECOND, Pace
from server.sender_auth.signer import Signer
from server.threads import Hub, Threads
from storage import accounts, dkim, schema
from storage.records import Accepted, DkimKey
from storage.store import Store
from tests.databases import migrated
from tests.fakes import FakeClock
from tests.storage.queued import delivery_values, message_values

DOMAIN = "ours.example"
DAY = 86_400
START = 1_800_000_000 * SECOND
PACE = Pace(look_seconds=300, settle_seconds=3600, retire_seconds=7 * DAY, rotate_seconds=90 * DAY)


class Zone:
    """A resolver over a dictionary. down: it answers nothing."""

    def __init__(self) -> None:
        self.records: dict[str, str] = {}
        self.ttl = 60
        self.down = False
        self.asked = 0

    async def resolve(self, name: str, rdtype: str) -> Answer:
        self.asked += 1
        await asyncio.sleep(0)
        if self.down:
            raise DnsTemporary(name)
        if name not in self.records:
            raise NoSuchDomain(name)
        return Answer(((self.records[name].encode(),),), self.ttl, False)


@dataclass
class Stand:
    store: Store
    threads: Threads
    intake: Intake
    clock: FakeClock
    zone: Zone
    rotation: DkimRotation
    accepted: list[Accepted]
    owner: str

    async def after(self, seconds: float) -> list[str]:
        """Let time go by, have a turn, and return the states of the keys, oldest first."""
        await self._deliver()
        self.clock.advance(seconds)
        await self.rotation.turn()
        return [key.state for key in self.known()]

    async def _deliver(self) -> None:
        """Let the operator's letters arrive, whose waiting would keep old keys."""
        columns = schema.deliveries.c
        query = schema.deliveries.update().where(columns.id != "dlv_1")
        query = query.values(state="delivered", next_attempt_at=None)
        async with asyncio.timeout(20):
            while self.store.database.write(lambda c: c.execute(query).rowcount) < len(self.accepted):
                await asyncio.sleep(0.01)

    def known(self) -> list[DkimKey]:
        return self.store.database.read(lambda c: dkim.keys(c, domain=DOMAIN, with_retired=True))

    def publish(self, *states: str) -> None:
        for key in self.known():
            if key.state in states:
                self.zone.records[f"{key.selector}._domainkey.{DOMAIN}"] = key.public_record

    def told(self) -> list[str]:
        """The subjects of what the operator was written."""
        return [str(self.letter(one)["Subject"]) for one in self.accepted]

    def letter(self, accepted: Accepted) -> Any:
        assert isinstance(accepted.content, bytes)
        return message_from_bytes(accepted.content, policy=policy.default)


def run(directory: Path, scenario: Callable[[Stand], Awaitable[None]], *, pace: Pace = PACE) -> None:
    async def whole() -> None:
        (directory / "rules").mkdir()
        store = Store.open(
            directory=directory / "data",
            database_url=migrated(directory / "mailagents.sqlite"),
            render=render,
            segment_octets=1 << 20,
            spool_threshold_octets=256 * 1024,
        )
        threads = Threads(store, Hub())
        clock, zone = FakeClock(START), Zone()
        routing = Routing(threads, clock=clock)
        accepted: list[Accepted] = []
        taking = store.accept

        def accept(record: Accepted, **callbacks: Any) -> None:
            accepted.append(record)
            taking(record, **callbacks)

        store.accept = accept  # type: ignore[method-assign]
        try:
            intake = Intake(
                threads=threads,
                routing=routing,
                rulebook=Rulebook(directory / "rules", DEFAULT_LIMITS, clock),
                clock=clock,
                settings=IntakeSettings("mx.ours.example", 60, 60),
                verifier=None,
                signer=Signer(threads),
            )
            owner = store.database.write(_provision)
            rotation = DkimRotation(
                threads=threads,
                intake=intake,
                resolver=zone,
                clock=clock,
                pace=pace,
                hostname="mx.ours.example",
            )
            await scenario(Stand(store, threads, intake, clock, zone, rotation, accepted, owner))
        finally:
            threads.close()
            store.close()

    asyncio.run(whole())


def _provision(connection: Any) -> str:
    owner = accounts.add_organization(connection, name="ours", at=1).id
    accounts.add_domain(connection, organization_id=owner, name=DOMAIN, at=1)
    for algorithm in ALGORITHMS:
        pem, text = make_key(algorithm)
        accounts.add_dkim_key(
            connection,
            organization_id=owner,
            domain=DOMAIN,
            selector=algorithm.partition("-")[0],
            algorithm=algorithm,
            private_pem=pem,
            public_record=text,
            at=START,
        )
    return owner


def test_keys_are_replaced_by_age_at_the_operators_own_pace(tmp_path: Path) -> None:
    async def scenario(stand: Stand) -> None:
        stand.publish("active")
        assert await stand.after(1) == ["active"] * 2
        assert await stand.after(89 * DAY) == ["active"] * 2
        assert await stand.after(DAY) == ["active", "active", "made", "made"]
        # Told once, and waited for as long as it takes.
        await stand.after(1)
        assert len(stand.accepted) == 1
        letter = stand.letter(stand.accepted[0])
        assert letter["Auto-Submitted"] == "auto-generated"
        assert letter["To"] == f"postmaster@{DOMAIN}"
        assert stand.accepted[0].envelope.reverse_path is None
        text = letter.get_content().replace("\r\n", "\n")
        for key in stand.known()[2:]:
            name = f"{key.selector}._domainkey.{DOMAIN}"
            assert f"name   {name}\ntype   TXT\nvalue  {key.public_record}\n" in text
        assert await stand.after(30 * DAY) == ["active", "active", "made", "made"]
        assert len(stand.accepted) == 1

        stand.publish("made")
        assert await stand.after(300) == ["active", "active", "published", "published"]
        assert await stand.after(3599) == ["active", "active", "published", "published"]
        assert await stand.after(1) == ["retiring", "retiring", "active", "active"]
        assert await stand.after(7 * DAY - 1) == ["retiring", "retiring", "active", "active"]
        assert await stand.after(1) == ["retired", "retired", "active", "active"]
        await stand.after(DAY)
        assert [one.partition(DOMAIN)[2] for one in stand.told()] == [
            ": please publish their records",
            " are in use",
            ": their records can be removed",
        ]
        # The age counts from the switch.
        assert await stand.after(81 * DAY) == ["retired", "retired", "active", "active"]
        assert await stand.after(DAY) == ["retired", "retired", "active", "active", "made", "made"]

    run(tmp_path, scenario)


def test_what_was_given_up_is_not_begun_again_at_once(tmp_path: Path) -> None:
    async def scenario(stand: Stand) -> None:
        stand.publish("active")
        await stand.after(90 * DAY)
        stand.store.database.write(
            lambda c: dkim.cancel(
                c, organization_id=stand.owner, domain=DOMAIN, actor="cli:op", at=stand.clock.now()
            )
        )
        assert await stand.after(300) == ["active", "active", "retired", "retired"]
        assert await stand.after(89 * DAY) == ["active", "active", "retired", "retired"]
        assert (await stand.after(2 * DAY))[-2:] == ["made", "made"]

    run(tmp_path, scenario)


def test_nothing_switches_on_one_record_or_behind_a_gap(tmp_path: Path) -> None:
    async def scenario(stand: Stand) -> None:
        stand.publish("active")
        await stand.after(90 * DAY)
        stand.publish("made")
        one = stand.known()[3]
        name = f"{one.selector}._domainkey.{DOMAIN}"
        kept = stand.zone.records.pop(name)
        assert await stand.after(300) == ["active", "active", "published", "made"]
        assert await stand.after(10 * DAY) == ["active", "active", "published", "made"]
        stand.zone.records[name] = kept
        assert await stand.after(300) == ["active", "active", "published", "published"]
        # A failing DNS is no gap, and no proof either.
        stand.zone.down = True
        assert await stand.after(3600) == ["active", "active", "published", "published"]
        stand.zone.down = False
        del stand.zone.records[name]
        assert await stand.after(300) == ["active", "active", "published", "made"]
        stand.zone.records[name] = kept
        assert await stand.after(300) == ["active", "active", "published", "published"]
        assert await stand.after(3600) == ["retiring", "retiring", "active", "active"]

    run(tmp_path, scenario)


def test_a_long_ttl_is_waited_for(tmp_path: Path) -> None:
    async def scenario(stand: Stand) -> None:
        await stand.after(90 * DAY)
        stand.publish("made")
        stand.zone.ttl = DAY
        await stand.after(300)
        assert await stand.after(DAY - 1) == ["active", "active", "published", "published"]
        assert await stand.after(1) == ["retiring", "retiring", "active", "active"]

    run(tmp_path, scenario)


def test_old_keys_wait_for_mail_that_they_signed(tmp_path: Path) -> None:
    async def scenario(stand: Stand) -> None:
        await stand.after(90 * DAY)
        stand.publish("made")
        await stand.after(300)

        def queue(connection: Any) -> None:
            message = message_values("msg_1", organization_id=stand.owner)
            connection.execute(insert(schema.messages), [message])
            row = delivery_values("dlv_1", message_id="msg_1", organization_id=stand.owner)
            row |= {"state": "held", "next_attempt_at": None, "created_at": stand.clock.now()}
            connection.execute(insert(schema.deliveries), [row])

        stand.store.database.write(queue)
        await stand.after(3600)
        assert await stand.after(8 * DAY) == ["retiring", "retiring", "active", "active"]
        stand.store.database.write(
            lambda c: (
                c.execute(
                    schema.deliveries.update()
                    .where(schema.deliveries.c.id == "dlv_1")
                    .values(state="cancelled")
                )
                and None
            )
        )
        assert await stand.after(300) == ["retired", "retired", "active", "active"]
        assert [key.private_pem for key in stand.known()[:2]] == [b"", b""]

    run(tmp_path, scenario)


def test_new_mail_is_signed_by_the_new_keys_at_once(tmp_path: Path) -> None:
    async def scenario(stand: Stand) -> None:
        signer = Signer(stand.threads)

        async def signed_by() -> set[str]:
            made = await signer.sign(
                domain=DOMAIN,
                organization_id=stand.owner,
                added=b"",
                content=b"From: a@ours.example\r\n\r\nx\r\n",
                at=stand.clock.now(),
            )
            return {part.partition(b";")[0].decode() for part in made.split(b" s=")[1:]}

        old = await signed_by()
        await stand.after(90 * DAY)
        assert await signed_by() == old == {"rsa", "ed25519"}
        stand.publish("made")
        await stand.after(300)
        assert await signed_by() == old
        await stand.after(3600)
        await asyncio.sleep(0.05)
        assert await signed_by() == {key.selector for key in stand.known()[2:]}

    run(tmp_path, scenario)


@pytest.mark.parametrize("temporary", [True, False])
def test_what_cannot_be_told_now_is_told_later_or_given_up(tmp_path: Path, temporary: bool) -> None:
    async def scenario(stand: Stand) -> None:
        taking = stand.intake.accept
        asked = 0

        async def refuse(*_: object, **__: object) -> Any:
            nonlocal asked
            asked += 1
            raise Refusal(451 if temporary else 550, "4.3.0" if temporary else "5.1.1", "no")

        stand.intake.accept = refuse  # type: ignore[method-assign, assignment]
        await stand.after(90 * DAY)
        await stand.after(300)
        stand.intake.accept = taking  # type: ignore[method-assign]
        await stand.after(300)
        await stand.after(300)
        assert (asked, len(stand.accepted)) == ((2, 1) if temporary else (1, 0))

    run(tmp_path, scenario)


def test_a_crash_between_letter_and_note_sends_no_second_letter(tmp_path: Path) -> None:
    async def scenario(stand: Stand) -> None:
        await stand.after(90 * DAY)
        stand.store.database.write(
            lambda c: (
                c.execute(schema.dkim_keys.update().where(schema.dkim_keys.c.state == "made").values(told=""))
                and None
            )
        )
        await stand.after(300)
        assert len({one.message_id for one in stand.accepted}) == 1

    run(tmp_path, scenario)


def test_the_dns_is_asked_about_quiet_keys_once_a_day(tmp_path: Path) -> None:
    async def scenario(stand: Stand) -> None:
        stand.publish("active")
        for _ in range(3 * 24):
            await stand.after(3600)
        assert stand.zone.asked == 2 * 3

    run(tmp_path, scenario, pace=Pace())


def test_the_operator_hears_once_that_a_record_is_gone(tmp_path: Path) -> None:
    async def scenario(stand: Stand) -> None:
        stand.publish("active")
        await stand.after(1)
        lost = "rsa._domainkey.ours.example"
        kept = stand.zone.records.pop(lost)
        for _ in range(3):
            await stand.after(DAY)
        assert stand.told() == [f"DKIM records of {DOMAIN} are not in the DNS any more"]
        text = stand.letter(stand.accepted[0]).get_content()
        assert lost in text and "ed25519._domainkey" not in text
        # Back, and gone again: that is news.
        stand.zone.records[lost] = kept
        await stand.after(DAY)
        stand.zone.records[lost] = "v=DKIM1; p="
        await stand.after(DAY)
        assert len(stand.told()) == 2
        assert await stand.after(1) == ["active", "active"]

    run(tmp_path, scenario, pace=Pace())


def test_many_domains_are_not_given_keys_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.delivery.dkim_rotation.BEGINS_PER_TURN", 2)
    monkeypatch.setattr("server.delivery.dkim_rotation.PAGE", 3)

    async def scenario(stand: Stand) -> None:
        def more(connection: Any) -> None:
            for number in range(5):
                name = f"d{number}.example"
                accounts.add_domain(connection, organization_id=stand.owner, name=name, at=1)
                accounts.add_dkim_key(
                    connection,
                    organization_id=stand.owner,
                    domain=name,
                    selector="s",
                    algorithm="rsa-sha256",
                    private_pem=b"",
                    public_record="v=DKIM1; p=AA==",
                    at=START,
                )

        def count(connection: Any) -> int:
            made = [dkim.keys(connection, domain=f"d{number}.example") for number in range(5)]
            made.append(dkim.keys(connection, domain=DOMAIN))
            return sum(any(key.state == "made" for key in keys) for keys in made)

        stand.store.database.write(more)
        await stand.after(90 * DAY)
        assert stand.store.database.read(count) == 2
        await stand.after(300)
        await stand.after(300)
        assert stand.store.database.read(count) == 6
        # Keys that cannot be read sign no letter; all else goes on.
        assert len(stand.accepted) == 1

    run(tmp_path, scenario)


def test_one_domains_failure_spares_the_others(tmp_path: Path) -> None:
    async def scenario(stand: Stand) -> None:
        def more(connection: Any) -> None:
            accounts.add_domain(connection, organization_id=stand.owner, name="broken.example", at=1)
            accounts.add_dkim_key(
                connection,
                organization_id=stand.owner,
                domain="broken.example",
                selector="s",
                algorithm="rsa-sha256",
                private_pem=b"",
                public_record="v=DKIM1; p=AA==",
                at=START - 1,
            )

        stand.store.database.write(more)
        asking = stand.zone.resolve

        async def resolve(name: str, rdtype: str) -> Answer:
            if "broken" in name:
                raise RuntimeError("a bug")
            return await asking(name, rdtype)

        stand.zone.resolve = resolve  # type: ignore[method-assign]
        with pytest.raises(RuntimeError):
            await stand.after(90 * DAY)
        assert [key.state for key in stand.known()] == ["active", "active", "made", "made"]

    run(tmp_path, scenario)


def test_a_dns_that_says_nothing_holds_up_no_stop(tmp_path: Path) -> None:
    async def scenario(stand: Stand) -> None:
        asked = asyncio.Event()

        async def resolve(_name: str, _rdtype: str) -> Answer:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError("it never ends")

        stand.zone.resolve = resolve  # type: ignore[method-assign]
        stand.clock.advance(1)
        await stand.rotation.start()
        async with asyncio.timeout(20):
            await asked.wait()
            await stand.rotation.stop()
        assert [key.looked for key in stand.known()] == ["unknown", "unknown"]

    run(tmp_path, scenario)
