"""A recovered store held against a ledger: nothing promised lost, nothing twice, nothing half there."""

import hashlib
import time
from collections import Counter
from typing import Any

from storage import schema
from storage.maildir import parse_name
from storage.reconcile import reconcile
from storage.store import Store
from tests.power.ledger import Promises, State
from tests.power.load import WORK
from tests.storage.samples import rows


def check(store: Store, promises: Promises) -> int:
    """Check a store right after its recovery, and once more healed; how many messages it has."""
    _check_messages(store, promises)
    report = reconcile(store, at=time.time_ns() // 1000)
    assert report.problems == (), report.problems
    assert report.messages_received == 0, "a file without an entry"
    assert report.messages_expunged == 0, "an entry without its file"
    found = _check_messages(store, promises)
    check_files(store)
    assert set((store.message_path("x").parents[1] / "aside").iterdir()) == set(store.recovery.set_aside)
    return found


def entries(store: Store) -> list[tuple[Any, Any]]:
    """Return the rows of all entries, each with its folder's."""
    folders = {row.id: row for row in rows(store.database, schema.folders)}
    return [(row, folders[row.folder_id]) for row in rows(store.database, schema.entries)]


def _check_messages(store: Store, promises: Promises) -> int:
    present: dict[str, Counter[str]] = {}
    states: dict[str, State] = {}
    for entry, folder in entries(store):
        present.setdefault(entry.message_id, Counter())[folder.mailbox_id] += 1
        owner = promises.uids.get((folder.mailbox_id, folder.name, folder.uidvalidity, entry.uid))
        assert owner in (None, entry.message_id), f"UID {entry.uid} was {owner}'s, is {entry.message_id}'s"
        if folder.mailbox_id == WORK:
            states[entry.message_id] = State(folder.name, entry.flags, tuple(sorted(entry.keywords.split())))
    assert promises.accepted - present.keys() == set(), "lost"
    assert present.keys() - promises.asked.keys() == set(), "of nobody"
    for message_id, places in present.items():
        wanted = Counter(promises.asked[message_id]["inboxes"])
        kept = promises.kept.get(message_id)
        allowed = [State("INBOX")] if kept is None else kept.allowed
        if WORK in wanted:
            state = states.get(message_id, State(""))
            assert state in allowed, f"{message_id} is {state}, not {allowed}"
            wanted[WORK] = int(bool(state.folder))
        assert +places == +wanted, f"{message_id} lies in {places}, not {wanted}"
    _check_queue(store, promises, set(present))
    return len(present)


def _check_queue(store: Store, promises: Promises, present: set[str]) -> None:
    queued = Counter(row.message_id for row in rows(store.database, schema.deliveries))
    assert queued == Counter(
        {one: promises.asked[one]["queued"] for one in present if promises.asked[one]["queued"]}
    )
    check_outgoing(store)


def check_outgoing(store: Store) -> None:
    """What the queue sends is whole."""
    for message in rows(store.database, schema.messages, schema.messages.c.spooled == 1):
        octets = store.message_path(message.id).read_bytes()
        assert octets.startswith(message.trace)
        assert hashlib.sha256(octets[len(message.trace) :]).digest() == message.digest, f"{message.id} torn"


def check_files(store: Store) -> None:
    """Every entry has one whole file, and every file its entry."""
    digests = {row.id: row.digest for row in rows(store.database, schema.messages)}
    expected = {}
    for entry, folder in entries(store):
        path = store.maildir.entry_path(folder.mailbox_id, folder.name, _Names(entry))  # type: ignore[arg-type]
        octets = path.read_bytes()
        assert len(octets) == entry.octets, f"{path} is cut"
        assert hashlib.sha256(octets[entry.prefix_octets :]).digest() == digests[entry.message_id], path
        expected[path] = entry
    there = {
        path
        for name in ("new", "cur")
        for path in store.maildir.root.rglob(f"{name}/*")
        if path.is_file() and parse_name(path.name)[0]
    }
    assert there == expected.keys()


class _Names:
    """An entry as Maildir.entry_path reads it."""

    def __init__(self, row: Any) -> None:
        self.name, self.subdirectory, self.mirrored = row.name, row.subdirectory, row.mirrored
