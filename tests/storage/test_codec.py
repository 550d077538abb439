"""The journal's record format and the JSON of columns give back what went in."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import codec
from storage.records import (
    Action,
    Decision,
    Envelope,
    Event,
    Peer,
    Recipient,
    RuleTrace,
    Source,
    Spooled,
    Verdict,
)
from tests.storage.samples import AT, local, record, remote

INSTANCE = b"k3v9k3v9"


def round_trip(item):
    encoded = codec.encode(item)
    octets = codec.header(encoded, instance=INSTANCE, sequence=9) + encoded.head + encoded.content
    assert len(octets) == encoded.octets
    head = codec.read_header(octets)
    assert head is not None and (head.sequence, head.instance, head.version) == (9, INSTANCE, codec.VERSION)
    return codec.decode(head, octets[codec.HEADER_OCTETS :])


FULL = record(
    source=Source.API,
    peer=Peer("192.0.2.1", 4711, "h", True, "TLSv1.3", "AES", "r.example", "key_1"),
    envelope=Envelope(
        None,
        (Recipient("ü@b.example", frozenset({"NEVER"}), "utf-8;x"),),
        "8BITMIME",
        True,
        "HDRS",
        "e+2B",
        True,
    ),
    decision=Decision(
        Action.QUARANTINE,
        451,
        "4.7.1",
        "no",
        ("a", "b"),
        (("X", "y"),),
        "q@b.example",
        (RuleTrace("r", "rcpt", True, "tag", "a.toml:3"),),
    ),
    verdicts=(Verdict("dkim", "fail", "a.example", "bad", {"header.d": "a.example"}),),
    local=(local(flags=5, keywords=("x", "y"), internal_date=3), local("inb_1", prefix=b"")),
    remote=(remote(), remote(recipient=Recipient("d@d.example"), priority=3)),
    events=(Event("evt_1", "k", 5, "org_1", "msg_1", "inb_1", "dlv_1", {"a": [1, None, "é"]}),),
    idempotency_key="once",
)


@pytest.mark.parametrize(
    "item",
    [
        FULL,
        record(b""),
        record(b"x" * 300_000),
        record(Spooled("spl_1", 10, "00")),
        record(local=(), remote=(remote(),)),
        record(trace=b"", local=()),
    ],
)
def test_record_round_trips(item) -> None:
    assert round_trip(item) == item


@given(st.binary(max_size=200), st.text(max_size=50), st.text(max_size=20))
def test_any_octets_and_text_round_trip(octets: bytes, text: str, word: str) -> None:
    item = record(
        octets, trace=octets[:7], local=(local(prefix=octets[3:], recipient=text, keywords=(word,)),)
    )
    item = replace(item, peer=Peer(text, helo=word), idempotency_key=text)
    assert round_trip(item) == item


def test_columns_round_trip() -> None:
    assert codec.read_envelope(codec.envelope_text(FULL.envelope)) == FULL.envelope
    assert codec.read_peer(codec.peer_text(FULL.peer)) == FULL.peer
    assert codec.read_decision(codec.decision_text(FULL.decision)) == FULL.decision
    assert codec.read_verdicts(codec.verdicts_text(FULL.verdicts)) == FULL.verdicts
    assert codec.read_verdicts(codec.verdicts_text(())) == ()


def test_every_flipped_octet_of_a_header_is_noticed() -> None:
    encoded = codec.encode(record())
    front = codec.header(encoded, instance=INSTANCE, sequence=1)
    for position in range(len(front)):
        flipped = bytearray(front)
        flipped[position] ^= 0x40
        assert codec.read_header(bytes(flipped)) is None


def test_record_that_is_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="spool"):
        codec.encode(record(bytes(codec.RECORD_OCTETS)))


def test_payload_of_other_lengths_is_no_record() -> None:
    encoded = codec.encode(record(accepted_at=AT))
    head = codec.read_header(codec.header(encoded, instance=INSTANCE, sequence=1))
    assert head is not None
    for payload in (
        b"",
        b"[]",
        encoded.head + encoded.content + b"x",
        b"{" + encoded.head[1:] + encoded.content,
    ):
        with pytest.raises(ValueError):
            codec.decode(head, payload)
