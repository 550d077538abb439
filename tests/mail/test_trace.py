import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.mail.header import fields
from server.mail.trace import count_received, delivered_to, received, return_path, transmission
from storage.records import Peer

AT = 1_763_879_040_000_000


def test_received_says_who_how_and_when():
    peer = Peer(
        "192.0.2.1", 25, "mail.example.org", True, "TLSv1.3", "TLS_AES_256_GCM_SHA384", "host.example.org"
    )
    assert received(
        peer, host="mx.example.net", protocol="ESMTPS", id="msg_1", at=AT, recipient="a@example.net"
    ) == (
        b"Received: from mail.example.org (host.example.org [192.0.2.1])\r\n"
        b"\t(using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384)\r\n"
        b"\tby mx.example.net with ESMTPS id msg_1 for <a@example.net>\r\n"
        b"\ttls TLS_AES_256_GCM_SHA384; Sun, 23 Nov 2025 06:24:00 +0000\r\n"
    )


@pytest.mark.parametrize(
    ("cipher", "clause"),
    [
        ("ECDHE-RSA-AES128-GCM-SHA256", b"tls TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256;"),
        ("ECDHE-ECDSA-CHACHA20-POLY1305", b"tls TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256;"),
        ("ECDHE-RSA-AES256-GCM-SHA384", b"tls TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384;"),
        ("SOMETHING-ELSE", None),
    ],
)
def test_suites_have_their_registered_names(cipher, clause):
    peer = Peer("192.0.2.1", 25, "a", True, "TLSv1.2", cipher)
    made = received(peer, host="mx", protocol="ESMTPS", id="m", at=AT)
    assert (clause in made) if clause else (b" tls " not in made and b"\ttls " not in made)


def test_received_of_a_bare_peer():
    assert received(Peer("2001:db8::1"), host="mx", protocol="SMTP", id="m", at=AT) == (
        b"Received: from unknown ([IPv6:2001:db8::1]) by mx with SMTP id m;\r\n"
        b"\tSun, 23 Nov 2025 06:24:00 +0000\r\n"
    )
    assert b"from api (local)" in received(Peer("", helo="api"), host="mx", protocol="HTTP", id="m", at=AT)


HOSTILE = st.text(max_size=300) | st.sampled_from(
    ["a\r\nBcc: x", "x) by y (", "a;b", "<a@b>", "\u2028", "(" * 100, "[" * 400, "\udc80"]
)


@given(HOSTILE, HOSTILE, HOSTILE)
def test_strangers_can_end_neither_line_nor_comment(helo, name, recipient):
    peer = Peer("192.0.2.1", 25, helo, True, "TLSv1.3", "X", name, None)
    octets = received(peer, host="mx", protocol="ESMTPS", id="m", at=AT, recipient=recipient)
    (field,) = fields(octets)
    assert field.raw == octets
    assert field.value.endswith(b";\tSun, 23 Nov 2025 06:24:00 +0000") or field.value.endswith(
        b"; Sun, 23 Nov 2025 06:24:00 +0000"
    )
    head, mark, tail = b" ".join(field.value.split()).partition(b" by mx with ESMTPS id m for <")
    assert mark
    assert tail.count(b">") == 1
    assert (head.count(b"("), head.count(b")"), head.count(b";")) == (2, 2, 0)


@pytest.mark.parametrize(
    ("peer", "options", "keyword"),
    [
        (Peer("x"), {}, "SMTP"),
        (Peer("x", tls_version="TLSv1.3"), {}, "SMTP"),
        (Peer("x", extended=True), {}, "ESMTP"),
        (Peer("x", extended=True, tls_version="TLSv1.3"), {}, "ESMTPS"),
        (Peer("x", extended=True, identity="k"), {}, "ESMTPA"),
        (Peer("x", extended=True, tls_version="TLSv1.3", identity="k"), {}, "ESMTPSA"),
        (Peer("x", extended=True, tls_version="TLSv1.3", identity="k"), {"smtputf8": True}, "UTF8SMTPSA"),
        (Peer("x", extended=True), {"lmtp": True}, "LMTP"),
        (Peer("x", extended=True, tls_version="TLSv1.3"), {"lmtp": True, "smtputf8": True}, "UTF8LMTPS"),
    ],
)
def test_with_keywords_are_the_registered_ones(peer, options, keyword):
    assert transmission(peer, **options) == keyword


def test_return_path_of_the_null_reverse_path_is_empty():
    assert return_path(None) == b"Return-Path: <>\r\n"
    assert return_path("ü@b") == "Return-Path: <ü@b>\r\n".encode()


@pytest.mark.parametrize("write", [return_path, delivered_to])
@pytest.mark.parametrize("address", ["a\r\nX: y@b", "a\x00@b", "a> x@b", "a\udc80@b", "a\u2028@b"])
def test_addresses_cannot_begin_another_field(write, address):
    octets = write(address)
    assert octets.count(b"\r\n") == 1
    assert octets.count(b">") <= 1
    assert b"\x00" not in octets


@pytest.mark.parametrize(
    ("header", "count"),
    [
        (b"", 0),
        (b"Received: x", 1),
        (b"Received: x\r\n y\r\nreceived :z\r\nRECEIVED:\r\nX-Received: a\r\nSubject: received:\r\n", 3),
        (b" Received: x\n", 0),
        (b"Received-SPF: pass\n", 0),
    ],
)
def test_hops_are_counted(header, count):
    assert count_received(header) == count
