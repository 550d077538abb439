"""Maildir as it lies on disk: where folders and entries are, and how they are named.

Owns paths, folder directories (Maildir++: the inbox is the root, `.Name.Sub`
beside it), the info letters of flags, and the base names of our own files,
which carry the journal sequence, so that a file still in flight can be told
from a foreign one. Writes no message: apply does.

Maildir++; RFC 3501 5.1.3 (modified UTF-7).
"""

import base64
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from storage.files import sync_directory
from storage.records import Entry, Flag

INBOX = "INBOX"
SUBDIRECTORIES = ("tmp", "new", "cur")
_INFO = ":2,"
_GONE = "mailagents-gone-"
_HOST = "mailagents"
_DOT = "&AC4-"  # a literal '.', which would read as a level of the tree

# In ASCII order, as Maildir wants them.
_LETTERS = (
    ("D", Flag.DRAFT),
    ("F", Flag.FLAGGED),
    ("P", Flag.FORWARDED),
    ("R", Flag.ANSWERED),
    ("S", Flag.SEEN),
    ("T", Flag.DELETED),
)
_INFOS = tuple("".join(letter for letter, flag in _LETTERS if bits & flag) for bits in range(64))


class Maildir:
    """All mailboxes of the appliance below one root, `<root>/<mailbox id>/`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def mailbox_path(self, mailbox_id: str) -> Path:
        """Return the mailbox's directory, which is its inbox's too."""
        return self.root / mailbox_id

    def folder_path(self, mailbox_id: str, folder: str) -> Path:
        """Return the folder's directory, whether or not it is there."""
        if folder == INBOX:
            return self.root / mailbox_id
        return self.root / mailbox_id / directory_name(folder)

    def ensure(self, mailbox_id: str, folder: str) -> Path:
        """Make the folder's directory with tmp, new and cur unless they are there; return it."""
        path = self.folder_path(mailbox_id, folder)
        for subdirectory in SUBDIRECTORIES:
            os.makedirs(path / subdirectory, mode=0o700, exist_ok=True)
        if folder != INBOX:
            self.ensure(mailbox_id, INBOX)
            (path / "maildirfolder").touch(mode=0o600)
        return path

    def rename(self, mailbox_id: str, old: str, new: str) -> None:
        """Give a folder's directory another name; one that was never made is fine. OSError."""
        with suppress(FileNotFoundError):
            os.rename(self.folder_path(mailbox_id, old), self.folder_path(mailbox_id, new))
            sync_directory(os, self.mailbox_path(mailbox_id))

    def put_out_of_sight(self, mailbox_id: str, folder: str, folder_id: int) -> None:
        """Take a folder's directory out of the tree, to be removed later or put back. OSError."""
        with suppress(FileNotFoundError):
            os.rename(
                self.folder_path(mailbox_id, folder), self.mailbox_path(mailbox_id) / gone_name(folder_id)
            )
            sync_directory(os, self.mailbox_path(mailbox_id))

    def put_back(self, mailbox_id: str, folder: str, folder_id: int) -> None:
        """Undo put_out_of_sight. OSError."""
        os.rename(self.mailbox_path(mailbox_id) / gone_name(folder_id), self.folder_path(mailbox_id, folder))

    def remove_gone(self, mailbox_id: str, name: str, *, limit: int) -> tuple[int, bool]:
        """Remove up to limit files of a directory that was put out of sight; it goes too when empty.

        Returns how many were removed, and whether nothing is left.
        """
        path = self.mailbox_path(mailbox_id) / name
        if gone_id(name) is None:
            raise ValueError(f"not a directory out of sight: {name!r}")
        removed = 0
        for parent, _, files in os.walk(path):
            for file in files[: limit - removed]:
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(parent, file))
                removed += 1
            if removed >= limit:
                return removed, False
        shutil.rmtree(path, ignore_errors=True)
        return removed, True

    def mailboxes(self) -> list[str]:
        """Return the names of all mailbox directories."""
        with os.scandir(self.root) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))

    def directories(self, mailbox_id: str) -> list[str]:
        """Return the names of the directories in a mailbox's root beside its own tmp, new and cur."""
        try:
            with os.scandir(self.mailbox_path(mailbox_id)) as entries:
                found = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        return sorted(name for name in found if name not in SUBDIRECTORIES)

    def entry_path(self, mailbox_id: str, folder: str, entry: Entry) -> Path:
        """Return the path of an entry's file under the name that was last mirrored."""
        path = self.folder_path(mailbox_id, folder) / entry.subdirectory
        return path / file_name(entry.name, entry.subdirectory, entry.mirrored)


def gone_name(folder_id: int) -> str:
    """Return the name that a deleted folder's directory bears until it is removed: no Maildir++ folder."""
    return f"{_GONE}{folder_id}"


def gone_id(name: str) -> int | None:
    """Return the folder whose directory was put out of sight under a name, None where it is none such."""
    number = name.removeprefix(_GONE)
    return int(number) if name.startswith(_GONE) and _is_number(number) else None


def file_name(base: str, subdirectory: str, letters: str) -> str:
    """Return the file's name: the base alone in new, with its info letters in cur."""
    return base + _INFO + letters if subdirectory == "cur" else base


def relative_path(base: str, subdirectory: str, letters: str) -> str:
    """Return a file's path below its folder's directory."""
    return f"{subdirectory}/{file_name(base, subdirectory, letters)}"


def info(flags: int) -> str:
    """Return the Maildir letters of flags (bits of records.Flag), in ASCII order."""
    return _INFOS[flags & 63]


def flags_of(letters: str) -> int:
    """Return the flags that Maildir letters mean; unknown letters mean none."""
    return sum(flag for letter, flag in _LETTERS if letter in letters)


def parse_name(filename: str) -> tuple[str, str]:
    """Return a file name's base and its info letters ('' where it has none)."""
    base, _, letters = filename.partition(_INFO)
    return base, letters


@dataclass(frozen=True, slots=True)
class Origin:
    """What the base name of a file of ours says: the journal record it came from."""

    instance: str
    sequence: int
    index: int


def base_name(*, at: int, sequence: int, index: int, instance: str) -> str:
    """Return the base name for one target of one journal record; at is in microseconds."""
    return f"{at // 1_000_000}.M{at % 1_000_000}J{sequence}_{index}.{instance}"


def parse_base(base: str) -> Origin | None:
    """Return which record a base name speaks of, None where it is not of our making."""
    _, first, rest = base.partition(".M")
    middle, second, instance = rest.partition(".")
    _, third, numbers = middle.partition("J")
    sequence, fourth, index = numbers.partition("_")
    if not (first and second and third and fourth and instance):
        return None
    if not (_is_number(sequence) and _is_number(index)):
        return None
    return Origin(instance=instance, sequence=int(sequence), index=int(index))


def copy_parts(*, at: int, folder_id: int) -> tuple[str, str]:
    """Return what stands before and after the UID in the base names of messages put into a folder at once.

    at is in microseconds. The two numbers make the name the only one of its kind in
    a store, and show a file that no commit stands behind for what it is.
    """
    return f"{at // 1_000_000}.M{at % 1_000_000}C", f"_{folder_id}.{_HOST}"


def copy_name(*, at: int, uid: int, folder_id: int) -> str:
    """Return the base name of a message copied or moved to a UID of a folder."""
    stem, tail = copy_parts(at=at, folder_id=folder_id)
    return f"{stem}{uid}{tail}"


def parse_copy(base: str) -> tuple[int, int] | None:
    """Return the (UID, folder) that a base name of copy_name speaks of, None where it is none."""
    _, first, rest = base.partition(".M")
    middle, second, host = rest.partition(".")
    _, third, numbers = middle.partition("C")
    uid, fourth, folder = numbers.partition("_")
    if not (first and second and third and fourth and host == _HOST):
        return None
    return (int(uid), int(folder)) if _is_number(uid) and _is_number(folder) else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18


def directory_name(folder: str) -> str:
    """Return the Maildir++ directory of a folder: '/' becomes '.', the rest modified UTF-7."""
    directory = "." + ".".join(encode_utf7(part).replace(".", _DOT) for part in folder.split("/"))
    if directory == "..":
        raise ValueError("a folder needs a name")
    return directory


def folder_name(directory: str) -> str:
    """Return the folder that a Maildir++ directory holds; ValueError where it can hold none."""
    if not directory.startswith(".") or directory in (".", ".."):
        raise ValueError(f"not a Maildir++ directory: {directory!r}")
    return "/".join(decode_utf7(part) for part in directory[1:].split("."))


def encode_utf7(text: str) -> str:
    """Return text in modified UTF-7: printable ASCII as it is, '&' as '&-'."""
    parts: list[str] = []
    start = 0
    for position, character in enumerate(text):
        if " " <= character <= "~":
            parts.append(_shift(text[start:position]))
            parts.append("&-" if character == "&" else character)
            start = position + 1
    parts.append(_shift(text[start:]))
    return "".join(parts)


def _shift(text: str) -> str:
    if not text:
        return ""
    octets = text.encode("utf-16-be", "surrogatepass")
    return "&" + base64.b64encode(octets, b"+,").decode("ascii").rstrip("=") + "-"


def decode_utf7(text: str) -> str:
    """Return the text that modified UTF-7 stands for; ValueError where it is malformed."""
    parts = text.split("&")
    decoded = [parts[0]]
    for part in parts[1:]:
        shifted, end, rest = part.partition("-")
        if not end:
            raise ValueError(f"not modified UTF-7: {text!r}")
        decoded.append(_unshift(shifted) if shifted else "&")
        decoded.append(rest)
    return "".join(decoded)


def _unshift(shifted: str) -> str:
    padded = shifted + "=" * (-len(shifted) % 4)
    octets = base64.b64decode(padded.encode("ascii"), b"+,", validate=True)
    return octets.decode("utf-16-be")
