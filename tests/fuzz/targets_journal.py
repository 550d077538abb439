"""Fuzz targets of the journal's files: damage of any kind to what was written.

`check_segment`: whatever becomes of a segment's octets, reading it raises nothing but
Corrupt; what is found was written whole, in order, under its own sequence, and what is
damaged or cut lies inside the file. `check_record`: a payload whose checksums hold,
and that still is none of ours, is refused with ValueError alone.
"""

import tempfile
import zlib
from pathlib import Path

from storage import codec, segments
from storage.errors import Corrupt
from storage.records import (
    Accepted,
    Decision,
    Envelope,
    Event,
    LocalTarget,
    Peer,
    Recipient,
    RemoteTarget,
    Source,
    Spooled,
    Verdict,
)

INSTANCE = b"abcdefgh"


def _record(number: int, content: bytes | Spooled) -> Accepted:
    recipient = Recipient("ann@example.org", frozenset({"NEVER"}), "rfc822;ann@example.org")
    return Accepted(
        message_id=f"msg_{number}",
        organization_id="org_1",
        accepted_at=1_800_000_000_000_000 + number,
        source=Source.MX,
        peer=Peer("192.0.2.1", 25, "far.example"),
        envelope=Envelope("bob@far.example", (recipient,)),
        decision=Decision(tags=("$Junk",), headers=(("X-A", "b"),)),
        verdicts=(Verdict("spf", "pass", "far.example"),),
        trace=b"Received: x\r\n",
        local=(LocalTarget("inb_1", "ann@example.org", prefix=b"Delivered-To: ann@example.org\r\n"),),
        remote=(RemoteTarget(f"dlv_{number}", recipient, "example.org", 1, 2),),
        content=content,
        events=(Event(f"evt_{number}", "message.accepted", 1, "org_1", data={"octets": 3}),),
    )


_CONTENTS: tuple[bytes | Spooled, ...] = (
    b"Subject: a\r\n\r\nb\r\n",
    Spooled("spl_1", 9, "00"),
    b"",
    b"x" * 300,
)
RECORDS = {number: _record(number, content) for number, content in enumerate(_CONTENTS, 1)}


def _written(number: int) -> bytes:
    encoded = codec.encode(RECORDS[number])
    return codec.header(encoded, instance=INSTANCE, sequence=number) + encoded.head + encoded.content


SEGMENT = b"".join(map(_written, RECORDS)) + bytes(64)
WORDS = [codec.MAGIC, INSTANCE, bytes(8), *(_written(number)[: codec.HEADER_OCTETS] for number in RECORDS)]
PAYLOAD = _written(1)[codec.HEADER_OCTETS :]
PAYLOAD_WORDS = [b"null", b"[]", b"{}", b'""', b"1e999", b"-1", b"true", b"[" * 50, b'"\\ud800"', b",", b":"]
METADATA_OCTETS = codec.encode(RECORDS[1]).metadata_octets

_FOLDER = tempfile.TemporaryDirectory()  # removed when the interpreter ends
_PATH = Path(_FOLDER.name) / "00000000000000000001.journal"


def check_segment(data: bytes) -> None:
    """Whatever the octets, what is found was written whole, and nothing raises but Corrupt."""
    _PATH.write_bytes(data)
    for behind in (None, len(RECORDS) + 1, len(RECORDS) + 2):
        before, at = 0, 0
        try:
            for item in segments.read_segment(_PATH, instance=INSTANCE, after=0, behind=behind):
                if isinstance(item, segments.Found):
                    assert item.sequence > before
                    assert item.record == RECORDS[item.sequence]
                    before = item.sequence
                    continue
                assert at <= item.offset < len(data)
                at = item.offset
                if isinstance(item, segments.Damage):
                    assert data.startswith(item.octets, item.offset)
                else:
                    assert behind is None
        except Corrupt:
            assert codec.MAGIC in data


def check_record(payload: bytes) -> None:
    """A payload that is none of ours, though its checksums hold, is a ValueError."""
    head = codec.Header(
        codec.VERSION, INSTANCE, 1, min(METADATA_OCTETS, len(payload)), len(payload), zlib.crc32(payload)
    )
    try:
        record = codec.decode(head, payload)
    except ValueError:
        return
    assert isinstance(record, Accepted)
