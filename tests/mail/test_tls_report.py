"""TLS reports read and written: what differs among reporters, what is refused, what is bounded."""

import gzip
import io
import json
import zipfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.delivery.tls_reader import parse_mail
from server.mail.tls_report import (
    MAX_COUNT,
    MAX_DETAILS,
    MAX_JSON_OCTETS,
    MAX_POLICIES,
    MAX_TEXT,
    FailureDetail,
    PolicyResult,
    ReportSyntax,
    TlsReport,
    file_name,
    pack,
    parse_report,
    subject,
    totals,
    write_report,
)

DETAIL = FailureDetail("certificate-expired", 3, "192.0.2.1", "mx.a.test", "helo", "198.51.100.2", "x", "E1")
REPORT = TlsReport(
    "Example",
    "tls@example.com",
    "id-1",
    1_700_000_000,
    1_700_086_399,
    (
        PolicyResult("sts", "a.test", ("version: STSv1",), ("*.a.test",), 7, 3, (DETAIL,)),
        PolicyResult("no-policy-found", "a.test", successes=1),
    ),
)


def told(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(write_report(REPORT))
    return {**found, **changes}


def read(found: object) -> TlsReport:
    return parse_report(json.dumps(found).encode())


def test_what_is_written_is_read_again() -> None:
    assert parse_report(write_report(REPORT)) == REPORT
    assert parse_report(pack(write_report(REPORT))) == REPORT
    assert totals(REPORT.policies) == (8, 3)


def test_written_report_has_the_members_of_the_rfc() -> None:
    found = told()
    assert found["date-range"] == {
        "start-datetime": "2023-11-14T22:13:20Z",
        "end-datetime": "2023-11-15T22:13:19Z",
    }
    assert found["policies"][0]["policy"] == {
        "policy-type": "sts",
        "policy-string": ["version: STSv1"],
        "policy-domain": "a.test",
        "mx-host": ["*.a.test"],
    }
    assert found["policies"][0]["summary"] == {
        "total-successful-session-count": 7,
        "total-failure-session-count": 3,
    }
    assert found["policies"][0]["failure-details"][0]["failed-session-count"] == 3
    assert "failure-details" not in found["policies"][1]


def test_names_of_file_and_subject() -> None:
    name = file_name(REPORT, submitter="mx.us.test", domain="a.test", unique_id="7")
    assert name == "mx.us.test!a.test!1700000000!1700086399!7.json.gz"
    assert subject(REPORT, submitter="mx.us.test", domain="a.test") == (
        "Report Domain: a.test Submitter: mx.us.test Report-ID: <id-1>"
    )


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"policy-string": "version: STSv1", "mx-host": "mx.a"}, (("version: STSv1",), ("mx.a",))),
        ({"policy-string": None, "mx-host": None}, ((), ())),
        ({"policy-string": [1, "x", None], "mx-host": {"a": 1}}, (("x",), ())),
        ({"mx-host-pattern": ["*.a"]}, ((), ("*.a",))),
    ],
)
def test_lists_come_in_many_forms(policy: dict[str, Any], expected: tuple[Any, Any]) -> None:
    (one,) = read(told(policies=[{"policy": policy}])).policies
    assert (one.strings, one.mx_hosts) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (5, 5),
        ("5", 5),
        (-5, 0),
        (None, 0),
        (1.5, 0),
        (True, 0),
        (10**30, MAX_COUNT),
        ("x", 0),
        ("\u0663", 0),
        ([], 0),
    ],
)
def test_counts_are_bounded(count: object, expected: int) -> None:
    (one,) = read(told(policies=[{"summary": {"total-successful-session-count": count}}])).policies
    assert one.successes == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2016-04-01T00:00:00Z", 1_459_468_800),
        ("2016-04-01t00:00:00z", 1_459_468_800),
        ("2016-04-01T02:00:00+02:00", 1_459_468_800),
        ("2016-04-01T00:00:00.123Z", 1_459_468_800),
        ("2016-04-01 00:00:00", 1_459_468_800),
        ("0001-01-01T00:00:00Z", 0),
    ],
)
def test_times_are_read(text: str, expected: int) -> None:
    found = read(told(**{"date-range": {"start-datetime": text, "end-datetime": text}}))
    assert (found.begin, found.end) == (expected, expected)


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"policies":' * 50_000,
        b'{"policies": []}',
        json.dumps({"policies": [], "date-range": {"start-datetime": "x", "end-datetime": "y"}}).encode(),
        json.dumps({**told(), "report-id": ""}).encode(),
        json.dumps({**told(), "policies": {}}).encode(),
        json.dumps({**told(), "date-range": "2016"}).encode(),
        b'{"policies": [], "x": ' + b"9" * 10_000 + b"}",
        b" " * (MAX_JSON_OCTETS + 1),
        gzip.compress(b" " * (MAX_JSON_OCTETS + 1)),
        gzip.compress(b"0" * (7 << 20)),
        gzip.compress(write_report(REPORT))[:-9],
        b"\x1f\x8b",
        b"PK\x03\x04 no archive",
    ],
)
def test_what_is_no_report_is_refused(octets: bytes) -> None:
    with pytest.raises(ReportSyntax):
        parse_report(octets)


def test_size_is_bounded() -> None:
    many = {
        "policy": {"policy-type": "y" * 5000},
        "failure-details": [{"result-type": "x"}] * (MAX_DETAILS + 5),
    }
    found = read(told(policies=[many] + [{}] * MAX_POLICIES))
    assert len(found.policies) == MAX_POLICIES and len(found.policies[0].details) == MAX_DETAILS
    assert len(found.policies[0].type) == MAX_TEXT


def test_text_is_what_utf8_can_hold() -> None:
    found = parse_report(write_report(REPORT).replace(b'"Example"', b'"\\ud800x"'))
    assert found.organization_name == "?x"
    found.organization_name.encode()


def test_zip_is_read_too() -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("r.json", write_report(REPORT))
    assert parse_report(made.getvalue()) == REPORT


def mail(kind: str, body: bytes, *, head: str = "", name: str = "") -> bytes:
    import base64

    disposition = f'Content-Disposition: attachment; filename="{name}"\r\n' if name else ""
    return (
        f"Subject: x\r\n{head}Content-Type: {kind}\r\n{disposition}Content-Transfer-Encoding: base64\r\n\r\n"
    ).encode() + base64.encodebytes(body)


@pytest.mark.parametrize(
    ("kind", "name", "packed"),
    [
        ("application/tlsrpt+gzip", "", True),
        ("application/tlsrpt+gzip", "x.gz", True),
        ("application/tlsrpt+json", "", False),
        ("application/gzip", "a!b!1!2.json.gz", True),
        ("application/octet-stream", "a.json.gz", True),
        ("application/json", "a.json", False),
        ("text/plain", "a.json", False),
    ],
)
def test_report_is_found_in_mail(kind: str, name: str, packed: bool) -> None:
    octets = write_report(REPORT)
    found = parse_mail(mail(kind, pack(octets) if packed else octets, name=name))
    assert found == (REPORT, "")


@pytest.mark.parametrize(
    ("kind", "name"), [("text/plain", ""), ("application/gzip", "x.xml.gz"), ("application/json", "")]
)
def test_other_mail_is_no_report(kind: str, name: str) -> None:
    assert parse_mail(mail(kind, b"{}", name=name)) is None


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("TLS-Report-Domain: A.Test.\r\n", "a.test"),
        ("TLS-Report-Domain:\r\n a.test\r\n", "a.test"),
        ("TLS-Report-Domain: a.test\r\nTLS-Report-Domain: b.test\r\n", ""),
        ("", ""),
    ],
)
def test_mail_says_what_it_is_about(head: str, expected: str) -> None:
    found = parse_mail(mail("application/tlsrpt+json", write_report(REPORT), head=head))
    assert found is not None and found[1] == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=20,
)
NAMES = st.sampled_from(
    [
        "policies",
        "policy",
        "summary",
        "failure-details",
        "date-range",
        "start-datetime",
        "report-id",
        "mx-host",
    ]
)


@given(st.dictionaries(NAMES, JSON), JSON)
def test_any_json_is_a_report_or_refused(changes: dict[str, Any], policy: object) -> None:
    for found in (
        {**told(), **changes},
        told(policies=[policy, {"policy": policy, "failure-details": [policy]}]),
    ):
        try:
            report = parse_report(json.dumps(found).encode())
        except ReportSyntax:
            continue
        assert parse_report(write_report(report)) == report


@given(st.binary(max_size=300))
def test_any_octets_are_refused(octets: bytes) -> None:
    with pytest.raises(ReportSyntax):
        parse_report(octets)
