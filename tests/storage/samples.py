"""Records, mailboxes and stores for storage tests."""

import hashlib
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from sqlalchemy import Connection, insert, select

from storage import ids, rendition, schema
from storage.db import Database
from storage.records import (
    Accepted,
    Action,
    Decision,
    Envelope,
    Event,
    LocalTarget,
    Peer,
    Placed,
    Recipient,
    RemoteTarget,
    Source,
    Spooled,
    Verdict,
)
from storage.store import Store

AT = 1_800_000_000_000_000
ORGANIZATION = "org_01"
TRACE = b"Received: from a.example by b.example; Mon, 1 Jan 2026 00:00:00 +0000\r\n"
SEGMENT_OCTETS = 1 << 16
_numbers = itertools.count(1)


def add_organization(conn: Connection, organization_id: str = ORGANIZATION) -> None:
    conn.execute(
        insert(schema.organizations).values(
            id=organization_id, name=organization_id, state="active", created_at=AT
        )
    )


def add_mailbox(
    conn: Connection,
    mailbox_id: str,
    *,
    folders: tuple[str, ...] = ("INBOX",),
    organization_id: str = ORGANIZATION,
) -> None:
    conn.execute(
        insert(schema.mailboxes).values(
            id=mailbox_id,
            organization_id=organization_id,
            address=f"{mailbox_id}@b.example",
            display_name="",
            state="active",
            quota_octets=0,
            used_octets=0,
            retention_class="default",
            created_at=AT,
        )
    )
    for name in folders:
        add_folder(conn, mailbox_id, name)


def add_folder(conn: Connection, mailbox_id: str, name: str) -> None:
    conn.execute(
        insert(schema.folders).values(
            mailbox_id=mailbox_id,
            name=name,
            special_use="",
            uidvalidity=7,
            uidnext=1,
            highestmodseq=1,
            recent_uid=1,
            subscribed=1,
        )
    )


def fill(database: Database, mailboxes: int = 3) -> None:
    """An organization with mailboxes inb_0, inb_1, … that have an INBOX and 'Work/2026' each."""

    def unit(conn: Connection) -> None:
        add_organization(conn)
        for number in range(mailboxes):
            add_mailbox(conn, f"inb_{number}", folders=("INBOX", "Work/2026"))

    database.write(unit)


def content(text: str = "body", *, headers: str = "") -> bytes:
    return f"Subject: {text}\r\n{headers}\r\n{text}\r\n".encode()


def local(mailbox_id: str = "inb_0", **changes) -> LocalTarget:
    fields = {
        "mailbox_id": mailbox_id,
        "recipient": f"{mailbox_id}@b.example",
        "prefix": f"Delivered-To: {mailbox_id}@b.example\r\n".encode(),
    }
    return LocalTarget(**(fields | changes))


def remote(address: str = "carol@c.example", **changes) -> RemoteTarget:
    fields = {
        "delivery_id": ids.new("dlv"),
        "recipient": Recipient(address, frozenset({"FAILURE", "DELAY"}), "rfc822;" + address),
        "domain": "c.example",
        "next_attempt_at": AT,
        "expires_at": AT + 10,
    }
    return RemoteTarget(**(fields | changes))


def record(body: bytes | Spooled | None = None, **changes) -> Accepted:
    number = next(_numbers)
    message_id = changes.pop("message_id", None) or ids.new("msg")
    fields = {
        "message_id": message_id,
        "organization_id": ORGANIZATION,
        "accepted_at": AT + number,
        "source": Source.MX,
        "peer": Peer("192.0.2.1", helo="a.example"),
        "envelope": Envelope("alice@a.example", (Recipient("bob@b.example"),)),
        "decision": Decision(tags=("seen",), headers=(("X-Tag", "1"),)),
        "verdicts": (Verdict("spf", "pass", "a.example", properties={"smtp.mailfrom": "alice@a.example"}),),
        "trace": TRACE,
        "local": (local(),),
        "remote": (),
        "content": content(f"letter {number}") if body is None else body,
        "events": (
            Event(ids.new("evt"), "message.accepted", AT, ORGANIZATION, message_id, data={"n": number}),
        ),
    }
    return Accepted(**(fields | changes))


def refused(**changes) -> Accepted:
    """A message that was refused for reputation and is kept for its local targets."""
    made = record(**changes)
    digest = hashlib.blake2b(made.message_id.encode(), digest_size=16).hexdigest()
    events = tuple(
        Event(
            ids.new("evt"),
            "message.refused",
            made.accepted_at,
            made.organization_id,
            made.message_id,
            target.mailbox_id,
            data={"recipient": target.recipient, "digest": digest, "octets": 100},
        )
        for target in made.local
    )
    decision = Decision(Action.REJECT, 550, "5.7.1", "no", reason="reputation")
    return replace(made, events=events, decision=decision)


def file_octets(item: Accepted, target: LocalTarget) -> bytes:
    assert isinstance(item.content, bytes)
    return target.prefix + item.trace + item.content


@dataclass
class Promise:
    """What became of one accepted record."""

    durable_error: BaseException | None = None
    placed: tuple[Placed, ...] | None = None
    applied_error: BaseException | None = None
    durable: threading.Event = field(default_factory=threading.Event)
    applied: threading.Event = field(default_factory=threading.Event)

    def on_durable(self, error: BaseException | None) -> None:
        self.durable_error = error
        self.durable.set()

    def on_applied(self, placed: tuple[Placed, ...] | None, error: BaseException | None) -> None:
        self.placed, self.applied_error = placed, error
        self.applied.set()


def accept(store: Store, item: Accepted) -> Promise:
    """Accept and return at once."""
    promise = Promise()
    store.accept(item, durable=promise.on_durable, applied=promise.on_applied)
    return promise


def deliver(store: Store, item: Accepted) -> tuple[Placed, ...]:
    """Accept and wait until applied."""
    promise = accept(store, item)
    assert promise.durable.wait(30)
    if promise.durable_error is not None:
        raise promise.durable_error
    assert promise.applied.wait(30)
    if promise.applied_error is not None:
        raise promise.applied_error
    assert promise.placed is not None
    return promise.placed


def open_store(directory: Path, url: str, **changes) -> Store:
    settings = {
        "render": rendition.plain,
        "segment_octets": SEGMENT_OCTETS,
        "spool_threshold_octets": 4096,
        "checkpoint_seconds": 3600.0,
    }
    return Store.open(directory=directory, database_url=url, **(settings | changes))


@contextmanager
def opened(directory: Path, url: str, **changes) -> Iterator[Store]:
    store = open_store(directory, url, **changes)
    try:
        yield store
    finally:
        store.close()


def mail_files(directory: Path, mailbox_id: str = "inb_0") -> dict[str, bytes]:
    """All files of a mailbox by their path below it, tmp included."""
    root = directory / "mail" / mailbox_id
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "maildirfolder"
    }


def rows(database: Database, table, *conditions) -> list:
    return database.read(lambda conn: conn.execute(select(table).where(*conditions)).all())


def sha256(octets: bytes) -> bytes:
    return hashlib.sha256(octets).digest()
