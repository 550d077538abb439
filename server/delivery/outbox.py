"""The captured outbox: mail that would leave the machine, kept in a Maildir instead.

Owns the writing of one file a message and domain, with the envelope in fields
on top. A retry writes the same file again, so that nothing is there twice.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from server.delivery import outcome
from storage.records import Handover

if TYPE_CHECKING:
    from server.delivery.letter import Letter
    from storage.records import Delivery, Outcome

COPY_OCTETS = 1024 * 1024


def capture(outbox: Path, deliveries: Sequence[Delivery], letter: Letter) -> dict[str, Outcome]:
    """Write a message for its recipients and return their outcomes by delivery id; blocks on the disk.

    Raises OSError where it cannot be written.
    """
    for name in ("cur", "new", "tmp"):
        (outbox / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    first = deliveries[0]
    name = f"{first.created_at // 1_000_000}.{first.id}.outbox"
    temporary = outbox / "tmp" / name
    with temporary.open("wb") as file:
        file.write(_fields(deliveries))
        with letter.path.open("rb") as source:
            while chunk := source.read(COPY_OCTETS):
                file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, outbox / "new" / name)
    _sync(outbox / "new")
    return {
        one.id: outcome.delivered("captured in the outbox", handover=Handover.RELAYED) for one in deliveries
    }


def _fields(deliveries: Sequence[Delivery]) -> bytes:
    sender = deliveries[0].envelope.reverse_path or ""
    lines = [f"X-Envelope-From: <{sender}>"]
    lines += [f"X-Envelope-To: <{one.recipient.address}>" for one in deliveries]
    return "".join(f"{line}\r\n" for line in lines).encode("utf-8")


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
