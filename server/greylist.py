"""Greylisting: who is new is asked to come back, and whoever does is known for some weeks.

Owns what is remembered, in memory, behind it the database: after a crash the last seconds are
missing. Waited for is a client, sender and recipient; known is, after that, the client and the
sender's domain. A client is its network, or the domain that SPF says it sends for, so that a retry
from another host of the same sender counts. Kept are digests alone, LIMIT of each kind; where a
flood leaves no room to remember anybody for an hour, nobody is asked to come back. RFC 6647.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from server.origin import network_of
from storage import greylist
from storage.greylist import Sight

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from server.threads import Threads

LIMIT = 100_000
PENDING_LIMIT = 5000  # of what is written at once; under a flood the rest stays in memory alone
LOADED_LIMIT = 100_000
RECIPIENTS_LIMIT = 50  # of one message
OVERLAP = 60_000_000  # microseconds, for clocks of several machines that differ
SECOND = 1_000_000
DAY = 86_400 * SECOND
ROOM = 3600 * SECOND  # by then a mail server has tried again
DIGEST_OCTETS = 16

log = structlog.get_logger("greylist")


@dataclass(frozen=True, slots=True)
class GreylistSettings:
    """How long one has to wait, until when a retry counts, and how long one is known then."""

    delay_seconds: int = 300
    window_seconds: int = 86_400
    keep_days: int = 35


class Greylist:
    """Who is new and who is known, for a process. counts: what became of messages and recipients."""

    def __init__(self, clock: Clock, settings: GreylistSettings = GreylistSettings()) -> None:
        self._clock = clock
        self._delay = settings.delay_seconds * SECOND
        self._window = settings.window_seconds * SECOND
        self._keep = settings.keep_days * DAY
        self._awaited: OrderedDict[bytes, int] = OrderedDict()  # since when, the oldest first
        self._known: OrderedDict[bytes, int] = OrderedDict()  # until when
        self._pending: dict[bytes, Sight] = {}
        self._heard_at = 0
        self._is_open = False
        self.counts: Counter[str] = Counter({"new": 0, "early": 0, "returned": 0, "known": 0, "no room": 0})

    def passes(self, *, client: str, sender: str, recipients: Sequence[str]) -> bool:
        """Note that a client brings mail, and return whether it need not come back for it.

        client: '' for none, which always passes. sender: '' for the null reverse-path. Addresses
        in lower case.
        """
        if not client:
            return True
        now = self._clock.now()
        bond = _digest("known", client, sender.rpartition("@")[2])
        until = self._known.get(bond, 0)
        if until > now:
            if until - now < self._keep - DAY:
                self._know(bond, now)
            return self._count("known", passes=True)
        asked = sorted(set(recipients))[:RECIPIENTS_LIMIT]
        waiting = [self._wait(_digest("awaited", client, sender, one), now) for one in asked]
        if "no room" in waiting:
            return self._count("no room", passes=True)
        if "new" in waiting or "early" in waiting:
            return self._count("new" if "new" in waiting else "early", passes=False)
        self._know(bond, now)
        return self._count("returned", passes=True)

    def _count(self, what: str, *, passes: bool) -> bool:
        self.counts[what] += 1
        return passes

    def _wait(self, digest: bytes, now: int) -> str:
        """Return what a client, sender and recipient are: 'new', 'early', 'returned' or 'no room'."""
        since = self._awaited.get(digest)
        if since is not None and now - since <= self._window:
            return "returned" if now - since >= self._delay else "early"
        if since is None and not self._has_room(now):
            return "no room"
        self._awaited[digest] = now
        self._awaited.move_to_end(digest)
        self._note(Sight(digest, False, now, now + self._window))
        return "new"

    def _has_room(self, now: int) -> bool:
        """Return whether somebody new can be remembered for as long as it takes to come back."""
        if len(self._awaited) >= LIMIT:
            oldest = next(iter(self._awaited.values()))
            if now - oldest < ROOM:
                if not self._is_open:
                    log.warning("too many new senders within an hour: none is asked to come back")
                self._is_open = True
                return False
            self._awaited.popitem(last=False)
        self._is_open = False
        return True

    def _know(self, digest: bytes, now: int) -> None:
        self._known[digest] = now + self._keep
        self._known.move_to_end(digest)
        if len(self._known) > LIMIT:
            self._known.popitem(last=False)
        self._note(Sight(digest, True, now, now + self._keep))

    def _note(self, sight: Sight) -> None:
        if sight.digest in self._pending or len(self._pending) < PENDING_LIMIT:
            self._pending[sight.digest] = sight

    async def load(self, threads: Threads) -> None:
        """Take what the database has that changed since the last time, other processes' sights too."""
        since, self._heard_at = self._heard_at, self._clock.now()
        unit = partial(greylist.changed, since=max(0, since - OVERLAP), limit=LOADED_LIMIT)
        self._take(reversed(await threads.read(unit)))

    def _take(self, rows: Iterable[Sight]) -> None:
        now = self._clock.now()
        awaited = dict(self._awaited)
        for row in rows:
            if row.until <= now:
                continue
            if row.known:
                if len(self._known) < LIMIT or row.digest in self._known:
                    self._known[row.digest] = max(row.until, self._known.get(row.digest, 0))
            elif len(awaited) < LIMIT or row.digest in awaited:
                awaited[row.digest] = min(row.since, awaited.get(row.digest, row.since))
        if len(awaited) != len(self._awaited) or awaited != self._awaited:
            self._awaited = OrderedDict(sorted(awaited.items(), key=lambda one: one[1]))

    async def flush(self, threads: Threads) -> None:
        """Write what was seen since the last time; it stays to be written where that fails."""
        pending, self._pending = self._pending, {}
        if not pending:
            return
        at = self._clock.now()

        def unit(connection: Connection) -> None:
            greylist.add(connection, pending.values(), at=at)

        try:
            await threads.write(unit)
        except BaseException:
            self._pending = {**pending, **self._pending}
            raise

    async def prune(self, threads: Threads) -> None:
        """Forget what is over."""
        await threads.write(partial(greylist.prune, at=self._clock.now()))


def bringer(stage: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return who brings mail for whom, as passes takes it, from the facts of rcpt or message."""
    if stage == "rcpt":
        recipients = [facts["recipient"]]
        sent_for = ""
    else:
        recipients = facts["recipients"]
        # Of a large sender each try comes from another host: what they have in common is the domain.
        sent_for = facts["spf_domain"] if facts["spf"] == "pass" else ""
    client = f"domain {sent_for.lower()}" if sent_for else network_of(facts["client_ip"])
    return {"client": client, "sender": facts["sender"], "recipients": recipients}


def _digest(*parts: str) -> bytes:
    text = "\0".join(parts)
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=DIGEST_OCTETS).digest()
