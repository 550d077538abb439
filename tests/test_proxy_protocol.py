"""The PROXY header's reader: both versions, cut at every octet, and what is no header."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.proxy_protocol import HEADER_OCTETS, SIGNATURE, Header, HeaderReader, Origin, ProxySyntax


def binary(first: int, second: int, body: bytes) -> bytes:
    return SIGNATURE + bytes([first, second]) + len(body).to_bytes(2, "big") + body


def addresses(source: str, port: int) -> bytes:
    packed = ipaddress.ip_address(source).packed
    return packed + packed + port.to_bytes(2, "big") + (25).to_bytes(2, "big")


HEADERS = {
    b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 25\r\n": Origin("192.0.2.1", 56324),
    b"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n": Origin("2001:db8::1", 1),
    b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 25\r\n": Origin("192.0.2.1", 1),
    b"PROXY UNKNOWN\r\n": None,
    b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n": None,
    binary(0x21, 0x11, addresses("192.0.2.1", 7)): Origin("192.0.2.1", 7),
    binary(0x21, 0x11, addresses("192.0.2.1", 7) + b"\x04\x00\x03abc"): Origin("192.0.2.1", 7),
    binary(0x21, 0x21, addresses("2001:db8::1", 7)): Origin("2001:db8::1", 7),
    binary(0x21, 0x31, b"/run/x".ljust(216, b"\0")): Origin(""),
    binary(0x20, 0x00, b""): None,
    binary(0x20, 0x11, addresses("192.0.2.1", 7)): None,
    binary(0x21, 0x00, b"whatever"): None,
}


def read(octets: bytes, most: int) -> tuple[Header | None, bytes]:
    """Feed at most `most` octets at a time; return the header and what was not asked for."""
    reader, at = HeaderReader(), 0
    while at < len(octets):
        taken = octets[at : at + min(most, reader.wanted)]
        at += len(taken)
        header = reader.feed(taken)
        if header is not None:
            return header, octets[at:]
    return None, b""


@pytest.mark.parametrize(("octets", "origin"), HEADERS.items())
@pytest.mark.parametrize("behind", [b"", b"\x16\x03\x01 and TLS", b"EHLO x\r\n"])
def test_headers_are_read_to_their_end_and_no_further(octets, origin, behind):
    for most in range(1, len(octets) + 20):
        assert read(octets + behind, most) == (Header(origin), behind)


@pytest.mark.parametrize("octets", HEADERS)
def test_half_a_header_is_none(octets):
    for end in range(len(octets)):
        assert read(octets[:end], 4096) == (None, b"")


@pytest.mark.parametrize(
    "octets",
    [
        b"EHLO client.example\r\n",
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcdef",
        b"proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\nEHLO x\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 -2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
        b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
        b"PROXY TCP6 fe80::1%lo fe80::2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1  192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.\xb2 192.0.2.2 1 2\r\n",
        b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY UNKNOWN " + b"x" * 200 + b"\r\n",
        binary(0x11, 0x11, addresses("192.0.2.1", 7)),
        binary(0x22, 0x11, addresses("192.0.2.1", 7)),
        binary(0x21, 0x12, addresses("192.0.2.1", 7)),
        binary(0x21, 0x41, addresses("192.0.2.1", 7)),
        binary(0x21, 0x11, addresses("192.0.2.1", 7)[:-1]),
        binary(0x21, 0x21, addresses("192.0.2.1", 7)),
        binary(0x21, 0x11, b"x" * HEADER_OCTETS),
        SIGNATURE[:-1] + b"\r" + b"x" * 20,
    ],
)
def test_what_is_no_header_is_refused(octets):
    for most in (1, 4096):
        with pytest.raises(ProxySyntax):
            read(octets, most)


@given(
    st.binary(max_size=64), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21"])
)
def test_anything_is_read_or_refused(rest, head):
    try:
        read(head + rest, 4096)
    except ProxySyntax:
        return
