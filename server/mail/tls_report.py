"""TLS reports: JSON becomes a frozen report, and a report becomes JSON.

Owns the nouns of a report and both directions. Reading is lenient where reporters differ (a
text for a list, a policy without its domain, types of their own) and bounded everywhere;
ReportSyntax says what is no report. Pure. RFC 8460 4 and 5; RFC 8259 (JSON).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from server.mail.unpacking import Unpackable, unpack

MAX_PACKED_OCTETS = 10 << 20
MAX_JSON_OCTETS = 8 << 20
MAX_POLICIES = 1000
MAX_DETAILS = 5000  # of one policy
MAX_STRINGS = 100
MAX_TEXT = 1000
MAX_COUNT = (1 << 53) - 1
POLICY_TYPES = frozenset({"tlsa", "sts", "no-policy-found"})


class ReportSyntax(ValueError):
    """What is no TLS report; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class FailureDetail:
    """Sessions that failed in one way."""

    result_type: str
    count: int
    sending_mta_ip: str = ""
    receiving_mx_hostname: str = ""
    receiving_mx_helo: str = ""
    receiving_ip: str = ""
    additional_information: str = ""
    failure_reason_code: str = ""


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """How sessions under one policy went."""

    type: str
    domain: str
    strings: tuple[str, ...] = ()
    mx_hosts: tuple[str, ...] = ()
    successes: int = 0
    failures: int = 0
    details: tuple[FailureDetail, ...] = ()


@dataclass(frozen=True, slots=True)
class TlsReport:
    """A report. begin, end: seconds of UTC since 1970."""

    organization_name: str
    contact_info: str
    report_id: str
    begin: int
    end: int
    policies: tuple[PolicyResult, ...] = ()


def parse_report(octets: bytes) -> TlsReport:
    """Return the report in a JSON file, packed or not; raises ReportSyntax."""
    try:
        text = unpack(octets, limit=MAX_JSON_OCTETS, suffix=".json")
    except Unpackable as error:
        raise ReportSyntax(str(error)) from None
    try:
        found = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise ReportSyntax("the report is no JSON") from None
    if not isinstance(found, dict) or not isinstance(found.get("policies"), list):
        raise ReportSyntax("the report has no policies")
    dates = _table(found.get("date-range"))
    begin, end = _moment(dates.get("start-datetime")), _moment(dates.get("end-datetime"))
    report = TlsReport(
        organization_name=_text(found.get("organization-name")),
        contact_info=_text(found.get("contact-info")),
        report_id=_text(found.get("report-id")),
        begin=begin,
        end=max(begin, end),
        policies=tuple(_policy(one) for one in found["policies"][:MAX_POLICIES] if isinstance(one, dict)),
    )
    if not report.report_id:
        raise ReportSyntax("the report has no id")
    return report


def _policy(found: Mapping[str, Any]) -> PolicyResult:
    policy, summary = _table(found.get("policy")), _table(found.get("summary"))
    details = found.get("failure-details")
    return PolicyResult(
        type=_text(policy.get("policy-type")),
        domain=_text(policy.get("policy-domain")).rstrip(".").lower(),
        strings=_texts(policy.get("policy-string")),
        # RFC 8460 4.4 calls it mx-host; its schema's earlier drafts had other names.
        mx_hosts=_texts(policy.get("mx-host", policy.get("mx-host-pattern"))),
        successes=_count(summary.get("total-successful-session-count")),
        failures=_count(summary.get("total-failure-session-count")),
        details=tuple(
            _detail(one)
            for one in (details if isinstance(details, list) else [])[:MAX_DETAILS]
            if isinstance(one, dict)
        ),
    )


def _detail(found: Mapping[str, Any]) -> FailureDetail:
    return FailureDetail(
        result_type=_text(found.get("result-type")),
        count=_count(found.get("failed-session-count")),
        sending_mta_ip=_text(found.get("sending-mta-ip")),
        receiving_mx_hostname=_text(found.get("receiving-mx-hostname")),
        receiving_mx_helo=_text(found.get("receiving-mx-helo")),
        receiving_ip=_text(found.get("receiving-ip")),
        additional_information=_text(found.get("additional-information", found.get("additional-info-uri"))),
        failure_reason_code=_text(found.get("failure-reason-code", found.get("failure-error-code"))),
    )


def _table(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}


def _text(found: object) -> str:
    """Return a text, cut to MAX_TEXT and without the halves of pairs that no text may hold."""
    if not isinstance(found, str):
        return ""
    return found[:MAX_TEXT].encode("utf-8", "replace").decode("utf-8")


def _texts(found: object) -> tuple[str, ...]:
    if isinstance(found, str):
        return (_text(found),)
    if not isinstance(found, list):
        return ()
    return tuple(_text(one) for one in found[:MAX_STRINGS] if isinstance(one, str))


def _count(found: object) -> int:
    if isinstance(found, str) and found.isascii() and found.isdigit() and len(found) < 16:
        found = int(found)
    if not isinstance(found, int) or isinstance(found, bool):
        return 0
    return min(max(found, 0), MAX_COUNT)


def _moment(found: object) -> int:
    """Return an RFC 3339 time in seconds; raises ReportSyntax."""
    try:
        moment = datetime.fromisoformat(str(found).upper())
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0, int(moment.timestamp()))
    except (ValueError, OverflowError):
        raise ReportSyntax("the report says no time that can be read") from None


def write_report(report: TlsReport) -> bytes:
    """Return a report as JSON in UTF-8; what has no value is left out."""
    told = {
        "organization-name": report.organization_name,
        "date-range": {"start-datetime": _written(report.begin), "end-datetime": _written(report.end)},
        "contact-info": report.contact_info,
        "report-id": report.report_id,
        "policies": [_policy_table(one) for one in report.policies],
    }
    return json.dumps(told, ensure_ascii=False, indent=1).encode("utf-8") + b"\n"


def _policy_table(result: PolicyResult) -> dict[str, Any]:
    policy: dict[str, Any] = {"policy-type": result.type}
    if result.strings:
        policy["policy-string"] = list(result.strings)
    policy["policy-domain"] = result.domain
    if result.mx_hosts:
        policy["mx-host"] = list(result.mx_hosts)
    table: dict[str, Any] = {
        "policy": policy,
        "summary": {
            "total-successful-session-count": result.successes,
            "total-failure-session-count": result.failures,
        },
    }
    if result.details:
        table["failure-details"] = [_detail_table(one) for one in result.details]
    return table


def _detail_table(detail: FailureDetail) -> dict[str, Any]:
    named = (
        ("sending-mta-ip", detail.sending_mta_ip),
        ("receiving-mx-hostname", detail.receiving_mx_hostname),
        ("receiving-mx-helo", detail.receiving_mx_helo),
        ("receiving-ip", detail.receiving_ip),
        ("additional-information", detail.additional_information),
        ("failure-reason-code", detail.failure_reason_code),
    )
    told = {name: value for name, value in named if value}
    return {"result-type": detail.result_type, **told, "failed-session-count": detail.count}


def _written(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def pack(octets: bytes) -> bytes:
    """Return octets in gzip, the same each time (RFC 1952 2.3.1: no time is said)."""
    stream = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return stream.compress(octets) + stream.flush()


def file_name(report: TlsReport, *, submitter: str, domain: str, unique_id: str) -> str:
    """Return the name of the packed file (RFC 8460 5.1)."""
    return f"{submitter}!{domain}!{report.begin}!{report.end}!{unique_id}.json.gz"


def subject(report: TlsReport, *, submitter: str, domain: str) -> str:
    """Return the Subject of the mail that brings a report (RFC 8460 5.3)."""
    return f"Report Domain: {domain} Submitter: {submitter} Report-ID: <{report.report_id}>"


def totals(policies: Sequence[PolicyResult]) -> tuple[int, int]:
    """Return how many sessions went well, and how many did not."""
    return sum(one.successes for one in policies), sum(one.failures for one in policies)
