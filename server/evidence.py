"""What is known of a session and a message, as the facts that policy asks for.

Owns the reading of a message's header at intake and the values of the facts that
policies.facts declares, stage by stage. Judges nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.mail import header, structure
from server.mail.address import AddressSyntax, Mailbox, domain_of, parse_mailbox
from server.mail.address_list import HeaderAddress, parse_address_list
from storage.records import Envelope, Peer, Recipient, Source, Spooled, Verdict

if TYPE_CHECKING:
    from server.login import Identity
    from storage.store import Store

HEADER_LIMIT_OCTETS = 1 << 20
NAMES_LIMIT = 1000

Facts = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Letter:
    """A message's header as intake needs it.

    header_octets: with the blank line. from_addresses: every mailbox of every From
    field; from_readable: whether all of them are addresses. names: field names in
    lower case, each once, bounded. attachments: counts them when asked.
    """

    octets: int
    header_octets: int
    from_fields: int
    from_readable: bool
    from_addresses: tuple[str, ...]
    subject: str
    message_id: str
    has_date: bool
    has_bcc: bool
    received_count: int
    names: tuple[str, ...]
    precedence: str
    auto_submitted: str
    attachments: Callable[[], int]


def read(content: bytes | Spooled, store: Store) -> Letter:
    """Return the facts of a message's header; opens the file where the content is spooled."""
    if isinstance(content, bytes):
        return of_header(content, len(content), lambda: count_attachments(content))
    path = store.read_spooled(content)
    with open(path, "rb") as file:
        beginning = file.read(HEADER_LIMIT_OCTETS)
    return of_header(beginning, content.octets, lambda: count_attachments(path.read_bytes()))


def of_header(beginning: bytes, octets: int, attachments: Callable[[], int]) -> Letter:
    """Return the facts of the header that a message begins with; octets is the message's size."""
    header_octets = header.split(beginning)
    first: dict[bytes, bytes] = {}
    received = from_fields = 0
    addresses: list[str | None] = []
    for field in header.fields(beginning[:header_octets]):
        name = field.name.lower()
        first.setdefault(name, field.value)
        if name == b"received":
            received += 1
        elif name == b"from":
            from_fields += 1
            addresses.extend(_addresses(field.value))
    return Letter(
        octets=octets,
        header_octets=header_octets,
        from_fields=from_fields,
        from_readable=bool(addresses) and None not in addresses,
        from_addresses=tuple(address for address in addresses if address is not None),
        subject=header.decode(first.get(b"subject", b"")),
        message_id=_word(first, b"message-id"),
        has_date=b"date" in first,
        has_bcc=b"bcc" in first,
        received_count=received,
        names=tuple(name.decode("ascii", "replace") for name in list(first)[:NAMES_LIMIT]),
        precedence=_word(first, b"precedence").lower(),
        auto_submitted=_word(first, b"auto-submitted").lower(),
        attachments=attachments,
    )


def _word(first: Mapping[bytes, bytes], name: bytes) -> str:
    return first.get(name, b"").decode("ascii", "replace")


def _addresses(value: bytes) -> list[str | None]:
    """Return each mailbox of a From field; None stands for one that is no valid address."""
    return [_address(entry) for entry in parse_address_list(value) if entry.is_mailbox]


def _address(entry: HeaderAddress) -> str | None:
    if not entry.local or not entry.domain:
        return None
    written = Mailbox(entry.local.decode("utf-8", "replace"), entry.domain.decode("utf-8", "replace"))
    try:
        return str(parse_mailbox(str(written), smtputf8=True))
    except AddressSyntax:
        return None


def count_attachments(content: bytes) -> int:
    """Return how many parts of a message are attachments: said so, or named and not text."""
    waiting, found = [structure.scan(content)], 0
    while waiting:
        part = waiting.pop()
        waiting.extend(part.parts)
        found += part.is_attachment
    return found


class Gathered(dict[str, object]):
    """Facts by name; those that cost work to find are computed when a rule asks for them."""

    def __init__(self, known: Facts, costly: Mapping[str, Callable[[], object]]) -> None:
        super().__init__(known)
        self._costly = costly

    def __missing__(self, name: str) -> object:
        value = self[name] = self._costly[name]()
        return value

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self._costly


def of_peer(peer: Peer) -> dict[str, object]:
    """Return the facts of a session."""
    return {
        "client_ip": peer.address,
        "client_port": peer.port,
        "reverse_name": (peer.reverse_name or "").lower(),
        "tls": peer.tls_version is not None,
        "tls_version": peer.tls_version or "",
        "helo": peer.helo.lower(),
    }


def of_envelope(
    peer: Peer, identity: Identity | None, envelope: Envelope, *, source: Source, declared_octets: int
) -> dict[str, object]:
    """Return the facts of a transaction at MAIL."""
    sender = envelope.reverse_path or ""
    return {
        **of_peer(peer),
        "source": source.value,
        "authenticated": identity is not None,
        "identity": identity.id if identity else "",
        "scopes": sorted(identity.scopes) if identity else [],
        "sender": sender.lower(),
        "sender_domain": _domain(sender),
        "is_bounce": envelope.reverse_path is None,
        "smtputf8": envelope.smtputf8,
        "declared_octets": declared_octets,
    }


def of_recipient(
    peer: Peer, identity: Identity | None, envelope: Envelope, *, source: Source, recipient: Recipient
) -> dict[str, object]:
    """Return the facts of a transaction at RCPT; envelope holds the recipients before this one."""
    return {
        **of_envelope(peer, identity, envelope, source=source, declared_octets=0),
        "recipient": recipient.address.lower(),
        "recipient_domain": _domain(recipient.address),
        "recipient_count": len(envelope.recipients) + 1,
    }


def of_message(
    peer: Peer,
    identity: Identity | None,
    envelope: Envelope,
    *,
    source: Source,
    letter: Letter,
    verdicts: Sequence[Verdict],
    organization_id: str,
) -> Gathered:
    """Return the facts of a whole message for the recipients of one organization."""
    header_from = letter.from_addresses[0].lower() if letter.from_addresses else ""
    known = {
        **of_envelope(peer, identity, envelope, source=source, declared_octets=letter.octets),
        **of_verdicts(verdicts),
        "recipient_count": len(envelope.recipients),
        "recipients": [recipient.address.lower() for recipient in envelope.recipients],
        "organization_id": organization_id,
        "inbox_id": (identity.mailbox_id if identity else None) or "",
        "size_octets": letter.octets,
        "header_from": header_from,
        "header_from_domain": _domain(header_from),
        "header_from_count": len(letter.from_addresses),
        "subject": letter.subject.lower(),
        "message_id": letter.message_id,
        "header_names": list(letter.names),
        "received_count": letter.received_count,
        "list_unsubscribe": "list-unsubscribe" in letter.names,
        "precedence": letter.precedence,
        "auto_submitted": letter.auto_submitted,
    }
    return Gathered(known, {"attachments": letter.attachments})


def of_placement(message: Gathered, recipient: str, mailbox_id: str) -> Gathered:
    """Return the facts of a message about to be placed into one inbox."""
    placed = Gathered(message, message._costly)
    placed.update(recipient=recipient.lower(), recipient_domain=_domain(recipient), inbox_id=mailbox_id)
    return placed


def of_verdicts(verdicts: Sequence[Verdict]) -> dict[str, object]:
    """Return the facts of sender authentication; 'none' stands for what was not checked."""
    by_method: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        by_method.setdefault(verdict.method, []).append(verdict)
    signatures = by_method.get("dkim", [])
    passing = [verdict.domain for verdict in signatures if verdict.result == "pass"]
    spf = _first(by_method, "spf")
    dmarc = _first(by_method, "dmarc")
    return {
        "spf": spf.result,
        "spf_domain": spf.domain,
        "dkim": passing,
        "dkim_result": "pass" if passing else signatures[0].result if signatures else "none",
        "dmarc": dmarc.result,
        "dmarc_policy": dmarc.properties.get("policy.dmarc", ""),
        "dmarc_domain": dmarc.domain,
        "arc": _first(by_method, "arc").result,
    }


def _first(by_method: Mapping[str, list[Verdict]], method: str) -> Verdict:
    found = by_method.get(method)
    return found[0] if found else Verdict(method, "none")


def _domain(address: str) -> str:
    try:
        return domain_of(address)
    except AddressSyntax:
        return ""
