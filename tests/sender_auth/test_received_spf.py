"""Received-SPF as RFC 7208 9.1 has it, whatever strangers call themselves."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.mail import header
from server.sender_auth.received_spf import field
from storage.records import Peer, Verdict

HOST = "mx.example.net"
PAIR = re.compile(r'[a-z-]+=(?:"(?:[^"\\]|\\.)*"|[^\s";()]+)')


def made(result: str = "pass", *, sender: str = "ann@example.com", helo: str = "mail.example.com") -> bytes:
    properties = {"smtp.mailfrom": sender} if sender else {"smtp.helo": helo}
    return field(HOST, Peer("192.0.2.1", helo=helo), [Verdict("spf", result, "example.com", "", properties)])


def test_field_says_what_was_checked() -> None:
    assert header.unfold(made()) == (
        b"Received-SPF: pass (is a permitted sender) receiver=mx.example.net; identity=mailfrom; "
        b'client-ip=192.0.2.1; envelope-from="ann@example.com"; helo=mail.example.com'
    )


def test_null_sender_was_checked_by_its_helo() -> None:
    assert b"identity=helo; client-ip=192.0.2.1; helo=mail.example.com" in header.unfold(made(sender=""))


@pytest.mark.parametrize(
    "verdicts", [(), (Verdict("dkim", "pass", "x"),), (Verdict("spf", "pass\r\nX: y", "x"),)]
)
def test_nothing_is_said_without_a_verdict_on_spf(verdicts: tuple[Verdict, ...]) -> None:
    assert field(HOST, Peer("192.0.2.1"), verdicts) == b""
    assert field(HOST, Peer(""), [Verdict("spf", "none", "")]) == b""


@given(st.text(max_size=400), st.text(max_size=400))
def test_no_value_escapes_its_place(sender: str, helo: str) -> None:
    written = made("fail", sender=sender, helo=helo)
    assert len(header.fields(written)) == 1
    assert max(map(len, written.split(b"\r\n"))) <= 998
    said = header.unfold(written).decode("ascii").partition(") ")[2]
    assert "; ".join(PAIR.findall(said)) == said
