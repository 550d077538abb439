"""Mail that brings reports of others: each placed message for a report address is looked at once.

Owns the consumer of placed messages with its durable cursor, its patience with faults of this
server, and the share of a core that reports may take. Reads no report: what one says, and what is
kept of it, is the reader's. The mail itself stays where it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from storage import accounts, dmarc, events, ids, messages
from storage.codec import read_verdicts
from storage.errors import StorageError
from storage.records import Event

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from server.threads import Hub, Threads
    from storage.db import Notice
    from storage.maildir import Maildir

PAGE = 100
PAUSE_SECONDS = 2.0
LOOK_SECONDS = 60.0
TROUBLE_SECONDS = 30.0
REST = 3.0  # times as long as a report took to read
CURSOR_LAG = 10_000
ATTEMPTS = 3
LOOKS = 3

log = structlog.get_logger("reports")

Unit = Callable[["Connection"], None]
# Reads a message and returns what is to be written; raises Unreadable.
Reading = Callable[[Event, bytes], Awaitable[Sequence[Unit]]]


class Unreadable(ValueError):
    """A report that cannot be read; the text says why."""


class ReportMail:
    """Gives placed messages to a reader, from start to stop.

    kind: of events, 'dmarc' or 'tls'. local_parts: of report addresses at any domain.
    """

    def __init__(
        self,
        *,
        threads: Threads,
        hub: Hub,
        maildir: Maildir,
        clock: Clock,
        kind: str,
        cursor: str,
        local_parts: Sequence[str],
        max_octets: int,
        read: Reading,
    ) -> None:
        self._threads = threads
        self._hub = hub
        self._maildir = maildir
        self._clock = clock
        self._kind = kind
        self._cursor = cursor
        self._local_parts = tuple(local_parts)
        self._max_octets = max_octets
        self._read = read
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._seen = 0
        self._stored = 0
        self._troubles = 0

    async def start(self) -> None:
        """Go on where the last run ended."""
        self._seen = self._stored = await self._threads.read(partial(events.cursor, name=self._cursor))
        self._wake.set()
        self._unsubscribe = self._hub.subscribe("events", None, self._on_notice)
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End; what was not read yet is read after the next start."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    def _on_notice(self, _notice: Notice) -> None:
        self._wake.set()

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            pause = PAUSE_SECONDS
            try:
                await self.catch_up()
                self._troubles = 0
            except (StorageError, OSError) as error:
                log.error("a report is not read, trying again", kind=self._kind, problem=str(error))
                pause = TROUBLE_SECONDS
                self._wake.set()
            except Exception:
                log.exception("a report is not read, trying again", kind=self._kind)
                self._troubles += 1
                pause = TROUBLE_SECONDS
                self._wake.set()
            await asyncio.sleep(pause)

    async def catch_up(self) -> None:
        """Read all reports that have come since the last time."""
        full = True
        while full:
            newest, page = await self._threads.read(self._page)
            full = len(page) >= PAGE
            for event in page:
                begun = self._clock.monotonic()
                await self._take(event)
                # Who sends the largest reports without end gets a part of one core and no more.
                await asyncio.sleep(REST * (self._clock.monotonic() - begun))
            if not full:
                self._seen = max(self._seen, newest)
        if self._seen - self._stored >= CURSOR_LAG:
            await self._write([], seq=self._seen)

    def _page(self, connection: Connection) -> tuple[int, list[Event]]:
        newest = dmarc.newest_seq(connection)
        page = dmarc.received(connection, after=self._seen, local_parts=self._local_parts, limit=PAGE)
        return newest, page

    async def _take(self, event: Event) -> None:
        try:
            content = await self._content(event)
            units = [] if content is None else await self._read(event, content)
        except Unreadable as error:
            units = [self._unreadable(event, str(error))]
        except (StorageError, OSError):
            raise
        except Exception:
            if self._troubles < ATTEMPTS:
                raise
            log.exception("report given up", kind=self._kind, message=event.message_id)
            units = [self._unreadable(event, "an error in this server")]
        await self._write(units, seq=event.seq)

    def _unreadable(self, event: Event, text: str) -> Unit:
        return telling(self.event(event, f"{self._kind}.report_unreadable", {"text": text}))

    async def _content(self, event: Event) -> bytes | None:
        """Return a placed message; None where it is gone already."""
        assert event.message_id is not None and event.mailbox_id is not None
        for _ in range(LOOKS):
            found = await self._threads.read(
                partial(
                    messages.find,
                    organization_id=event.organization_id,
                    mailbox_id=event.mailbox_id,
                    message_id=event.message_id,
                )
            )
            if found is None:
                return None
            if found.entry.octets > self._max_octets:
                raise Unreadable(f"the mail is larger than {self._max_octets} octets")
            path = self._maildir.entry_path(event.mailbox_id, found.folder, found.entry)
            with suppress(FileNotFoundError):  # a flag renamed it meanwhile
                return await self._threads.run(Path.read_bytes, path)
        return None

    async def _write(self, units: Sequence[Unit], *, seq: int) -> None:
        def unit(connection: Connection) -> None:
            for one in units:
                one(connection)
            events.advance(connection, name=self._cursor, seq=seq)

        await self._threads.write(unit)
        self._seen = self._stored = seq

    def event(self, about: Event, kind: str, data: dict[str, object]) -> Event:
        """Return an event about the message that brought a report."""
        return Event(
            id=ids.new("evt"),
            kind=kind,
            at=self._clock.now(),
            organization_id=about.organization_id,
            message_id=about.message_id,
            mailbox_id=about.mailbox_id,
            data=data,
        )


def telling(event: Event) -> Unit:
    """Return what writes an event."""

    def unit(connection: Connection) -> None:
        events.append(connection, [event])

    return unit


def find_owner(connection: Connection, name: str) -> tuple[str, str] | None:
    """Return organization and name of the appliance's domain that a name is, or is below."""
    labels = name.split(".")
    for start in range(max(0, len(labels) - 8), len(labels) - 1):
        found = accounts.find_domain(connection, name=".".join(labels[start:]))
        if found is not None:
            return found.organization_id, found.name
    return None


def is_authenticated(connection: Connection, event: Event) -> bool:
    """Whether the mail that an event is about passed DMARC."""
    assert event.message_id is not None
    row = messages.facts(connection, organization_id=event.organization_id, message_id=event.message_id)
    verdicts = () if row is None else read_verdicts(row.verdicts)
    return any((one.method, one.result) == ("dmarc", "pass") for one in verdicts)
