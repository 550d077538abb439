"""Delivery status notifications: what became of a message, recipient by recipient.

Owns composing them and the facts they carry. Who is told, and whether, is
decided elsewhere; nothing here checks for the null reverse-path. Remote servers'
words are made harmless before they become fields. Reading is `dsn_reader`.

RFC 3464, RFC 3461 6.3, RFC 6522 (multipart/report), RFC 6533 (addresses that
are not ASCII), RFC 3834 (Auto-Submitted).
"""

import re
from dataclasses import dataclass
from enum import Enum

from server.mail.compose import message_id_field, usable_ids
from server.mail.dates import format_date
from server.mail.entity import Entity, multipart, text_entity
from server.mail.header import MAX_LINE_OCTETS, fold, split
from server.mail.recoding import Unencodable
from server.mail.seven_bit import refolded

MAX_DIAGNOSTIC_OCTETS = 1_500
MAX_RETURNED_HEADER_OCTETS = 65_536
MAX_TOLD_RECIPIENTS = 100  # in the human part; the machine's part has all

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_NOT_PLAIN = re.compile(r"[^\x21-\x7e]|[\\+=]")
_NOT_VISIBLE = re.compile(r"[^\x21-\x7e]")
_XTEXT_PAIR = re.compile(r"\+([0-9A-F]{2})")
_STATUS = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}")


class Action(str, Enum):
    """What the reporting server did for a recipient (RFC 3464 2.3.3)."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"
    EXPANDED = "expanded"


class Returned(str, Enum):
    """How much of the message goes back (RFC 3461 4.3)."""

    FULL = "FULL"
    HDRS = "HDRS"


@dataclass(frozen=True, slots=True)
class RecipientStatus:
    """One recipient's group of fields (RFC 3464 2.3); times in microseconds.

    original_recipient: as ORCPT gave it, `rfc822;user@example.net`, in xtext when composing
    and decoded when read. remote_mta: host name or '[address]'. diagnostic: the remote's reply.
    """

    final_recipient: str
    action: Action
    status: str
    original_recipient: str | None = None
    remote_mta: str | None = None
    diagnostic: str | None = None
    last_attempt_at: int | None = None
    will_retry_until: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """A notification to be. to: the reverse-path of the message; content: the message it is about.

    envelope_id: the ENVID parameter as given, in xtext. arrived_at, at: microseconds.
    """

    reporting_mta: str
    sender: str
    to: str
    message_id: str
    at: int
    recipients: tuple[RecipientStatus, ...]
    content: bytes
    returned: Returned = Returned.HDRS
    envelope_id: str | None = None
    arrived_at: int | None = None
    in_reply_to: str | None = None


def compose_dsn(report: Report) -> bytes:
    """The notification as a message; to be sent from the null reverse-path (RFC 3464 2)."""
    told = text_entity(_explanation(report), "plain")
    status = Entity(_media(b"message/delivery-status"), _status_fields(report))
    entity = multipart(
        "report",
        [told, status, _returned_part(report)],
        seed=report.message_id,
        extra=" report-type=delivery-status;",
    )
    header = [
        fold("Date", format_date(report.at).encode("ascii")),
        fold("From", b"Mail Delivery System <%b>" % _path(report.sender)),
        fold("To", b"<%b>" % _path(report.to)),
        fold("Subject", _subject(report).encode("ascii")),
        fold("Message-ID", message_id_field(report.message_id)),
        *(fold("In-Reply-To", id) for id in usable_ids((report.in_reply_to or "",))),
        b"Auto-Submitted: auto-replied\r\n",
        b"MIME-Version: 1.0\r\n",
    ]
    return b"".join((*header, entity.header, b"\r\n", entity.body))


def decode_xtext(text: str) -> str:
    """The text that an xtext parameter means; what is no pair stays (RFC 3461 4)."""
    return _XTEXT_PAIR.sub(lambda pair: chr(int(pair.group(1), 16)), text)


def _subject(report: Report) -> str:
    actions = {recipient.action for recipient in report.recipients}
    if Action.FAILED in actions:
        return "Undeliverable: your message could not be delivered"
    if Action.DELAYED in actions:
        return "Delayed: your message has not been delivered yet"
    return "Delivered: your message has been delivered"


_SENTENCES = {
    Action.FAILED: "Your message could not be delivered to:",
    Action.DELAYED: "Your message is delayed; we keep trying to deliver it to:",
    Action.DELIVERED: "Your message has been delivered to:",
    Action.RELAYED: "Your message went on to a server that confirms no delivery, for:",
    Action.EXPANDED: "Your message has been passed on to all members of:",
}


def _explanation(report: Report) -> str:
    """The part for people: each recipient once, with the remote server's own words."""
    lines = [f"This is the mail server at {_plain(report.reporting_mta)}."]
    recipients = report.recipients[:MAX_TOLD_RECIPIENTS]
    for action, sentence in _SENTENCES.items():
        group = [recipient for recipient in recipients if recipient.action is action]
        if group:
            lines += ["", sentence, ""]
            lines += [line for recipient in group for line in _told(recipient)]
    left_out = len(report.recipients) - len(recipients)
    if left_out:
        lines += ["", f"and {left_out} more recipients, named in the report attached."]
    how = "The message" if report.returned is Returned.FULL else "The header of the message"
    return "\n".join([*lines, "", f"{how} is attached."])


def _told(recipient: RecipientStatus) -> list[str]:
    lines = [f"  {_CONTROLS.sub(' ', recipient.final_recipient)}"]
    if recipient.diagnostic:
        said = f"{_plain(recipient.remote_mta)} said" if recipient.remote_mta else "reason"
        lines.append(f"    {said}: {_harmless(recipient.diagnostic)}")
    if recipient.will_retry_until is not None:
        lines.append(f"    we try until {format_date(recipient.will_retry_until)}")
    return lines


def _status_fields(report: Report) -> bytes:
    """message/delivery-status: the message's fields, then a group a recipient (RFC 3464 2.1)."""
    fields = [fold("Reporting-MTA", b"dns; %b" % _plain(report.reporting_mta).encode("ascii"))]
    if report.envelope_id is not None:
        envelope_id = _harmless(decode_xtext(report.envelope_id))
        fields.insert(0, fold("Original-Envelope-Id", envelope_id.encode("ascii")))
    if report.arrived_at is not None:
        fields.append(fold("Arrival-Date", format_date(report.arrived_at).encode("ascii")))
    groups = [b"".join(fields), *(_recipient_fields(recipient) for recipient in report.recipients)]
    return b"\r\n".join(groups)


def _recipient_fields(recipient: RecipientStatus) -> bytes:
    fields: list[bytes] = []
    if recipient.original_recipient is not None:
        kind, _, address = recipient.original_recipient.partition(";")
        original = f"{_plain(kind)};{_harmless(decode_xtext(address)).strip()}"
        fields.append(fold("Original-Recipient", original.encode("ascii")))
    fields.append(fold("Final-Recipient", _typed_address(recipient.final_recipient)))
    fields.append(fold("Action", recipient.action.value.encode("ascii")))
    status = recipient.status if _STATUS.fullmatch(recipient.status) else _unspecified(recipient.action)
    fields.append(fold("Status", status.encode("ascii")))
    if recipient.remote_mta:
        fields.append(fold("Remote-MTA", b"dns; %b" % _plain(recipient.remote_mta).encode("ascii")))
    if recipient.diagnostic:
        fields.append(fold("Diagnostic-Code", b"smtp; %b" % _harmless(recipient.diagnostic).encode("ascii")))
    times = (
        ("Last-Attempt-Date", recipient.last_attempt_at),
        ("Will-Retry-Until", recipient.will_retry_until),
    )
    fields += [fold(name, format_date(at).encode("ascii")) for name, at in times if at is not None]
    return b"".join(fields)


def _unspecified(action: Action) -> str:
    # RFC 3463 3.1: the class is known, the rest is not.
    return {Action.FAILED: "5.0.0", Action.DELAYED: "4.0.0"}.get(action, "2.0.0")


def _typed_address(address: str) -> bytes:
    """`rfc822; address`, or the 7-bit form of an internationalised one (RFC 6533 3)."""
    if address.isascii():
        return b"rfc822; %b" % _path(address)
    coded = _NOT_PLAIN.sub(lambda found: f"\\x{{{ord(found.group()):X}}}", address)
    return f"utf-8; {coded}".encode("ascii")


def _returned_part(report: Report) -> Entity:
    header = report.content[: split(report.content)]
    kind = b"global" if not header.isascii() else b"rfc822"
    if report.returned is Returned.FULL:
        return Entity(_media(b"message/" + kind, report.content), report.content)
    if len(header) > MAX_RETURNED_HEADER_OCTETS:
        header = header[: header.rfind(b"\n", 0, MAX_RETURNED_HEADER_OCTETS) + 1]
    header = _with_short_lines(header)
    media = b"message/global-headers" if kind == b"global" else b"text/rfc822-headers"
    return Entity(_media(media, header), header)


def _with_short_lines(header: bytes) -> bytes:
    """Return a header whose long lines are folded, or left out where they cannot be."""
    try:
        return refolded(header)
    except Unencodable:
        return b"\r\n".join([line for line in header.split(b"\r\n") if len(line) <= MAX_LINE_OCTETS])


def _media(media: bytes, body: bytes = b"") -> bytes:
    encoding = b"" if body.isascii() else b"Content-Transfer-Encoding: 8bit\r\n"
    return fold("Content-Type", media) + encoding


def _path(address: str) -> bytes:
    return _CONTROLS.sub("?", address).encode("utf-8", "replace")


def _plain(text: str) -> str:
    """One printable ASCII word, for host names and the like."""
    return _NOT_VISIBLE.sub("?", text[:255])


def _harmless(text: str) -> str:
    """A remote server's words on one line of ASCII, short enough to be folded."""
    words = _CONTROLS.sub(" ", text).encode("ascii", "replace").decode("ascii").split()
    pieces = [word[start : start + 500] for word in words for start in range(0, len(word), 500)]
    return " ".join(pieces)[:MAX_DIAGNOSTIC_OCTETS]
