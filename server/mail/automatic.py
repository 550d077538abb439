"""Which messages no automatic reply answers.

Pure. Owns what a header says of its message: sent by a program, by a list, or from the null
reverse-path, as the Return-Path of a delivered message has it. Answers and sends nothing.
RFC 3834 2 (when not to respond), 5 (Auto-Submitted), RFC 2369 and 2919 (fields of lists).
"""

from __future__ import annotations

import re

from server.mail.header import fields

_PRECEDENCES = frozenset({b"bulk", b"list", b"junk"})
_LISTS = re.compile(rb"list-(?:id|help|subscribe|unsubscribe|unsubscribe-post|post|owner|archive)")
# RFC 3834 2: who never reads what is sent back.
_ROBOT = re.compile(rb"<?(?:owner-[^@]*|[^@]*-request|[^@]*-owner|mailer-daemon)@", re.I)
_COMMENT = re.compile(rb"\([^()]*\)")


def says_automatic(value: bytes) -> bool:
    """Whether an Auto-Submitted field's value says that no person sent the message."""
    keyword = _COMMENT.sub(b"", value[:1000]).partition(b";")[0].strip().lower()
    return keyword not in (b"", b"no")


def unanswerable(header: bytes) -> str:
    """Return why no automatic reply may answer the message of a header, '' where one may."""
    for field in fields(header):
        name, value = field.name.lower(), field.value.strip()
        if name == b"auto-submitted" and says_automatic(value):
            return "a message that was sent automatically"
        if name == b"precedence" and value.lower() in _PRECEDENCES:
            return "mail sent to many"
        if _LISTS.fullmatch(name):
            return "mail of a list"
        if name == b"return-path":
            if value == b"<>":
                return "a notice, which has the null reverse-path"
            if _ROBOT.match(value):
                return "mail of a program that reads no answers"
    return ""
