"""The facts that rules may ask for, in one table: type, unit, stages, meaning.

Owns the stages and the facts. Refuses nothing and computes nothing: intake gives
the values, compile holds rules against this table, docs/policies.md is made of it.
Texts that are compared are given in lower case, since CEL knows no folding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

STAGES: Mapping[str, str] = MappingProxyType(
    {
        "connect": "A client has connected.",
        "helo": "The client has said EHLO or HELO.",
        "mail": "The client has given the sender: MAIL FROM.",
        "rcpt": "The client has given one recipient: RCPT TO. Asked for each of them.",
        "message": "A message from outside is here in full and verified, before the 250. Asked once for the "
        "recipients of each organization.",
        "deliver": "An accepted message is about to be placed into one inbox.",
        "submit": "A message of a user of ours is here in full, before the 250 or 202.",
        "send": "A message is about to go out over the API, with a key's scopes.",
        "bounce": "A notice about a delivery is about to be made for the sender.",
    }
)

_SESSION = ("connect", "helo", "mail", "rcpt", "message", "submit", "send")
_GREETED = ("helo", "mail", "rcpt", "message", "submit")
_ENVELOPE = ("mail", "rcpt", "message", "deliver", "submit", "send")
_LOGIN = ("mail", "rcpt", "submit", "send")
_COUNTED = ("rcpt", "message", "submit", "send")
_CONTENT = ("message", "deliver", "submit", "send")
_VERIFIED = ("message", "deliver")
_SENDING = ("mail", "rcpt", "submit", "send")
_SENT = ("submit", "send")
_STRANGERS = ("connect", "helo", "mail", "rcpt", "message")


class Kind(str, Enum):
    """The types of facts, by their names in CEL."""

    STRING = "string"
    INT = "int"
    BOOL = "bool"
    STRINGS = "list<string>"


# What a value of each kind is in Python; a bool is no int here.
PYTHON_TYPES: Mapping[Kind, type] = MappingProxyType(
    {Kind.STRING: str, Kind.INT: int, Kind.BOOL: bool, Kind.STRINGS: list}
)


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact. stages: where it exists, in the order of STAGES; unit: '' where it has none.

    ahead: its value is asked of the database before the stage is judged, once a rule wants it.
    """

    name: str
    kind: Kind
    stages: tuple[str, ...]
    meaning: str
    unit: str = ""
    ahead: bool = False

    @property
    def earliest(self) -> str:
        """The first stage at which the fact exists."""
        return self.stages[0]


_S, _I, _B, _L = Kind.STRING, Kind.INT, Kind.BOOL, Kind.STRINGS

_TABLE = (
    Fact("client_ip", _S, _SESSION, "Address of the client, '' for a message that no client brought."),
    Fact("client_port", _I, _SESSION, "Port of the client, 0 if there is none."),
    Fact(
        "reverse_name",
        _S,
        _SESSION,
        "Name that the DNS gives for client_ip and that leads back to it, lower-case; '' if there is none.",
        ahead=True,
    ),
    Fact(
        "reverse_names", _L, _STRANGERS, "All names that the DNS gives for client_ip, 10 at most.", ahead=True
    ),
    Fact(
        "reverse_status",
        _S,
        _STRANGERS,
        "'pass' if one of reverse_names leads back to client_ip (RFC 8601 3), 'fail' if none does, 'none' "
        "without a name, 'temperror' if that cannot be known now; '' without a client.",
        ahead=True,
    ),
    Fact(
        "dnsbl_listed",
        _B,
        _STRANGERS,
        "Whether a list of dns_lists.block has client_ip (RFC 5782). A list that gives no answer has nobody.",
        ahead=True,
    ),
    Fact(
        "dnsbl_score", _I, _STRANGERS, "Sum of the weights of the lists that have it.", "points", ahead=True
    ),
    Fact("dnsbl_zones", _L, _STRANGERS, "Zones of the lists of dns_lists.block that have it.", ahead=True),
    Fact("dnswl_listed", _B, _STRANGERS, "Whether a list of dns_lists.allow has client_ip.", ahead=True),
    Fact("dnswl_zones", _L, _STRANGERS, "Zones of the lists of dns_lists.allow that have it.", ahead=True),
    Fact(
        "helo_status",
        _S,
        _STRANGERS[1:],
        "'pass' if helo leads to client_ip or is its literal, 'fail' if it exists and does not, 'none' if it "
        "has no A, AAAA or MX record, 'temperror' if that cannot be known now; '' without a client.",
        ahead=True,
    ),
    Fact(
        "dnsbl_domains",
        _L,
        _STRANGERS[2:],
        "Those of sender_domain and helo that a list of dns_lists.block_domains has.",
        ahead=True,
    ),
    Fact("tls", _B, _SESSION, "Whether the session is under TLS."),
    Fact("tls_version", _S, _SESSION, "'TLSv1.2' or 'TLSv1.3'; '' without TLS."),
    Fact("helo", _S, _GREETED, "Argument of EHLO or HELO, lower-case."),
    Fact(
        "helo_form",
        _S,
        _GREETED,
        "'domain' (two labels or more), 'label' (one), 'literal' ([192.0.2.1], RFC 5321 4.1.3), 'address' "
        "(one without brackets, which is no right argument); '' before EHLO.",
    ),
    Fact("helo_is_ours", _B, _GREETED, "Whether helo is server.hostname: no other server has that name."),
    Fact(
        "source",
        _S,
        (*_ENVELOPE[:4], "submit", "send"),
        "Where the message comes from: 'mx', 'submission', 'lmtp', 'api', 'local' or 'forward'.",
    ),
    Fact("authenticated", _B, _LOGIN, "Whether the client has logged in or shown a key."),
    Fact("identity", _S, _LOGIN, "Id of the credential or key that was used; '' without one."),
    Fact("scopes", _L, _LOGIN, "Scopes of that credential or key."),
    Fact("sender", _S, (*_ENVELOPE, "bounce"), "Reverse-path, lower-case; '' for the null reverse-path."),
    Fact("sender_domain", _S, (*_ENVELOPE, "bounce"), "Domain of sender in A-labels; '' for the null one."),
    Fact("is_bounce", _B, _ENVELOPE, "Whether the reverse-path is null: bounces and other notices."),
    Fact("is_dsn", _B, ("message",), "Whether it is a notice of failure, in whatever form."),
    Fact(
        "dsn_proved",
        _B,
        ("message",),
        "Whether that notice proves that it is about mail of this organization: by its signed return path, "
        "or by the returned header's trace or DKIM signature.",
    ),
    Fact("smtputf8", _B, _ENVELOPE, "Whether the message was announced with SMTPUTF8."),
    Fact("declared_octets", _I, ("mail",), "SIZE of the MAIL command, 0 without one.", "octets"),
    Fact("recipient", _S, ("rcpt", "deliver", "bounce"), "The recipient, lower-case."),
    Fact("recipient_domain", _S, ("rcpt", "deliver", "bounce"), "Domain of recipient in A-labels."),
    Fact("recipient_count", _I, _COUNTED, "Recipients so far, this one included.", "recipients"),
    Fact("recipients", _L, ("message", "submit", "send"), "All recipients, lower-case."),
    Fact(
        "organization_id",
        _S,
        ("message", "deliver", "submit", "send"),
        "The organization whose message it is.",
    ),
    Fact("inbox_id", _S, ("deliver", "submit", "send"), "The inbox that receives or sends; '' if none."),
    Fact("size_octets", _I, _CONTENT, "Size of the message as received.", "octets"),
    Fact("header_from", _S, _CONTENT, "First address of From, lower-case; '' if none can be read."),
    Fact("header_from_domain", _S, _CONTENT, "Domain of header_from in A-labels; '' if none."),
    Fact("header_from_count", _I, _CONTENT, "Addresses in all From fields together.", "addresses"),
    Fact("header_from_readable", _B, _CONTENT, "Whether From names addresses and nothing else."),
    Fact("header_from_fields", _I, _CONTENT, "From fields; a message has one (RFC 5322 3.6).", "fields"),
    Fact("subject", _S, _CONTENT, "Subject, decoded and in lower case."),
    Fact("message_id", _S, _CONTENT, "Message-ID with its angle brackets; '' if absent."),
    Fact("header_names", _L, _CONTENT, "Names of the header's fields, lower-case, each once."),
    Fact("received_count", _I, _CONTENT, "Received fields of the message.", "fields"),
    Fact("attachments", _I, _CONTENT, "Attachments, by MIME structure.", "attachments"),
    Fact("list_unsubscribe", _B, _CONTENT, "Whether there is a List-Unsubscribe field (RFC 2369)."),
    Fact(
        "precedence", _S, _CONTENT, "Precedence, lower-case: 'bulk', 'list', 'junk' or another; '' if absent."
    ),
    Fact(
        "bimi_selector", _S, _CONTENT, "Selector that BIMI-Selector names; '' if absent. Nothing is fetched."
    ),
    Fact("auto_submitted", _S, _CONTENT, "Auto-Submitted (RFC 3834), lower-case; '' if absent."),
    Fact("spf", _S, _VERIFIED, "SPF result (RFC 7208 2.6); 'none' where it was not checked."),
    Fact("spf_domain", _S, _VERIFIED, "Domain that SPF spoke of."),
    Fact("dkim", _L, _VERIFIED, "Domains (d=) of the signatures that pass."),
    Fact(
        "dkim_result",
        _S,
        _VERIFIED,
        "'pass' if one signature passes, else the result of the first; 'none' without any (RFC 8601 2.7.1).",
    ),
    Fact(
        "dmarc",
        _S,
        _VERIFIED,
        "DMARC result: 'pass', 'fail', 'none' (no policy published), 'temperror' or 'permerror'.",
    ),
    Fact(
        "dmarc_policy",
        _S,
        _VERIFIED,
        "What the domain's owner asks for mail that fails: 'none', 'quarantine' or 'reject'; '' without one.",
    ),
    Fact("dmarc_domain", _S, _VERIFIED, "Domain whose DMARC policy applies; '' without one."),
    Fact("arc", _S, _VERIFIED, "Result of the ARC chain: 'pass', 'fail' or 'none' (RFC 8617)."),
    Fact("arc_sealer", _S, _VERIFIED, "Domain of the chain's newest seal; '' without one."),
    Fact(
        "arc_believed",
        _B,
        _VERIFIED,
        "Whether the chain passes and its newest sealer, one of believed_sealers, saw DMARC pass.",
    ),
    Fact(
        "recipient_is_role",
        _B,
        ("rcpt", "deliver"),
        "Whether recipient is postmaster or abuse of one of this server's domains, or postmaster alone.",
    ),
    Fact(
        "correspondent_authenticated",
        _B,
        _VERIFIED,
        "Whether the one address in From is vouched for: DMARC passes, or SPF or a signature of its domain "
        "or one above it does. If not, its correspondent is the address together with the client's network.",
    ),
    Fact(
        "correspondent_known",
        _B,
        _VERIFIED,
        "Whether the owner of the inbox likes this correspondent: correspondent_score is 25 or more. At "
        "message the inbox with the highest score counts.",
    ),
    Fact(
        "correspondent_unwanted",
        _B,
        _VERIFIED,
        "Whether correspondent_score is -150 or less: two messages put into Junk lately. At message this "
        "must hold for every inbox that the message goes to.",
    ),
    Fact(
        "correspondent_domain_unwanted",
        _B,
        _VERIFIED,
        "Whether nothing good is known of the correspondent, and correspondent_domain_score is -300 or less.",
    ),
    Fact(
        "correspondent_score",
        _I,
        _VERIFIED,
        "What the owner's acts say of the correspondent, each halved in 60 days: mail put into Junk or "
        "marked $Junk -100; taken out of Junk or Rejects, or marked $NotJunk, +100; written to +100, counted "
        "once. 0 for a stranger. At message the highest of all inboxes.",
        "points",
    ),
    Fact(
        "correspondent_domain_score",
        _I,
        _VERIFIED,
        "The same of all correspondents in the domain of From or, not authenticated, in the client's "
        "network.",
        "points",
    ),
    Fact(
        "owner_wrote_to_sender",
        _B,
        _VERIFIED,
        "Whether an inbox that the message goes to has sent mail to the authenticated address in From in the "
        "last half year.",
    ),
    Fact(
        "virus_status",
        _S,
        _CONTENT,
        "What became of the virus scan: 'scanned', 'too_large', 'absent' (no answer in time, or a fault), "
        "'off' (no scanner is configured) or, where stored mail is tried, 'unknown'.",
        ahead=True,
    ),
    Fact("virus_name", _S, _CONTENT, "What ClamAV found, under its name; '' for nothing.", ahead=True),
    Fact("rspamd_status", _S, _CONTENT, "The same as virus_status of the scan by rspamd.", ahead=True),
    Fact(
        "rspamd_action",
        _S,
        _CONTENT,
        "What rspamd advises: 'no action', 'greylist', 'add header', 'rewrite subject', 'soft reject' or "
        "'reject'; '' without a scan.",
        ahead=True,
    ),
    Fact("rspamd_score", _I, _CONTENT, "The score that rspamd gives.", "hundredths", ahead=True),
    Fact("rspamd_symbols", _L, _CONTENT, "Symbols of rspamd that matched, 100 at most.", ahead=True),
    Fact(
        "scanner_absence",
        _S,
        _CONTENT,
        "What the settings of [scanners] say to do where a scanner is 'absent': 'defer', 'tag' or 'accept', "
        "the first of these where two are; '' where none is.",
        ahead=True,
    ),
    Fact(
        "sent_last_hour",
        _I,
        _SENDING,
        "Recipients that this credential or key has sent to, without the message at hand.",
        "recipients",
        ahead=True,
    ),
    Fact("sent_last_day", _I, _SENDING, "The same over 24 hours.", "recipients", ahead=True),
    Fact("inbox_sent_last_hour", _I, _SENDING, "The same of the sending inbox.", "recipients", ahead=True),
    Fact("inbox_sent_last_day", _I, _SENDING, "The same of the inbox over a day.", "recipients", ahead=True),
    Fact(
        "organization_sent_last_hour",
        _I,
        _SENDING,
        "The same of the whole organization.",
        "recipients",
        ahead=True,
    ),
    Fact(
        "organization_sent_last_day",
        _I,
        _SENDING,
        "The same of the organization over a day.",
        "recipients",
        ahead=True,
    ),
    Fact(
        "domain_sent_last_day",
        _I,
        _SENT,
        "Recipients over a day of all mail with this header_from_domain.",
        "recipients",
        ahead=True,
    ),
    Fact(
        "domain_age_days",
        _I,
        _SENT,
        "Whole days since header_from_domain was added to this server; 0 where it is not on it.",
        "days",
        ahead=True,
    ),
    Fact(
        "settled_7d",
        _I,
        _SENT,
        "Deliveries of this credential or key that ended in the last 7 days: delivered, bounced or expired.",
        "deliveries",
        ahead=True,
    ),
    Fact("bounce_rate_7d", _I, _SENT, "Bounces among settled_7d.", "per mille", ahead=True),
    Fact("complaint_rate_7d", _I, _SENT, "Complaints beside settled_7d.", "per mille", ahead=True),
    Fact("organization_settled_7d", _I, _SENT, "settled_7d of the organization.", "deliveries", ahead=True),
    Fact(
        "organization_bounce_rate_7d",
        _I,
        _SENT,
        "Bounces among organization_settled_7d.",
        "per mille",
        ahead=True,
    ),
    Fact(
        "organization_complaint_rate_7d",
        _I,
        _SENT,
        "Complaints beside organization_settled_7d.",
        "per mille",
        ahead=True,
    ),
    Fact(
        "new_recipients",
        _I,
        _SENT,
        "Recipients of this message that the organization has not written to in the last half year.",
        "recipients",
        ahead=True,
    ),
    Fact(
        "new_recipient_share",
        _I,
        _SENT,
        "Share of such recipients among all that the organization wrote to in a day, this message included.",
        "percent",
        ahead=True,
    ),
    Fact(
        "similar_bodies_last_hour",
        _I,
        _SENT,
        "Recipients to whom the organization has sent a text much like this one; 0 for texts of under 20 "
        "words.",
        "recipients",
        ahead=True,
    ),
    Fact(
        "paused",
        _B,
        _SENDING,
        "Whether this login or its organization was paused and no operator has lifted it.",
        ahead=True,
    ),
    Fact("reply_code", _I, ("bounce",), "SMTP reply code that the notice reports, 0 where there was none."),
    Fact("reply_status", _S, ("bounce",), "Enhanced status code that the notice reports (RFC 3463)."),
    Fact("notice", _S, ("bounce",), "'failure', 'delay' or 'success'."),
)


@dataclass(frozen=True, slots=True)
class Limit:
    """A figure that a setting of [limits] gives and conditions name limit_…; an int at every stage."""

    default: int
    unit: str
    meaning: str


LIMITS: Mapping[str, Limit] = MappingProxyType(
    {
        "key_hour": Limit(1000, "recipients", "What one credential or key may send to in an hour."),
        "key_day": Limit(10_000, "recipients", "What one credential or key may send to in a day."),
        "organization_hour": Limit(5000, "recipients", "What one organization may send to in an hour."),
        "organization_day": Limit(50_000, "recipients", "What one organization may send to in a day."),
        "message_recipients": Limit(100, "recipients", "What one sent message may go to."),
        "similar_bodies_hour": Limit(500, "recipients", "How many one text may go to in an hour."),
        "new_recipient_percent": Limit(
            95, "percent", "Share of new recipients above which one text may go to a fifth of that only."
        ),
        "bounce_permille": Limit(
            100, "per mille", "Bounces of a week, in 1000 deliveries, above which sending is paused."
        ),
        "complaint_permille": Limit(
            5, "per mille", "Complaints of a week, in 1000 deliveries, above which sending is paused."
        ),
        "settled_least": Limit(
            100, "deliveries", "How many deliveries of a week must have ended before a rate means anything."
        ),
        "warmup_first_days": Limit(
            500,
            "recipients",
            "What a new domain may send to in a day; it doubles every two days for two weeks.",
        ),
    }
)
LIMIT_PREFIX = "limit_"
DEFAULT_LIMITS: Mapping[str, int] = MappingProxyType({name: one.default for name, one in LIMITS.items()})

# The scanners, and what each must be asked for.
SCANNERS = ("clamav", "rspamd")
# All that a rule may need, by the names that it needs them under.
SERVICES = (*SCANNERS, "blocklists", "domain-blocklists")
SCANNER_FACTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **{fact.name: ("clamav",) for fact in _TABLE if fact.name.startswith("virus_")},
        **{fact.name: ("rspamd",) for fact in _TABLE if fact.name.startswith("rspamd_")},
        "scanner_absence": SCANNERS,
    }
)

FACTS: Mapping[str, Fact] = MappingProxyType({fact.name: fact for fact in _TABLE})
# What most mail has, where it matters: a test for it parts rules badly.
USUAL: Mapping[str, frozenset[object]] = MappingProxyType(
    {
        "source": frozenset({"mx"}),
        "header_from_fields": frozenset({1}),
        "header_from_count": frozenset({1}),
        "recipient_count": frozenset({1}),
        "spf": frozenset({"pass", "none"}),
        "dkim_result": frozenset({"pass", "none"}),
        "dmarc": frozenset({"pass", "none"}),
        **{fact.name: frozenset({fact.name == "header_from_readable"}) for fact in _TABLE if fact.kind is _B},
    }
)


def facts_at(stage: str) -> tuple[Fact, ...]:
    """Return the facts that exist at a stage, which a caller of the engine must all give there."""
    return tuple(fact for fact in _TABLE if stage in fact.stages)


def faults(stage: str, values: Mapping[str, object]) -> list[str]:
    """Return a sentence for each fact of a stage that is absent, of another type, or not in the table."""
    found = [f"{name} is no fact" for name in values if name not in FACTS]
    for fact in facts_at(stage):
        if fact.name not in values:
            found.append(f"{fact.name} is absent at {stage}")
        elif type(values[fact.name]) is not PYTHON_TYPES[fact.kind]:
            found.append(f"{fact.name} is {type(values[fact.name]).__name__}, not {fact.kind.value}")
    return found
