"""Aggregate reports: read in both schemas and every packing, written as RFC 9990 has them."""

import base64
import gzip
import io
import random
import zipfile
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.mail.dmarc_report import (
    DKIM_RESULTS,
    MAX_XML_OCTETS,
    NAMESPACE,
    SPF_RESULTS,
    AggregateReport,
    DkimResult,
    Metadata,
    PolicyPublished,
    Reason,
    Record,
    ReportSyntax,
    SpfResult,
    parse_aggregate,
)
from server.mail.dmarc_writer import file_name, pack, subject, write_aggregate
from server.mail.report_file import find_report

ROW = (
    "<record><row><source_ip>192.0.2.1</source_ip><count>2</count><policy_evaluated><disposition>none"
    "</disposition><dkim>fail</dkim><spf>pass</spf></policy_evaluated></row><identifiers><header_from>a.example"
    "</header_from></identifiers><auth_results><spf><domain>a.example</domain><result>pass</result></spf>"
    "</auth_results></record>"
)
HEAD = (
    "<report_metadata><org_name>R</org_name><email>r@r.example</email><report_id>1</report_id><date_range>"
    "<begin>100</begin><end>200</end></date_range></report_metadata>"
    "<policy_published><domain>a.example</domain><p>none</p></policy_published>"
)
PLAIN = f"<feedback>{HEAD}{ROW}</feedback>".encode()


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return made.getvalue()


@pytest.mark.parametrize(
    "octets",
    [
        PLAIN,
        b"\r\n " + PLAIN,
        gzip.compress(PLAIN, mtime=0),
        gzip.compress(PLAIN[:50], mtime=0) + gzip.compress(PLAIN[50:], mtime=0),
        zipped(("a.xml", PLAIN)),
        zipped(("a.xml", PLAIN), method=zipfile.ZIP_STORED),
        zipped(("report", PLAIN)),
        zipped(("readme.txt", b"x"), ("r.xml", PLAIN)),
        b'<?xml version="1.0" encoding="windows-1252"?>' + PLAIN,
        ('<?xml version="1.0" encoding="utf-16"?>' + PLAIN.decode()).encode("utf-16"),
        b"\xef\xbb\xbf" + PLAIN,
        PLAIN.replace(b"<feedback>", b'<feedback xmlns="urn:ietf:params:xml:ns:dmarc-2.0">'),
        PLAIN.replace(b"<", b"<n:")
        .replace(b"<n:/", b"</n:")
        .replace(b"<n:feedback", b'<n:feedback xmlns:n="x"'),
        PLAIN.replace(b"<record>", b"<unknown><deep><deeper/></deep></unknown><record><other>1</other>"),
        PLAIN.replace(b"none", b" NONE\n"),
    ],
)
def test_every_packing_and_dialect_reads_alike(octets: bytes) -> None:
    report = parse_aggregate(octets)
    assert (report.metadata.report_id, report.metadata.begin, report.metadata.end) == ("1", 100, 200)
    assert (report.policy.domain, report.policy.p) == ("a.example", "none")
    (record,) = report.records
    assert (record.source_ip, record.count, record.passed) == ("192.0.2.1", 2, True)
    assert (record.disposition, record.dkim, record.spf) == ("none", "fail", "pass")
    assert record.spf_results == (SpfResult("a.example", "pass"),)


BOMB = (
    b'<!DOCTYPE f [<!ENTITY a "aaaaaaaaaa">'
    + b"".join(b'<!ENTITY a%d "%s">' % (n, b"&a;" * 10) for n in range(9))
    + b"]><feedback>&a8;</feedback>"
)


@pytest.mark.parametrize(
    ("octets", "said"),
    [
        (b"", "not well-formed"),
        (b"hello", "not well-formed"),
        (b"<html/>", "'html'"),
        (b"<feedback/>", "no record"),
        (PLAIN[:-5], "not well-formed"),
        (PLAIN.replace(b"<report_id>1</report_id>", b""), "report_id"),
        (PLAIN.replace(b"a.example</domain><p>", b"</domain><p>"), "no 'domain'"),
        (PLAIN.replace(b"<begin>100", b"<begin>soon"), "begin of the date range is 'soon'"),
        (PLAIN.replace(b"<count>2", b"<count>-2"), "count of record 1 is '-2'"),
        (PLAIN.replace(b"<count>2", b"<count>" + b"9" * 5000), "count of record 1"),
        (PLAIN.replace(b"<count>2", "<count>²".encode()), "count of record 1"),
        (PLAIN.replace(b"192.0.2.1", b"192.0.2.300"), "source_ip of record 1 is '192.0.2.300'"),
        (PLAIN.replace(b"<row>", b"<raw>").replace(b"</row>", b"</raw>"), "'record' has no 'row'"),
        (b"<feedback>" + b"<a>" * 100 + b"</a>" * 100 + b"</feedback>", "nested"),
        pytest.param(
            f"<feedback>{HEAD}{'<record/>' * 10_001}</feedback>".encode(),
            "more than 10000 records",
            marks=pytest.mark.whole,  # what is large takes its time
        ),
        pytest.param(
            f"<feedback>{HEAD}{'<x/>' * 250_001}</feedback>".encode(),
            "more than 250000 elements",
            marks=pytest.mark.whole,
        ),
        (BOMB, "document type"),
        (b'<!DOCTYPE f SYSTEM "file:///etc/passwd">' + PLAIN, "document type"),
        (b'<?xml version="1.0" encoding="nonsense"?>' + PLAIN, "not well-formed"),
        (b'<?xml version="1.0" encoding="gb2312"?>' + PLAIN, "not well-formed"),
        (gzip.compress(PLAIN, mtime=0)[:-12], "ends early"),
        (gzip.compress(PLAIN, mtime=0)[:10] + b"\xff" * 30, "damaged"),
        (b"\x1f\x8b", "ends early"),
        (b"PK\x03\x04", "damaged"),
        (zipped(("a.xml", PLAIN))[:-10], "damaged"),
        (zipped(("a.xml", PLAIN), ("b.xml", PLAIN)), "2 files .xml"),
        (zipped(*((f"{n}.xml", b"") for n in range(101))), "more than 100 entries"),
        (zipped(("a.xml", PLAIN), method=zipfile.ZIP_LZMA), "not read here"),
        (zipped(), "not well-formed"),
    ],
    ids=lambda given: given if isinstance(given, str) else "octets",
)
def test_what_is_wrong_is_said(octets: bytes, said: str) -> None:
    with pytest.raises(ReportSyntax) as caught:
        parse_aggregate(octets)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("packer", [gzip.compress, lambda octets: zipped(("a.xml", octets))])
def test_bombs_stop_at_the_limits(packer) -> None:
    with pytest.raises(ReportSyntax, match="times its size"):
        parse_aggregate(packer(b" " * (4 << 20)))
    digits = random.Random(1).randbytes(MAX_XML_OCTETS // 2).hex()
    noise = "".join(f"<!-- {digits[at : at + 4096]} -->" for at in range(0, len(digits), 4096)).encode()
    assert len(noise) > MAX_XML_OCTETS
    with pytest.raises(ReportSyntax, match="more than 8388608 octets"):
        parse_aggregate(packer(noise))


def test_a_gzip_of_many_members_is_no_way_around_the_limits() -> None:
    with pytest.raises(ReportSyntax):
        parse_aggregate(gzip.compress(b" " * (1 << 20)) * 90)


def test_texts_are_cut() -> None:
    long = PLAIN.replace(b"<org_name>R", b"<org_name>" + b"R" * 1_000_000)
    assert parse_aggregate(long).metadata.org_name == "R" * 1000


FULL = AggregateReport(
    metadata=Metadata("R & <Co>", "r@r.example", "abc1", 100, 199, "r.example/x", ("late",), "Mailagents"),
    policy=PolicyPublished("a.example", "reject", "none", "quarantine", "s", "r", "1:d", True, "treewalk"),
    records=(
        Record(
            "2001:db8::1", 3, "none", "fail", "pass", "b.a.example", "", None,
            (Reason("policy_test_mode"), Reason("other", "because")),
            (DkimResult("d.example", "s1", "permerror", "no key"), DkimResult("e.example", "s2", "pass")),
            (SpfResult("a.example", "softfail", "mfrom"),),
        ),
        Record("192.0.2.7", 1, "pass", "pass", "fail", "a.example"),
    ),
    version="1.0",
    namespace=NAMESPACE,
)  # fmt: skip


def test_what_is_written_is_read_as_it_was() -> None:
    xml = write_aggregate(FULL)
    assert parse_aggregate(xml) == FULL
    assert parse_aggregate(pack(xml)) == FULL
    assert pack(xml) == pack(xml)


# RFC 9990, tables 2 to 14: names in their order, those in lower case are optional, '*' may repeat.
ORDERED = {
    "feedback": "version REPORT_METADATA POLICY_PUBLISHED extension RECORD*",
    "record": "ROW IDENTIFIERS AUTH_RESULTS",
    "policy_evaluated": "DISPOSITION DKIM SPF reason*",
    "auth_results": "dkim* spf",
}
UNORDERED = {
    "report_metadata": "ORG_NAME EMAIL extra_contact_info REPORT_ID DATE_RANGE error generator",
    "date_range": "BEGIN END",
    "policy_published": "DOMAIN discovery_method P sp np fo adkim aspf testing",
    "row": "SOURCE_IP COUNT POLICY_EVALUATED",
    "identifiers": "HEADER_FROM envelope_from envelope_to",
    "dkim": "DOMAIN SELECTOR RESULT human_result",
    "spf": "DOMAIN scope RESULT human_result",
    "reason": "TYPE comment",
}
WORDS = {
    "disposition": {"none", "pass", "quarantine", "reject"},
    "p": {"none", "quarantine", "reject"},
    "sp": {"none", "quarantine", "reject"},
    "np": {"none", "quarantine", "reject"},
    "adkim": {"r", "s"},
    "aspf": {"r", "s"},
    "testing": {"n", "y"},
    "discovery_method": {"psl", "treewalk"},
    "scope": {"mfrom"},
    "version": {"1.0"},
    "type": {"local_policy", "mailing_list", "other", "policy_test_mode", "trusted_forwarder"},
}


def check_schema(element: ElementTree.Element) -> None:
    """What the tables of RFC 9990 3.1.1 ask of an element, and of all in it."""
    name = element.tag.removeprefix(f"{{{NAMESPACE}}}")
    assert name != element.tag, "every element is in the namespace"
    inside = [one.tag.removeprefix(f"{{{NAMESPACE}}}") for one in element]
    rules = (ORDERED | UNORDERED).get(name, "").split() if len(element) else []
    if len(element):
        known = {rule.strip("*").lower(): rule for rule in rules}
        assert set(inside) <= set(known), (name, inside)
        for child, rule in known.items():
            assert rule.endswith("*") or inside.count(child) <= 1, (name, child)
            assert not rule.strip("*").isupper() or child in inside, (name, child)
        if name in ORDERED:
            places = [list(known).index(child) for child in inside]
            assert places == sorted(places), (name, inside)
    elif name in WORDS:
        assert element.text in WORDS[name], (name, element.text)
    for one in element:
        check_schema(one)


def test_what_is_written_is_of_the_schema() -> None:
    root = ElementTree.fromstring(write_aggregate(FULL))
    check_schema(root)
    results = root.iter(f"{{{NAMESPACE}}}result")
    assert {one.text for one in results} <= DKIM_RESULTS | SPF_RESULTS


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80), st.text(max_size=80), st.integers(0, 1 << 31))
def test_any_text_is_written_as_well_formed_xml(name: str, selector: str, count: int) -> None:
    record = Record(
        "192.0.2.1", count, "none", "fail", "fail", "a.example", name,
        dkim_results=(DkimResult("d.example", selector, "fail"),),
    )  # fmt: skip
    report = AggregateReport(
        Metadata(name, "r@r.example", "1", 1, 2), PolicyPublished("a.example", "none"), (record,)
    )
    check_schema(ElementTree.fromstring(write_aggregate(report)))
    assert parse_aggregate(write_aggregate(report)).records[0].count == count


def test_file_name_and_subject() -> None:
    assert (
        file_name(FULL, receiver="mx.r.example", unique_id="abc1")
        == "mx.r.example!a.example!100!199!abc1.xml.gz"
    )
    assert subject(FULL, submitter="mx.r.example") == (
        "Report Domain: a.example Submitter: mx.r.example Report-ID: <abc1>"
    )


def mail(kind: str, body: bytes, name: str = "") -> bytes:
    disposition = f'Content-Disposition: attachment; filename="{name}"\r\n' if name else ""
    encoded = base64.encodebytes(body).replace(b"\n", b"\r\n")
    return (
        b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n\r\nHello.\r\n--b\r\n'
        + f"Content-Type: {kind}\r\n{disposition}Content-Transfer-Encoding: base64\r\n\r\n".encode()
        + encoded
        + b"\r\n--b--\r\n"
    )


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("application/gzip", ""),
        ("application/x-gzip", "r.gz"),
        ("application/octet-stream", "r.xml.gz"),
        ("text/xml", ""),
        ("text/plain", "R.XML"),
    ],
)
def test_report_is_found_in_its_mail(kind: str, name: str) -> None:
    assert find_report(mail(kind, PLAIN, name), limit_octets=1 << 20) == PLAIN


def test_mail_without_a_report_has_none() -> None:
    assert find_report(b"Subject: x\r\n\r\nhello\r\n", limit_octets=1 << 20) is None
    assert find_report(mail("image/png", PLAIN, "r.png"), limit_octets=1 << 20) is None
    assert find_report(mail("application/gzip", b"x" * 5000), limit_octets=1000) is None


@pytest.mark.whole
def test_the_largest_report_is_read() -> None:
    report = parse_aggregate(gzip.compress(f"<feedback>{HEAD}{ROW * 10_000}</feedback>".encode()))
    assert len(report.records) == 10_000
