"""When DKIM keys change: what the DNS has to prove, how long, and what may never happen."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.sender_auth import rotation
from server.sender_auth.keys import ALGORITHMS, make_key
from server.sender_auth.rotation import SECOND, Act, Pace
from storage.records import DkimKey

PACE = Pace(look_seconds=300, settle_seconds=3600, retire_seconds=7 * 86_400)
NOW = 1_000_000 * SECOND
PEMS = {algorithm: make_key(algorithm) for algorithm in ALGORITHMS}


def key(algorithm: str = "rsa-sha256", state: str = "made", **more: object) -> DkimKey:
    pem, record = PEMS[algorithm]
    selector = algorithm.partition("-")[0]
    made = DkimKey("dkm_" + selector, "org", "a.example", selector, algorithm, pem, record, state)
    return replace(made, **more)  # type: ignore[arg-type]


def seen(since: int, *, ttl: int = 60, algorithm: str = "rsa-sha256") -> DkimKey:
    return key(algorithm, "published", seen_at=NOW - since * SECOND, ttl_seconds=ttl, looked="right")


RECORD = PEMS["rsa-sha256"][1].encode()
OTHER = make_key("rsa-sha256")[1].encode()


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([], "missing"),
        ([(RECORD,)], "right"),
        ([(RECORD[:250], RECORD[250:])], "right"),
        ([(RECORD.replace(b"; ", b";"),)], "right"),
        ([(RECORD.replace(b"v=DKIM1; ", b""),)], "right"),
        ([(RECORD + b"; t=s; s=email; h=sha256; n=ours",)], "right"),
        ([(RECORD.replace(b"p=", b"p= ") + b" ;",)], "right"),
        ([(OTHER,)], "wrong"),
        ([(RECORD,), (OTHER,)], "wrong"),
        ([(RECORD,), (RECORD,)], "wrong"),
        ([(b"v=spf1 -all",)], "wrong"),
        ([(b"",)], "wrong"),
        ([(b"v=DKIM1; k=rsa; p=",)], "wrong"),
        ([(RECORD + b"; h=sha1",)], "wrong"),
        ([(RECORD + b"; s=tlsrpt",)], "wrong"),
        ([(RECORD.replace(b"k=rsa", b"k=ed25519"),)], "wrong"),
        ([(RECORD[:-30],)], "wrong"),
        ([(b"\xff" * 9000,)], "wrong"),
    ],
)
def test_only_the_right_key_alone_counts_as_published(records: list[tuple[bytes, ...]], said: str) -> None:
    assert rotation.judge(key(), records) == said


def test_an_ed25519_record_is_known_by_its_octets() -> None:
    ours = key("ed25519-sha256")
    assert rotation.judge(ours, [(ours.public_record.encode(),)]) == "right"
    assert rotation.judge(ours, [(RECORD,)]) == "wrong"


@given(st.lists(st.lists(st.binary(max_size=300), max_size=3).map(tuple), max_size=3))
def test_whatever_the_dns_says_is_judged(records: list[tuple[bytes, ...]]) -> None:
    assert rotation.judge(key(), records) in ("wrong", "missing")


@pytest.mark.parametrize(
    ("keys", "act"),
    [
        ([key(state="active")], Act.WAIT),
        ([key(), key("ed25519-sha256")], Act.WAIT),
        ([seen(5000), seen(5000, algorithm="ed25519-sha256")], Act.SWITCH),
        # One is not there yet, was not there for long enough, or its record's TTL is longer.
        ([seen(5000), key("ed25519-sha256")], Act.WAIT),
        ([seen(5000), seen(3599, algorithm="ed25519-sha256")], Act.WAIT),
        ([seen(5000), seen(5000, ttl=7200, algorithm="ed25519-sha256")], Act.WAIT),
        # The last look found nothing out.
        ([seen(5000), replace(seen(5000), looked="unknown")], Act.WAIT),
    ],
)
def test_keys_sign_when_all_were_seen_for_long_enough(keys: list[DkimKey], act: Act) -> None:
    assert rotation.next_act(keys, now=NOW, pace=PACE) is act


def test_keys_are_replaced_at_their_age_and_one_rotation_at_a_time() -> None:
    pace = replace(PACE, rotate_seconds=1000)
    old = key(state="active", changed_at=NOW - 1000 * SECOND)
    assert rotation.next_act([old], now=NOW, pace=pace) is Act.BEGIN
    assert rotation.next_act([old], now=NOW - 1, pace=pace) is Act.WAIT
    assert rotation.next_act([old], now=NOW, pace=PACE) is Act.WAIT
    assert rotation.next_act([old, key("ed25519-sha256")], now=NOW, pace=pace) is Act.WAIT
    assert rotation.next_act([], now=NOW, pace=pace) is Act.WAIT
    # One was given up since: the next comes as long after it.
    assert rotation.next_act([old], now=NOW, pace=pace, made_at=NOW - 999 * SECOND) is Act.WAIT
    assert rotation.next_act([old], now=NOW, pace=pace, made_at=NOW - 1000 * SECOND) is Act.BEGIN


def test_old_keys_retire_after_their_time() -> None:
    old = key(state="retiring", changed_at=NOW - PACE.retire_seconds * SECOND)
    assert rotation.retirable([old], now=NOW, pace=PACE) == [old]
    assert rotation.retirable([old], now=NOW - 1, pace=PACE) == []
    assert rotation.due_at(old, now=NOW - 1, pace=PACE) == NOW


@given(
    st.sampled_from(["made", "published", "active", "retiring"]),
    st.integers(0, 10 * 86_400),
    st.integers(0, 90_000),
    st.integers(0, 400 * 86_400),
)
def test_the_next_look_lies_ahead_and_not_far(state: str, since: int, ttl: int, rotate: int) -> None:
    one = key(state=state, changed_at=NOW - since * SECOND, seen_at=NOW - since * SECOND, ttl_seconds=ttl)
    at = rotation.due_at(one, now=NOW, pace=replace(PACE, rotate_seconds=rotate))
    limit = PACE.retire_seconds if state == "retiring" else 86_400
    assert NOW < at <= NOW + limit * SECOND


def test_every_state_is_described() -> None:
    for state in ("made", "published", "active", "retiring", "retired"):
        for looked in ("", "right", "wrong", "missing", "unknown"):
            assert rotation.describe(key(state=state, looked=looked))


def test_what_is_missed_is_looked_at_each_hour_and_what_is_right_each_day() -> None:
    for looked, hours in (("right", 24), ("unknown", 24), ("", 24), ("missing", 1), ("wrong", 1)):
        one = key(state="active", looked=looked, looked_at=NOW)
        due = rotation.due_at(one, now=NOW, pace=PACE)
        assert due == NOW + hours * 3600 * SECOND
        assert not rotation.needs_look(one, now=NOW + 60 * SECOND, pace=PACE)
        assert rotation.needs_look(one, now=due, pace=PACE)
    assert rotation.needs_look(key(state="active"), now=NOW, pace=PACE)
    assert not rotation.needs_look(key(state="retiring"), now=NOW, pace=PACE)
    unwatched = replace(PACE, watches=False)
    assert not rotation.needs_look(key(state="active"), now=NOW, pace=unwatched)
    assert rotation.needs_look(key(), now=NOW, pace=unwatched)
