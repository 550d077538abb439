"""An inbox with messages on disk and in the tables, for tests of what holds mail."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, insert

from storage import mailboxes, schema
from storage.db import Database, Notice
from storage.mailboxes import FlagMode, Stored
from storage.maildir import Maildir, base_name, info, relative_path
from storage.mirror import mirror
from storage.records import Entry, Folder, Rendered
from storage.rendition import plain
from storage.scan import Scanned, scan
from tests.storage.queued import message_values

T = TypeVar("T")
NOW = 1_800_000_000_000_000
INSTANCE = "abcdefgh"
FOREIGN = b"From: b@peer.test\r\nSubject: from outside\r\n\r\nHi.\r\n"
ORGANIZATION, MAILBOX = "org_a", "inb_a"
SECOND = 1_000_000
CONTENT = b"From: a@peer.test\r\nSubject: hello\r\n\r\nHello.\r\n"


@dataclass
class Mailroom:
    """The store's parts as a test holds them."""

    database: Database
    maildir: Maildir
    directory: Path
    folders: dict[str, Folder]
    notices: list[Notice] = field(default_factory=list)
    sequence: int = 0

    def write(self, unit: Callable[[Connection], T]) -> T:
        return self.database.write(unit)

    def read(self, unit: Callable[[Connection], T]) -> T:
        return self.database.read(unit)

    def rows(self, text: str, *values: Any) -> list[Any]:
        def unit(connection: Connection) -> list[Any]:
            marked = text if self.database.dialect == "sqlite" else text.replace("?", "%s")
            return list(connection.exec_driver_sql(marked, values).fetchall())

        return self.read(unit)

    def add(
        self,
        count: int = 1,
        *,
        folder: str = "INBOX",
        flags: int = 0,
        keywords: str = "",
        content: bytes = CONTENT,
        files: bool = True,
    ) -> list[int]:
        """Put messages into a folder as apply does, and return their UIDs."""
        found = self.folders[folder]
        path = self.maildir.ensure(found.mailbox_id, folder)
        letters = info(flags)
        subdirectory = "cur" if letters else "new"
        bases = []
        for _ in range(count):
            self.sequence += 1
            bases.append(base_name(at=NOW, sequence=self.sequence, index=0, instance=INSTANCE))
            if files:
                (path / relative_path(bases[-1], subdirectory, letters)).write_bytes(content)

        def unit(connection: Connection) -> list[int]:
            first, modseq = _advance(connection, found.id, count)
            messages, rendered, entries = [], [], []
            for index, base in enumerate(bases):
                message_id = f"msg_{found.id:04}{first + index:010}"
                digest = hashlib.sha256(content).digest()
                messages.append(message_values(message_id, octets=len(content), digest=digest, spooled=0))
                rendered.append(rendition_values(message_id))
                entries.append(
                    {
                        "folder_id": found.id,
                        "uid": first + index,
                        "modseq": modseq,
                        "message_id": message_id,
                        "flags": flags,
                        "keywords": keywords,
                        "internal_date": NOW + index,
                        "octets": len(content),
                        "prefix_octets": 0,
                        "name": base,
                        "subdirectory": subdirectory,
                        "mirrored": letters,
                        "mirror_due": 0,
                    }
                )
            connection.execute(insert(schema.messages), messages)
            connection.execute(insert(schema.renditions), rendered)
            connection.execute(insert(schema.entries), entries)
            connection.execute(
                schema.mailboxes.update()
                .where(schema.mailboxes.c.id == found.mailbox_id)
                .values(used_octets=schema.mailboxes.c.used_octets + count * len(content))
            )
            connection.execute(schema.journals.update().values(applied_sequence=self.sequence))
            return list(range(first, first + count))

        return self.write(unit)

    def entries(self, folder: str = "INBOX") -> list[Entry]:
        everything = range(1, 1 << 32)
        folder_id = self.folder(folder).id
        return self.read(lambda c: mailboxes.entries(c, folder_id=folder_id, uids=everything))

    def folder(self, name: str = "INBOX") -> Folder:
        found = self.read(lambda c: mailboxes.find_folder(c, mailbox_id=MAILBOX, name=name))
        assert found is not None
        return found

    def path(self, folder: str = "INBOX") -> Path:
        return self.maildir.folder_path(MAILBOX, folder)

    def files(self, folder: str = "INBOX") -> list[str]:
        """What lies in a folder's new and cur."""
        path = self.path(folder)
        return sorted(f"{one}/{name}" for one in ("new", "cur") for name in os.listdir(path / one))

    def used(self) -> int:
        return int(self.rows("SELECT used_octets FROM mailboxes WHERE id = ?", MAILBOX)[0][0])

    def expunge(self, uids: Sequence[int] | None, folder: str = "INBOX") -> list[int]:
        folder_id = self.folders[folder].id
        return self.write(
            lambda c: mailboxes.expunge(c, maildir=self.maildir, folder_id=folder_id, uids=uids, at=NOW)
        )

    def is_consistent(self) -> bool:
        """Whether every entry has its file under its name, in every folder."""
        return all(
            self.maildir.entry_path(MAILBOX, name, entry).is_file()
            for name in self.folders
            for entry in self.entries(name)
        )


def _advance(connection: Connection, folder_id: int, count: int) -> tuple[int, int]:
    from storage.folders import advance

    return advance(connection, folder_id, uids=count)


def rendition_values(message_id: str) -> dict[str, Any]:
    """A row of renditions with every column filled."""
    return {
        "message_id": message_id,
        "header_octets": 36,
        "envelope": b"(NIL)",
        "body": b'("TEXT" "PLAIN")',
        "bodystructure": b'("TEXT" "PLAIN" NIL)',
        "parts": b"{}",
        "preview": "Hello.",
        "attachments": 0,
        "text": "hello",
    }


def open_mailroom(database: Database, directory: Path) -> Mailroom:
    """Make an organization with one inbox and its folders."""

    def unit(connection: Connection) -> list[Folder]:
        connection.execute(
            insert(schema.organizations).values(id=ORGANIZATION, name="a", state="active", created_at=NOW)
        )
        connection.execute(
            insert(schema.mailboxes).values(
                id=MAILBOX,
                organization_id=ORGANIZATION,
                address="a@ours.test",
                display_name="",
                state="active",
                quota_octets=0,
                used_octets=0,
                retention_class="standard",
                created_at=NOW,
            )
        )
        connection.execute(
            insert(schema.journals).values(instance=INSTANCE, applied_sequence=0, updated_at=NOW)
        )
        return mailboxes.create_mailbox_folders(connection, mailbox_id=MAILBOX, at=NOW)

    folders = database.write(unit)
    mail = directory / "mail"
    mail.mkdir()
    room = Mailroom(database, Maildir(mail), directory, {folder.name: folder for folder in folders})
    database.listen(room.notices.extend)
    return room


# ---- acts of clients ----


def create(room: Mailroom, name: str, at: int = NOW) -> mailboxes.Snapshot:
    folder = room.write(lambda c: mailboxes.create_folder(c, mailbox_id=MAILBOX, name=name, at=at))
    room.folders[folder.name] = folder
    return room.read(lambda c: mailboxes.snapshot(c, folder_id=folder.id))


def rename(room: Mailroom, name: str, new_name: str) -> None:
    room.write(
        lambda c: mailboxes.rename_folder(
            c, mailbox_id=MAILBOX, name=name, new_name=new_name, maildir=room.maildir, at=NOW
        )
    )


def delete(room: Mailroom, name: str) -> None:
    room.write(lambda c: mailboxes.delete_folder(c, mailbox_id=MAILBOX, name=name, maildir=room.maildir))


def names(room: Mailroom) -> list[str]:
    return [folder.name for folder in room.read(lambda c: mailboxes.folders(c, mailbox_id=MAILBOX))]


def store(
    room: Mailroom,
    uids: Sequence[int],
    mode: FlagMode,
    flags: int = 0,
    *keywords: str,
    unchanged_since: int | None = None,
) -> Stored:
    return room.write(
        lambda c: mailboxes.store_flags(
            c,
            folder_id=room.folders["INBOX"].id,
            uids=uids,
            mode=mode,
            flags=flags,
            keywords=keywords,
            unchanged_since=unchanged_since,
        )
    )


def transfer(room: Mailroom, uids: Sequence[int], target: str, *, is_move: bool) -> list[tuple[int, int]]:
    act = mailboxes.move if is_move else mailboxes.copy
    source_id, target_id = room.folders["INBOX"].id, room.folders[target].id
    return room.write(
        lambda c: act(
            c, maildir=room.maildir, source_id=source_id, target_id=target_id, uids=uids, at=NOW + SECOND
        )
    )


def vanished(room: Mailroom, folder: str = "INBOX", since: int = 0) -> list[int]:
    folder_id = room.folders[folder].id
    return room.read(lambda c: mailboxes.changes(c, folder_id=folder_id, since=since)).vanished


# ---- the directory, and other programs in it ----


def with_directories(room: Mailroom) -> Mailroom:
    """Make the directories of all folders, which delivery makes when first needed."""
    for name in room.folders:
        room.maildir.ensure(MAILBOX, name)
    return room


def render(content: bytes) -> Rendered:
    return plain(content)


def look(room: Mailroom, folder: str = "INBOX", renderer: Callable[[bytes], Rendered] = render) -> Scanned:
    return scan(
        room.database, maildir=room.maildir, folder_id=room.folders[folder].id, render=renderer, at=NOW
    )


def put(room: Mailroom, path: str, content: bytes = FOREIGN, folder: str = "INBOX") -> Path:
    target = room.path(folder) / path
    target.write_bytes(content)
    return target


def flag(room: Mailroom, uids: list[int], mode: FlagMode, flags: int) -> None:
    folder_id = room.folders["INBOX"].id
    room.write(lambda c: mailboxes.store_flags(c, folder_id=folder_id, uids=uids, mode=mode, flags=flags))


def settle(room: Mailroom) -> int:
    """Mirror all that is due; how many files were renamed or removed."""
    files, again = 0, True
    while again:
        done = mirror(room.database, maildir=room.maildir)
        files, again = files + done.files, done.again
    return files


def read(room: Mailroom, uid: int, folder: str = "INBOX") -> bytes:
    entry = next(entry for entry in room.entries(folder) if entry.uid == uid)
    return room.maildir.entry_path(MAILBOX, folder, entry).read_bytes()


NOTHING = (0, 0, 0, 0)


def done(scanned: Scanned) -> tuple[int, int, int, int]:
    return scanned.received, scanned.changed, scanned.vanished, scanned.removed
