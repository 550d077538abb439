"""The corpus of TLS reports, read by our parser and compared with the expected JSON."""

import json
from pathlib import Path
from typing import Any

from server.mail.header import Header, decode
from server.mail.report_file import TLS, find_report
from server.mail.tls_report import ReportSyntax, TlsReport, parse_report, totals, write_report

MAX_OCTETS = 10 << 20


def run(folder: Path) -> dict[str, str]:
    """Each file by name with what is wrong about our reading, '' where it is right."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".eml"))
    if not files:
        raise FileNotFoundError(f"no report in {folder}")
    return {str(path.relative_to(folder)): _judge(path) for path in files}


def _judge(path: Path) -> str:
    octets = path.read_bytes()
    found = find_report(octets, limit_octets=MAX_OCTETS, form=TLS) if path.suffix == ".eml" else octets
    if found is None:
        return "no report in the mail"
    try:
        report = parse_report(found)
    except ReportSyntax as error:
        return f"refused: {error}"
    if parse_report(write_report(report)) != report:
        return "what is written of it is read as something else"
    expected = path.with_suffix(".json")
    if expected.exists():
        return _difference("", json.loads(expected.read_text()), json.loads(write_report(report)))
    return _sanity(report, octets)


def _sanity(report: TlsReport, mail: bytes) -> str:
    """For mail without an expectation: its own Subject names the domain, and sessions count."""
    subject = decode(Header(mail).first(b"subject") or b"").lower()
    if not any(one.domain and one.domain in subject for one in report.policies):
        return f"about {[one.domain for one in report.policies]}, but {subject}"
    if not report.begin < report.end:
        return "its time ends before it begins"
    return "" if sum(totals(report.policies)) else "no session counts"


def _difference(place: str, expected: Any, found: Any) -> str:
    """Where what was found is not as expected."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key, value in expected.items():
            if key not in found:
                return f"{place}/{key} is missing"
            if problem := _difference(f"{place}/{key}", value, found[key]):
                return problem
        return ""
    if isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            return f"{place} has {len(found)} members, not {len(expected)}"
        pairs = zip(expected, found, strict=True)
        return next(
            (p for i, (one, other) in enumerate(pairs) if (p := _difference(f"{place}/{i}", one, other))), ""
        )
    return "" if expected == found else f"{place}: {found!r}, not {expected!r}"
