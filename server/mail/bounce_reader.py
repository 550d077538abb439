"""Notices of failure that come back, read: whom they speak of and why, whoever wrote them in whatever form.

Owns the choice among forms: the machine's part first (RFC 3464), then what bounce_text finds in
words. Mail that answers by itself (RFC 3834) and reports of complaints (RFC 5965) are no bounces.
Pure; never raises; bounded in recipients, octets and lines. Believes nothing: whether a notice
proves that the mail was ours is judged elsewhere.

RFC 3464, RFC 6522, RFC 6533, RFC 3834 2.
"""

import re
from dataclasses import dataclass, replace

from server.mail import bounce_text
from server.mail.arf import Returned, read_returned
from server.mail.bounce_class import BounceClass, Judged, classify
from server.mail.charset import storable
from server.mail.header import Header, decode, split
from server.mail.structure import Part, scan
from server.mail.text import part_octets, part_text

MAX_RECIPIENTS = 100
MAX_STATUS_OCTETS = 262_144
MAX_TEXT_CHARACTERS = 65_536
MAX_DIAGNOSTIC_CHARACTERS = 1_000

_STATUS_KINDS = frozenset(("message/delivery-status", "message/global-delivery-status"))
_RETURNED_KINDS = frozenset(
    ("message/rfc822", "message/global", "text/rfc822-headers", "message/global-headers")
)
_BLANK_LINE = re.compile(rb"\r?\n[ \t]*(?:\r?\n)+")
_ENHANCED = re.compile(r"(?<![0-9.])([245]\.[0-9]{1,3}\.[0-9]{1,3})(?![0-9.]*[0-9])")
_CODE = re.compile(r"(?<![0-9.])([45][0-9][0-9])(?=[ \t-]|$)")
_UNITEXT = re.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}")
_ADDRESS = re.compile(
    r"[^\s<>()\[\],;:\"]{1,128}@[^\s<>()\[\],;:\"]{1,255}|\"[^\"\n]{1,64}\"@[^\s<>,;\"]{1,255}"
)
_AUTO_REPLY_SUBJECT = re.compile(
    r"^(?:\w{2,8}: )?\W*(?:auto(?:matic|mated)?[- ]?(?:re|response|respond|reply|antwort|: )|"
    r"out of (?:the )?office|"
    r"vacation|away from|on holiday|abwesen|absence|r[eé]ponse automatique|risposta automatica|"
    r"i am (?:away|out))",
    re.IGNORECASE,
)
_ACTIONS = {"failed", "delayed", "delivered", "relayed", "expanded"}
_NO_SUCCESS = frozenset(("failed", "delayed"))


@dataclass(frozen=True, slots=True)
class Failure:
    """One recipient that a notice speaks of. action: 'failed' or 'delayed'. code: 0 for none.

    recipient: as written; original: as Original-Recipient has it, '' where it is not told.
    """

    recipient: str
    action: str
    judged: Judged
    code: int = 0
    enhanced: str = ""
    diagnostic: str = ""
    original: str = ""
    remote_mta: str = ""


@dataclass(frozen=True, slots=True)
class Bounce:
    """A notice of failure. form: 'dsn' for RFC 3464, 'text' for words. returned: what came back."""

    form: str
    failures: tuple[Failure, ...]
    returned: Returned | None = None
    reporting_mta: str = ""
    envelope_id: str = ""


def read_bounce(message: bytes) -> Bounce | None:
    """What a notice of failure says; None for mail that is none, and for notices of success alone."""
    header = Header(message[: split(message)])
    parts = list(scan(message).walk())
    if any(part.kind == "message/feedback-report" for part in parts):
        return None
    returned = read_returned(parts, message)
    status = next((part for part in parts if part.kind in _STATUS_KINDS), None)
    if status is not None:
        found = _by_fields(status, parts, message, returned)
        if found is not None:
            return found if found.failures else None
    if _answers_itself(header):
        return None
    return _by_words(header, parts, message, returned)


def _answers_itself(header: Header) -> bool:
    """Whether a message is an answer that a program gave for a person (RFC 3834 2)."""
    submitted = (header.first(b"auto-submitted") or b"").lower()
    subject = decode(header.first(b"subject") or b"")
    if _AUTO_REPLY_SUBJECT.match(subject):
        return True
    is_reply = submitted.startswith(b"auto-replied") or header.first(b"x-autoreply") is not None
    is_reply = is_reply or (header.first(b"precedence") or b"").lower() == b"auto_reply"
    return (
        is_reply and not bounce_text.tells_failure(subject) and header.first(b"x-failed-recipients") is None
    )


# The machine's part.


def _by_fields(status: Part, parts: list[Part], message: bytes, returned: Returned | None) -> Bounce | None:
    """What the fields of RFC 3464 say; None where they name nobody, so that words may."""
    octets = part_octets(status, message)[:MAX_STATUS_OCTETS].strip(b"\r\n")
    groups = [Header(group) for group in _BLANK_LINE.split(octets, MAX_RECIPIENTS + 1)]
    told = _told(parts, message)
    read = [one for one in (_read_group(group, told) for group in groups[: MAX_RECIPIENTS + 1]) if one]
    if not read:
        return None
    found: dict[str, Failure] = {}
    for failure in read:
        if failure.action in _NO_SUCCESS:
            found.setdefault(failure.recipient.lower(), failure)
    return Bounce(
        "dsn",
        tuple(found.values()),
        returned,
        reporting_mta=_typed(groups[0].first(b"reporting-mta"))[:255],
        envelope_id=_text(groups[0].first(b"original-envelope-id"))[:255],
    )


def _read_group(group: Header, told: str) -> Failure | None:
    """One group of fields; None without an address or anything that says what happened."""
    final = _address(group.first(b"final-recipient"))
    original = _address(group.first(b"original-recipient"))
    actual = _address(group.first(b"x-actual-recipient"))
    recipient = final or original or actual
    if actual and "@" in actual and "@" not in recipient:
        recipient = actual
    if original and "@" in original and not _is_routable(recipient):
        recipient = original
    if not recipient:
        return None
    enhanced = _first(_ENHANCED, _text(group.first(b"status")))
    diagnostics = [_typed(value) for value in group.all(b"diagnostic-code")[:4]]
    diagnostic = " ".join(filter(None, diagnostics))
    action = _action(group.first(b"action"), enhanced, diagnostic)
    if action is None:
        return None
    return _failure(
        recipient,
        action,
        enhanced=enhanced,
        diagnostic=diagnostic,
        told=told,
        original=original,
        remote_mta=_typed(group.first(b"remote-mta"))[:255],
    )


def _is_routable(address: str) -> bool:
    """Whether an address is one that mail is sent to, and no mailbox or path inside a server."""
    local, _, domain = address.rpartition("@")
    return bool(local) and "." in domain and not local.startswith(("@", "/", "|"))


def _action(value: bytes | None, enhanced: str, diagnostic: str) -> str | None:
    word = (value or b"").split(b"(", 1)[0].split(b";", 1)[0].strip().lower().decode("ascii", "replace")
    if word in _ACTIONS:
        return word
    if word.startswith(("fail", "expired", "deni", "error")):
        return "failed"
    if word.startswith("delay"):
        return "delayed"
    if enhanced:
        return {"2": "delivered", "4": "delayed", "5": "failed"}[enhanced[0]]
    return "failed" if diagnostic else None


def _told(parts: list[Part], message: bytes) -> str:
    """What a notice says in words, before what it returns."""
    for part in parts:
        if part.kind in _RETURNED_KINDS or part.kind in _STATUS_KINDS:
            break
        if part.is_text:
            return bounce_text.plain(part, part_text(part, message))[:MAX_TEXT_CHARACTERS]
    return ""


def _failure(
    recipient: str,
    action: str,
    *,
    enhanced: str,
    diagnostic: str,
    told: str,
    original: str = "",
    remote_mta: str = "",
) -> Failure:
    code, said = _codes(diagnostic)
    # The server's own words have the better code: Status is often the notifier's guess.
    best = (
        said if said and (not enhanced or enhanced.endswith(".0.0") or said[0] == enhanced[0]) else enhanced
    )
    if best.endswith(".0.0") and not enhanced.endswith(".0.0") and enhanced:
        best = enhanced
    judged = classify(code, best, diagnostic)
    if judged.bounce_class in (BounceClass.UNKNOWN, BounceClass.SOFT, BounceClass.POLICY) and told:
        about = bounce_text.about(told, recipient)
        judged = _with_words(judged, about, code=code, enhanced=best, diagnostic=diagnostic)
    return Failure(
        recipient,
        action,
        judged,
        code=code,
        enhanced=best,
        diagnostic=diagnostic[:MAX_DIAGNOSTIC_CHARACTERS],
        original=original,
        remote_mta=remote_mta,
    )


def _with_words(judged: Judged, about: str, *, code: int, enhanced: str, diagnostic: str) -> Judged:
    """Judge again with what the part for people says about a recipient, where the fields say little."""
    said_code, said = _codes(about)
    again = classify(code or said_code, enhanced or said, f"{diagnostic} {about}")
    if again.bounce_class in (BounceClass.UNKNOWN, BounceClass.POLICY):
        return judged
    # A notice's own words tell of waiting and trying whatever happened.
    is_weak = again.bounce_class is BounceClass.SOFT and (code >= 500 or enhanced[:1] == "5")
    return judged if is_weak else again


def _codes(text: str) -> tuple[int, str]:
    """The reply code and the enhanced code of a server's words."""
    code = _first(_CODE, text[:4_000])
    return int(code) if code else 0, _first(_ENHANCED, text[:4_000])


# Words.


def _by_words(header: Header, parts: list[Part], message: bytes, returned: Returned | None) -> Bounce | None:
    found = bounce_text.read(header, parts, message, returned)
    if found is None:
        return None
    failures: dict[str, Failure] = {}
    for recipient, about in list(found.about.items())[:MAX_RECIPIENTS]:
        name = storable(recipient)
        code, enhanced = _codes(about)
        if found.is_delay and not enhanced:
            enhanced = "4.0.0"
        judged = classify(code, enhanced, about)
        if judged.bounce_class in (BounceClass.UNKNOWN, BounceClass.POLICY):
            whole_code, whole_enhanced = _codes(found.text)
            again = classify(code or whole_code, enhanced or whole_enhanced, found.text)
            judged = again if again.bounce_class is not BounceClass.UNKNOWN else judged
            code, enhanced = code or whole_code, enhanced or whole_enhanced
        action = "delayed" if found.is_delay else "failed"
        failure = Failure(
            name,
            action,
            replace(judged, enhanced=enhanced),
            code=code,
            enhanced=enhanced,
            diagnostic=" ".join(about.split())[:MAX_DIAGNOSTIC_CHARACTERS],
        )
        failures.setdefault(name.lower(), failure)
    return Bounce("text", tuple(failures.values()), returned or found.returned)


# Fields.


def _text(value: bytes | None) -> str:
    return storable(decode(value[:8_192])) if value else ""


def _typed(value: bytes | None) -> str:
    """What stands behind `type;`, the whole where no type is said."""
    text = _text(value)
    kind, mark, rest = text.partition(";")
    return rest.strip() if mark and " " not in kind.strip() else text


def _address(value: bytes | None) -> str:
    text = _UNITEXT.sub(_character, _typed(value)).strip()
    found = _ADDRESS.search(text)
    return storable(found.group() if found else text.strip("<> "))[:320]


def _character(found: re.Match[str]) -> str:
    number = int(found.group(1), 16)
    return chr(number) if number < 0x110000 and not 0xD800 <= number < 0xE000 else "\ufffd"


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found.group(1) if found else ""
