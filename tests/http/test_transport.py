"""Our MTA-STS policy over HTTP, the records that are advised, and reports of others over the API."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.sections_transport import Transport
from server.transport.mtasts import Mode, Policy, matches, read_policy, read_record
from storage import tls_reports
from tests.http.world import ALL_SCOPES, HOSTNAME, SECOND, World, problem

PATH = "/.well-known/mta-sts.txt"


@pytest.fixture
def publishing(template: Path, tmp_path: Path) -> Iterator[World]:
    """An appliance that publishes a policy."""
    directory = tmp_path / "data"
    shutil.copytree(template, directory)
    transport = Transport(publish_mode="enforce", publish_mx=("*.mx.test", "a.test"))
    with World(directory, transport=transport) as made:
        yield made


def get(world: World, host: str, method: str = "GET", path: str = PATH) -> tuple[int, bytes, str]:
    found = world.ask(method, path, None, headers={"Host": host})
    return found.status_code, found.content, found.headers.get("content-type", "")


@pytest.mark.parametrize(
    "host",
    ["mta-sts.ours.example", "MTA-STS.Ours.Example", "mta-sts.ours.example.", "mta-sts.other.example:443"],
)
def test_policy_is_served_for_our_domains(publishing: World, host: str) -> None:
    status, content, kind = get(publishing, host)
    assert status == 200 and kind.startswith("text/plain")
    assert read_policy(content) == Policy(Mode.ENFORCE, 604_800, ("*.mx.test", "a.test"))
    assert get(publishing, host, "HEAD")[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "ours.example",
        "mta-sts.nowhere.example",
        "mta-sts.",
        "x.mta-sts.ours.example",
        "",
        "mta-sts.ours.example:x",
    ],
)
def test_other_names_have_no_policy_here(publishing: World, host: str) -> None:
    assert get(publishing, host)[0] in (400, 404)


def test_without_the_setting_nothing_is_served(world: World) -> None:
    assert get(world, "mta-sts.ours.example")[0] == 404
    told = world.ask("GET", "/v1/domains/ours.example", world.key("domain:admin")).json()["records"]
    names = {one["name"]: one for one in told}
    assert not any(name.startswith(("_mta-sts.", "mta-sts.")) for name in names)
    assert names["_smtp._tls.ours.example"]["value"] == "v=TLSRPTv1; rua=mailto:postmaster@ours.example"


def test_advised_records_lead_to_the_policy(publishing: World) -> None:
    told = publishing.ask("GET", "/v1/domains/ours.example", publishing.key("domain:admin")).json()["records"]
    names = {one["name"]: one for one in told}
    assert read_record([(names["_mta-sts.ours.example"]["value"].encode(),)])
    assert names["mta-sts.ours.example"]["value"] == f"{HOSTNAME}."
    assert matches(read_policy(get(publishing, "mta-sts.ours.example")[1]), "x.mx.test")


def keep(world: World, domain: str, owner: str, report_id: str) -> None:
    rows = (
        tls_reports.ReportRow("sts", domain, "", 9),
        tls_reports.ReportRow("sts", domain, "certificate-expired", 2, "192.0.2.1", "mx", "192.0.2.2", "x"),
    )
    report = tls_reports.Report(
        tls_reports.new_id(), owner, domain, "far.example", report_id, "c@far.example",
        1_700_000_000 * SECOND, 1_700_086_399 * SECOND, 9, 2, 0, True, "", world.clock.now(), rows,
    )  # fmt: skip
    assert world.run(world.threads.write(lambda c: tls_reports.keep(c, report)))


def test_reports_are_listed_newest_first_by_pages(world: World) -> None:
    for number in range(3):
        keep(world, "ours.example", world.ours, f"r{number}")
    key = world.key("domain:admin")
    path = "/v1/domains/ours.example/tls-reports"
    first = world.ask("GET", path, key, params={"limit": 2}).json()
    rest = world.ask("GET", path, key, params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert {one["report_id"] for one in first["reports"] + rest["reports"]} == {"r0", "r1", "r2"}
    report = first["reports"][0]
    assert (report["successes"], report["failures"], report["authenticated"]) == (9, 2, True)
    assert [(one["result_type"], one["sessions"]) for one in report["rows"]] == [
        ("", 9),
        ("certificate-expired", 2),
    ]


def test_nobody_sees_another_organizations_reports(world: World) -> None:
    keep(world, "other.example", world.other, "r1")
    key = world.key(*ALL_SCOPES)
    problem(world.ask("GET", "/v1/domains/other.example/tls-reports", key), 404, "not_found")
    assert world.ask("GET", "/v1/domains/ours.example/tls-reports", key).json()["reports"] == []
