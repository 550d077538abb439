"""DMARC aggregate reports written: the XML of RFC 9990, its file name and its subject.

Owns the order of elements, the escaping, and what may stand in XML at all. Takes the
nouns of dmarc_report; reads no clock and makes no ids. RFC 9990 3.1, 3.5.2 and appendix A.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

from server.mail.dmarc_report import NAMESPACE, AggregateReport, DkimResult, Record, SpfResult

# XML 1.0 2.2: no other character may stand in a document, not even escaped.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def write_aggregate(report: AggregateReport) -> bytes:
    """Return a report as XML in UTF-8; what has no value is left out."""
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<feedback xmlns="{NAMESPACE}">',
        "<version>1.0</version>",
        *_metadata(report),
        *_policy(report),
    ]
    for record in report.records:
        lines += _record(record)
    lines.append("</feedback>\n")
    return "\n".join(lines).encode("utf-8")


def pack(xml: bytes) -> bytes:
    """Return octets in gzip, the same each time (RFC 1952 2.3.1: no time is said)."""
    stream = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return stream.compress(xml) + stream.flush()


def file_name(report: AggregateReport, *, receiver: str, unique_id: str) -> str:
    """Return the name of the packed file (RFC 9990 3.5.2). receiver: the reporting server's domain."""
    about = report.metadata
    return f"{receiver}!{report.policy.domain}!{about.begin}!{about.end}!{unique_id}.xml.gz"


def subject(report: AggregateReport, *, submitter: str) -> str:
    """Return the Subject of the mail that brings a report (RFC 9990 3.5.2)."""
    about = report.metadata
    return f"Report Domain: {report.policy.domain} Submitter: {submitter} Report-ID: <{about.report_id}>"


def _element(name: str, value: str) -> str:
    return f"<{name}>{_NO_XML.sub('', value).translate(_ESCAPES)}</{name}>"


def _optional(*pairs: tuple[str, str]) -> Iterator[str]:
    return (_element(name, value) for name, value in pairs if value)


def _metadata(report: AggregateReport) -> Iterator[str]:
    about = report.metadata
    yield "<report_metadata>"
    yield _element("org_name", about.org_name)
    yield _element("email", about.email)
    yield from _optional(("extra_contact_info", about.extra_contact_info))
    yield _element("report_id", about.report_id)
    yield f"<date_range><begin>{about.begin}</begin><end>{about.end}</end></date_range>"
    # RFC 9990 appendix A: one error at most.
    yield from _optional(("error", "; ".join(about.errors)), ("generator", about.generator))
    yield "</report_metadata>"


def _policy(report: AggregateReport) -> Iterator[str]:
    policy = report.policy
    yield "<policy_published>"
    yield _element("domain", policy.domain)
    yield from _optional(
        ("discovery_method", policy.discovery_method),
        ("p", policy.p),
        ("sp", policy.sp),
        ("np", policy.np),
        ("fo", policy.fo),
        ("adkim", policy.adkim),
        ("aspf", policy.aspf),
    )
    yield _element("testing", "y" if policy.is_testing else "n")
    yield "</policy_published>"


def _record(record: Record) -> Iterator[str]:
    yield "<record><row>"
    yield _element("source_ip", record.source_ip)
    yield _element("count", str(record.count))
    yield "<policy_evaluated>"
    yield from _optional(("disposition", record.disposition), ("dkim", record.dkim), ("spf", record.spf))
    for reason in record.reasons:
        yield "<reason>"
        yield _element("type", reason.type)
        yield from _optional(("comment", reason.comment))
        yield "</reason>"
    yield "</policy_evaluated></row><identifiers>"
    yield _element("header_from", record.header_from)
    if record.envelope_from is not None:
        yield _element("envelope_from", record.envelope_from)
    if record.envelope_to is not None:
        yield _element("envelope_to", record.envelope_to)
    yield "</identifiers><auth_results>"
    for signature in record.dkim_results:
        yield from _dkim(signature)
    for result in record.spf_results[:1]:
        yield from _spf(result)
    yield "</auth_results></record>"


def _dkim(signature: DkimResult) -> Iterator[str]:
    yield "<dkim>"
    yield _element("domain", signature.domain)
    yield _element("selector", signature.selector)
    yield _element("result", signature.result)
    yield from _optional(("human_result", signature.human_result))
    yield "</dkim>"


def _spf(result: SpfResult) -> Iterator[str]:
    yield "<spf>"
    yield _element("domain", result.domain)
    yield from _optional(("scope", result.scope))
    yield _element("result", result.result)
    yield from _optional(("human_result", result.human_result))
    yield "</spf>"
