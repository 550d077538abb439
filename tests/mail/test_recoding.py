"""Binary messages become lines: which parts are encoded how, and what cannot be."""

import email
from email import policy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.mail.recoding import STEP_OCTETS, TEXT_OCTETS, Unencodable, recode

MULTIPART = (
    b"Subject: x\r\nMIME-Version: 1.0\r\nContent-Transfer-Encoding: binary\r\n"
    b'Content-Type: multipart/%b; boundary="b"\r\n\r\npreamble\r\n%b--b--\r\nepilogue'
)


def leaf(body: bytes, kind: bytes = b"application/octet-stream", encoding: bytes = b"binary") -> bytes:
    return b"Content-Type: %b\r\nContent-Transfer-Encoding: %b\r\n\r\n%b" % (kind, encoding, body)


def multipart(*parts: bytes, kind: bytes = b"mixed") -> bytes:
    return MULTIPART % (kind, b"".join(b"--b\r\n" + part + b"\r\n" for part in parts))


def recoded(message: bytes) -> bytes:
    return b"".join(recode(message))


def parsed(message: bytes):
    return email.message_from_bytes(message, policy=policy.default)


def has_lines_only(octets: bytes) -> bool:
    rest = octets.replace(b"\r\n", b"")
    return not any(octet in rest for octet in b"\r\n\0")


@given(st.binary(max_size=400))
def test_binary_part_comes_back_octet_for_octet(body):
    message = multipart(leaf(body), leaf(b"text", b"text/plain", b"7bit"))
    if b"\n--b" in body or body.startswith(b"--b"):
        return  # the boundary stands in the part: it is another message
    made = recoded(message)
    assert has_lines_only(made)
    assert max(map(len, made.split(b"\r\n"))) <= 998
    first, second = parsed(made).iter_parts()
    assert first.get_payload(decode=True) == body
    assert second.get_payload() == "text"


@given(st.binary(max_size=400))
def test_any_octets_become_lines_or_are_refused(octets):
    for message in (octets, leaf(octets), multipart(octets)):
        try:
            assert has_lines_only(recoded(message))
        except Unencodable:
            assert not has_lines_only(message)


@pytest.mark.parametrize(
    ("body", "kind", "encoding"),
    [
        (b"a\r\nb\r\n", b"text/plain", "7bit"),
        (b"a\xc3\xa4\r\n", b"text/plain", "8bit"),
        (b"x" * 2000 + b"\r\n", b"text/plain; charset=utf-8", "quoted-printable"),
        (b"x" * 999, b"text/plain", "quoted-printable"),
        (b"x" * 998, b"text/plain", "7bit"),
        (b"a\nb", b"text/plain", "base64"),
        (b"x" * (TEXT_OCTETS + 1), b"text/plain", "base64"),
        (b"\0", b"image/png", "base64"),
        (b"x" * 999, b"image/png", "base64"),
        (b"\0" * (2 * STEP_OCTETS + 1), b"image/png", "base64"),
    ],
)
def test_encoding_follows_what_the_part_holds(body, kind, encoding):
    made = parsed(recoded(leaf(body, kind)))
    assert made["content-transfer-encoding"] == encoding
    assert made.get_payload(decode=True) == body


def test_what_holds_parts_is_only_relabelled():
    inner = b"Subject: in\r\n" + leaf(b"\0")
    made = recoded(multipart(leaf(inner, b"message/rfc822")))
    assert b"epilogue" in made
    assert b"binary" not in made
    outer = parsed(made)
    assert outer["content-transfer-encoding"] == "8bit"
    message = next(outer.iter_parts()).get_payload(0)
    assert message["subject"] == "in"
    assert message.get_payload(decode=True) == b"\0"


def test_folded_and_repeated_encoding_fields_are_replaced_as_one():
    header = b"Content-Type: image/png\r\nContent-transfer-ENCODING:\r\n binary\r\n"
    made = recoded(header + b"X: y\r\nContent-Transfer-Encoding: binary\r\n\r\n\0")
    assert made == b"Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\nX: y\r\n\r\nAA==\r\n"


@pytest.mark.parametrize(
    "message",
    [
        multipart(leaf(b"\0"), leaf(b"s", b"application/pgp-signature", b"7bit"), kind=b"signed"),
        multipart(leaf(b"a\nb", b"text/plain", b"8bit")),
        multipart(leaf(b"a", b"text/plain", b"7bit")).replace(b"preamble", b"pre\0amble"),
        multipart(leaf(b"a", b"text/plain", b"7bit")).replace(b"epilogue", b"epi\nlogue"),
        multipart(leaf(b"\0", b"message/partial")),
        leaf(b"\0", b"multipart/mixed; boundary=none"),
        multipart(b"X: \0\r\n" + leaf(b"a")),
        b"Subject: x\r\n\r\na\rb\r\n",
    ],
)
def test_what_may_not_be_encoded_is_refused(message):
    with pytest.raises(Unencodable):
        recoded(message)


def test_signed_text_with_lines_stays_untouched():
    message = multipart(leaf(b"a\r\n", b"text/plain", b"8bit"), leaf(b"s", b"a/b", b"7bit"), kind=b"signed")
    assert recoded(message).partition(b"--b")[2] == message.partition(b"--b")[2]
