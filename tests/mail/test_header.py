import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.mail import header
from server.mail.header import (
    MAX_FIELDS,
    Header,
    decode,
    decode_base64,
    encode,
    encode_phrase,
    fields,
    fold,
    split,
    unfold,
)

HEADER = b"From: a@b\r\nSubject : x\r\n y\r\nnot a field\r\nX-Y:\r\n\tz\r\nfrom: c@d\r\nTo:\r\n\r\n"


@pytest.mark.parametrize(
    ("message", "octets"),
    [
        (b"", 0),
        (b"A: b", 4),
        (b"A: b\r\n", 6),
        (b"A: b\r\n\r\nbody", 8),
        (b"A: b\n\nbody", 6),
        (b"A: b\n\r\nbody", 7),
        (b"A: b\r\n\n\r\n\r\n", 7),
        (b"\r\nbody", 2),
        (b"\nbody", 1),
        (b"A: b\r\n\r\n\n\n", 8),
        (b"A: b\r\n \r\nC: d\r\n\r\n", 17),
    ],
)
def test_the_header_ends_with_the_first_blank_line(message, octets):
    assert split(message) == octets


def test_fields_are_unfolded_and_lines_that_are_none_left_out():
    assert [(f.name, f.value) for f in fields(HEADER)] == [
        (b"From", b"a@b"),
        (b"Subject", b"x y"),
        (b"X-Y", b"z"),
        (b"from", b"c@d"),
        (b"To", b""),
    ]


def test_raw_fields_keep_every_octet():
    assert [f.raw for f in fields(HEADER)][1:3] == [b"Subject : x\r\n y\r\n", b"X-Y:\r\n\tz\r\n"]


@pytest.mark.parametrize("padding", [80, 81])
def test_padded_names_are_fields_or_not_for_all_readers(padding):
    octets = b"A" + b" " * padding + b": x\r\n"
    assert len(fields(octets)) == len(Header(octets).all(b"a")) == (padding == 80)


def test_number_of_fields_is_bounded():
    assert len(fields(b"a: b\n" * (MAX_FIELDS + 5))) == MAX_FIELDS


def test_header_finds_fields_by_name_in_any_case():
    header = Header(HEADER)
    assert header.first(b"subject") == b"x y"
    assert header.all(b"from") == [b"a@b", b"c@d"]
    assert header.first(b"to") == b""
    assert header.first(b"x") is None
    assert header.all(b"not a field") == []


@given(
    st.lists(st.sampled_from([b"A: x", b"AB: y", b" z", b"a :w", b"junk", b"B:", b"\t", b":"]), max_size=12)
)
def test_header_and_fields_agree(lines):
    octets = b"\r\n".join(lines)
    found = fields(octets)
    for name in (b"a", b"ab", b"b"):
        assert Header(octets).all(name) == [f.value for f in found if f.name.lower() == name]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"plain", "plain"),
        (b"=?utf-8?q?caf=C3=A9_x?=", "café x"),
        (b"=?UTF-8?B?w6k=?= =?utf-8?q?=C3=A9?=", "éé"),
        (b"=?utf-8?q?=C3?= =?utf-8?q?=A9?=", "é"),
        (b"=?utf-8?q?a?= b =?utf-8?q?c?=", "a b c"),
        (b"a =?iso-8859-1?Q?=E9?=b", "a éb"),
        (b"=?iso-8859-1?q?=80?=", "€"),
        (b"=?utf-8*de?q?x?=", "x"),
        (b"=?no-such?q?=C3=A9?=", "é"),
        (b"=?utf-8?b?w6k?=", "é"),
        (b"=?utf-8?b?!!?=", ""),
        (b"=?utf-8?x?a?=", "=?utf-8?x?a?="),
        (b"=?utf-8?q?open", "=?utf-8?q?open"),
        (b"=?utf-8?q?=0D=0AEvil:_x=00?=", "  Evil: x\ufffd"),
        (b"caf\xc3\xa9", "café"),
        (b"caf\xe9", "café"),
        (b"a\tb", "a b"),
        (b"=?iso-2022-jp?B?GyRCJDMbKEI=?=", "こ"),
        (b"=?gb2312?B?xOO6ww==?=", "你好"),
    ],
)
def test_decode_gives_text_for_anything(value, text):
    assert decode(value) == text


@given(st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=200))
def test_encoded_text_decodes_to_itself(text):
    coded = encode(text)
    assert coded.isascii()
    if not text.isascii() or "=?" in text:
        assert decode(coded) == text
        assert all(len(word) <= 75 for word in coded.split(b" "))
    assert decode(unfold(fold("Subject", coded).partition(b":")[2])).split() == text.split()


@pytest.mark.parametrize("text", ["a\rb", "a\nb", "a\x00b", "a\x1bb", "a\x85b", "a\x7f"])
@pytest.mark.parametrize("write", [encode, encode_phrase])
def test_control_characters_are_never_written(text, write):
    with pytest.raises(ValueError, match="control"):
        write(text)


@pytest.mark.parametrize("value", [b"a\r\nB: c", b"a\nb", b"a\rb", b"a\x00"])
def test_folding_refuses_what_would_begin_another_field(value):
    with pytest.raises(ValueError, match="control"):
        fold("X", value)


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r", "ä"])
def test_field_names_are_checked(name):
    with pytest.raises(ValueError, match="name"):
        fold(name, b"x")


def test_lines_stay_under_78_where_words_allow_and_under_998_always():
    folded = fold("X", b" ".join([b"word"] * 100))
    assert all(len(line) <= 78 for line in folded.split(b"\r\n"))
    assert unfold(folded[3:]) == b" ".join([b"word"] * 100)
    with pytest.raises(ValueError, match="long"):
        fold("X", b"x" * 999)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Plain Name", b"Plain Name"),
        ("Last, First", b'"Last, First"'),
        ('q"\\', b'"q\\"\\\\"'),
        (" spaced ", b'" spaced "'),
        ("é", b"=?utf-8?b?w6k=?="),
        ("=?x", b"=?utf-8?q?=3D=3Fx?="),
    ],
)
def test_phrases_are_quoted_or_encoded_as_needed(text, written):
    assert encode_phrase(text) == written


@pytest.mark.parametrize(
    ("octets", "decoded"),
    [
        (b"YWJj", b"abc"),
        (b"YWI", b"ab"),
        (b"Y W\r\nJ!j", b"abc"),
        (b"Y", b""),
        (b"YQ==YQ==", b"a"),
        (b"YWJjZA", b"abcd"),
        (b"", b""),
    ],
)
def test_base64_is_read_however_it_is_broken(octets, decoded):
    assert decode_base64(octets) == decoded


_NAMES = (b"From", b"from", b"Content-ID", b"content-", b"To:", b"x", b"\x80", b"\0", b"\x01")
_SIGNS = (b":", b": ", b" ", b" " * 81, b"\t", b"\r\n", b"\r\n ", b"\n", b"\n\n", b"\r")
_PIECES = st.sampled_from(_NAMES + _SIGNS)


@given(st.lists(_PIECES, max_size=16).map(b"".join))
def test_long_and_short_headers_are_read_alike(octets):
    short = Header(octets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(header, "_INDEXED_OCTETS", -1)
        long = Header(octets)
    for name in (b"from", b"to", b"content-id", b"x"):
        assert short.first(name) == long.first(name)
        assert short.all(name) == long.all(name)
    assert short.group(b"content-") == long.group(b"content-")
