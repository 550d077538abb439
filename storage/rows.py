"""The rows of applied messages: one write unit a batch, with the journal's progress in it.

Owns what apply inserts (messages, renditions, entries, deliveries, events), the
giving out of UIDs and MODSEQs under each folder's row, in order of folder ids,
and the threading of messages. Everything is inserted in few, long statements:
each statement costs a turn of the interpreter's lock. Touches files only to
withdraw those of a message that turns out to be there already.

RFC 9051 2.3.1.1 (UID), RFC 7162 3.1 (MODSEQ), RFC 5256 3 (references).
"""

from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import Any

from sqlalchemy import Connection, Table, select

from storage import events as log
from storage import idempotency, ids, rejects, schema, signs
from storage.codec import data_text
from storage.db import Notice, publish
from storage.errors import StorageError
from storage.folder_names import REJECTS
from storage.maildir import flags_of, info
from storage.placing import Location, Name, Work
from storage.records import DeliveryState, Event, LocalTarget, Placed, RemoteTarget, Source
from storage.rendition import clean

Row = tuple[Any, ...]
_LOOKUP = 500
# Every statement gives up the interpreter's lock and waits to get it back, so a small batch is one
# statement a table; the sizes are few enough for the driver's cache of prepared statements.
_CHUNKS = (64, 32, *range(16, 0, -1))


# What a sender's own folder gets is no news to whoever waits for mail.
_KEPT = frozenset({Source.API, Source.SUBMISSION, Source.APPEND})
_SENT = frozenset({Source.API, Source.SUBMISSION})


class Stale(StorageError):
    """A folder or mailbox is no longer what the files were placed for."""


class Statements:
    """The SQL of inserts, made once for a dialect: every table's columns, several rows at once."""

    def __init__(self, dialect: str) -> None:
        self.mark = "?" if dialect == "sqlite" else "%s"
        self._texts: dict[tuple[str, int], str] = {}

    def insert(self, connection: Connection, table: Table, columns: Sequence[str], rows: list[Row]) -> None:
        """Insert rows, given as tuples in the order of columns."""
        cursor = connection.connection.cursor()
        waiting = iter(rows)
        left = len(rows)
        for size in _CHUNKS:
            while left >= size:
                cursor.execute(
                    self._text(table, columns, size), tuple(chain.from_iterable(islice(waiting, size)))
                )
                left -= size
        cursor.close()

    def _text(self, table: Table, columns: Sequence[str], size: int) -> str:
        text = self._texts.get((table.name, size))
        if text is None:
            names = ", ".join(f'"{name}"' for name in columns)
            row = "(" + ", ".join([self.mark] * len(columns)) + ")"
            text = f'INSERT INTO "{table.name}" ({names}) VALUES ' + ", ".join([row] * size)  # noqa: S608 - names of our own schema
            self._texts[table.name, size] = text
        return text


_MESSAGE = (
    "id", "organization_id", "source", "accepted_at", "octets", "digest", "reverse_path", "envelope", "peer",
    "decision", "verdicts", "trace", "message_id_header", "subject", "from_", "to", "sent_at", "thread_id",
    "spooled",
)  # fmt: skip
_RENDITION = (
    "message_id", "header_octets", "envelope", "body", "bodystructure", "parts", "preview", "attachments",
    "text",
)  # fmt: skip
_ENTRY = (
    "folder_id", "uid", "modseq", "message_id", "flags", "keywords", "internal_date", "octets",
    "prefix_octets", "name", "subdirectory", "mirrored", "mirror_due",
)  # fmt: skip
_DELIVERY = (
    "id", "organization_id", "message_id", "recipient", "orcpt", "notify", "domain", "state", "priority",
    "tries", "created_at", "next_attempt_at", "expires_at", "updated_at",
)  # fmt: skip
_EVENT = ("id", "kind", "at", "organization_id", "message_id", "mailbox_id", "delivery_id", "data")


class Batch:
    """One unit's work: inserts a batch of records that files were placed for."""

    def __init__(
        self,
        works: Sequence[Work],
        *,
        instance: str,
        at: int,
        statements: Statements,
        withdraw: Callable[[Work], None],
    ) -> None:
        self._works = works
        self._instance = instance
        self._at = at
        self._statements = statements
        self._withdraw = withdraw

    def __call__(self, connection: Connection) -> list[tuple[Placed, ...]]:
        """Insert everything and return, by record, where its local targets went.

        Stale where a folder or mailbox changed since its files were placed.
        """
        if not self._advance(connection):
            # An earlier try was committed though its answer was lost.
            return [self._find_placed(connection, work) for work in self._works]
        known = self._known(connection)
        fresh: list[Work] = []
        for work in self._works:
            message_id = work.encoded.record.message_id
            if message_id in known:
                self._withdraw(work)
            else:
                known.add(message_id)
                fresh.append(work)
        numbers = self._number(connection, fresh)
        self._charge(connection, fresh)
        placed = self._insert(connection, fresh, numbers)
        return [
            placed[work.sequence] if work.sequence in placed else self._find_placed(connection, work)
            for work in self._works
        ]

    def _execute(self, connection: Connection, text: str, values: Row) -> Any:
        cursor = connection.connection.cursor()
        cursor.execute(text.replace("?", self._statements.mark), values)
        return cursor

    def _advance(self, connection: Connection) -> bool:
        last = self._works[-1].sequence
        text = (
            "UPDATE journals SET applied_sequence = ?, updated_at = ? "
            "WHERE instance = ? AND applied_sequence < ?"
        )
        return bool(self._execute(connection, text, (last, self._at, self._instance, last)).rowcount)

    def _known(self, connection: Connection) -> set[str]:
        messages = schema.messages
        found: set[str] = set()
        wanted = [work.encoded.record.message_id for work in self._works]
        for start in range(0, len(wanted), _LOOKUP):
            part = tuple(wanted[start : start + _LOOKUP])
            text = f"SELECT id FROM {messages.name} WHERE id IN ({', '.join('?' * len(part))})"  # noqa: S608 - marks only
            found.update(row[0] for row in self._execute(connection, text, part))
        return found

    def _number(self, connection: Connection, works: Sequence[Work]) -> dict[int, "_Numbers"]:
        """Reserve UIDs and a MODSEQ in every folder, folders in order of their ids."""
        counts: dict[int, int] = {}
        locations: dict[int, Location] = {}
        for work in works:
            for location in work.locations:
                if location is not None:
                    counts[location.folder_id] = counts.get(location.folder_id, 0) + 1
                    locations[location.folder_id] = location
        numbers: dict[int, _Numbers] = {}
        text = (
            "UPDATE folders SET uidnext = uidnext + ?, highestmodseq = highestmodseq + 1 "
            "WHERE id = ? RETURNING uidnext, highestmodseq, uidvalidity, name"
        )
        for folder_id in sorted(counts):
            rows = self._execute(connection, text, (counts[folder_id], folder_id)).fetchall()
            if locations[folder_id].folder == REJECTS:
                # What was refused is never \\Recent.
                unseen = "UPDATE folders SET recent_uid = uidnext WHERE id = ?"
                self._execute(connection, unseen, (folder_id,))
            if not rows or rows[0][3] != locations[folder_id].folder:
                raise Stale(f"folder {folder_id} was renamed or deleted")
            uidnext, modseq, uidvalidity, _ = rows[0]
            numbers[folder_id] = _Numbers(uidnext - counts[folder_id], modseq, uidvalidity)
            publish(connection, Notice("folder", str(folder_id), modseq))
        return numbers

    def _charge(self, connection: Connection, works: Sequence[Work]) -> None:
        octets: dict[str, int] = {}
        for work in works:
            for target, location in zip(work.encoded.record.local, work.locations, strict=True):
                if location is not None:
                    octets[location.mailbox_id] = octets.get(location.mailbox_id, 0) + _entry_octets(
                        work, target
                    )
        text = "UPDATE mailboxes SET used_octets = used_octets + ? WHERE id = ? AND state <> 'closed'"
        for mailbox_id in sorted(octets):
            if self._execute(connection, text, (octets[mailbox_id], mailbox_id)).rowcount == 0:
                raise Stale(f"mailbox {mailbox_id} was closed")

    def _insert(
        self, connection: Connection, works: Sequence[Work], numbers: dict[int, "_Numbers"]
    ) -> dict[int, tuple[Placed, ...]]:
        entries: list[Row] = []
        events: list[Row] = []
        placed: dict[int, tuple[Placed, ...]] = {}
        for work in works:
            record = work.encoded.record
            events += [_event_row(event) for event in chain(record.events, work.events)]
            placed[work.sequence] = self._place(work, numbers, entries, events)
            if record.idempotency_key is not None:
                idempotency.finish(
                    connection,
                    organization_id=record.organization_id,
                    key=record.idempotency_key,
                    message_id=record.message_id,
                )
        threads = self._thread(connection, works)
        insert = self._statements.insert
        rows = [_message_row(work, thread) for work, thread in zip(works, threads, strict=True)]
        insert(connection, schema.messages, _MESSAGE, rows)
        insert(connection, schema.renditions, _RENDITION, [_rendition_row(work) for work in works])
        insert(connection, schema.entries, _ENTRY, entries)
        self._queue(connection, works)
        self._note(connection, works)
        if events:
            log.hold(connection)
            insert(connection, schema.events, _EVENT, events)
            seq = self._execute(connection, "SELECT max(seq) FROM events", ()).fetchone()[0]
            publish(connection, Notice("events", "", seq))
        return placed

    def _note(self, connection: Connection, works: Sequence[Work]) -> None:
        """Note what users sent, and what was kept though it was refused."""
        sent: list[tuple[str, int]] = []
        for work in works:
            record = work.encoded.record
            if record.source in _SENT:
                sent.append((record.message_id, record.accepted_at))
            elif record.local and record.local[0].folder == REJECTS:
                here = {location.mailbox_id for location in work.locations if location is not None}
                rejects.remember(connection, [(record, here)])
        if sent:
            signs.note_sent(connection, sent)

    def _place(
        self, work: Work, numbers: dict[int, "_Numbers"], entries: list[Row], events: list[Row]
    ) -> tuple[Placed, ...]:
        record = work.encoded.record
        placed: list[Placed] = []
        for target, location, name in zip(record.local, work.locations, work.names, strict=True):
            if location is None:
                placed.append(Placed(target.mailbox_id, 0, 0, 0, 0))
                continue
            folder = numbers[location.folder_id]
            uid = folder.uid
            folder.uid += 1
            placed.append(
                Placed(target.mailbox_id, location.folder_id, folder.uidvalidity, uid, folder.modseq)
            )
            octets = _entry_octets(work, target)
            entries.append(
                (
                    location.folder_id,
                    uid,
                    folder.modseq,
                    record.message_id,
                    _flags(target, name),
                    clean(" ".join(target.keywords)),
                    target.internal_date or record.accepted_at,
                    octets,
                    len(target.prefix) + len(record.trace),
                    name.base,
                    name.subdirectory,
                    name.mirrored,
                    0,
                )
            )
            events.append(self._received(work, target, location, uid))
        return tuple(placed)

    def _received(self, work: Work, target: LocalTarget, location: Location, uid: int) -> Row:
        record = work.encoded.record
        data = {"recipient": target.recipient, "folder": location.folder, "uid": uid}
        if location.folder != target.folder:
            data["wanted_folder"] = target.folder
        return _event_row(
            Event(
                id=ids.new("evt"),
                kind="message.kept"
                if record.source in _KEPT or location.folder == REJECTS
                else "message.received",
                at=self._at,
                organization_id=record.organization_id,
                message_id=record.message_id,
                mailbox_id=target.mailbox_id,
                data=data,
            )
        )

    def _queue(self, connection: Connection, works: Sequence[Work]) -> None:
        rows = [_delivery_row(work, target) for work in works for target in work.encoded.record.remote]
        if rows:
            self._statements.insert(connection, schema.deliveries, _DELIVERY, rows)
            due = [row[11] for row in rows if row[11] is not None]
            if due:
                publish(connection, Notice("queue", "", min(due)))

    def _thread(self, connection: Connection, works: Sequence[Work]) -> list[str]:
        """Return each message's thread: that of the nearest message it refers to, else a new one."""
        references = [work.prepared.references for work in works]
        known = self._known_threads(connection, works, references)
        threads: list[str] = []
        for work, wanted in zip(works, references, strict=True):
            organization_id = work.encoded.record.organization_id
            found = (known.get((organization_id, reference)) for reference in wanted)
            thread = next(filter(None, found), None) or ids.of("thr", work.encoded.record.message_id)
            own = work.prepared.described[0]
            if own:
                known.setdefault((organization_id, own), thread)
            threads.append(thread)
        return threads

    def _known_threads(
        self, connection: Connection, works: Sequence[Work], references: Sequence[Sequence[str]]
    ) -> dict[tuple[str, str], str]:
        wanted: dict[str, dict[str, None]] = {}
        for work, named in zip(works, references, strict=True):
            if named:
                wanted.setdefault(work.encoded.record.organization_id, {}).update(dict.fromkeys(named))
        known: dict[tuple[str, str], str] = {}
        for organization_id, names in wanted.items():
            waiting = iter(names)
            while part := tuple(islice(waiting, _LOOKUP)):
                text = (
                    "SELECT message_id_header, thread_id FROM messages WHERE organization_id = ? "  # noqa: S608 - marks only
                    f"AND message_id_header IN ({', '.join('?' * len(part))})"
                )
                for name, thread in self._execute(connection, text, (organization_id, *part)):
                    known[organization_id, name] = thread
        return known

    def _find_placed(self, connection: Connection, work: Work) -> tuple[Placed, ...]:
        entries, folders = schema.entries, schema.folders
        rows = connection.execute(
            select(
                folders.c.mailbox_id,
                folders.c.id,
                folders.c.uidvalidity,
                entries.c.uid,
                entries.c.modseq,
            )
            .join_from(entries, folders)
            .where(entries.c.message_id == work.encoded.record.message_id)
            .order_by(entries.c.folder_id, entries.c.uid)
        ).all()
        waiting = [Placed(*row) for row in rows]
        placed: list[Placed] = []
        for target in work.encoded.record.local:
            found = next((place for place in waiting if place.mailbox_id == target.mailbox_id), None)
            if found is not None:
                waiting.remove(found)
            placed.append(found or Placed(target.mailbox_id, 0, 0, 0, 0))
        return tuple(placed)


class _Numbers:
    """The UIDs reserved in one folder: the next to use; its MODSEQ and UIDVALIDITY."""

    __slots__ = ("modseq", "uid", "uidvalidity")

    def __init__(self, uid: int, modseq: int, uidvalidity: int) -> None:
        self.uid = uid
        self.modseq = modseq
        self.uidvalidity = uidvalidity


def advance_only(
    connection: Connection, *, work: Work, instance: str, at: int, statements: Statements, event: Event
) -> list[tuple[Placed, ...]]:
    """Count a record as applied that was put aside whole, with the event that says so."""
    batch = Batch([work], instance=instance, at=at, statements=statements, withdraw=lambda _work: None)
    if batch._advance(connection):
        log.hold(connection)
        statements.insert(connection, schema.events, _EVENT, [_event_row(event)])
    return [tuple(Placed(target.mailbox_id, 0, 0, 0, 0) for target in work.encoded.record.local)]


def _entry_octets(work: Work, target: LocalTarget) -> int:
    return len(target.prefix) + len(work.encoded.record.trace) + work.content_octets


def _flags(target: LocalTarget, name: Name) -> int:
    """Return an entry's flags: what its file's name says, where a foreign program renamed it already."""
    letters = info(target.flags)
    if name.mirrored == letters and name.subdirectory == ("cur" if letters else "new"):
        return target.flags
    return flags_of(name.mirrored)


def _message_row(work: Work, thread_id: str) -> Row:
    encoded = work.encoded
    record = encoded.record
    return (
        record.message_id,
        record.organization_id,
        record.source.value,
        record.accepted_at,
        work.content_octets,
        work.digest,
        None if record.envelope.reverse_path is None else clean(record.envelope.reverse_path),
        encoded.envelope,
        encoded.peer,
        encoded.decision,
        encoded.verdicts,
        record.trace,
        *work.prepared.described,
        thread_id,
        int(bool(record.remote)),
    )


def _rendition_row(work: Work) -> Row:
    return (work.encoded.record.message_id, *work.prepared.rendition)


def _delivery_row(work: Work, target: RemoteTarget) -> Row:
    record, recipient = work.encoded.record, target.recipient
    notify = None if recipient.notify is None else ",".join(sorted(recipient.notify))
    return (
        target.delivery_id,
        record.organization_id,
        record.message_id,
        clean(recipient.address),
        None if recipient.orcpt is None else clean(recipient.orcpt),
        notify,
        target.domain,
        (DeliveryState.HELD if target.next_attempt_at is None else DeliveryState.SCHEDULED).value,
        target.priority,
        0,
        record.accepted_at,
        target.next_attempt_at,
        target.expires_at,
        record.accepted_at,
    )


def _event_row(event: Event) -> Row:
    return (
        event.id,
        event.kind,
        event.at,
        event.organization_id,
        event.message_id,
        event.mailbox_id,
        event.delivery_id,
        data_text(event),
    )
