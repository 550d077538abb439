"""The shapes of API v1: what requests must be and what answers are.

Owns the pydantic models that the schema is made of. Requests refuse unknown
members; answers are made as plain dicts by answers.py and only described here,
and the tests hold them against these models. Times are RFC 3339 in UTC, sizes
octets, ids prefixed text.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field

# No control characters: these go into names, header fields, log lines and databases.
LINE = r"^[^\x00-\x1f\x7f\u2028\u2029]*$"
Id = Annotated[str, Field(max_length=64, pattern=LINE, examples=["inb_01jd3t6kq8x5v9c2h7m4n0b1ra"])]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=LINE)]
AddressText = Annotated[
    str,
    Field(
        min_length=3,
        max_length=1000,
        pattern=LINE,
        description="An address, with a name if wanted: `ada@example.org` or `Ada <ada@example.org>`.",
        examples=["Ada Lovelace <ada@example.org>"],
    ),
]
Time = Annotated[str, Field(description="RFC 3339, UTC.", examples=["2026-01-31T09:30:00.123456Z"])]
ScopeName = Literal[
    "inbox:read",
    "inbox:write",
    "message:read",
    "message:send",
    "message:delete",
    "domain:admin",
    "event:read",
    "suppression:write",
    "org:admin",
    "operator",
]


class Asked(BaseModel):
    """A request body: unknown members are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Answer(BaseModel):
    """A response body, as the schema describes it."""

    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """RFC 9457 problem details; `code` is stable, `detail` is for people."""

    type: str
    title: str
    status: int
    code: str = Field(examples=["not_found"])
    detail: str
    fix: str | None = None


class PageQuery(BaseModel):
    """Which page of a list."""

    limit: int = Field(50, ge=1, le=200, description="Rows on a page.")
    cursor: str = Field("", max_length=64, pattern=LINE, description="`next_cursor` of the page before.")


class MessagePageQuery(BaseModel):
    """Which page of a folder."""

    folder: str = Field("INBOX", min_length=1, max_length=1000, description="The folder's whole name.")
    limit: int = Field(50, ge=1, le=200, description="Messages on a page.")
    cursor: str = Field("", pattern=r"^[0-9]{0,10}$", description="`next_cursor` of the page before.")


class EventPageQuery(BaseModel):
    """Which events."""

    limit: int = Field(100, ge=1, le=1000, description="Events on a page.")
    cursor: str = Field("", max_length=64, description="`next_cursor` of the answer before.")
    kind: list[Annotated[str, Field(max_length=64)]] = Field(
        default_factory=list, max_length=50, description="Only events of these kinds; repeat for several."
    )


class OrganizationRequest(Asked):
    """A new organization."""

    name: Name


class Organization(Answer):
    """A tenant."""

    id: str
    name: str
    state: Literal["active", "suspended"]
    created_at: Time


class OrganizationList(Answer):
    """A page of organizations."""

    organizations: list[Organization]
    next_cursor: str | None


class DomainRequest(Asked):
    """A new mail domain. Mail for it is taken in from then on."""

    name: str = Field(min_length=1, max_length=255, pattern=LINE, examples=["example.org"])
    organization_id: Id | None = Field(
        None, description="Whose domain; the key's own organization if absent."
    )


class DnsRecord(Answer):
    """A record to publish in the domain's zone, and why."""

    type: str
    name: str
    value: str
    why: str


class Domain(Answer):
    """A mail domain."""

    id: str
    organization_id: str
    name: str
    state: str
    created_at: Time


class DomainRecords(Domain):
    """A mail domain with the DNS records to publish for it."""

    records: list[DnsRecord]


class DomainList(Answer):
    """All domains of an organization."""

    domains: list[Domain]


class DmarcRow(Answer):
    """Messages of one kind from one address, as a report of another server counts them."""

    source_ip: str
    count: int
    dmarc: str = Field(description="`pass` where DKIM or SPF passed aligned.")
    disposition: str
    dkim: str = Field(description="The aligned result; `` where the report does not tell.")
    spf: str = Field(description="The aligned result; `` where the report does not tell.")
    header_from: str
    envelope_from: str
    detail: dict[str, object] = Field(description="Reasons, and each signature's and SPF's own result.")


class DmarcReport(Answer):
    """A DMARC aggregate report that another server sent about the domain."""

    id: str
    domain: str
    policy_domain: str
    reporter: str
    report_id: str
    email: str
    begin_at: Time
    end_at: Time
    received_at: Time
    messages: int
    passed: int
    authenticated: bool = Field(description="Whether the mail that brought it passed DMARC itself.")
    message_id: str = Field(description="That mail; empty where it came to another organization.")
    policy: dict[str, object]
    omitted_rows: int
    rows: list[DmarcRow] = Field(description="Those with most messages first, 200 at most.")


class DmarcReportList(Answer):
    """A page of reports, newest first."""

    reports: list[DmarcReport]
    next_cursor: str | None


class InboxRequest(Asked):
    """A new inbox: an address, or a domain on which one is made up."""

    address: Annotated[str, Field(min_length=3, max_length=320, pattern=LINE)] | None = None
    domain: Annotated[str, Field(min_length=1, max_length=255, pattern=LINE)] | None = None
    display_name: str = Field("", max_length=200, pattern=LINE)
    quota_octets: int = Field(0, ge=0, le=1 << 50, description="0 is unlimited.")


class InboxChange(Asked):
    """What to change of an inbox."""

    state: Literal["active", "suspended", "closed"]


class Inbox(Answer):
    """An inbox."""

    id: str
    address: str
    display_name: str
    state: Literal["active", "suspended", "closed"]
    quota_octets: int
    used_octets: int
    created_at: Time


class Folder(Answer):
    """A folder of an inbox as IMAP shows it."""

    name: str
    special_use: str
    messages: int
    unseen: int


class InboxDetails(Inbox):
    """An inbox with its folders."""

    folders: list[Folder]


class InboxList(Answer):
    """A page of inboxes."""

    inboxes: list[Inbox]
    next_cursor: str | None


class CredentialRequest(Asked):
    """A new app password for IMAP and SMTP submission."""

    name: Name


class Credential(Answer):
    """An app password without its secret."""

    id: str
    inbox_id: str
    name: str
    created_at: Time


class CredentialSecret(Credential):
    """A new app password; the password is shown this once."""

    username: str
    password: str


class CredentialList(Answer):
    """The app passwords of an inbox that are not revoked."""

    credentials: list[Credential]


class KeyRequest(Asked):
    """A new key, for the organization or bound to one inbox."""

    name: Name
    scopes: list[ScopeName] = Field(min_length=1, max_length=20)
    inbox_id: Id | None = None
    expires_at: Annotated[str, Field(max_length=40)] | None = Field(
        None, description="RFC 3339; none: never."
    )


class Key(Answer):
    """A key without its secret; `prefix` is how a leaked one is recognised."""

    id: str
    name: str
    prefix: str
    scopes: list[str]
    inbox_id: str | None
    created_at: Time
    expires_at: Time | None
    last_used_at: Time | None
    revoked_at: Time | None


class KeySecret(Key):
    """A new key; the secret is shown this once."""

    key: str


class KeyList(Answer):
    """A page of keys."""

    keys: list[Key]
    next_cursor: str | None


class AttachmentRequest(Asked):
    """A file to send along."""

    filename: str = Field(min_length=1, max_length=255, pattern=LINE)
    content_type: str = Field("application/octet-stream", max_length=255, pattern=LINE)
    content: Base64Bytes = Field(description="The file in base64.")
    content_id: Annotated[str, Field(min_length=1, max_length=255, pattern=LINE)] | None = Field(
        None, description="Makes it an inline part that the HTML names as `cid:…`."
    )


class ContentRequest(Asked):
    """What new messages and replies have in common."""

    text: Annotated[str, Field(max_length=20_000_000)] | None = None
    html: Annotated[str, Field(max_length=20_000_000)] | None = None
    headers: dict[
        Annotated[str, Field(max_length=100, pattern=LINE)],
        Annotated[str, Field(max_length=2000, pattern=LINE)],
    ] = Field(
        default_factory=dict, max_length=50, description="Further fields: `X-…`, `List-…`, `Auto-Submitted`."
    )
    attachments: list[AttachmentRequest] = Field(default_factory=list, max_length=100)


class SendRequest(ContentRequest):
    """A message to send from an inbox."""

    to: list[AddressText] = Field(default_factory=list, max_length=1000)
    cc: list[AddressText] = Field(default_factory=list, max_length=1000)
    bcc: list[AddressText] = Field(default_factory=list, max_length=1000)
    reply_to: list[AddressText] = Field(default_factory=list, max_length=10)
    subject: str = Field("", max_length=2000, pattern=LINE)
    in_reply_to: Annotated[str, Field(min_length=3, max_length=998, pattern=LINE)] | None = Field(
        None, description="Message-ID field of the message answered.", examples=["<x@example.org>"]
    )
    references: list[Annotated[str, Field(max_length=998, pattern=LINE)]] = Field(
        default_factory=list, max_length=100
    )


class ReplyRequest(ContentRequest):
    """An answer to a message of the inbox, to its sender or, on wish, to all."""

    reply_all: bool = False


class Accepted(Answer):
    """The message is on stable storage and will be delivered or bounced."""

    id: str
    status: Literal["accepted"]


class MailAddress(Answer):
    """An address of a header field."""

    name: str
    address: str


class MoveRequest(Asked):
    """Where a message is to go."""

    folder: str = Field(min_length=1, max_length=1000, description="The folder's whole name.")


class MessageSummary(Answer):
    """A message as a list shows it."""

    id: str
    inbox_id: str
    folder: str
    thread_id: str
    received_at: Time
    octets: int
    from_: str = Field(alias="from")
    to: str
    subject: str
    preview: str
    attachments: int
    flags: list[str]
    labels: list[str]


class MessageList(Answer):
    """A page of messages, newest first."""

    messages: list[MessageSummary]
    next_cursor: str | None


class Attachment(Answer):
    """A part that can be fetched by its number."""

    part: str
    filename: str | None
    content_type: str
    disposition: str
    content_id: str | None
    octets: int = Field(description="As it lies in the message, encoded.")


class Part(Answer):
    """One MIME part. part: its number as in IMAP, '' for the whole."""

    part: str
    content_type: str
    encoding: str
    octets: int
    parts: list[Part]


class Message(MessageSummary):
    """A message in full."""

    sender: list[MailAddress]
    recipients: list[MailAddress]
    cc: list[MailAddress]
    reply_to: list[MailAddress]
    date: Time | None
    message_id: str
    in_reply_to: str
    references: list[str]
    headers: list[tuple[str, str]]
    text: str | None
    html: str | None = Field(description="As it came, not cleaned: never show it outside a sandbox.")
    truncated: bool = Field(description="Whether a text or a list was cut at its limit.")
    structure: Part
    files: list[Attachment]
    authentication: list[Verdict]


class Verdict(Answer):
    """What sender authentication found."""

    method: str
    result: str
    domain: str
    reason: str


class Event(Answer):
    """One step of a message's or an object's life."""

    id: str
    kind: str
    at: Time
    message_id: str | None
    inbox_id: str | None
    delivery_id: str | None
    data: dict[str, object]


class EventList(Answer):
    """Events in their order. `next_cursor` is also given at the end: ask again with it for what is new."""

    events: list[Event]
    next_cursor: str | None


class Delivery(Answer):
    """One recipient of a message that was sent."""

    id: str
    recipient: str
    state: str
    tries: int
    created_at: Time
    next_attempt_at: Time | None
    expires_at: Time
    last_outcome: dict[str, object] | None


class Timeline(Answer):
    """All that happened to a message."""

    id: str
    source: str
    accepted_at: Time
    octets: int
    events: list[Event]
    deliveries: list[Delivery]


class Health(Answer):
    """Whether the appliance lives, or is ready."""

    status: str
