"""Fingerprints of texts: much the same ones share a band, others do not."""

import random

import pytest

from server.mail import fingerprint

WORDS = [f"w{a}{b}" for a in "abcdefghijkl" for b in "mnopqrstuvwx"]


def text(seed: int, words: int = 200) -> list[str]:
    dice = random.Random(seed)
    return [dice.choice(WORDS) + dice.choice("abcdefgh") for _ in range(words)]


def share(first: list[str], second: list[str]) -> bool:
    return bool(set(fingerprint.bands(" ".join(first))) & set(fingerprint.bands(" ".join(second))))


def test_a_text_with_another_name_and_number_is_much_the_same():
    found = 0
    for seed in range(100):
        words = text(seed)
        other = ["Dear", f"Name{seed}", *words[2:]]
        found += share(words, [*other, "code", str(seed * 977)])
    assert found >= 99


def test_texts_that_share_a_third_are_others():
    found = 0
    for seed in range(100):
        common = text(seed, 70)
        found += share([*common, *text(1000 + seed, 130)], [*common, *text(2000 + seed, 130)])
    assert found <= 10


def test_digits_make_no_difference_and_short_texts_have_no_fingerprint():
    words = text(1)
    assert fingerprint.bands(" ".join([*words, "123"])) == fingerprint.bands(" ".join([*words, "456", "7"]))
    assert fingerprint.bands("Your code is 123456") == ()


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"Content-Type: text/html\r\n",
        b"Content-Type: multipart/mixed; boundary=x\r\n",
        b"Content-Type: a/b\r\n",
    ],
)
@pytest.mark.parametrize("body", [b"", b"\xff" * 3000, b"\x00" * 70_000, b"a " * 70_000, b"--x\r\n" * 20_000])
def test_any_message_has_a_fingerprint_or_none(head, body):
    assert len(fingerprint.of_message(head + b"\r\n" + body)) in (0, fingerprint.BANDS)


def test_the_plain_part_is_what_counts_and_encodings_do_not():
    words = " ".join(text(5)).encode()
    plain = b"Content-Type: text/plain\r\n\r\n" + words
    inner = b"\r\n--x\r\nContent-Type: text/html\r\n\r\n<p>other</p>\r\n--x\r\n" + plain + b"\r\n--x--\r\n"
    both = b"Content-Type: multipart/alternative; boundary=x\r\n" + inner
    assert fingerprint.of_message(plain) == fingerprint.of_message(both) != ()
