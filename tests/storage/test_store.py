"""The store's promises while it runs: durable, then applied; files and rows agree."""

import json
import os
from pathlib import Path

import pytest
from sqlalchemy import Connection, delete, insert, select, update

from storage import codec, rendition, schema
from storage.db import Notice
from storage.maildir import parse_base
from storage.records import Envelope, Event, Flag, Recipient, Rendered, Source
from storage.store import Store
from tests.storage.samples import (
    AT,
    ORGANIZATION,
    TRACE,
    accept,
    add_mailbox,
    add_organization,
    content,
    deliver,
    file_octets,
    fill,
    local,
    mail_files,
    opened,
    record,
    remote,
    rows,
    sha256,
)


def test_accepted_message_lies_in_new_and_in_the_database(store: Store, directory: Path) -> None:
    item = record()
    (placed,) = deliver(store, item)
    (entry,) = rows(store.database, schema.entries)
    assert (placed.mailbox_id, placed.uid, placed.uidvalidity) == ("inb_0", 1, 7)
    assert (entry.folder_id, entry.uid, entry.modseq) == (placed.folder_id, placed.uid, placed.modseq)
    octets = file_octets(item, item.local[0])
    assert mail_files(directory) == {f"new/{entry.name}": octets}
    assert (entry.octets, entry.prefix_octets) == (len(octets), len(octets) - len(item.content))
    assert (entry.subdirectory, entry.mirrored, entry.internal_date) == ("new", "", item.accepted_at)
    origin = parse_base(entry.name)
    assert origin is not None and (origin.sequence, origin.index) == (store.applied_sequence, 0)


def test_message_row_keeps_what_was_accepted(store: Store) -> None:
    item = record()
    deliver(store, item)
    (row,) = rows(store.database, schema.messages)
    assert (row.id, row.organization_id, row.source) == (item.message_id, ORGANIZATION, "mx")
    assert bytes(row.digest) == sha256(item.content)
    assert (row.octets, bytes(row.trace), row.spooled) == (len(item.content), TRACE, 0)
    assert codec.read_envelope(row.envelope) == item.envelope
    assert codec.read_peer(row.peer) == item.peer
    assert codec.read_decision(row.decision) == item.decision
    assert codec.read_verdicts(row.verdicts) == item.verdicts


def test_events_are_those_given_and_one_a_placement(store: Store) -> None:
    item = record(local=(local("inb_0"), local("inb_1", folder="Work/2026")))
    deliver(store, item)
    found = [(row.kind, row.mailbox_id, row.message_id) for row in rows(store.database, schema.events)]
    assert found == [
        ("message.accepted", None, item.message_id),
        ("message.received", "inb_0", item.message_id),
        ("message.received", "inb_1", item.message_id),
    ]


def test_uids_and_used_octets_grow_with_each_message(store: Store) -> None:
    items = [record() for _ in range(40)]
    promises = [accept(store, item) for item in items]
    assert all(promise.applied.wait(30) for promise in promises)
    assert [promise.placed[0].uid for promise in promises] == list(range(1, 41))
    (folder,) = rows(store.database, schema.folders, schema.folders.c.id == promises[0].placed[0].folder_id)
    assert folder.uidnext == 41
    assert folder.highestmodseq == max(promise.placed[0].modseq for promise in promises)
    (mailbox,) = rows(store.database, schema.mailboxes, schema.mailboxes.c.id == "inb_0")
    assert mailbox.used_octets == sum(len(file_octets(item, item.local[0])) for item in items)


def test_only_byte_identical_renditions_share_a_file(store: Store, directory: Path) -> None:
    same = b"Return-Path: <alice@a.example>\r\n"
    item = record(local=(local("inb_0", prefix=same), local("inb_1", prefix=same), local("inb_2")))
    deliver(store, item)
    links = [
        next((directory / "mail" / mailbox / "new").iterdir()).stat()
        for mailbox in ("inb_0", "inb_1", "inb_2")
    ]
    assert links[0].st_ino == links[1].st_ino != links[2].st_ino
    assert [link.st_nlink for link in links] == [2, 2, 1]
    for target in item.local:
        assert list(mail_files(directory, target.mailbox_id).values()) == [file_octets(item, target)]


def test_flags_of_a_target_put_its_file_into_cur(store: Store, directory: Path) -> None:
    target = local(flags=int(Flag.SEEN | Flag.DRAFT), keywords=("$Work",), internal_date=5, prefix=b"")
    deliver(store, record(local=(target,)))
    (entry,) = rows(store.database, schema.entries)
    assert list(mail_files(directory)) == [f"cur/{entry.name}:2,DS"]
    assert (entry.flags, entry.keywords, entry.internal_date) == (17, "$Work", 5)
    assert (entry.subdirectory, entry.mirrored, entry.mirror_due) == ("cur", "DS", 0)


def test_remote_recipients_get_a_spool_file_and_deliveries(store: Store) -> None:
    item = record(
        local=(), remote=(remote("c@c.example"), remote("d@c.example", recipient=Recipient("d@c.example")))
    )
    assert deliver(store, item) == ()
    assert store.message_path(item.message_id).read_bytes() == TRACE + item.content
    found = rows(store.database, schema.deliveries)
    assert [(row.recipient, row.notify, row.state, row.next_attempt_at) for row in found] == [
        ("c@c.example", "DELAY,FAILURE", "scheduled", AT),
        ("d@c.example", None, "scheduled", AT),
    ]
    assert rows(store.database, schema.messages)[0].spooled == 1


def test_notices_follow_the_commit(store: Store) -> None:
    heard: list[Notice] = []
    store.database.listen(heard.extend)
    (placed,) = deliver(
        store, record(remote=(remote(next_attempt_at=AT + 9), remote(next_attempt_at=AT + 4)))
    )
    highest = store.database.read(lambda conn: conn.execute(select(schema.events.c.seq)).scalars().all())[-1]
    assert set(heard) == {
        Notice("folder", str(placed.folder_id), placed.modseq),
        Notice("queue", "", AT + 4),
        Notice("events", "", highest),
    }


def test_spooled_content_is_delivered_whole(store: Store, directory: Path) -> None:
    body = b"Subject: large\r\n\r\n" + b"0123456789abcdef\r\n" * 20_000
    writer = store.spool()
    for start in range(0, len(body), 7000):
        writer.write(body[start : start + 7000])
    spooled = writer.finish()
    assert (spooled.octets, spooled.sha256) == (len(body), sha256(body).hex())
    assert store.read_spooled(spooled).read_bytes() == body
    item = record(spooled, local=(local("inb_0"), local("inb_1")), remote=(remote(),))
    deliver(store, item)
    for target in item.local:
        assert list(mail_files(directory, target.mailbox_id).values()) == [target.prefix + TRACE + body]
    assert store.message_path(item.message_id).read_bytes() == TRACE + body
    assert bytes(rows(store.database, schema.messages)[0].digest) == sha256(body)
    store.checkpoint()
    assert not store.read_spooled(spooled).exists()


def test_discarded_spool_file_is_gone(store: Store) -> None:
    unfinished = store.spool()
    unfinished.write(b"x")
    unfinished.discard()
    finished = store.spool()
    finished.write(b"x")
    spooled = finished.finish()
    finished.discard()
    assert not store.read_spooled(spooled).exists()
    assert list(store.read_spooled(spooled).parent.iterdir()) == []


def test_idempotency_key_is_bound_in_the_same_transaction(store: Store) -> None:
    store.database.write(
        lambda conn: conn.execute(
            insert(schema.idempotency_keys).values(
                organization_id=ORGANIZATION, key="once", request_hash=b"h", created_at=AT
            )
        )
    )
    item = record(idempotency_key="once")
    deliver(store, item)
    assert rows(store.database, schema.idempotency_keys)[0].message_id == item.message_id


def test_message_id_given_twice_is_delivered_once(store: Store, directory: Path) -> None:
    item = record()
    first = deliver(store, item)
    assert deliver(store, item) == first
    twin = record()
    promises = [accept(store, other) for other in (item, twin, twin, item)]
    assert all(promise.applied.wait(30) for promise in promises)
    assert promises[0].placed == promises[3].placed == first
    assert promises[1].placed == promises[2].placed
    assert len(mail_files(directory)) == len(rows(store.database, schema.entries)) == 2


def test_missing_folder_falls_back_to_the_inbox(store: Store, directory: Path) -> None:
    (placed,) = deliver(store, record(local=(local(folder="Nowhere"),)))
    (folder,) = rows(store.database, schema.folders, schema.folders.c.id == placed.folder_id)
    assert folder.name == "INBOX"
    assert [path.split("/")[0] for path in mail_files(directory)] == ["new"]


def test_folder_has_its_own_maildir_plus_plus_directory(store: Store, directory: Path) -> None:
    deliver(store, record(local=(local(folder="Work/2026"),)))
    assert [path.rsplit("/", 1)[0] for path in mail_files(directory)] == [".Work.2026/new"]
    assert (directory / "mail/inb_0/.Work.2026/maildirfolder").exists()


@pytest.mark.parametrize("mailbox_id", ["inb_none", "inb_2", "inb_other"])
def test_message_for_a_mailbox_that_is_gone_is_put_aside(
    store: Store, directory: Path, mailbox_id: str
) -> None:
    def change(conn: Connection) -> None:
        conn.execute(update(schema.mailboxes).where(schema.mailboxes.c.id == "inb_2").values(state="closed"))
        add_organization(conn, "org_other")
        add_mailbox(conn, "inb_other", organization_id="org_other")

    store.database.write(change)
    item = record(local=(local(mailbox_id), local("inb_0")))
    placed = deliver(store, item)
    assert [(place.mailbox_id, place.uid) for place in placed] == [(mailbox_id, 0), ("inb_0", 1)]
    (aside,) = (directory / "aside").iterdir()
    assert aside.read_bytes() == file_octets(item, item.local[0])
    (event,) = rows(store.database, schema.events, schema.events.c.kind == "message.aside")
    assert (event.message_id, aside.name in event.data) == (item.message_id, True)
    assert mail_files(directory, mailbox_id) == {}


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "message.bounced"),
        ({"source": Source.LMTP}, "message.bounced"),
        ({"source": Source.LOCAL}, "message.bounced"),
        ({"source": Source.API}, "message.aside"),  # a sender's own copy
        ({"envelope": Envelope(None, (Recipient("inb_2@b.example"),))}, "message.aside"),
        (
            {"envelope": Envelope("a@a.example", (Recipient("inb_2@b.example", frozenset({"NEVER"})),))},
            "message.aside",
        ),
        (
            {"envelope": Envelope("a@a.example", (Recipient("other@b.example"),))},
            "message.aside",
        ),  # a copy by policy
    ],
)
def test_the_sender_is_told_of_a_closed_inbox_where_one_may_be(
    store: Store, directory: Path, changes: dict, kind: str
) -> None:
    store.database.write(
        lambda conn: conn.execute(
            update(schema.mailboxes).where(schema.mailboxes.c.id == "inb_2").values(state="closed")
        )
    )
    envelope = Envelope("a@a.example", (Recipient("inb_2@b.example", None, "rfc822;first@b.example"),))
    item = record(**{"local": (local("inb_2"),), "envelope": envelope, **changes})
    deliver(store, item)
    (event,) = rows(
        store.database, schema.events, schema.events.c.kind.in_(["message.bounced", "message.aside"])
    )
    data = json.loads(event.data)
    assert event.kind == kind
    assert (directory / "aside" / data["file"]).read_bytes() == file_octets(item, item.local[0])
    if kind == "message.bounced":
        assert (data["code"], data["enhanced"]) == (550, "5.2.1")


@pytest.mark.parametrize("state", ["suspended", "organization"])
def test_a_suspended_inbox_or_organization_holds_what_was_accepted(
    store: Store, directory: Path, state: str
) -> None:
    table = schema.organizations if state == "organization" else schema.mailboxes
    store.database.write(lambda conn: conn.execute(update(table).values(state="suspended")))
    (placed,) = deliver(store, record())
    assert placed.uid == 1
    assert len(mail_files(directory)) == 1


def test_mailbox_closed_after_it_was_remembered_gets_nothing(store: Store, directory: Path) -> None:
    deliver(store, record())
    store.database.write(lambda conn: conn.execute(update(schema.mailboxes).values(state="closed")))
    (placed,) = deliver(store, record())
    assert placed.uid == 0
    assert len(mail_files(directory)) == 1
    assert len(list((directory / "aside").iterdir())) == 1


def test_folder_renamed_after_it_was_remembered_gets_its_file_in_the_new_place(
    store: Store, directory: Path
) -> None:
    (before,) = deliver(store, record(local=(local(folder="Work/2026"),)))

    def rename(conn: Connection) -> None:
        conn.execute(update(schema.folders).where(schema.folders.c.id == before.folder_id).values(name="Old"))
        os.rename(directory / "mail/inb_0/.Work.2026", directory / "mail/inb_0/.Old")

    store.database.write(rename)
    (after,) = deliver(store, record(local=(local(folder="Work/2026"),)))
    # The old name is nowhere now: the inbox takes it, and nothing stays where the folder was.
    assert after.folder_id != before.folder_id
    assert sorted(path.rsplit("/", 1)[0] for path in mail_files(directory)) == [".Old/new", "new"]


def test_folder_deleted_after_it_was_remembered_falls_back_to_the_inbox(
    store: Store, directory: Path
) -> None:
    (before,) = deliver(store, record(local=(local(folder="Work/2026"),)))

    def drop(conn: Connection) -> None:
        conn.execute(delete(schema.entries).where(schema.entries.c.folder_id == before.folder_id))
        conn.execute(delete(schema.folders).where(schema.folders.c.id == before.folder_id))

    store.database.write(drop)
    (after,) = deliver(store, record(local=(local(folder="Work/2026"),)))
    assert after.folder_id != before.folder_id
    (entry,) = rows(store.database, schema.entries)
    assert f"new/{entry.name}" in mail_files(directory)


def test_record_no_database_takes_is_put_aside_and_spares_the_others(store: Store, directory: Path) -> None:
    twin = Event("evt_twin", "x", AT, ORGANIZATION)
    deliver(store, record(events=(twin,)))
    poison = record(content("poison"), events=(twin,))
    orphan = record(content("orphan"), organization_id="org_gone", local=(), remote=(remote(),))
    promises = [accept(store, item) for item in (record(), poison, orphan, record())]
    assert all(promise.applied.wait(30) for promise in promises)
    assert [promise.placed[0].uid if promise.placed else None for promise in promises] == [2, 0, None, 3]
    assert sorted(path.name for path in (directory / "aside").iterdir()) == sorted(
        [f"{poison.message_id}.eml", f"{orphan.message_id}.eml"]
    )
    assert len(mail_files(directory)) == 3
    asides = rows(store.database, schema.events, schema.events.c.kind == "message.aside")
    assert {event.message_id for event in asides} == {poison.message_id, orphan.message_id}


def test_message_that_cannot_be_rendered_is_delivered_with_an_event(
    directory: Path, database_url: str
) -> None:
    def render(octets: bytes) -> Rendered:
        if b"strange" in octets:
            raise RecursionError("too deep")
        return rendition.plain(octets)

    with opened(directory, database_url, render=render) as store:
        fill(store.database)
        item = record(content("strange"))
        deliver(store, item)
        deliver(store, record())
        (rendered,) = rows(
            store.database, schema.renditions, schema.renditions.c.message_id == item.message_id
        )
        assert bytes(rendered.envelope).startswith(b"(NIL NIL")
        (event,) = rows(store.database, schema.events, schema.events.c.kind == "message.unrendered")
        assert event.message_id == item.message_id
        assert len(mail_files(directory)) == 2


def rendering(**changes):
    def render(octets: bytes) -> Rendered:
        plain = rendition.plain(octets)
        fields = {name: getattr(plain, name) for name in Rendered.__slots__}
        given = dict(line.split(": ", 1) for line in octets.decode().split("\r\n") if ": " in line)
        fields["message_id"] = given.get("Message-ID", "")
        fields["in_reply_to"] = given.get("In-Reply-To", "")
        fields["references"] = given.get("References", "")
        return Rendered(**(fields | changes))

    return render


def test_replies_join_the_thread_of_what_they_refer_to(directory: Path, database_url: str) -> None:
    with opened(directory, database_url, render=rendering()) as store:
        fill(store.database)
        store.database.write(lambda conn: add_organization(conn, "org_other"))

        def send(headers: str, organization_id: str = ORGANIZATION) -> str:
            item = record(
                content("x", headers=headers), organization_id=organization_id, local=(), remote=(remote(),)
            )
            deliver(store, item)
            (row,) = rows(store.database, schema.messages, schema.messages.c.id == item.message_id)
            return row.thread_id

        first = send("Message-ID: <1@a.example>\r\n")
        other = send("Message-ID: <2@a.example>\r\n")
        assert first.startswith("thr_") and first != other
        assert send("Message-ID: <3@a.example>\r\nIn-Reply-To: <1@a.example>\r\n") == first
        assert send("Message-ID: <4@a.example>\r\nReferences: <2@a.example> <3@a.example>\r\n") == first
        assert (
            send(
                "Message-ID: <5@a.example>\r\nReferences: <gone@a.example>\r\nIn-Reply-To: <2@a.example>\r\n"
            )
            == other
        )
        assert send("In-Reply-To: <1@a.example>\r\n", "org_other") not in (first, other)


def test_messages_of_one_batch_thread_with_each_other(directory: Path, database_url: str) -> None:
    with opened(directory, database_url, render=rendering()) as store:
        fill(store.database)
        chain = [record(content("x", headers="Message-ID: <0@a.example>\r\n"))]
        for number in range(1, 20):
            headers = f"Message-ID: <{number}@a.example>\r\nReferences: <{number - 1}@a.example>\r\n"
            chain.append(record(content("x", headers=headers)))
        promises = [accept(store, item) for item in chain]
        assert all(promise.applied.wait(30) for promise in promises)
        assert len({row.thread_id for row in rows(store.database, schema.messages)}) == 1


def test_text_no_database_takes_is_made_clean(directory: Path, database_url: str) -> None:
    strange = "a\0b\udc80c\U0001f600"
    with opened(
        directory,
        database_url,
        render=rendering(subject=strange, text=strange, message_id="<" + "x" * 4000 + ">"),
    ) as store:
        fill(store.database)
        deliver(store, record())
        (row,) = rows(store.database, schema.messages)
        assert row.subject == "ab?c\U0001f600"
        assert 0 < len(row.message_id_header) <= 500
