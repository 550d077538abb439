"""When a deferral is tried again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.delivery.backoff import next_attempt, next_delay

HOUR = 3600


@pytest.mark.parametrize(
    ("tries", "seconds"),
    [(0, 60), (1, 60), (2, 120), (3, 240), (8, 7680), (9, 4 * HOUR), (50, 4 * HOUR), (10**9, 4 * HOUR)],
)
def test_waits_double_up_to_the_longest(tries: int, seconds: float) -> None:
    assert next_delay(tries, first=60, maximum=4 * HOUR, jitter=0.0) == seconds


@given(
    tries=st.integers(-5, 10**6),
    first=st.floats(1, 1e5),
    longer=st.floats(1, 100),
    jitter=st.floats(0, 1, exclude_max=True),
)
def test_jitter_takes_at_most_a_fifth(tries: int, first: float, longer: float, jitter: float) -> None:
    maximum = first * longer
    plain = next_delay(tries, first=first, maximum=maximum, jitter=0)
    assert plain * 0.799 <= next_delay(tries, first=first, maximum=maximum, jitter=jitter) <= plain
    assert first * 0.999 <= plain <= maximum


def test_the_last_attempt_is_at_the_expiry_and_none_comes_after_it() -> None:
    terms = {"tries": 9, "first": 60.0, "maximum": 600.0, "jitter": 0.0}
    assert next_attempt(now=0, expires_at=10, **terms) == 10  # type: ignore[arg-type]  # tries is whole
    assert next_attempt(now=10, expires_at=10, **terms) is None  # type: ignore[arg-type]  # as above
    assert next_attempt(now=0, expires_at=10**12, **terms) == 600_000_000  # type: ignore[arg-type]  # as above
