"""What a folder holds, and what one session has been told of it.

Owns the packed arrays of UID, MODSEQ and flags, the log of changes, and the
arithmetic of message numbers: what to tell a session, and when a number may
move. Arrays are shared: an expunge makes new ones, and a view that may not
renumber yet keeps the old. Pure. RFC 9051 2.3.1 and 7.5, 7162 3, 3501 2.3.2.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from server.imap.commands import Access

LOG_CHANGES = 1024
LOG_UIDS = 200_000

ChangedRow = tuple[int, int, int, tuple[str, ...]]  # UID, MODSEQ, flags, keywords


class Rows:
    """Parallel arrays, in the order of UIDs."""

    __slots__ = ("flags", "modseqs", "uids")

    def __init__(self, uids: array[int], modseqs: array[int], flags: array[int]) -> None:
        self.uids = uids
        self.modseqs = modseqs
        self.flags = flags

    def index(self, uid: int, count: int) -> int:
        """Return the place of a UID among the first count rows, -1 where it is not there."""
        place = bisect_left(self.uids, uid, 0, count)
        return place if place < count and self.uids[place] == uid else -1

    def without(self, uids: set[int]) -> Rows:
        """Return new arrays that lack some UIDs."""
        rows = Rows(array("Q"), array("Q"), array("L"))
        start = 0
        for place in sorted(
            filter(lambda place: place >= 0, (self.index(uid, len(self.uids)) for uid in uids))
        ):
            rows.uids += self.uids[start:place]
            rows.modseqs += self.modseqs[start:place]
            rows.flags += self.flags[start:place]
            start = place + 1
        rows.uids += self.uids[start:]
        rows.modseqs += self.modseqs[start:]
        rows.flags += self.flags[start:]
        return rows


@dataclass(frozen=True, slots=True)
class Change:
    """One step of a folder from HIGHESTMODSEQ before to after."""

    before: int
    after: int
    changed: tuple[int, ...]
    vanished: tuple[int, ...]


class Contents:
    """A folder as it stands, for all views of this process."""

    __slots__ = (
        "_log",
        "_log_uids",
        "highestmodseq",
        "keyword_names",
        "keywords",
        "recent_next",
        "rows",
        "uidnext",
        "uidvalidity",
    )

    def __init__(
        self,
        *,
        rows: Rows,
        keywords: dict[int, tuple[str, ...]],
        uidvalidity: int,
        uidnext: int,
        highestmodseq: int,
        recent: int,
    ) -> None:
        self.rows = rows
        self.keywords = keywords
        self.uidvalidity = uidvalidity
        self.uidnext = uidnext
        self.highestmodseq = highestmodseq
        count = len(rows.uids)
        # The first UID that no session was told of yet as \Recent.
        self.recent_next = rows.uids[count - recent] if 0 < recent <= count else uidnext
        # All keywords seen here, in the order of their coming; only grows.
        self.keyword_names: dict[str, None] = {}
        for names in keywords.values():
            self.keyword_names.update(dict.fromkeys(names))
        self._log: deque[Change] = deque()
        self._log_uids = 0

    def apply(
        self,
        *,
        highestmodseq: int,
        uidnext: int,
        changed: Iterable[ChangedRow],
        vanished: Sequence[int],
    ) -> None:
        """Take the changes since highestmodseq; older news is passed over."""
        if highestmodseq <= self.highestmodseq:
            return
        gone = set(vanished)
        if gone:
            self.rows = self.rows.without(gone)
            for uid in gone:
                self.keywords.pop(uid, None)
        rows, known = self.rows, []
        for uid, modseq, flags, keywords in changed:
            if not rows.uids or uid > rows.uids[-1]:
                rows.uids.append(uid)
                rows.modseqs.append(modseq)
                rows.flags.append(flags)
            else:
                place = rows.index(uid, len(rows.uids))
                if place < 0:
                    continue
                rows.modseqs[place] = modseq
                rows.flags[place] = flags
                known.append(uid)
            if keywords:
                self.keywords[uid] = keywords
                self.keyword_names.update(dict.fromkeys(keywords))
            else:
                self.keywords.pop(uid, None)
        self._remember(Change(self.highestmodseq, highestmodseq, tuple(known), tuple(sorted(gone))))
        self.highestmodseq = highestmodseq
        self.uidnext = max(self.uidnext, uidnext)

    def _remember(self, change: Change) -> None:
        self._log.append(change)
        self._log_uids += len(change.changed) + len(change.vanished)
        while self._log and (len(self._log) > LOG_CHANGES or self._log_uids > LOG_UIDS):
            oldest = self._log.popleft()
            self._log_uids -= len(oldest.changed) + len(oldest.vanished)

    def since(self, position: int) -> tuple[set[int], set[int]] | None:
        """Return (changed, vanished) UIDs since a position, None where the log no longer reaches back."""
        if not self._log or self._log[0].before > position:
            return None
        changed: set[int] = set()
        vanished: set[int] = set()
        for change in reversed(self._log):
            if change.after <= position:
                break
            changed.update(change.changed)
            vanished.update(change.vanished)
        return changed - vanished, vanished


@dataclass(slots=True)
class Updates:
    """What to tell a session: expunged message numbers in telling order, and then the rest.

    changed: (message number, UID, flags, keywords, MODSEQ), numbers as after the expunging.
    exists and recent: None where they did not change.
    """

    expunged: list[int] = field(default_factory=list)
    vanished: list[int] = field(default_factory=list)
    exists: int | None = None
    recent: int | None = None
    changed: list[tuple[int, int, int, tuple[str, ...], int]] = field(default_factory=list)
    keywords_grew: bool = False


class View:
    """One session's knowledge of a folder: how many messages, which numbers, up to which change.

    wake: called when the folder moved, by whoever refreshed it.
    """

    __slots__ = (
        "_keywords_told",
        "_recent",
        "_vanished",
        "access",
        "contents",
        "count",
        "position",
        "quiet",
        "rows",
        "wake",
    )

    def __init__(self, contents: Contents, access: Access, wake: Callable[[], None]) -> None:
        self.contents = contents
        self.access = access
        self.wake = wake
        self.rows = contents.rows
        self.count = len(self.rows.uids)
        self.position = contents.highestmodseq
        self.quiet: dict[int, int] = {}  # UID to the MODSEQ of this session's own silent change
        self._recent: list[tuple[int, int]] = []
        self._vanished: set[int] = set()
        self._keywords_told = len(contents.keyword_names)
        self._take_recent()

    def _take_recent(self) -> None:
        contents = self.contents
        low, high = contents.recent_next, contents.uidnext
        if low >= high:
            return
        if self.access is Access.READ_WRITE:
            contents.recent_next = high
        if self._recent and self._recent[-1][1] >= low:
            low = self._recent.pop()[0]
        self._recent.append((low, high))

    def is_recent(self, uid: int) -> bool:
        """Whether this session shows a message as \\Recent."""
        return any(low <= uid < high for low, high in self._recent)

    @property
    def shows_recent(self) -> bool:
        """Whether any message may be \\Recent."""
        return bool(self._recent)

    def recent(self) -> int:
        """Return the number of \\Recent messages."""
        uids, count = self.rows.uids, self.count
        return sum(
            bisect_left(uids, high, 0, count) - bisect_left(uids, low, 0, count) for low, high in self._recent
        )

    def number(self, uid: int) -> int:
        """Return the message number of a UID, 0 where the view has none."""
        return self.rows.index(uid, self.count) + 1

    def state(self, place: int) -> tuple[int, tuple[str, ...], int]:
        """Return (flags, keywords, MODSEQ) of the message at a place of the view's rows."""
        rows, contents = self.rows, self.contents
        uid = rows.uids[place]
        keywords = contents.keywords.get(uid, ()) if contents.keywords else ()
        if rows is not contents.rows:
            current = contents.rows.index(uid, len(contents.rows.uids))
            if current >= 0:
                return contents.rows.flags[current], keywords, contents.rows.modseqs[current]
        return rows.flags[place], keywords, rows.modseqs[place]

    @property
    def is_current(self) -> bool:
        """Whether there is nothing to tell."""
        return self.position == self.contents.highestmodseq and not self._vanished

    def sync(self, *, expunge: bool) -> Updates:
        """Come up to the folder's present as far as allowed; returns what the client must be told.

        expunge: whether numbers may move now. Until they may, nothing new is counted either.
        """
        contents, updates = self.contents, Updates()
        changed = self._advance()
        known = self.count
        if not self._vanished or expunge:
            if self._vanished:
                updates.vanished = sorted(self._vanished)
                updates.expunged = [self.number(uid) for uid in reversed(updates.vanished)]
                self._vanished.clear()
                known -= len(updates.vanished)
            self.rows = contents.rows
            self.count = len(self.rows.uids)
            if self.count != known:
                self._take_recent()
                updates.exists, updates.recent = self.count, self.recent()
        updates.changed = self._changed_rows(changed, known)
        updates.keywords_grew = self.take_keywords()
        self.quiet.clear()
        return updates

    def take_keywords(self) -> bool:
        """Whether keywords came that the session was not told of; they count as told from now on."""
        before, self._keywords_told = self._keywords_told, len(self.contents.keyword_names)
        return before != self._keywords_told

    def _advance(self) -> set[int]:
        """Move the position to the present; returns the UIDs whose flags changed."""
        contents = self.contents
        if self.position == contents.highestmodseq:
            return set()
        found = contents.since(self.position)
        if found is None:
            rows = contents.rows
            present = set(rows.uids)
            changed = {
                uid for uid, modseq in zip(rows.uids, rows.modseqs, strict=True) if modseq > self.position
            }
            vanished = {uid for uid in self.rows.uids[: self.count] if uid not in present}
        else:
            changed = found[0]
            vanished = {uid for uid in found[1] if self.number(uid)}
        self.position = contents.highestmodseq
        self._vanished |= vanished
        return changed

    def _changed_rows(
        self, changed: set[int], known: int
    ) -> list[tuple[int, int, int, tuple[str, ...], int]]:
        """Return what to tell of changed messages that the client knew before."""
        found = []
        for uid in sorted(changed):
            place = self.rows.index(uid, known)
            if place < 0:
                continue
            flags, keywords, modseq = self.state(place)
            if self.quiet.get(uid) != modseq:
                found.append((place + 1, uid, flags, keywords, modseq))
        return found
