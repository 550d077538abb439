"""Tombstones that nobody will ask for any more: pruned by age and by number, folder by folder.

Owns how long the UIDs of expunged messages are remembered. A folder says up to
which MODSEQ they may be missing (`forgotten_modseq`): whoever asks from before
it is told of every UID that is not there. Raises that word before it deletes,
in steps of few rows, so that it is true at every moment.

RFC 7162 3.2.5.1 (a server that remembers only part of the expunged messages).
"""

from sqlalchemy import Connection

from storage.db import Database
from storage.errors import Missing
from storage.folders import lock
from storage.selection import run

DAYS = 90
PER_FOLDER = 10_000
STEP = 500


def prune(database: Database, *, at: int, days: int = DAYS, keep: int = PER_FOLDER, step: int = STEP) -> int:
    """Delete tombstones older than days or beyond the newest `keep` of a folder; return how many.

    at: now, in microseconds. Blocks; each write unit deletes up to step rows of one folder.
    """
    before = at - days * 86_400_000_000
    pruned, folder_id = 0, 0
    while (found := database.read(lambda c, after=folder_id: _next(c, after))) is not None:  # type: ignore[misc]  # bound now
        folder_id = found
        limit = database.read(lambda c, one=found: _limit(c, one, before, keep))  # type: ignore[misc]
        while limit:
            done = database.write(lambda c, one=found, modseq=limit: _prune(c, one, modseq, step))  # type: ignore[misc]
            pruned += done
            if done < step:
                break
    return pruned


def _next(connection: Connection, after: int) -> int | None:
    """Return the next folder that has tombstones, found by the primary key alone."""
    text = "SELECT min(folder_id) FROM tombstones WHERE folder_id > ?"
    found: int | None = run(connection, text, (after,)).fetchone()[0]
    return found


def _limit(connection: Connection, folder_id: int, before: int, keep: int) -> int:
    """Return the MODSEQ up to which a folder's tombstones are to go, 0 for none."""
    text = "SELECT modseq FROM tombstones WHERE folder_id = ? ORDER BY modseq DESC, uid DESC LIMIT 1 OFFSET ?"
    row = run(connection, text, (folder_id, keep)).fetchone()
    beyond = 0 if row is None else int(row[0])
    text = "SELECT min(modseq) FROM tombstones WHERE folder_id = ? AND at >= ?"
    young = run(connection, text, (folder_id, before)).fetchone()[0]
    text = "SELECT coalesce(max(modseq), 0) FROM tombstones WHERE folder_id = ? AND modseq < ?"
    if young is None:
        text, young = text.replace("modseq < ?", "modseq > ?"), 0
    old = int(run(connection, text, (folder_id, young)).fetchone()[0])
    return max(beyond, old)


def _prune(connection: Connection, folder_id: int, modseq: int, step: int) -> int:
    try:
        lock(connection, folder_id)
    except Missing:
        return 0
    text = "UPDATE folders SET forgotten_modseq = ? WHERE id = ? AND forgotten_modseq < ?"
    run(connection, text, (modseq, folder_id, modseq))
    text = (
        "DELETE FROM tombstones WHERE (folder_id, modseq, uid) IN (SELECT folder_id, modseq, uid "
        "FROM tombstones WHERE folder_id = ? AND modseq <= ? ORDER BY modseq, uid LIMIT ?)"
    )
    return int(run(connection, text, (folder_id, modseq, step)).rowcount)
