"""Which command is allowed when, what each announces, and what may be told behind it.

Owns the states of a session, the table of commands by state, the capability
lists and the rule for untagged EXPUNGE. Pure: asks nothing, remembers nothing.
One command runs at a time on a connection, so no ambiguity of RFC 9051 5.5 can
arise. RFC 9051 3, 5.5, 7.5.1 and 6, RFC 5161, 7162 3.1.
"""

from __future__ import annotations

from enum import Enum

from server.imap import commands as c


class State(Enum):
    """RFC 9051 3."""

    NOT_AUTHENTICATED = "not authenticated"
    AUTHENTICATED = "authenticated"
    SELECTED = "selected"
    LOGOUT = "logout"


class Security(Enum):
    """Whether the connection is encrypted."""

    PLAIN = "plain"
    TLS = "TLS"


class Telling(Enum):
    """What of the mailbox's changes may be told when a command ends."""

    ALL = "all"
    NO_EXPUNGE = "all but what renumbers"
    NOTHING = "nothing"


_ANY = frozenset(State) - {State.LOGOUT}
_BEFORE = frozenset({State.NOT_AUTHENTICATED})
_AFTER = frozenset({State.AUTHENTICATED, State.SELECTED})
_SELECTED = frozenset({State.SELECTED})

_STATES: dict[type, frozenset[State]] = {
    c.Capability: _ANY,
    c.Noop: _ANY,
    c.Logout: _ANY,
    c.Identify: _ANY,
    c.StartTls: _BEFORE,
    c.Authenticate: _BEFORE,
    c.Login: _BEFORE,
    **dict.fromkeys(
        (
            c.Enable, c.Select, c.Create, c.Delete, c.Rename, c.Subscribe, c.Listing,
            c.SubscribedListing, c.Namespace, c.Status, c.Append, c.Idle,
        ),
        _AFTER,
    ),
    **dict.fromkeys(
        (c.Check, c.Close, c.Unselect, c.Expunge, c.Fetch, c.Store, c.Copy, c.Move, c.Search), _SELECTED
    ),
}  # fmt: skip

# What changes a mailbox; refused where it was selected by EXAMINE.
_WRITING = (c.Store, c.Expunge, c.Move)

ENABLED = frozenset({"CONDSTORE", "QRESYNC"})

_COMMON = ("IMAP4rev1", "SASL-IR", "LITERAL+", "ID", "ENABLE", "IDLE")
_SELECTED_EXTENSIONS = (
    "NAMESPACE", "UIDPLUS", "UNSELECT", "CHILDREN", "SPECIAL-USE", "CREATE-SPECIAL-USE",
    "LIST-EXTENDED", "LIST-STATUS", "STATUS=SIZE", "MOVE", "ESEARCH", "SEARCHRES", "WITHIN",
    "CONDSTORE", "QRESYNC",
)  # fmt: skip


def refusal(command: c.ImapCommand, state: State) -> str | None:
    """Return why a command is out of place in a state, None where it is not."""
    if state in _STATES[type(command)]:
        return None
    if state is State.NOT_AUTHENTICATED:
        return "Log in first"
    return "Already logged in" if type(command) in _before_types else "No mailbox is selected"


_before_types = frozenset(kind for kind, states in _STATES.items() if states is _BEFORE)


def writes(command: c.ImapCommand) -> bool:
    """Whether a command changes the selected mailbox."""
    return isinstance(command, _WRITING)


def telling(command: c.ImapCommand) -> Telling:
    """Return what may be told before a command's tagged response."""
    if isinstance(command, (c.Fetch, c.Store, c.Search)):
        # RFC 9051 7.5.1: EXPUNGE never while FETCH, STORE or SEARCH runs; their UID forms may.
        return Telling.NO_EXPUNGE if command.numbering is c.Numbering.MESSAGE else Telling.ALL
    if isinstance(command, (c.Logout, c.Select, c.Close, c.Unselect)):
        return Telling.NOTHING
    return Telling.ALL


def condstore_enabling(command: c.ImapCommand) -> bool:
    """Whether a command turns CONDSTORE on by what it asks (RFC 7162 3.1)."""
    match command:
        case c.Select():
            return command.condstore or command.qresync is not None
        case c.Status():
            return "HIGHESTMODSEQ" in command.items
        case c.Fetch():
            return command.changed_since is not None or c.FetchAttribute.MODSEQ in command.items
        case c.Store():
            return command.unchanged_since is not None
        case c.Search():
            return asks_modseq(command.key)
        case c.Enable():
            return not ENABLED.isdisjoint(command.names)
        case _:
            return False


def asks_modseq(key: c.SearchKey) -> bool:
    """Whether MODSEQ stands anywhere in a search key."""
    waiting: list[c.SearchKey] = [key]
    while waiting:
        match waiting.pop():
            case c.ModifiedSince():
                return True
            case c.And(keys):
                waiting.extend(keys)
            case c.Or(left, right):
                waiting += (left, right)
            case c.Not(inner):
                waiting.append(inner)
    return False


def capabilities(state: State, security: Security, *, append_octets: int) -> bytes:
    """Return the capability list for a state: names separated by spaces."""
    names = list(_COMMON)
    if state is State.NOT_AUTHENTICATED:
        if security is Security.TLS:
            names += ("AUTH=PLAIN", "AUTH=LOGIN")
        else:
            names += ("STARTTLS", "LOGINDISABLED")
    else:
        names += (*_SELECTED_EXTENSIONS, f"APPENDLIMIT={append_octets}")
    return " ".join(names).encode()
