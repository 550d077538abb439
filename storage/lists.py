"""The file beside a folder's mail that says which UIDs its messages have: its lines, and reading them back.

Owns the format of `mailagents-folder`: a checksum and a JSON object a line. Lines
that name messages come first, a line that seals them follows: what the folder
is, and how far the lines before tell of it. A line that is torn or damaged is
passed over; what one says of a message is true for ever, for no UID is given
twice. Writes no file and knows no table. Other programs ignore files of this
name: they lie beside new and cur, not in them.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

FOLDER_FILE = "mailagents-folder"
INBOX_FILE = "mailagents-inbox"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Seal:
    """What a folder is, and how far its list tells of it.

    live, dead: messages that the list names, and what in it is out of date.
    """

    uidvalidity: int
    uidnext: int
    modseq: int
    special_use: str
    subscribed: bool
    live: int = 0
    dead: int = 0


@dataclass(frozen=True, slots=True)
class Listed:
    """A message as its folder's list names it. keywords: separated by spaces."""

    uid: int
    internal_date: int
    name: str
    keywords: str


@dataclass(slots=True)
class FolderList:
    """A whole list. gone: names of messages that were expunged; is_sound: nothing in it disagrees."""

    seal: Seal
    live: dict[str, Listed] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    is_sound: bool = True


def line(body: str) -> bytes:
    """Return a JSON object's text as a line of a list."""
    octets = body.replace("\n", " ").encode()
    return b"%08x %b\n" % (zlib.crc32(octets), octets)


def seal_line(seal: Seal) -> bytes:
    """Return the line that ends what a step wrote."""
    return line(
        json.dumps(
            {
                "version": VERSION,
                "uidvalidity": seal.uidvalidity,
                "uidnext": seal.uidnext,
                "modseq": seal.modseq,
                "use": seal.special_use,
                "subscribed": seal.subscribed,
                "live": seal.live,
                "dead": seal.dead,
            }
        )
    )


def read_line(octets: bytes) -> dict[str, Any] | None:
    """Return what a line says, None where it is torn or damaged."""
    checksum, _, body = octets.partition(b" ")
    try:
        if int(checksum, 16) != zlib.crc32(body):
            return None
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def read_seal(found: dict[str, Any]) -> Seal | None:
    """Return the seal that a line is, None where it is another or of a later version."""
    if found.get("version") != VERSION:
        return None
    try:
        return Seal(
            uidvalidity=int(found["uidvalidity"]),
            uidnext=int(found["uidnext"]),
            modseq=int(found["modseq"]),
            special_use=str(found["use"]),
            subscribed=bool(found["subscribed"]),
            live=int(found["live"]),
            dead=int(found["dead"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def last_seal(tail: bytes) -> Seal | None:
    """Return the seal that a list ends with, None where it does not end with one."""
    if not tail.endswith(b"\n"):
        return None
    found = read_line(tail[:-1].rpartition(b"\n")[2])
    return None if found is None else read_seal(found)


def read(octets: bytes) -> FolderList | None:
    """Return what a list says; None where nothing seals it."""
    seals: list[Seal] = []
    by_uid: dict[int, Listed] = {}
    gone: set[int] = set()
    words: list[tuple[int, str]] = []
    is_sound = True
    for found in filter(None, map(read_line, octets.split(b"\n"))):
        try:
            for one in _messages(found):
                is_sound &= by_uid.setdefault(one.uid, one).name == one.name
            words += [(int(uid), str(keywords)) for uid, keywords in found.get("set", ())]
            gone.update(map(int, found.get("gone", ())))
        except (TypeError, ValueError):
            is_sound = False
            continue
        # Keywords by the order of the lines: the last word counts.
        for uid, keywords in words:
            if uid in by_uid:
                one = by_uid[uid]
                by_uid[uid] = Listed(uid, one.internal_date, one.name, keywords)
        words.clear()
        seal = read_seal(found)
        if seal is not None:
            seals.append(seal)
    if not seals:
        return None
    made = FolderList(seals[-1], is_sound=is_sound)
    made.is_sound &= len({seal.uidvalidity for seal in seals}) == 1
    for uid, one in by_uid.items():
        if uid in gone:
            made.gone.add(one.name)
        else:
            made.is_sound &= one.name not in made.live and uid > 0
            made.live[one.name] = one
    return made


def _messages(found: dict[str, Any]) -> Iterator[Listed]:
    for uid, internal_date, name, keywords in found.get("new", ()):
        yield Listed(int(uid), int(internal_date), str(name), str(keywords))
