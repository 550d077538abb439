"""DMARC reports of others over the API and in the console, each organization's own."""

import pytest

from storage import dmarc
from tests.http.test_console import Browser
from tests.http.world import ALL_SCOPES, SECOND, World, problem


def keep(world: World, domain: str, owner: str, report_id: str, reporter: str = "far.example") -> None:
    rows = (
        dmarc.ReportRow("192.0.2.1", 7, "none", "pass", "fail", domain, "", {"reasons": []}),
        dmarc.ReportRow("2001:db8::1", 9, "quarantine", "fail", "fail", domain, "x.example", {"reasons": []}),
    )
    report = dmarc.Report(
        id=dmarc.new_id(),
        organization_id=owner,
        domain=domain,
        policy_domain=domain,
        reporter=reporter,
        report_id=report_id,
        email="r@far.example",
        begin_at=1_700_000_000 * SECOND,
        end_at=1_700_086_399 * SECOND,
        policy={"p": "quarantine"},
        messages=16,
        passed=7,
        omitted_rows=0,
        authenticated=True,
        message_id="",
        received_at=world.clock.now(),
        rows=rows,
    )
    assert world.run(world.threads.write(lambda c: dmarc.keep(c, report)))


def test_reports_are_listed_newest_first_by_pages(world: World) -> None:
    for number in range(3):
        keep(world, "ours.example", world.ours, f"r{number}")
    key = world.key("domain:admin")
    path = "/v1/domains/ours.example/dmarc-reports"
    first = world.ask("GET", path, key, params={"limit": 2}).json()
    rest = world.ask("GET", path, key, params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert {one["report_id"] for one in first["reports"] + rest["reports"]} == {"r0", "r1", "r2"}
    assert (len(first["reports"]), rest["next_cursor"]) == (2, None)
    report = first["reports"][0]
    assert (report["messages"], report["passed"], report["authenticated"]) == (16, 7, True)
    assert report["begin_at"] == "2023-11-14T22:13:20.000000Z"
    assert [(one["source_ip"], one["count"], one["dmarc"]) for one in report["rows"]] == [
        ("2001:db8::1", 9, "fail"),
        ("192.0.2.1", 7, "pass"),
    ]


def test_nobody_sees_another_organizations_reports(world: World) -> None:
    keep(world, "other.example", world.other, "r1")
    key = world.key(*ALL_SCOPES)
    problem(world.ask("GET", "/v1/domains/other.example/dmarc-reports", key), 404, "not_found")
    assert world.ask("GET", "/v1/domains/ours.example/dmarc-reports", key).json()["reports"] == []


def test_key_of_an_inbox_sees_none(world: World) -> None:
    key = world.key("domain:admin", inbox=world.inbox("dmarc@ours.example"))
    answer = world.ask("GET", "/v1/domains/ours.example/dmarc-reports", key)
    problem(answer, 403, "key_bound_to_inbox")


@pytest.mark.parametrize("reporter", ["far.example", "<script>alert(1)</script>"])
def test_console_shows_them_as_text(world: World, reporter: str) -> None:
    browser = Browser(world)
    assert browser.sign_in(world.key("operator")).status_code == 303
    assert "No report has come yet" in browser.get("/console/dmarc").text
    keep(world, "ours.example", world.ours, "r1", reporter)
    page = browser.get("/console/dmarc").text
    assert "2001:db8::1" in page and "quarantine" in page and "<script>" not in page
