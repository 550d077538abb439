"""Canonical forms and selection: equal to dkimpy's own, and linear."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.sender_auth import canonical, rsa
from server.sender_auth.canonical import BodyHash
from tests.sender_auth.original import load

dkim = load("dkim")
original = load("dkim.canonicalization")

# Few letters, many line ends and blanks: what the forms are about.
pieces = st.sampled_from([b"\r\n", b"\r", b"\n", b" ", b"\t", b"  ", b"a", b"b\t", b"\0", b"\xff", b"\x0b"])
bodies = st.lists(pieces, max_size=40).map(b"".join) | st.binary(max_size=60)
names = st.sampled_from([b"From", b"from", b"To", b"to ", b"X-A", b"SUBJECT\t", b""])
headers = st.lists(st.tuples(names, bodies), max_size=12)
EXAMPLES = settings(max_examples=600, deadline=None)


@EXAMPLES
@given(bodies)
def test_bodies_equal_dkimpys(body: bytes) -> None:
    assert canonical.simple_body(body) == original.Simple.canonicalize_body(body)
    assert canonical.relaxed_body(body) == original.Relaxed.canonicalize_body(body)


@EXAMPLES
@given(headers)
def test_headers_equal_dkimpys(fields: list[tuple[bytes, bytes]]) -> None:
    assert canonical.relaxed_headers(fields) == original.Relaxed.canonicalize_headers(fields)


@EXAMPLES
@given(headers, st.lists(names.map(bytes.lower), max_size=20))
def test_selection_equals_dkimpys(fields: list[tuple[bytes, bytes]], wanted: list[bytes]) -> None:
    assert canonical.select_headers(fields, wanted) == dkim.select_headers(fields, wanted)


signature_pieces = st.sampled_from(
    [b";", b" ", b"\r\n", b"\t", b"b", b"=", b"bh", b"b=", b"Ab/+=", b"h=a:b", b"\x0b", b"-"]
)


@EXAMPLES
@given(st.lists(signature_pieces, max_size=25).map(b"".join))
def test_removal_of_b_equals_dkimpys(value: bytes) -> None:
    assert canonical.B_TAG.sub(rb"\1", value) == dkim.RE_BTAG.sub(rb"\1", value)


@EXAMPLES
@given(st.lists(bodies, max_size=8), st.booleans(), st.sets(st.integers(0, 60), max_size=3))
def test_body_in_pieces_hashes_as_the_whole(parts: list[bytes], relaxed: bool, limits: set[int]) -> None:
    body = BodyHash(relaxed=relaxed, limits=limits)
    for part in parts:
        body.update(part)
    body.finish()
    form = canonical.relaxed_body if relaxed else canonical.simple_body
    whole = form(b"".join(parts))
    assert body.octets == len(whole)
    assert body.digest() == hashlib.sha256(whole).digest()
    for limit in limits:
        assert body.digest(limit) == hashlib.sha256(whole[:limit]).digest()


@pytest.mark.parametrize("relaxed", [False, True])
@pytest.mark.parametrize(
    "body", [b"", b"\r\n", b" \r\n", b" \t\r\n\r\n", b"a", b"a \r\n \r\n", b"\r", b" \r", b"a\r\r\n"]
)
def test_body_octet_by_octet_hashes_as_the_whole(relaxed: bool, body: bytes) -> None:
    fed = BodyHash(relaxed=relaxed)
    for position in range(len(body)):
        fed.update(body[position : position + 1])
    fed.finish()
    form = canonical.relaxed_body if relaxed else canonical.simple_body
    assert fed.digest() == hashlib.sha256(form(body)).digest()


def test_body_hash_holds_back_next_to_nothing() -> None:
    body = BodyHash(relaxed=True)
    for _ in range(1000):
        body.update(b" \t" * 500 + b"\r\n" * 500)
        assert len(body._tail) <= 3
    body.update(b"x")
    body.finish()
    assert body.octets == 1000 * 1000 + len(b"x\r\n")


# Each of these takes dkimpy's own patterns time with the square of the length: minutes and hours.
HOSTILE = [b" " * 4_000_000 + b"x", b"\t \t" * 1_000_000, b" \r" * 2_000_000, b"\r\n" * 2_000_000 + b" "]


@pytest.mark.parametrize("body", HOSTILE)
def test_hostile_runs_are_canonicalised_in_linear_time(body: bytes) -> None:
    assert canonical.relaxed_body(body).endswith(b"\r\n")
    assert canonical.relaxed_value(body).endswith(b"\r\n")
    fed = BodyHash(relaxed=True)
    fed.update(body)
    fed.finish()
    assert fed.octets == len(canonical.relaxed_body(body))


def test_removal_of_b_is_linear_in_hostile_white_space() -> None:
    for value in (b";b" + b"\r\n" * 500_000, b" b=a" + b" \n" * 500_000 + b"-", b";b " * 300_000):
        assert len(canonical.B_TAG.sub(rb"\1", value)) <= len(value)


def test_selection_is_linear_in_fields_and_names() -> None:
    fields = [(b"X-%d" % number, b"") for number in range(10_000)]
    wanted = [b"absent-%d" % number for number in range(10_000)] + [b"x-9"]
    assert canonical.select_headers(fields, wanted) == [(b"X-9", b"")]


def test_dkimpy_uses_ours() -> None:
    import dkim as patched

    import server.sender_auth.dkim_verify  # noqa: F401  (which puts ours in the place of dkimpy's)

    assert patched.canonicalization.Relaxed.canonicalize_body is canonical.relaxed_body
    assert patched.canonicalization.Simple.canonicalize_body is canonical.simple_body
    assert patched.canonicalization.Relaxed.canonicalize_headers is canonical.relaxed_headers
    assert patched.select_headers is canonical.select_headers
    assert patched.RE_BTAG is canonical.B_TAG
    assert patched.RSASSA_PKCS1_v1_5_verify is rsa.verify
