"""APPEND: a message from the client into a mailbox, as a stream.

Owns taking the literal (small ones in memory, large ones to the spool), the
normalising of line ends and the answer with the UID. The message enters the
store by intake like every other. RFC 9051 6.3.12, 4315 (APPENDUID), 7888, 7889.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from server.arrival import Arrival
from server.imap import framing, grammar
from server.imap.answer import Completion, Failed
from server.imap.line_ends import LineEnds, NulFound
from server.imap.mailbox import find_target, require_right
from server.imap.scanner import ImapSyntax
from storage import accounts
from storage.records import Envelope, LocalTarget, Peer, Source

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from server.imap import commands as c
    from server.imap.session import Session
    from storage.records import Spooled
    from storage.spool import SpoolWriter

T = TypeVar("T")


async def announced(session: Session, event: framing.Announced) -> Completion:
    """Do the APPEND whose literal stands before the reader, or refuse the literal with it."""
    try:
        tagged = grammar.parse_append(event.head)
    except ImapSyntax as error:
        session.wire.refuse_literal()
        completion = Completion(error.text, error.status, error.code)
        session.wire.write(completion.line(error.tag or b"*"))
        return completion
    session.announced = event
    completion = await session.run(tagged)
    if session.announced is not None:
        session.announced = None
        session.wire.refuse_literal()
    return completion


async def append(session: Session, command: c.Append) -> Completion:
    """APPEND; the literal is asked for only when it will be taken."""
    require_right(session)
    event = session.announced
    assert event is not None, "grammar reads APPEND from the announcement of its literal"
    settings = session.services.settings
    if event.binary:
        raise Failed("Binary literals are not supported", code=b"[UNKNOWN-CTE]")
    if event.octets > settings.max_literal_octets:
        raise Failed(f"Message is larger than {settings.max_literal_octets} octets", code=b"[TOOBIG]")
    if not event.octets:
        raise Failed("A message of no octets", code=b"[CANNOT]")
    folder = await find_target(session, command.mailbox)
    await _require_quota(session, event.octets)
    session.announced = None
    session.wire.accept_literal()
    if event.synchronising:
        session.wire.write(b"+ OK\r\n")
    body = _Body(session, event.octets)
    try:
        content = await body.read()
        return await _store(session, command, folder.name, content)
    finally:
        await body.discard()


async def _require_quota(session: Session, octets: int) -> None:
    identity = session.identity
    assert identity is not None
    organization_id, mailbox_id = identity.organization_id, session.mailbox_id
    mailbox = await session.services.threads.read(
        lambda connection: accounts.mailbox(
            connection, organization_id=organization_id, mailbox_id=mailbox_id
        )
    )
    if mailbox is None or (mailbox.quota_octets and mailbox.used_octets + octets > mailbox.quota_octets):
        raise Failed("The inbox is full", code=b"[OVERQUOTA]")


async def _store(session: Session, command: c.Append, folder: str, content: bytes | Spooled) -> Completion:
    identity = session.identity
    assert identity is not None
    arrival = Arrival(
        source=Source.APPEND,
        peer=Peer(address=session.wire.peer_address, identity=identity.id),
        envelope=Envelope(None, ()),
        content=content,
        identity=identity,
        organization_id=identity.organization_id,
        append=LocalTarget(
            mailbox_id=session.mailbox_id,
            recipient=identity.address,
            folder=folder,
            flags=command.flags,
            keywords=command.keywords,
            internal_date=command.internal_date or 0,
        ),
    )
    # Once begun it is seen through, though the client may be gone meanwhile.
    accepting = asyncio.ensure_future(session.services.intake.accept(arrival, wait_applied=True))
    receipt = await asyncio.shield(accepting)
    placed = receipt.placed[0]
    if not placed.uid:
        raise Failed("Mailbox does not exist", code=b"[TRYCREATE]")
    if session.folder is not None and session.folder.record.id == placed.folder_id:
        await session.folder.refresh(placed.modseq)
    return Completion("APPEND done", code=b"[APPENDUID %d %d]" % (placed.uidvalidity, placed.uid))


class _Body:
    """The message literal on its way in: in memory up to the threshold, else in a spool file."""

    def __init__(self, session: Session, octets: int) -> None:
        self._session = session
        self._line_ends = LineEnds()
        self._in_memory = octets <= session.services.bounds.spool_threshold_octets
        self._pieces: list[bytes] = []
        self._writer: SpoolWriter | None = None
        self._kept = False
        self._working: asyncio.Future[Any] | None = None  # file work that a cancellation leaves behind

    async def read(self) -> bytes | Spooled:
        """Return the whole content; raises Failed for what is no message or is followed by something."""
        last = False
        while not last:
            event = await self._session.wire.event()
            assert isinstance(event, framing.Chunk)
            last = event.last
            try:
                await self._take(self._line_ends.feed(event.data))
            except NulFound:
                self._session.wire.abandon_command()
                raise Failed("A message must not hold NUL", status=b"BAD") from None
            except Exception:
                self._session.wire.abandon_command()
                raise
        await self._require_end()
        if self._in_memory:
            return b"".join(self._pieces)
        assert self._writer is not None
        spooled = await self._work(self._session.services.threads.run(self._writer.finish))
        self._kept = True
        return spooled

    async def _take(self, data: bytes) -> None:
        if self._in_memory:
            self._pieces.append(data)
            return
        if self._writer is None:
            await self._work(self._open())
        assert self._writer is not None
        await self._work(self._session.services.threads.run(self._writer.write, data))

    async def _open(self) -> None:
        services = self._session.services
        self._writer = await services.threads.run(services.intake.spool)

    async def _work(self, work: Coroutine[object, object, T]) -> T:
        """Do file work to its end, so that nobody discards a file that a thread is writing to."""
        task = asyncio.ensure_future(work)
        self._working = task
        return await asyncio.shield(task)

    async def _require_end(self) -> None:
        event = await self._session.wire.event()
        if isinstance(event, framing.Announced):
            self._session.wire.refuse_literal()
            raise Failed("One message at a time", status=b"BAD")
        if not isinstance(event, framing.Tail) or event.data:
            raise Failed("Expected the end of the command behind the message", status=b"BAD")

    async def discard(self) -> None:
        """Remove the spool file of a message that was not accepted."""
        if self._working is not None and not self._working.done():
            await asyncio.wait([self._working])
        if self._writer is not None and not self._kept:
            await self._session.services.threads.run(self._writer.discard)
