"""DMARC reports in the whole daemon: killed between mail and report, asked by the command line."""

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.mail.dmarc_report import parse_aggregate
from server.mail.report_file import find_report
from tests.daemon.letters import DOMAIN, message, wire
from tests.daemon.partner import Partner, serving
from tests.daemon.running import HOSTNAME, Daemon, run_cli, until
from tests.daemon.test_rules import answering, hand_in
from tests.reports.test_reader import letter, report, row

ZONE = {
    "honest.test": {"TXT": ["v=spf1 ip4:127.0.0.1 -all"]},
    "_dmarc.honest.test": {"TXT": ["v=DMARC1; p=reject; rua=mailto:agg@partner.test,mailto:no@victim.test"]},
    "honest.test._report._dmarc.partner.test": {"TXT": ["v=DMARC1"]},
    "victim.test": {"A": ["127.0.0.1"]},
}
DAY = 86_400_000_000


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Partner]:
    """The server of the place that wants the reports."""
    (tmp_path / "partner").mkdir()
    with serving(tmp_path / "partner") as running:
        yield running


def let_a_day_pass(data: Path) -> None:
    """Make what was counted a day older, as if the daemon had slept."""
    with sqlite3.connect(data / "mailagents.sqlite") as connection:
        for table, columns in (
            ("dmarc_counts", ["begin_at"]),
            ("dmarc_periods", ["begin_at", "end_at", "due_at"]),
        ):
            shifted = ", ".join(f"{one} = {one} - {DAY}" for one in columns)
            assert connection.execute(f"UPDATE {table} SET {shifted}").rowcount == 1
    connection.close()


def counted(data: Path) -> int:
    with sqlite3.connect(data / "mailagents.sqlite") as connection:
        found = connection.execute("SELECT sum(count) FROM dmarc_counts").fetchone()[0]
    connection.close()
    return found or 0


def test_counts_outlive_a_kill_and_the_report_goes_once(
    template: Path, second: Partner, tmp_path: Path
) -> None:
    with answering(ZONE) as nameserver:
        settings = {
            "dns": {"servers": [nameserver.address]},
            "authentication": {"enabled": True},
            "delivery": {"routes": second.route},
            "dmarc": {"report_address": f"dmarc-reports@{DOMAIN}", "spread_seconds": 0},
        }
        with Daemon(tmp_path / "ours", template=template, **settings) as daemon:
            daemon.start()
            for number in range(3):
                made = wire(message(f"good {number}", From="ann@honest.test"))
                assert hand_in(daemon, made, daemon.alice.address, sender="ann@honest.test")[0] == 250
            until(lambda: counted(daemon.data) == 3, "the mail is counted")
            daemon.kill()
            let_a_day_pass(daemon.data)
            daemon.start()
            until(lambda: second.taken, "the report is sent")
            daemon.kill()
            daemon.start()
            daemon.drained()
            # Once at least; the kill may have come between the other server's 250 and our commit.
            taken = second.taken[0]
            assert len(second.taken) <= 2
            assert len({str(one.message["Message-ID"]) for one in second.taken}) == 1
            assert taken.recipients == ("agg@partner.test",)
            assert taken.reverse_path == f"dmarc-reports@{DOMAIN}"
            assert str(taken.message["Subject"]).startswith(
                f"Report Domain: honest.test Submitter: {HOSTNAME} Report-ID: <"
            )
            found = parse_aggregate(find_report(taken.content, limit_octets=1 << 20) or b"")
            assert [(one.count, one.disposition, one.spf) for one in found.records] == [(3, "pass", "pass")]
            assert found.metadata.end < time.time()


def test_reports_of_others_are_shown_by_the_command_line(template: Path, tmp_path: Path) -> None:
    settings = {"dmarc": {"report_address": f"dmarc-reports@{DOMAIN}"}}
    with Daemon(tmp_path, template=template, **settings) as daemon:
        daemon.start()
        inbox = daemon.new_inbox("dmarc-reports")
        records = daemon.cli("domain", "dns", DOMAIN)["records"]
        (policy,) = [one["value"] for one in records if one["name"] == f"_dmarc.{DOMAIN}"]
        assert policy.endswith(f"rua=mailto:dmarc-reports@{DOMAIN}")
        assert daemon.cli("domain", "dmarc", DOMAIN)["reports"] == []
        content = letter(report(DOMAIN, row(DOMAIN, 7)))
        assert hand_in(daemon, content, inbox.address, sender="r@stranger.test")[0] == 250
        until(lambda: daemon.ask("domain-dmarc", name=DOMAIN)["reports"], "the report is read")
        (told,) = daemon.cli("domain", "dmarc", DOMAIN)["reports"]
        assert (told["reporter"], told["messages"], told["passed"]) == ("R", 7, 7)
        daemon.cli("domain", "dmarc", "nowhere.test", status=1)
        shown = run_cli("domain", "dmarc", DOMAIN, "--days", 3660, "--config", daemon.configuration)
        assert "R" in shown.stdout and "7" in shown.stdout
