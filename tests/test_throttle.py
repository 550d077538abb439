"""Guessing is slowed by network and by account, and no owner is locked out by it."""

import pytest

from server import login, throttle
from server.refusal import Refusal
from server.throttle import ACCOUNT_FAILURES, NETWORK_FAILURES, WINDOW_SECONDS, Throttle
from tests.fakes import FakeClock

ALICE = "alice@agents.test"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def guess(counts: Throttle, times: int) -> None:
    """Failures of one account, each from a network of its own."""
    for number in range(times):
        counts.failed(f"10.{number // 250}.{number % 250}.9", ALICE)


def test_network_that_fails_too_often_waits(clock):
    counts = Throttle(clock)
    for number in range(NETWORK_FAILURES):
        counts.require("192.0.2.1", f"{number}@agents.test")
        counts.failed("192.0.2.1", f"{number}@agents.test")
    with pytest.raises(Refusal) as refused:
        counts.require("192.0.2.1", ALICE)
    assert (refused.value.code, refused.value.enhanced) == (454, "4.7.0")
    counts.require("198.51.100.1", ALICE)
    clock.advance(WINDOW_SECONDS + 1)
    counts.require("192.0.2.1", ALICE)


def test_account_that_many_guess_at_is_closed_to_strangers_and_open_to_its_owner(clock):
    counts = Throttle(clock)
    counts.succeeded("203.0.113.5", ALICE)
    guess(counts, ACCOUNT_FAILURES)
    with pytest.raises(Refusal):
        counts.require("198.51.100.1", ALICE)
    counts.require("203.0.113.5", ALICE)
    counts.require("198.51.100.1", "bob@agents.test")
    clock.advance(WINDOW_SECONDS + 1)
    counts.require("198.51.100.1", ALICE)


def test_counts_are_bounded(clock, monkeypatch):
    monkeypatch.setattr(throttle, "COUNTED", 100)
    monkeypatch.setattr(throttle, "KNOWN", 100)
    counts = Throttle(clock)
    for number in range(1000):
        peer = f"10.{number // 250}.{number % 250}.9"
        counts.failed(peer, f"{number}@agents.test")
        counts.succeeded(peer, ALICE)
    for _ in range(10 * NETWORK_FAILURES):
        counts.failed("192.0.2.1", ALICE)
    assert len(counts._networks) == len(counts._accounts) == len(counts._known) == 100
    assert len(counts._networks["192.0.2.1"]) == NETWORK_FAILURES


@pytest.mark.parametrize("passwords", [0, 1, 5])
@pytest.mark.parametrize("is_right", [True, False])
def test_a_check_costs_one_hash_whatever_there_is(monkeypatch, passwords, is_right):
    tried = []
    plain = login._hasher.verify

    class Counting:
        def verify(self, hashed, password):
            tried.append(hashed)
            return plain(hashed, password)

    monkeypatch.setattr(login, "_hasher", Counting())
    salt = bytes(range(16))
    held = []
    for number in range(passwords):
        word = f"word-{number}"
        held.append((f"crd_{number}", PLAIN.hash(word), login.scram_verifier(word, salt)))
    right = bool(passwords) and is_right
    found = login._match(held, DECOY, f"word-{passwords - 1}" if right else "another")
    assert found == (f"crd_{passwords - 1}" if right else None)
    assert len(tried) == 1
    assert right or tried == [DECOY]


def test_the_decoy_lets_nobody_in():
    assert login._match([], DECOY, "decoy") is None


PLAIN = login._hasher
DECOY = login.hash_password("decoy")
