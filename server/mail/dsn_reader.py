"""Delivery status notifications of other servers, read.

Owns finding the machine's part of a bounce and its facts, with what is needed
to tell which message it is about. Never raises; a message that carries no such
part is None. Bounces in free text are somebody else's art.

RFC 3464 2, RFC 6522, RFC 6533, RFC 5321 4.5.5.
"""

import re
from dataclasses import dataclass

from server.mail.charset import storable
from server.mail.dates import parse_date
from server.mail.dsn import Action, RecipientStatus
from server.mail.header import Header, decode, split
from server.mail.structure import Part, scan
from server.mail.text import part_octets

MAX_RECIPIENTS = 1_000
MAX_STATUS_OCTETS = 1_048_576

_STATUS_KINDS = frozenset(("message/delivery-status", "message/global-delivery-status"))
_RETURNED_KINDS = frozenset(
    ("message/rfc822", "message/global", "text/rfc822-headers", "message/global-headers")
)
_BLANK_LINE = re.compile(rb"\r?\n[ \t]*\r?\n")
_STATUS = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}")
_UNITEXT = re.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}")


@dataclass(frozen=True, slots=True)
class Notification:
    """What a bounce says. message_id: of the message it returns, where it returns one."""

    recipients: tuple[RecipientStatus, ...]
    reporting_mta: str | None = None
    envelope_id: str | None = None
    message_id: str | None = None


def parse_dsn(message: bytes) -> list[RecipientStatus] | None:
    """The recipients a notification speaks of; None when the message is no notification."""
    found = parse_notification(message)
    return None if found is None else list(found.recipients)


def parse_notification(message: bytes) -> Notification | None:
    """All that a notification says; None when the message is none."""
    parts = list(scan(message).walk())
    status = next((part for part in parts if part.kind in _STATUS_KINDS), None)
    if status is None:
        return None
    octets = part_octets(status, message)[:MAX_STATUS_OCTETS].lstrip(b"\r\n")
    groups = [Header(group) for group in _BLANK_LINE.split(octets, MAX_RECIPIENTS + 1)]
    recipients = [found for found in map(_read_recipient, groups[: MAX_RECIPIENTS + 1]) if found]
    if not recipients:
        return None
    return Notification(
        recipients=tuple(recipients),
        reporting_mta=_typed(groups[0].first(b"reporting-mta")),
        envelope_id=_text(groups[0].first(b"original-envelope-id")),
        message_id=_returned_id(parts, message),
    )


def _read_recipient(group: Header) -> RecipientStatus | None:
    """One group of fields; None without a recipient or an action that the RFC knows."""
    final = _address(group.first(b"final-recipient")) or _address(group.first(b"original-recipient"))
    action = _action(group.first(b"action"))
    if not final or action is None:
        return None
    status = _STATUS.search(_text(group.first(b"status")) or "")
    original = group.first(b"original-recipient")
    return RecipientStatus(
        final_recipient=final,
        action=action,
        status=status.group() if status else "",
        original_recipient=_text(original),
        remote_mta=_typed(group.first(b"remote-mta")),
        diagnostic=_typed(group.first(b"diagnostic-code")),
        last_attempt_at=_time(group.first(b"last-attempt-date")),
        will_retry_until=_time(group.first(b"will-retry-until")),
    )


def _action(value: bytes | None) -> Action | None:
    word = (value or b"").split(b"(", 1)[0].strip().lower().decode("ascii", "replace")
    return next((action for action in Action if action.value == word), None)


def _text(value: bytes | None) -> str | None:
    return None if not value else decode(value)


def _typed(value: bytes | None) -> str | None:
    """What stands behind `type;`, the whole where no type is said."""
    text = _text(value)
    if text is None:
        return None
    kind, mark, rest = text.partition(";")
    return rest.strip() if mark and " " not in kind.strip() else text


def _address(value: bytes | None) -> str | None:
    address = _typed(value)
    if address is None:
        return None
    return storable(_UNITEXT.sub(_character, address)).strip("<> ")


def _character(found: re.Match[str]) -> str:
    number = int(found.group(1), 16)
    return chr(number) if number < 0x110000 else "\ufffd"


def _time(value: bytes | None) -> int | None:
    found = parse_date(value) if value else None
    return None if found is None else found[0]


def _returned_id(parts: list[Part], message: bytes) -> str | None:
    """The Message-ID of the message that came back, header alone or whole."""
    for part in parts:
        if part.kind in _RETURNED_KINDS:
            octets = part_octets(part, message)
            return _text(Header(octets[: split(octets)]).first(b"message-id"))
    return None
