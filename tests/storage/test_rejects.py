"""The folder Rejects as apply fills it and pruning empties it, on both databases."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection, update

from storage import mailboxes, rejects, schema
from storage.folder_names import REJECTS
from storage.mailboxes import FlagMode
from storage.store import Store
from tests.storage.samples import AT, deliver, fill, local, mail_files, opened, record, refused, rows

FAR = AT + 1_000_000_000


@pytest.fixture
def store(database_url: str, tmp_path: Path) -> Iterator[Store]:
    with opened(tmp_path / "data", database_url) as made:
        fill(made.database)
        yield made


def keep(store: Store, *mailbox_ids: str, message_id: str | None = None) -> str:
    targets = tuple(local(one, folder=REJECTS) for one in mailbox_ids or ("inb_0",))
    item = refused(message_id=message_id, local=targets)
    deliver(store, item)
    return item.message_id


def lying(store: Store) -> list[str]:
    return sorted(row.message_id for row in rows(store.database, schema.entries))


def prune(store: Store, **limits) -> int:
    values = {"before": 0, "messages": 500, "octets": 1 << 20, "at": FAR, **limits}
    return store.database.write(lambda c: rejects.prune(c, maildir=store.maildir, **values))


def test_the_folder_is_made_with_its_first_message(store: Store, tmp_path: Path) -> None:
    keep(store, "inb_0", "inb_1")
    made = rows(store.database, schema.folders, schema.folders.c.name == REJECTS)
    assert [(row.subscribed, row.uidnext, row.recent_uid) for row in made] == [(1, 2, 2)] * 2
    assert [path.rsplit("/", 1)[0] for path in mail_files(tmp_path / "data")] == [".Rejects/new"]
    kinds = [row.kind for row in rows(store.database, schema.events)]
    assert sorted(kinds) == ["message.kept"] * 2 + ["message.refused"] * 2
    assert {row.mailbox_id for row in rows(store.database, schema.rejects)} == {"inb_0", "inb_1"}


def test_refused_mail_for_no_inbox_leaves_nothing(store: Store, tmp_path: Path) -> None:
    keep(store, "inb_9", "inb_0")
    assert list((tmp_path / "data/aside").iterdir()) == []
    assert [row.mailbox_id for row in rows(store.database, schema.rejects)] == ["inb_0"]


def test_pruning_takes_the_oldest_and_gives_the_octets_back(store: Store) -> None:
    names = [keep(store) for _ in range(5)]
    deliver(store, record())
    assert prune(store, messages=3) == 2
    assert set(names[2:]) < set(lying(store))
    assert prune(store, octets=200) == 1
    assert prune(store, octets=200, mailbox_ids=[]) == 0
    assert prune(store, before=FAR, mailbox_ids=[]) == 2
    assert len(lying(store)) == 1
    assert prune(store, before=FAR) == 0
    (used,) = (
        row.used_octets for row in rows(store.database, schema.mailboxes, schema.mailboxes.c.id == "inb_0")
    )
    (entry,) = rows(store.database, schema.entries)
    assert used == entry.octets


def test_pruning_looks_at_the_inboxes_it_is_told_of(store: Store) -> None:
    for number in range(3):
        for _ in range(3):
            keep(store, f"inb_{number}")
    assert prune(store, messages=1, mailbox_ids=["inb_1"]) == 2
    assert prune(store, messages=1) == 4


def test_near_the_quota_refused_mail_gives_way(store: Store) -> None:
    for _ in range(3):
        keep(store)
    (used,) = (
        row.used_octets for row in rows(store.database, schema.mailboxes, schema.mailboxes.c.id == "inb_0")
    )

    def limit(conn: Connection) -> None:
        conn.execute(
            update(schema.mailboxes).where(schema.mailboxes.c.id == "inb_0").values(quota_octets=used)
        )

    store.database.write(limit)
    assert store.database.read(lambda c: rejects.full(c, mailbox_ids=["inb_0", "inb_1"], octets=1)) == {
        "inb_0"
    }
    assert prune(store) == 1


def test_a_retry_is_known_by_inbox_and_digest(store: Store) -> None:
    keep(store, "inb_0", "inb_1")
    (row, _) = rows(store.database, schema.rejects)
    wanted = ["inb_0", "inb_1", "inb_2"]
    read = lambda digest: store.database.read(lambda c: rejects.known(c, digest=digest, mailbox_ids=wanted))  # noqa: E731
    assert read(bytes(row.digest)) == {"inb_0", "inb_1"}
    assert read(b"x" * 16) == set()


def test_the_owner_sees_flags_and_moves_it_like_any_other(store: Store) -> None:
    keep(store)
    folders = {
        row.name: row.id
        for row in rows(store.database, schema.folders, schema.folders.c.mailbox_id == "inb_0")
    }
    stored = store.database.write(
        lambda c: mailboxes.store_flags(c, folder_id=folders[REJECTS], uids=[1], mode=FlagMode.ADD, flags=1)
    )
    assert len(stored.changed) == 1
    moved = store.database.write(
        lambda c: mailboxes.move(
            c, maildir=store.maildir, source_id=folders[REJECTS], target_id=folders["INBOX"], uids=[1], at=AT
        )
    )
    assert moved == [(1, 1)]
    assert [row.kind for row in rows(store.database, schema.signs_due)] == ["welcome"]
    assert prune(store, before=FAR) == 1
    assert len(lying(store)) == 1


def test_the_same_message_twice_in_one_batch_is_remembered_once(store: Store) -> None:
    first = refused(local=(local(folder=REJECTS),))
    deliver(store, first)
    second = refused(local=(local(folder=REJECTS),))
    digest = first.events[0].data["digest"]
    (event,) = second.events
    event = replace(event, data={**event.data, "digest": digest})
    deliver(store, replace(second, events=(event,)))
    assert len(rows(store.database, schema.rejects)) == 1
    assert len(lying(store)) == 2


def test_what_has_come_after_all_goes_from_rejects(store: Store) -> None:
    body = b"Message-ID: <1@far.example>\r\nSubject: code\r\n\r\n123\r\n"
    for item in (
        refused(body=body, local=(local(folder=REJECTS), local("inb_1", folder=REJECTS))),
        record(body),
        record(body + b"Something else under this id.\r\n", local=(local("inb_1"),)),
        refused(body=b"Subject: no id\r\n\r\nx\r\n", local=(local(folder=REJECTS),)),
    ):
        deliver(store, item)
    # As rendering finds it; the store of these tests has none that reads.
    with_id = update(schema.messages).where(schema.messages.c.octets != len(b"Subject: no id\r\n\r\nx\r\n"))
    store.database.write(lambda c: c.execute(with_id.values(message_id_header="<1@far.example>")) and None)
    assert prune(store, at=AT + 10, mailbox_ids=[]) == 0
    assert prune(store, at=AT + 10) == 1
    left = {row.mailbox_id for row in rows(store.database, schema.rejects, schema.rejects.c.octets > 0)}
    assert left == {"inb_0", "inb_1"}
    assert len(rows(store.database, schema.rejects)) == 2
    assert len(lying(store)) == 4
