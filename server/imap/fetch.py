"""FETCH: rows in turns, with the transport's backpressure, bodies by pieces.

Owns the plan of one FETCH (which columns, which octets of which files) and the
order of its turns. Holds at most ROWS rows and ROW_OCTETS octets of bodies at a
time, whatever is asked of a mailbox of whatever size. RFC 9051 6.4.5, 7162 3.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from server.imap import commands as c
from server.imap import format as wire
from server.imap import messages, rows, section, stored, vanished
from server.imap.answer import Completion, Disconnected
from server.imap.limits import CHUNK_OCTETS, ROW_OCTETS, ROWS
from server.imap.store import absorb
from storage import mailboxes
from storage.mailboxes import FlagMode
from storage.records import Flag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Row

    from server.imap.session import Session

_A = c.FetchAttribute
_IN_MEMORY = frozenset({_A.UID, _A.FLAGS, _A.MODSEQ})


@dataclass(frozen=True, slots=True)
class Plan:
    """What each row needs. columns: of renditions; sections: what lies in the file, in order asked.

    tells_flags: FLAGS were asked for, and are not only told where they change.
    """

    items: tuple[c.FetchItem, ...]
    columns: tuple[str, ...]
    sections: tuple[c.Section, ...]
    marks_seen: bool
    tells_flags: bool

    @property
    def is_in_memory(self) -> bool:
        """Whether the packed arrays hold all of it."""
        return _IN_MEMORY.issuperset(self.items)


def plan(command: c.Fetch, *, access: c.Access) -> Plan:
    """Return the plan of a command; UID and MODSEQ come with it where the RFCs say so."""
    items = list(command.items)
    if command.numbering is c.Numbering.UID and _A.UID not in items:
        items.insert(0, _A.UID)  # RFC 9051 6.4.9
    if command.changed_since is not None and _A.MODSEQ not in items:
        items.append(_A.MODSEQ)  # RFC 7162 3.1.4.1
    sections = tuple(item for item in items if isinstance(item, c.Section))
    marks_seen = access is c.Access.READ_WRITE and any(not item.peek for item in sections)
    columns = [rows.RENDERED[item] for item in items if isinstance(item, _A) and item in rows.RENDERED]
    if sections:
        columns.append("header_octets")
        if any(item.path for item in sections):
            columns.append("parts")
    return Plan(tuple(items), tuple(columns), sections, marks_seen, _A.FLAGS in items)


async def fetch(session: Session, command: c.Fetch) -> Completion:
    """FETCH and UID FETCH."""
    _, view = session.opened()
    places = messages.places(session, command.messages, command.numbering)
    if command.vanished:
        await _tell_vanished(session, command)
    if command.changed_since is not None:
        since = command.changed_since
        places = messages.where(places, lambda place: view.state(place)[2] > since)
    planned = plan(command, access=view.access)
    work = _Fetch(session, planned)
    for start, end in messages.cut(places, ROWS):
        if planned.tells_flags:
            session.tell_keywords()
        if planned.is_in_memory:
            session.wire.write(b"".join(rows.from_view(view, planned.items, start, end)))
        else:
            await work.turn(range(start, end))
        await session.wire.breathe()
    if work.missing:
        return Completion("Some messages are gone", status=b"NO", code=b"[EXPUNGEISSUED]")
    return Completion("FETCH done")


async def _tell_vanished(session: Session, command: c.Fetch) -> None:
    """RFC 7162 3.2.6: which of the named UIDs are gone since."""
    folder, _ = session.opened()
    changes = await session.services.threads.read(
        lambda connection: mailboxes.changes(
            connection, folder_id=folder.record.id, since=command.changed_since or 0
        )
    )
    for line in vanished.earlier(changes, command.messages):
        session.wire.write(line)


@dataclass(frozen=True, slots=True)
class _Body:
    """One row whose sections are to be sent. begun: the response up to them."""

    begun: bytes
    uid: int
    wanted: stored.Wanted


class _Fetch:
    """One FETCH that needs stored rows: its turns and what it missed."""

    def __init__(self, session: Session, planned: Plan) -> None:
        self._session = session
        self._plan = planned
        self._folder, self._view = session.opened()
        self._directory = ""
        self.missing = False

    async def turn(self, places: range) -> None:
        """Read, render and send up to ROWS rows."""
        view = self._view
        uids = view.rows.uids[places.start : places.stop].tolist()
        newly_seen = await self._mark_seen(places) if self._plan.marks_seen else frozenset[int]()
        found = await self._session.services.threads.read(lambda connection: self._read(connection, uids))
        where: Sequence[int] = places
        if len(found) < len(uids):
            self.missing = True
            where = [view.number(row.uid) - 1 for row in found]
        if not found:
            return
        begun = rows.beginnings(
            view,
            self._plan.items,
            found,
            self._plan.columns,
            where,
            only_flags_of=None if self._plan.tells_flags else newly_seen,
        )
        if not self._plan.sections:
            self._session.wire.write(b")\r\n".join(begun) + b")\r\n")
            return
        bodies = [_Body(text, row.uid, self._wanted(row)) for text, row in zip(begun, found, strict=True)]
        await self._send_bodies(bodies)

    def _read(self, connection: Connection, uids: list[int]) -> list[Row[Any]]:
        folder_id = self._folder.record.id
        if self._plan.sections:
            # Where the files are: the mailbox may have been renamed.
            record = self._folder.record = mailboxes.folder_by_id(connection, folder_id=folder_id)
            self._directory = str(self._session.services.maildir.folder_path(record.mailbox_id, record.name))
        return mailboxes.renditions(connection, folder_id=folder_id, uids=uids, columns=self._plan.columns)

    async def _mark_seen(self, places: range) -> frozenset[int]:
        """Set \\Seen where it is not; returns the UIDs it was set on (RFC 9051 6.4.5)."""
        view, folder = self._view, self._folder
        uids = [view.rows.uids[place] for place in places if not view.state(place)[0] & Flag.SEEN]
        if not uids:
            return frozenset()
        changed = await self._session.services.threads.write(
            lambda connection: mailboxes.store_flags(
                connection,
                folder_id=folder.record.id,
                uids=uids,
                mode=FlagMode.ADD,
                flags=Flag.SEEN,
                keywords=(),
                unchanged_since=None,
            )
        )
        await absorb(folder, changed.changed)
        view.quiet.update((row[0], row[1]) for row in changed.changed)
        return frozenset(row[0] for row in changed.changed)

    def _wanted(self, row: Row[Any]) -> stored.Wanted:
        place = stored.Place(row.name, row.subdirectory, row.mirrored)
        return stored.Wanted(place, [self._span(row, item) for item in self._plan.sections])

    def _span(self, row: Row[Any], item: c.Section) -> section.Span | None:
        """Return the octets of the file that a section needs, the partial range already taken."""
        span = section.locate(
            item,
            (row.parts or b"") if item.path else b"",
            prefix_octets=row.prefix_octets,
            header_octets=row.header_octets or 0,
            octets=row.octets,
        )
        if span is None or span.choose:
            # Which fields a long header has is looked for in its beginning.
            return span and section.Span(span.start, min(span.end, span.start + ROW_OCTETS // 2), choose=True)
        if item.partial is None:
            return span
        start = min(span.start + item.partial[0], span.end)
        return section.Span(start, min(start + item.partial[1], span.end))

    async def _send_bodies(self, bodies: list[_Body]) -> None:
        """Send rows with sections: small ones together, large ones by pieces."""
        gathered: list[_Body] = []
        octets = 0
        for body in bodies:
            size = sum(span.end - span.start for span in body.wanted.spans if span is not None)
            if gathered and octets + size > ROW_OCTETS:
                await self._send_gathered(gathered)
                gathered, octets = [], 0
            if size > ROW_OCTETS:
                await self._send_large(body)
                continue
            gathered.append(body)
            octets += size
        if gathered:
            await self._send_gathered(gathered)

    async def _send_gathered(self, gathered: list[_Body]) -> None:
        found = await self._octets([body.wanted for body in gathered])
        if None in found:
            # Moved between the look into the database and the look into the directory: look again.
            uids = [body.uid for body in gathered]
            again = await self._session.services.threads.read(lambda connection: self._read(connection, uids))
            places = {row.uid: self._wanted(row) for row in again}
            gathered = [_Body(body.begun, body.uid, places.get(body.uid, body.wanted)) for body in gathered]
            found = await self._octets([body.wanted for body in gathered])
        lines = []
        for body, octets in zip(gathered, found, strict=True):
            if octets is None:
                self.missing = True
                continue
            lines.append(body.begun)
            space = b"" if body.begun.endswith(b"(") else b" "
            for item, data in zip(self._plan.sections, octets, strict=True):
                lines.append(space + _label(item) + (b" NIL" if data is None else b" " + wire.literal(data)))
                space = b" "
            lines.append(b")\r\n")
        self._session.wire.write(b"".join(lines))
        await self._session.wire.breathe()

    async def _octets(self, wanted: list[stored.Wanted]) -> list[list[bytes | None] | None]:
        threads = self._session.services.threads
        return await threads.run(stored.read_sections, self._directory, self._plan.sections, wanted)

    async def _send_large(self, body: _Body) -> None:
        """Send one row whose bodies are never whole in memory."""
        threads, wire_out = self._session.services.threads, self._session.wire
        try:
            descriptor = await threads.run(stored.open_message, self._directory, body.wanted.place)
        except OSError:
            self.missing = True
            return
        try:
            wire_out.write(body.begun)
            space = b"" if body.begun.endswith(b"(") else b" "
            for item, span in zip(self._plan.sections, body.wanted.spans, strict=True):
                wire_out.write(space + _label(item))
                space = b" "
                await self._send_span(descriptor, item, span)
            wire_out.write(b")\r\n")
        finally:
            await threads.run(os.close, descriptor)

    async def _send_span(self, descriptor: int, item: c.Section, span: section.Span | None) -> None:
        threads, wire_out = self._session.services.threads, self._session.wire
        if span is None:
            wire_out.write(b" NIL")
            return
        if span.choose:
            data = await threads.run(stored.read_section, descriptor, item, span)
            wire_out.write(b" " + wire.literal(data))
            return
        wire_out.write(b" {%d}\r\n" % (span.end - span.start))
        for start in range(span.start, span.end, CHUNK_OCTETS):
            end = min(start + CHUNK_OCTETS, span.end)
            data = await threads.run(stored.read_at, descriptor, start, end)
            if len(data) < end - start:
                # The literal's length is promised already: nothing true can be said any more.
                wire_out.close()
                raise Disconnected
            wire_out.write(data)
            await wire_out.breathe()


def _label(item: c.Section) -> bytes:
    return item.label if item.partial is None else b"%b<%d>" % (item.label, item.partial[0])
