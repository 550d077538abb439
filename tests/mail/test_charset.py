import encodings

import pytest

from server.mail.charset import decode_text


@pytest.mark.parametrize(
    ("octets", "charset", "text"),
    [
        (b"caf\xc3\xa9", "utf-8", "café"),
        (b"caf\xc3\xa9", "UTF8", "café"),
        (b"caf\xe9", "iso-8859-1", "café"),
        (b"\x80", "ISO-8859-1", "€"),
        (b"caf\xc3\xa9", "us-ascii", "café"),
        (b"caf\xe9", "us-ascii", "café"),
        (b"caf\xc3\xa9", "", "café"),
        (b"caf\xc3\xa9", "unknown-8bit", "café"),
        (b"caf\xc3", "", "cafÃ"),
        (b"\xc3\xa9\xc3", "", "é\ufffd"),
        (b"\xa4\xb3", "euc-jp", "こ"),
        (b"\x82\xb1", "Shift_JIS", "こ"),
        (b"\xc4\xe3", "gb2312", "你"),
        (b"\xbe\xc8", "ks_c_5601-1987", "안"),
        (b"\xf0", "koi8-r", "П"),
        (b"\xff\xfeA\x00", "utf-16", "A"),
        (b"+AOk-", "utf-7", "é"),
        (b"+2AA-", "utf-7", "\ufffd"),
        (b"a\x00b", "utf-8", "a\ufffdb"),
        (b"\xff", "utf-8", "\ufffd"),
    ],
)
def test_octets_become_text_that_can_be_stored(octets, charset, text):
    assert decode_text(octets, charset) == text


@pytest.mark.parametrize(
    "charset",
    ["unicode_escape", "raw_unicode_escape", "punycode", "idna", "rot13", "hex", "zlib", "a\x00b", "../x"],
)
def test_codecs_that_are_no_charsets_are_out_of_reach(charset):
    assert decode_text(b"\\u0041 xn--bcher-kva", charset) == "\\u0041 xn--bcher-kva"


def test_names_from_strangers_leave_nothing_in_the_codec_registry():
    before = len(encodings._cache)
    for number in range(100):
        decode_text(b"x", f"x-made-up-{number}")
    assert len(encodings._cache) == before
