"""Reads the elements that commands are made of: atoms, strings, numbers, dates, flags, mailbox names.

Owns the position in one whole command and the one refusal of the grammar. Each
method takes its element or raises; none goes back. No octet is looked at more
than twice. RFC 9051 4 and 9.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, timezone
from typing import NoReturn

from server.imap import sequence, utf7
from storage.records import Flag

NUMBER_LARGEST = 0xFFFF_FFFF
MODSEQ_LARGEST = 0x7FFF_FFFF_FFFF_FFFF  # RFC 7162 3: 63 bits
KEYWORD_OCTETS = 100
KEYWORDS = 64

_ATOM = re.compile(rb'[^\x00-\x20\x7f-\xff(){%*"\\\]]+')
_ASTRING = re.compile(rb'[^\x00-\x20\x7f-\xff(){%*"\\]+')
_PATTERN = re.compile(rb'[^\x00-\x20\x7f-\xff(){"\\]+')
_TAG = re.compile(rb'[^\x00-\x20\x7f-\xff(){%*"\\+]+')
_WORD = re.compile(rb"[A-Za-z0-9.+-]+")
_QUOTED = re.compile(rb'"([^\x00\r\n"\\]*(?:\\["\\][^\x00\r\n"\\]*)*)"')
_ESCAPE = re.compile(rb"\\(.)")
_LITERAL = re.compile(rb"\{(\d{1,20})\+?\}\r?\n")
_NUMBER = re.compile(rb"\d{1,20}")
_SET = re.compile(rb"[0-9*:,]+|\$")
_FLAG = re.compile(rb'\\?[^\x00-\x20\x7f-\xff(){%*"\\]+')
_DATE = re.compile(rb'"?(\d{1,2})-([A-Za-z]{3})-(\d{4})"?')
_DATE_TIME = re.compile(rb'"([ \d]\d)-([A-Za-z]{3})-(\d{4}) (\d\d):(\d\d):(\d\d) ([+-])(\d\d)(\d\d)"')

_MONTHS = {
    name: number
    for number, name in enumerate(
        (b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov", b"dec"), 1
    )
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SYSTEM_FLAGS = {
    b"\\seen": Flag.SEEN,
    b"\\answered": Flag.ANSWERED,
    b"\\flagged": Flag.FLAGGED,
    b"\\deleted": Flag.DELETED,
    b"\\draft": Flag.DRAFT,
    b"$forwarded": Flag.FORWARDED,
    # RFC 9051 2.3.2: no client can change it; some send back what they were shown.
    b"\\recent": Flag(0),
}


class ImapSyntax(ValueError):
    """A command that the grammar refuses; the text may be shown to the peer.

    status: BAD, or NO where the RFC says so. code: response code with its brackets, or b''.
    tag: the command's, b'' where none could be read.
    """

    def __init__(self, text: str, *, status: bytes = b"BAD", code: bytes = b"") -> None:
        super().__init__(text)
        self.text = text
        self.status = status
        self.code = code
        self.tag = b""


class Scanner:
    """A position in a command."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def refuse(self, expected: str) -> NoReturn:
        """Raise ImapSyntax naming what should stand here."""
        raise ImapSyntax(f"Expected {expected} at octet {self.at + 1}")

    def _take(self, pattern: re.Pattern[bytes], expected: str) -> re.Match[bytes]:
        match = pattern.match(self.data, self.at)
        if match is None:
            self.refuse(expected)
        self.at = match.end()
        return match

    @property
    def ended(self) -> bool:
        """Whether nothing is left."""
        return self.at >= len(self.data)

    def end(self) -> None:
        """Take the end of the command."""
        if self.at < len(self.data):
            self.refuse("the end of the command")

    def next_is(self, octets: bytes) -> bool:
        """Whether these octets stand here, without case; takes nothing."""
        return self.data[self.at : self.at + len(octets)].upper() == octets

    def took(self, octets: bytes) -> bool:
        """Take these octets (given in capitals) if they stand here."""
        if not self.next_is(octets):
            return False
        self.at += len(octets)
        return True

    def expect(self, octets: bytes) -> None:
        """Take these octets."""
        if not self.took(octets):
            self.refuse(repr(octets.decode()))

    def space(self) -> None:
        """Take one space."""
        if self.data[self.at : self.at + 1] != b" ":
            self.refuse("a space")
        self.at += 1

    def tag(self) -> bytes:
        """Take a tag."""
        return self._take(_TAG, "a tag")[0]

    def word(self, expected: str) -> str:
        """Take a name of the protocol's own: letters, digits, '.', '+', '-'; given back in capitals."""
        return self._take(_WORD, expected)[0].upper().decode()

    def atom(self, expected: str) -> bytes:
        """Take an atom."""
        return self._take(_ATOM, expected)[0]

    def astring(self, expected: str) -> bytes:
        """Take an atom (']' allowed) or a string."""
        match = _ASTRING.match(self.data, self.at)
        if match is None:
            return self.string(expected)
        self.at = match.end()
        return match[0]

    def list_mailbox(self) -> bytes:
        """Take a LIST pattern: an astring that may hold wildcards."""
        match = _PATTERN.match(self.data, self.at)
        if match is None:
            return self.string("a mailbox pattern")
        self.at = match.end()
        return match[0]

    def string(self, expected: str) -> bytes:
        """Take a quoted string or a literal, without NUL."""
        if self.data[self.at : self.at + 1] == b'"':
            inner = self._take(_QUOTED, "a quoted string that is ended and holds no CR, LF or NUL")[1]
            return _unescape(inner) if b"\\" in inner else inner
        octets = int(self._take(_LITERAL, expected)[1])
        value = self.data[self.at : self.at + octets]
        if len(value) < octets or b"\0" in value:
            self.refuse("a literal without NUL")
        self.at += octets
        return value

    def nstring(self, expected: str) -> bytes | None:
        """Take a string or NIL, which is None."""
        return None if self.took(b"NIL") else self.string(expected)

    def number(self, expected: str, *, largest: int = NUMBER_LARGEST) -> int:
        """Take a number."""
        number = int(self._take(_NUMBER, expected)[0])
        if number > largest:
            raise ImapSyntax(f"{expected.capitalize()} is too large")
        return number

    def sequence_set(self) -> sequence.SequenceSet:
        """Take a sequence set."""
        text = self._take(_SET, "a sequence set")[0]
        try:
            return sequence.parse(text)
        except sequence.SequenceSyntax as error:
            raise ImapSyntax(str(error)) from None

    def mailbox(self) -> str:
        """Take a mailbox name as text, INBOX in capitals (RFC 9051 5.1)."""
        return mailbox_name(self.astring("a mailbox name"))

    def flags(self) -> tuple[int, tuple[str, ...]]:
        """Take flags, in parentheses or not, as (bits, keywords)."""
        listed = self.took(b"(")
        bits, keywords = 0, []
        if not (listed and self.took(b")")):
            while True:
                flag = self._take(_FLAG, "a flag")[0]
                known = _SYSTEM_FLAGS.get(flag.lower())
                if known is not None:
                    bits |= known
                else:
                    keywords.append(_keyword(flag))
                if not self.took(b" "):
                    break
            if listed:
                self.expect(b")")
        if len(keywords) > KEYWORDS:
            raise ImapSyntax("Too many keywords", status=b"NO", code=b"[LIMIT]")
        return bits, tuple(dict.fromkeys(keywords))

    def day(self) -> int:
        """Take a date, `1-Feb-1994`, quoted or not, as a proleptic ordinal."""
        match = self._take(_DATE, "a date like 1-Feb-1994")
        try:
            return date(int(match[3]), _MONTHS[match[2].lower()], int(match[1])).toordinal()
        except (KeyError, ValueError):
            raise ImapSyntax("There is no such date") from None

    def date_time(self) -> int:
        """Take a quoted date-time as microseconds of UTC."""
        match = self._take(_DATE_TIME, 'a date-time like "17-Jul-1996 02:44:25 -0700"')
        day, month, year, hour, minute, second, sign, zone_hours, zone_minutes = match.groups()
        offset = timedelta(hours=int(zone_hours), minutes=int(zone_minutes))
        try:
            zone = timezone(offset if sign == b"+" else -offset)
            # RFC 9051 9 time allows a leap second; the scale has none.
            moment = datetime(
                int(year), _MONTHS[month.lower()], int(day), int(hour), int(minute), min(int(second), 59),
                tzinfo=zone,
            )  # fmt: skip
            return round((moment - _EPOCH) / timedelta(microseconds=1))
        except (KeyError, ValueError, OverflowError):
            raise ImapSyntax("There is no such date and time") from None

    def words(self, expected: str, *, at_most: int = 64) -> tuple[str, ...]:
        """Take a parenthesised list of protocol names, which may be empty."""
        self.expect(b"(")
        names: list[str] = []
        if self.took(b")"):
            return ()
        while True:
            names.append(self.word(expected))
            if len(names) > at_most:
                raise ImapSyntax("List is too long")
            if not self.took(b" "):
                break
        self.expect(b")")
        return tuple(names)


def mailbox_name(name: bytes) -> str:
    """Return a wire name as text; raises ImapSyntax where it is no modified UTF-7."""
    if name.upper() == b"INBOX":
        return "INBOX"
    try:
        text = utf7.decode(name)
    except utf7.NameSyntax as error:
        raise ImapSyntax(str(error), status=b"NO", code=b"[CANNOT]") from None
    # RFC 9051 5.1: INBOX is one name in any case, also as the root of others.
    return "INBOX" + text[5:] if text[:6].upper() == "INBOX/" else text


def _unescape(inner: bytes) -> bytes:
    return _ESCAPE.sub(rb"\1", inner)


def _keyword(flag: bytes) -> str:
    if flag[:1] == b"\\":
        raise ImapSyntax("There is no such system flag")
    if len(flag) > KEYWORD_OCTETS:
        raise ImapSyntax("Keyword is too long", status=b"NO", code=b"[LIMIT]")
    return flag.decode()
