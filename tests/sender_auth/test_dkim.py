"""DKIM verification: what passes, what does not, and by which word."""

import hashlib
from base64 import b64encode
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.mail import header
from server.sender_auth import dkim_verify
from server.sender_auth.dkim_tags import MAX_SIGNATURES, Key, key_of, signatures
from storage.records import Verdict
from tests.sender_auth.letters import AT, LETTER, ed25519_key, record, rsa_key, sign

NAME = "sel._domainkey.example.com"
KEY = Key((record(rsa_key(), "").encode(),))


def verdicts(content: bytes | Path, *keys: Key, now: int = AT + 60) -> tuple[Verdict, ...]:
    """Verdicts on a message; the key of NAME is the one given, or RSA's."""
    octets = content if isinstance(content, bytes) else content.read_bytes()
    head = octets[: header.split(octets)]
    fields = header.fields(head)
    known = {NAME: keys[0] if keys else KEY}
    return dkim_verify.verify(content, fields, len(head), signatures(fields), known, now=now)


def outcome(content: bytes, *keys: Key, now: int = AT + 60) -> tuple[str, str]:
    [verdict] = verdicts(content, *keys, now=now)
    return verdict.result, verdict.reason


def test_good_signature_passes_and_says_whose_it_is() -> None:
    content = sign(LETTER, rsa_key())
    [verdict] = verdicts(content)
    beginning = content.partition(b"; b=")[2][:8].decode()
    assert verdict == Verdict(
        "dkim",
        "pass",
        "example.com",
        "",
        {"header.d": "example.com", "header.s": "sel", "header.a": "rsa-sha256", "header.b": beginning},
    )


def test_ed25519_signature_passes() -> None:
    key = Key((record(ed25519_key(), "").encode(),))
    assert outcome(sign(LETTER, ed25519_key()), key) == ("pass", "")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"Come and see", b"Come and sea", "body hash mismatch"),
        (b"Subject: An  inv", b"Subject: An inv", "signature"),
        (b"ann@example.com>\r\nTo", b"eve@example.com>\r\nTo", "signature"),
        (b"From: Ann", b"From: Eve <eve@example.com>\r\nFrom: Ann", "signature"),
        (b"; t=17", b"; t=16", "signature"),
    ],
)
def test_tampering_fails(old: bytes, new: bytes, reason: str) -> None:
    content = sign(LETTER, rsa_key())
    assert old in content
    assert outcome(content.replace(old, new)) == ("fail", reason)


def test_unsigned_duplicate_of_a_signed_field_is_no_pass() -> None:
    content = sign(LETTER, rsa_key())
    forged = b"Subject: Other\r\n" + content
    assert outcome(forged) == ("policy", "unsigned subject beside the signed one")
    assert outcome(b"X-Mark: a\r\n" + content)[0] == "pass"


@pytest.mark.parametrize(
    ("tags", "result", "reason"),
    [
        ({"v": "2"}, "neutral", "unknown version"),
        ({"v": None}, "neutral", "no v= tag"),
        ({"a": "rsa-sha1"}, "policy", "rsa-sha1 is not accepted"),
        ({"a": "rsa-md5"}, "neutral", "unknown algorithm"),
        ({"a": "ed25519-sha256"}, "permerror", "key is of another type"),
        ({"c": "strict"}, "neutral", "unknown canonicalization"),
        ({"c": "simple/simple/simple"}, "neutral", "unknown canonicalization"),
        ({"d": None}, "neutral", "no d= tag"),
        ({"d": "com"}, "neutral", "no valid domain and selector"),
        ({"d": "example.com(.evil.net"}, "neutral", "no valid domain and selector"),
        ({"s": "a..b"}, "neutral", "no valid domain and selector"),
        ({"h": "to:subject"}, "neutral", "From is not signed"),
        ({"h": "from::to"}, "neutral", "h= syntax"),
        ({"h": "from:" + "x:" * 1000 + "y"}, "neutral", "too many signed fields"),
        ({"i": "ann@example.net"}, "neutral", "i= is not within d="),
        ({"i": "ann@evilexample.com"}, "neutral", "i= is not within d="),
        ({"i": "ann.example.com"}, "neutral", "i= is not within d="),
        ({"i": "@News.Example.com"}, "pass", ""),
        ({"q": "dns"}, "neutral", "unknown query method"),
        ({"q": "x : dns/txt"}, "pass", ""),
        ({"t": "soon"}, "neutral", "t= syntax"),
        ({"t": str(AT + 100_000)}, "neutral", "signed in the future"),
        ({"t": None}, "pass", ""),
        ({"x": str(AT + 61)}, "pass", ""),
        ({"x": str(AT + 1)}, "fail", "signature expired"),
        ({"x": str(AT - 1)}, "neutral", "expires before it is signed"),
        ({"x": "9" * 77}, "neutral", "x= syntax"),
        ({"l": "22"}, "policy", "content beyond the signed length"),
        ({"l": "0"}, "policy", "content beyond the signed length"),
        ({"l": "23"}, "pass", ""),
        ({"l": "9" * 76}, "pass", ""),
        ({"l": "-1"}, "neutral", "l= syntax"),
        ({"bh": "a*b="}, "neutral", "base64 syntax"),
        ({"bh": b64encode(hashlib.sha256(b"x").digest()).decode()}, "fail", "body hash mismatch"),
        ({"b": "AAAA"}, "fail", "signature"),
        ({"b": "AAA"}, "neutral", "base64 syntax"),
        ({"d": "example.com; d=example.com"}, "neutral", "signature syntax"),
        ({"x1": "an unknown tag"}, "pass", ""),
    ],
)
def test_tags_of_a_signature(tags: dict[str, str | None], result: str, reason: str) -> None:
    assert outcome(sign(LETTER, rsa_key(), **tags)) == (result, reason)


@pytest.mark.parametrize(
    ("text", "result", "reason"),
    [
        ("v=DKIM1; {k}", "pass", ""),
        ("{k}", "pass", ""),
        ("v=DKIM1; h=sha1:sha256; s=email:web; t=y:s; n=notes; {k}", "pass", ""),
        ("v=DKIM1; s=*; g=*; {k};", "pass", ""),
        ("v=DKIM2; {k}", "permerror", "key version"),
        ("{k}; v=DKIM1", "permerror", "key version"),
        ("v=DKIM1; h=sha1; {k}", "permerror", "key is not for sha256"),
        ("v=DKIM1; s=tlsrpt; {k}", "permerror", "key is not for email"),
        ("v=DKIM1; k=rsa; p=", "permerror", "key revoked"),
        ("v=DKIM1; k=rsa", "permerror", "key syntax"),
        ("v=DKIM1; k=rsa; p=AAAA", "permerror", "key or signature"),
        ("v=DKIM1; k=rsa; p=A", "permerror", "key syntax"),
        ("v=DKIM1; k=dsa; p=AAAA", "permerror", "key is of another type"),
        ("v=DKIM1; {k}; k=rsa", "permerror", "key syntax"),
        ("nonsense", "permerror", "key syntax"),
        ("", "permerror", "key syntax"),
        ("{k}; n=" + "x" * 9000, "permerror", "key syntax"),
    ],
)
def test_records_of_a_key(text: str, result: str, reason: str) -> None:
    key = key_of([(text.replace("{k}", record(rsa_key(), "")).encode(),)])
    assert outcome(sign(LETTER, rsa_key()), key) == (result, reason)


def test_key_for_no_subdomains_asks_for_its_own_identity() -> None:
    key = key_of([(record(rsa_key(), "t=s; ").encode(),)])
    assert outcome(sign(LETTER, rsa_key(), i="@example.com"), key)[0] == "pass"
    refused = outcome(sign(LETTER, rsa_key(), i="@a.example.com"), key)
    assert refused == ("permerror", "key is not for subdomains")


def test_small_rsa_key_is_no_pass() -> None:
    # Of 1,000 bits: the library makes keys of 1,024 and more alone.
    der = _sequence((1 << 999) + 12345, 65537)
    key = Key((b"k=rsa; p=" + b64encode(der),))
    assert outcome(sign(LETTER, rsa_key()), key) == ("policy", "key too small")
    smallest = Key((record(rsa_key(1024), "").encode(),))
    assert outcome(sign(LETTER, rsa_key(1024)), smallest) == ("pass", "")


@pytest.mark.parametrize(("exponent", "result"), [(65537, "pass"), ((1 << 2000) + 1, "fail"), (1, "fail")])
def test_rsa_key_that_costs_too_much_or_nothing_is_no_pass(exponent: int, result: str) -> None:
    private = rsa_key()
    numbers = private.public_key().public_numbers()
    key = Key((b"k=rsa; p=" + b64encode(_sequence(numbers.n, exponent)),))
    assert outcome(sign(LETTER, private), key)[0] == result


def _sequence(*integers: int) -> bytes:
    """DER of a SEQUENCE of positive INTEGERs (RFC 8017 A.1.1)."""
    parts = [_element(2, number.to_bytes(number.bit_length() // 8 + 1, "big")) for number in integers]
    return _element(0x30, b"".join(parts))


def _element(tag: int, value: bytes) -> bytes:
    size = len(value)
    length = bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + length + value


@pytest.mark.parametrize(
    ("key", "result", "reason"),
    [
        (Key(failure="temperror"), "temperror", "key lookup failed"),
        (Key(failure="none"), "permerror", "no key"),
        (key_of([]), "permerror", "no key"),
    ],
)
def test_temporary_failure_of_a_key_is_kept_apart(key: Key, result: str, reason: str) -> None:
    assert outcome(sign(LETTER, rsa_key()), key) == (result, reason)


def test_wrong_length_of_an_ed25519_key_or_signature() -> None:
    content = sign(LETTER, ed25519_key())
    short = Key((b"k=ed25519; p=" + b64encode(b"k" * 31),))
    assert outcome(content, short) == ("permerror", "key syntax")
    key = Key((record(ed25519_key(), "").encode(),))
    assert outcome(sign(LETTER, ed25519_key(), b="AAAA"), key) == ("fail", "signature")


def test_one_of_several_keys_at_a_name_is_enough() -> None:
    texts = [b"v=spf1 -all", record(ed25519_key(), "").encode(), record(rsa_key(), "").encode()]
    key = key_of([(text,) for text in texts])
    assert outcome(sign(LETTER, rsa_key()), key) == ("pass", "")


def test_every_signature_has_its_own_result() -> None:
    content = sign(LETTER, rsa_key(), s="other")
    content = sign(content, rsa_key())
    content = sign(content, rsa_key(), a="rsa-sha1")
    results = [(verdict.result, verdict.properties["header.s"]) for verdict in verdicts(content)]
    assert results == [("policy", "sel"), ("pass", "sel"), ("temperror", "other")]


def test_signatures_beyond_the_limit_are_not_looked_at() -> None:
    content = LETTER
    for _ in range(MAX_SIGNATURES + 5):
        content = b"DKIM-Signature: v=9\r\n" + content
    assert len(verdicts(content)) == MAX_SIGNATURES


def test_overlong_signature_is_refused_unread() -> None:
    content = b"DKIM-Signature: v=1; z=" + b"x" * 40_000 + b"\r\n" + LETTER
    assert outcome(content) == ("neutral", "signature too long")


def test_header_with_more_fields_than_are_read_passes_nothing() -> None:
    content = sign(LETTER, rsa_key())
    padded = content.replace(b"\r\n\r\n", b"\r\n" + b"X: y\r\n" * header.MAX_FIELDS + b"\r\n", 1)
    assert outcome(padded) == ("permerror", "too many header fields")


def test_file_is_read_once_and_gives_the_same_results(tmp_path: Path) -> None:
    body = (b"line of text \t with   blanks \r\n" * 20_000) + b"\r\n" * 50_000
    content = sign(LETTER + body, rsa_key())
    path = tmp_path / "message"
    for octets in (content, content + b"x"):
        path.write_bytes(octets)
        assert verdicts(path) == verdicts(octets)
    assert verdicts(path)[0].reason == "body hash mismatch"


@pytest.mark.parametrize(
    "content",
    [
        LETTER,
        b"",
        b"\r\n",
        b"no header at all",
        b"DKIM-Signature",
        b"DKIM-Signature:\r\n",
        b"DKIM-Signature: =\r\n\r\n",
        b"DKIM-Signature: v=1; a=rsa-sha256; b=" + b"\xff" * 100 + b"\r\n\r\nx",
    ],
)
def test_no_signature_or_no_sense_is_no_pass(content: bytes) -> None:
    assert all(verdict.result == "neutral" for verdict in verdicts(content))


SIGNED = sign(LETTER, rsa_key())


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(SIGNED) - 1), st.binary(min_size=1, max_size=3))
def test_no_mutation_makes_it_raise_or_pass_wrongly(position: int, octets: bytes) -> None:
    mutated = SIGNED[:position] + octets + SIGNED[position + len(octets) :]
    for verdict in verdicts(mutated):
        assert verdict.result in {"pass", "fail", "permerror", "neutral", "policy", "temperror"}
        if verdict.result == "pass":
            assert _signed_content(mutated) == _signed_content(SIGNED)


def _signed_content(content: bytes) -> tuple[list[bytes], bytes]:
    octets = header.split(content)
    fields = header.fields(content[:octets])
    names = b"from", b"to", b"subject", b"date", b"message-id"
    return [field.raw for field in fields if field.name.lower() in names], content[octets:].rstrip(b"\r\n")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="vabdhs=;: \r\n\t12.x*+/", max_size=120), st.binary(max_size=40))
def test_no_tag_list_makes_it_raise(value: str, text: bytes) -> None:
    content = b"DKIM-Signature: " + value.replace("\n", "\n ").encode() + b"\r\n" + LETTER
    assert all(verdict.result != "pass" for verdict in verdicts(content, key_of([(text,)])))
