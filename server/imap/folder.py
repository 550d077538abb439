"""The open folders of this process, each shared by all sessions that have it selected.

Owns loading, the refreshing after a notice (one at a time a folder, however many
notices came), the waking of views, and which closed folders stay in memory.
Knows nothing of connections. RFC 9051 5.2, RFC 3501 2.3.2 (\\Recent).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from server.imap import vanished
from server.imap.view import Contents, Rows, View
from storage import mailboxes
from storage.errors import Missing
from storage.transactions import UNKNOWN

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.imap.commands import Access
    from server.threads import Hub, Threads
    from storage.db import Notice
    from storage.records import Folder

KEPT_FOLDERS = 128
KEPT_ROWS = 1_000_000

log = structlog.get_logger("imap")


class OpenFolder:
    """A folder's contents with what keeps them fresh."""

    def __init__(self, record: Folder, threads: Threads, hub: Hub) -> None:
        self.record = record
        self.gone = False
        self.opening = 0  # sessions that are about to have a view
        self.views: set[View] = set()
        self.contents: Contents | None = None
        self._threads = threads
        self._wanted = 0
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._unsubscribe = hub.subscribe("folder", str(record.id), self._heard)

    @property
    def rows(self) -> int:
        """Messages held in memory."""
        return len(self.contents.rows.uids) if self.contents else 0

    def _heard(self, notice: Notice) -> None:
        if notice.position == UNKNOWN:
            self._start(self._look())
            return
        self._wanted = max(self._wanted, notice.position)
        if self.views and self.is_behind and not self._lock.locked():
            self._start(self.refresh())

    async def _look(self) -> None:
        """Find out whether anything changed that nobody told of."""
        try:
            now = await self._threads.read(lambda c: mailboxes.folder_by_id(c, folder_id=self.record.id))
        except Missing:
            self.gone = True
            self.wake()
            return
        self._wanted = max(self._wanted, now.highestmodseq)
        if self.views and self.is_behind:
            await self.refresh()

    def _start(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]  # a coroutine of this class
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("folder not refreshed", folder=self.record.id, error=repr(task.exception()))

    @property
    def is_behind(self) -> bool:
        """Whether a change was heard of that is not here yet."""
        return self.contents is None or self.contents.highestmodseq < self._wanted

    async def load(self) -> Contents:
        """Return the contents, read from storage where they are not there yet; raises Missing."""
        async with self._lock:
            if self.contents is None:
                self.contents = await self._threads.read(self._read)
        return self.contents

    def _read(self, connection: Connection) -> Contents:
        snapshot = mailboxes.snapshot(connection, folder_id=self.record.id)
        recent = mailboxes.counts(connection, folder_id=self.record.id).recent
        return Contents(
            rows=Rows(snapshot.uids, snapshot.modseqs, snapshot.flags),
            keywords=snapshot.keywords,
            uidvalidity=snapshot.folder.uidvalidity,
            uidnext=snapshot.folder.uidnext,
            highestmodseq=snapshot.folder.highestmodseq,
            recent=recent,
        )

    async def refresh(self, at_least: int = 0) -> None:
        """Come up to all that was heard of, and to a MODSEQ that the caller knows; wakes the views."""
        self._wanted = max(self._wanted, at_least)
        contents = await self.load()
        before = contents.highestmodseq
        async with self._lock:
            while contents.highestmodseq < self._wanted and not self.gone:
                wanted, since = self._wanted, contents.highestmodseq
                try:
                    changes = await self._threads.read(
                        lambda c, since=since: mailboxes.changes(c, folder_id=self.record.id, since=since)  # type: ignore[misc]  # bound now
                    )
                except Missing:
                    self.gone = True
                    break
                contents.apply(
                    highestmodseq=changes.highestmodseq,
                    uidnext=changes.uidnext,
                    changed=changes.changed,
                    vanished=vanished.of_known(changes, contents.rows.uids),
                )
                if changes.highestmodseq < wanted:
                    break  # heard of more than this reader sees yet: the next notice or command asks again
        if self.gone or contents.highestmodseq != before:
            self.wake()

    def wake(self) -> None:
        """Tell every view that there is something to tell."""
        for view in tuple(self.views):
            view.wake()

    def view(self, access: Access, wake: Callable[[], None]) -> View:
        """Return a new view at the present; the folder must be loaded."""
        assert self.contents is not None
        before = self.contents.recent_next
        view = View(self.contents, access, wake)
        self.views.add(view)
        self.keep_recent(before)
        return view

    def keep_recent(self, before: int) -> None:
        """Store that messages from before on were shown as \\Recent, in the background."""
        if self.contents is not None and self.contents.recent_next != before:
            self._start(self._claim_recent())

    async def _claim_recent(self) -> None:
        try:
            await self._threads.write(lambda c: mailboxes.claim_recent(c, folder_id=self.record.id))
        except Missing:
            self.gone = True

    def close(self) -> None:
        """Stop listening."""
        self._unsubscribe()
        for task in self._tasks:
            task.cancel()


class OpenFolders:
    """All of them; those without views are kept while there is room, the longest unused go first."""

    def __init__(self, threads: Threads, hub: Hub) -> None:
        self._threads = threads
        self._hub = hub
        self._folders: OrderedDict[int, OpenFolder] = OrderedDict()

    def find(self, folder_id: int) -> OpenFolder | None:
        """Return a folder that is in memory."""
        return self._folders.get(folder_id)

    async def open(self, record: Folder) -> OpenFolder:
        """Return a folder at least as fresh as its record says; raises Missing.

        The caller takes its view before it awaits anything else.
        """
        folder = self._folders.get(record.id)
        if folder is None or folder.gone or folder.record.uidvalidity != record.uidvalidity:
            if folder is not None:
                folder.close()
            folder = self._folders[record.id] = OpenFolder(record, self._threads, self._hub)
        self._folders.move_to_end(record.id)
        folder.record = record
        folder.opening += 1
        try:
            await folder.load()
            await folder.refresh(record.highestmodseq)
        except Missing:
            self._forget(folder)
            raise
        finally:
            folder.opening -= 1
        if folder.gone:
            self._forget(folder)
            raise Missing(f"folder {record.id} is gone")
        return folder

    def watched(self) -> list[Folder]:
        """Return the folders that some session has open."""
        return [folder.record for folder in self._folders.values() if folder.views and not folder.gone]

    def release(self, folder: OpenFolder, view: View) -> None:
        """End a view."""
        folder.views.discard(view)
        if folder.gone and not folder.views:
            self._forget(folder)
        unused = [kept for kept in self._folders.values() if not kept.views and not kept.opening]
        rows = sum(kept.rows for kept in unused)
        for kept in unused:
            if len(unused) <= KEPT_FOLDERS and rows <= KEPT_ROWS:
                break
            rows -= kept.rows
            unused = unused[1:]
            self._forget(kept)

    def deleted(self, folder_id: int) -> None:
        """Hear that a folder is no more; its sessions are told."""
        folder = self._folders.get(folder_id)
        if folder is not None:
            folder.gone = True
            folder.wake()
            if not folder.views:
                self._forget(folder)

    def _forget(self, folder: OpenFolder) -> None:
        folder.close()
        if self._folders.get(folder.record.id) is folder:
            del self._folders[folder.record.id]

    def close(self) -> None:
        """Forget all of them."""
        for folder in tuple(self._folders.values()):
            self._forget(folder)
