"""How records become octets: the JSON of the database's columns and the journal's record format.

Owns both, since they share their texts: what the journal keeps of envelope,
peer, decision and verdicts is what the rows say. Every column's object carries
the field names of storage.records. Does no I/O.

A journal record is a header of HEADER_OCTETS and a payload: metadata as JSON,
then trace, prefixes and, unless it is spooled, the content. The header's own
checksum makes its version and lengths worth believing; the payload's covers the
rest. CRC-32 serves: it has to tell torn and rotten records from whole ones, at
a hundredth of a record's cost; message digests (SHA-256) are checked beside it.
"""

import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any

from storage.records import (
    Accepted,
    Action,
    Decision,
    Envelope,
    Event,
    LocalTarget,
    Peer,
    Recipient,
    RemoteTarget,
    RuleTrace,
    Source,
    Spooled,
    Verdict,
)

# A zero octet, which no message content may hold, keeps content from looking like a record.
MAGIC = b"MA\x00J"
VERSION = 1
_HEADER = struct.Struct("<4sHH8sQIII")  # magic, version, 0, instance, sequence, metadata, payload, checksum
_CHECKSUM = struct.Struct("<I")
HEADER_OCTETS = _HEADER.size + _CHECKSUM.size
# What no record reaches: a bound for what a damaged header could claim.
RECORD_OCTETS = 256 << 20

_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_NO_VERDICTS = "[]"
_PEERS_LIMIT = 512
_peers: dict[int, tuple[Peer, str]] = {}


def _names(notify: frozenset[str] | None) -> list[str] | None:
    return None if notify is None else sorted(notify)


def _recipient(recipient: Recipient) -> dict[str, Any]:
    return {"address": recipient.address, "notify": _names(recipient.notify), "orcpt": recipient.orcpt}


def envelope_text(envelope: Envelope) -> str:
    """Return the JSON that messages.envelope holds."""
    fields: dict[str, object] = {
        "reverse_path": envelope.reverse_path,
        "recipients": [_recipient(recipient) for recipient in envelope.recipients],
        "body": envelope.body,
        "smtputf8": envelope.smtputf8,
        "ret": envelope.ret,
        "envid": envelope.envid,
        "require_tls": envelope.require_tls,
    }
    if envelope.hold_until is not None:
        fields["hold_until"] = envelope.hold_until
    if envelope.tls_only:
        fields["tls_only"] = True
    if envelope.ask_in_doubt:
        fields["ask_in_doubt"] = True
    return _encode(fields)


def peer_text(peer: Peer) -> str:
    """Return the JSON that messages.peer holds."""
    # A session brings its messages with one and the same object.
    known = _peers.get(id(peer))
    if known is not None and known[0] is peer:
        return known[1]
    text = _peer_text(peer)
    if len(_peers) >= _PEERS_LIMIT:
        _peers.clear()
    _peers[id(peer)] = peer, text
    return text


def _peer_text(peer: Peer) -> str:
    return _encode(
        {
            "address": peer.address,
            "port": peer.port,
            "helo": peer.helo,
            "extended": peer.extended,
            "tls_version": peer.tls_version,
            "tls_cipher": peer.tls_cipher,
            "reverse_name": peer.reverse_name,
            "identity": peer.identity,
        }
    )


def decision_text(decision: Decision) -> str:
    """Return the JSON that messages.decision holds."""
    if decision is PLAIN or decision == PLAIN:
        return _PLAIN_TEXT
    return _decision_text(decision)


def _decision_text(decision: Decision) -> str:
    fields: dict[str, Any] = {
        "action": decision.action.value,
        "code": decision.code,
        "enhanced": decision.enhanced,
        "text": decision.text,
        "tags": decision.tags,
        "headers": decision.headers,
        "redirect": decision.redirect,
        "trace": [
            {
                "rule": step.rule,
                "stage": step.stage,
                "matched": step.matched,
                "effect": step.effect,
                "place": step.place,
            }
            for step in decision.trace
        ],
    }
    # Rare, and absent from what earlier versions wrote.
    if decision.copies or decision.forwards:
        fields |= {"copies": decision.copies, "forwards": decision.forwards}
    if decision.priority:
        fields["priority"] = decision.priority
    if decision.reason:
        fields["reason"] = decision.reason
    return _encode(fields)


def verdicts_text(verdicts: tuple[Verdict, ...]) -> str:
    """Return the JSON that messages.verdicts holds."""
    if not verdicts:
        return _NO_VERDICTS
    return _encode(
        [
            {
                "method": verdict.method,
                "result": verdict.result,
                "domain": verdict.domain,
                "reason": verdict.reason,
                "properties": dict(verdict.properties),
            }
            for verdict in verdicts
        ]
    )


PLAIN = Decision()
_PLAIN_TEXT = _decision_text(PLAIN)


def data_text(event: Event) -> str:
    """Return the JSON that events.data holds."""
    return _encode(dict(event.data)) if event.data else "{}"


def read_envelope(text: str) -> Envelope:
    """Return the envelope that messages.envelope holds."""
    return _envelope(json.loads(text))


def read_peer(text: str) -> Peer:
    """Return the peer that messages.peer holds."""
    return Peer(**json.loads(text))


def read_decision(text: str) -> Decision:
    """Return the decision that messages.decision holds."""
    return _decision(json.loads(text))


def read_verdicts(text: str) -> tuple[Verdict, ...]:
    """Return the verdicts that messages.verdicts holds."""
    return tuple(Verdict(**fields) for fields in json.loads(text))


def _read_recipient(fields: dict[str, Any]) -> Recipient:
    notify = fields["notify"]
    return Recipient(fields["address"], None if notify is None else frozenset(notify), fields["orcpt"])


def _envelope(fields: dict[str, Any]) -> Envelope:
    recipients = tuple(_read_recipient(recipient) for recipient in fields.pop("recipients"))
    return Envelope(recipients=recipients, **fields)


def _decision(fields: dict[str, Any]) -> Decision:
    return Decision(
        action=Action(fields.pop("action")),
        tags=tuple(fields.pop("tags")),
        headers=tuple((name, value) for name, value in fields.pop("headers")),
        trace=tuple(RuleTrace(**step) for step in fields.pop("trace")),
        copies=tuple(fields.pop("copies", ())),
        forwards=tuple(fields.pop("forwards", ())),
        **fields,
    )


@dataclass(frozen=True, slots=True)
class Encoded:
    """A record with its database texts and the octets of its payload, content last."""

    record: Accepted
    envelope: str
    peer: str
    decision: str
    verdicts: str
    metadata_octets: int
    head: bytes  # metadata, trace and prefixes
    content: bytes  # b'' where it is spooled

    @property
    def octets(self) -> int:
        """Octets that the record takes in the journal."""
        return HEADER_OCTETS + len(self.head) + len(self.content)

    @property
    def text_octets(self) -> tuple[int, int, int, int]:
        """Octets of the four texts, all ASCII, as they stand in the metadata one after the other."""
        return len(self.envelope), len(self.peer), len(self.decision), len(self.verdicts)


def content_octets(content: bytes | Spooled) -> int:
    """Return the octets of a content, wherever it lies."""
    return content.octets if isinstance(content, Spooled) else len(content)


def encode(record: Accepted) -> Encoded:
    """Return a record's payload and texts; ValueError where it is larger than a record may be."""
    envelope = envelope_text(record.envelope)
    peer = peer_text(record.peer)
    decision = decision_text(record.decision)
    verdicts = verdicts_text(record.verdicts)
    content = record.content
    spooled = isinstance(content, Spooled)
    rest = _encode(
        [
            record.message_id,
            record.organization_id,
            record.accepted_at,
            record.source.value,
            record.idempotency_key,
            len(record.trace),
            [content.name, content.octets, content.sha256] if isinstance(content, Spooled) else len(content),
            [_local(target) for target in record.local],
            [_remote(target) for target in record.remote],
            [_event(event) for event in record.events],
        ]
    )
    metadata = f"[{envelope},{peer},{decision},{verdicts},{rest}]".encode("ascii")
    head = b"".join([metadata, record.trace, *[target.prefix for target in record.local]])
    encoded = Encoded(
        record=record,
        envelope=envelope,
        peer=peer,
        decision=decision,
        verdicts=verdicts,
        metadata_octets=len(metadata),
        head=head,
        content=b"" if spooled else content,  # type: ignore[arg-type]  # bytes where it is not spooled
    )
    if encoded.octets > RECORD_OCTETS:
        raise ValueError(f"a journal record of {encoded.octets} octets: spool its content")
    return encoded


def _local(target: LocalTarget) -> list[Any]:
    return [
        target.mailbox_id,
        target.recipient,
        target.folder,
        len(target.prefix),
        target.flags,
        target.keywords,
        target.internal_date,
    ]


def _remote(target: RemoteTarget) -> list[Any]:
    recipient = target.recipient
    return [
        target.delivery_id,
        recipient.address,
        _names(recipient.notify),
        recipient.orcpt,
        target.domain,
        target.next_attempt_at,
        target.expires_at,
        target.priority,
    ]


def _event(event: Event) -> list[Any]:
    return [
        event.id,
        event.kind,
        event.at,
        event.organization_id,
        event.message_id,
        event.mailbox_id,
        event.delivery_id,
        dict(event.data),
    ]


def header(encoded: Encoded, *, instance: bytes, sequence: int) -> bytes:
    """Return the fixed header in front of a record's payload; instance: 8 octets."""
    checksum = zlib.crc32(encoded.content, zlib.crc32(encoded.head))
    payload_octets = len(encoded.head) + len(encoded.content)
    front = _HEADER.pack(
        MAGIC, VERSION, 0, instance, sequence, encoded.metadata_octets, payload_octets, checksum
    )
    return front + _CHECKSUM.pack(zlib.crc32(front))


@dataclass(frozen=True, slots=True)
class Header:
    """What a record's header says, once its own checksum holds."""

    version: int
    instance: bytes
    sequence: int
    metadata_octets: int
    payload_octets: int
    checksum: int


def read_header(octets: bytes | memoryview) -> Header | None:
    """Return the header at the start of octets, None where there is no whole one."""
    if len(octets) < HEADER_OCTETS:
        return None
    magic, version, _, instance, sequence, metadata, payload, checksum = _HEADER.unpack_from(octets)
    if magic != MAGIC or _CHECKSUM.unpack_from(octets, _HEADER.size)[0] != zlib.crc32(octets[: _HEADER.size]):
        return None
    return Header(version, instance, sequence, metadata, payload, checksum)


def decode(head: Header, payload: bytes) -> Accepted:
    """Return the record of a payload whose checksum holds; ValueError where it is not one of ours."""
    try:
        return _decode(payload, head.metadata_octets)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"journal record {head.sequence} cannot be read: {error}") from error


def decode_for_rows(head: Header, payload: bytes | memoryview, texts: tuple[int, int, int, int]) -> Encoded:
    """Return a record as files and rows are made from it: its texts as they lie, and no objects for them.

    texts: octets of the envelope's, peer's, decision's and verdicts' JSON. Of the envelope the
    reverse-path is read, peer, decision and verdicts are left blank.
    """
    metadata = bytes(payload[: head.metadata_octets]).decode("ascii")
    parts = []
    at = 1
    for octets in texts:
        parts.append(metadata[at : at + octets])
        at += octets + 1
    envelope, peer, decision, verdicts = parts
    about = _About(_NOBODY, Envelope(_reverse_path(envelope), ()), PLAIN, ())
    record = _read_rest(payload, head.metadata_octets, json.loads(metadata[at:-1]), about)
    return Encoded(record, envelope, peer, decision, verdicts, head.metadata_octets, b"", b"")


_SENDER = '{"reverse_path":"'


def _reverse_path(envelope: str) -> str | None:
    """Return the first thing that an envelope's JSON says, without reading the rest of it."""
    if envelope.startswith(_SENDER):
        end = envelope.index('"', len(_SENDER))
        text = envelope[len(_SENDER) : end]
        if "\\" not in text:
            return text
    found: str | None = json.loads(envelope)["reverse_path"]
    return found


def _decode(payload: bytes, metadata_octets: int) -> Accepted:
    envelope, peer, decision, verdicts, rest = json.loads(payload[:metadata_octets])
    about = _About(
        Peer(**peer),
        _envelope(envelope),
        _decision(decision),
        tuple(Verdict(**fields) for fields in verdicts),
    )
    return _read_rest(payload, metadata_octets, rest, about)


@dataclass(frozen=True, slots=True)
class _About:
    """What a record says of a message apart from its octets and places."""

    peer: Peer
    envelope: Envelope
    decision: Decision
    verdicts: tuple[Verdict, ...]


_NOBODY = Peer("")


def _read_rest(payload: bytes | memoryview, metadata_octets: int, rest: list[Any], about: _About) -> Accepted:
    message_id, organization_id, accepted_at, source, key, trace_octets, content, local, remote, events = rest
    at = metadata_octets + trace_octets
    trace = bytes(payload[metadata_octets:at])
    targets = []
    for mailbox_id, recipient, folder, octets, flags, keywords, internal_date in local:
        prefix = bytes(payload[at : at + octets])
        at += octets
        target = LocalTarget(mailbox_id, recipient, folder, prefix, flags, tuple(keywords), internal_date)
        targets.append(target)
    inline = isinstance(content, int)
    if len(payload) != at + (content if inline else 0):
        raise ValueError("its lengths do not add up")
    return Accepted(
        message_id=message_id,
        organization_id=organization_id,
        accepted_at=accepted_at,
        source=Source(source),
        peer=about.peer,
        envelope=about.envelope,
        decision=about.decision,
        verdicts=about.verdicts,
        trace=trace,
        local=tuple(targets),
        remote=tuple(_read_remote(fields) for fields in remote),
        content=bytes(payload[at:]) if inline else Spooled(*content),
        events=tuple(_read_event(fields) for fields in events),
        idempotency_key=key,
    )


def _read_remote(fields: list[Any]) -> RemoteTarget:
    delivery_id, address, notify, orcpt, domain, next_attempt_at, expires_at, priority = fields
    recipient = Recipient(address, None if notify is None else frozenset(notify), orcpt)
    return RemoteTarget(delivery_id, recipient, domain, next_attempt_at, expires_at, priority)


def _read_event(fields: list[Any]) -> Event:
    identity, kind, at, organization_id, message_id, mailbox_id, delivery_id, data = fields
    return Event(identity, kind, at, organization_id, message_id, mailbox_id, delivery_id, data)
