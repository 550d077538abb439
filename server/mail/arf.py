"""Complaints and other feedback about mail, as other providers report them (ARF), read.

Owns finding the machine's part of a report and its fields, and what tells which message
it is about. Never raises; mail that carries no such part is None. Believes nothing: who
says so, and whether it may count, is the caller's to judge.

RFC 5965 (ARF), RFC 6591 (authentication failures), RFC 6692 (source ports), RFC 6650.
"""

import re
from dataclasses import dataclass

from server.mail.charset import storable
from server.mail.dates import parse_date
from server.mail.header import Header, decode, split, unfold
from server.mail.structure import Part, scan
from server.mail.text import part_octets

MAX_REPORT_OCTETS = 262_144
MAX_REPEATED = 100  # of a field that may stand several times
MAX_VALUE_CHARACTERS = 65_536
MAX_TRACES = 100
MAX_RETURNED_OCTETS = 1_048_576

_REPORT_KIND = "message/feedback-report"
_RETURNED_KINDS = frozenset(
    ("message/rfc822", "message/global", "text/rfc822-headers", "message/global-headers")
)
_OUR_TRACE = re.compile(
    rb"\bby[ \t]+([^ \t;]{1,255})[ \t]+with[ \t]+[^ \t;]{1,64}[ \t]+id[ \t]+(msg_[0-9a-z]{26})\b"
)
_ADDRESS = re.compile(r"[^\s<>]{1,256}@[^\s<>]{1,255}")


@dataclass(frozen=True, slots=True)
class Returned:
    """The message that a report is about, as far as it came back. traces: (host, id) of its Received fields.

    header: with its line ends; author: the From field as written.
    """

    header: bytes
    is_whole: bool
    message_id: str | None
    author: str | None
    traces: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a report says; texts as written, unfolded; None or empty for what it leaves out.

    feedback_type: lower-case: 'abuse', 'fraud', 'virus', 'not-spam', 'auth-failure', 'other', …
    arrived_at: microseconds. version: 0 where it is no number.
    """

    feedback_type: str
    user_agent: str | None
    version: int
    incidents: int
    arrived_at: int | None
    original_envelope_id: str | None
    original_mail_from: str | None
    original_recipients: tuple[str, ...]
    removal_recipients: tuple[str, ...]
    reporting_mta: str | None
    source_ip: str | None
    source_port: int
    authentication_results: tuple[str, ...]
    reported_domains: tuple[str, ...]
    reported_uris: tuple[str, ...]
    auth_failure: str | None
    delivery_result: str | None
    identity_alignment: str | None
    dkim_domain: str | None
    dkim_identity: str | None
    dkim_selector: str | None
    dkim_selector_dns: str | None
    dkim_canonicalized_header: str | None
    dkim_canonicalized_body: str | None
    spf_dns: str | None
    dkim_adsp_dns: str | None
    returned: Returned | None


def parse_feedback(message: bytes) -> Feedback | None:
    """All that a feedback report says; None when the message is none."""
    parts = list(scan(message).walk())
    found = next((part for part in parts if part.kind == _REPORT_KIND), None)
    if found is None:
        return None
    octets = part_octets(found, message)[:MAX_REPORT_OCTETS].lstrip(b"\r\n")
    fields = Header(octets)
    kind = _word(fields, b"feedback-type")
    if kind is None:  # RFC 5965 3.1: required, as are User-Agent and Version, which tell us nothing
        return None
    return Feedback(
        feedback_type=kind.lower(),
        user_agent=_text(fields, b"user-agent"),
        version=_number(fields, b"version", 0),
        incidents=_number(fields, b"incidents", 1),
        arrived_at=_time(fields),
        original_envelope_id=_text(fields, b"original-envelope-id"),
        original_mail_from=_text(fields, b"original-mail-from"),
        original_recipients=_texts(fields, b"original-rcpt-to"),
        removal_recipients=_texts(fields, b"removal-recipient"),
        reporting_mta=_typed(_text(fields, b"reporting-mta")),
        source_ip=_word(fields, b"source-ip"),
        source_port=_number(fields, b"source-port", 0),
        authentication_results=_texts(fields, b"authentication-results"),
        reported_domains=_texts(fields, b"reported-domain"),
        reported_uris=_texts(fields, b"reported-uri"),
        auth_failure=_word(fields, b"auth-failure"),
        delivery_result=_word(fields, b"delivery-result"),
        identity_alignment=_text(fields, b"identity-alignment"),
        dkim_domain=_text(fields, b"dkim-domain"),
        dkim_identity=_text(fields, b"dkim-identity"),
        dkim_selector=_text(fields, b"dkim-selector"),
        dkim_selector_dns=_text(fields, b"dkim-selector-dns"),
        dkim_canonicalized_header=_text(fields, b"dkim-canonicalized-header"),
        dkim_canonicalized_body=_text(fields, b"dkim-canonicalized-body"),
        spf_dns=_text(fields, b"spf-dns"),
        dkim_adsp_dns=_text(fields, b"dkim-adsp-dns"),
        returned=read_returned(parts, message),
    )


def addresses(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The mail addresses in fields such as Original-Rcpt-To, which some write in angle brackets."""
    found = (_ADDRESS.search(text) for text in texts)
    return tuple(dict.fromkeys(one.group() for one in found if one is not None))


def _text(fields: Header, name: bytes) -> str | None:
    return _decoded(fields.first(name))


def _decoded(value: bytes | None) -> str | None:
    return storable(decode(value)[:MAX_VALUE_CHARACTERS]) if value else None


def _texts(fields: Header, name: bytes) -> tuple[str, ...]:
    found = (_decoded(value) for value in fields.all(name)[:MAX_REPEATED])
    return tuple(one for one in found if one is not None)


def _word(fields: Header, name: bytes) -> str | None:
    """The first word of a field, before a comment."""
    text = _text(fields, name)
    words = text.partition("(")[0].split() if text else []
    return words[0] if words else None


def _number(fields: Header, name: bytes, otherwise: int) -> int:
    word = _word(fields, name) or ""
    return int(word) if re.fullmatch(r"[0-9]{1,9}", word) else otherwise


def _typed(text: str | None) -> str | None:
    """What stands behind `dns;`, the whole where no type is said."""
    if text is None:
        return None
    kind, mark, rest = text.partition(";")
    return rest.strip() if mark and " " not in kind.strip() else text


def _time(fields: Header) -> int | None:
    # RFC 5965 3.2: Received-Date is the older name.
    value = fields.first(b"arrival-date") or fields.first(b"received-date")
    found = parse_date(value) if value else None
    return None if found is None else found[0]


def read_returned(parts: list[Part], message: bytes) -> Returned | None:
    """The message that a report or notice returns, whole or its header alone; None where it returns none."""
    found = next((part for part in parts if part.kind in _RETURNED_KINDS), None)
    if found is None:
        return None
    octets = part_octets(found, message)[:MAX_RETURNED_OCTETS].lstrip(b"\r\n")
    return returned_of(octets, is_whole=found.content.media.is_message)


def returned_of(octets: bytes, *, is_whole: bool) -> Returned:
    """What came back, from its octets."""
    head = octets[: split(octets)]
    fields = Header(head)
    traces = (_OUR_TRACE.search(unfold(value)) for value in fields.all(b"received")[:MAX_TRACES])
    return Returned(
        header=head,
        is_whole=is_whole,
        message_id=_text(fields, b"message-id"),
        author=_text(fields, b"from"),
        traces=tuple(
            (one[1].decode("ascii", "replace").lower(), one[2].decode("ascii")) for one in traces if one
        ),
    )
