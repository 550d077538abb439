"""The nouns of the appliance, each once: frozen, slotted, without behaviour that does I/O.

Owns the shapes that cross module borders: envelope, message, delivery, verdict,
decision, outcome, event, and the record that the journal keeps of an accepted
message. Reads no clock and makes no ids; times are integer microseconds of UTC
since 1970, ids are prefixed, time-ordered text (`msg_…`, `dlv_…`, `inb_…`).

RFC 5321 (envelope), 3461 (DSN parameters), 3463 (enhanced status codes),
8601 (authentication results), 9051 (flags, UID), 7162 (MODSEQ).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntFlag


class Source(str, Enum):
    """The door by which a message came to intake."""

    MX = "mx"
    SUBMISSION = "submission"
    LMTP = "lmtp"
    API = "api"
    APPEND = "append"  # IMAP APPEND: stored, never judged as mail from outside
    LOCAL = "local"  # from one inbox of this appliance to another, out of the queue
    FORWARD = "forward"
    NOTICE = "notice"  # made by the appliance itself: DSNs, reports


@dataclass(frozen=True, slots=True)
class Recipient:
    """One forward-path with its DSN parameters (RFC 3461 4.1, 4.2).

    address: mailbox as given, without angle brackets. notify: None when not
    given, else a subset of NEVER, SUCCESS, FAILURE, DELAY. orcpt: as given,
    `rfc822;user@example.net`, undecoded.
    """

    address: str
    notify: frozenset[str] | None = None
    orcpt: str | None = None


@dataclass(frozen=True, slots=True)
class Envelope:
    """What SMTP said about a message, apart from its content (RFC 5321 2.3.1).

    reverse_path: None is the null reverse-path. body: the BODY parameter.
    ret: FULL or HDRS or None; envid: as given, undecoded (RFC 3461 4.3, 4.4).
    hold_until: when delivery may begin, in microseconds (RFC 4865), None for at once.
    require_tls: RFC 8689, by the sender. tls_only: by policy, so that a host need not know that RFC.
    ask_in_doubt: by policy, what may have been sent is not sent again without a person's word.
    """

    reverse_path: str | None
    recipients: tuple[Recipient, ...]
    body: str = "7BIT"
    smtputf8: bool = False
    ret: str | None = None
    envid: str | None = None
    require_tls: bool = False
    hold_until: int | None = None
    tls_only: bool = False
    ask_in_doubt: bool = False


@dataclass(frozen=True, slots=True)
class Peer:
    """The client at the other end of the session that brought a message.

    address: IP address as text, '' where there is none (API in process).
    helo: the EHLO or HELO argument. identity: the authenticated login or key id.
    """

    address: str
    port: int = 0
    helo: str = ""
    extended: bool = False
    tls_version: str | None = None
    tls_cipher: str | None = None
    reverse_name: str | None = None
    identity: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One result of sender authentication (RFC 8601 2.7).

    method: spf, dkim, dmarc, arc, iprev; of scanners clamav, rspamd. result: the method's own word
    ('pass', 'fail', 'softfail', 'neutral', 'none', 'temperror', 'permerror', 'policy').
    domain: the identity the result speaks of, lower-case A-labels, '' if none.
    properties: 'smtp.mailfrom', 'header.d', 'header.s', 'header.from', 'policy.…' to value.
    """

    method: str
    result: str
    domain: str = ""
    reason: str = ""
    properties: Mapping[str, str] = field(default_factory=dict)


class Action(str, Enum):
    """What a decision does with a message or a command."""

    ACCEPT = "accept"
    REJECT = "reject"
    DEFER = "defer"
    QUARANTINE = "quarantine"
    HOLD = "hold"
    DISCARD = "discard"


@dataclass(frozen=True, slots=True)
class RuleTrace:
    """One rule that was asked: where it stands, whether it matched, what it did."""

    rule: str
    stage: str
    matched: bool
    effect: str = ""
    place: str = ""  # file:line


@dataclass(frozen=True, slots=True)
class Decision:
    """What intake will do, and the trace that explains it.

    code, enhanced, text: the refusal's reply for REJECT and DEFER. tags: IMAP
    keywords. headers: (name, value) fields put on top of the message.
    redirect: address that takes the recipients' place, or None. copies, forwards: inboxes
    and addresses that get it too. priority: the queue's. pause: 'identity' or 'organization',
    which may send no more, '' for none. reason: 'reputation' where nothing but that speaks against it.
    require_tls: the queue delivers under TLS alone. ask_in_doubt: and sends nothing twice unasked.
    webhooks: (rule, URL, whether the message goes with it).
    """

    action: Action = Action.ACCEPT
    code: int = 250
    enhanced: str = "2.0.0"
    text: str = ""
    tags: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    redirect: str | None = None
    trace: tuple[RuleTrace, ...] = ()
    copies: tuple[str, ...] = ()
    forwards: tuple[str, ...] = ()
    priority: int = 0
    pause: str = ""
    reason: str = ""
    require_tls: bool = False
    ask_in_doubt: bool = False
    webhooks: tuple[tuple[str, str, bool], ...] = ()


class Flag(IntFlag):
    """System flags (RFC 9051 2.3.2) as bits of entries.flags; keywords are text beside them."""

    SEEN = 1
    ANSWERED = 2
    FLAGGED = 4
    DELETED = 8
    DRAFT = 16
    FORWARDED = 32  # Maildir's P: passed; shown as the keyword $Forwarded


@dataclass(frozen=True, slots=True)
class LocalTarget:
    """One local recipient of an accepted message: the mailbox and folder that get a file.

    prefix: header fields put on top of the content for this recipient alone
    (Return-Path, Delivered-To), CRLF line ends, empty for APPEND.
    internal_date: INTERNALDATE in microseconds; 0 means the record's accepted_at.
    """

    mailbox_id: str
    recipient: str
    folder: str = "INBOX"
    prefix: bytes = b""
    flags: int = 0
    keywords: tuple[str, ...] = ()
    internal_date: int = 0


@dataclass(frozen=True, slots=True)
class RemoteTarget:
    """One recipient that the queue must deliver: the row of deliveries that apply inserts.

    next_attempt_at, expires_at: microseconds; next_attempt_at None: held until somebody releases it.
    domain: lower-case A-labels, the queue's key.
    """

    delivery_id: str
    recipient: Recipient
    domain: str
    next_attempt_at: int | None
    expires_at: int
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Spooled:
    """Content that lies in a file of its own because it is large: name in the journal's spool."""

    name: str
    octets: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Event:
    """One step of a message's life, or of an object's, as the timeline shows it.

    seq: the position in the log, 0 before it is stored. data: small JSON-able facts.
    """

    id: str
    kind: str
    at: int
    organization_id: str
    message_id: str | None = None
    mailbox_id: str | None = None
    delivery_id: str | None = None
    data: Mapping[str, object] = field(default_factory=dict)
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Accepted:
    """One journal record: a message of one organization with all that apply needs.

    trace: header fields common to all recipients (Received, Authentication-Results,
    DKIM-Signature), CRLF line ends, put between a target's prefix and the content.
    content: the message with CRLF line ends as received, or where it lies.
    events: rows to insert with the message, beside the ones apply makes itself.
    idempotency_key: the API's, bound to the message in the same transaction.
    """

    message_id: str
    organization_id: str
    accepted_at: int
    source: Source
    peer: Peer
    envelope: Envelope
    decision: Decision
    verdicts: tuple[Verdict, ...]
    trace: bytes
    local: tuple[LocalTarget, ...]
    remote: tuple[RemoteTarget, ...]
    content: bytes | Spooled
    events: tuple[Event, ...] = ()
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """Where apply put a message for one LocalTarget, in the order of Accepted.local.

    uid is 0 when the mailbox or folder was gone by then: then the message was put
    aside for the operator and an event says so.
    """

    mailbox_id: str
    folder_id: int
    uidvalidity: int
    uid: int
    modseq: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """All that is computed once from a message's content and kept (RFC 9051 7.5.2).

    envelope, body, bodystructure: IMAP wire forms, ready to send. parts: the MIME
    structure as compact JSON with octet offsets from the start of the content.
    subject, from_, message_id: decoded text for lists; text: decoded, case-folded
    search text of headers and text parts, bounded. header_octets: length of the header with
    its blank line.
    """

    envelope: bytes
    body: bytes
    bodystructure: bytes
    parts: bytes
    header_octets: int
    subject: str
    from_: str
    to: str
    message_id: str
    in_reply_to: str
    references: str
    sent_at: int  # the Date field in microseconds, 0 if absent or unreadable
    preview: str
    text: str
    attachments: int


@dataclass(frozen=True, slots=True)
class Message:
    """A stored message's identity and facts; its bytes lie in Maildir or spool."""

    id: str
    organization_id: str
    source: Source
    accepted_at: int
    octets: int
    digest: str
    reverse_path: str | None
    message_id_header: str
    subject: str
    from_: str
    to: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One message in one folder (RFC 9051 2.3.1).

    octets: RFC822.SIZE, prefix and trace included; prefix_octets: what lies in the file
    in front of the content that the rendering describes. subdirectory: 'new' or 'cur';
    mirrored: the Maildir info letters that the file's name carries now ('' in new).
    """

    folder_id: int
    uid: int
    modseq: int
    message_id: str
    flags: int
    keywords: tuple[str, ...]
    internal_date: int
    octets: int
    prefix_octets: int
    name: str
    subdirectory: str
    mirrored: str


class DeliveryState(str, Enum):
    """States of one recipient of a queued message."""

    SCHEDULED = "scheduled"
    HELD = "held"
    ACTIVE = "active"
    DEFERRED = "deferred"
    DELIVERED = "delivered"
    BOUNCED = "bounced"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    SUPPRESSED = "suppressed"


FINAL_STATES = frozenset(
    {
        DeliveryState.DELIVERED,
        DeliveryState.BOUNCED,
        DeliveryState.EXPIRED,
        DeliveryState.CANCELLED,
        DeliveryState.SUPPRESSED,
    }
)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One recipient of one queued message, as leased to an attempt.

    lease: fencing token that settles this attempt; tries: attempts begun before this one.
    envelope: with this recipient alone; named: the first recipients that the message came for.
    """

    id: str
    organization_id: str
    message_id: str
    recipient: Recipient
    domain: str
    state: DeliveryState
    tries: int
    created_at: int
    next_attempt_at: int
    expires_at: int
    lease: str | None
    envelope: Envelope
    octets: int
    source: Source
    named: tuple[str, ...] = ()


class Handover(str, Enum):
    """Whose affair a notice of success is after a delivery (RFC 3461 5.2.2, 6.2).

    PASSED: the next hop took the parameters. RELAYED: it knows none, so that we tell of the relay.
    DELIVERED: the road ends here, or at a store behind LMTP.
    """

    PASSED = "passed"
    RELAYED = "relayed"
    DELIVERED = "delivered"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one attempt did for one delivery, in the remote's own words.

    state: DELIVERED, DEFERRED, BOUNCED, EXPIRED or SUPPRESSED. code and enhanced: the reply's, 0 and '' where
    the fault was before any reply. phase: where it ended ('dns', 'connect', 'tls', 'ehlo',
    'mail', 'rcpt', 'data', 'final', 'policy'). duration: microseconds. handover: means something for
    DELIVERED alone. tls_policy, tls_reason: what TLS was held to, and why. passed_over: hosts tried
    before. dialogue: what was said where it failed, without logins and content.
    """

    state: DeliveryState
    code: int = 0
    enhanced: str = ""
    text: str = ""
    phase: str = ""
    host: str = ""
    address: str = ""
    tls_version: str | None = None
    tls_cipher: str | None = None
    duration: int = 0
    handover: Handover = Handover.RELAYED
    tls_policy: str = ""
    tls_reason: str = ""
    passed_over: tuple[str, ...] = ()
    dialogue: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Organization:
    """A tenant: everything belongs to one."""

    id: str
    name: str
    state: str
    created_at: int


@dataclass(frozen=True, slots=True)
class Domain:
    """A mail domain of an organization; name in lower-case A-labels."""

    id: str
    organization_id: str
    name: str
    state: str
    created_at: int


@dataclass(frozen=True, slots=True)
class DkimKey:
    """A signing key: algorithm 'rsa-sha256' or 'ed25519-sha256'; private key in PEM (PKCS 8).

    state: 'made' (not in the DNS yet), 'published' (seen there since seen_at), 'active' (it signs),
    'retiring' (its record stays for mail on the way) or 'retired' (private_pem is b''). changed_at: since
    when. looked: what the DNS said last, 'right', 'wrong', 'missing', 'unknown' or ''. told: the state that
    the operator was told of. due_at: None where nothing is left to do.
    """

    id: str
    organization_id: str
    domain: str
    selector: str
    algorithm: str
    private_pem: bytes
    public_record: str  # the TXT record's value
    state: str
    created_at: int = 0
    changed_at: int = 0
    seen_at: int | None = None
    ttl_seconds: int = 0
    looked_at: int | None = None
    looked: str = ""
    told: str = ""
    due_at: int | None = None


@dataclass(frozen=True, slots=True)
class Mailbox:
    """An inbox. address: normal form, lower-case. quota_octets: 0 is unlimited."""

    id: str
    organization_id: str
    address: str
    display_name: str
    state: str  # 'active', 'suspended', 'closed'
    quota_octets: int
    used_octets: int
    retention_class: str
    created_at: int


@dataclass(frozen=True, slots=True)
class Route:
    """An address or pattern ('local@domain', '*@domain') and what becomes of its mail.

    kind: 'inbox', 'forward', 'drop', 'reject'. target: mailbox id, forward address, the refusal's text.
    """

    id: str
    organization_id: str
    pattern: str
    kind: str
    target: str


@dataclass(frozen=True, slots=True)
class Grant:
    """Leave to send as another address, for one inbox or one key.

    pattern: 'local@domain' in normal form, or '*@domain'.
    """

    id: str
    organization_id: str
    mailbox_id: str | None
    api_key_id: str | None
    pattern: str
    created_at: int


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A scoped key. prefix: the first characters, shown to identify it; the rest is only hashed."""

    id: str
    organization_id: str
    mailbox_id: str | None
    name: str
    prefix: str
    scopes: frozenset[str]
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    revoked_at: int | None


@dataclass(frozen=True, slots=True)
class Credential:
    """An app password of one inbox; password_hash is argon2id in its PHC string form."""

    id: str
    organization_id: str
    mailbox_id: str
    name: str
    password_hash: str
    created_at: int
    revoked_at: int | None


@dataclass(frozen=True, slots=True)
class Folder:
    """An IMAP mailbox of an inbox. name: '/'-separated Unicode, INBOX in capitals."""

    id: int
    mailbox_id: str
    name: str
    special_use: str  # '\\Sent' and the like, '' for none
    uidvalidity: int
    uidnext: int
    highestmodseq: int
    subscribed: bool


@dataclass(frozen=True, slots=True)
class Suppression:
    """An address that mail may not go to, and why.

    cause: 'hard_bounce', 'soft_bounce', 'complaint', 'manual', 'unsubscribe'. scope: whose mail:
    'organization', 'sender' (of that sender alone), 'appliance' (everybody's). state: 'counting' holds
    nothing back yet. event_id: of the event that it follows from. probation_at: from when one delivery,
    probe_id, may try the address again.
    """

    id: str
    organization_id: str
    address: str
    cause: str
    evidence: str
    created_at: int
    expires_at: int | None
    scope: str = "organization"
    sender: str = ""
    state: str = "active"
    event_id: str | None = None
    failures: int = 0
    probation_at: int | None = None
    probe_id: str | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """A credential, key or organization (id: subject) that may send nothing until an operator lifts it."""

    subject: str
    organization_id: str
    rule: str  # which one said so
    text: str  # what clients are told
    at: int
