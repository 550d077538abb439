"""SEARCH: candidates from the packed arrays, the rest in a worker over stored text.

Owns the two steps and the forms of the answer. No text of more than a few rows
is in memory at a time, and the loop never waits for a scan. RFC 9051 6.4.4,
RFC 3501 7.2.5, 4731 (ESEARCH), 5182 (SAVE), 7162 3.1.5 and 3.1.6.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
from array import array
from typing import TYPE_CHECKING, Any

from server.imap import commands as c
from server.imap import criteria, machine, messages, search_text, sequence, stored
from server.imap import format as wire
from server.imap.answer import Completion
from server.imap.criteria import Facts, Needs
from server.mail.structure import scan
from storage import mailboxes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import Connection, Row

    from server.imap.session import Session
    from server.imap.view import View
    from storage.maildir import Maildir
    from storage.records import Folder

BATCH_ROWS = 256
BREATH_ROWS = 8192
WHOLE_CHARACTERS = 16 * 1024 * 1024  # of a long message that is read again


async def search(session: Session, command: c.Search) -> Completion:
    """SEARCH and UID SEARCH."""
    folder, view = session.opened()
    saved = session.saved
    if command.returns is not None and "SAVE" in command.returns:
        session.saved = array("Q")  # RFC 5182 2.1: a SEARCH that fails leaves nothing saved
    scope = criteria.Scope(
        count=view.count,
        largest_uid=view.rows.uids[view.count - 1] if view.count else 0,
        saved=saved,
        now=session.services.clock.now(),
    )
    cheap, costly = criteria.split(command.key)
    candidates = await _candidates(session, view, criteria.test(cheap, scope))
    need = criteria.needs(costly)
    if need is not Needs.ARRAYS and candidates:
        scanning = _Scan(folder.record, session.services.maildir, criteria.test(costly, scope), need)
        candidates = await session.services.threads.read(
            lambda connection: scanning.run(connection, candidates)
        )
    _answer(session, command, candidates)
    return Completion("SEARCH done")


async def _candidates(session: Session, view: View, test: criteria.Test) -> list[Facts]:
    found: list[Facts] = []
    for start, end in messages.cut([(0, view.count)], BREATH_ROWS):
        found += [facts for facts in _facts(view, start, end) if test(facts)]
        await session.wire.breathe()
    return found


def _facts(view: View, start: int, end: int) -> Iterable[Facts]:
    uids, recent = view.rows.uids, view.shows_recent
    for place in range(start, end):
        uid = uids[place]
        flags, keywords, modseq = view.state(place)
        yield Facts(place + 1, uid, flags, keywords, recent and view.is_recent(uid), modseq)


class _Scan:
    """The step that reads stored rows; runs in a worker."""

    def __init__(self, folder: Folder, maildir: Maildir, test: criteria.Test, need: Needs) -> None:
        self._folder_id = folder.id
        self._maildir = maildir
        self._test = test
        self._columns = ("text",) if need is Needs.TEXT else ()
        self._directory = ""

    def run(self, connection: Connection, candidates: list[Facts]) -> list[Facts]:
        """Return the candidates that match, in their order."""
        found: list[Facts] = []
        folder = mailboxes.folder_by_id(connection, folder_id=self._folder_id)  # it may be renamed
        self._directory = str(self._maildir.folder_path(folder.mailbox_id, folder.name))
        for start in range(0, len(candidates), BATCH_ROWS):
            batch = candidates[start : start + BATCH_ROWS]
            rows = mailboxes.renditions(
                connection,
                folder_id=self._folder_id,
                uids=[facts.uid for facts in batch],
                columns=self._columns,
            )
            by_uid = {row.uid: row for row in rows}
            found += [facts for facts in batch if self._matches(facts, by_uid.get(facts.uid))]
        return found

    def _matches(self, facts: Facts, row: Row[Any] | None) -> bool:
        if row is None:
            return False  # expunged meanwhile
        facts.octets, facts.internal_date = row.octets, row.internal_date
        if self._columns:
            facts.text = row.text or ""
            facts.delivered = functools.partial(self._delivered, row)
            facts.whole = functools.partial(self._whole, row)
        matches = self._test(facts)
        facts.text = ""
        return matches

    def _delivered(self, row: Row[Any]) -> str:
        if not row.prefix_octets:
            return ""
        return self._with_file(row, lambda descriptor: _folded_header(descriptor, row.prefix_octets))

    def _whole(self, row: Row[Any]) -> str:
        return self._with_file(row, _whole_text)

    def _with_file(self, row: Row[Any], read: Callable[[int], str]) -> str:
        place = stored.Place(row.name, row.subdirectory, row.mirrored)
        try:
            descriptor = stored.open_message(self._directory, place)
        except OSError:
            return ""
        try:
            return read(descriptor)
        finally:
            os.close(descriptor)


def _folded_header(descriptor: int, octets: int) -> str:
    return search_text.outer(stored.read_at(descriptor, 0, octets))


def _whole_text(descriptor: int) -> str:
    # From the file's beginning: the fields that delivery put in front are looked at with the others.
    octets = os.fstat(descriptor).st_size
    if octets % mmap.PAGESIZE == 0:
        # find on a mapping, before Python 3.11.5, looks one octet past its end: at the end of a page
        # that ends the process.
        return _searchable(stored.read_at(descriptor, 0, octets))
    with contextlib.closing(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)) as content:
        return _searchable(content)


def _searchable(content: bytes | mmap.mmap) -> str:
    return search_text.build(
        scan(content), content, limit=WHOLE_CHARACTERS, source_octets=4 * WHOLE_CHARACTERS
    )


def _answer(session: Session, command: c.Search, found: list[Facts]) -> None:
    by_uid = command.numbering is c.Numbering.UID
    numbers = [facts.uid if by_uid else facts.number for facts in found]
    with_modseq = machine.asks_modseq(command.key) and bool(found)
    modseq = max((facts.modseq for facts in found), default=0)
    if command.returns is None:
        listed = " ".join(map(str, numbers)).encode()
        suffix = b" (MODSEQ %d)" % modseq if with_modseq else b""
        session.wire.write(b"* SEARCH%b%b\r\n" % (b" " + listed if listed else b"", suffix))
        return
    if "SAVE" in command.returns:
        session.saved = _saved(command.returns, found)
    shown = command.returns - {"SAVE"}
    if not shown:
        return  # RFC 5182 2.1: SAVE alone answers nothing
    pieces = [b"(TAG %b)" % wire.string(session.tag)]
    pieces += [b"UID"] if by_uid else []
    if numbers:
        pieces += [b"MIN %d" % numbers[0]] if "MIN" in shown else []
        pieces += [b"MAX %d" % numbers[-1]] if "MAX" in shown else []
        pieces += [b"ALL %b" % sequence.compact(numbers)] if "ALL" in shown else []
    pieces += [b"COUNT %d" % len(numbers)] if "COUNT" in shown else []
    if with_modseq:
        pieces.append(b"MODSEQ %d" % _modseq_of(shown, found, modseq))
    session.wire.write(b"* ESEARCH %b\r\n" % b" ".join(pieces))


def _saved(returns: frozenset[str], found: list[Facts]) -> array[int]:
    """Return what `$` means from now on: RFC 5182 2.1, with MIN or MAX alone only those."""
    uids = [facts.uid for facts in found]
    if uids and not returns & {"ALL", "COUNT"} and returns & {"MIN", "MAX"}:
        ends = ([uids[0]] if "MIN" in returns else []) + ([uids[-1]] if "MAX" in returns else [])
        uids = sorted(set(ends))
    return array("Q", uids)


def _modseq_of(shown: frozenset[str], found: list[Facts], highest: int) -> int:
    """RFC 7162 3.1.10: of MIN and MAX alone, the highest of those that are told."""
    if shown & {"ALL", "COUNT"}:
        return highest
    ends = ([found[0]] if "MIN" in shown else []) + ([found[-1]] if "MAX" in shown else [])
    return max((facts.modseq for facts in ends), default=highest)
