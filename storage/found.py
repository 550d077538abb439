"""Messages that a foreign program put into a Maildir: read, made fit, and given their rows.

Owns what apply does for our own mail, for files that no journal knows: line
ends of CRLF (the file is written anew where it has others, under a new name),
digest, rendering, thread, message and entry. Opens no links and nothing but
regular files. What is too large or cannot be read stays where it is.

Maildir (unique names denote unchanging content), RFC 9051 2.3.3 (internal date).
"""

import hashlib
import logging
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

from storage import ids
from storage.codec import decision_text, envelope_text, peer_text, verdicts_text
from storage.entries import tell
from storage.folders import Locked, advance, charge
from storage.lists import Listed
from storage.maildir import flags_of, parse_name, relative_path
from storage.records import Decision, Envelope, Peer, Rendered, Source
from storage.rendition import plain, prepare
from storage.selection import insert_rows, members, pack, run

OCTETS = 256 << 20

_MESSAGE = (
    "id, organization_id, source, accepted_at, octets, digest, reverse_path, envelope, peer, decision, "
    'verdicts, trace, message_id_header, subject, from_, "to", sent_at, thread_id, spooled'
)
_RENDITION = "message_id, header_octets, envelope, body, bodystructure, parts, preview, attachments, text"
_ENTRY = (
    "folder_id, uid, modseq, message_id, flags, keywords, internal_date, octets, prefix_octets, name, "
    "subdirectory, mirrored, mirror_due"
)
_BARE = re.compile(rb"(?<!\r)\n")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """A foreign message, read and rendered. path: below its folder's directory, as it is named now."""

    path: str
    internal_date: int
    octets: int
    digest: bytes
    rendered: Rendered


def read(directory: Path, path: str, render: Callable[[bytes], Rendered]) -> Found | None:
    """Return a message that lies at new/… or cur/… of a folder, made fit; None where it cannot be one.

    May rename the file: to cur if it bears letters, to a name with letters if it lies
    in cur, and to a new name if its line ends were not CRLF.
    """
    try:
        path = _rename(directory, path)
        content, modified_ns = _load(directory / path)
        fit = _fit(content)
        if fit is not content:
            path = _rewrite(directory, path, fit, modified_ns)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.info("a file in %s is left alone: %s", directory, error)
        return None
    try:
        rendered = render(fit)
    except Exception:  # noqa: BLE001 - whatever a renderer cannot bear, the message is there
        _log.exception("a message found in %s could not be rendered", directory)
        rendered = plain(fit)
    return Found(path, modified_ns // 1000, len(fit), hashlib.sha256(fit).digest(), rendered)


def restore(
    connection: Connection, folder: Locked, found: Sequence[tuple[Found, Listed]], *, modseq: int, at: int
) -> None:
    """Give messages back the UIDs, dates and keywords that their folder's list has, in a locked folder."""
    made = [
        (ids.new("msg"), one, _thread(connection, folder.organization_id, one.rendered), listed)
        for one, listed in found
    ]
    insert_rows(connection, "messages", _MESSAGE, (_message(folder, *each[:3], at) for each in made))
    insert_rows(connection, "renditions", _RENDITION, (_rendition(one[0], one[1].rendered) for one in made))
    rows = []
    for message_id, one, _, listed in made:
        row = list(_entry(folder.id, listed.uid, modseq, message_id, one))
        row[5], row[6] = listed.keywords, listed.internal_date
        rows.append(tuple(row))
    insert_rows(connection, "entries", _ENTRY, rows)
    charge(connection, {folder.mailbox_id: sum(one.octets for one, _ in found)})
    told = [(message_id, listed.uid) for message_id, _, _, listed in made]
    tell(connection, "message.received", folder=folder, told=told, at=at, found="list")


def insert(connection: Connection, folder: Locked, found: Sequence[Found], at: int) -> list[int]:
    """Give found messages their rows in a locked folder and return their UIDs; publishes."""
    if not found:
        return []
    first, modseq = advance(connection, folder.id, uids=len(found))
    message_ids = [ids.new("msg") for _ in found]
    threads = [_thread(connection, folder.organization_id, one.rendered) for one in found]
    made = list(zip(message_ids, found, threads, strict=True))
    insert_rows(connection, "messages", _MESSAGE, (_message(folder, *each, at) for each in made))
    insert_rows(connection, "renditions", _RENDITION, (_rendition(key, one.rendered) for key, one, _ in made))
    rows = (_entry(folder.id, first + index, modseq, *each[:2]) for index, each in enumerate(made))
    insert_rows(connection, "entries", _ENTRY, rows)
    charge(connection, {folder.mailbox_id: sum(one.octets for one in found)})
    uids = list(range(first, first + len(found)))
    told = list(zip(message_ids, uids, strict=True))
    tell(connection, "message.received", folder=folder, told=told, at=at, found="maildir")
    return uids


def encodable(path: str) -> str:
    """Return a path with octets that are no UTF-8 written as '%' and two digits, as rows can hold it."""
    if path.isascii():
        return path
    # Python's surrogates for octets that did not decode.
    return "".join(
        f"%{ord(character) & 0xFF:02X}" if "\udc80" <= character <= "\udcff" else character
        for character in path
    )


def standard(path: str) -> str:
    """Return the path that a file at new/… or cur/… has in our way of naming."""
    subdirectory, _, name = encodable(path).partition("/")
    base, letters = parse_name(name)
    return relative_path(base, "cur" if letters else subdirectory, letters)


def _rename(directory: Path, path: str) -> str:
    wanted = standard(path)
    if wanted != path:
        os.rename(directory / path, directory / wanted)
    return wanted


def _load(path: Path) -> tuple[bytes, int]:
    """Return a file's content and its time of modification, in nanoseconds."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("it is not a regular file")
        if facts.st_size > OCTETS:
            raise ValueError(f"it is larger than {OCTETS} octets")
        return file.read(OCTETS), facts.st_mtime_ns


def _fit(content: bytes) -> bytes:
    """Return content as IMAP can send it: no bare LF, no NUL (RFC 9051 4.3); itself where it is so."""
    if content.count(b"\n") != content.count(b"\r\n"):
        content = _BARE.sub(b"\r\n", content)
    # As other servers do: a literal cannot carry NUL, and no octet may be lost.
    return content.replace(b"\0", b"\x80") if b"\0" in content else content


def _rewrite(directory: Path, path: str, content: bytes, modified_ns: int) -> str:
    """Write a file anew under a name that follows from its own, so that a crash between leaves no two."""
    subdirectory, _, name = path.partition("/")
    base, letters = parse_name(name)
    words = base.split(",")
    # Other programs keep the size in the name (S=, W=): it is another one now.
    kept = [words[0], *(word for word in words[1:] if not word.startswith(("S=", "W=")))]
    fresh = ",".join([*kept, f"S={len(content)}"])
    temporary = directory / "tmp" / fresh
    os.makedirs(directory / "tmp", mode=0o700, exist_ok=True)
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.utime(temporary, ns=(modified_ns, modified_ns))
    target = relative_path(fresh, subdirectory, letters)
    os.rename(temporary, directory / target)
    os.unlink(directory / path)
    return target


def _thread(connection: Connection, organization_id: str, rendered: Rendered) -> str:
    """Return the thread of the nearest message that this one refers to, or of itself as known before."""
    prepared = prepare(rendered)
    wanted = [one for one in (prepared.described[0], *prepared.references) if one]
    if wanted:
        text = (
            "SELECT message_id_header, thread_id FROM messages "  # noqa: S608 - ours
            f"WHERE organization_id = ? AND message_id_header IN {members(connection, 'text')}"
        )
        rows = run(connection, text, (organization_id, pack(connection, wanted))).fetchall()
        known = {row[0]: row[1] for row in rows}
        for one in wanted:
            if one in known:
                return str(known[one])
    return ids.new("thr")


def _message(folder: Locked, message_id: str, found: Found, thread_id: str, at: int) -> tuple[object, ...]:
    return (
        message_id,
        folder.organization_id,
        Source.APPEND.value,
        at,
        found.octets,
        found.digest,
        None,
        envelope_text(Envelope(None, ())),
        peer_text(Peer("")),
        decision_text(Decision()),
        verdicts_text(()),
        b"",
        *prepare(found.rendered).described,
        thread_id,
        0,
    )


def _rendition(message_id: str, rendered: Rendered) -> tuple[object, ...]:
    return (message_id, *prepare(rendered).rendition)


def _entry(folder_id: int, uid: int, modseq: int, message_id: str, found: Found) -> tuple[object, ...]:
    subdirectory, _, name = found.path.partition("/")
    base, letters = parse_name(name)
    return (
        folder_id,
        uid,
        modseq,
        message_id,
        flags_of(letters),
        "",
        found.internal_date,
        found.octets,
        0,
        base,
        subdirectory,
        letters,
        0,
    )
