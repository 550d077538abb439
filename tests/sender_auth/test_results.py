"""The Authentication-Results field: what is written reads back, what is forged is found."""

import pytest
from authres import AuthenticationResultsHeader
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.sender_auth import results
from storage.records import Verdict

OWN = "mx.example.net"
SPF = Verdict("spf", "pass", "example.com", "", {"smtp.mailfrom": "ann@example.com"})
DKIM = Verdict(
    "dkim",
    "fail",
    "example.com",
    "body hash mismatch",
    {"header.d": "example.com", "header.s": "sel", "header.a": "rsa-sha256", "header.b": "ab+/cd=="},
)
DMARC = Verdict("dmarc", "fail", "example.com", "", {"header.from": "example.com", "policy.dmarc": "reject"})


def read(field: bytes) -> list[tuple[str, str, str | None, dict[str, str]]]:
    """What authres reads in a field: (method, result, reason, properties)."""
    unfolded = field.decode("ascii").replace("\r\n", "")
    parsed = AuthenticationResultsHeader.parse(unfolded)
    assert parsed.authserv_id == OWN
    return [
        (
            result.method,
            result.result,
            result.reason,
            {f"{one.type}.{one.name}": str(one.value) for one in result.properties},
        )
        for result in parsed.results
    ]


def test_field_reads_back_as_the_verdicts() -> None:
    field = results.field(OWN, [SPF, DKIM, DMARC])
    assert read(field) == [
        ("spf", "pass", None, dict(SPF.properties)),
        ("dkim", "fail", "body hash mismatch", dict(DKIM.properties)),
        ("dmarc", "fail", None, dict(DMARC.properties)),
    ]
    assert field.startswith(b"Authentication-Results: mx.example.net;\r\n\tspf=pass ")
    assert field.endswith(b"\r\n")
    assert max(map(len, field.split(b"\r\n"))) <= 78


def test_no_verdicts_say_none() -> None:
    assert results.field(OWN, []) == b"Authentication-Results: mx.example.net;\r\n\tnone\r\n"


@pytest.mark.parametrize(
    "value",
    [
        "a@b;spf=pass",
        'a"@b',
        "a@b (x)",
        "x; dmarc=pass",
        '"; dmarc=pass',
        "\\",
        "a@b\\",
        "a@[192.0.2.1]",
        '"quoted local"@example.com',
    ],
)
def test_strange_values_are_quoted(value: str) -> None:
    field = results.field(OWN, [Verdict("spf", "fail", "", value, {"smtp.mailfrom": value})])
    text = field.decode().replace("\r\n", "")
    quoted = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    assert f"smtp.mailfrom={quoted}" in text
    assert f"reason={quoted}" in text


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\0b", "bücher@example.com", "x" * 400, ""])
def test_values_that_cannot_be_said_are_left_out(value: str) -> None:
    field = results.field(OWN, [Verdict("spf", "fail", "", "", {"smtp.mailfrom": value})])
    assert field == b"Authentication-Results: mx.example.net;\r\n\tspf=fail\r\n"


printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=60) | printable, st.text(max_size=60) | printable, st.text(max_size=60) | printable)
@example('a" ; dmarc=pass x="', "b@c ; dkim=pass", "d\\")
def test_no_value_escapes_its_place(first: str, second: str, third: str) -> None:
    verdict = Verdict("spf", "fail", "", first, {"smtp.mailfrom": second, "smtp.helo": third})
    field = results.field(OWN, [verdict, SPF])
    assert field.isascii()
    assert field.count(b"\r\n") == field.count(b"\r\n\t") + 1
    assert b"\r" not in field.replace(b"\r\n", b"") and b"\n" not in field.replace(b"\r\n", b"")
    assert _outside_quotes(field.decode()).count("=pass") == 1
    assert _outside_quotes(field.decode()).count(";") == 2


def _outside_quotes(text: str) -> str:
    out, is_quoted, position = "", False, 0
    while position < len(text):
        letter = text[position]
        if is_quoted and letter == "\\":
            position += 1
        elif letter == '"':
            is_quoted = not is_quoted
        elif not is_quoted:
            out += letter
        position += 1
    assert not is_quoted
    return out


REST = "; spf=pass smtp.mailfrom=a@example.com"


@pytest.mark.parametrize(
    "value",
    [
        f"mx.example.net{REST}",
        f"MX.Example.NET{REST}",
        f"mx.example.net.{REST}",
        f"mx.example.net 1{REST}",
        f"mx.example.net 99{REST}",
        f"mx.example.net/1{REST}",
        f"mx.example.net (a comment) 1 (another){REST}",
        f"(a (nested) comment \\) with (tricks)) mx.example.net{REST}",
        f'( " ) mx.example.net{REST}',
        f'"mx.example.net"{REST}',
        f'"mx.\\example.net"{REST}',
        f"\r\n\tmx.example.net\r\n {REST}",
        f"(x)\r\n (y)\r\n mx.example.net{REST}",
        "mx.example.net",
        "mx.example.net;",
        "mx.example.net; none",
        # What can't be read but mentions us.
        f"mx.example.net spf=pass{REST}",
        f"mx . example . net{REST}",
        f"mx.(gap)example.net{REST}",
        f"(never closed mx.example.net{REST}",
        f'"never closed mx.example.net{REST}',
        f"<mx.example.net>{REST}",
        f"a@mx.example.net{REST}",
        f", mx.example.net{REST}",
        "=?utf-8?q?mx=2Eexample=2Enet?=; spf=pass",
        "=?utf-8?b?bXguZXhhbXBsZS5uZXQ7IHNwZj1wYXNz?=",
        f"\uff4dx.example.net{REST}",  # full-width m
    ],
)
@pytest.mark.parametrize("name", ["Authentication-Results:", "AUTHENTICATION-results \t:"])
def test_forged_field_is_found(name: str, value: str) -> None:
    raw = f"{name} {value}\r\n".encode()
    head = b"Received: x\r\n" + raw + b"Subject: mx.example.net\r\n\r\n"
    assert results.forged(head, OWN) == [raw]


@pytest.mark.parametrize(
    "value",
    [
        f"mx.example.org{REST}",
        f"a.mx.example.net{REST}",
        f"mx.example.network{REST}",
        "other.example; spf=pass smtp.mailfrom=a@mx.example.net",
        f"(mx.example.net) other.example{REST}",
        f'"other.example"{REST}',
        "nonsense without our name",
        "",
    ],
)
def test_fields_of_others_stay(value: str) -> None:
    assert results.forged(f"Authentication-Results: {value}\r\n\r\n".encode(), OWN) == []


def test_other_fields_are_left_alone() -> None:
    head = (
        b"X-Authentication-Results: mx.example.net; none\r\n"
        b"ARC-Authentication-Results: i=1; mx.example.net; none\r\n"
        b"Subject: hi\r\n Authentication-Results: mx.example.net; none\r\n\r\n"
    )
    assert results.forged(head, OWN) == []


def test_every_forged_field_is_found_however_many_there_are() -> None:
    raw = b"Authentication-Results: mx.example.net; none\r\n"
    other = b"Authentication-Results: mx.example.org; none\r\n"
    assert results.forged((raw + other) * 15_000, OWN) == [raw] * 15_000


def test_internationalised_name_is_found_in_both_forms() -> None:
    own = "mx.xn--bcher-kva.example"
    for name in ("mx.xn--bcher-kva.example", "mx.bücher.example", "MX.BÜCHER.example"):
        raw = f"Authentication-Results: {name}; none\r\n".encode()
        assert results.forged(raw, own) == [raw]


def test_our_own_field_is_found_as_forged_when_it_comes_from_outside() -> None:
    field = results.field(OWN, [SPF, DKIM, DMARC])
    assert results.forged(field, OWN) == [field]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(['"', "\\", "(", ")", ";", " ", OWN, "x", "=?", "\r\n "]), max_size=14))
def test_reading_never_raises_and_takes_whole_fields(pieces: list[str]) -> None:
    raw = f"Authentication-Results:{''.join(pieces)}\r\n".encode()
    assert results.forged(raw + b"To: x\r\n", OWN) in ([], [raw])


def test_hostile_comments_take_linear_time() -> None:
    for filling in (b"(" * 300_000, b"(" * 100_000 + b"\\" * 100_000, b'"' * 300_001, b"(\\" * 100_000):
        results.forged(b"Authentication-Results: " + filling + b"\r\n", OWN)
