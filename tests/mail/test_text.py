import pytest

from server.mail.html import html_to_text
from server.mail.structure import scan
from server.mail.text import (
    MAX_TEXT_CHARACTERS,
    extract,
    find_body,
    part_octets,
    part_source,
    preview,
)


def text_of(message):
    return extract(scan(message), message)


def preview_of(message):
    return preview(scan(message), message)


def alternative(plain, html):
    return (
        b"Content-Type: multipart/alternative; boundary=b\r\n\r\n"
        b"--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n" + plain + b"\r\n"
        b"--b\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + html + b"\r\n--b--\r\n"
    )


@pytest.mark.parametrize(
    ("header", "body", "text"),
    [
        (b"", b"plain", "plain"),
        (b"Content-Type: text/plain; charset=iso-8859-1\r\n", b"caf\xe9", "café"),
        (b"Content-Transfer-Encoding: Quoted-Printable\r\n", b"caf=C3=A9=\r\n s=", "café s"),
        (b"Content-Transfer-Encoding: base64\r\n", b"Y2Fm\r\nw6k=", "café"),
        (b"Content-Transfer-Encoding: base64\r\n", b"Y2Fm!w6k", "café"),
        (b"Content-Transfer-Encoding: x-unknown\r\n", b"as it is", "as it is"),
        (b"Content-Type: text/plain; charset=no-such\r\n", b"caf\xc3\xa9", "café"),
        (b"Content-Type: text/html\r\n", b"<p>a &amp; b<br>c</p><style>x{}</style>", "a & b\nc"),
        (b"Content-Type: text/calendar\r\n", b"SUMMARY:x", "SUMMARY:x"),
    ],
)
def test_text_parts_are_decoded(header, body, text):
    assert text_of(header + b"\r\n" + body).endswith("\n" + text)


def test_headers_are_decoded_into_the_search_text():
    found = text_of(b"Subject: =?utf-8?q?caf=C3=A9?=\r\n folded\r\nX-Any: y\r\n\r\nbody")
    assert found == "Subject: café folded\nX-Any: y\nbody"
    assert text_of(b"Subject: a\r\n b\r\nTo: c\r\n\r\nbody").startswith("Subject: a b\nTo: c\n")


def test_embedded_messages_are_searched_with_their_headers():
    message = b"Content-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\ninside"
    assert "Subject: inner\ninside" in text_of(message)


def test_attached_files_that_are_no_text_are_left_out():
    message = b"Content-Type: application/pdf\r\n\r\nsecret-octets"
    assert "secret" not in text_of(message)


def test_search_text_is_bounded():
    assert len(text_of(b"Subject: x\r\n\r\n" + b"word " * 1_000_000)) == MAX_TEXT_CHARACTERS
    assert len(text_of(b"X: " + b"y" * 1_000_000 + b"\r\n\r\n")) < 100_000


def test_text_holds_no_nul():
    assert "\x00" not in text_of(b"Subject: a\x00b\r\nX: =?utf-8?b?AAAA?=\r\n\r\nc\x00d")


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (b"\r\none\r\n\r\n  two\tthree\r\n", "one two three"),
        (b"\r\n> quoted\r\nanswer\r\n-- \r\nsignature", "answer"),
        (b"\r\n> only\r\n> quoted", "> only > quoted"),
        (alternative(b"plain", b"<p>html"), "plain"),
        (alternative(b" \r\n", b"<p>html</p>"), "html"),
        (b"Content-Type: text/html\r\n\r\n<title>t</title><p>seen&zwnj;&nbsp;x", "seen x"),
        (b"Content-Type: image/png\r\n\r\nx", ""),
        (b"Content-Type: text/plain\r\nContent-Disposition: attachment\r\n\r\nx", ""),
        (b"", ""),
    ],
)
def test_preview_is_the_authors_first_words(message, line):
    assert preview_of(message) == line


def test_preview_is_cut_between_words():
    found = preview_of(b"\r\n" + b"words and " * 100)
    assert 190 < len(found) <= 200
    assert found.split()[-1] in ("words", "and")
    assert preview_of(b"\r\n" + b"x" * 1000) == "x" * 200


def test_attachments_are_told_from_the_text():
    message = (
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
        b"--b\r\nContent-Type: text/plain; name=a.txt\r\n\r\nx\r\n"
        b"--b\r\nContent-Disposition: attachment\r\n\r\nx\r\n--b\r\nContent-Type: text/html\r\n"
        b"Content-Disposition: inline; filename=b.html\r\n\r\nshown\r\n--b\r\nContent-Type: image/png\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\niVBO\r\n--b--\r\n"
    )
    root = scan(message)
    assert [part.is_attachment for part in root.parts] == [True, True, False, True]
    assert find_body(root, "text/plain") is None
    html = find_body(root, "text/html")
    assert html is not None
    assert part_source(html, message) == "shown"
    assert part_octets(root.parts[3], message) == b"\x89PN"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("a<b>c</b>d", "acd"),
        ("<p>a</p><p>b</p>", "a\nb"),
        ("<td>a</td><td>b</td>", "a b"),
        ("a  \n b", "a b"),
        ("a < b & c", "a < b & c"),
        ("&lt;tag&gt; &#233; &#x41;", "<tag> é A"),
        ("&#99999999999999999999;", "\ufffd"),
        ("&#" + "9" * 10_000 + ";x", "\ufffdx"),
        ("a<!-- <p>b -->c", "ac"),
        ("a<!-- never closed", "a"),
        ("<script>var a = '<p>';</script>b", "b"),
        ("<STYLE>x</STYLE >b", "b"),
        ("<style>never closed", ""),
        ("<!DOCTYPE html><?xml?>a", "a"),
        ("a<b", "a"),
        ("a\x00b", "a b"),
        ("İ<style>İ</style>x", "İx"),
    ],
)
def test_html_becomes_what_a_reader_sees(source, text):
    assert html_to_text(source) == text


@pytest.mark.parametrize(
    "octets",
    ["<", "<a", "<!--", "<style>", "&#9", "&amp", "</", "<script></script>", "&", "<p>", "<style></style "],
)
def test_a_megabyte_of_markup_is_read(octets):
    source = octets * (1_000_000 // len(octets))
    assert len(html_to_text(source)) <= len(source)
