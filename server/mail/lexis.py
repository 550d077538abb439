"""Quoted strings and comments, which all structured fields share.

Owns reading past them from the octet behind their opening mark, in linear time
and to a stated depth. Never raises: what is never closed ends with the value.

RFC 5322 3.2.1 (quoted pairs), 3.2.2 (comments), 3.2.4 (quoted strings).
"""

import re

MAX_COMMENT_DEPTH = 50

# Both always match, and neither can match in two ways.
_INSIDE_QUOTES = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_INSIDE_COMMENT = re.compile(rb"[^()\\]*(?:\\.[^()\\]*)*", re.DOTALL)
_PAIR = re.compile(rb"\\(.)", re.DOTALL)


def read_quoted(value: bytes, position: int) -> tuple[bytes, int]:
    """The meaning of a quoted string, and where the octet behind it is."""
    end = _end(_INSIDE_QUOTES, value, position)
    return unescape(value[position:end]), end + 1


def read_comment(value: bytes, position: int) -> tuple[bytes, int]:
    """The text of a comment with what is nested in it, and where the octet behind it is."""
    start, depth = position, 1
    while depth and position < len(value):
        end = _end(_INSIDE_COMMENT, value, position)
        depth += 1 if value[end : end + 1] == b"(" else -1
        position = end + 1 if depth <= MAX_COMMENT_DEPTH else len(value)
    closed = position if depth else position - 1
    return unescape(b" ".join(value[start:closed].split())), position


def unescape(text: bytes) -> bytes:
    """Text without the backslashes of its quoted pairs."""
    return _PAIR.sub(rb"\1", text) if b"\\" in text else text


def _end(pattern: re.Pattern[bytes], value: bytes, position: int) -> int:
    found = pattern.match(value, position)
    return found.end() if found else position
