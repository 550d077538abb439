"""The corpus of DMARC aggregate reports, read by our parser and compared with the expected JSON."""

import json
from pathlib import Path
from typing import Any

from server.mail import header
from server.mail.dmarc_report import (
    MAX_PACKED_OCTETS,
    AggregateReport,
    Extension,
    Record,
    ReportSyntax,
    parse_aggregate,
)
from server.mail.report_file import find_report

_ALIGNMENTS = {"": "Unspecified", "r": "Relaxed", "s": "Strict"}
_SCOPES = {"": "Unspecified", "mfrom": "MailFrom", "helo": "Helo"}
# The expectation has RFC 9990's list of reasons: what is in it no more is 'Other'.
_DROPPED_REASONS = {"sampled_out": "Other"}


def run(folder: Path) -> dict[str, str]:
    """Each file by name with what is wrong about our reading, '' where it is right."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".xml", ".eml"))
    if not files:
        raise FileNotFoundError(f"no report in {folder}")
    return {str(path.relative_to(folder)): _judge(path) for path in files}


def _judge(path: Path) -> str:
    octets = path.read_bytes()
    found = find_report(octets, limit_octets=MAX_PACKED_OCTETS) if path.suffix == ".eml" else octets
    if found is None:
        return "no report in the mail"
    try:
        report = parse_aggregate(found)
    except ReportSyntax as error:
        return f"refused: {error}"
    expected = path.with_suffix(".json")
    if expected.exists():
        return _difference("", json.loads(expected.read_text()), told(report))
    return _sanity(report, path)


def _sanity(report: AggregateReport, path: Path) -> str:
    """For mail without an expectation: its own Subject names the domain, and every row counts."""
    subject = header.decode(header.Header(path.read_bytes()).first(b"subject") or b"")
    if report.policy.domain not in subject.lower():
        return f"about {report.policy.domain}, but {subject}"
    if not report.metadata.begin < report.metadata.end:
        return "its time ends before it begins"
    return "" if all(one.count and one.dkim and one.spf for one in report.records) else "a row says nothing"


def _difference(place: str, expected: Any, found: Any) -> str:
    """Where what was found is not as expected; keys that the expectation lacks are not compared."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key, value in expected.items():
            if key not in found:
                return f"{place}/{key} is missing"
            if problem := _difference(f"{place}/{key}", value, found[key]):
                return problem
        return ""
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return next(filter(None, (_difference(f"{place}/{n}", *pair) for n, pair in pairs)), "")
    return "" if expected == found else f"{place} is {found!r}, expected {expected!r}"


def told(report: AggregateReport) -> dict[str, Any]:
    """A report in the words of the expectations."""
    about, policy = report.metadata, report.policy
    return {
        "version": float(report.version or 0),
        "report_metadata": {
            "org_name": about.org_name,
            "email": about.email,
            "extra_contact_info": about.extra_contact_info or None,
            "report_id": about.report_id,
            "date_range": {"begin": about.begin, "end": about.end},
            "error": list(about.errors),
            "generator": about.generator or None,
        },
        "policy_published": {
            "domain": policy.domain,
            "version_published": policy.version_published or None,
            "adkim": _ALIGNMENTS[policy.adkim],
            "aspf": _ALIGNMENTS[policy.aspf],
            "p": _word(policy.p),
            "sp": _word(policy.sp),
            "np": _word(policy.np),
            "testing": policy.is_testing,
            "discovery_method": _word(policy.discovery_method),
            "fo": policy.fo or None,
        },
        "record": list(map(_record, report.records)),
        "extensions": _extensions(report.extensions),
    }


def _word(text: str) -> str:
    return "".join(part.capitalize() for part in text.split("_")) or "Unspecified"


def _extensions(found: tuple[Extension, ...]) -> list[dict[str, str]]:
    return [{"name": one.name, "definition": one.definition} for one in found]


def _record(one: Record) -> dict[str, Any]:
    return {
        "row": {
            "source_ip": one.source_ip,
            "count": one.count,
            "policy_evaluated": {
                "disposition": _word(one.disposition),
                "dkim": _word(one.dkim),
                "spf": _word(one.spf),
                "reason": [
                    {
                        "type_": _DROPPED_REASONS.get(reason.type) or _word(reason.type),
                        "comment": reason.comment or None,
                    }
                    for reason in one.reasons
                ],
            },
        },
        "identifiers": {
            "envelope_to": one.envelope_to,
            "envelope_from": one.envelope_from or "",
            "header_from": one.header_from,
        },
        "auth_results": {
            "dkim": [
                {
                    "domain": result.domain,
                    "selector": result.selector,
                    "result": _word(result.result),
                    "human_result": result.human_result or None,
                }
                for result in one.dkim_results
            ],
            "spf": [
                {
                    "domain": result.domain,
                    "scope": _SCOPES[result.scope],
                    "result": _word(result.result),
                    "human_result": result.human_result or None,
                }
                for result in one.spf_results
            ],
        },
        "extensions": _extensions(one.extensions),
    }
