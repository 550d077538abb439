"""A report for each period and domain, sent to whom the domain names: the loop of DMARC's and TLS' reports.

Owns when a period is reported and that nobody gets one report twice: the message id follows from
period, domain and destination, and what was sent is written down. Sends only as a domain of this
appliance that signs. What a report says and where it goes is the kind's own.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import structlog

from server.arrival import Arrival
from server.mail.address import parse_mailbox
from server.mail.compose import Attachment, Draft, NamedAddress, compose
from server.refusal import Refusal
from storage import accounts, ids
from storage.errors import StorageError
from storage.records import Envelope, Event, Peer, Recipient, Source
from storage.report_tables import DAY, SECOND, ReportTables

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from server.dns import Resolver
    from server.intake import Intake
    from server.threads import Threads

LOOK_SECONDS = 60.0
PAGE = 50
AT_ONCE = 10
RETRY_SECONDS = 1800

log = structlog.get_logger("reports")


class Period(Protocol):
    """What is to be reported; times in microseconds."""

    @property
    def begin_at(self) -> int:
        """When it began."""
        ...

    @property
    def end_at(self) -> int:
        """When it ended."""
        ...

    @property
    def domain(self) -> str:
        """Whom it is for."""
        ...


class Settings(Protocol):
    """What the settings say of a kind of reports."""

    @property
    def report_address(self) -> str:
        """Whom they are from."""
        ...

    @property
    def keep_days(self) -> int:
        """How long those of others are kept."""
        ...

    @property
    def sends(self) -> bool:
        """Whether any are sent."""
        ...


P = TypeVar("P", bound=Period)
S = TypeVar("S", bound=Settings)


class Reporter(ABC, Generic[P, S]):
    """Sends what is due, from start to stop; without settings to send it only prunes.

    name: of the kind, for the log; kind: of its events; tables: its rows; salt: of its ids.
    """

    name: str
    kind: str
    salt: str
    tables: ReportTables

    def __init__(
        self,
        *,
        threads: Threads,
        intake: Intake,
        resolver: Resolver,
        clock: Clock,
        settings: S,
        hostname: str,
    ) -> None:
        self._threads = threads
        self._intake = intake
        self._resolver = resolver
        self._clock = clock
        self._settings = settings
        self._hostname = hostname
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    def _due(self, connection: Connection, *, at: int) -> Sequence[P]:
        """Return a page of the periods that are due."""

    @abstractmethod
    async def _report(self, period: P, owner: str) -> None:
        """Report a period, and finish or postpone it. owner: the organization that sends."""

    async def start(self) -> None:
        """Begin to look for what is due."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End; what was not sent is sent after the next start."""
        self._stop.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        while not self._stop.is_set():
            try:
                await self.look()
            except (Refusal, StorageError, OSError) as error:
                log.error(f"{self.name} reports wait, trying again", problem=str(error))
            except Exception:
                log.exception(f"{self.name} reports wait, trying again")
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._stop.wait()

    async def look(self) -> None:
        """Send every report that is due, and forget what is too old."""
        kept = self._settings.keep_days * DAY
        while await self._threads.write(partial(self.tables.prune, at=self._clock.now(), reports_kept=kept)):
            pass
        if not self._settings.sends:
            return
        full = True
        while full:
            page = await self._threads.read(partial(self._due, at=self._clock.now()))
            full = len(page) >= PAGE
            owner = await self._sender() if page else ""
            for start in range(0, len(page), AT_ONCE):
                await self._handle(page[start : start + AT_ONCE], owner)

    async def _handle(self, periods: Sequence[P], owner: str) -> None:
        """Report some periods beside each other: the DNS of one must not hold up the rest."""
        ends = await asyncio.gather(*(self._try(one, owner) for one in periods), return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    async def _try(self, period: P, owner: str) -> None:
        """Report a period, or look at it later where that fails by an error of ours."""
        try:
            if owner and self._clock.now() >= period.end_at:
                await self._report(period, owner)
                return
        except (StorageError, OSError):
            raise
        except Exception:
            log.exception(f"a {self.name} report is not made", domain=period.domain)
        await self._postpone(period)

    async def _sender(self) -> str:
        """Return the organization that sends, '' where its domain is not ours or signs nothing."""
        domain = self._settings.report_address.rpartition("@")[2]

        def unit(connection: Connection) -> str:
            found = accounts.find_domain(connection, name=domain)
            keys = accounts.dkim_keys(connection, domain=domain)
            return found.organization_id if found is not None and keys else ""

        owner = await self._threads.read(unit)
        if not owner:
            # RFC 9990 3.5.2, RFC 8460 3: mail that brings reports carries a signature that aligns.
            log.error(f"no {self.name} report is sent: the domain has no DKIM key here", domain=domain)
        return owner

    async def _sent_to(self, period: P) -> set[str]:
        return await self._threads.read(
            partial(self.tables.sent_to, begin_at=period.begin_at, domain=period.domain)
        )

    async def _postpone(self, period: P) -> None:
        later = max(self._clock.now(), period.end_at) + RETRY_SECONDS * SECOND
        await self._threads.write(
            partial(self.tables.postpone, begin_at=period.begin_at, domain=period.domain, due_at=later)
        )

    async def _finish(self, period: P) -> None:
        await self._threads.write(partial(self.tables.finish, begin_at=period.begin_at, domain=period.domain))

    def _key(self, prefix: str, period: P, destination: str) -> str:
        key = f"{self.salt}{self._hostname} {period.domain} {period.begin_at} {destination}".encode()
        return ids.derived(prefix, key, at=period.end_at)

    async def _mail(
        self,
        period: P,
        owner: str,
        address: str,
        *,
        subject: str,
        text: str,
        attachment: Attachment,
        headers: Sequence[tuple[str, str]] = (),
        report_type: str = "",
    ) -> str:
        """Commit the mail that brings a report; a second time for the same destination does nothing."""
        message_id = self._key("msg", period, address)
        ours = parse_mailbox(self._settings.report_address, smtputf8=False)
        draft = Draft(
            from_=NamedAddress(ours),
            to=(NamedAddress(parse_mailbox(address, smtputf8=True)),),
            subject=subject,
            message_id=f"{message_id}@{self._hostname}",
            at=self._clock.now(),
            text=text,
            attachments=(attachment,),
            headers=(*headers, ("Auto-Submitted", "auto-generated")),
            report_type=report_type,
        )
        envelope = Envelope(
            # Aligned by SPF too; RFC 3461: NEVER, so that nobody answers a report with a notice.
            reverse_path=str(ours),
            recipients=(Recipient(address, frozenset({"NEVER"})),),
            smtputf8=not address.isascii(),
        )
        await self._intake.accept(
            Arrival(
                source=Source.NOTICE,
                peer=Peer(address="", helo=self._hostname),
                envelope=envelope,
                content=await self._threads.compute(compose, draft),
                message_id=message_id,
                organization_id=owner,
            )
        )
        return message_id

    async def _note(
        self,
        period: P,
        owner: str,
        destination: str,
        state: str,
        *,
        facts: Mapping[str, object],
        message_id: str | None = None,
    ) -> None:
        """Write down how it ended for a destination, with the event."""
        event = Event(
            id=ids.new("evt"),
            kind=f"{self.kind}.report_{state}",
            at=self._clock.now(),
            organization_id=owner,
            message_id=message_id,
            data={"domain": period.domain, "begin_at": period.begin_at, **facts},
        )
        await self._threads.write(
            partial(
                self.tables.note_sent,
                begin_at=period.begin_at,
                domain=period.domain,
                destination=destination,
                state=state,
                event=event,
            )
        )
