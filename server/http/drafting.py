"""From a request to a draft: addresses read, headers allowed by list, replies addressed.

Owns what a sender over HTTP may set. The From is the inbox's own address, so
nobody is impersonated; header fields outside the list are refused by name.
RFC 5322 3.6.4 (replies), 3.6.2 (From), RFC 3834 (Auto-Submitted).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from server.http import models
from server.http.problems import Problem
from server.http.reading import Answered
from server.mail.address import AddressSyntax, normalise_domain, parse_mailbox
from server.mail.address import Mailbox as MailAddress
from server.mail.automatic import says_automatic
from server.mail.compose import Attachment, Draft, NamedAddress, parse_named_address
from storage import ids
from storage.records import Envelope, Mailbox, Recipient

_ALLOWED = frozenset(
    {
        "auto-submitted",
        "comments",
        "feedback-id",
        "importance",
        "keywords",
        "organization",
        "precedence",
        "priority",
    }
)
_ALLOWED_PREFIXES = ("x-", "list-")
_FIELD_NAME = re.compile(r"[!-9;-~]{1,76}")


def draft_of(asked: models.SendRequest, inbox: Mailbox, *, at: int) -> tuple[Draft, tuple[NamedAddress, ...]]:
    """Return the draft of a send and its blind copies; Problem 422."""
    draft = Draft(
        from_=_own(inbox),
        message_id=_message_id(inbox),
        at=at,
        to=_named(asked.to, "to"),
        cc=_named(asked.cc, "cc"),
        reply_to=_named(asked.reply_to, "reply_to"),
        subject=asked.subject,
        text=asked.text,
        html=asked.html,
        attachments=_attachments(asked.attachments),
        in_reply_to=asked.in_reply_to,
        references=tuple(asked.references),
        headers=_headers(asked.headers),
    )
    return draft, _named(asked.bcc, "bcc")


def reply_of(asked: models.ReplyRequest, inbox: Mailbox, original: Answered, *, at: int) -> Draft:
    """Return the draft of a reply.

    Problem 422 where the original names nobody to answer, or the reply is automatic and so is the original.
    """
    if original.automatic and any(map(_is_automatic, asked.headers.items())):
        raise Problem(
            422,
            "automatic_message",
            f"An automatic reply answers no message like this: it is {original.automatic} (RFC 3834).",
            fix="Reply without Auto-Submitted where a person decided to.",
        )
    to = _readable(original.reply_to)
    if not to:
        raise Problem(422, "no_reply_address", "The message names no address to answer.")
    named = {one.mailbox.normal for one in to} | {inbox.address}
    cc = [one for one in _readable(original.others) if one.mailbox.normal not in named]
    return Draft(
        from_=_own(inbox),
        message_id=_message_id(inbox),
        at=at,
        to=to,
        cc=tuple(cc) if asked.reply_all else (),
        subject=_reply_subject(original.subject),
        text=asked.text,
        html=asked.html,
        attachments=_attachments(asked.attachments),
        in_reply_to=original.message_id or None,
        references=(*original.references, original.message_id) if original.message_id else (),
        headers=_headers(asked.headers),
    )


def envelope_of(
    draft: Draft, blind: Sequence[NamedAddress], inbox: Mailbox, *, max_recipients: int
) -> Envelope:
    """Return the envelope: every address once; Problem 422 for none or too many."""
    wanted: dict[str, MailAddress] = {}
    for one in (*draft.to, *draft.cc, *blind):
        wanted.setdefault(one.mailbox.normal, one.mailbox)
    if not wanted:
        raise Problem(422, "no_recipients", "The message needs a recipient in to, cc or bcc.")
    if len(wanted) > max_recipients:
        raise Problem(
            422,
            "too_many_recipients",
            f"A message has at most {max_recipients} recipients.",
            extra={"limit": max_recipients},
        )
    recipients = tuple(Recipient(_path(one)) for one in wanted.values())
    wide = not all(one.address.isascii() for one in recipients) or not inbox.address.isascii()
    # RFC 6531 3.6: SMTPUTF8 implies 8-bit header fields.
    return Envelope(inbox.address, recipients, body="8BITMIME" if wide else "7BIT", smtputf8=wide)


def _path(one: MailAddress) -> str:
    return str(MailAddress(one.local, normalise_domain(one.domain)))


def _own(inbox: Mailbox) -> NamedAddress:
    return NamedAddress(parse_mailbox(inbox.address, smtputf8=True), inbox.display_name)


def _message_id(inbox: Mailbox) -> str:
    return f"<{ids.new('msg').partition('_')[2]}@{inbox.address.rpartition('@')[2]}>"


def _is_automatic(header: tuple[str, str]) -> bool:
    name, value = header
    return name.lower() == "auto-submitted" and says_automatic(value.encode("utf-8", "replace"))


def _named(texts: Iterable[str], member: str) -> tuple[NamedAddress, ...]:
    found: list[NamedAddress] = []
    for position, text in enumerate(texts):
        try:
            found.append(parse_named_address(text))
        except (AddressSyntax, ValueError) as error:
            raise Problem(
                422,
                "invalid_address",
                "An address can't be read.",
                extra={"errors": [{"pointer": f"/{member}/{position}", "message": str(error)}]},
            ) from None
    return tuple(found)


def _readable(texts: Iterable[str]) -> tuple[NamedAddress, ...]:
    """Return the addresses that a stranger wrote as far as mail can go to them, each once."""
    found: dict[str, NamedAddress] = {}
    for text in texts:
        try:
            one = parse_named_address(text)
            found.setdefault(one.mailbox.normal, one)
        except (AddressSyntax, ValueError):
            continue
    return tuple(found.values())


def _attachments(asked: Iterable[models.AttachmentRequest]) -> tuple[Attachment, ...]:
    return tuple(Attachment(one.filename, one.content_type, one.content, one.content_id) for one in asked)


def _headers(asked: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    for name in asked:
        lowered = name.lower()
        known = lowered in _ALLOWED or lowered.startswith(_ALLOWED_PREFIXES)
        if not known or _FIELD_NAME.fullmatch(name) is None:
            raise Problem(
                422,
                "header_not_allowed",
                "A header field is not among those that may be set.",
                fix="Use X-…, List-…, or one of " + ", ".join(sorted(_ALLOWED)) + ".",
                extra={"errors": [{"pointer": "/headers", "message": name[:100]}]},
            )
    return tuple(asked.items())


def _reply_subject(subject: str) -> str:
    cleaned = " ".join(subject.split())[:900]
    return cleaned if cleaned[:3].lower() == "re:" else f"Re: {cleaned}".rstrip()
