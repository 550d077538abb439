"""Content transfer encodings, in both directions.

Owns base64 and quoted-printable between a part's octets as they lie and what
they mean. Decoding never raises and passes over what is wrong; an encoding it
does not know leaves the octets as they are. Encoding gives lines of 76 octets.

RFC 2045 6.
"""

import re
from binascii import a2b_qp, b2a_base64, b2a_qp

from server.mail.header import decode_base64

LINE_OCTETS = 76  # RFC 2045 6.7 and 6.8, without CRLF

_LINE_END = re.compile(rb"\r\n|\r|\n")


def decode_transfer(octets: bytes, encoding: bytes) -> bytes:
    """The octets that a body in that encoding means."""
    match encoding.strip().lower():
        case b"base64":
            return decode_base64(octets)
        case b"quoted-printable":
            return a2b_qp(octets)
        case _:
            return octets


def encode_base64(octets: bytes) -> bytes:
    """Base64 in lines of 76 octets, each with CRLF."""
    encoded = b2a_base64(octets, newline=False)
    return b"".join(
        [encoded[start : start + LINE_OCTETS] + b"\r\n" for start in range(0, len(encoded), LINE_OCTETS)]
    )


def encode_quoted_printable(octets: bytes) -> bytes:
    """Quoted-printable of text with any line ends: its lines end in CRLF."""
    return b2a_qp(with_crlf(octets), quotetabs=False, istext=True, header=False)


def with_crlf(octets: bytes) -> bytes:
    """Text in canonical form: every line end is CRLF (RFC 2046 4.1.1)."""
    return _LINE_END.sub(b"\r\n", octets)
