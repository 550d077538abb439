"""The whole round of DMARC reports: mail comes in, a day passes, the report reaches another appliance."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from server.mail.dmarc_report import DkimResult, parse_aggregate
from server.mail.report_file import find_report
from server.operations import domain_dmarc
from storage import accounts, dmarc
from storage.errors import StorageError
from storage.report_tables import ReportTables
from tests.fakes import FakeClock
from tests.nameserver import Nameserver
from tests.reports.appliance import Appliance, running

DAY = 86_400
MIDNIGHT = 1_799_971_200_000_000  # 2027-01-15
NOON = MIDNIGHT + DAY // 2 * 1_000_000
INBOX = "alice@ours.test"
ZONE = {
    "ours.test": {"A": ["127.0.0.1"]},
    "mx.ours.test": {"A": ["127.0.0.1"]},
    "honest.test": {"A": ["127.0.0.1"]},
    "mx.honest.test": {"A": ["127.0.0.1"]},
    "news.honest.test": {"TXT": ["v=spf1 ip4:127.0.0.1 -all"]},
    "bank.test": {"TXT": ["v=spf1 ip4:192.0.2.1 -all"]},
    "_dmarc.bank.test": {"TXT": ["v=DMARC1; p=reject; rua=mailto:victim@elsewhere.test"]},
    "elsewhere.test": {"A": ["127.0.0.1"]},
    "quiet.test": {"TXT": ["v=spf1 ip4:127.0.0.1 -all"]},
    "_dmarc.quiet.test": {"TXT": ["v=DMARC1; p=reject"]},
}


def letter(author: str, subject: str = "hello") -> bytes:
    return (
        f"From: <{author}>\r\nTo: <{INBOX}>\r\nSubject: {subject}\r\nMessage-ID: <1@x.test>\r\n"
        "Date: Fri, 15 Jan 2027 12:00:00 +0000\r\n\r\nGood day.\r\n"
    ).encode()


@asynccontextmanager
async def two(directory: Path, database_url: str) -> AsyncIterator[tuple[Appliance, Appliance, Nameserver]]:
    """Ours, which reports, and the one of honest.test and shop.test, which asked for it."""
    nameserver = Nameserver(ZONE)
    await nameserver.start()
    clock = FakeClock(NOON)
    address = "dmarc-reports@honest.test"
    inboxes = {address: "honest", "x@shop.test": "shop"}
    options: dict[str, Any] = {"database_url": database_url}
    try:
        async with running(
            directory / "b", "mx.honest.test", nameserver, clock, inboxes=inboxes, report_address=address
        ) as theirs:
            routes = {"honest.test": f"smtp:127.0.0.1:{theirs.port}"}
            options |= {"routes": routes, "report_address": "dmarc-reports@ours.test"}
            own = {INBOX: "ours", "dmarc-reports@ours.test": "ours"}
            async with running(
                directory / "a", "mx.ours.test", nameserver, clock, inboxes=own, **options
            ) as ours:
                yield ours, theirs, nameserver
    finally:
        await nameserver.stop()


async def receive(ours: Appliance) -> None:
    """Three good ones, one forgery that is refused, two that are put aside, one that nobody asks about."""
    for _ in range(3):
        assert (await ours.hand_in(letter("a@honest.test"), INBOX, sender="a@honest.test"))[0] == 250
    below = letter("n@news.honest.test")
    assert (await ours.hand_in(below, INBOX, sender="n@news.honest.test"))[0] == 250
    assert (await ours.hand_in(letter("s@bank.test"), INBOX, sender="s@bank.test"))[0] == 550
    for _ in range(2):
        assert (await ours.hand_in(letter("x@shop.test"), INBOX, sender="b@quiet.test"))[0] == 250
    assert (await ours.hand_in(letter("q@quiet.test"), INBOX, sender="q@quiet.test"))[0] == 250
    await ours.counts.flush()


def go(directory: Path, url: str, scenario: Callable[..., Awaitable[None]]) -> None:
    async def whole() -> None:
        async with two(directory, url) as (ours, theirs, nameserver):
            await scenario(ours, theirs, nameserver)

    uvloop.run(whole())


def read_mail(theirs: Appliance) -> list[bytes]:
    """The files in the inbox of reports."""
    inbox = theirs.store.database.read(
        lambda c: accounts.find_mailbox(c, address="dmarc-reports@honest.test")
    )
    assert inbox is not None
    return [path.read_bytes() for path in sorted((theirs.store.maildir.root / inbox.id / "new").iterdir())]


def kept(theirs: Appliance, domain: str) -> list[dmarc.Report]:
    def unit(connection: Any) -> list[dmarc.Report]:
        found = accounts.find_domain(connection, name=domain)
        assert found is not None
        return dmarc.reports(
            connection, organization_id=found.organization_id, domain=domain, limit=10, with_rows=10
        )

    return theirs.store.database.read(unit)


def test_a_day_of_mail_becomes_reports_that_the_other_side_reads(tmp_path: Path, database_url: str) -> None:
    async def scenario(ours: Appliance, theirs: Appliance, _: Nameserver) -> None:
        await receive(ours)
        await ours.reporter.look()
        assert ours.log("dmarc.report_sent") == [], "the day is not over"
        ours.clock.advance(DAY)
        await ours.reporter.look()
        sent = ours.log("dmarc.report_sent")
        assert {one.data["domain"] for one in sent} == {"honest.test", "shop.test"}
        (withheld,) = ours.log("dmarc.report_withheld")
        assert (withheld.data["domain"], withheld.data["recipient"]) == ("bank.test", "victim@elsewhere.test")
        await theirs.told("message.received", 2)
        await theirs.reader.catch_up()
        check_report(theirs)
        check_mail(theirs)
        # Nothing is left to tell, and nobody is told anything twice.
        assert ours.store.database.read(lambda c: dmarc.due(c, at=1 << 60, limit=9)) == []
        await ours.new_reporter().look()
        assert len(ours.log("dmarc.report_sent")) == 2

    go(tmp_path, database_url, scenario)


def check_report(theirs: Appliance) -> None:
    (report,) = kept(theirs, "honest.test")
    assert (report.messages, report.passed, report.authenticated) == (4, 4, True)
    assert (report.begin_at, report.end_at) == (MIDNIGHT, MIDNIGHT + (DAY - 1) * 1_000_000)
    assert report.reporter == "mx.ours.test"
    assert {(one.header_from, one.count) for one in report.rows} == {
        ("honest.test", 3),
        ("news.honest.test", 1),
    }
    assert {(one.source_ip, one.disposition, one.spf) for one in report.rows} == {
        ("127.0.0.1", "pass", "pass")
    }
    # It came to another organization's inbox: shop.test sees the report, not the mail.
    (other,) = kept(theirs, "shop.test")
    assert (other.messages, other.passed, other.message_id) == (2, 0, "")
    assert (other.rows[0].disposition, other.rows[0].dkim, other.rows[0].spf) == (
        "quarantine",
        "fail",
        "fail",
    )
    told = domain_dmarc(theirs.context, name="shop.test")
    assert [(one["source_ip"], one["messages"], one["dmarc"]) for one in told["sources"]] == [
        ("127.0.0.1", 2, "fail")
    ]


def check_mail(theirs: Appliance) -> None:
    """What RFC 9990 3.5.2 says of the mail."""
    for mail in read_mail(theirs):
        head = mail.partition(b"\r\n\r\n")[0].decode().replace("\r\n ", " ")
        octets = find_report(mail, limit_octets=1 << 20)
        assert octets is not None and octets[:2] == b"\x1f\x8b"
        report = parse_aggregate(octets)
        rid = report.metadata.report_id
        domain = report.policy.domain
        assert f"Subject: Report Domain: {domain} Submitter: mx.ours.test Report-ID: <{rid}>" in head
        assert "Auto-Submitted: auto-generated" in head
        assert "dmarc=pass" in head and "dkim=pass" in head and "spf=pass" in head
        begin = MIDNIGHT // 1_000_000
        name = f"mx.ours.test!{domain}!{begin}!{begin + DAY - 1}!{rid}.xml.gz"
        assert name.encode() in mail.replace(b"\r\n ", b"")
        assert report.namespace == "urn:ietf:params:xml:ns:dmarc-2.0"
        assert report.policy.discovery_method == "treewalk"


def test_no_report_goes_twice_when_the_clock_goes_back(tmp_path: Path, database_url: str) -> None:
    async def scenario(ours: Appliance, theirs: Appliance, _: Nameserver) -> None:
        await receive(ours)
        ours.clock.advance(DAY)
        await ours.reporter.look()
        await theirs.told("message.received", 2)
        ours.clock.advance(-DAY)
        await receive(ours)
        await ours.reporter.look()
        ours.clock.advance(DAY)
        await ours.new_reporter().look()
        assert len(ours.log("dmarc.report_sent")) == 2
        assert len(ours.log("dmarc.report_withheld")) == 1
        assert ours.store.database.read(lambda c: dmarc.due(c, at=1 << 60, limit=9)) == []
        assert len(theirs.log("message.received")) == 2

    go(tmp_path, database_url, scenario)


def test_a_crash_between_sending_and_writing_it_down_sends_once(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(ours: Appliance, theirs: Appliance, _: Nameserver) -> None:
        await receive(ours)
        ours.clock.advance(DAY)
        noted = ReportTables.note_sent
        with monkeypatch.context() as patch:

            def cut(tables: ReportTables, connection: Any, **given: Any) -> None:
                if given["state"] == "sent":
                    raise StorageError("power cut")
                noted(tables, connection, **given)

            patch.setattr(ReportTables, "note_sent", cut)
            with pytest.raises(StorageError, match="power cut"):
                await ours.reporter.look()
        await theirs.told("message.received", 1)
        await ours.new_reporter().look()
        await theirs.told("message.received", 2)
        await asyncio.sleep(0.3)
        assert len(theirs.log("message.received")) == 2
        assert len({one.message_id for one in ours.log("dmarc.report_sent")}) == 2

    go(tmp_path, database_url, scenario)


def test_mail_for_the_report_address_is_never_reported(tmp_path: Path, database_url: str) -> None:
    async def scenario(ours: Appliance, _theirs: Appliance, _: Nameserver) -> None:
        about = letter("a@honest.test", "Report Domain: ours.test Submitter: honest.test Report-ID: <1>")
        for recipient in ("dmarc-reports@ours.test", INBOX):
            assert (await ours.hand_in(about, recipient, sender="a@honest.test"))[0] == 250
        plain = letter("a@honest.test")
        assert (await ours.hand_in(plain, "dmarc-reports@ours.test", sender="a@honest.test"))[0] == 250
        # Whoever forges one is no reporter, and is counted.
        forged = letter("x@shop.test", "Report Domain: ours.test Submitter: shop.test Report-ID: <1>")
        assert (await ours.hand_in(forged, INBOX, sender="b@quiet.test"))[0] == 250
        await ours.counts.flush()
        found = ours.store.database.read(lambda c: dmarc.due(c, at=1 << 60, limit=9))
        assert [one.domain for one in found] == ["shop.test"]

    go(tmp_path, database_url, scenario)


def test_destination_that_the_dns_fails_for_is_asked_again_and_then_given_up(
    tmp_path: Path, database_url: str
) -> None:
    async def scenario(ours: Appliance, theirs: Appliance, nameserver: Nameserver) -> None:
        consent = "shop.test._report._dmarc.honest.test"
        nameserver.servfail.add(consent)
        await receive(ours)
        ours.clock.advance(DAY)
        await ours.reporter.look()
        assert [one.data["domain"] for one in ours.log("dmarc.report_sent")] == ["honest.test"]
        nameserver.servfail.clear()
        await ours.reporter.look()
        assert len(ours.log("dmarc.report_sent")) == 1, "not before half an hour"
        ours.clock.advance(1801)
        await ours.reporter.look()
        assert len(ours.log("dmarc.report_sent")) == 2
        nameserver.servfail.add(consent)
        await receive(ours)
        ours.clock.advance(DAY)
        await ours.reporter.look()
        ours.clock.advance(2 * DAY)
        await ours.reporter.look()
        (failed,) = ours.log("dmarc.report_failed")
        assert failed.data["domain"] == "shop.test"

    go(tmp_path, database_url, scenario)


def test_signature_is_told_with_selector(tmp_path: Path, database_url: str) -> None:
    async def scenario(ours: Appliance, theirs: Appliance, _: Nameserver) -> None:
        bad = (
            b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=honest.test; s=none; h=from;\r\n"
            b" bh=AAAA; b=AAAA\r\n"
        )
        assert (await ours.hand_in(bad + letter("a@honest.test"), INBOX, sender="a@honest.test"))[0] == 250
        await ours.counts.flush()
        ours.clock.advance(DAY)
        await ours.reporter.look()
        await theirs.told("message.received", 1)
        report = parse_aggregate(find_report(read_mail(theirs)[0], limit_octets=1 << 20) or b"")
        (record,) = report.records
        (signature,) = record.dkim_results
        assert (signature.domain, signature.selector) == ("honest.test", "none")
        assert isinstance(signature, DkimResult) and signature.result in (
            "permerror",
            "fail",
            "none",
            "neutral",
        )
        assert (record.dkim, record.spf, record.disposition) == ("fail", "pass", "pass")

    go(tmp_path, database_url, scenario)
