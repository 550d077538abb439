"""Flags and keywords: changed in the database, at once and for any number of messages.

Owns STORE's three modes and UNCHANGEDSINCE. System flags change by one
statement; what keywords become is worked out beside it. Renames no file:
`mirror_due` tells the mirror, and only if the letters of a name may change.

RFC 9051 6.4.6 (STORE), 2.3.2 (flags, keywords); RFC 7162 3.1.3 (UNCHANGEDSINCE).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from sqlalchemy import Connection

from storage import signs
from storage.contents import Changed
from storage.errors import BadName, Full
from storage.folders import Locked, advance, lock
from storage.selection import Selection, Values, run, select_uids

KEYWORDS = 64  # a message
KEYWORD_CHARACTERS = 128
_RETURNING = " RETURNING uid, flags, keywords"
_DUE = "mirror_due = CASE WHEN flags <> {flags} THEN 1 ELSE mirror_due END"


class FlagMode(Enum):
    """What becomes of the flags a message has: replaced, kept and joined, or these taken away."""

    SET = "set"
    ADD = "add"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Stored:
    """What a change of flags did: messages that differ now, and UIDs that had changed meanwhile."""

    changed: list[Changed] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)


def store_flags(
    connection: Connection,
    *,
    folder_id: int,
    uids: Sequence[int],
    mode: FlagMode,
    flags: int,
    keywords: Sequence[str] = (),
    unchanged_since: int | None = None,
) -> Stored:
    """Change flags (bits of records.Flag) and keywords of messages, all under one MODSEQ.

    Only messages that really change are changed and returned, by UID; nothing is
    published where none does. unchanged_since: those with a higher MODSEQ are left
    and returned as failed. Missing where the folder is gone, BadName for an impossible
    keyword, Full where a message would have more than KEYWORDS.
    """
    words = normal_keywords(keywords)
    chosen = select_uids(connection, uids)
    folder = lock(connection, folder_id)[0]
    failed = _failed(connection, folder, chosen, unchanged_since)
    limit = folder.highestmodseq if unchanged_since is None else unchanged_since
    guarded = Selection(f"{chosen.text} AND modseq <= ?", (*chosen.values, limit))
    if mode is FlagMode.SET:
        rows = _set(connection, folder, guarded, flags, words)
    elif words:
        rows = _reword(connection, folder, guarded, mode=mode, flags=flags, words=words)
    else:
        rows = _combine(connection, folder, guarded, mode, flags)
    modseq = folder.highestmodseq + 1
    rows.sort()
    if rows:
        advance(connection, folder_id)
        sign = signs.marked(words, is_removal=mode is FlagMode.REMOVE) if words else ""
        if sign:
            signs.note_marked(connection, folder=folder, uids=[row[0] for row in rows], kind=sign)
    return Stored([(uid, modseq, now, tuple(text.split())) for uid, now, text in rows], failed)


def normal_keywords(keywords: Iterable[str]) -> list[str]:
    """Return keywords in their order, each once whatever its case (RFC 9051 2.3.2); BadName, Full."""
    known: dict[str, str] = {}
    for word in keywords:
        if (
            not word
            or len(word) > KEYWORD_CHARACTERS
            or not word.isascii()
            or not word.isprintable()
            or " " in word
        ):
            raise BadName("a keyword is empty, too long, or not of printable ASCII without spaces")
        known.setdefault(word.lower(), word)
    if len(known) > KEYWORDS:
        raise Full(f"a message has at most {KEYWORDS} keywords")
    return list(known.values())


Stated = tuple[int, int, str]  # UID, flags, keywords as they are now


def _failed(connection: Connection, folder: Locked, chosen: Selection, since: int | None) -> list[int]:
    if since is None or since >= folder.highestmodseq:
        return []
    text = f"SELECT uid FROM entries WHERE folder_id = ? AND {chosen.text} AND modseq > ? ORDER BY uid"  # noqa: S608 - a condition
    return [row[0] for row in run(connection, text, (folder.id, *chosen.values, since)).fetchall()]


def _update(
    connection: Connection,
    folder: Locked,
    *,
    changes: str,
    values: Values,
    chosen: Selection,
    differs: str,
    given: Values,
) -> list[Stated]:
    text = (
        f"UPDATE entries SET modseq = ?, {changes} "  # noqa: S608 - conditions and columns, ours
        f"WHERE folder_id = ? AND {chosen.text} AND ({differs}){_RETURNING}"
    )
    everything = (folder.highestmodseq + 1, *values, folder.id, *chosen.values, *given)
    return [(row[0], row[1], row[2]) for row in run(connection, text, everything).fetchall()]


def _set(
    connection: Connection, folder: Locked, chosen: Selection, flags: int, words: Sequence[str]
) -> list[Stated]:
    stated = " ".join(words)
    return _update(
        connection,
        folder,
        changes="flags = ?, keywords = ?, " + _DUE.format(flags="?"),
        values=(flags, stated, flags),
        chosen=chosen,
        differs="flags <> ? OR keywords <> ?",
        given=(flags, stated),
    )


def _combine(
    connection: Connection, folder: Locked, chosen: Selection, mode: FlagMode, flags: int
) -> list[Stated]:
    adds = mode is FlagMode.ADD
    mask = flags if adds else ~flags & 0x7FFFFFFF
    return _update(
        connection,
        folder,
        changes="flags = flags | ?, mirror_due = 1" if adds else "flags = flags & ?, mirror_due = 1",
        values=(mask,),
        chosen=chosen,
        differs="flags | ? <> flags" if adds else "flags & ? <> flags",
        given=(mask,),
    )


def _reword(
    connection: Connection,
    folder: Locked,
    chosen: Selection,
    *,
    mode: FlagMode,
    flags: int,
    words: Sequence[str],
) -> list[Stated]:
    text = f"SELECT uid, flags, keywords FROM entries WHERE folder_id = ? AND {chosen.text}"  # noqa: S608 - a condition
    rows = run(connection, text, (folder.id, *chosen.values)).fetchall()
    become = {text: _joined(text, mode, words) for text in {row[2] for row in rows}}
    found: list[Stated] = []
    for uid, before, stated in rows:
        after = before | flags if mode is FlagMode.ADD else before & ~flags
        if after != before or become[stated] != stated:
            found.append((uid, after, become[stated]))
    if found:
        _write(connection, folder, found)
    return found


def _joined(stated: str, mode: FlagMode, words: Sequence[str]) -> str:
    known = {word.lower(): word for word in stated.split()}
    for word in words:
        if mode is FlagMode.ADD:
            known.setdefault(word.lower(), word)
        else:
            known.pop(word.lower(), None)
    if mode is FlagMode.ADD and len(known) > KEYWORDS:
        raise Full(f"a message has at most {KEYWORDS} keywords")
    return " ".join(known.values())


def _write(connection: Connection, folder: Locked, rows: Sequence[Stated]) -> None:
    update = (
        "UPDATE entries SET modseq = ?, flags = g.flags, keywords = g.keywords, "
        "mirror_due = CASE WHEN entries.flags <> g.flags THEN 1 ELSE mirror_due END FROM {given} "
        "WHERE entries.folder_id = ? AND entries.uid = g.uid"
    )
    numbers = (folder.highestmodseq + 1, folder.id)
    if connection.dialect.name == "sqlite":
        # Not materialized, it would be read once an entry.
        given = (
            "WITH g AS MATERIALIZED (SELECT json_extract(value, '$[0]') uid, "
            "json_extract(value, '$[1]') flags, json_extract(value, '$[2]') keywords FROM json_each(?)) "
        )
        run(connection, given + update.format(given="g"), (json.dumps(rows), *numbers))
    else:
        given = "unnest(?::bigint[], ?::integer[], ?::text[]) AS g(uid, flags, keywords)"
        columns = (list(column) for column in zip(*rows, strict=True))
        run(connection, update.format(given=given), (numbers[0], *columns, numbers[1]))


# UID, flags before and after, keywords; subdirectory and letters of the file, and its other name.
State = tuple[int, int, int, str, str, str, str | None]


def set_state(connection: Connection, folder: Locked, states: Sequence[State]) -> int:
    """Take over names that a foreign program gave to files of a locked folder, and the flags they mean.

    The mirror makes the names durable. Returns how many messages' flags changed; publishes where any did.
    """
    changed = [state for state in states if state[1] != state[2]]
    renamed = [(state[0], state[4], state[5], state[6]) for state in states]
    if changed:
        _write(connection, folder, [(state[0], state[2], state[3]) for state in changed])
        advance(connection, folder.id)
    if renamed:
        _write_names(connection, folder, renamed)
    return len(changed)


def _write_names(
    connection: Connection, folder: Locked, rows: Sequence[tuple[int, str, str, str | None]]
) -> None:
    update = (
        "UPDATE entries SET subdirectory = g.subdirectory, mirrored = g.mirrored, mirrored_other = g.other, "
        "mirror_due = 1 "
        "FROM {given} WHERE entries.folder_id = ? AND entries.uid = g.uid"
    )
    if connection.dialect.name == "sqlite":
        given = (
            "WITH g AS MATERIALIZED (SELECT json_extract(value, '$[0]') uid, "
            "json_extract(value, '$[1]') subdirectory, json_extract(value, '$[2]') mirrored, "
            "json_extract(value, '$[3]') other FROM json_each(?)) "
        )
        run(connection, given + update.format(given="g"), (json.dumps(rows), folder.id))
    else:
        given = (
            "unnest(?::bigint[], ?::text[], ?::text[], ?::text[]) AS g(uid, subdirectory, mirrored, other)"
        )
        columns = (list(column) for column in zip(*rows, strict=True))
        run(connection, update.format(given=given), (*columns, folder.id))
