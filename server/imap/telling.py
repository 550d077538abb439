"""What a session is told about its mailbox, in wire form.

Owns the untagged responses EXPUNGE or VANISHED, EXISTS, RECENT, FLAGS and FETCH
of changes made by anybody. Pure. RFC 9051 7.3 and 7.4, 7162 3.2.10.
"""

from __future__ import annotations

from server.imap import format as wire
from server.imap import sequence
from server.imap.view import Contents, Updates, View

SYSTEM_FLAGS = b"\\Answered \\Flagged \\Deleted \\Seen \\Draft $Forwarded"


def updates(view: View, changes: Updates, *, condstore: bool, qresync: bool) -> bytes:
    """Return the responses for one step of a view; expunging comes first: it moves the numbers."""
    lines: list[bytes] = []
    if changes.vanished and qresync:
        lines.append(b"* VANISHED %b\r\n" % sequence.compact(changes.vanished))
    else:
        lines += [b"* %d EXPUNGE\r\n" % number for number in changes.expunged]
    if changes.keywords_grew:
        lines.append(flags_line(view.contents))
    if changes.exists is not None:
        lines.append(b"* %d EXISTS\r\n* %d RECENT\r\n" % (changes.exists, changes.recent or 0))
    for number, uid, flags, keywords, modseq in changes.changed:
        listed = wire.flags(flags, keywords, recent=view.is_recent(uid))
        if condstore:
            lines.append(b"* %d FETCH (UID %d FLAGS (%b) MODSEQ (%d))\r\n" % (number, uid, listed, modseq))
        else:
            lines.append(b"* %d FETCH (UID %d FLAGS (%b))\r\n" % (number, uid, listed))
    return b"".join(lines)


def flags_line(contents: Contents) -> bytes:
    """Return the untagged FLAGS: the system flags and every keyword seen in the folder."""
    return b"* FLAGS (%b)\r\n" % known_flags(contents)


def known_flags(contents: Contents) -> bytes:
    """Return the flags defined in a folder, separated by spaces."""
    return b" ".join([SYSTEM_FLAGS, *(name.encode() for name in contents.keyword_names)])
