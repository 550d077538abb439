"""DMARC counts and reports as rows: what is added up, what is limited, whose it is, what goes."""

from dataclasses import replace
from typing import Any

import pytest

from storage import dmarc, events, report_tables
from storage.db import Database
from storage.records import Event
from tests.storage.tenants import OTHER, OURS, tenants

DAY = report_tables.DAY


def counted(**changes: Any) -> dmarc.Counted:
    usual = dmarc.Counted(
        begin_at=0,
        end_at=DAY,
        due_at=DAY + 5,
        domain="a.example",
        policy='{"p": "none"}',
        digest=b"1",
        source_ip="192.0.2.1",
        facts='{"dkim": "pass"}',
        count=2,
    )
    return replace(usual, **changes)


def add(database: Database, *given: dmarc.Counted) -> int:
    return database.write(lambda c: dmarc.add(c, given))


def rows(database: Database, domain: str = "a.example") -> list[tuple[str, dict[str, Any], int]]:
    return database.read(lambda c: dmarc.counts(c, begin_at=0, domain=domain))


def test_counts_add_up_by_kind_and_period(database: Database) -> None:
    add(database, counted(), counted(digest=b"2", source_ip="192.0.2.2", count=1))
    add(
        database,
        counted(count=3),
        counted(begin_at=DAY, end_at=2 * DAY, due_at=2 * DAY),
        counted(domain="b.example"),
    )
    assert rows(database) == [("192.0.2.1", {"dkim": "pass"}, 5), ("192.0.2.2", {"dkim": "pass"}, 1)]
    due = database.read(lambda c: dmarc.due(c, at=DAY + 5, limit=10))
    assert [(one.begin_at, one.domain) for one in due] == [(0, "a.example"), (0, "b.example")]
    assert database.read(lambda c: dmarc.due(c, at=DAY + 4, limit=10)) == []


def test_newest_policy_is_told(database: Database) -> None:
    add(database, counted())
    add(database, counted(policy='{"p": "reject"}'))
    (period,) = database.read(lambda c: dmarc.due(c, at=2 * DAY, limit=10))
    assert period.policy == {"p": "reject"}


def test_rows_beyond_the_limit_are_told_as_a_number(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dmarc, "TABLES", replace(dmarc.TABLES, max_rows=2))
    add(database, *(counted(digest=bytes([n])) for n in range(5)))
    add(database, counted(digest=b"\x00", count=10))
    assert sorted(one[2] for one in rows(database)) == [2, 12]
    (period,) = database.read(lambda c: dmarc.due(c, at=2 * DAY, limit=10))
    assert period.omitted == 6


def test_domains_beyond_the_limit_are_left_out(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_tables, "MAX_DOMAINS", 2)
    assert add(database, *(counted(domain=f"d{n}.example") for n in range(4))) == 4
    assert add(database, counted(domain="d0.example")) == 0
    assert add(database, counted(domain="d9.example", begin_at=DAY)) == 0


def event(kind: str = "dmarc.report_sent", **changes: Any) -> Event:
    return Event(**{"id": f"evt_{kind}{changes}", "kind": kind, "at": 7, "organization_id": OURS, **changes})


def test_what_was_sent_is_written_once(database: Database) -> None:
    for number in range(2):
        database.write(
            lambda c, n=number: dmarc.note_sent(
                c,
                begin_at=0,
                domain="a.example",
                destination="r@a.example",
                state="sent",
                event=event(id=f"evt_{n}"),
            )
        )
    assert database.read(lambda c: dmarc.sent_to(c, begin_at=0, domain="a.example")) == {"r@a.example"}
    assert len(database.read(lambda c: events.after(c, seq=0, limit=10))) == 1


def test_finished_periods_leave_nothing(database: Database) -> None:
    add(database, counted(), counted(domain="b.example"))
    database.write(lambda c: dmarc.finish(c, begin_at=0, domain="a.example"))
    assert rows(database) == [] and len(rows(database, "b.example")) == 1


def test_old_things_go(database: Database) -> None:
    tenants(database)
    add(database, counted(), counted(begin_at=10 * DAY, end_at=11 * DAY))
    database.write(lambda c: dmarc.keep(c, report("r1")))
    database.write(
        lambda c: dmarc.note_sent(
            c, begin_at=0, domain="a.example", destination="r@a.example", state="sent", event=event()
        )
    )
    database.write(lambda c: dmarc.prune(c, at=8 * DAY + 1, reports_kept=DAY))
    assert rows(database) == []
    assert database.read(lambda c: dmarc.due(c, at=99 * DAY, limit=9))[0].begin_at == 10 * DAY
    assert listed(database) == []
    assert database.read(lambda c: dmarc.sent_to(c, begin_at=0, domain="a.example"))
    database.write(lambda c: dmarc.prune(c, at=report_tables.SENT_KEPT + 8, reports_kept=DAY))
    assert not database.read(lambda c: dmarc.sent_to(c, begin_at=0, domain="a.example"))


def report(report_id: str, owner: str = OURS, **changes: Any) -> dmarc.Report:
    rows = tuple(
        dmarc.ReportRow(f"192.0.2.{n}", n, "none", "pass", "fail", "a.example", "", {"reasons": []})
        for n in range(1, 4)
    )
    usual = dmarc.Report(
        dmarc.new_id(), owner, "a.example", "a.example", "R\x00", report_id, "r@r.example", 1, DAY,
        {"p": "none"}, 6, 6, 0, True, "", 5, rows,
    )  # fmt: skip
    return replace(usual, **changes)


def listed(database: Database, owner: str = OURS, **given: Any) -> list[dmarc.Report]:
    return database.read(lambda c: dmarc.reports(c, organization_id=owner, limit=10, **given))


def test_report_is_kept_once_and_seen_by_its_organization_alone(database: Database) -> None:
    tenants(database)
    assert database.write(lambda c: dmarc.keep(c, report("r1")))
    assert not database.write(lambda c: dmarc.keep(c, report("r1")))
    assert database.write(lambda c: dmarc.keep(c, report("r1", OTHER)))
    (kept,) = listed(database, with_rows=10)
    assert [one.count for one in kept.rows] == [3, 2, 1] and kept.rows[0].passed
    assert kept.reporter.startswith("R") and "\x00" not in kept.reporter
    assert len(listed(database, OTHER)) == 1 and listed(database, domain="b.example") == []
    found = database.read(
        lambda c: dmarc.sources(c, organization_id=OURS, domain="a.example", since=0, limit=2)
    )
    assert [(one["source_ip"], one["messages"], one["dmarc"]) for one in found] == [
        ("192.0.2.3", 3, "pass"),
        ("192.0.2.2", 2, "pass"),
    ]


def test_only_the_largest_rows_and_the_newest_reports_stay(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenants(database)
    monkeypatch.setattr(dmarc, "MAX_REPORT_ROWS", 2)
    monkeypatch.setattr(report_tables, "MAX_REPORTS", 2)
    for number in range(4):
        database.write(lambda c, n=number: dmarc.keep(c, report(f"r{n}", received_at=n)))
    kept = listed(database, with_rows=10)
    assert {one.report_id for one in kept} == {"r3", "r2"}
    assert [one.count for one in kept[0].rows] == [3, 2] and kept[0].omitted_rows == 1


def test_mail_for_report_addresses_is_found_whatever_its_case(database: Database) -> None:
    tenants(database)
    placed = [
        event("message.received", id=f"evt_{n}", message_id=f"msg_{n}", data={"recipient": one, "uid": n})
        for n, one in enumerate(
            ["ann@a.example", "DMARC-Reports@a.example", "postmaster@b.example", "x_y@a.example"]
        )
    ]
    database.write(lambda c: events.append(c, placed))
    found = database.read(
        lambda c: dmarc.received(c, after=0, local_parts=("dmarc-reports", "postmaster", "x%y"), limit=9)
    )
    assert [one.message_id for one in found] == ["msg_1", "msg_2"]
    newest = database.read(dmarc.newest_seq)
    assert newest >= found[-1].seq
    assert (
        database.read(lambda c: dmarc.received(c, after=newest, local_parts=("postmaster",), limit=9)) == []
    )
