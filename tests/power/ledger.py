"""What a load asked of a store and what it was promised, one line each, on a disk that stays whole.

A line is written before a step is asked for and another once it was answered, so that after a cut
each message has one state that was promised, or a few that it may be in. Whoever cuts the power says so
here first: an answer after that promises nothing, for the file system's shutdown call takes its time, and
a sync that it overtakes may still return.
"""

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Uid = tuple[str, str, int, int]  # inbox, folder, UIDVALIDITY, UID


class Ledger:
    """Lines that go to a file at once."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._lock = threading.Lock()

    def note(self, kind: str, message_id: str, **facts: Any) -> None:
        with self._lock:
            os.write(self._fd, json.dumps([kind, message_id, facts]).encode() + b"\n")


@dataclass(frozen=True)
class State:
    """Where a kept message is, and what marks it; folder '' for one that is gone for good."""

    folder: str
    flags: int = 0
    keywords: tuple[str, ...] = ()


@dataclass
class Kept:
    """A message that was worked on. allowed: the states that it may be in, the promised one first."""

    allowed: list[State]
    waiting: State | None = None


@dataclass
class Promises:
    """All that a ledger says. accepted: ids with a promise; asked: ids that may be there without one."""

    accepted: set[str] = field(default_factory=set)
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)
    uids: dict[Uid, str] = field(default_factory=dict)
    kept: dict[str, Kept] = field(default_factory=dict)


def read(path: Path) -> Promises:
    """Return what a ledger's lines come to."""
    found = Promises()
    is_cut = False
    for kind, message_id, facts in _lines(path):
        if kind in ("run", "cut"):
            is_cut = kind == "cut"
        elif kind == "ask":
            found.asked[message_id] = facts
        elif kind == "change":
            state = State(facts["folder"], facts["flags"], tuple(facts["keywords"]))
            known = found.kept.setdefault(message_id, Kept([State("INBOX")]))
            known.allowed, known.waiting = [*known.allowed, state], state
        elif is_cut:
            continue
        elif kind == "changed":
            known = found.kept[message_id]
            assert known.waiting is not None
            known.allowed, known.waiting = [known.waiting], None
        elif kind == "accepted":
            found.accepted.add(message_id)
        elif kind == "placed":
            found.uids[tuple(facts["at"])] = message_id  # type: ignore[index]  # inbox, folder, two numbers
    return found


def _lines(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    if path.exists():
        for line in path.read_bytes().splitlines():
            kind, message_id, facts = json.loads(line)
            yield kind, message_id, facts
