"""Evaluates the keys of SEARCH over one message's facts.

Owns the translation of a key into a function, the order of evaluation (cheap
keys first) and what each key needs to be known. Pure: what lies in files comes
through functions in the facts. RFC 9051 6.4.4, 5032, 7162 3.1.5.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from server.imap import commands as c
from server.imap import search_text
from server.mail.dates import parse_date

DAY_MICROSECONDS = 86_400_000_000
EPOCH_DAY = 719_163  # 1 January 1970 as a proleptic ordinal
MINUTE_MICROSECONDS = 60_000_000

# Fields that delivery puts in front of the content, or that come before what was rendered.
DELIVERY_FIELDS = frozenset(
    {"return-path", "delivered-to", "received", "received-spf", "authentication-results", "dkim-signature"}
)


class Needs(IntEnum):
    """What must be known of a message, the cheapest first."""

    ARRAYS = 0
    ROW = 1
    TEXT = 2


@dataclass(slots=True)
class Facts:
    """One message as SEARCH sees it.

    delivered: gives the folded header fields that lie in front of the content. whole: gives
    the search text of a message whose kept text was cut.
    """

    number: int
    uid: int
    flags: int
    keywords: tuple[str, ...]
    recent: bool
    modseq: int
    octets: int = 0
    internal_date: int = 0
    text: str = ""
    delivered: Callable[[], str] = str
    whole: Callable[[], str] = str


Test = Callable[[Facts], bool]


@dataclass(frozen=True, slots=True)
class Scope:
    """What the keys are relative to: the mailbox's size and largest UID, `$`, and now in microseconds."""

    count: int
    largest_uid: int
    saved: array[int]
    now: int


def needs(key: c.SearchKey) -> Needs:
    """Return what the costliest part of a key needs."""
    match key:
        case c.And(keys):
            return max(map(needs, keys))
        case c.Or(left, right):
            return max(needs(left), needs(right))
        case c.Not(inner):
            return needs(inner)
        case c.Header() | c.Text():
            return Needs.TEXT
        case c.Dated():
            return Needs.ROW if key.field is c.DateField.INTERNAL else Needs.TEXT
        case c.Within() | c.Sized():
            return Needs.ROW
        case _:
            return Needs.ARRAYS


def split(key: c.SearchKey) -> tuple[c.SearchKey, c.SearchKey]:
    """Return a key as (what the arrays can tell, the rest), both of which must match."""
    keys = key.keys if isinstance(key, c.And) else (key,)
    cheap = tuple(each for each in keys if needs(each) is Needs.ARRAYS)
    costly = tuple(sorted((each for each in keys if needs(each) is not Needs.ARRAYS), key=needs))
    return c.And(cheap) if cheap else c.All(), c.And(costly) if costly else c.All()


def test(key: c.SearchKey, scope: Scope) -> Test:
    """Return the function that tells whether a message matches."""
    match key:
        case c.All():
            return lambda facts: True
        case c.And(keys):
            return _all([test(each, scope) for each in sorted(keys, key=needs)])
        case c.Or(left, right):
            first, second = test(left, scope), test(right, scope)
            return lambda facts: first(facts) or second(facts)
        case c.Not(inner):
            inside = test(inner, scope)
            return lambda facts: not inside(facts)
        case c.Flagged(flag):
            return lambda facts: bool(facts.flags & flag)
        case c.Keyword(name):
            return lambda facts: any(keyword.lower() == name for keyword in facts.keywords)
        case c.Recent():
            return lambda facts: facts.recent
        case c.Numbers():
            return _numbers(key, scope)
        case c.ModifiedSince(modseq):
            return lambda facts: facts.modseq >= modseq
        case _:
            return _stored(key, scope)


def _all(tests: list[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]
    return lambda facts: all(each(facts) for each in tests)


def _stored(key: c.SearchKey, scope: Scope) -> Test:
    match key:
        case c.Sized(relation, octets):
            if relation is c.SizeRelation.LARGER:
                return lambda facts: facts.octets > octets
            return lambda facts: facts.octets < octets
        case c.Within(relation, seconds):
            edge = scope.now - seconds * 1_000_000
            if relation is c.Relation.BEFORE:
                return lambda facts: facts.internal_date <= edge
            return lambda facts: facts.internal_date >= edge
        case c.Dated():
            return _dated(key)
        case c.Header(field, value):
            return _header(field, value)
        case c.Text(scope_, value):
            return _text(scope_, value)
        case _:
            raise AssertionError(f"no test for {key!r}")


def _numbers(key: c.Numbers, scope: Scope) -> Test:
    by_uid = key.numbering is c.Numbering.UID
    if key.messages.saved:
        saved = scope.saved

        def is_saved(facts: Facts) -> bool:
            place = bisect_left(saved, facts.uid)
            return place < len(saved) and saved[place] == facts.uid

        return is_saved
    ranges = key.messages.resolve(scope.largest_uid if by_uid else scope.count)
    lows = [low for low, _ in ranges]

    def is_named(facts: Facts) -> bool:
        number = facts.uid if by_uid else facts.number
        place = bisect_left(lows, number + 1) - 1
        return place >= 0 and number <= ranges[place][1]

    return is_named


def _dated(key: c.Dated) -> Test:
    day_of = _internal_day if key.field is c.DateField.INTERNAL else _sent_day
    wanted = key.day
    match key.relation:
        case c.Relation.BEFORE:
            return lambda facts: -1 < day_of(facts) < wanted
        case c.Relation.ON:
            return lambda facts: day_of(facts) == wanted
        case _:
            return lambda facts: day_of(facts) >= wanted


def _internal_day(facts: Facts) -> int:
    # RFC 9051 6.4.4 disregards time and zone: INTERNALDATE is shown in UTC, so that is its day.
    return facts.internal_date // DAY_MICROSECONDS + EPOCH_DAY


def _sent_day(facts: Facts) -> int:
    """Return the day that the Date field says, in its own zone; -1 where it says none."""
    value = search_text.field_value(facts.text, "date")
    found = parse_date(value.encode("ascii", "replace")) if value else None
    if found is None:
        return -1
    return (found[0] + found[1] * MINUTE_MICROSECONDS) // DAY_MICROSECONDS + EPOCH_DAY


def _header(field: str, value: str) -> Test:
    def matches(facts: Facts) -> bool:
        if search_text.in_field(facts.text, field, value):
            return True
        if field in DELIVERY_FIELDS and search_text.in_field(facts.delivered(), field, value):
            return True
        return search_text.is_cut(facts.text) and search_text.in_field(facts.whole(), field, value)

    return matches


def _text(scope: c.TextScope, value: str) -> Test:
    if scope is c.TextScope.BODY:

        def in_body(facts: Facts) -> bool:
            if search_text.in_body(facts.text, value):
                return True
            return search_text.is_cut(facts.text) and search_text.in_body(facts.whole(), value)

        return in_body

    def in_message(facts: Facts) -> bool:
        if search_text.in_message(facts.text, value) or value in facts.delivered():
            return True
        return search_text.is_cut(facts.text) and search_text.in_message(facts.whole(), value)

    return in_message
