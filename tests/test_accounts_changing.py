"""Who may come in and where mail goes, while accounts change: answers of yesterday are not remembered."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from server.imap.render import render
from server.login import KEY_MARK, Login, hash_password
from server.refusal import Refusal
from server.routing import NO_SUCH_USER, Local, Routing
from server.threads import Hub, Threads
from server.throttle import NETWORK_FAILURES
from storage import accounts
from storage.store import Store
from tests.databases import migrated
from tests.fakes import FakeClock

HASH = hash_password("pencil")
ANN = "ann@ours.example"
Scenario = Callable[["Appliance"], Awaitable[None]]


class HeldThreads(Threads):
    """Threads whose reads, while held, have been done but not answered yet."""

    held: asyncio.Event | None = None
    waiting = 0

    async def read(self, unit: Callable[[Any], Any]) -> Any:
        found = await super().read(unit)
        if self.held is not None:
            self.waiting += 1
            await self.held.wait()
        return found


class Appliance:
    """One organization with the inbox of Ann."""

    def __init__(self, store: Store) -> None:
        self.clock = FakeClock()
        self.hub = Hub()
        self.threads = HeldThreads(store, self.hub)
        self.login = Login(self.threads, self.clock)
        self.routing = Routing(self.threads)
        self.heard = asyncio.Event()
        self.hub.subscribe("accounts", None, lambda _: self.heard.set())

    async def open(self) -> None:
        def unit(connection: Any) -> tuple[str, str, str]:
            owner = accounts.add_organization(connection, name="ours", at=1)
            accounts.add_domain(connection, organization_id=owner.id, name="ours.example", at=1)
            mailbox = accounts.add_mailbox(connection, organization_id=owner.id, address=ANN, at=1)
            made = accounts.add_credential(
                connection,
                organization_id=owner.id,
                mailbox_id=mailbox.id,
                name="test",
                password_hash=HASH,
                scram_verifier="",
                at=1,
            )
            return owner.id, mailbox.id, made.id

        self.organization, self.mailbox, self.credential = await self.change(unit)

    async def change(self, unit: Callable[[Any], Any]) -> Any:
        """Commit a change and wait until everybody heard of it."""
        self.heard.clear()
        result = await self.threads.write(unit)
        await self.heard.wait()
        return result

    async def overtaken(self, question: Awaitable[Any], change: Callable[[Any], Any]) -> Any:
        """Ask, let the change come between what was read and the answer, and return the answer."""
        self.threads.held, self.threads.waiting = asyncio.Event(), 0
        asking = asyncio.ensure_future(question)
        while not self.threads.waiting:
            await asyncio.sleep(0.001)
        await self.change(change)
        self.threads.held.set()
        self.threads.held = None
        return await asking

    async def enter(self, peer: str = "192.0.2.1", password: str = "pencil") -> str:
        """Log in; returns the mailbox, or the code of the refusal."""
        try:
            return (
                await self.login.check(protocol="smtp", user=ANN, password=password, peer=peer)
            ).mailbox_id or ""
        except Refusal as refusal:
            return str(refusal.code)

    def revoke(self, connection: Any) -> None:
        accounts.revoke_credential(
            connection, organization_id=self.organization, credential_id=self.credential, at=2
        )

    def suspend(self, connection: Any) -> None:
        accounts.set_organization_state(connection, organization_id=self.organization, state="suspended")


def run(directory: Path, scenario: Scenario) -> None:
    async def whole() -> None:
        store = Store.open(
            directory=directory,
            database_url=migrated(directory / "mailagents.sqlite"),
            render=render,
            segment_octets=1 << 20,
            spool_threshold_octets=256 * 1024,
        )
        appliance = Appliance(store)
        try:
            await appliance.open()
            await scenario(appliance)
        finally:
            appliance.threads.close()
            store.close()

    asyncio.run(whole())


def test_mailbox_made_during_a_look_up_is_found_next(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        def add(connection: Any) -> None:
            accounts.add_mailbox(
                connection, organization_id=appliance.organization, address="bob@ours.example", at=2
            )

        first = await appliance.overtaken(appliance.routing.resolve("bob@ours.example"), add)
        assert first == NO_SUCH_USER
        assert isinstance(await appliance.routing.resolve("bob@ours.example"), Local)

    run(tmp_path, scenario)


def test_domain_added_during_a_look_up_is_local_next(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        def add(connection: Any) -> None:
            accounts.add_domain(connection, organization_id=appliance.organization, name="new.example", at=2)

        assert not await appliance.overtaken(appliance.routing.is_local("new.example"), add)
        assert await appliance.routing.is_local("new.example")

    run(tmp_path, scenario)


def test_password_revoked_during_a_login_is_not_remembered(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        assert await appliance.overtaken(appliance.enter(), appliance.revoke) == appliance.mailbox
        assert await appliance.enter() == "535"

    run(tmp_path, scenario)


def test_revoked_password_is_refused_though_it_was_remembered(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        assert await appliance.enter() == appliance.mailbox
        await appliance.change(appliance.revoke)
        assert await appliance.enter() == "535"

    run(tmp_path, scenario)


@pytest.mark.parametrize("with_key", [False, True])
def test_suspended_organization_logs_in_nowhere(tmp_path, with_key):
    async def scenario(appliance: Appliance) -> None:
        secret = KEY_MARK + "x" * 30

        def add_key(connection: Any) -> None:
            accounts.add_api_key(
                connection,
                organization_id=appliance.organization,
                mailbox_id=None,
                name="test",
                prefix=secret[:12],
                key_hash=hashlib.sha256(secret.encode()).digest(),
                scopes=frozenset({"message:send"}),
                expires_at=None,
                at=2,
            )

        await appliance.change(add_key)
        password = secret if with_key else "pencil"
        assert await appliance.enter(password=password) == appliance.mailbox
        await appliance.change(appliance.suspend)
        assert await appliance.enter(password=password) == "535"

    run(tmp_path, scenario)


def test_failures_count_for_the_whole_network_of_an_ipv6_peer(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        for number in range(NETWORK_FAILURES):
            assert await appliance.enter(f"2001:db8:1:2::{number:x}", KEY_MARK) == "535"
        assert await appliance.enter("2001:db8:1:2:ffff::1", KEY_MARK) == "454"
        assert await appliance.enter("2001:db8:1:3::1") == appliance.mailbox
        assert await appliance.enter("::ffff:192.0.2.1") == appliance.mailbox

    run(tmp_path, scenario)


def test_failures_of_others_behind_an_address_lock_nobody_out_who_is_known(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        assert await appliance.enter() == appliance.mailbox
        for _ in range(NETWORK_FAILURES):
            assert await appliance.enter(password=KEY_MARK) == "535"
        assert await appliance.enter(password=KEY_MARK) == "454"
        assert await appliance.enter() == appliance.mailbox
        appliance.clock.advance(61)
        assert await appliance.enter() == "454"

    run(tmp_path, scenario)


def test_postmaster_of_a_closed_inbox_is_the_next_open_one(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        def close_the_first(connection: Any) -> str:
            accounts.set_mailbox_state(
                connection,
                organization_id=appliance.organization,
                mailbox_id=appliance.mailbox,
                state="closed",
            )
            return accounts.add_mailbox(
                connection, organization_id=appliance.organization, address="bob@ours.example", at=2
            ).id

        second = await appliance.change(close_the_first)
        for address in ("postmaster", "postmaster@ours.example"):
            found = await appliance.routing.resolve(address)
            assert isinstance(found, Local)
            assert found.mailbox.id == second

    run(tmp_path, scenario)
