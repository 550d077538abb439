from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.mail.dates import format_date, parse_date

CASES = [
    ("Wed, 17 May 2000 19:35:05 -0400", "2000-05-17T19:35:05-04:00"),
    ("17 May 2000 19:35 -0400", "2000-05-17T19:35:00-04:00"),
    ("wed, 7 may 2000 9:5:5 GMT", "2000-05-07T09:05:05+00:00"),
    ("17 May 00 19:35 EST", "2000-05-17T19:35:00-05:00"),
    ("17 May 99 19:35 PDT", "1999-05-17T19:35:00-07:00"),
    ("17 May 102 19:35 Z", "2002-05-17T19:35:00+00:00"),
    ("Fri, 21 Nov 1997 09(comment):   55  :  06 -0600", "1997-11-21T09:55:06-06:00"),
    ("Thu, 13 Feb 1969 23:32:54 -0330 (Newfoundland (time\\))", "1969-02-13T23:32:54-03:30"),
    ("Sun Nov  6 08:49:37 1994", "1994-11-06T08:49:37+00:00"),
    ("Sun Nov  6 08:49:37 1994 +0100", "1994-11-06T08:49:37+01:00"),
    ("Sun Nov  6 08:49:37 PST 1994", "1994-11-06T08:49:37-08:00"),
    ("Sunday, 06-Nov-94 08:49:37 GMT", "1994-11-06T08:49:37+00:00"),
    ("1 January 2020 00:00:60 A", "2020-01-01T00:01:00+00:00"),
    ("29 Feb 2024 00:00:00 +0000", "2024-02-29T00:00:00+00:00"),
    ("Mon, 1 Jan 2024 10:00:00 GMT+0200", "2024-01-01T10:00:00+02:00"),
    ("Mon,  1 Jan 2024 10:00:00 +9999", "2024-01-01T10:00:00+00:00"),
    ("1 Jan 2024 10:00:00", "2024-01-01T10:00:00+00:00"),
]

NO_DATES = [
    "", "garbage", "17 May", "17 May 2000", "19:35", "May 19:35:05", "32 Jan 2020 00:00:00 +0000",
    "29 Feb 2023 00:00:00 +0000", "0 Jan 2020 00:00 +0000", "1 Jan 2020 24:00:00 +0000",
    "1 Jan 2020 00:60:00 +0000", "1 Jan 2020 00:00:61 +0000", "1 Foo 2020 00:00:00 +0000",
    "1 Jan 99999 00:00:00 +0000", "1 Jan 1899 00:00:00 +0000", ":" * 200, "(" * 200, "1" * 200, "+" * 200,
    "1 Jan 2020 1:2:" + "9" * 100, "\x00\xff",
]  # fmt: skip


@pytest.mark.parametrize(("text", "iso"), CASES)
def test_dates_are_read_in_all_their_forms(text, iso):
    expected = datetime.fromisoformat(iso)
    offset = expected.utcoffset()
    assert parse_date(text.encode()) == (
        int(expected.timestamp()) * 1_000_000,
        int(offset.total_seconds()) // 60,
    )


@pytest.mark.parametrize("text", NO_DATES)
def test_what_is_no_date_is_none(text):
    assert parse_date(text.encode("latin-1")) is None


@given(
    st.datetimes(min_value=datetime(1900, 1, 2), max_value=datetime(9999, 12, 30)),
    st.integers(min_value=-1439, max_value=1439),
)
def test_dates_survive_writing_and_reading(moment, offset):
    zoned = moment.replace(microsecond=0, tzinfo=timezone(timedelta(minutes=offset)))
    microseconds = (zoned - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    text = format_date(microseconds, offset)
    assert text == format_datetime(zoned)
    assert parse_date(text.encode()) == (microseconds, offset)


@given(st.binary(max_size=250))
def test_no_octets_make_the_reader_fail(octets):
    found = parse_date(octets)
    assert found is None or -1440 < found[1] < 1440


def test_parts_of_a_second_are_left_out():
    assert format_date(1_999_999) == "Thu, 01 Jan 1970 00:00:01 +0000"
    assert format_date(-1) == "Wed, 31 Dec 1969 23:59:59 +0000"
