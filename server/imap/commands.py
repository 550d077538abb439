"""The commands as the grammar understood them: typed, frozen, without behaviour.

Owns the vocabulary that grammar, machine and session share. Mailbox names are
text already (decoded from modified UTF-7), times microseconds of UTC, dates
proleptic day ordinals. RFC 9051 6, and the extensions named beside each shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from server.imap.sequence import SequenceSet


@dataclass(frozen=True, slots=True)
class Capability:
    """CAPABILITY."""


@dataclass(frozen=True, slots=True)
class Noop:
    """NOOP."""


@dataclass(frozen=True, slots=True)
class Check:
    """CHECK (RFC 3501 6.4.1)."""


@dataclass(frozen=True, slots=True)
class Logout:
    """LOGOUT."""


@dataclass(frozen=True, slots=True)
class StartTls:
    """STARTTLS."""


@dataclass(frozen=True, slots=True)
class Authenticate:
    """AUTHENTICATE; initial: the initial response still in base64, None if absent (RFC 4959)."""

    mechanism: str
    initial: bytes | None


@dataclass(frozen=True, slots=True)
class Login:
    """LOGIN."""

    user: bytes
    password: bytes


@dataclass(frozen=True, slots=True)
class Enable:
    """ENABLE; names in capitals."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Identify:
    """ID (RFC 2971); parameters as sent, the names in lower case."""

    parameters: tuple[tuple[str, str], ...]


class Access(Enum):
    """What SELECT and EXAMINE differ by."""

    READ_WRITE = "READ-WRITE"
    READ_ONLY = "READ-ONLY"


@dataclass(frozen=True, slots=True)
class Resynchronise:
    """SELECT's QRESYNC parameter (RFC 7162 3.2.5); uids None: all known."""

    uidvalidity: int
    modseq: int
    uids: SequenceSet | None
    matches: tuple[SequenceSet, SequenceSet] | None


@dataclass(frozen=True, slots=True)
class Select:
    """SELECT and EXAMINE."""

    mailbox: str
    access: Access
    condstore: bool = False
    qresync: Resynchronise | None = None


@dataclass(frozen=True, slots=True)
class Create:
    """CREATE; special_use: the attributes asked for (RFC 6154 3)."""

    mailbox: str
    special_use: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Delete:
    """DELETE."""

    mailbox: str


@dataclass(frozen=True, slots=True)
class Rename:
    """RENAME."""

    mailbox: str
    new_name: str


@dataclass(frozen=True, slots=True)
class Subscribe:
    """SUBSCRIBE and UNSUBSCRIBE."""

    mailbox: str
    subscribed: bool


@dataclass(frozen=True, slots=True)
class Listing:
    """LIST in basic and extended form (RFC 5258, 5819, 6154).

    selection: SUBSCRIBED, REMOTE, RECURSIVEMATCH, SPECIAL-USE. returns: SUBSCRIBED,
    CHILDREN, SPECIAL-USE. extended: the client wrote options or a list of patterns.
    """

    reference: str
    patterns: tuple[str, ...]
    selection: frozenset[str] = frozenset()
    returns: frozenset[str] = frozenset()
    status: tuple[str, ...] = ()
    extended: bool = False


@dataclass(frozen=True, slots=True)
class SubscribedListing:
    """LSUB (RFC 3501 6.3.9)."""

    reference: str
    pattern: str


@dataclass(frozen=True, slots=True)
class Namespace:
    """NAMESPACE."""


@dataclass(frozen=True, slots=True)
class Status:
    """STATUS; items in capitals, in the order asked."""

    mailbox: str
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Append:
    """The head of APPEND, up to its first literal; internal_date in microseconds, None if absent."""

    mailbox: str
    flags: int
    keywords: tuple[str, ...]
    internal_date: int | None


@dataclass(frozen=True, slots=True)
class Idle:
    """IDLE."""


@dataclass(frozen=True, slots=True)
class Close:
    """CLOSE."""


@dataclass(frozen=True, slots=True)
class Unselect:
    """UNSELECT."""


@dataclass(frozen=True, slots=True)
class Expunge:
    """EXPUNGE, and UID EXPUNGE with its set."""

    uids: SequenceSet | None


class Numbering(Enum):
    """What the numbers of a command's sets are."""

    MESSAGE = "message"
    UID = "uid"


class FetchAttribute(Enum):
    """The attributes without a section."""

    UID = "UID"
    FLAGS = "FLAGS"
    INTERNALDATE = "INTERNALDATE"
    SIZE = "RFC822.SIZE"
    ENVELOPE = "ENVELOPE"
    BODY = "BODY"
    BODYSTRUCTURE = "BODYSTRUCTURE"
    MODSEQ = "MODSEQ"


class SectionText(Enum):
    """What of a part a section names."""

    WHOLE = ""
    HEADER = "HEADER"
    HEADER_FIELDS = "HEADER.FIELDS"
    HEADER_FIELDS_NOT = "HEADER.FIELDS.NOT"
    TEXT = "TEXT"
    MIME = "MIME"


@dataclass(frozen=True, slots=True)
class Section:
    """BODY[…]<…>, and RFC822 and its kin under their own labels.

    path: part numbers from the outermost. fields: lower case, as compared. partial:
    (offset, octets). label: what the response calls it, without the origin octet.
    """

    label: bytes
    text: SectionText = SectionText.WHOLE
    path: tuple[int, ...] = ()
    fields: frozenset[bytes] = frozenset()
    partial: tuple[int, int] | None = None
    peek: bool = True


FetchItem = FetchAttribute | Section


@dataclass(frozen=True, slots=True)
class Fetch:
    """FETCH and UID FETCH; changed_since and vanished by RFC 7162."""

    messages: SequenceSet
    items: tuple[FetchItem, ...]
    numbering: Numbering
    changed_since: int | None = None
    vanished: bool = False


class StoreMode(Enum):
    """What STORE does with its flags."""

    SET = "FLAGS"
    ADD = "+FLAGS"
    REMOVE = "-FLAGS"


class Echo(Enum):
    """Whether STORE's changes are told back."""

    TOLD = ""
    SILENT = ".SILENT"


@dataclass(frozen=True, slots=True)
class Store:
    """STORE and UID STORE."""

    messages: SequenceSet
    mode: StoreMode
    echo: Echo
    flags: int
    keywords: tuple[str, ...]
    numbering: Numbering
    unchanged_since: int | None = None


@dataclass(frozen=True, slots=True)
class Copy:
    """COPY and UID COPY."""

    messages: SequenceSet
    mailbox: str
    numbering: Numbering


@dataclass(frozen=True, slots=True)
class Move:
    """MOVE and UID MOVE (RFC 6851)."""

    messages: SequenceSet
    mailbox: str
    numbering: Numbering


@dataclass(frozen=True, slots=True)
class All:
    """Every message: the search key ALL, and the empty conjunction."""


@dataclass(frozen=True, slots=True)
class And:
    """Every key of several."""

    keys: tuple[SearchKey, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Either key of two."""

    left: SearchKey
    right: SearchKey


@dataclass(frozen=True, slots=True)
class Not:
    """The messages that a key does not match."""

    key: SearchKey


@dataclass(frozen=True, slots=True)
class Flagged:
    """A system flag that is set."""

    flag: int


@dataclass(frozen=True, slots=True)
class Keyword:
    """A keyword that is set, lower case: keywords compare without case."""

    name: str


@dataclass(frozen=True, slots=True)
class Recent:
    """The \\Recent flag."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """Message numbers or UIDs."""

    messages: SequenceSet
    numbering: Numbering


@dataclass(frozen=True, slots=True)
class Header:
    """A field (lower case) whose decoded value contains value (case-folded); '' asks for presence."""

    field: str
    value: str


class TextScope(Enum):
    """Where a text is looked for."""

    TEXT = "header and body"
    BODY = "body"


@dataclass(frozen=True, slots=True)
class Text:
    """TEXT and BODY; value is case-folded."""

    scope: TextScope
    value: str


class DateField(Enum):
    """Which date of a message is compared."""

    INTERNAL = "internal date"
    SENT = "Date field"


class Relation(Enum):
    """How it is compared."""

    BEFORE = "before"
    ON = "on"
    SINCE = "since"


@dataclass(frozen=True, slots=True)
class Dated:
    """A day, as a proleptic ordinal, disregarding time and zone (RFC 9051 6.4.4)."""

    field: DateField
    relation: Relation
    day: int


@dataclass(frozen=True, slots=True)
class Within:
    """An internal date at most (YOUNGER) or at least (OLDER) seconds ago (RFC 5032)."""

    relation: Relation
    seconds: int


class SizeRelation(Enum):
    """LARGER or SMALLER."""

    LARGER = "larger"
    SMALLER = "smaller"


@dataclass(frozen=True, slots=True)
class Sized:
    """RFC822.SIZE beyond octets."""

    relation: SizeRelation
    octets: int


@dataclass(frozen=True, slots=True)
class ModifiedSince:
    """A mod-sequence of at least modseq (RFC 7162 3.1.5)."""

    modseq: int


SearchKey = (
    All
    | And
    | Or
    | Not
    | Flagged
    | Keyword
    | Recent
    | Numbers
    | Header
    | Text
    | Dated
    | Within
    | Sized
    | ModifiedSince
)


@dataclass(frozen=True, slots=True)
class Search:
    """SEARCH and UID SEARCH; returns: MIN, MAX, ALL, COUNT, SAVE, or None for the old response."""

    key: SearchKey
    numbering: Numbering
    returns: frozenset[str] | None = None


ImapCommand = (
    Capability
    | Noop
    | Check
    | Logout
    | StartTls
    | Authenticate
    | Login
    | Enable
    | Identify
    | Select
    | Create
    | Delete
    | Rename
    | Subscribe
    | Listing
    | SubscribedListing
    | Namespace
    | Status
    | Append
    | Idle
    | Close
    | Unselect
    | Expunge
    | Fetch
    | Store
    | Copy
    | Move
    | Search
)


@dataclass(frozen=True, slots=True)
class Tagged:
    """A command with the tag that its answer bears."""

    tag: bytes
    command: ImapCommand
