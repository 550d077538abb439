"""Messages from drafts: what the API sends becomes RFC 5322 octets.

Owns the header and the MIME tree of a new message: text and HTML as
alternatives, inline files beside their HTML, attachments around both. The
result has CRLF line ends, lines under 998 octets and is 7-bit, unless an
address itself is not ASCII. Control characters in any header value, and fields
that are the appliance's own to write, raise ValueError. Makes no ids or dates.

RFC 5322 3.6, RFC 2046 5.1, RFC 2387 (related), RFC 2047, RFC 6532.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from server.mail.address import AddressSyntax, Mailbox, normalise_domain, parse_mailbox
from server.mail.dates import format_date
from server.mail.entity import Entity, file_entity, multipart, text_entity
from server.mail.header import encode, encode_phrase, fold, refuse_controls

MAX_REFERENCES = 50
MAX_MESSAGE_ID_OCTETS = 900  # so that it fits on a line

_MESSAGE_ID = re.compile(r"<?([!-;=?-~]+@[!-;=?-~]+)>?")
_PAIR = re.compile(r"\\(.)", re.DOTALL)
_OWN_FIELDS = frozenset(
    (
        "from", "sender", "reply-to", "to", "cc", "bcc", "subject", "date", "message-id", "in-reply-to",
        "references", "mime-version", "received", "return-path", "delivered-to", "dkim-signature",
        "authentication-results",
    )
)  # fmt: skip
_OWN_PREFIXES = ("content-", "resent-", "arc-")


@dataclass(frozen=True, slots=True)
class NamedAddress:
    """A mailbox with the name to show for it, '' for none."""

    mailbox: Mailbox
    display: str = ""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file of a draft. content_id: what the HTML calls it by `cid:`; given, it is shown inline."""

    filename: str
    content_type: str
    content: bytes
    content_id: str | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """A message to be. at: microseconds; ids with or without angle brackets; headers: further fields.

    Blind copies are recipients of the envelope alone and have no place here.
    report_type: makes a multipart/report of it (RFC 6522 3).
    """

    from_: NamedAddress
    message_id: str
    at: int
    to: tuple[NamedAddress, ...] = ()
    cc: tuple[NamedAddress, ...] = ()
    sender: NamedAddress | None = None
    reply_to: tuple[NamedAddress, ...] = ()
    subject: str = ""
    text: str | None = None
    html: str | None = None
    attachments: tuple[Attachment, ...] = ()
    in_reply_to: str | None = None
    references: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    offset_minutes: int = 0
    report_type: str = ""


def compose(draft: Draft) -> bytes:
    """The message of a draft; raises ValueError for what cannot or may not be written."""
    entity = _body(draft)
    header = [
        fold("Date", format_date(draft.at, draft.offset_minutes).encode("ascii")),
        fold("From", _addresses((draft.from_,))),
        *_optional("Sender", (draft.sender,) if draft.sender else ()),
        *_optional("Reply-To", draft.reply_to),
        *_recipients(draft),
        fold("Subject", encode(draft.subject)),
        fold("Message-ID", message_id_field(draft.message_id)),
        *_thread(draft),
        *(custom_field(name, value) for name, value in draft.headers),
        b"MIME-Version: 1.0\r\n",
    ]
    return b"".join((*header, entity.header, b"\r\n", entity.body))


def parse_named_address(text: str) -> NamedAddress:
    """Read `Name <local@domain>` or a bare mailbox; raises AddressSyntax."""
    text = text.strip(" ")
    if not text.endswith(">"):
        return NamedAddress(parse_mailbox(text, smtputf8=True))
    display, bracket, address = text[:-1].rpartition("<")
    if not bracket:
        raise AddressSyntax("address is not valid")
    display = display.strip(" ")
    if len(display) >= 2 and display[0] == display[-1] == '"':
        display = _PAIR.sub(r"\1", display[1:-1])
    try:
        refuse_controls(display)
    except ValueError as error:
        raise AddressSyntax(str(error)) from error
    return NamedAddress(parse_mailbox(address, smtputf8=True), display)


def format_address(address: NamedAddress) -> bytes:
    """One address for a header field: domain in A-labels, name encoded where it needs it."""
    mailbox = Mailbox(address.mailbox.local, normalise_domain(address.mailbox.domain))
    addr_spec = str(mailbox).encode("utf-8")
    return b"%b <%b>" % (encode_phrase(address.display), addr_spec) if address.display else addr_spec


def message_id_field(message_id: str) -> bytes:
    """A Message-ID with its angle brackets; raises ValueError."""
    found = _MESSAGE_ID.fullmatch(message_id)
    if found is None or len(message_id) > MAX_MESSAGE_ID_OCTETS:
        raise ValueError("message id is not valid")
    return b"<%b>" % found.group(1).encode("ascii")


def usable_ids(ids: Iterable[str]) -> list[bytes]:
    """The ids, of other people's making, that a field can hold, in angle brackets."""
    short = (text for text in ids if len(text) <= MAX_MESSAGE_ID_OCTETS)
    return [b"<%b>" % found.group(1).encode("ascii") for found in map(_MESSAGE_ID.fullmatch, short) if found]


def custom_field(name: str, value: str) -> bytes:
    """A field that the sender adds, folded; ASCII goes as written, all else in encoded words."""
    lowered = name.lower()
    if lowered in _OWN_FIELDS or lowered.startswith(_OWN_PREFIXES):
        raise ValueError(f"header field {name[:80]!r} cannot be set")
    refuse_controls(value)
    return fold(name, value.encode("ascii") if value.isascii() else encode(value))


def _body(draft: Draft) -> Entity:
    """The MIME tree: mixed(alternative(text, related(html, inline)), attachments), as far as needed."""
    related = tuple(file for file in draft.attachments if file.content_id and draft.html is not None)
    others = tuple(file for file in draft.attachments if file not in related)
    shown: list[Entity] = []
    if draft.text is not None or draft.html is None:
        shown.append(text_entity(draft.text or "", "plain"))
    if draft.html is not None:
        shown.append(_html(draft, related))
    entity = shown[0] if len(shown) == 1 else multipart("alternative", shown, seed=draft.message_id)
    if not others:
        return entity
    parts = [entity, *map(_file, others)]
    if draft.report_type:
        extra = f' report-type="{draft.report_type}";'
        return multipart("report", parts, seed=draft.message_id, extra=extra)
    return multipart("mixed", parts, seed=draft.message_id)


def _html(draft: Draft, related: tuple[Attachment, ...]) -> Entity:
    page = text_entity(draft.html or "", "html")
    if not related:
        return page
    return multipart(
        "related", [page, *map(_file, related)], seed=draft.message_id, extra=' type="text/html";'
    )


def _file(file: Attachment) -> Entity:
    return file_entity(
        file.content,
        content_type=file.content_type,
        filename=file.filename,
        disposition="inline" if file.content_id else "attachment",
        content_id=file.content_id,
    )


def _addresses(addresses: Iterable[NamedAddress]) -> bytes:
    return b", ".join(format_address(address) for address in addresses)


def _optional(name: str, addresses: tuple[NamedAddress, ...]) -> list[bytes]:
    return [fold(name, _addresses(addresses))] if addresses else []


def _recipients(draft: Draft) -> list[bytes]:
    found = _optional("To", draft.to) + _optional("Cc", draft.cc)
    return found or [b"To: undisclosed-recipients:;\r\n"]


def _thread(draft: Draft) -> list[bytes]:
    """In-Reply-To and References; ids of other people's making that are unusable are left out."""
    parent = usable_ids((draft.in_reply_to,) if draft.in_reply_to else ())
    ids = usable_ids(draft.references)
    if len(ids) > MAX_REFERENCES:
        # RFC 5322 3.6.4 wants the whole line of descent: its root and its newest members say most.
        ids = ids[:1] + ids[-MAX_REFERENCES + 1 :]
    named = (("In-Reply-To", parent), ("References", ids or parent))
    return [fold(name, b" ".join(values)) for name, values in named if values]
