"""Where mail for postmaster and abuse goes, whatever became of the inboxes (RFC 5321 4.5.1, RFC 2142)."""

from typing import Any

import pytest

from server.refusal import Refusal
from server.routing import Forward, Local, Refuse, Resolution, Routing, is_role, operator_fault
from storage import accounts
from tests.test_intake import Appliance, run
from tests.test_rejects import keeping
from tests.test_rules_acting import files

ROLES = ["postmaster@ours.example", "abuse@ours.example", "PostMaster@OURS.example", "abuse+x@ours.example"]


async def where(appliance: Appliance, address: str, *, postmaster: str = "") -> str:
    return told(await Routing(appliance.threads, postmaster=postmaster).resolve(address))


def told(found: Resolution) -> str:
    if isinstance(found, Local):
        return found.mailbox.address
    if isinstance(found, Forward):
        return f"forward {found.target}"
    assert isinstance(found, Refuse)
    return f"{found.code}"


def change(appliance: Appliance, state: str, *addresses: str) -> None:
    def unit(connection: Any) -> None:
        for address in addresses:
            found = accounts.find_mailbox(connection, address=address)
            assert found is not None
            owner = found.organization_id
            accounts.set_mailbox_state(connection, organization_id=owner, mailbox_id=found.id, state=state)

    appliance.store.database.write(unit)


def add(appliance: Appliance, address: str) -> None:
    def unit(connection: Any) -> None:
        owner = accounts.find_domain(connection, name=address.rpartition("@")[2])
        assert owner is not None
        accounts.add_mailbox(connection, organization_id=owner.organization_id, address=address, at=1)

    appliance.store.database.write(unit)


@pytest.mark.parametrize("address", ROLES)
def test_without_a_setting_the_oldest_inbox_of_the_domain_has_it(tmp_path, address):
    async def scenario(appliance: Appliance) -> None:
        assert await where(appliance, address) == "one@ours.example"
        assert await where(appliance, "abuse@other.example") == "x@other.example"
        change(appliance, "suspended", "one@ours.example")
        assert await where(appliance, address) == "two@ours.example"
        change(appliance, "closed", "two@ours.example")
        # No inbox of the domain is left: the server's operator is told.
        assert await where(appliance, address) == "x@other.example"

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    "address", ["postmaster", "POSTMASTER", "postmaster@other.example", "abuse@ours.example"]
)
def test_the_setting_has_it_for_every_domain_and_none(tmp_path, address):
    async def scenario(appliance: Appliance) -> None:
        assert await where(appliance, address, postmaster="Two@ours.example") == "two@ours.example"

    run(tmp_path, scenario)


def test_the_operator_may_read_mail_elsewhere(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        for address in ("postmaster", "abuse@other.example"):
            assert await where(appliance, address, postmaster="op@far.example") == "forward op@far.example"
        appliance.intake._routing = Routing(appliance.threads, postmaster="op@far.example")
        await appliance.receive(b"From: ada@far.example\r\n\r\nHelp.\r\n", "postmaster")
        (delivery,) = appliance.accepted[0].remote
        assert (delivery.recipient.address, delivery.domain) == ("op@far.example", "far.example")

    run(tmp_path, scenario)


@pytest.mark.parametrize("state", ["closed", "suspended"])
def test_a_closed_inbox_of_that_name_or_of_the_setting_is_passed_over(tmp_path, state):
    async def scenario(appliance: Appliance) -> None:
        add(appliance, "postmaster@ours.example")
        assert await where(appliance, "postmaster@ours.example") == "postmaster@ours.example"
        change(appliance, state, "postmaster@ours.example", "two@ours.example")
        for postmaster in ("", "two@ours.example", "nobody@ours.example"):
            found = await where(appliance, "postmaster@ours.example", postmaster=postmaster)
            assert found == "one@ours.example"

    run(tmp_path, scenario)


def test_a_route_of_that_name_goes_first(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        def unit(connection: Any) -> None:
            owner = accounts.find_domain(connection, name="ours.example").organization_id
            for pattern, kind, target in (
                ("abuse@ours.example", "forward", "desk@far.example"),
                ("*@ours.example", "reject", "no"),
            ):
                accounts.add_route(
                    connection, organization_id=owner, pattern=pattern, kind=kind, target=target, at=1
                )

        appliance.store.database.write(unit)
        assert await where(appliance, "abuse@ours.example") == "forward desk@far.example"
        # A catch-all names nobody: postmaster still has a reader.
        assert await where(appliance, "postmaster@ours.example") == "one@ours.example"

    run(tmp_path, scenario)


def test_without_any_inbox_the_sender_is_asked_to_come_back(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        change(appliance, "closed", "one@ours.example", "two@ours.example", "x@other.example")
        assert await where(appliance, "postmaster") == "451"
        assert await where(appliance, "postmaster@ours.example") == "451"
        assert await where(appliance, "postmaster@ours.example", postmaster="one@ours.example") == "451"
        with pytest.raises(Refusal) as caught:
            await appliance.receive(b"From: ada@far.example\r\n\r\nHelp.\r\n", "postmaster")
        assert caught.value.temporary

    run(tmp_path, scenario)


def test_mail_for_postmaster_without_a_domain_arrives(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        keeping(appliance)
        await appliance.receive(b"From: ada@far.example\r\n\r\nHelp.\r\n", "Postmaster")
        (path,) = files(appliance, "one@ours.example")
        assert b"Delivered-To: Postmaster\r\n" in path.read_bytes()

    run(tmp_path, scenario)


def test_what_keeps_the_operator_from_reading_is_told(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        def fault(postmaster: str) -> str:
            return appliance.store.database.read(lambda c: operator_fault(c, postmaster=postmaster))

        assert fault("") == fault("two@ours.example") == fault("op@far.example") == ""
        assert fault("gone@ours.example") == (
            "server.postmaster: there is no inbox gone@ours.example: it goes to one@ours.example instead"
        )
        change(appliance, "closed", "two@ours.example")
        assert "two@ours.example is closed" in fault("two@ours.example")
        change(appliance, "closed", "one@ours.example", "x@other.example")
        assert "there is no inbox that mail for postmaster" in fault("")
        assert fault("two@ours.example").endswith("it is answered 451")

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("postmaster", True),
        ("Abuse@x.example", True),
        ("abuse+tag@x.example", True),
        ('"postmaster"@x.example', True),
        ("postmasters@x.example", False),
        ("a@postmaster", False),
        ("", False),
    ],
)
def test_role_addresses_are_told_by_their_local_part(address, expected):
    assert is_role(address) is expected
