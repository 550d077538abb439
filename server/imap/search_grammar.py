"""The keys of SEARCH.

Owns their forms, the charset of their strings and the bounds on their number and
depth. Strings become case-folded text here, once. RFC 9051 6.4.4, RFC 3501
6.4.4 (NEW, OLD, RECENT), 4731 (RETURN), 5032 (OLDER, YOUNGER), 7162 (MODSEQ).
"""

from __future__ import annotations

from collections.abc import Callable

from server.imap import commands as c
from server.imap.scanner import MODSEQ_LARGEST, ImapSyntax, Scanner
from server.imap.search_text import fold
from storage.records import Flag

DEPTH = 32
KEYS = 1000
BADCHARSET = b"[BADCHARSET (US-ASCII UTF-8)]"
RETURNS = frozenset({"MIN", "MAX", "ALL", "COUNT", "SAVE"})

# Named one by one: some of the library's other text codecs cost more than linear time.
_CHARSETS = {
    "US-ASCII": "ascii", "ASCII": "ascii", "UTF-8": "utf-8", "UTF8": "utf-8", "KOI8-R": "koi8_r",
    "KOI8-U": "koi8_u", "BIG5": "big5", "GB2312": "gb2312", "GBK": "gbk", "GB18030": "gb18030",
    "EUC-JP": "euc_jp", "EUC-KR": "euc_kr", "ISO-2022-JP": "iso2022_jp", "SHIFT_JIS": "shift_jis",
    **{f"ISO-8859-{number}": f"iso8859_{number}" for number in (*range(1, 12), *range(13, 17))},
    **{f"WINDOWS-{number}": f"cp{number}" for number in range(1250, 1259)},
}  # fmt: skip


class _Reader:
    """One SEARCH being read: its charset and how many keys it may still have."""

    __slots__ = ("charset", "keys", "scanner")

    def __init__(self, scanner: Scanner, charset: str) -> None:
        self.scanner = scanner
        self.charset = charset
        self.keys = 0

    def text(self) -> str:
        """Take a string as case-folded text."""
        value = self.scanner.astring("a search string")
        try:
            return fold(value.decode(self.charset))
        except UnicodeDecodeError:
            raise ImapSyntax(
                f"Search string is not in {self.charset}", status=b"NO", code=BADCHARSET
            ) from None


def parse_search(scanner: Scanner, numbering: c.Numbering) -> c.Search:
    """Take what follows SEARCH."""
    scanner.space()
    returns: frozenset[str] | None = None
    if scanner.took(b"RETURN "):
        returns = _returns(scanner)
        scanner.space()
    charset = "utf-8"
    if scanner.took(b"CHARSET "):
        charset = _charset(scanner)
        scanner.space()
    reader = _Reader(scanner, charset)
    keys = [_key(reader, 0)]
    while scanner.took(b" "):
        keys.append(_key(reader, 0))
    return c.Search(_all_of(keys), numbering, returns)


def _returns(scanner: Scanner) -> frozenset[str]:
    names = frozenset(scanner.words("a search return option"))
    for name in names:
        if name not in RETURNS:
            raise ImapSyntax(f"Unknown search return option {name[:32]}")
    return names or frozenset({"ALL"})  # RFC 4731 3.1: an empty list means ALL


def _charset(scanner: Scanner) -> str:
    name = scanner.astring("a charset").decode("ascii", "replace").upper()
    codec = _CHARSETS.get(name)
    if codec is None:
        raise ImapSyntax("Charset is not supported", status=b"NO", code=BADCHARSET)
    return codec


def _all_of(keys: list[c.SearchKey]) -> c.SearchKey:
    return keys[0] if len(keys) == 1 else c.And(tuple(keys))


def _key(reader: _Reader, depth: int) -> c.SearchKey:
    scanner = reader.scanner
    reader.keys += 1
    if depth > DEPTH or reader.keys > KEYS:
        raise ImapSyntax("Search is too complex", status=b"NO", code=b"[LIMIT]")
    if scanner.took(b"("):
        keys = [_key(reader, depth + 1)]
        while scanner.took(b" "):
            keys.append(_key(reader, depth + 1))
        scanner.expect(b")")
        return _all_of(keys)
    if scanner.data[scanner.at : scanner.at + 1] in _NUMBER_STARTS:
        return c.Numbers(scanner.sequence_set(), c.Numbering.MESSAGE)
    name = scanner.word("a search key")
    if name == "NOT":
        scanner.space()
        return c.Not(_key(reader, depth + 1))
    if name == "OR":
        scanner.space()
        left = _key(reader, depth + 1)
        scanner.space()
        return c.Or(left, _key(reader, depth + 1))
    simple = _SIMPLE.get(name)
    if simple is not None:
        return simple
    form = _FORMS.get(name)
    if form is None:
        raise ImapSyntax(f"Unknown search key {name[:32]}")
    scanner.space()
    return form(reader)


_NUMBER_STARTS = frozenset((b"$", b"*", *(b"%d" % digit for digit in range(10))))

_SIMPLE: dict[str, c.SearchKey] = {
    "ALL": c.All(),
    "ANSWERED": c.Flagged(Flag.ANSWERED),
    "DELETED": c.Flagged(Flag.DELETED),
    "DRAFT": c.Flagged(Flag.DRAFT),
    "FLAGGED": c.Flagged(Flag.FLAGGED),
    "SEEN": c.Flagged(Flag.SEEN),
    "UNANSWERED": c.Not(c.Flagged(Flag.ANSWERED)),
    "UNDELETED": c.Not(c.Flagged(Flag.DELETED)),
    "UNDRAFT": c.Not(c.Flagged(Flag.DRAFT)),
    "UNFLAGGED": c.Not(c.Flagged(Flag.FLAGGED)),
    "UNSEEN": c.Not(c.Flagged(Flag.SEEN)),
    "RECENT": c.Recent(),
    "OLD": c.Not(c.Recent()),
    "NEW": c.And((c.Recent(), c.Not(c.Flagged(Flag.SEEN)))),
}


def _field(name: str) -> Callable[[_Reader], c.SearchKey]:
    return lambda reader: c.Header(name, reader.text())


def _header(reader: _Reader) -> c.SearchKey:
    name = reader.scanner.astring("a header field name").decode("latin-1").lower()
    reader.scanner.space()
    return c.Header(name, reader.text())


def _text(scope: c.TextScope) -> Callable[[_Reader], c.SearchKey]:
    return lambda reader: c.Text(scope, reader.text())


def _dated(field: c.DateField, relation: c.Relation) -> Callable[[_Reader], c.SearchKey]:
    return lambda reader: c.Dated(field, relation, reader.scanner.day())


def _within(relation: c.Relation) -> Callable[[_Reader], c.SearchKey]:
    def read(reader: _Reader) -> c.SearchKey:
        seconds = reader.scanner.number("a number of seconds")
        if not seconds:
            raise ImapSyntax("An interval of no seconds")  # RFC 5032 5: nz-number
        return c.Within(relation, seconds)

    return read


def _sized(relation: c.SizeRelation) -> Callable[[_Reader], c.SearchKey]:
    return lambda reader: c.Sized(relation, reader.scanner.number("a size", largest=MODSEQ_LARGEST))


def _keyword(reader: _Reader) -> c.SearchKey:
    name = reader.scanner.atom("a keyword").decode().lower()
    return c.Flagged(Flag.FORWARDED) if name == "$forwarded" else c.Keyword(name)


def _uids(reader: _Reader) -> c.SearchKey:
    return c.Numbers(reader.scanner.sequence_set(), c.Numbering.UID)


def _modified(reader: _Reader) -> c.SearchKey:
    scanner = reader.scanner
    if scanner.next_is(b'"'):
        # RFC 7162 3.1.5: an entry name and its type; all flags share one mod-sequence here.
        scanner.string("an entry name")
        scanner.space()
        if scanner.word("an entry type") not in ("ALL", "PRIV", "SHARED"):
            raise ImapSyntax("Unknown entry type")
        scanner.space()
    return c.ModifiedSince(scanner.number("a mod-sequence", largest=MODSEQ_LARGEST))


_FORMS: dict[str, Callable[[_Reader], c.SearchKey]] = {
    "BCC": _field("bcc"),
    "CC": _field("cc"),
    "FROM": _field("from"),
    "SUBJECT": _field("subject"),
    "TO": _field("to"),
    "HEADER": _header,
    "BODY": _text(c.TextScope.BODY),
    "TEXT": _text(c.TextScope.TEXT),
    "BEFORE": _dated(c.DateField.INTERNAL, c.Relation.BEFORE),
    "ON": _dated(c.DateField.INTERNAL, c.Relation.ON),
    "SINCE": _dated(c.DateField.INTERNAL, c.Relation.SINCE),
    "SENTBEFORE": _dated(c.DateField.SENT, c.Relation.BEFORE),
    "SENTON": _dated(c.DateField.SENT, c.Relation.ON),
    "SENTSINCE": _dated(c.DateField.SENT, c.Relation.SINCE),
    "OLDER": _within(c.Relation.BEFORE),
    "YOUNGER": _within(c.Relation.SINCE),
    "LARGER": _sized(c.SizeRelation.LARGER),
    "SMALLER": _sized(c.SizeRelation.SMALLER),
    "KEYWORD": _keyword,
    "UNKEYWORD": lambda reader: c.Not(_keyword(reader)),
    "UID": _uids,
    "MODSEQ": _modified,
}
