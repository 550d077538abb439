"""TLS-RPT records: places that are asked to be told, and those that are passed over."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.transport.tlsrpt import MAX_TARGETS, read_record, record_of


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([b"v=TLSRPTv1; rua=mailto:r@example.com"], ("mailto:r@example.com",)),
        ([b"v=TLSRPTv1;rua=mailto:r@example.com;"], ("mailto:r@example.com",)),
        ([b"v=TLSRPTv1; x=y; rua=mailto:r@example.com"], ("mailto:r@example.com",)),
        (
            [b"v=TLSRPTv1; rua=mailto:a@b.test , https://c.test/v1?x=1"],
            ("mailto:a@b.test", "https://c.test/v1?x=1"),
        ),
        ([b"v=TLSRPTv1; rua=HTTPS://c.test/"], ("https://c.test/",)),
        ([b"v=TLSRPTv1; rua=MAILTO:a@B.test"], ("mailto:a@b.test",)),
        ([b"v=TLSRPTv1; rua=mailto:a%2Bx@b.test?subject=y"], ("mailto:a+x@b.test",)),
        ([b"v=spf1", b"v=TLSRPTv1; rua=mailto:a@b.test"], ("mailto:a@b.test",)),
        ([b"v=TLSRPTv1; rua=http://c.test/,ftp://d.test/,mailto:x"], ()),
        ([b"v=TLSRPTv1; rua=mailto:a@[127.0.0.1],mailto:a@localhost"], ()),
        ([b"v=TLSRPTv1; rua=https://c.test/\x01"], ()),
        ([b"v=TLSRPTv1; rua=" + b",".join(b"mailto:a%d@b.test" % n for n in range(20))], 5),
        ([b"v=TLSRPTv1"], None),
        ([b"v=TLSRPTv1;"], None),
        ([b"v=TLSRPTv2; rua=mailto:a@b.test"], None),
        ([b"v=TLSRPTv1; rua=mailto:a@b.test", b"v=TLSRPTv1; rua=mailto:c@b.test"], None),
        ([], None),
    ],
)
def test_records(texts: list[bytes], expected: tuple[str, ...] | int | None) -> None:
    found = read_record([(text,) for text in texts])
    assert found == expected if not isinstance(expected, int) else len(found or ()) == expected


def test_our_own_record_is_read() -> None:
    assert read_record([(record_of("a+b@c.test").encode(),)]) == ("mailto:a+b@c.test",)


@given(st.lists(st.binary(max_size=100), max_size=3))
def test_any_record_is_read_or_none(tails: list[bytes]) -> None:
    found = read_record([(b"v=TLSRPTv1; rua=" + tail,) for tail in tails])
    assert found is None or len(found) <= MAX_TARGETS
