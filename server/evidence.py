"""What is known of a session and a message, as the facts that policy asks for.

Owns the reading of a message's header at intake and the values of the facts that
policies.facts declares, stage by stage. Judges nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from ipaddress import ip_address
from itertools import chain
from typing import TYPE_CHECKING, Protocol

from policies.facts import SCANNER_FACTS
from server.mail import fingerprint, header, structure
from server.mail.address import AddressSyntax, Mailbox, domain_of, parse_mailbox
from server.mail.address_list import HeaderAddress, parse_address_list
from server.origin import NOBODY, Origin, origin_of
from server.routing import is_role
from server.scanners.findings import NOT_CONFIGURED
from storage.records import Envelope, Peer, Source, Spooled, Verdict

if TYPE_CHECKING:
    from server.login import Identity
    from server.routing import Local
    from storage.records import Recipient
    from storage.store import Store

HEADER_LIMIT_OCTETS = (1 << 20) + (64 << 10)  # what a door takes, and trace fields
HEADER_FIRST_OCTETS = 64 << 10
NAMES_LIMIT = 1000
BIMI_OCTETS = 1000
# Facts that the DNS tells of a client, as they are for mail that no client brought.
UNASKED: Mapping[str, object] = {
    "reverse_name": "",
    "reverse_names": [],
    "reverse_status": "",
    "dnsbl_listed": False,
    "dnsbl_score": 0,
    "dnsbl_zones": [],
    "dnswl_listed": False,
    "dnswl_zones": [],
    "helo_status": "",
    "dnsbl_domains": [],
}
_BIMI_SELECTOR = re.compile(r";\s*s\s*=\s*([A-Za-z0-9._-]{1,255})\s*(?:;|$)")
KNOWN_OCTETS = 256  # of a From field that is remembered
OPENING_OCTETS = fingerprint.MAX_OCTETS
NO_ENVELOPE = Envelope(None, ())  # before MAIL


class Letter:
    """A message's header as intake needs it; each fact is read from it when it is first asked for.

    beginning: the message, or as much of it as holds the header. octets: the whole
    message's size. body: returns the whole message, for what the header does not tell.
    """

    def __init__(self, beginning: bytes, octets: int, body: Callable[[], bytes]) -> None:
        self.octets = octets
        self.header_octets = header.split(beginning)
        self._header = header.Header(beginning[: self.header_octets])
        self._opening = beginning if len(beginning) <= OPENING_OCTETS else beginning[:OPENING_OCTETS]
        self._body = body
        self._authors: tuple[int, tuple[str | None, ...]] | None = None

    def _read_authors(self) -> tuple[int, tuple[str | None, ...]]:
        # By hand: in Python 3.11 cached_property takes a lock each time it computes.
        if self._authors is None:
            values = self._header.all(b"from")
            if len(values) == 1:
                self._authors = 1, _authors(values[0])
            else:
                self._authors = len(values), tuple(chain.from_iterable(map(_authors, values)))
        return self._authors

    @property
    def from_fields(self) -> int:
        """How many From fields there are."""
        return self._read_authors()[0]

    @property
    def from_readable(self) -> bool:
        """Whether the From fields name at least one mailbox and nothing that is no address."""
        named = self._read_authors()[1]
        return bool(named) and None not in named

    @property
    def from_addresses(self) -> tuple[str, ...]:
        """Every mailbox of every From field."""
        return tuple(address for address in self._read_authors()[1] if address is not None)

    @property
    def sender_addresses(self) -> tuple[str | None, ...]:
        """What the Sender fields name, None for each that is no address."""
        values = self._header.all(b"sender")
        return tuple(_address(entry) for value in values for entry in parse_address_list(value))

    @cached_property
    def subject(self) -> str:
        """The Subject, decoded."""
        return header.decode(self._header.first(b"subject") or b"")

    def word(self, name: bytes) -> str:
        """Return the first field of a lower-case name as text, '' where there is none."""
        return (self._header.first(name) or b"").decode("ascii", "replace")

    def has(self, name: bytes) -> bool:
        """Whether there is a field of a lower-case name."""
        return self._header.first(name) is not None

    @cached_property
    def received_count(self) -> int:
        """How many Received fields there are."""
        return len(self._header.all(b"received"))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Field names in lower case, each once, NAMES_LIMIT at most."""
        found = dict.fromkeys(field.name.lower() for field in header.fields(self._header.octets))
        return tuple(name.decode("ascii", "replace") for name in list(found)[:NAMES_LIMIT])

    @cached_property
    def bands(self) -> tuple[str, ...]:
        """The fingerprint of the text, from the message's first octets."""
        return fingerprint.of_message(self._opening)

    @cached_property
    def attachments(self) -> int:
        """How many parts are attachments; opens the whole message."""
        return sum(part.is_attachment for part in structure.scan(self._body()).walk())


def _bimi_selector(value: str) -> str:
    """Return what a BIMI-Selector field names (draft-brand-indicators-for-message-identification 4.4)."""
    found = _BIMI_SELECTOR.search(value[:BIMI_OCTETS])
    return found[1].lower() if found and value.replace(" ", "").lower().startswith("v=bimi1") else ""


def read(content: bytes | Spooled, store: Store) -> Letter:
    """Return the facts of a message's header; opens the file where the content is spooled."""
    if isinstance(content, bytes):
        return Letter(content, len(content), lambda: content)
    path = store.read_spooled(content)
    with open(path, "rb") as file:
        beginning = file.read(HEADER_FIRST_OCTETS)
        if header.split(beginning) == len(beginning):
            beginning += file.read(HEADER_LIMIT_OCTETS - len(beginning))
    return Letter(beginning, content.octets, path.read_bytes)


def _authors(value: bytes) -> tuple[str | None, ...]:
    """Return the mailboxes of a From field's value, None for what is no address; few senders write often."""
    return _known_authors(value) if len(value) <= KNOWN_OCTETS else _read_addresses(value)


def _read_addresses(value: bytes) -> tuple[str | None, ...]:
    return tuple(_address(entry) for entry in parse_address_list(value) if entry.is_mailbox)


_known_authors = lru_cache(maxsize=1024)(_read_addresses)


def _address(entry: HeaderAddress) -> str | None:
    if not entry.local or not entry.domain:
        return None
    local, domain = entry.local.decode("utf-8", "replace"), entry.domain.decode("utf-8", "replace")
    try:
        return str(parse_mailbox(str(Mailbox(local, domain)), smtputf8=True))
    except AddressSyntax:
        return None


@dataclass(slots=True)
class Case:
    """What is known at a stage; fields that come later than the stage stay as they are here.

    Changed by nobody, and yet not frozen: that would cost a message two microseconds.
    """

    peer: Peer
    identity: Identity | None = None
    envelope: Envelope = NO_ENVELOPE
    source: Source = Source.MX
    declared_octets: int = 0
    recipient: str = ""
    recipient_count: int = 0
    letter: Letter | None = None
    verdicts: Sequence[Verdict] = ()
    organization_id: str = ""
    mailbox_id: str = ""
    reply_code: int = 0
    reply_status: str = ""
    notice: str = ""
    places: Sequence[tuple[Recipient, Local]] = ()
    scans: Scans | None = None
    own_name: str = ""  # server.hostname, lower-case


class Scans(Protocol):
    """What scanners have said of a message so far."""

    @property
    def known(self) -> Mapping[str, object]:
        """Facts by name."""
        ...

    async def look(self, wanted: Collection[str]) -> None:
        """Have these facts among the known ones."""
        ...


class Facts(dict[str, object]):
    """Facts by name, found when a rule first asks for them.

    written: digests of whom a sent message goes to, where a rule asked who of them is new.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.written: set[bytes] = set()

    def __missing__(self, name: str) -> object:
        found = SOURCES.get(name)
        if found is None:
            if name not in VERIFIED:
                raise KeyError(name)  # what only a look ahead can tell, and did not
            verdicts = of_verdicts(self.case.verdicts) if self.case.verdicts else _UNVERIFIED
            self.update(verdicts)
            return verdicts[name]
        value = self[name] = found(self.case)
        return value


class EarlyFacts(Facts):
    """Facts of a message that is not verified yet: those that the checks and its owner decide are absent."""

    def __missing__(self, name: str) -> object:
        if name in VERIFIED or name in _LATER or name in UNASKED:
            raise KeyError(name)
        return super().__missing__(name)


def of_placement(message: Facts, recipient: str, mailbox_id: str) -> Facts:
    """Return the facts of a message about to be placed into one inbox."""
    return Facts(replace(message.case, recipient=recipient, mailbox_id=mailbox_id))


def origin(case: Case) -> Origin:
    """Return whom a message is from, as far as its receiver can know."""
    letter = case.letter
    if letter is None or letter.from_fields != 1:
        return NOBODY
    return origin_of(letter.from_addresses, case.verdicts, case.peer.address)


def _letter(case: Case) -> Letter:
    assert case.letter is not None, "rules ask for content only where there is content"
    return case.letter


def _author(case: Case) -> str:
    addresses = _letter(case).from_addresses
    return addresses[0].lower() if addresses else ""


def _unasked(value: object, _case: Case) -> object:
    return value


def _reverse_status(case: Case) -> str:
    """As the verdict says where there is one; RFC 8601 2.7.3 calls it a permerror where there is no name."""
    found = next((one.result for one in case.verdicts if one.method == "iprev"), "")
    return "none" if found == "permerror" else found


def _scanned(name: str, case: Case) -> object:
    """A fact of a scanner; KeyError where nobody has waited for it."""
    return (NOT_CONFIGURED if case.scans is None else case.scans.known)[name]


def _helo_form(helo: str) -> str:
    if not helo:
        return ""
    if helo.startswith("["):
        return "literal"
    try:
        ip_address(helo)
    except ValueError:
        return "domain" if "." in helo.strip(".") else "label"
    return "address"


SOURCES: Mapping[str, Callable[[Case], object]] = {
    "client_ip": lambda case: case.peer.address,
    "client_port": lambda case: case.peer.port,
    # Of clients that nobody looked up; server.client_facts puts what it knows in their place.
    **{name: partial(_unasked, value) for name, value in UNASKED.items()},
    "reverse_name": lambda case: (case.peer.reverse_name or "").lower(),
    "reverse_status": _reverse_status,
    "tls": lambda case: case.peer.tls_version is not None,
    "tls_version": lambda case: case.peer.tls_version or "",
    "helo": lambda case: case.peer.helo.lower(),
    "helo_form": lambda case: _helo_form(case.peer.helo),
    "helo_is_ours": lambda case: bool(case.own_name) and case.peer.helo.lower().rstrip(".") == case.own_name,
    "source": lambda case: case.source.value,
    "authenticated": lambda case: case.identity is not None,
    "identity": lambda case: case.identity.id if case.identity else "",
    "scopes": lambda case: sorted(case.identity.scopes) if case.identity else [],
    "sender": lambda case: (case.envelope.reverse_path or "").lower(),
    "sender_domain": lambda case: _domain(case.envelope.reverse_path or ""),
    "is_bounce": lambda case: case.envelope.reverse_path is None,
    # Of mail that is no notice of failure; intake puts what it read and proved in their place.
    "is_dsn": lambda case: False,
    "dsn_proved": lambda case: False,
    "smtputf8": lambda case: case.envelope.smtputf8,
    "declared_octets": lambda case: case.declared_octets,
    "recipient": lambda case: case.recipient.lower(),
    "recipient_domain": lambda case: _domain(case.recipient),
    "recipient_is_role": lambda case: is_role(case.recipient),
    "recipient_count": lambda case: case.recipient_count,
    "recipients": lambda case: [one.address.lower() for one in case.envelope.recipients],
    "organization_id": lambda case: case.organization_id,
    "inbox_id": lambda case: case.mailbox_id,
    "size_octets": lambda case: _letter(case).octets,
    "header_from": _author,
    "header_from_domain": lambda case: _domain(_author(case)),
    "bimi_selector": lambda case: _bimi_selector(_letter(case).word(b"bimi-selector")),
    "header_from_readable": lambda case: _letter(case).from_readable,
    "header_from_fields": lambda case: _letter(case).from_fields,
    "header_from_count": lambda case: len(_letter(case).from_addresses),
    "subject": lambda case: _letter(case).subject.lower(),
    "message_id": lambda case: _letter(case).word(b"message-id"),
    "header_names": lambda case: list(_letter(case).names),
    "received_count": lambda case: _letter(case).received_count,
    "attachments": lambda case: _letter(case).attachments,
    "list_unsubscribe": lambda case: _letter(case).has(b"list-unsubscribe"),
    "precedence": lambda case: _letter(case).word(b"precedence").lower(),
    "reply_code": lambda case: case.reply_code,
    "reply_status": lambda case: case.reply_status,
    "notice": lambda case: case.notice,
    "auto_submitted": lambda case: _letter(case).word(b"auto-submitted").lower(),
    "correspondent_authenticated": lambda case: origin(case).is_authenticated,
    # Of strangers; server.correspondents puts what it knows in their place.
    "correspondent_known": lambda case: False,
    "correspondent_unwanted": lambda case: False,
    "correspondent_domain_unwanted": lambda case: False,
    "correspondent_score": lambda case: 0,
    "correspondent_domain_score": lambda case: 0,
    "owner_wrote_to_sender": lambda case: False,
    **{name: partial(_scanned, name) for name in SCANNER_FACTS},
}
_LATER = frozenset({"organization_id", "inbox_id", "recipient", "recipient_domain"})


def of_verdicts(verdicts: Sequence[Verdict]) -> dict[str, object]:
    """Return the facts of sender authentication; 'none' stands for what was not checked."""
    by_method: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        by_method.setdefault(verdict.method, []).append(verdict)
    signatures = by_method.get("dkim", [])
    passing = [verdict.domain for verdict in signatures if verdict.result == "pass"]
    spf = _first(by_method, "spf")
    dmarc = _first(by_method, "dmarc")
    arc = _first(by_method, "arc")
    return {
        "spf": spf.result,
        "spf_domain": spf.domain,
        "dkim": passing,
        "dkim_result": "pass" if passing else signatures[0].result if signatures else "none",
        "dmarc": dmarc.result,
        "dmarc_policy": dmarc.properties.get("policy.dmarc", ""),
        "dmarc_domain": dmarc.domain,
        "arc": arc.result,
        "arc_sealer": arc.domain,
        "arc_believed": "policy.believed" in arc.properties,
    }


def _first(by_method: Mapping[str, list[Verdict]], method: str) -> Verdict:
    found = by_method.get(method)
    return found[0] if found else Verdict(method, "none")


def _domain(address: str) -> str:
    try:
        return domain_of(address)
    except AddressSyntax:
        return ""


_UNVERIFIED = of_verdicts(())
VERIFIED = frozenset(_UNVERIFIED)
