"""Reports that strangers send: kept for whose domain they are about, or refused with words."""

import asyncio
import base64
import gzip
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from storage import accounts, dmarc, events
from tests.fakes import FakeClock
from tests.nameserver import Nameserver
from tests.reports.appliance import Appliance, running

POSTMASTER = "postmaster@ours.test"
HEAD = (
    "<report_metadata><org_name>R</org_name><email>r@r.example</email><report_id>1</report_id><date_range>"
    "<begin>100</begin><end>200</end></date_range></report_metadata>"
)


def row(name: str, count: int = 2) -> str:
    return (
        f"<record><row><source_ip>192.0.2.1</source_ip><count>{count}</count><policy_evaluated><disposition>none"
        "</disposition><dkim>fail</dkim><spf>pass</spf></policy_evaluated></row><identifiers><header_from>"
        f"{name}</header_from></identifiers><auth_results/></record>"
    )


def report(domain: str, *rows: str) -> bytes:
    policy = f"<policy_published><domain>{domain}</domain><p>none</p></policy_published>"
    return gzip.compress(f"<feedback>{HEAD}{policy}{''.join(rows)}</feedback>".encode())


def letter(packed: bytes | None, subject: str = "Report Domain: x") -> bytes:
    head = f"From: <r@stranger.test>\r\nTo: <x@y>\r\nSubject: {subject}\r\n"
    if packed is None:
        return head.encode() + b"\r\nGood day.\r\n"
    head += "Content-Type: application/gzip\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    return head.encode() + base64.encodebytes(packed).replace(b"\n", b"\r\n")


def go(directory: Path, url: str, scenario: Callable[[Appliance], Awaitable[None]]) -> None:
    async def whole() -> None:
        nameserver = Nameserver({"stranger.test": {"A": ["127.0.0.1"]}})
        await nameserver.start()
        inboxes = {"a@ours.test": "ours", "b@theirs.test": "theirs", "c@mail.theirs.test": "theirs"}
        try:
            async with running(
                directory, "mx.ours.test", nameserver, FakeClock(), database_url=url, inboxes=inboxes
            ) as appliance:
                await scenario(appliance)
        finally:
            await nameserver.stop()

    uvloop.run(whole())


async def bring(appliance: Appliance, *letters: bytes, to: str = POSTMASTER) -> None:
    before = len(await asyncio.to_thread(appliance.log, "message.received"))
    for one in letters:
        assert (await appliance.hand_in(one, to, sender="r@stranger.test"))[0] == 250
    await appliance.told("message.received", before + len(letters))
    await appliance.reader.catch_up()


def kept(appliance: Appliance, domain: str) -> list[dmarc.Report]:
    found = appliance.store.database.read(lambda c: accounts.find_domain(c, name=domain))
    assert found is not None
    owner = found.organization_id
    return appliance.store.database.read(
        lambda c: dmarc.reports(c, organization_id=owner, limit=10, with_rows=10)
    )


def test_report_belongs_to_whose_domain_it_is_about(tmp_path: Path, database_url: str) -> None:
    async def scenario(appliance: Appliance) -> None:
        await bring(appliance, letter(report("theirs.test", row("theirs.test"))))
        assert kept(appliance, "ours.test") == []
        (one,) = kept(appliance, "theirs.test")
        assert (one.domain, one.message_id, one.authenticated) == ("theirs.test", "", False)
        (told,) = appliance.log("dmarc.report_received")
        assert told.organization_id == one.organization_id and told.message_id is None

    go(tmp_path, database_url, scenario)


def test_policy_above_two_organizations_tells_each_its_own_rows(tmp_path: Path, database_url: str) -> None:
    async def scenario(appliance: Appliance) -> None:
        above = report("test", row("ours.test", 3), row("x.mail.theirs.test", 5), row("elsewhere.test", 7))
        await bring(appliance, letter(above))
        (ours,), (theirs,) = kept(appliance, "ours.test"), kept(appliance, "theirs.test")
        assert (ours.messages, [one.header_from for one in ours.rows]) == (3, ["ours.test"])
        assert (theirs.messages, theirs.domain) == (5, "mail.theirs.test")

    go(tmp_path, database_url, scenario)


def test_what_came_before_is_not_read_again(tmp_path: Path, database_url: str) -> None:
    async def scenario(appliance: Appliance) -> None:
        good = letter(report("ours.test", row("ours.test")))
        await bring(appliance, good, good)
        assert len(kept(appliance, "ours.test")) == 1, "the second is the first once more"
        assert len(appliance.log("dmarc.report_received")) == 1
        seq = appliance.store.database.read(lambda c: events.cursor(c, name=dmarc.CURSOR))
        assert seq == appliance.log("message.received")[-1].seq

    go(tmp_path, database_url, scenario)


@pytest.mark.parametrize(
    ("content", "kind", "text"),
    [
        (letter(b"\x1f\x8b hello"), "dmarc.report_unreadable", "damaged"),
        (letter(gzip.compress(b" " * (50 << 20))), "dmarc.report_unreadable", "more than 8388608 octets"),
        (letter(gzip.compress(b"<!DOCTYPE x>")), "dmarc.report_unreadable", "document type"),
        (letter(report("stranger.test", row("stranger.test"))), "dmarc.report_ignored", "no domain of this"),
        (letter(report("com", row("com"))), "dmarc.report_ignored", "no domain of this"),
        (letter(report("..", row(""))), "dmarc.report_unreadable", "no 'domain'"),
        (letter(report("x" * 9999, row("a." * 5000))), "dmarc.report_ignored", "no domain of this"),
    ],
    ids=lambda given: given if isinstance(given, str) else "mail",
)
def test_what_is_no_use_is_said(
    tmp_path: Path, database_url: str, content: bytes, kind: str, text: str
) -> None:
    async def scenario(appliance: Appliance) -> None:
        await bring(appliance, content, letter(report("ours.test", row("ours.test"))))
        (event,) = appliance.log("dmarc.report_unreadable", "dmarc.report_ignored")
        assert event.kind == kind and text in str(event.data["text"]) and len(str(event.data)) < 500
        assert len(kept(appliance, "ours.test")) == 1, "what comes behind it is read"

    go(tmp_path, database_url, scenario)


def test_other_mail_for_the_postmaster_is_left_alone(tmp_path: Path, database_url: str) -> None:
    async def scenario(appliance: Appliance) -> None:
        await bring(appliance, letter(None), letter(None, "hello"))
        await bring(appliance, letter(report("ours.test", row("ours.test"))), to="a@ours.test")
        assert kept(appliance, "ours.test") == [], "no address of reports"
        assert not any(one.kind.startswith("dmarc.") for one in appliance.log())

    go(tmp_path, database_url, scenario)
