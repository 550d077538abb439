"""What strangers write about transport security, read: records, policies, certificates, reports."""

from datetime import UTC, datetime

from server.mail import tls_report
from server.mail.report_file import TLS, find_report
from server.transport import dane, mtasts, tlsrpt
from server.transport.chain import Broken, subject_key
from server.transport.security import Level, Security, Tlsa

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def check_policy(data: bytes) -> None:
    """Octets are a policy that can be written again, or are refused in a short sentence; records likewise."""
    record = mtasts.read_record([(data,)])
    assert record is None or 1 <= len(record) <= 32
    places = tlsrpt.read_record([(data,), (b"v=spf1",)])
    assert places is None or all(one.startswith(("mailto:", "https:")) for one in places)
    try:
        policy = mtasts.read_policy(data)
    except mtasts.PolicySyntax as error:
        assert len(str(error)) < 300
        return
    assert mtasts.read_policy(policy.text.encode()) == policy


def check_tls_report(data: bytes) -> None:
    """Octets are a report, which can be written again, or are refused in a short sentence."""
    for octets in (data, tls_report.pack(data), find_report(data, limit_octets=1 << 20, form=TLS) or b""):
        try:
            report = tls_report.parse_report(octets)
        except tls_report.ReportSyntax as error:
            assert len(str(error)) < 300
            continue
        assert tls_report.parse_report(tls_report.write_report(report)) == report


def check_certificate(data: bytes) -> None:
    """A certificate is judged, or is a fault in words; as an anchor it is usable or is not."""
    try:
        assert subject_key(data) in data
    except Broken as error:
        assert len(str(error)) < 300
    anchors = dane.usable([Tlsa(2, 0, 0, data), Tlsa(2, 1, 0, data)])
    records = (*anchors, Tlsa(3, 1, 1, bytes(32)), Tlsa(2, 0, 1, bytes(32)))
    for chain in ([data], [data, data]):
        fault = dane.find_fault(chain, Security(Level.DANE, ("mx.test",), records), now=NOW)
        assert fault is None or fault.text
