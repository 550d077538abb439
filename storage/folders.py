"""Folders of inboxes: their names, their making, renaming and deletion.

Owns the rows of `folders`, the rules for names, and UIDVALIDITY: given at
creation from the time, never used twice in one mailbox, kept when a folder is
renamed. Takes the locks under which UIDs and MODSEQs are given out. Deletes
no file: a deleted folder's directory is left to the mirror.

RFC 9051 5.1 (names), 6.3.4 to 6.3.7 (CREATE, DELETE, RENAME, SUBSCRIBE),
RFC 6154 (special use), RFC 7162 3.1 (MODSEQ).
"""

import errno
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from storage import subscriptions
from storage.db import Notice, publish
from storage.errors import BadName, Conflict, Full, Missing, StorageError
from storage.maildir import INBOX, Maildir, directory_name, gone_name
from storage.records import Folder
from storage.selection import members, pack, run

LEVELS = 32
DIRECTORY_OCTETS = 255  # what file systems take as one name: Maildir++ keeps all levels in one
FOLDERS = 20_000
NUMBER_LIMIT = 0xFFFFFFFF  # RFC 9051 9: nz-number, 32 bits

# Made with every inbox, in the order in which clients like to show them (RFC 6154 2).
FIRST_FOLDERS = (
    (INBOX, ""),
    ("Sent", "\\Sent"),
    ("Drafts", "\\Drafts"),
    ("Trash", "\\Trash"),
    ("Junk", "\\Junk"),
    ("Archive", "\\Archive"),
)
SPECIAL_USES = frozenset({"", "\\All", "\\Archive", "\\Drafts", "\\Flagged", "\\Junk", "\\Sent", "\\Trash"})
_COLUMNS = "id, mailbox_id, name, special_use, uidvalidity, uidnext, highestmodseq, subscribed"


@dataclass(frozen=True, slots=True)
class Locked:
    """A folder's row as it stands while the unit holds it."""

    id: int
    mailbox_id: str
    organization_id: str
    name: str
    uidvalidity: int
    uidnext: int
    highestmodseq: int
    special_use: str = ""


def normal_name(name: str) -> str:
    """Return a folder's name as it is stored: NFC, INBOX in capitals; BadName where there can be none."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise BadName("a folder name holds half a character") from None
    parts = unicodedata.normalize("NFC", name).split("/")
    if parts[0].upper() == INBOX:
        parts[0] = INBOX
    normal = "/".join(parts)
    if not all(parts):
        raise BadName("a level of a folder name is empty")
    if len(parts) > LEVELS:
        raise BadName(f"a folder name has more than {LEVELS} levels")
    # RFC 9051 5.1: Net-Unicode (RFC 5198) has no controls and no line separators.
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in normal):
        raise BadName("a folder name holds a control character")
    if len(directory_name(normal).encode("utf-8")) > DIRECTORY_OCTETS:
        raise BadName(f"a folder name takes more than {DIRECTORY_OCTETS} octets on disk")
    return normal


def folders(connection: Connection, *, mailbox_id: str) -> list[Folder]:
    """Return an inbox's folders: INBOX first, then by name."""
    rows = run(connection, f"SELECT {_COLUMNS} FROM folders WHERE mailbox_id = ?", (mailbox_id,))  # noqa: S608 - columns
    found = [folder_of(row) for row in rows.fetchall()]
    return sorted(found, key=lambda folder: (folder.name != INBOX, folder.name))


def find_folder(connection: Connection, *, mailbox_id: str, name: str) -> Folder | None:
    """Return a folder by its name in any form, or None."""
    try:
        values = (mailbox_id, normal_name(name))
    except BadName:
        return None
    text = f"SELECT {_COLUMNS} FROM folders WHERE mailbox_id = ? AND name = ?"  # noqa: S608 - columns
    row = run(connection, text, values).fetchone()
    return None if row is None else folder_of(row)


def folder_by_id(connection: Connection, *, folder_id: int) -> Folder:
    """Return a folder; Missing where it is gone."""
    row = run(connection, f"SELECT {_COLUMNS} FROM folders WHERE id = ?", (folder_id,)).fetchone()  # noqa: S608 - columns
    if row is None:
        raise Missing(f"folder {folder_id}")
    return folder_of(row)


def create_mailbox_folders(connection: Connection, *, mailbox_id: str, at: int) -> list[Folder]:
    """Make the folders of a new inbox, all subscribed; Conflict where it has some already."""
    made = [(name, special_use, True) for name, special_use in FIRST_FOLDERS]
    return _insert(connection, mailbox_id, made, at)


def create_folder(
    connection: Connection, *, mailbox_id: str, name: str, at: int, special_use: str = ""
) -> Folder:
    """Make a folder, and its parents where there are none.

    BadName; Conflict where it is there, or another has its special use; Missing
    for no such inbox; Full where the inbox has FOLDERS of them.
    """
    if special_use not in SPECIAL_USES:
        raise BadName(f"no special use: {special_use!r}")
    wanted = normal_name(name)
    known = _known(connection, mailbox_id, [wanted, *parents(wanted)])
    if wanted in known:
        raise Conflict(f"folder {wanted} exists")
    text = "SELECT 1 FROM folders WHERE mailbox_id = ? AND special_use = ?"
    if special_use and run(connection, text, (mailbox_id, special_use)).fetchone() is not None:
        raise Conflict(f"another folder is {special_use}")
    made = [(parent, "", False) for parent in parents(wanted) if parent not in known]
    made.append((wanted, special_use, False))
    text = "SELECT count(*) FROM folders WHERE mailbox_id = ?"
    if run(connection, text, (mailbox_id,)).fetchone()[0] + len(made) > FOLDERS:
        raise Full(f"an inbox has at most {FOLDERS} folders")
    return _insert(connection, mailbox_id, made, at)[-1]


def set_subscribed(connection: Connection, *, mailbox_id: str, name: str, subscribed: bool) -> None:
    """Say whether a folder is on the list of those a client shows; Missing where there is none."""
    text = "UPDATE folders SET subscribed = ? WHERE mailbox_id = ? AND name = ?"
    try:
        values = (int(subscribed), mailbox_id, normal_name(name))
    except BadName as error:
        raise Missing(str(error)) from error
    if run(connection, text, values).rowcount == 0 and (
        subscribed or not subscriptions.take(connection, mailbox_id=mailbox_id, names=[values[2]])
    ):
        raise Missing(f"folder {values[2]}")
    publish(connection, Notice("mailbox", mailbox_id))


def parents(name: str) -> list[str]:
    """Return the names above a folder's, outermost first."""
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def lock(connection: Connection, *folder_ids: int) -> list[Locked]:
    """Hold folders' rows until the unit ends and return them as asked; Missing where one is gone."""
    found = held(connection, folder_ids)
    for folder_id in folder_ids:
        if folder_id not in found:
            raise Missing(f"folder {folder_id}")
    return [found[folder_id] for folder_id in folder_ids]


def held(connection: Connection, folder_ids: Collection[int]) -> dict[int, Locked]:
    """Hold those folders' rows that there are until the unit ends, and return them by id.

    Always in order of their ids, so that no two units wait for one another.
    """
    wanted = sorted(set(folder_ids))
    if not wanted:
        return {}
    text = (
        "SELECT f.id, f.mailbox_id, m.organization_id, f.name, f.uidvalidity, f.uidnext, f.highestmodseq, "  # noqa: S608 - marks only
        "f.special_use FROM folders f JOIN mailboxes m ON m.id = f.mailbox_id "
        f"WHERE f.id IN ({', '.join('?' * len(wanted))}) ORDER BY f.id"
    )
    if connection.dialect.name != "sqlite":
        text += " FOR UPDATE OF f"
    return {row[0]: Locked(*row) for row in run(connection, text, tuple(wanted)).fetchall()}


def advance(connection: Connection, folder_id: int, *, uids: int = 0) -> tuple[int, int]:
    """Give out a MODSEQ and so many UIDs of a locked folder; return (first UID, MODSEQ), and publish."""
    text = (
        "UPDATE folders SET uidnext = uidnext + ?, highestmodseq = highestmodseq + 1 "
        "WHERE id = ? RETURNING uidnext, highestmodseq"
    )
    row = run(connection, text, (uids, folder_id)).fetchone()
    if row is None:
        raise Missing(f"folder {folder_id}")
    if row[0] > NUMBER_LIMIT:
        raise Full(f"folder {folder_id} has given out all UIDs")
    publish(connection, Notice("folder", str(folder_id), row[1]))
    return row[0] - uids, row[1]


def charge(connection: Connection, octets: dict[str, int]) -> None:
    """Add octets (or take away) to what mailboxes use, in order of their ids, after all folder locks."""
    text = (
        "UPDATE mailboxes SET used_octets = CASE WHEN used_octets + ? < 0 THEN 0 ELSE used_octets + ? END "
        "WHERE id = ?"
    )
    for mailbox_id in sorted(octets):
        if octets[mailbox_id]:
            run(connection, text, (octets[mailbox_id], octets[mailbox_id], mailbox_id))


def delete_folder(connection: Connection, *, mailbox_id: str, name: str, maildir: Maildir) -> None:
    """Delete a folder with its messages; folders below it stay. Missing; Conflict for INBOX.

    Its directory is put out of sight at once and goes when the mirror comes to it;
    a crash before the commit leaves it out of sight, which reconcile puts right.
    """
    from storage.entries import erase_unused

    folder = _own(connection, mailbox_id, name)
    if folder.name == INBOX:
        raise Conflict("INBOX cannot be deleted")
    lock(connection, folder.id)
    advance(connection, folder.id)
    gone = run(
        connection, "DELETE FROM entries WHERE folder_id = ? RETURNING message_id, octets", (folder.id,)
    ).fetchall()
    for table in ("tombstones", "removals"):
        run(connection, f"DELETE FROM {table} WHERE folder_id = ?", (folder.id,))  # noqa: S608 - ours
    run(connection, "DELETE FROM folders WHERE id = ?", (folder.id,))
    if folder.subscribed:
        subscriptions.lapse(connection, mailbox_id=mailbox_id, name=folder.name)
    _remember_uidvalidity(connection, mailbox_id, folder.uidvalidity)
    charge(connection, {mailbox_id: -sum(row[1] for row in gone)})
    erase_unused(connection, [row[0] for row in gone])
    text = "INSERT INTO removals (mailbox_id, folder_id, name) VALUES (?, 0, ?)"
    run(connection, text, (mailbox_id, gone_name(folder.id)))
    maildir.put_out_of_sight(mailbox_id, folder.name, folder.id)
    publish(connection, Notice("mailbox", mailbox_id))


def rename_folder(
    connection: Connection, *, mailbox_id: str, name: str, new_name: str, maildir: Maildir, at: int = 0
) -> None:
    """Rename a folder and those below it; of INBOX the messages move instead (RFC 9051 6.3.6).

    Missing parents of the new name are made. BadName, Missing, Conflict. A crash
    before the commit leaves directories under new names, which reconcile puts right.
    """
    old, new = normal_name(name), normal_name(new_name)
    if new == old or new.startswith(old + "/"):
        raise Conflict(f"folder {old} cannot become {new}")
    if old == INBOX:
        _empty_inbox(connection, mailbox_id, new, maildir, at)
        return
    known = {folder.name: folder for folder in folders(connection, mailbox_id=mailbox_id)}
    moved = [known[one] for one in known if one == old or one.startswith(old + "/")]
    if not moved:
        raise Missing(f"folder {old}")
    names = {folder.name: normal_name(new + folder.name[len(old) :]) for folder in moved}
    for taken in known.keys() & set(names.values()):
        raise Conflict(f"folder {taken} exists")
    lock(connection, *sorted(folder.id for folder in moved))
    missing = [(parent, "", False) for parent in parents(new) if parent not in known]
    if missing:
        _insert(connection, mailbox_id, missing, at)
    text = (
        "UPDATE folders SET name = CAST(? AS TEXT) || substr(name, ?) "
        "WHERE mailbox_id = ? AND (name = ? OR substr(name, 1, ?) = ?)"
    )
    run(connection, text, (new, len(old) + 1, mailbox_id, old, len(old) + 1, old + "/"))
    _rename_directories(mailbox_id, names, maildir)
    publish(connection, Notice("mailbox", mailbox_id))


def folder_of(row: Sequence[Any]) -> Folder:
    """Return the folder that a row of all its columns says."""
    values = list(row)
    values[7] = bool(values[7])
    return Folder(*values)


def _known(connection: Connection, mailbox_id: str, names: Sequence[str]) -> set[str]:
    text = f"SELECT name FROM folders WHERE mailbox_id = ? AND name IN {members(connection, 'text')}"  # noqa: S608 - ours
    return {row[0] for row in run(connection, text, (mailbox_id, pack(connection, names))).fetchall()}


def _own(connection: Connection, mailbox_id: str, name: str) -> Folder:
    folder = find_folder(connection, mailbox_id=mailbox_id, name=name)
    if folder is None:
        raise Missing(f"folder {name!r}")
    return folder


def _empty_inbox(connection: Connection, mailbox_id: str, new: str, maildir: Maildir, at: int) -> None:
    from storage.entries import move

    inbox = _own(connection, mailbox_id, INBOX)
    lock(connection, inbox.id)  # folders before their mailbox, as everybody takes them
    made = create_folder(connection, mailbox_id=mailbox_id, name=new, at=at)
    everything = range(1, NUMBER_LIMIT + 1)
    move(connection, maildir=maildir, source_id=inbox.id, target_id=made.id, uids=everything, at=at)


def _insert(
    connection: Connection, mailbox_id: str, made: Sequence[tuple[str, str, bool]], at: int
) -> list[Folder]:
    first = _next_uidvalidity(connection, mailbox_id, at)
    lapsed = subscriptions.take(connection, mailbox_id=mailbox_id, names=[each[0] for each in made])
    found: list[Folder] = []
    text = (
        "INSERT INTO folders (mailbox_id, name, special_use, uidvalidity, uidnext, highestmodseq, "  # noqa: S608 - columns
        f"recent_uid, subscribed) VALUES (?, ?, ?, ?, 1, 1, 1, ?) RETURNING {_COLUMNS}"
    )
    for number, (name, special_use, subscribed) in enumerate(made):
        values = (mailbox_id, name, special_use, first + number, int(subscribed or name in lapsed))
        try:
            found.append(folder_of(run(connection, text, values).fetchone()))
        except Exception as error:
            if _is_integrity(error):
                raise Conflict(f"folder {name} exists") from error
            raise
    publish(connection, Notice("mailbox", mailbox_id))
    return found


def _is_integrity(error: Exception) -> bool:
    return isinstance(error, IntegrityError) or type(error).__name__ in ("IntegrityError", "UniqueViolation")


def _next_uidvalidity(connection: Connection, mailbox_id: str, at: int) -> int:
    """Return a UIDVALIDITY above every one that the mailbox ever had, the time's where that serves."""
    text = "SELECT id FROM mailboxes WHERE id = ?"
    if connection.dialect.name != "sqlite":
        text += " FOR UPDATE"
    if run(connection, text, (mailbox_id,)).fetchone() is None:
        raise Missing(f"inbox {mailbox_id}")
    highest = run(
        connection, "SELECT max(uidvalidity) FROM folders WHERE mailbox_id = ?", (mailbox_id,)
    ).fetchone()[0]
    return max(at // 1_000_000, (highest or 0) + 1, _remembered(connection, mailbox_id) + 1)


def _setting(mailbox_id: str) -> str:
    return f"uidvalidity {mailbox_id}"


def _remembered(connection: Connection, mailbox_id: str) -> int:
    row = run(connection, "SELECT value FROM settings WHERE name = ?", (_setting(mailbox_id),)).fetchone()
    return int(row[0]) if row else 0


def _remember_uidvalidity(connection: Connection, mailbox_id: str, uidvalidity: int) -> None:
    highest = max(uidvalidity, _remembered(connection, mailbox_id))
    text = (
        "INSERT INTO settings (name, value) VALUES (?, ?) "
        "ON CONFLICT (name) DO UPDATE SET value = excluded.value"
    )
    run(connection, text, (_setting(mailbox_id), str(highest)))


def _rename_directories(mailbox_id: str, names: dict[str, str], maildir: Maildir) -> None:
    renamed: list[tuple[str, str]] = []
    try:
        for old, new in names.items():
            maildir.rename(mailbox_id, old, new)
            renamed.append((old, new))
    except OSError as error:
        for old, new in reversed(renamed):
            maildir.rename(mailbox_id, new, old)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise Conflict("a directory of that folder's name is in the way") from error
        raise StorageError(f"a folder's directory cannot be renamed: {error}") from error
