"""TLS reports that strangers send: kept for whose domain they are about, or refused with words."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from server.mail.tls_report import PolicyResult, TlsReport, pack, write_report
from server.operations import domain_tls
from storage import accounts, tls_reports
from tests.mail.test_tls_report import DETAIL
from tests.mail.test_tls_report import mail as made
from tests.reports.appliance import Appliance
from tests.reports.test_reader import POSTMASTER, bring, go, letter, report, row

HEAD = "From: <r@stranger.test>\r\nTo: <x@y>\r\n"


def told(*domains: str, report_id: str = "1") -> bytes:
    policies = tuple(PolicyResult("sts", one, successes=5, failures=3, details=(DETAIL,)) for one in domains)
    found = TlsReport("Far", "far@stranger.test", report_id, 1_700_000_000, 1_700_086_399, policies)
    return pack(write_report(found))


def mail(packed: bytes, *, about: str = "") -> bytes:
    head = f"{HEAD}TLS-Report-Domain: {about}\r\n" if about else HEAD
    return made("application/tlsrpt+gzip", packed, head=head).replace(b"\n", b"\r\n").replace(b"\r\r", b"\r")


def kept(appliance: Appliance, domain: str) -> Sequence[tls_reports.Report]:
    found = appliance.store.database.read(lambda c: accounts.find_domain(c, name=domain))
    assert found is not None
    owner = found.organization_id
    return appliance.store.database.read(
        lambda c: tls_reports.reports(c, organization_id=owner, limit=10, with_rows=10)
    )


def test_report_belongs_to_whose_domain_it_is_about(tmp_path: Path, database_url: str) -> None:
    async def scenario(appliance: Appliance) -> None:
        await bring(appliance, mail(told("theirs.test")))
        assert kept(appliance, "ours.test") == []
        (one,) = kept(appliance, "theirs.test")
        assert (one.domain, one.message_id, one.authenticated) == ("theirs.test", "", False)
        assert (one.successes, one.failures, one.reporter) == (5, 3, "Far")
        assert {(found.result_type, found.sessions) for found in one.rows} == {
            ("", 5),
            ("certificate-expired", 3),
        }
        (event,) = appliance.log("tls.report_received")
        assert event.organization_id == one.organization_id and event.message_id is None
        assert (event.data["sessions"], event.data["failed"]) == (8, 3)
        shown = await asyncio.to_thread(domain_tls, appliance.context, name="theirs.test", days=3660)
        assert {found["result"] for found in shown["results"]} == {"success", "certificate-expired"}

    go(tmp_path, database_url, scenario)


def test_mail_says_better_than_its_policies_whom_it_is_about(tmp_path: Path, database_url: str) -> None:
    async def scenario(appliance: Appliance) -> None:
        # Under DANE a policy's domain is the MX host's, which may serve many.
        await bring(appliance, mail(told("mx.elsewhere.test"), about="ours.test"))
        (one,) = kept(appliance, "ours.test")
        assert one.message_id

    go(tmp_path, database_url, scenario)


def test_second_one_of_an_id_changes_nothing(tmp_path: Path, database_url: str) -> None:
    async def scenario(appliance: Appliance) -> None:
        await bring(appliance, mail(told("ours.test")), mail(told("ours.test", "x.test")))
        assert len(kept(appliance, "ours.test")) == 1 and len(appliance.log("tls.report_received")) == 1

    go(tmp_path, database_url, scenario)


def test_what_is_nobodys_or_broken_is_told(tmp_path: Path, database_url: str) -> None:
    async def scenario(appliance: Appliance) -> None:
        await bring(appliance, mail(told("elsewhere.test")), mail(told("ours.test")[:-9]), letter(None))
        (ignored,) = appliance.log("tls.report_ignored")
        assert "elsewhere.test" in str(ignored.data["text"])
        (broken,) = appliance.log("tls.report_unreadable")
        assert "gzip" in str(broken.data["text"])
        assert appliance.log("dmarc.report_unreadable") == []

    go(tmp_path, database_url, scenario)


def test_both_kinds_of_reports_come_to_one_address(tmp_path: Path, database_url: str) -> None:
    async def scenario(appliance: Appliance) -> None:
        await bring(
            appliance,
            mail(told("ours.test")),
            letter(report("ours.test", row("ours.test"))),
            mail(told("ours.test", report_id="2")),
            to=POSTMASTER,
        )
        assert len(appliance.log("tls.report_received")) == 2
        assert len(appliance.log("dmarc.report_received")) == 1

    go(tmp_path, database_url, scenario)
