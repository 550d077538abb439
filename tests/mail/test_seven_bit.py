"""Messages made 7-bit and short of line: the same content by every reader, or left, or refused."""

import email
import mmap
from email import policy
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from server.mail.header import fields, split, unfold
from server.mail.recoding import STEP_OCTETS, TEXT_OCTETS, Unencodable
from server.mail.seven_bit import edited, edits, is_fit
from server.mail.structure import scan
from server.mail.transfer import decode_transfer
from server.sender_auth.canonical import relaxed_value

LONG = b"x" * 999
UMLAUT = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.\r\n".encode()
SIGNED = b'multipart/signed; protocol="application/pgp-signature"'


def leaf(body: bytes, kind: bytes = b"text/plain; charset=utf-8", encoding: bytes = b"8bit") -> bytes:
    return b"Content-Type: %b\r\nContent-Transfer-Encoding: %b\r\n\r\n%b" % (kind, encoding, body)


def letter(entity: bytes) -> bytes:
    return b"From: a@b.example\r\nSubject: x\r\nMIME-Version: 1.0\r\n" + entity


def multipart(
    *parts: bytes, kind: bytes = b"multipart/mixed", before: bytes = b"", after: bytes = b""
) -> bytes:
    inside = b"".join(b"--b\r\n" + part + b"\r\n" for part in parts)
    label = b"Content-Transfer-Encoding: 8bit\r\n"
    return b'Content-Type: %b; boundary="b"\r\n%b\r\n%b%b--b--\r\n%b' % (kind, label, before, inside, after)


def made(message: bytes) -> bytes:
    return b"".join(edited(message, edits(message)))


def content(message: bytes) -> list[tuple[str, bytes]]:
    """The leaves of a message by our own reader: type and decoded octets."""
    return [
        (part.kind, decode_transfer(message[part.body_start : part.body_end], part.content.encoding))
        for part in scan(message).walk()
        if not part.parts
    ]


def by_the_library(message: bytes) -> list[bytes]:
    """The same by the standard library."""
    whole = email.message_from_bytes(message, policy=policy.default)
    return [part.get_payload(decode=True) for part in whole.walk() if not part.is_multipart()]


def encodings(message: bytes) -> list[bytes]:
    return [part.content.encoding for part in scan(message).walk() if not part.parts]


TEXTS = st.lists(
    st.one_of(
        st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=90),
        st.integers(900, 1100).map(lambda n: "a " * (n // 2)),
        st.sampled_from(
            ["", ".", "From me", "-- ", "--", " trailing ", "=", "=3D", "\t", "ü" * 600, "--x" * 400]
        ),
    ),
    max_size=12,
).map(lambda lines: "\r\n".join(lines).encode())


@given(TEXTS, st.booleans())
@example(b"a" * 1100 + b"--b", True)
@example(b"--b" * 400, True)
def test_text_is_the_same_afterwards(body: bytes, is_last: bool) -> None:
    assume(not any(line.rstrip(b" \t") in (b"--b", b"--b--") for line in body.split(b"\r\n")))
    message = letter(leaf(body + b"\r\n") if is_last else multipart(leaf(body), leaf(b"plain")))
    after = made(message)
    assert is_fit(after)
    assert content(after) == content(message)
    assert by_the_library(after) == by_the_library(message)
    assert edits(after) == [] or is_fit(message)


@given(
    st.binary(max_size=3000).map(lambda octets: octets.translate(None, b"\r\n\0")),
    st.sampled_from([b"8bit", b"7bit", b"binary", b"quoted-printable", b"base64", b"", b"8-bit"]),
    st.sampled_from(
        [b"text/plain", b"text/html; charset=iso-8859-1", b"application/octet-stream", b"image/png"]
    ),
)
@example(b"a=\r\n--b=\r\n\r\n\xff", b"quoted-printable", b"text/plain")
@example(b"--b=\r\n\r\n\xff", b"quoted-printable", b"text/plain")
def test_any_octets_decode_to_the_same(body: bytes, encoding: bytes, kind: bytes) -> None:
    message = letter(multipart(leaf(body, kind, encoding), leaf(b"plain")))
    assume(len(scan(message).parts) == 2)
    after = made(message)
    assert is_fit(after)
    assert content(after) == content(message)


@given(st.binary(max_size=2500))
@example(b"Content-Type: multipart/mixed; boundary=a\r\n\r\n--a\r\n\r\n\xff\r\n--a--")
def test_whatever_comes_is_made_fit_left_or_refused(octets: bytes) -> None:
    octets = octets.replace(b"\r", b"").replace(b"\n", b"\r\n").replace(b"\0", b"")
    for message in (octets, letter(leaf(octets)), letter(multipart(octets))):
        try:
            after = made(message)
        except Unencodable as reason:
            assert "998" in str(reason)
            continue
        assert all(len(line) <= 998 for line in after.split(b"\r\n"))
        assert b"\n" not in after.replace(b"\r\n", b"")
        assert len(list(scan(after).walk())) == len(list(scan(message).walk()))
        if after.isascii():
            assert made(after) == after


WORDS = [
    b"--b", b"--c", b"--b--", b"--c--", b"\r\n", b"\r\n\r\n", b"--", b"-", b" ", b"\t", b".", b"=", b"=3D",
    b"=\r\n", b"=C3", b"==", b"QUJD", b"\xff", b"\xc3\xa4", b"x" * 400, b"x" * 999, b"a b " * 300,
    b"MIME-Version: 1.0",
    b"Content-Type: multipart/mixed; boundary=b", b"Content-Type: multipart/signed; boundary=c",
    b"Content-Type: multipart/digest; boundary=b", b"Content-Type: message/rfc822",
    b"Content-Type: text/html", b"Content-Transfer-Encoding: 8bit", b"Subject: \xfc",
    b"content-transfer-encoding:\r\n base64",
    b"Content-Transfer-Encoding: quoted-printable", b"Content-Transfer-Encoding: x-unknown",
]  # fmt: skip


@settings(max_examples=500)
@given(st.lists(st.sampled_from(WORDS), max_size=40).map(b"".join))
def test_what_looks_like_mime_keeps_its_parts_and_what_they_mean(octets: bytes) -> None:
    for message in (octets, letter(multipart(octets))):
        try:
            after = made(message)
        except Unencodable:
            continue
        assert content(after) == content(message)
        assert not after.isascii() or edits(after) == []


@pytest.mark.parametrize(
    ("body", "kind", "encoding", "found"),
    [
        (UMLAUT, b"text/plain; charset=utf-8", b"8bit", b"quoted-printable"),
        (LONG + b"\r\n", b"text/html", b"7bit", b"quoted-printable"),
        ("Война и мир\r\n".encode() * 20, b"text/plain; charset=utf-8", b"8bit", b"base64"),
        (b"\xff\xd8" * 40, b"image/jpeg", b"binary", b"base64"),
        (b"a" * 76 * 40, b"image/jpeg", b"base64", b"base64"),
        (UMLAUT, b"text/plain", b"quoted-printable", b"quoted-printable"),
        (b"a=0Db\xfc" + b"=0D" * 999, b"text/plain", b"quoted-printable", b"base64"),
        (UMLAUT * 20_000, b"text/plain", b"8bit", b"base64"),
        (UMLAUT * 20_000, b"text/plain", b"quoted-printable", b"base64"),
        (b"\xff" * (2 * STEP_OCTETS + 1), b"application/zip", b"8bit", b"base64"),
        (b"QUJD\r\n" + b"QUJD" * STEP_OCTETS + b"\r\nQQ==", b"application/zip", b"base64", b"base64"),
    ],
)
def test_encoding_follows_what_the_part_holds(
    body: bytes, kind: bytes, encoding: bytes, found: bytes
) -> None:
    for message in (letter(leaf(body, kind, encoding)), letter(multipart(leaf(body, kind, encoding)))):
        after = made(message)
        assert is_fit(after)
        assert encodings(after) == [found]
        assert content(after) == content(message)
        assert max(map(len, after.split(b"\r\n"))) <= 78
    assert len(UMLAUT * 20_000) > TEXT_OCTETS


def test_labels_of_the_whole_follow() -> None:
    after = made(letter(multipart(leaf(UMLAUT), leaf(b"x", encoding=b"7bit"))))
    assert b"8bit" not in after
    assert after.count(b"Content-Transfer-Encoding: 7bit\r\n") == 2


@pytest.mark.parametrize(
    ("body", "charset"), [(UMLAUT, "utf-8"), (b"\xfc\r\n", "unknown-8bit"), (LONG, "us-ascii")]
)
def test_a_message_that_is_not_mime_becomes_mime(body: bytes, charset: str) -> None:
    after = made(b"From: a@b.example\r\n\r\n" + body)
    read = email.message_from_bytes(after)
    assert read["MIME-Version"] == "1.0"
    assert read.get_content_charset() == charset
    assert read.get_payload(decode=True) == body
    assert after.startswith(b"From: a@b.example\r\n")


@pytest.mark.parametrize("message", [b"\r\n" + UMLAUT, UMLAUT, LONG, b"", b"\r\n", b"a: b", b"\xff: " + LONG])
def test_odd_messages_come_through_or_are_refused(message: bytes) -> None:
    try:
        after = made(message)
    except Unencodable:
        assert LONG in message
    else:
        assert content(after)[0][1] == content(message)[0][1]


CLOSED = [
    multipart(leaf(b"%b"), leaf(b"sig", b"application/pgp-signature"), kind=SIGNED),
    multipart(leaf(b"v", b"application/pgp-encrypted"), leaf(b"%b"), kind=b"multipart/encrypted"),
    leaf(b"Subject: inner\r\n\r\n%b", b"message/rfc822"),
    leaf(b"Subject: inner\r\n\r\n%b", b"message/partial; id=1; number=1"),
    leaf(b"%b", encoding=b"x-uuencode"),
    multipart(leaf(b"x"), before=b"%b\r\n"),
    multipart(leaf(b"x"), after=b"%b\r\n"),
    leaf(b"%b", b"multipart/mixed"),
]


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize("is_inside", [False, True])
def test_what_counts_by_its_octets_stays_or_is_refused(closed: bytes, is_inside: bool) -> None:
    def message(body: bytes) -> bytes:
        entity = closed.replace(b"%b", body)
        return letter(
            multipart(entity.replace(b"--b", b"--c").replace(b'"b"', b'"c"')) if is_inside else entity
        )

    # 8-bit octets need 8BITMIME anyway: all others' stay, and only what is too long is changed.
    wide = message(UMLAUT)
    assert made(wide) == wide
    with pytest.raises(Unencodable, match="longer than 998"):
        made(message(LONG))


def test_beside_what_stays_only_long_lines_are_encoded() -> None:
    signed = multipart(leaf(UMLAUT), kind=SIGNED).replace(b"--b", b"--c").replace(b'"b"', b'"c"')
    message = letter(multipart(signed, leaf(UMLAUT), leaf(LONG)))
    after = made(message)
    assert signed in after and leaf(UMLAUT) in after
    assert LONG not in after
    assert content(after) == content(message)


def test_a_header_beyond_ascii_leaves_the_rest_as_it_is() -> None:
    message = "Subject: Grüße\r\n".encode() + letter(leaf(UMLAUT))
    assert made(message) == message


@pytest.mark.parametrize(
    "line",
    [
        b"References: " + b" ".join(b"<%d@b.example>" % number for number in range(200)),
        b"Subject: " + b"word " * 300 + b"end",
        b"Subject: " + b"w" * 900 + b" " + b"v" * 900,
        b"X-A:\t" + b"\t".join([b"w" * 500] * 5),
        b"X-A: a" + b" " * 50 + b"b" * 900,
    ],
)
def test_long_lines_of_a_header_are_folded(line: bytes) -> None:
    message = line + b"\r\n" + letter(leaf(b"x\r\n", encoding=b"7bit"))
    after = made(message)
    assert is_fit(after)
    before, folded = fields(message[: split(message)]), fields(after[: split(after)])
    assert [(one.name, one.value) for one in folded] == [(one.name, one.value) for one in before]
    assert [unfold(one.raw) for one in folded] == [unfold(one.raw) for one in before]
    # No line of white space alone.
    assert all(one.strip() for one in after[: split(after) - 2].split(b"\r\n")[:-1])
    assert after[split(after) :] == message[split(message) :]
    # What a signature covers in relaxed form does not change by it.
    assert [relaxed_value(one.raw.partition(b":")[2]) for one in folded] == [
        relaxed_value(one.raw.partition(b":")[2]) for one in before
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"Subject: " + b"w" * 1000,
        b'To: "x" <a@b.example>,' + b"a@b.example," * 100,
        b"X-A: a" + b" " * 1200,
        b"w" * 2000,
    ],
)
def test_a_header_line_without_a_place_to_fold_is_refused(line: bytes) -> None:
    with pytest.raises(Unencodable, match="no place"):
        made(letter(b"").removesuffix(b"\r\n") + b"\r\n" + line + b"\r\n\r\nx\r\n")


def test_what_would_pass_for_a_delimiter_is_not_made_by_folding() -> None:
    with pytest.raises(Unencodable, match="no place"):
        made(letter(multipart(b"X: y\r\n--b-- " + b"word " * 300 + b"\r\n\r\nx")))


@pytest.mark.parametrize("name", [b"To", b"cc", b"Resent-To", b"Reply-To "])
def test_a_crowded_list_of_addresses_is_folded_behind_its_commas(name: bytes) -> None:
    addresses = [b"a%d@b.example" % number for number in range(200)]
    message = name + b": " + b",".join(addresses) + b"\r\n" + letter(leaf(b"x\r\n", encoding=b"7bit"))
    after = made(message)
    assert is_fit(after)
    [field] = [one for one in fields(after[: split(after)]) if one.name == name.strip()]
    assert [one.strip() for one in field.value.split(b",")] == addresses


def test_a_huge_header_line_takes_linear_time() -> None:
    made(letter(b"X-A: " + b"w " * 2_000_000 + b"w\r\n\r\nx\r\n"))


@pytest.mark.parametrize("octets", [998, 999])
@pytest.mark.parametrize("end", [b"", b"\r\n", b"\r\nmore\r\n"])
@pytest.mark.parametrize("before", [b"a: b\r\n\r\n", b"a: b\r\n\r\n" + b"y\r\n" * 600])
def test_the_limit_counts_octets_before_the_line_end(octets: int, end: bytes, before: bytes) -> None:
    assert is_fit(before + b"x" * octets + end) is (octets == 998)


@given(st.lists(st.integers(0, 1200), max_size=12), st.booleans())
def test_long_lines_are_found_wherever_they_are(lengths: list[int], is_ended: bool) -> None:
    message = b"\r\n".join(b"x" * length for length in lengths) + (b"\r\n" if is_ended else b"")
    assert is_fit(message) is all(length <= 998 for length in lengths)


def test_files_are_read_as_octets_are(tmp_path: Path) -> None:
    message = letter(multipart(leaf(UMLAUT * 10_000), leaf(b"\xff" * 900_000, b"image/png"), leaf(LONG)))
    path = tmp_path / "message"
    path.write_bytes(message)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert not is_fit(mapped)
        assert b"".join(edited(mapped, edits(mapped))) == made(message)
