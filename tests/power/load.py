"""A load on a store: mail that arrives, and a reader who marks, moves and expunges what came.

Runs until the disk goes away under it. Inbox inb_0 only receives; what lies in inb_1 is worked on,
one message after the other, so that each has one last step at most that nobody answered.
"""

import random
import threading
from pathlib import Path
from typing import Any

from storage import mailboxes
from storage.errors import StorageError
from storage.mailboxes import FlagMode
from storage.mirroring import Mirroring
from storage.records import Accepted, Placed
from storage.store import Store
from tests.power.ledger import Ledger, State
from tests.storage.samples import AT, content, local, open_store, record, remote

WORK, KEEP = "inb_1", ("INBOX", "Work/2026")
SENDERS = 12
LARGE_OCTETS = 20_000


class Load:
    """The load on one open store."""

    def __init__(self, store: Store, ledger: Ledger, seed: int) -> None:
        self.store, self.ledger, self.seed = store, ledger, seed
        self.placed: list[tuple[str, int, int]] = []  # message, folder, UID: what the reader works on
        self.states: dict[str, State] = {}
        self.lock = threading.Lock()
        rows = store.database.read(lambda c: mailboxes.folders(c, mailbox_id=WORK))
        self.folders = {row.name: row.id for row in rows}

    def begin(self) -> None:
        """Start the senders and the reader; they end with the disk."""
        for number in range(SENDERS):
            self._send(random.Random(self.seed * 100 + number))
        threading.Thread(target=self._read, daemon=True).start()

    def _compose(self, dice: random.Random) -> Accepted:
        body: Any = content(f"{dice.random()}") + b"x" * dice.choice((0, 500, 1500, 3000))
        if dice.random() < 0.1:
            writer = self.store.spool()
            writer.write(b"Subject: large\r\n\r\n" + dice.randbytes(LARGE_OCTETS).hex().encode())
            body = writer.finish()
        inboxes = dice.choice((("inb_0",), ("inb_0", WORK), ("inb_0", "inb_2")))
        prefix = {"prefix": b"X-Same: 1\r\n"} if dice.random() < 0.3 else {}
        queued = (remote(),) if dice.random() < 0.3 else ()
        targets = tuple(local(name, **prefix) for name in inboxes)
        return record(body, local=targets, remote=queued, events=())

    def _send(self, dice: random.Random) -> None:
        """Send one message, and the next once this one is promised."""
        try:
            item = self._compose(dice)
        except StorageError:
            return  # the disk is gone
        names = [target.mailbox_id for target in item.local]
        self.ledger.note("ask", item.message_id, inboxes=names, queued=len(item.remote))

        def durable(error: BaseException | None) -> None:
            if error is None:
                self.ledger.note("accepted", item.message_id)
                self._send(dice)

        def applied(places: tuple[Placed, ...] | None, _error: BaseException | None) -> None:
            for place in places or ():
                at = [place.mailbox_id, "INBOX", place.uidvalidity, place.uid]
                self.ledger.note("placed", item.message_id, at=at)
                if place.mailbox_id == WORK:
                    with self.lock:
                        self.placed.append((item.message_id, place.folder_id, place.uid))

        self.store.accept(item, durable=durable, applied=applied)

    def _read(self) -> None:
        dice = random.Random(self.seed)
        pause = threading.Event()
        while True:
            with self.lock:
                chosen = dice.choice(self.placed) if self.placed else None
            if chosen is None:
                pause.wait(0.002)
                continue
            try:
                self._change(dice, *chosen)
            except Exception:
                return

    def _change(self, dice: random.Random, message_id: str, folder_id: int, uid: int) -> None:
        before = self.states.get(message_id, State("INBOX"))
        after = before
        act = dice.choice(("flags", "flags", "flags", "move", "expunge"))
        if act == "flags":
            keywords = tuple(sorted(dice.sample(("a", "b", "Work"), dice.randrange(3))))
            after = State(before.folder, dice.randrange(64), keywords)
        elif act == "move":
            after = State(KEEP[before.folder == KEEP[0]], before.flags, before.keywords)
        else:
            after = State("")
        self.ledger.note(
            "change", message_id, folder=after.folder, flags=after.flags, keywords=list(after.keywords)
        )
        self.store.database.write(lambda c: self._do(c, act, after=after, folder_id=folder_id, uid=uid))
        self.ledger.note("changed", message_id)
        self.states[message_id] = after
        self._forget(message_id, folder_id, uid, after)

    def _do(self, connection: Any, act: str, *, after: State, folder_id: int, uid: int) -> None:
        if act == "flags":
            mailboxes.store_flags(
                connection,
                folder_id=folder_id,
                uids=[uid],
                mode=FlagMode.SET,
                flags=after.flags,
                keywords=after.keywords,
            )
        elif act == "expunge":
            mailboxes.expunge(connection, maildir=self.store.maildir, folder_id=folder_id, uids=[uid], at=AT)
        else:
            pairs = mailboxes.move(
                connection,
                maildir=self.store.maildir,
                source_id=folder_id,
                target_id=self.folders[after.folder],
                uids=[uid],
                at=AT,
            )
            self._moved = pairs[0][1]

    def _forget(self, message_id: str, folder_id: int, uid: int, after: State) -> None:
        with self.lock:
            place = self.placed.index((message_id, folder_id, uid))
            if not after.folder:
                del self.placed[place]
            elif self.folders[after.folder] != folder_id:
                self.placed[place] = (message_id, self.folders[after.folder], self._moved)


def run(directory: Path, url: str, ledger: Path, seed: int) -> None:
    """Open a store and load it; returns at once, its threads go on."""
    store = open_store(directory, url, checkpoint_seconds=0.05, segment_octets=1 << 16)
    mirroring = Mirroring(store.database, store.maildir, pause_seconds=0.02)
    mirroring.start()
    Load(store, Ledger(ledger), seed).begin()
