"""A short, repeatable run of the fuzz targets; the long one is a command of its own."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.mail.compose import compose
from server.mail.dsn import compose_dsn
from tests.fuzz.targets_mail import check_address, check_structure
from tests.mail.test_address import INVALID, VALID, WIDE_INVALID, WIDE_VALID
from tests.mail.test_address_list import CASES
from tests.mail.test_compose import full_draft
from tests.mail.test_dsn import full_report

ADDRESSES = [
    *(case[0].encode("utf-8", "surrogateescape") for case in (*VALID, *WIDE_VALID)),
    *(text.encode("utf-8", "surrogateescape") for text in (*INVALID, *WIDE_INVALID)),
    *(value for value, _ in CASES),
]
PIECES = [
    b"--a",
    b"\r\n--a\r\n",
    b"\n--a\n",
    b"\r\n--a--\r\n",
    b"\r\n\r\n",
    b"\n\n",
    b"\r",
    b"\x00",
    b"\xff",
    b"=?utf-8?b?",
    b"Content-Type: multipart/mixed; boundary=a\r\n",
    b"Content-Type: message/rfc822\r\n\r\n",
    b";",
    b'"',
    b"(",
    b"\\",
    b"Content-Type: message/delivery-status\n\n",
    b"Content-Transfer-Encoding: base64\n",
    b"*0*=",
    b"<",
    b">",
    b"@",
    b"Content-Transfer-Encoding: quoted-printable\n",
    b"Content-Type: text/html; charset=utf-7\r\n",
    b"&#9",
    b"\xc3\xbc",
]


def mutate(octets, source):
    """The octets with a few pieces cut, doubled, swapped or put in."""
    for _ in range(source.randrange(1, 8)):
        at, size = source.randrange(len(octets) + 1), source.randrange(1, 40)
        piece = octets[at : at + size]
        other = source.randrange(len(octets) + 1)
        octets = source.choice(
            [
                octets[:at] + octets[at + size :],
                octets[:at] + piece + octets[at:],
                octets[:at] + source.choice(PIECES) + octets[at:],
                octets[:at] + bytes([source.randrange(256)]) + octets[at + 1 :],
                octets[:other] + piece + octets[other:],
            ]
        )
    return octets


@pytest.mark.parametrize("seed", range(4))
def test_mutated_messages_keep_the_invariant(seed):
    source = random.Random(seed)
    seeds = [compose(full_draft()), compose_dsn(full_report())]
    for _ in range(120):
        check_structure(mutate(source.choice(seeds), source))


@pytest.mark.parametrize("seed", range(4))
def test_mutated_addresses_keep_the_invariant(seed):
    source = random.Random(seed)
    for _ in range(1500):
        check_address(mutate(source.choice(ADDRESSES), source))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=120) | st.lists(st.sampled_from(PIECES), max_size=15).map(b"".join))
def test_any_octets_keep_the_invariants(octets):
    check_address(octets)
    check_structure(octets)


@pytest.mark.parametrize("target", [check_address, check_structure])
def test_targets_take_nothing_for_granted(target):
    for octets in (b"", b"\x00", b"\n", b"@", b"\xff" * 100):
        target(octets)
