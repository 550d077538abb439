"""What a folder holds, as IMAP reads it: snapshots, changes, counts, rows for FETCH.

Owns the queries over `entries`, `tombstones` and `renditions` of one folder.
Changes nothing but what was shown as \\Recent. Every call sees one state of the
database where it is run in a reader's snapshot or under the folder's lock.

RFC 9051 2.3.1, RFC 3501 2.3.2 (\\Recent), RFC 7162 3.2 (VANISHED).
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row

from storage.errors import Missing
from storage.folders import folder_by_id
from storage.records import Entry, Flag, Folder
from storage.schema import renditions as renditions_table
from storage.selection import run, select_uids

# One row of what changed: UID, MODSEQ, flags, keywords.
Changed = tuple[int, int, int, tuple[str, ...]]

_ENTRY = (
    "folder_id, uid, modseq, message_id, flags, keywords, internal_date, octets, prefix_octets, name, "
    "subdirectory, mirrored"
)
_FILE = "e.uid, e.octets, e.prefix_octets, e.internal_date, e.name, e.subdirectory, e.mirrored, e.message_id"
_RENDITION_COLUMNS = frozenset(column.name for column in renditions_table.columns) - {"message_id"}


@dataclass(frozen=True, slots=True)
class Counts:
    """How much a folder holds, and where its numbers stand; octets are of whole files."""

    messages: int
    unseen: int
    deleted: int
    octets: int
    recent: int
    uidnext: int
    uidvalidity: int
    highestmodseq: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A folder's messages in order of UIDs, as parallel arrays; keywords only of those that have any."""

    folder: Folder
    uids: "array[int]"
    modseqs: "array[int]"
    flags: "array[int]"
    keywords: dict[int, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Changes:
    """What became of a folder since a MODSEQ: messages new or changed, and UIDs that are gone.

    present: None, or all UIDs that there are, in order: then the folder has forgotten some of
    what went since, and vanished is empty: whatever is not present may have gone.
    """

    highestmodseq: int
    uidnext: int
    changed: list[Changed]
    vanished: list[int]
    present: "array[int] | None" = None


def counts(connection: Connection, *, folder_id: int) -> Counts:
    """Return a folder's counts; Missing where it is gone."""
    text = "SELECT recent_uid, uidnext, uidvalidity, highestmodseq FROM folders WHERE id = ?"
    row = run(connection, text, (folder_id,)).fetchone()
    if row is None:
        raise Missing(f"folder {folder_id}")
    recent_uid, uidnext, uidvalidity, highestmodseq = row
    text = (
        "SELECT count(*), coalesce(sum(CASE WHEN flags & ? = 0 THEN 1 ELSE 0 END), 0), "
        "coalesce(sum(CASE WHEN flags & ? <> 0 THEN 1 ELSE 0 END), 0), coalesce(sum(octets), 0), "
        "coalesce(sum(CASE WHEN uid >= ? THEN 1 ELSE 0 END), 0) FROM entries WHERE folder_id = ?"
    )
    values = (int(Flag.SEEN), int(Flag.DELETED), recent_uid, folder_id)
    messages, unseen, deleted, octets, recent = map(int, run(connection, text, values).fetchone())
    return Counts(messages, unseen, deleted, octets, recent, uidnext, uidvalidity, highestmodseq)


def snapshot(connection: Connection, *, folder_id: int) -> Snapshot:
    """Return all of a folder; Missing where it is gone."""
    folder = folder_by_id(connection, folder_id=folder_id)
    text = "SELECT uid, modseq, flags FROM entries WHERE folder_id = ? ORDER BY uid"
    rows = run(connection, text, (folder_id,)).fetchall()
    uids, modseqs, flags = zip(*rows, strict=True) if rows else ((), (), ())
    text = "SELECT uid, keywords FROM entries WHERE folder_id = ? AND keywords <> ''"
    named = run(connection, text, (folder_id,)).fetchall()
    keywords = {uid: tuple(words.split()) for uid, words in named}
    return Snapshot(folder, array("Q", uids), array("Q", modseqs), array("L", flags), keywords)


def changes(connection: Connection, *, folder_id: int, since: int) -> Changes:
    """Return what happened in a folder after a MODSEQ, in order of UIDs; Missing where it is gone."""
    folder = folder_by_id(connection, folder_id=folder_id)
    text = "SELECT uid, modseq, flags, keywords FROM entries WHERE folder_id = ? AND modseq > ? ORDER BY uid"
    rows = run(connection, text, (folder_id, since)).fetchall()
    changed = [(uid, modseq, flags, tuple(words.split())) for uid, modseq, flags, words in rows]
    text = "SELECT forgotten_modseq FROM folders WHERE id = ?"
    if since < run(connection, text, (folder_id,)).fetchone()[0]:
        uids = run(connection, "SELECT uid FROM entries WHERE folder_id = ? ORDER BY uid", (folder_id,))
        present = array("Q", (row[0] for row in uids.fetchall()))
        return Changes(folder.highestmodseq, folder.uidnext, changed, [], present)
    text = "SELECT uid FROM tombstones WHERE folder_id = ? AND modseq > ? ORDER BY uid"
    vanished = [row[0] for row in run(connection, text, (folder_id, since)).fetchall()]
    return Changes(folder.highestmodseq, folder.uidnext, changed, vanished)


def claim_recent(connection: Connection, *, folder_id: int) -> tuple[int, int]:
    """Take the UIDs [low, high) that no session has shown as \\Recent yet; Missing for a folder gone."""
    text = "SELECT recent_uid, uidnext FROM folders WHERE id = ?"
    if connection.dialect.name != "sqlite":
        text += " FOR UPDATE"
    row = run(connection, text, (folder_id,)).fetchone()
    if row is None:
        raise Missing(f"folder {folder_id}")
    low, high = row
    if low < high:
        run(connection, "UPDATE folders SET recent_uid = ? WHERE id = ?", (high, folder_id))
    return low, high


def entries(connection: Connection, *, folder_id: int, uids: Sequence[int]) -> list[Entry]:
    """Return the entries that there are of these UIDs, in order of UIDs."""
    chosen = select_uids(connection, uids)
    text = f"SELECT {_ENTRY} FROM entries WHERE folder_id = ? AND {chosen.text} ORDER BY uid"  # noqa: S608 - columns
    return [entry_of(row) for row in run(connection, text, (folder_id, *chosen.values)).fetchall()]


def renditions(
    connection: Connection, *, folder_id: int, uids: Sequence[int], columns: Sequence[str]
) -> list[Row[Any]]:
    """Return, by UID, where messages lie and some of what was rendered of them.

    Rows have uid, octets, prefix_octets, internal_date, name, subdirectory,
    mirrored, message_id, then the columns asked for (of `renditions`), None in
    all of these where nothing is rendered. ValueError for a column there is not.
    """
    chosen = select_uids(connection, uids)
    shown, joined = _FILE, ""
    if columns:
        if not _RENDITION_COLUMNS.issuperset(columns):
            raise ValueError(f"no such columns of renditions: {', '.join(columns)}")
        shown += "".join(f", r.{column}" for column in columns)
        joined = "LEFT JOIN renditions r ON r.message_id = e.message_id "
    text = f"SELECT {shown} FROM entries e {joined}WHERE e.folder_id = ? AND {chosen.text} ORDER BY e.uid"  # noqa: S608 - names of our own schema
    if connection.dialect.name != "sqlite":
        text = text.replace("?", "%s")
    return list(connection.exec_driver_sql(text, (folder_id, *chosen.values)).fetchall())


def entry_of(row: Sequence[Any]) -> Entry:
    """Return the entry that a row of all its columns says."""
    values = list(row)
    values[5] = tuple(values[5].split())
    return Entry(*values)
