"""Dates of header fields, to microseconds and back.

Owns reading the Date field in all forms that the standard and its obsolete
syntax allow, and some that only senders allow, and writing the one right form.
Never raises on input and reads no clock; what isn't a date is None.

RFC 5322 3.3 and 4.3.
"""

import re
from functools import lru_cache

MAX_DATE_OCTETS = 200
MICROSECONDS = 1_000_000
DAY_SECONDS = 86_400

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH_NUMBER = {name.lower().encode(): number for number, name in enumerate(_MONTHS, 1)}
_MONTH_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
# RFC 5322 4.3; the single letters of the military were used wrongly and mean nothing.
_ZONES = {
    b"ut": 0, b"gmt": 0, b"utc": 0, b"z": 0, b"edt": -240, b"est": -300, b"cdt": -300,
    b"cst": -360, b"mdt": -360, b"mst": -420, b"pdt": -420, b"pst": -480,
}  # fmt: skip

_TOKEN = re.compile(rb"[A-Za-z]+|[0-9]+|[+-](?=[0-9])|:|\(")
_PLAIN = re.compile(
    rb"(?:[A-Za-z]{3},[ ]{1,2})?([0-9]{1,2}) ([A-Za-z]{3}) ([0-9]{4}) "
    rb"([0-9]{2}):([0-9]{2}):([0-9]{2}) ([+-])([0-9]{2})([0-9]{2})(?: \([A-Za-z ]{1,40}\))?"
)


def parse_date(value: bytes) -> tuple[int, int] | None:
    """Microseconds of UTC and the zone's offset in minutes; None for what is no date."""
    return _parse(value[:MAX_DATE_OCTETS].strip())


@lru_cache(maxsize=64)  # a busy second brings many messages of one date
def _parse(value: bytes) -> tuple[int, int] | None:
    plain = _PLAIN.fullmatch(value)
    if plain is None:
        return _parse_uncommon(value)
    day, month, year, hour, minute, second, sign, zone_hours, zone_minutes = plain.groups()
    return _compose(
        (int(year), _MONTH_NUMBER.get(month.lower(), 0), int(day)),
        (int(hour), int(minute), int(second)),
        _offset(sign, zone_hours + zone_minutes),
    )


def format_date(microseconds: int, offset_minutes: int = 0) -> str:
    """A date in the one form of RFC 5322 3.3, whole seconds, in the zone given."""
    return _format(microseconds // MICROSECONDS, offset_minutes)


@lru_cache(maxsize=64)
def _format(seconds: int, offset_minutes: int) -> str:
    days, second = divmod(seconds + offset_minutes * 60, DAY_SECONDS)
    year, month, day = _civil(days)
    sign = "-" if offset_minutes < 0 else "+"
    zone_hours, zone_minutes = divmod(abs(offset_minutes), 60)
    return (
        f"{_DAYS[(days + 3) % 7]}, {day:02d} {_MONTHS[month - 1]} {year:04d} "
        f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d} "
        f"{sign}{zone_hours:02d}{zone_minutes:02d}"
    )


def _parse_uncommon(value: bytes) -> tuple[int, int] | None:
    """Any order of day, month and year, then a time, then perhaps a zone."""
    tokens = _tokens(value)
    month = next((_MONTH_NUMBER[t[:3].lower()] for t in tokens if t[:3].lower() in _MONTH_NUMBER), 0)
    colon = tokens.index(b":") if b":" in tokens else len(tokens)
    before = [t for t in tokens[: max(colon - 1, 0)] if t.isdigit()]
    clock, rest = _clock(tokens[max(colon - 1, 0) :])
    if clock is None or not month:
        return None
    if len(before) == 1:
        before += _take_year(rest)
    if len(before) != 2:
        return None
    day, year = sorted(before, key=len) if len(before[0]) > 2 else before
    return _compose((_full_year(year), month, int(day[:4])), clock, _zone(rest))


def _take_year(rest: list[bytes]) -> list[bytes]:
    """The year where asctime puts it, behind the time; taken out of what will be read as a zone."""
    for place, token in enumerate(rest):
        signed = place > 0 and rest[place - 1] in (b"+", b"-")
        if token.isdigit() and len(token) == 4 and not signed:
            return [rest.pop(place)]
    return []


def _tokens(value: bytes) -> list[bytes]:
    """Words, numbers, signs in front of numbers, colons; comments are left out."""
    tokens: list[bytes] = []
    position = 0
    while found := _TOKEN.search(value, position):
        position = found.end()
        if found.group() == b"(":
            position = _behind_comment(value, position)
        else:
            tokens.append(found.group())
    # '17-May-2000': in front of the time a hyphen is no zone's sign.
    clock = tokens.index(b":") if b":" in tokens else len(tokens)
    return [t for place, t in enumerate(tokens) if place > clock or t not in (b"+", b"-")]


def _behind_comment(value: bytes, position: int) -> int:
    depth = 1
    while depth and position < len(value):
        octet = value[position : position + 1]
        depth += 1 if octet == b"(" else -1 if octet == b")" else 0
        position += 2 if octet == b"\\" else 1
    return position


def _clock(tokens: list[bytes]) -> tuple[tuple[int, int, int] | None, list[bytes]]:
    """Hour, minute and second at the head of the tokens, and what follows them."""
    numbers = [int(t[:3]) for t in tokens[0:5:2] if t.isdigit()]
    if len(tokens) >= 5 and tokens[1] == tokens[3] == b":" and len(numbers) == 3:
        return (numbers[0], numbers[1], numbers[2]), tokens[5:]
    if len(tokens) >= 3 and tokens[1] == b":" and len(numbers) >= 2:
        return (numbers[0], numbers[1], 0), tokens[3:]
    return None, []


def _zone(tokens: list[bytes]) -> int:
    """The offset in minutes; zones that nobody knows are taken as UTC (RFC 5322 4.3)."""
    for place, token in enumerate(tokens):
        if token in (b"+", b"-") and place + 1 < len(tokens):
            return _offset(token, tokens[place + 1])
        if token.lower() in _ZONES and tokens[place + 1 : place + 2] not in ([b"+"], [b"-"]):
            return _ZONES[token.lower()]
    return 0


def _offset(sign: bytes, digits: bytes) -> int:
    if len(digits) > 4:
        return 0
    hours, minutes = divmod(int(digits), 100) if len(digits) > 2 else (int(digits), 0)
    total = hours * 60 + minutes
    if total >= 24 * 60 or minutes > 59:
        return 0
    return -total if sign == b"-" else total


def _full_year(digits: bytes) -> int:
    # RFC 5322 4.3: two digits are of 1950 to 2049, three count from 1900.
    year = int(digits[:5])
    if len(digits) == 2:
        return year + (2000 if year < 50 else 1900)
    return year + 1900 if len(digits) == 3 else year


def _compose(
    date: tuple[int, int, int], clock: tuple[int, int, int], offset_minutes: int
) -> tuple[int, int] | None:
    year, month, day = date
    hour, minute, second = clock
    if not (1900 <= year <= 9999 and 1 <= month <= 12 and 1 <= day <= _days_in(year, month)):
        return None
    if hour > 23 or minute > 59 or second > 60:  # 60: a leap second
        return None
    seconds = _days_from_civil(year, month, day) * DAY_SECONDS + hour * 3600 + minute * 60 + second
    return (seconds - offset_minutes * 60) * MICROSECONDS, offset_minutes


def _days_in(year: int, month: int) -> int:
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return 28 if month == 2 and not leap else _MONTH_DAYS[month - 1]


def _days_from_civil(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 in the Gregorian calendar, the year taken to begin in March."""
    shifted = year - (month <= 2)
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return shifted * 365 + shifted // 4 - shifted // 100 + shifted // 400 + day_of_year - 719_468


def _civil(days: int) -> tuple[int, int, int]:
    """Year, month and day of a day counted from 1970-01-01."""
    era, day_of_era = divmod(days + 719_468, 146_097)
    year = (day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year + year // 4 - year // 100)
    place = (5 * day_of_year + 2) // 153
    month = place + 3 if place < 10 else place - 9
    return year + era * 400 + (month <= 2), month, day_of_year - (153 * place + 2) // 5 + 1
