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
from storage.maildir import Maildir, base_name, info, relative_path
from storage.records import Entry, Folder
from tests.storage.queued import message_values

T = TypeVar("T")
NOW = 1_800_000_000_000_000
INSTANCE = "abcdefgh"
ORGANIZATION, MAILBOX = "org_a", "inb_a"
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
