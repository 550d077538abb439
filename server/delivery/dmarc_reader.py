"""Aggregate reports of others: recognised in the mail for report addresses, read, and kept.

Owns the consumer of placed messages with its durable cursor, and whose report it is:
that of the organization which has the reported domain, or the domains in its rows. Takes
what anybody may send: a report is a stranger's word, and whether its mail passed
DMARC is kept beside it. The mail itself stays where it is. RFC 9990 3, 8.1 and 8.2.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from server.mail.dmarc_report import (
    MAX_PACKED_OCTETS,
    AggregateReport,
    Record,
    ReportSyntax,
    parse_aggregate,
)
from server.mail.report_file import find_report
from server.sender_auth.dmarc_counts import REPORT_LOCAL_PART
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
MAX_MAIL_OCTETS = 2 * MAX_PACKED_OCTETS
LOCAL_PARTS = (REPORT_LOCAL_PART, "postmaster")
SECOND = 1_000_000

log = structlog.get_logger("dmarc")


class DmarcReader:
    """Reads reports as they come, from start to stop. address: the configured one, '' without."""

    def __init__(
        self, *, threads: Threads, hub: Hub, maildir: Maildir, clock: Clock, address: str = ""
    ) -> None:
        self._threads = threads
        self._hub = hub
        self._maildir = maildir
        self._clock = clock
        own = [address.partition("@")[0]] if address else []
        self._local_parts = tuple(dict.fromkeys((*own, *LOCAL_PARTS)))
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._seen = 0
        self._stored = 0
        self._troubles = 0

    async def start(self) -> None:
        """Go on where the last run ended."""
        self._seen = self._stored = await self._threads.read(partial(events.cursor, name=dmarc.CURSOR))
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
                log.error("a DMARC report is not read, trying again", problem=str(error))
                pause = TROUBLE_SECONDS
                self._wake.set()
            except Exception:
                log.exception("a DMARC report is not read, trying again")
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
            await self._write([], [], seq=self._seen)

    def _page(self, connection: Connection) -> tuple[int, list[Event]]:
        newest = dmarc.newest_seq(connection)
        page = dmarc.received(connection, after=self._seen, local_parts=self._local_parts, limit=PAGE)
        return newest, page

    async def _take(self, event: Event) -> None:
        kept: list[dmarc.Report] = []
        told: list[Event] = []
        try:
            kept, told = await self._read(event)
        except ReportSyntax as error:
            told = [self._event(event, "dmarc.report_unreadable", {"text": str(error)})]
        except (StorageError, OSError):
            raise
        except Exception:
            if self._troubles < ATTEMPTS:
                raise
            log.exception("report given up", message=event.message_id)
            told = [self._event(event, "dmarc.report_unreadable", {"text": "an error in this server"})]
        await self._write(kept, told, seq=event.seq)

    async def _read(self, event: Event) -> tuple[list[dmarc.Report], list[Event]]:
        """Return the reports in a placed message, and the events of those that nobody here is about."""
        content = await self._content(event)
        if content is None:
            return [], []
        report = await self._threads.compute(_parsed, content)
        if report is None:
            return [], []
        kept = await self._threads.read(partial(self._assigned, event=event, report=report))
        if kept:
            return kept, []
        text = f"{report.policy.domain!a} is no domain of this appliance"
        return [], [self._event(event, "dmarc.report_ignored", {"text": text})]

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
            if found.entry.octets > MAX_MAIL_OCTETS:
                raise ReportSyntax(f"the mail is larger than {MAX_MAIL_OCTETS} octets")
            path = self._maildir.entry_path(event.mailbox_id, found.folder, found.entry)
            with suppress(FileNotFoundError):  # a flag renamed it meanwhile
                return await self._threads.run(Path.read_bytes, path)
        return None

    def _assigned(
        self, connection: Connection, *, event: Event, report: AggregateReport
    ) -> list[dmarc.Report]:
        """Return a report as rows of the organizations that it is about."""
        owner = _owner(connection, report.policy.domain)
        if owner is not None:
            return [self._kept(connection, event, report, owner, report.records)]
        # A policy above our domain: each organization sees the rows about its own names.
        rows: dict[tuple[str, str], list[Record]] = {}
        names = {one.header_from for one in report.records}
        owners = {name: _owner(connection, name) for name in names}
        for one in report.records:
            found = owners[one.header_from]
            if found is not None:
                rows.setdefault(found, []).append(one)
        return [self._kept(connection, event, report, found, chosen) for found, chosen in rows.items()]

    def _kept(
        self,
        connection: Connection,
        event: Event,
        report: AggregateReport,
        owner: tuple[str, str],
        records: Iterable[Record],
    ) -> dmarc.Report:
        organization_id, domain = owner
        about, policy = report.metadata, report.policy
        chosen = tuple(records)
        is_theirs = organization_id == event.organization_id
        return dmarc.Report(
            id=dmarc.new_id(),
            organization_id=organization_id,
            domain=domain,
            policy_domain=policy.domain,
            reporter=about.org_name or about.email,
            report_id=about.report_id,
            email=about.email,
            begin_at=about.begin * SECOND,
            end_at=about.end * SECOND,
            policy=asdict(policy),
            messages=sum(one.count for one in chosen),
            passed=sum(one.count for one in chosen if one.passed),
            omitted_rows=0,
            authenticated=_is_authenticated(connection, event),
            # What came to another organization's inbox is not this one's to see.
            message_id=(event.message_id or "") if is_theirs else "",
            received_at=self._clock.now(),
            rows=tuple(map(_row, chosen)),
        )

    async def _write(self, kept: Iterable[dmarc.Report], told: Iterable[Event], *, seq: int) -> None:
        def unit(connection: Connection) -> None:
            for report in kept:
                if dmarc.keep(connection, report):
                    events.append(connection, [self._received(report)])
            events.append(connection, list(told))
            events.advance(connection, name=dmarc.CURSOR, seq=seq)

        await self._threads.write(unit)
        self._seen = self._stored = seq

    def _received(self, report: dmarc.Report) -> Event:
        return Event(
            id=ids.new("evt"),
            kind="dmarc.report_received",
            at=self._clock.now(),
            organization_id=report.organization_id,
            message_id=report.message_id or None,
            data={
                "report": report.id,
                "domain": report.domain,
                "reporter": report.reporter,
                "messages": report.messages,
                "passed": report.passed,
            },
        )

    def _event(self, about: Event, kind: str, data: dict[str, object]) -> Event:
        return Event(
            id=ids.new("evt"),
            kind=kind,
            at=self._clock.now(),
            organization_id=about.organization_id,
            message_id=about.message_id,
            mailbox_id=about.mailbox_id,
            data=data,
        )


def _parsed(content: bytes) -> AggregateReport | None:
    octets = find_report(content, limit_octets=MAX_PACKED_OCTETS)
    return None if octets is None else parse_aggregate(octets)


def _owner(connection: Connection, name: str) -> tuple[str, str] | None:
    """Return organization and name of the appliance's domain that a name is, or is below."""
    labels = name.split(".")
    for start in range(max(0, len(labels) - 8), len(labels) - 1):
        found = accounts.find_domain(connection, name=".".join(labels[start:]))
        if found is not None:
            return found.organization_id, found.name
    return None


def _is_authenticated(connection: Connection, event: Event) -> bool:
    assert event.message_id is not None
    row = messages.facts(connection, organization_id=event.organization_id, message_id=event.message_id)
    verdicts = () if row is None else read_verdicts(row.verdicts)
    return any((one.method, one.result) == ("dmarc", "pass") for one in verdicts)


def _row(record: Record) -> dmarc.ReportRow:
    return dmarc.ReportRow(
        source_ip=record.source_ip,
        count=record.count,
        disposition=record.disposition,
        dkim=record.dkim,
        spf=record.spf,
        header_from=record.header_from,
        envelope_from=record.envelope_from or "",
        detail={
            "reasons": [asdict(one) for one in record.reasons],
            "dkim": [asdict(one) for one in record.dkim_results],
            "spf": [asdict(one) for one in record.spf_results],
        },
    )
