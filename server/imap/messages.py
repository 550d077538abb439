"""Which messages of the open mailbox a command's set names.

Owns the step from sequence sets, by number, UID or `$`, to places in the
session's view. RFC 9051 6.4.9, 5182 (SEARCHRES).
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from server.imap import sequence
from server.imap.answer import Failed
from server.imap.commands import Numbering

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from server.imap.session import Session
    from server.imap.view import View

Places = list[tuple[int, int]]  # half-open ranges, ascending


def places(session: Session, named: sequence.SequenceSet, numbering: Numbering) -> Places:
    """Return where the named messages stand in the view; UIDs that are not there are passed over.

    Raises Failed (BAD) for a message number that no message has.
    """
    _, view = session.opened()
    if named.saved:
        return of_uids(view, session.saved)
    if numbering is Numbering.UID:
        return sequence.indexes(named, view.rows.uids, view.count)
    if named.names_beyond(view.count):
        raise Failed("There is no such message number", status=b"BAD")
    return sequence.number_indexes(named, view.count)


def of_uids(view: View, uids: Sequence[int]) -> Places:
    """Return where sorted UIDs stand in the view."""
    found: Places = []
    start = 0
    for uid in uids:
        place = bisect_left(view.rows.uids, uid, start, view.count)
        if place == view.count:
            break
        start = place
        if view.rows.uids[place] == uid:
            if found and found[-1][1] == place:
                found[-1] = (found[-1][0], place + 1)
            else:
                found.append((place, place + 1))
    return found


def each(ranges: Places) -> Iterator[int]:
    """Give every place of the ranges."""
    for start, end in ranges:
        yield from range(start, end)


def where(ranges: Places, test: Callable[[int], bool]) -> Places:
    """Return the places that pass a test."""
    found: Places = []
    for place in each(ranges):
        if test(place):
            if found and found[-1][1] == place:
                found[-1] = (found[-1][0], place + 1)
            else:
                found.append((place, place + 1))
    return found


def uids(view: View, ranges: Places) -> list[int]:
    """Return the UIDs at the places."""
    found: list[int] = []
    for start, end in ranges:
        found.extend(view.rows.uids[start:end])
    return found


def cut(ranges: Places, rows: int) -> Iterator[tuple[int, int]]:
    """Give the ranges in pieces of at most that many rows."""
    for start, end in ranges:
        for piece in range(start, end, rows):
            yield piece, min(piece + rows, end)
