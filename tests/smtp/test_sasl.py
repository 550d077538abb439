"""AUTH exchanges: PLAIN and LOGIN, with and without an initial response."""

from base64 import b64encode

import pytest

from server.refusal import Refusal
from server.smtp.sasl import Credentials, Exchange


def plain(*fields: str) -> bytes:
    return b64encode("\0".join(fields).encode())


def code(call, *arguments) -> tuple[int, str]:
    with pytest.raises(Refusal) as caught:
        call(*arguments)
    return caught.value.code, caught.value.enhanced


def test_plain_with_initial_response():
    assert Exchange("PLAIN").begin(plain("", "ann", "pencil")) == Credentials("ann", "pencil")


def test_plain_in_a_dialogue():
    exchange = Exchange("PLAIN")
    assert exchange.begin(None) == b""
    assert exchange.answer(plain("ann", "ann", "påss")) == Credentials("ann", "påss")


def test_login_asks_user_then_password():
    exchange = Exchange("LOGIN")
    assert exchange.begin(None) == b64encode(b"Username:")
    assert exchange.answer(b64encode(b"ann")) == b64encode(b"Password:")
    assert exchange.answer(b64encode(b"pencil")) == Credentials("ann", "pencil")


def test_login_with_initial_response():
    exchange = Exchange("LOGIN")
    assert exchange.begin(b64encode(b"ann")) == b64encode(b"Password:")


def test_unknown_mechanism():
    assert code(Exchange, "CRAM-MD5") == (504, "5.5.4")


def test_star_cancels():
    exchange = Exchange("LOGIN")
    exchange.begin(None)
    assert code(exchange.answer, b"*") == (501, "5.0.0")


@pytest.mark.parametrize("response", [b"!", b"YW5", b"YW5u YW5u", b"YW=u", b"\xff\xff", b"YW5u\t"])
def test_bad_base64(response):
    assert code(Exchange("PLAIN").begin, response) == (501, "5.5.2")


@pytest.mark.parametrize(
    "response",
    [
        b"=",
        plain("ann"),
        plain("", "ann"),
        plain("", "", "pencil"),
        plain("", "ann", ""),
        plain("", "ann", "pencil", ""),
        plain("", "a" * 1025, "pencil"),
        b64encode(b"\0\xff\xfe\0pencil"),
    ],
)
def test_malformed_plain(response):
    assert code(Exchange("PLAIN").begin, response) == (501, "5.5.2")


def test_acting_as_another_user_is_refused():
    assert code(Exchange("PLAIN").begin, plain("root", "ann", "pencil")) == (535, "5.7.8")


def test_response_beyond_the_limit():
    exchange = Exchange("PLAIN")
    exchange.begin(None)
    assert code(exchange.answer, b"A" * 12287) == (500, "5.5.6")
