"""A database that is lost is made anew from what lies beside the mail."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from storage import accounts, mailboxes, rebuild, schema
from storage.listing import Listing
from storage.lists import FOLDER_FILE, INBOX_FILE
from storage.mailboxes import FlagMode
from storage.mirror import mirror
from storage.reconcile import reconcile
from storage.records import Flag
from storage.store import Store
from tests.storage.samples import (
    AT,
    SEGMENT_OCTETS,
    content,
    deliver,
    local,
    open_store,
    opened,
    record,
    rows,
)

ADDRESS = "ann@b.example"


class Place:
    """A data directory whose database can be lost."""

    def __init__(self, directory: Path, url: str, another: Callable[[], str]) -> None:
        self.directory, self.url, self.another = directory, url, another
        self.mailbox_id = ""

    def opened(self, **changes: Any) -> Any:
        return opened(self.directory, self.url, **changes)

    def lose(self) -> None:
        self.url = self.another()

    def folder(self, store: Store, name: str = "INBOX") -> Any:
        found = store.database.read(lambda c: mailboxes.find_folder(c, mailbox_id=self.mailbox_id, name=name))
        assert found is not None
        return found

    def state(self, store: Store) -> dict[str, Any]:
        """What a client sees: by folder, UIDVALIDITY and attributes, and each message by UID."""
        seen: dict[str, Any] = {}
        for folder in store.database.read(lambda c: mailboxes.folders(c, mailbox_id=self.mailbox_id)):
            entries = store.database.read(
                lambda c, one=folder: mailboxes.entries(c, folder_id=one.id, uids=range(1, 1 << 32))
            )
            messages = {
                entry.uid: (
                    entry.flags,
                    entry.keywords,
                    entry.internal_date,
                    entry.octets,
                    store.maildir.entry_path(self.mailbox_id, folder.name, entry).read_bytes(),
                )
                for entry in entries
            }
            seen[folder.name] = (folder.uidvalidity, folder.special_use, folder.subscribed, messages)
        return seen


@pytest.fixture
def place(tmp_path: Path, empty_url: str, dialect: str, request: pytest.FixtureRequest) -> Place:
    made: list[str] = []

    def another() -> str:
        if dialect == "sqlite":
            path = tmp_path / f"another{len(made)}.sqlite"
            made.append(str(path))
            return f"sqlite:///{path}"
        cluster = request.getfixturevalue("postgresql_cluster")
        made.append(cluster.new_database())
        return str(cluster.url(made[-1]))

    return Place(tmp_path / "data", empty_url, another)


def fill(place: Place, store: Store, *, is_listed_between: bool = True) -> None:
    """An inbox with mail of all kinds, mirrored to the end."""
    listing = Listing(store.database, store.maildir)
    store.database.listen(listing.heard)

    def unit(connection: Connection) -> str:
        owner = accounts.add_organization(connection, name="b", at=AT)
        accounts.add_domain(connection, organization_id=owner.id, name="b.example", at=AT)
        made = accounts.add_mailbox(
            connection,
            organization_id=owner.id,
            address=ADDRESS,
            display_name="Ann",
            quota_octets=10**9,
            at=AT,
        )
        mailboxes.create_folder(connection, mailbox_id=made.id, name="Work/Zürich", at=AT)
        mailboxes.set_subscribed(connection, mailbox_id=made.id, name="Sent", subscribed=False)
        return made.id

    place.mailbox_id = store.database.write(unit)
    owner = rows(store.database, schema.organizations)[0].id
    for number in range(8):
        target = local(place.mailbox_id, flags=int(Flag.SEEN) * (number % 2))
        deliver(store, record(content(f"m{number}"), organization_id=owner, local=(target,), events=()))
    inbox, work = place.folder(store).id, place.folder(store, "Work/Zürich").id

    def work_on(connection: Connection) -> None:
        for uids, flags, words in (
            ([1, 2], Flag.FLAGGED | Flag.SEEN, ("blue", "Work")),
            ([3], Flag(0), ("red",)),
        ):
            mailboxes.store_flags(
                connection, folder_id=inbox, uids=uids, mode=FlagMode.SET, flags=int(flags), keywords=words
            )
        mailboxes.copy(
            connection, maildir=store.maildir, source_id=inbox, target_id=work, uids=[1, 3, 4], at=AT + 5
        )
        mailboxes.move(
            connection, maildir=store.maildir, source_id=inbox, target_id=work, uids=[5], at=AT + 6
        )
        mailboxes.expunge(connection, maildir=store.maildir, folder_id=inbox, uids=[8], at=AT)

    if is_listed_between:
        listing.run()
    store.database.write(work_on)
    while mirror(store.database, maildir=store.maildir).again:
        pass
    listing.run()


def used(store: Store) -> int:
    return int(rows(store.database, schema.mailboxes)[0].used_octets)


def test_what_was_mirrored_comes_back(place: Place) -> None:
    with place.opened() as store:
        fill(place, store)
        before, octets, next_before = place.state(store), used(store), place.folder(store).uidnext
    place.lose()
    with place.opened() as store:
        assert place.state(store) == before
        report = reconcile(store, at=AT)
        assert (report.messages_received, report.messages_expunged, report.problems) == (0, 0, ())
        assert place.state(store) == before
        assert used(store) == octets
        row = rows(store.database, schema.mailboxes)[0]
        assert (row.address, row.display_name, row.quota_octets, row.state) == (
            ADDRESS,
            "Ann",
            10**9,
            "active",
        )
        assert [one.name for one in rows(store.database, schema.domains)] == ["b.example"]
        owner = rows(store.database, schema.organizations)[0].id
        target = local(place.mailbox_id)
        (placed,) = deliver(store, record(organization_id=owner, local=(target,), events=()))
        assert placed.uid >= next_before + rebuild.GAP


def test_a_client_that_comes_back_is_told_of_everything(place: Place) -> None:
    with place.opened() as store:
        fill(place, store)
        known = place.folder(store)
    place.lose()
    with place.opened() as store:
        folder = place.folder(store)
        assert folder.highestmodseq > known.highestmodseq
        changes = store.database.read(
            lambda c: mailboxes.changes(c, folder_id=folder.id, since=known.highestmodseq)
        )
        assert list(changes.present or ()) == [1, 2, 3, 4, 6, 7]
        assert [row[0] for row in changes.changed] == [1, 2, 3, 4, 6, 7]


@pytest.mark.parametrize("is_listed_between", [False, True])
def test_mail_in_the_journal_keeps_its_uid_and_what_was_expunged_stays_so(
    place: Place, is_listed_between: bool
) -> None:
    # A crash: the journal holds records that are applied, and the lists say so.
    with place.opened() as store:
        fill(place, store, is_listed_between=is_listed_between)
        before = place.state(store)
        crashed = place.directory.with_name("crashed")
        shutil.copytree(place.directory, crashed)
    place.directory = crashed
    place.lose()
    with place.opened() as store:
        assert store.recovery.applied == 8
        if not is_listed_between:
            # The last message came and went before any list named it: it comes back, as a new one.
            inbox = place.folder(store)
            (back,) = set(place.state(store)["INBOX"][3]) - set(before["INBOX"][3])
            store.database.write(
                lambda c: mailboxes.expunge(c, maildir=store.maildir, folder_id=inbox.id, uids=[back], at=AT)
            )
        assert place.state(store) == before
        reconcile(store, at=AT)
        assert place.state(store) == before


def test_what_was_not_listed_yet_is_new(place: Place) -> None:
    with place.opened() as store:
        fill(place, store)
        uidnext = place.folder(store).uidnext
        owner = rows(store.database, schema.organizations)[0].id
        deliver(
            store, record(content("late"), organization_id=owner, local=(local(place.mailbox_id),), events=())
        )
        (placed,) = mailbox_copy(place, store)
    place.lose()
    with place.opened() as store:
        reconcile(store, at=AT)
        state = place.state(store)
        late = [one for uid, one in state["INBOX"][3].items() if uid >= uidnext + rebuild.GAP]
        assert len(late) == 1
        assert late[0][4].endswith(b"late\r\n")
        # The copy shares its file with the original, and is a message all the same.
        assert len(state["Archive"][3]) == 1
        assert placed == 1


def mailbox_copy(place: Place, store: Store) -> list[int]:
    inbox, archive = place.folder(store).id, place.folder(store, "Archive").id
    pairs = store.database.write(
        lambda c: mailboxes.copy(
            c, maildir=store.maildir, source_id=inbox, target_id=archive, uids=[1], at=AT + 9
        )
    )
    return [new for _, new in pairs]


def test_a_list_that_cannot_be_believed_means_a_new_uidvalidity(place: Place) -> None:
    with place.opened() as store:
        fill(place, store)
        before = place.state(store)
    root = place.directory / "mail" / place.mailbox_id
    (root / FOLDER_FILE).write_bytes(b"nonsense\n")
    # A list of another directory: none of its messages is here.
    shutil.copy(root / ".Work.Z&APw-rich" / FOLDER_FILE, root / ".Drafts" / FOLDER_FILE)
    (root / ".Drafts" / "cur" / "1.P.host:2,S").write_bytes(content("draft"))
    place.lose()
    with place.opened() as store:
        reconcile(store, at=AT)
        state = place.state(store)
        for name in ("INBOX", "Drafts"):
            assert state[name][0] > before[name][0]
        contents = sorted(one[4] for one in before["INBOX"][3].values())
        assert sorted(one[4] for one in state["INBOX"][3].values()) == contents
        assert len(state["Drafts"][3]) == 1
        assert state["Work/Zürich"] == before["Work/Zürich"]
        uses = {name: one[1] for name, one in state.items()}
        assert uses["Drafts"] == "\\Drafts"


def test_a_description_that_cannot_be_believed_is_left_alone(place: Place) -> None:
    with place.opened() as store:
        fill(place, store)
    (place.directory / "mail" / place.mailbox_id / INBOX_FILE).write_bytes(b"x")
    place.lose()
    with place.opened() as store:
        assert rows(store.database, schema.mailboxes) == []
        assert len(reconcile(store, at=AT).problems) == 1


def test_a_rebuilding_that_was_cut_short_is_taken_up_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with place.opened() as store:
        fill(place, store)
        before = place.state(store)
    place.lose()
    count = threading.local()
    count.left = 2
    insert = rebuild._insert

    def stopping(connection: Connection, folder_id: int, batch: Any, at: int) -> None:
        count.left = getattr(count, "left", 2) - 1
        if not count.left:
            raise KeyError("killed")
        insert(connection, folder_id, batch, at)

    with monkeypatch.context() as patch:
        patch.setattr(rebuild, "BATCH_FILES", 2)
        patch.setattr(rebuild, "_insert", stopping)
        with pytest.raises(KeyError, match="killed"):
            open_store(place.directory, place.url)
    with place.opened() as store:
        assert place.state(store) == before
        assert not [row for row in rows(store.database, schema.settings) if row.name == "rebuilding"]


def test_a_new_appliance_has_nothing_to_rebuild(place: Place) -> None:
    for _ in range(2):
        with place.opened(segment_octets=SEGMENT_OCTETS) as store:
            assert rows(store.database, schema.organizations) == []


def test_names_of_another_lost_database_never_make_copies_go(place: Place) -> None:
    with place.opened() as store:
        fill(place, store)
        before = place.state(store)
    root = place.directory / "mail" / place.mailbox_id
    for path in (root / ".Work.Z&APw-rich").glob(FOLDER_FILE):
        path.unlink()
    place.lose()
    with place.opened() as store:
        for _ in range(2):
            reconcile(store, at=AT)
        state = place.state(store)
        wanted = sorted(one[4] for one in before["Work/Zürich"][3].values())
        assert sorted(one[4] for one in state["Work/Zürich"][3].values()) == wanted
    assert os.listdir(root / ".Work.Z&APw-rich" / "tmp") == []
