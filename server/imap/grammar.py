"""From a whole command's octets to one typed command.

Owns the forms of all commands but the keys of SEARCH and the attributes of
FETCH, which have files of their own. Pure; raises ImapSyntax and nothing else,
with the command's tag where one could be read. RFC 9051 6 and 9, RFC 3501 6.
"""

from __future__ import annotations

from collections.abc import Callable

from server.imap import commands as c
from server.imap.fetch_grammar import parse_fetch_items
from server.imap.scanner import MODSEQ_LARGEST, ImapSyntax, Scanner, mailbox_name
from server.imap.search_grammar import parse_search
from server.imap.sequence import SequenceSet

ID_PAIRS = 30  # RFC 2971 3.3
PATTERNS = 64

STATUS_ITEMS = frozenset(
    {"MESSAGES", "RECENT", "UIDNEXT", "UIDVALIDITY", "UNSEEN", "HIGHESTMODSEQ", "SIZE", "DELETED"}
)
SELECTION_OPTIONS = frozenset({"SUBSCRIBED", "REMOTE", "RECURSIVEMATCH", "SPECIAL-USE"})
RETURN_OPTIONS = frozenset({"SUBSCRIBED", "CHILDREN", "SPECIAL-USE"})


def parse(data: bytes) -> c.Tagged:
    """Read one command without its line end; raises ImapSyntax."""
    return _tagged(data, _command)


def parse_append(head: bytes) -> c.Tagged:
    """Read APPEND up to its first message literal; raises ImapSyntax."""
    return _tagged(head, _append_command)


def tag_of(head: bytes) -> bytes:
    """Return the tag at the start of a command that is not otherwise readable, b'' if there is none."""
    try:
        return Scanner(head).tag() if b" " in head else b""
    except ImapSyntax:
        return b""


def _tagged(data: bytes, body: Callable[[Scanner], c.ImapCommand]) -> c.Tagged:
    scanner = Scanner(data)
    tag = b""
    try:
        tag = scanner.tag()
        scanner.space()
        command = body(scanner)
        scanner.end()
    except ImapSyntax as error:
        error.tag = tag
        raise
    return c.Tagged(tag, command)


def _command(scanner: Scanner) -> c.ImapCommand:
    name = scanner.word("a command")
    if name == "UID":
        scanner.space()
        name = scanner.word("a command that UID goes with")
        form = _WITH_UID.get(name)
        if form is None:
            raise ImapSyntax(f"UID does not go with {name[:32]}")
        return form(scanner, c.Numbering.UID)
    plain = _PLAIN.get(name)
    if plain is not None:
        return plain(scanner)
    form = _WITH_NUMBERS.get(name)
    if form is None:
        raise ImapSyntax(f"Unknown command {name[:32]}")
    return form(scanner, c.Numbering.MESSAGE)


def _bare(command: c.ImapCommand) -> Callable[[Scanner], c.ImapCommand]:
    def read(_scanner: Scanner) -> c.ImapCommand:
        return command

    return read


def _authenticate(scanner: Scanner) -> c.Authenticate:
    scanner.space()
    mechanism = scanner.atom("a SASL mechanism").upper().decode()
    if scanner.ended:
        return c.Authenticate(mechanism, None)
    scanner.space()
    start, scanner.at = scanner.at, len(scanner.data)
    # RFC 4959 3: '=' is an initial response of no octets.
    initial = scanner.data[start:]
    return c.Authenticate(mechanism, b"" if initial == b"=" else initial)


def _login(scanner: Scanner) -> c.Login:
    scanner.space()
    user = scanner.astring("a user name")
    scanner.space()
    return c.Login(user, scanner.astring("a password"))


def _enable(scanner: Scanner) -> c.Enable:
    names = []
    while scanner.took(b" "):
        names.append(scanner.atom("a capability").upper().decode())
    if not names:
        scanner.refuse("a capability")
    return c.Enable(tuple(names))


def _identify(scanner: Scanner) -> c.Identify:
    scanner.space()
    if scanner.took(b"NIL"):
        return c.Identify(())
    scanner.expect(b"(")
    pairs: list[tuple[str, str]] = []
    while not scanner.took(b")"):
        if pairs:
            scanner.space()
        name = scanner.string("a field name")
        scanner.space()
        value = scanner.nstring("a field value")
        pairs.append((name.decode(errors="replace").lower(), (value or b"").decode(errors="replace")))
        if len(pairs) > ID_PAIRS:
            raise ImapSyntax("Too many ID fields")
    return c.Identify(tuple(pairs))


def _select(scanner: Scanner, access: c.Access) -> c.Select:
    scanner.space()
    mailbox = scanner.mailbox()
    if scanner.ended:
        return c.Select(mailbox, access)
    scanner.space()
    scanner.expect(b"(")
    condstore, qresync = False, None
    while True:
        name = scanner.word("a SELECT parameter")
        if name == "CONDSTORE":
            condstore = True
        elif name == "QRESYNC":
            scanner.space()
            qresync = _resynchronise(scanner)
        else:
            raise ImapSyntax(f"Unknown SELECT parameter {name[:32]}")
        if not scanner.took(b" "):
            break
    scanner.expect(b")")
    return c.Select(mailbox, access, condstore, qresync)


def _resynchronise(scanner: Scanner) -> c.Resynchronise:
    scanner.expect(b"(")
    uidvalidity = scanner.number("a UIDVALIDITY")
    scanner.space()
    modseq = scanner.number("a mod-sequence", largest=MODSEQ_LARGEST)
    uids, matches = None, None
    if scanner.took(b" "):
        if not scanner.next_is(b"("):
            uids = scanner.sequence_set()
        if uids is None or scanner.took(b" "):
            scanner.expect(b"(")
            numbers = scanner.sequence_set()
            scanner.space()
            matches = (numbers, scanner.sequence_set())
            scanner.expect(b")")
    scanner.expect(b")")
    return c.Resynchronise(uidvalidity, modseq, uids, matches)


def _create(scanner: Scanner) -> c.Create:
    scanner.space()
    mailbox = scanner.mailbox()
    if not scanner.took(b" (USE ("):
        return c.Create(mailbox)
    uses = []
    while True:
        scanner.expect(b"\\")
        uses.append("\\" + scanner.atom("a special use").decode().capitalize())
        if not scanner.took(b" "):
            break
    scanner.expect(b"))")
    return c.Create(mailbox, tuple(uses))


def _delete(scanner: Scanner) -> c.Delete:
    scanner.space()
    return c.Delete(scanner.mailbox())


def _rename(scanner: Scanner) -> c.Rename:
    scanner.space()
    mailbox = scanner.mailbox()
    scanner.space()
    return c.Rename(mailbox, scanner.mailbox())


def _subscription(*, subscribed: bool) -> Callable[[Scanner], c.ImapCommand]:
    def read(scanner: Scanner) -> c.Subscribe:
        scanner.space()
        return c.Subscribe(scanner.mailbox(), subscribed)

    return read


def _listing(scanner: Scanner) -> c.Listing:
    scanner.space()
    selection: tuple[str, ...] = ()
    extended = scanner.next_is(b"(")
    if extended:
        selection = scanner.words("a selection option")
        _known(selection, SELECTION_OPTIONS)
        if set(selection) <= {"RECURSIVEMATCH", "REMOTE"} and "RECURSIVEMATCH" in selection:
            raise ImapSyntax("RECURSIVEMATCH needs another selection option")  # RFC 5258 3.1
        scanner.space()
    reference = _pattern(scanner.astring("a reference name"))
    scanner.space()
    patterns = _patterns(scanner)
    extended = extended or len(patterns) != 1
    returns: frozenset[str] = frozenset()
    status: tuple[str, ...] = ()
    if scanner.took(b" RETURN "):
        extended = True
        returns, status = _return_options(scanner)
    return c.Listing(reference, patterns, frozenset(selection), returns, status, extended)


def _patterns(scanner: Scanner) -> tuple[str, ...]:
    if not scanner.took(b"("):
        return (_pattern(scanner.list_mailbox()),)
    patterns = []
    while True:
        patterns.append(_pattern(scanner.list_mailbox()))
        if len(patterns) > PATTERNS:
            raise ImapSyntax("Too many patterns")
        if not scanner.took(b" "):
            break
    scanner.expect(b")")
    return tuple(patterns)


# A pattern that no name can match: control characters are in none.
_NOTHING = "\0"


def _pattern(text: bytes) -> str:
    # Wildcards are printable ASCII and stand for themselves in modified UTF-7. What is none names no mailbox.
    try:
        return mailbox_name(text)
    except ImapSyntax:
        return _NOTHING


def _return_options(scanner: Scanner) -> tuple[frozenset[str], tuple[str, ...]]:
    scanner.expect(b"(")
    options: set[str] = set()
    status: tuple[str, ...] = ()
    while not scanner.took(b")"):
        if options or status:
            scanner.space()
        name = scanner.word("a return option")
        if name == "STATUS":
            scanner.space()
            status = _status_items(scanner)
        else:
            _known((name,), RETURN_OPTIONS)
            options.add(name)
    return frozenset(options), status


def _known(names: tuple[str, ...], allowed: frozenset[str]) -> None:
    for name in names:
        if name not in allowed:
            raise ImapSyntax(f"Unknown option {name[:32]}")


def _subscribed_listing(scanner: Scanner) -> c.SubscribedListing:
    scanner.space()
    reference = _pattern(scanner.astring("a reference name"))
    scanner.space()
    return c.SubscribedListing(reference, _pattern(scanner.list_mailbox()))


def _status(scanner: Scanner) -> c.Status:
    scanner.space()
    mailbox = scanner.mailbox()
    scanner.space()
    return c.Status(mailbox, _status_items(scanner))


def _status_items(scanner: Scanner) -> tuple[str, ...]:
    items = scanner.words("a status item")
    for name in items:
        if name not in STATUS_ITEMS:
            raise ImapSyntax(f"Unknown status item {name[:32]}")
    if not items:
        raise ImapSyntax("No status item given")
    return tuple(dict.fromkeys(items))


def _append_command(scanner: Scanner) -> c.Append:
    scanner.expect(b"APPEND ")
    mailbox = scanner.mailbox()
    scanner.space()
    flags: tuple[int, tuple[str, ...]] = (0, ())
    moment = None
    if scanner.next_is(b"("):
        flags = scanner.flags()
        scanner.space()
    if scanner.next_is(b'"'):
        moment = scanner.date_time()
        scanner.space()
    if not scanner.ended:
        scanner.refuse("flags, a date-time or the message as a literal")
    return c.Append(mailbox, *flags, moment)


def _append_without_literal(scanner: Scanner) -> c.ImapCommand:
    scanner.at = len(scanner.data)
    scanner.refuse("the message as a literal")


def _expunge(scanner: Scanner, _numbering: c.Numbering) -> c.Expunge:
    scanner.space()
    return c.Expunge(scanner.sequence_set())


def _fetch(scanner: Scanner, numbering: c.Numbering) -> c.Fetch:
    scanner.space()
    messages = scanner.sequence_set()
    scanner.space()
    items = parse_fetch_items(scanner)
    changed_since, vanished = None, False
    if scanner.took(b" ("):
        scanner.expect(b"CHANGEDSINCE ")
        changed_since = scanner.number("a mod-sequence", largest=MODSEQ_LARGEST)
        vanished = scanner.took(b" VANISHED")
        scanner.expect(b")")
    if vanished and numbering is not c.Numbering.UID:
        raise ImapSyntax("VANISHED goes with UID FETCH only")  # RFC 7162 3.2.6
    return c.Fetch(messages, items, numbering, changed_since, vanished)


def _store(scanner: Scanner, numbering: c.Numbering) -> c.Store:
    scanner.space()
    messages = scanner.sequence_set()
    unchanged_since = None
    if scanner.took(b" (UNCHANGEDSINCE "):
        unchanged_since = scanner.number("a mod-sequence", largest=MODSEQ_LARGEST)
        scanner.expect(b")")
    scanner.space()
    name = scanner.word("FLAGS, +FLAGS or -FLAGS")
    plain = name.removesuffix(".SILENT")
    if plain not in ("FLAGS", "+FLAGS", "-FLAGS"):
        raise ImapSyntax(f"STORE cannot change {name[:32]}")
    echo = c.Echo.TOLD if plain == name else c.Echo.SILENT
    scanner.space()
    flags, keywords = scanner.flags()
    return c.Store(messages, c.StoreMode(plain), echo, flags, keywords, numbering, unchanged_since)


def _copy(scanner: Scanner, numbering: c.Numbering) -> c.Copy:
    return c.Copy(*_messages_and_mailbox(scanner), numbering)


def _move(scanner: Scanner, numbering: c.Numbering) -> c.Move:
    return c.Move(*_messages_and_mailbox(scanner), numbering)


def _messages_and_mailbox(scanner: Scanner) -> tuple[SequenceSet, str]:
    scanner.space()
    messages = scanner.sequence_set()
    scanner.space()
    return messages, scanner.mailbox()


_PLAIN: dict[str, Callable[[Scanner], c.ImapCommand]] = {
    "CAPABILITY": _bare(c.Capability()),
    "NOOP": _bare(c.Noop()),
    "CHECK": _bare(c.Check()),
    "LOGOUT": _bare(c.Logout()),
    "STARTTLS": _bare(c.StartTls()),
    "AUTHENTICATE": _authenticate,
    "LOGIN": _login,
    "ENABLE": _enable,
    "ID": _identify,
    "SELECT": lambda scanner: _select(scanner, c.Access.READ_WRITE),
    "EXAMINE": lambda scanner: _select(scanner, c.Access.READ_ONLY),
    "CREATE": _create,
    "DELETE": _delete,
    "RENAME": _rename,
    "SUBSCRIBE": _subscription(subscribed=True),
    "UNSUBSCRIBE": _subscription(subscribed=False),
    "LIST": _listing,
    "LSUB": _subscribed_listing,
    "NAMESPACE": _bare(c.Namespace()),
    "STATUS": _status,
    "APPEND": _append_without_literal,
    "IDLE": _bare(c.Idle()),
    "CLOSE": _bare(c.Close()),
    "UNSELECT": _bare(c.Unselect()),
    "EXPUNGE": _bare(c.Expunge(None)),
}

_WITH_NUMBERS: dict[str, Callable[[Scanner, c.Numbering], c.ImapCommand]] = {
    "FETCH": _fetch,
    "STORE": _store,
    "COPY": _copy,
    "MOVE": _move,
    "SEARCH": parse_search,
}

_WITH_UID: dict[str, Callable[[Scanner, c.Numbering], c.ImapCommand]] = {**_WITH_NUMBERS, "EXPUNGE": _expunge}
