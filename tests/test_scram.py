"""SCRAM-SHA-256 against the example of RFC 7677 3, and what breaks an exchange."""

from base64 import b64decode

import pytest

from server.login import scram_verifier
from server.scram import Exchange, Keys, ScramSyntax, Verifier

SALT = b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
SERVER_NONCE = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
FIRST = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
FINAL = (
    b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
    b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
)


def keys(password: str = "pencil") -> Keys:
    iterations, _, stored, server = scram_verifier(password, salt=SALT).split("$")
    return Keys(int(iterations), SALT, (Verifier("crd_1", b64decode(stored), b64decode(server)),))


def test_the_example_of_the_rfc():
    exchange = Exchange()
    assert exchange.open(FIRST) == "user"
    challenge = exchange.challenge(keys(), SERVER_NONCE)
    assert challenge == (
        b"r=rOprNGfwEbeRWgbNEkqO" + SERVER_NONCE.encode() + b",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    )
    assert exchange.finish(FINAL) == ("crd_1", b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")


def test_another_password_is_no_proof():
    exchange = Exchange()
    exchange.open(FIRST)
    exchange.challenge(keys("other"), SERVER_NONCE)
    assert exchange.finish(FINAL) is None


@pytest.mark.parametrize(
    "final",
    [b"", b"c=biws,r=x,p=AAAA", FINAL.replace(b"biws", b"eSws"), FINAL[:-1], b"c=biws\xff", b"x" * 5000],
)
def test_a_broken_final_message_is_refused(final):
    exchange = Exchange()
    exchange.open(FIRST)
    exchange.challenge(keys(), SERVER_NONCE)
    with pytest.raises(ScramSyntax):
        exchange.finish(final)


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"p=tls-unique,,n=user,r=abc",
        b"n,,m=x,n=user,r=abc",
        b"n,a=other,n=user,r=abc",
        b"n,,n=us=er,r=abc",
    ],
)
def test_a_broken_first_message_is_refused(first):
    with pytest.raises(ScramSyntax):
        Exchange().open(first)
