"""Invariants of what reads other people's authentication: DKIM fields and keys, DMARC records, results."""

from functools import partial
from typing import Any, cast

from server import completion
from server.mail import dmarc_report, dsn_reader, header
from server.mail.dmarc_writer import pack, write_aggregate
from server.mail.html import html_to_text
from server.mail.report_file import find_report
from server.sender_auth import canonical, dkim_tags, dmarc, results

NO_STORE = cast("Any", None)  # content in memory asks none


def check_records(data: bytes) -> None:
    """Nothing raises; a DMARC record asks for a known policy; the walk is bounded."""
    record = dmarc.parse(data.decode("utf-8", "replace"))
    if record is not None:
        assert {record.p, record.sp, record.np} <= {"none", "quarantine", "reject", ""}
    dkim_tags.key_of([(data[:255], data[255:510])])
    assert len(dmarc.walk(data.decode("ascii", "replace").lower()[:253])) <= 8


def check_header(data: bytes) -> None:
    """Signatures are found without an error; forged results and Bcc go, and every other octet stays."""
    octets = header.split(data)
    head = data[:octets]
    dkim_tags.signatures(header.fields(head))
    forged = partial(results.forged, authserv_id="mail.example.com")
    for select in (forged, completion.withheld_fields, completion.return_paths):
        unwanted = select(head)
        left = completion.rewrite(data, added=b"", unwanted=unwanted, header_octets=octets, store=NO_STORE)
        assert len(left) == len(data) - sum(map(len, unwanted))
        assert select(left[: len(head) - sum(map(len, unwanted))]) == []


def check_canonical(data: bytes) -> None:
    """Canonical forms end in CRLF and are no longer than what they are made of; of whole lines, stable."""
    for form in (canonical.simple_body, canonical.relaxed_body):
        made = form(data)
        assert form(made) == made or not data.endswith(b"\r\n")
        assert made == b"" or made.endswith(b"\r\n")
        assert len(made) <= len(data) + 2


def check_aggregate(data: bytes) -> None:
    """Octets are a report, which can be written again, or are refused in a short sentence."""
    for octets in (data, pack(data), find_report(data, limit_octets=1 << 20) or b""):
        try:
            report = dmarc_report.parse_aggregate(octets)
        except dmarc_report.ReportSyntax as error:
            assert len(str(error)) < 400
            continue
        assert report.records and report.policy.domain and report.metadata.report_id
        again = dmarc_report.parse_aggregate(write_aggregate(report))
        assert len(again.records) == len(report.records)
        assert sum(one.count for one in again.records) == sum(one.count for one in report.records)


def check_reports(data: bytes) -> None:
    """Delivery reports and HTML are read without an error, in bounded size."""
    found = dsn_reader.parse_dsn(data)
    assert found is None or len(found) <= len(data)
    assert len(html_to_text(data.decode("utf-8", "replace"))) <= 2 * len(data) + 16
