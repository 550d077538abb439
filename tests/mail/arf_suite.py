"""The corpus of feedback reports, read by our parser and compared with the expected JSON."""

import json
import re
from pathlib import Path
from typing import Any

from server.mail.arf import Feedback, parse_feedback

# How the expectation writes words that reports write in lower case.
_WORDS = {
    None: "Unspecified",
    "abuse": "Abuse",
    "auth-failure": "AuthFailure",
    "fraud": "Fraud",
    "not-spam": "NotSpam",
    "virus": "Virus",
    "other": "Other",
    "bodyhash": "BodyHash",
    "dmarc": "Dmarc",
    "adsp": "Adsp",
    "revoked": "Revoked",
    "signature": "Signature",
    "spf": "Spf",
}


def run(folder: Path) -> dict[str, str]:
    """Each report by name with what is wrong about our reading, '' where it is right."""
    files = sorted(folder.rglob("*.eml"))
    if not files:
        raise FileNotFoundError(f"no report in {folder}")
    return {str(path.relative_to(folder)): _judge(path) for path in files}


def _judge(path: Path) -> str:
    found = parse_feedback(path.read_bytes())
    if found is None:
        return "no feedback report found in it"
    expected = json.loads(path.with_suffix(".json").read_text())
    said = told(found)
    if set(said) != set(expected):
        return f"the expectation has other keys: {set(said) ^ set(expected)}"
    wrong = [name for name, value in expected.items() if _plain(said[name]) != _plain(value)]
    return "; ".join(f"{name}: {said[name]!r}, not {expected[name]!r}" for name in wrong)


def _plain(value: Any) -> Any:
    """A value with its folding undone: the expectation keeps line ends as they stand in the file."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return re.sub(r"\r?\n[ \t]*|[ \t]+", " ", value).strip() if isinstance(value, str) else value


def told(one: Feedback) -> dict[str, Any]:
    """A report under the names of the expectation."""
    returned = one.returned
    is_header = returned is not None and not returned.is_whole
    return {
        "feedback_type": _WORDS[one.feedback_type],
        "arrival_date": None if one.arrived_at is None else one.arrived_at // 1_000_000,
        "authentication_results": list(one.authentication_results),
        "incidents": one.incidents,
        "original_envelope_id": one.original_envelope_id,
        "original_mail_from": one.original_mail_from,
        "original_rcpt_to": one.original_recipients[0] if one.original_recipients else None,
        "reported_domain": list(one.reported_domains),
        "reported_uri": list(one.reported_uris),
        "reporting_mta": one.reporting_mta,
        "source_ip": one.source_ip,
        "user_agent": one.user_agent,
        "version": one.version,
        "source_port": one.source_port,
        "auth_failure": _WORDS[one.auth_failure],
        "delivery_result": _WORDS[one.delivery_result],
        "dkim_adsp_dns": one.dkim_adsp_dns,
        "dkim_canonicalized_body": one.dkim_canonicalized_body,
        "dkim_canonicalized_header": one.dkim_canonicalized_header,
        "dkim_domain": one.dkim_domain,
        "dkim_identity": one.dkim_identity,
        "dkim_selector": one.dkim_selector,
        "dkim_selector_dns": one.dkim_selector_dns,
        "spf_dns": one.spf_dns,
        "identity_alignment": one.identity_alignment or "Unspecified",
        # The expectations name the message's own text nowhere, though three reports carry it.
        "message": None,
        "headers": returned.header.decode() if is_header and returned is not None else None,
    }
