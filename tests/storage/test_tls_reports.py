"""TLS counts and reports as rows: what is added up, what is limited, whose it is, what goes."""

from dataclasses import replace
from typing import Any

import pytest

from storage import events, report_tables, tls_reports
from storage.db import Database
from storage.records import Event
from tests.storage.tenants import OTHER, OURS, tenants

DAY = report_tables.DAY


def counted(**changes: Any) -> tls_reports.Counted:
    usual = tls_reports.Counted(
        begin_at=0,
        end_at=DAY,
        due_at=DAY + 5,
        domain="a.example",
        policy='{"type": "sts"}',
        fault="",
        digest=b"1",
        count=2,
    )
    return replace(usual, **changes)


def add(database: Database, *given: tls_reports.Counted) -> int:
    return database.write(lambda c: tls_reports.add(c, given))


def rows(database: Database, domain: str = "a.example") -> list[tuple[Any, Any, int]]:
    return database.read(lambda c: tls_reports.counts(c, begin_at=0, domain=domain))


def test_counts_add_up_by_kind_and_day(database: Database) -> None:
    add(database, counted(), counted(digest=b"2", fault='{"type": "x"}', count=1))
    add(database, counted(count=3), counted(begin_at=DAY, end_at=2 * DAY, due_at=2 * DAY))
    add(database, counted(domain="b.example"))
    assert rows(database) == [({"type": "sts"}, None, 5), ({"type": "sts"}, {"type": "x"}, 1)]
    due = database.read(lambda c: tls_reports.due(c, at=DAY + 5, limit=10))
    assert [(one.begin_at, one.domain) for one in due] == [(0, "a.example"), (0, "b.example")]
    assert database.read(lambda c: tls_reports.due(c, at=DAY + 4, limit=10)) == []


def test_rows_beyond_the_limit_are_told_as_a_number(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_reports, "TABLES", replace(tls_reports.TABLES, max_rows=2))
    add(database, *(counted(digest=bytes([n])) for n in range(5)))
    add(database, counted(digest=b"\x00", count=10))
    assert sorted(one[2] for one in rows(database)) == [2, 12]
    (period,) = database.read(lambda c: tls_reports.due(c, at=2 * DAY, limit=10))
    assert period.omitted == 6


def test_domains_beyond_the_limit_are_left_out(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_tables, "MAX_DOMAINS", 2)
    assert add(database, *(counted(domain=f"d{n}.example") for n in range(4))) == 4
    assert add(database, counted(domain="d0.example")) == 0
    assert add(database, counted(domain="d9.example", begin_at=DAY)) == 0


def event(**changes: Any) -> Event:
    usual: dict[str, Any] = {
        "id": f"evt_{changes}",
        "kind": "tls.report_sent",
        "at": 7,
        "organization_id": OURS,
    }
    return Event(**{**usual, **changes})


def test_what_was_sent_is_noted_once(database: Database) -> None:
    tenants(database)
    for number in range(2):
        database.write(
            lambda c, n=number: tls_reports.note_sent(
                c,
                begin_at=0,
                domain="a.example",
                destination="mailto:x@y.test",
                state="sent",
                event=event(id=f"evt_{n}"),
            )
        )
    assert database.read(lambda c: tls_reports.sent_to(c, begin_at=0, domain="a.example")) == {
        "mailto:x@y.test"
    }
    assert database.read(lambda c: tls_reports.sent_to(c, begin_at=DAY, domain="a.example")) == set()
    assert len(database.read(lambda c: events.after(c, seq=0, kinds=("tls.report_sent",), limit=9))) == 1


def test_period_is_postponed_and_finished(database: Database) -> None:
    add(database, counted(), counted(domain="b.example"))
    database.write(lambda c: tls_reports.postpone(c, begin_at=0, domain="a.example", due_at=3 * DAY))
    due = database.read(lambda c: tls_reports.due(c, at=2 * DAY, limit=9))
    assert [one.domain for one in due] == ["b.example"]
    database.write(lambda c: tls_reports.finish(c, begin_at=0, domain="a.example"))
    assert rows(database) == [] and len(rows(database, "b.example")) == 1


def report(**changes: Any) -> tls_reports.Report:
    usual = tls_reports.Report(
        id=tls_reports.new_id(),
        organization_id=OURS,
        domain="ours.example",
        reporter="far.example",
        report_id="r1",
        contact="c@far.example",
        begin_at=0,
        end_at=DAY - 1,
        successes=5,
        failures=3,
        omitted_rows=0,
        authenticated=True,
        message_id="",
        received_at=DAY,
        rows=(
            tls_reports.ReportRow("sts", "ours.example", "", 5),
            tls_reports.ReportRow(
                "sts", "ours.example", "certificate-expired", 3, "1.2.3.4", "mx\x00", "::1", "x"
            ),
        ),
    )
    return replace(usual, **changes)


def keep(database: Database, one: tls_reports.Report) -> bool:
    return database.write(lambda c: tls_reports.keep(c, one))


def listed(database: Database, owner: str = OURS, **options: Any) -> list[tls_reports.Report]:
    given = {"organization_id": owner, "limit": 10, "with_rows": 10, **options}
    return database.read(lambda c: tls_reports.reports(c, **given))


def test_report_is_kept_once_and_belongs_to_one_organization(database: Database) -> None:
    tenants(database)
    assert keep(database, report())
    assert not keep(database, report())
    assert keep(database, report(organization_id=OTHER, domain="other.example"))
    (one,) = listed(database)
    assert [row.sessions for row in one.rows] == [5, 3]
    assert (
        one.rows[1].receiving_host == "mx\N{REPLACEMENT CHARACTER}"
        or "\x00" not in one.rows[1].receiving_host
    )
    assert [found.domain for found in listed(database, OTHER)] == ["other.example"]
    assert listed(database, domain="other.example") == []
    results = database.read(
        lambda c: tls_reports.results(c, organization_id=OURS, domain="ours.example", since=0, limit=9)
    )
    assert [(row["result"], row["sessions"]) for row in results] == [
        ("success", 5),
        ("certificate-expired", 3),
    ]


def test_reports_come_by_pages_and_are_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    tenants(database)
    monkeypatch.setattr(report_tables, "MAX_REPORTS", 3)
    monkeypatch.setattr(tls_reports, "MAX_REPORT_ROWS", 1)
    for number in range(5):
        keep(database, report(id=f"tlr_{number}", report_id=f"r{number}", received_at=number))
    found = listed(database)
    assert [one.id for one in found] == ["tlr_4", "tlr_3", "tlr_2"]
    assert [(len(one.rows), one.omitted_rows) for one in found] == [(1, 1)] * 3
    assert [one.id for one in listed(database, before="tlr_4", limit=1)] == ["tlr_3"]


def test_what_is_old_goes(database: Database) -> None:
    tenants(database)
    add(database, counted())
    keep(database, report())
    database.write(
        lambda c: tls_reports.note_sent(
            c, begin_at=0, domain="a.example", destination="d", state="sent", event=event(at=DAY)
        )
    )

    def left(at: int) -> tuple[int, int, int]:
        database.write(lambda c: tls_reports.prune(c, at=at, reports_kept=30 * DAY))
        sent = database.read(lambda c: tls_reports.sent_to(c, begin_at=0, domain="a.example"))
        return len(rows(database)), len(listed(database)), len(sent)

    assert left(8 * DAY) == (1, 1, 1)
    assert left(8 * DAY + 1) == (0, 1, 1)
    assert left(31 * DAY + 1) == (0, 0, 1)
    assert left(91 * DAY + 1) == (0, 0, 0)
