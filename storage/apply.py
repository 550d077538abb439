"""Apply: journaled records become Maildir files and rows, in batches, in order.

Owns the thread that does it. It starts at once when idle and gathers under
load: while one batch is being committed, the files of the next are written.
Every failure is sorted: what may pass (no room, a lost connection) is tried
again until it does, what one record alone causes is put aside with an event,
and nothing is dropped. Renders nothing itself: that is given to it.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain

from sqlalchemy.exc import DBAPIError

from storage import mishaps
from storage.codec import content_octets
from storage.db import Database
from storage.errors import Corrupt, StorageError
from storage.journal import Applied, Complete, Journaled
from storage.locations import Locations
from storage.placing import Location, Placing, Present, Work
from storage.records import Accepted, Placed, Spooled
from storage.rendition import Render, content_digest, prepare, render_safely
from storage.rows import Batch, Stale, Statements, advance_only
from storage.worker import Worker, is_worth_it

__all__ = ["Applier", "Render"]

BATCH_RECORDS = 256
BATCH_OCTETS = 16 << 20
# Under load a batch begins this long after the one before, or when so many wait, or when somebody
# waits for the outcome (APPEND owes a UID).
GATHER_SECONDS = 0.03
GATHER_RECORDS = 48
BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_LAST_SECONDS = 10.0
REPLAY_ATTEMPTS = 4
# How long the worker is kept when there is nothing to do: it takes memory.
WORKER_IDLE_SECONDS = 30.0

_log = logging.getLogger(__name__)


class Abandoned(StorageError):
    """Apply stopped before a record could be applied; the journal keeps it for the next start."""


class _Commit:
    """A batch whose unit is with the writer."""

    __slots__ = ("error", "finished", "works")

    def __init__(self, works: list[Work]) -> None:
        self.works = works
        self.finished = False
        self.error: BaseException | None = None


class Applier:
    """One instance's apply: deliver takes records in order, wait says when they are applied."""

    def __init__(
        self,
        *,
        database: Database,
        placing: Placing,
        render: Render,
        applied_sequence: int,
        settle: Callable[[int], None],
        complete: Complete,
        worker: Worker | None = None,
    ) -> None:
        self._worker = worker
        self.applied_sequence = applied_sequence
        self._database = database
        self._placing = placing
        self._render = render
        self._settle = settle
        self._complete = complete
        self._statements = Statements(database.dialect)
        self._locations = Locations(database, placing.maildir)
        self._waiting: deque[Journaled] = deque()
        self._ready = threading.Condition()
        self._closing = threading.Event()
        self._is_loaded = False
        self._is_doubtful = False
        self._taken_at = 0.0
        self._attempts: int | None = REPLAY_ATTEMPTS
        self._commit: _Commit | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; before that, replay alone may be called, afterwards never."""
        self._attempts = None
        self._thread = threading.Thread(target=self._loop, name="apply", daemon=True)
        self._thread.start()

    def deliver(self, batch: Iterable[Journaled]) -> None:
        """Take durable records over from the journal, in order of their sequences."""
        with self._ready:
            self._waiting.extend(batch)
            self._ready.notify_all()

    def replay(self, batch: Sequence[Journaled]) -> None:
        """Apply records that a crash left, here and now; StorageError where it fails again and again."""
        works = self._prepare(batch)
        self._place(works, self._present(works))
        self._begin(works)
        self._conclude()

    def wait(self, sequence: int, *, timeout_seconds: float) -> bool:
        """Wait until every record up to a sequence is applied; False where that takes too long."""
        with self._ready:
            return self._ready.wait_for(lambda: self.applied_sequence >= sequence, timeout_seconds)

    def close(self) -> None:
        """Apply what waits, or leave to the journal what cannot be applied now; stop."""
        with self._ready:
            self._closing.set()
            self._ready.notify_all()
        if self._thread is not None:
            self._thread.join()
        if self._worker is not None:
            self._worker.close()

    def _loop(self) -> None:
        while True:
            batch = self._take()
            if not batch and self._commit is None:
                return
            try:
                self._turn(batch)
            except Abandoned as error:
                self._abandon(batch, error)
                return
            except Exception as error:
                # A fault of ours: what is accepted stays in the journal, and the backlog's limit stops more.
                _log.critical("apply has ended, a restart is needed", exc_info=True)
                self._abandon(batch, Abandoned(f"apply has ended: {error}"))
                raise
            del batch

    def _turn(self, batch: list[Journaled]) -> None:
        """Have the worker apply a batch, or write its files while the one before is committed."""
        works: list[Work] = []
        if batch and not self._worker_has(batch):
            works = self._make(batch)
        self._conclude()
        if works:
            self._begin(works)

    def _worker_has(self, batch: list[Journaled]) -> bool:
        """Give a batch that is worth it to the worker; return whether all of it is applied."""
        self._is_doubtful = False
        if self._worker is None or not is_worth_it(batch) or not self._worker.is_usable():
            return False
        self._conclude()
        try:
            self._worker.place(batch, self._find_locations([item.encoded.record for item in batch]))
            with self._database.lend() as announce:
                placed, notices = self._worker.commit(_now())
                announce(notices)
        except (StorageError, DBAPIError) as error:
            _log.warning("apply goes on without its worker: %s", error)
            self._is_doubtful = True
            return False
        self._succeed(batch, placed)
        return True

    def _make(self, batch: list[Journaled]) -> list[Work]:
        """Render a batch and write its files, but for those that a worker left."""
        works = self._prepare(batch)
        self._place(works, self._present(works) if self._is_doubtful else None)
        return works

    def _present(self, works: Sequence[Work]) -> Present:
        return Present(chain.from_iterable(map(self._placing.bases, works)))

    def _take(self) -> list[Journaled]:
        with self._ready:
            while not self._ready.wait_for(self._has_turn, WORKER_IDLE_SECONDS):
                if self._worker is not None:
                    self._worker.close()
            if self._is_loaded:
                # Every batch costs a commit and its turns of the interpreter's lock, whatever its size.
                left = self._taken_at + GATHER_SECONDS - time.monotonic()
                self._ready.wait_for(self._has_enough, max(0.0, left))
            batch: list[Journaled] = []
            octets = 0
            while self._waiting and len(batch) < BATCH_RECORDS and octets < BATCH_OCTETS:
                batch.append(self._waiting.popleft())
                octets += batch[-1].octets
            self._is_loaded = len(batch) > 1
            self._taken_at = time.monotonic()
            return batch

    def _has_enough(self) -> bool:
        waiting = self._waiting
        return (
            self._closing.is_set()
            or len(waiting) >= GATHER_RECORDS
            or any(item.applied is not None for item in waiting)
        )

    def _has_turn(self) -> bool:
        commit = self._commit
        if self._waiting or (commit is not None and commit.finished):
            return True
        return commit is None and self._closing.is_set()

    def _prepare(self, batch: Sequence[Journaled]) -> list[Work]:
        works = []
        for item in batch:
            delays = self._delays()
            while True:
                try:
                    works.append(self._prepare_one(item))
                    break
                except OSError as error:
                    self._pause(delays, error)
        return works

    def _prepare_one(self, item: Journaled) -> Work:
        record = item.encoded.record
        content = record.content
        octets = content_octets(content)
        if isinstance(content, Spooled):
            try:
                content = self._placing.spool.path(content.name).read_bytes()
            except FileNotFoundError:
                _log.critical("message %s: its spool file is gone", record.message_id)
                content = b""
        rendered, unrendered = render_safely(self._render, content)
        return Work(
            sequence=item.sequence,
            encoded=item.encoded,
            applied=item.applied,
            octets=item.octets,
            prepared=prepare(rendered),
            digest=content_digest(record.content, content),
            content_octets=octets,
            unrendered=unrendered,
        )

    def _find_locations(self, records: Sequence[Accepted]) -> list[list[Location | None]]:
        wanted = {
            (record.organization_id, target.mailbox_id, target.folder)
            for record in records
            for target in record.local
        }
        found = self._locations.find(wanted) if wanted else {}
        return [
            [found[record.organization_id, target.mailbox_id, target.folder] for target in record.local]
            for record in records
        ]

    def _place(self, works: Sequence[Work], present: Present | None) -> None:
        """Find the folders and write the files, again and again where that fails for now."""
        delays = self._delays()
        while True:
            try:
                located = self._find_locations([work.encoded.record for work in works])
                for work, locations in zip(works, located, strict=True):
                    work.locations = locations
                    self._placing.place(work, present)
                return
            except (OSError, StorageError, DBAPIError) as error:
                self._pause(delays, error)
                present = self._present(works)

    def _begin(self, works: list[Work]) -> None:
        """Hand a placed batch to the writer; _conclude hears how it went."""
        at = _now()
        for work in works:
            mishaps.note(work, self._placing, at=at)
        commit = _Commit(works)
        batch = Batch(
            works,
            instance=self._placing.instance,
            at=at,
            statements=self._statements,
            withdraw=self._placing.withdraw,
        )

        def done(placed: list[tuple[Placed, ...]] | None, error: BaseException | None) -> None:
            try:
                if placed is not None:
                    self._succeed(works, placed)
            finally:
                with self._ready:
                    commit.error = error
                    commit.finished = True
                    self._ready.notify_all()

        self._commit = commit
        try:
            self._database.post(batch, done)
        except StorageError as error:
            done(None, error)

    def _succeed(self, works: Sequence[Work | Journaled], placed: Sequence[tuple[Placed, ...]]) -> None:
        with self._ready:
            self.applied_sequence = works[-1].sequence
        self._settle(sum(work.octets for work in works))
        callbacks: list[Callable[[], None]] = [
            partial(work.applied, places, None)
            for work, places in zip(works, placed, strict=True)
            if work.applied is not None
        ]
        if callbacks:
            self._complete(callbacks)

    def _conclude(self) -> None:
        """Wait for the batch that is being committed and see it through."""
        error = self._outcome()
        works = [] if self._commit is None else self._commit.works
        delays = self._delays()
        while error is not None:
            if isinstance(error, Stale):
                self._locations.forget()
                self._replace(works)
            elif _may_pass(error):
                self._pause(delays, error)
            elif len(works) > 1:
                for work in works:
                    self._begin([work])
                    self._conclude()
                return
            else:
                self._set_aside(works[0], error)
                break
            self._begin(works)
            error = self._outcome()
        self._commit = None

    def _outcome(self) -> BaseException | None:
        commit = self._commit
        if commit is None:
            return None
        with self._ready:
            self._ready.wait_for(lambda: commit.finished)
        return commit.error

    def _replace(self, works: list[Work]) -> None:
        """Place a batch anew whose folders changed meanwhile, and take back what lies in the wrong ones."""
        before = {
            name.within(location.directory)
            for work in works
            for location, name in zip(work.locations, work.names, strict=True)
            if location is not None
        }
        self._place(works, self._present(works))
        after = {
            name.within(location.directory)
            for work in works
            for location, name in zip(work.locations, work.names, strict=True)
            if location is not None
        }
        for path in before - after:
            with suppress(OSError):
                self._placing.files.unlink(path)

    def _set_aside(self, work: Work, cause: BaseException) -> None:
        """Keep a message that no database takes as a file for the operator, and go on."""
        record = work.encoded.record
        delays = self._delays()
        while True:
            try:
                path = self._placing.set_aside(work)
                self._placing.withdraw(work)
                _log.error("message %s was put aside as %s: %s", record.message_id, path.name, cause)
                data = {"file": path.name, "reason": type(cause).__name__}
                event = mishaps.event(work, "message.aside", data, at=_now())
                placed = self._database.write(
                    partial(
                        advance_only,
                        work=work,
                        instance=self._placing.instance,
                        at=_now(),
                        statements=self._statements,
                        event=event,
                    )
                )
                break
            except (OSError, StorageError, DBAPIError) as error:
                self._pause(delays, error)
        self._succeed([work], placed)

    def _delays(self) -> "_Delays":
        return _Delays(self._attempts)

    def _pause(self, delays: "_Delays", error: BaseException) -> None:
        if self._attempts is not None and (isinstance(error, Corrupt) or not delays.has_next()):
            raise StorageError(f"accepted mail cannot be applied: {error}") from error
        _log.warning("accepted mail waits, it cannot be applied now: %s", error)
        if self._closing.wait(delays.next()):
            raise Abandoned(f"stopped before accepted mail could be applied: {error}") from error

    def _abandon(self, batch: Sequence[Journaled], error: Abandoned) -> None:
        with self._ready:
            left = [*batch, *self._waiting]
            self._waiting.clear()
        commit = self._commit
        works: list[Work] = [] if commit is None or commit.error is None else commit.works
        _log.warning("%d records are left to the next start: %s", len(left) + len(works), error)
        waiting: list[Applied | None] = [work.applied for work in works]
        waiting += [item.applied for item in left]
        callbacks: list[Callable[[], None]] = [
            partial(applied, None, error) for applied in waiting if applied is not None
        ]
        if callbacks:
            self._complete(callbacks)


class _Delays:
    """Growing pauses between attempts; limit: how many attempts, None for no end."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._seconds = BACKOFF_FIRST_SECONDS
        self._count = 0

    def has_next(self) -> bool:
        return self._limit is None or self._count < self._limit

    def next(self) -> float:
        self._count += 1
        seconds, self._seconds = self._seconds, min(self._seconds * 2, BACKOFF_LAST_SECONDS)
        return seconds


# BUSY, LOCKED, NOMEM, READONLY, INTERRUPT, IOERR, FULL, CANTOPEN, PROTOCOL
_PASSING_SQLITE = frozenset({5, 6, 7, 8, 9, 10, 13, 14, 15})
# Connection, transaction rollback, resources, object state, operator intervention.
_PASSING_SQLSTATES = ("08", "40", "53", "55", "57")


def _may_pass(error: BaseException) -> bool:
    """Return whether a unit's failure says nothing about its records."""
    if isinstance(error, (StorageError, OSError)):
        return True
    original = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(original, "sqlite_errorcode", None)
    if code is not None:
        return (code & 0xFF) in _PASSING_SQLITE
    state = getattr(original, "sqlstate", None)
    if state is None:
        # PostgreSQL's driver gives no state where the connection went away under it.
        return type(original).__name__ == "OperationalError"
    return str(state).startswith(_PASSING_SQLSTATES)


def _now() -> int:
    return time.time_ns() // 1000
