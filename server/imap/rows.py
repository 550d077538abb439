"""The rows of FETCH in wire form, a whole turn at once.

Owns the template of one FETCH's responses and the columns that fill it: from
the session's view, from storage's rows. Works on columns, not on rows, for
speed. Pure. RFC 9051 7.5.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from server.imap import commands as c
from server.imap import format as wire
from server.imap.view import View

_A = c.FetchAttribute

# The columns that every row of storage.mailboxes.renditions begins with.
UID, OCTETS, PREFIX_OCTETS, INTERNAL_DATE, NAME, SUBDIRECTORY, MIRRORED, MESSAGE_ID = range(8)
FIRST_COLUMN = 8
RENDERED = {_A.ENVELOPE: "envelope", _A.BODY: "body", _A.BODYSTRUCTURE: "bodystructure"}

# What is told of a message of which nothing was rendered.
_UNRENDERED = {
    "envelope": b"(NIL NIL NIL NIL NIL NIL NIL NIL NIL NIL)",
    "body": b'("text" "plain" NIL NIL NIL "7bit" 0 0)',
    "bodystructure": b'("text" "plain" NIL NIL NIL "7bit" 0 0 NIL NIL NIL NIL)',
}


def from_view(view: View, items: Iterable[c.FetchItem], start: int, end: int) -> list[bytes]:
    """Return whole responses for places of the view; items: UID, FLAGS and MODSEQ only."""
    template, columns = [], []
    for item in items:
        assert isinstance(item, _A)
        template.append(_IN_VIEW[item])
        columns.append(_column(view, item, range(start, end)))
    line = b"* %d FETCH (" + b" ".join(template) + b")\r\n"
    return [line % row for row in zip(range(start + 1, end + 1), *columns, strict=True)]


_IN_VIEW = {_A.UID: b"UID %d", _A.FLAGS: b"FLAGS (%b)", _A.MODSEQ: b"MODSEQ (%d)"}


def _column(view: View, item: c.FetchAttribute, places: Sequence[int]) -> Sequence[object]:
    """Return one attribute of the messages at places, as the folder stands now."""
    rows, run = view.rows, _run(places)
    if item is _A.UID:
        return rows.uids[run] if run else [rows.uids[place] for place in places]
    if item is _A.FLAGS:
        return _flags(view, places)
    if run and rows is view.contents.rows:
        return rows.modseqs[run]
    return [view.state(place)[2] for place in places]


def _flags(view: View, places: Sequence[int]) -> list[bytes]:
    rows, run = view.rows, _run(places)
    if run and rows is view.contents.rows and not view.contents.keywords and not view.shows_recent:
        return [wire.system_flags(bits) for bits in rows.flags[run]]
    found = []
    for place in places:
        bits, keywords, _ = view.state(place)
        found.append(wire.flags(bits, keywords, recent=view.is_recent(rows.uids[place])))
    return found


def _run(places: Sequence[int]) -> slice | None:
    """Return places without gaps as a slice."""
    return slice(places.start, places.stop) if isinstance(places, range) else None


def beginnings(
    view: View,
    items: Sequence[c.FetchItem],
    rows: Sequence[Sequence[Any]],
    columns: Sequence[str],
    places: Sequence[int],
    *,
    only_flags_of: frozenset[int] | None,
) -> list[bytes]:
    """Return responses up to their sections, without the closing parenthesis.

    rows: of storage, with columns behind the common ones; places: theirs in the view.
    only_flags_of: the UIDs whose FLAGS are told, None for all.
    """
    stored = list(zip(*rows, strict=True))
    template: list[bytes] = []
    filled: list[Sequence[object]] = []
    for item in items:
        match item:
            case c.Section():
                continue
            case _A.SIZE:
                template.append(b"RFC822.SIZE %d")
                filled.append(stored[OCTETS])
            case _A.INTERNALDATE:
                template.append(b"INTERNALDATE %b")
                filled.append([wire.date_time(micros) for micros in stored[INTERNAL_DATE]])
            case _A.FLAGS if only_flags_of is not None:
                continue
            case _A.UID | _A.FLAGS | _A.MODSEQ:
                template.append(_IN_VIEW[item])
                filled.append(_column(view, item, places))
            case _:
                name = RENDERED[item]
                template.append(item.value.encode() + b" %b")
                values = stored[FIRST_COLUMN + columns.index(name)]
                filled.append([_UNRENDERED[name] if value is None else value for value in values])
    line = b"* %d FETCH (" + b" ".join(template)
    begun = [line % row for row in zip([place + 1 for place in places], *filled, strict=True)]
    if not only_flags_of:
        return begun
    flags = _flags(view, places)
    space = b" " if template else b""
    return [
        b"%b%bFLAGS (%b)" % (text, space, listed) if row[UID] in only_flags_of else text
        for text, row, listed in zip(begun, rows, flags, strict=True)
    ]
