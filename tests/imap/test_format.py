import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.imap import format as wire
from server.imap import section
from server.imap.commands import Section, SectionText
from server.imap.hierarchy import matchers, rows
from server.imap.render import render
from server.imap.scanner import Scanner
from server.mail.structure import scan
from storage.records import Flag, Folder


@given(st.binary(max_size=60))
def test_any_value_survives_as_a_string_but_for_nul(value):
    scanner = Scanner(wire.string(value))
    expected = value.replace(b"\0", b"") if b"\0" in value else value
    assert scanner.string("a string") == expected
    assert scanner.ended


def test_long_and_odd_values_become_literals():
    assert wire.string(b"x" * 2000).startswith(b"{2000}\r\n")
    assert wire.string("ä".encode()) == b"{2}\r\n\xc3\xa4"
    assert wire.string(b'a"b\\') == b'"a\\"b\\\\"'
    assert wire.nstring(None) == b"NIL"
    assert wire.astring(b"NIL") == b'"NIL"'
    assert wire.mailbox("a b") == b'"a b"'


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (0, b'" 1-Jan-1970 00:00:00 +0000"'),
        (837_596_665_999_999, b'"17-Jul-1996 09:44:25 +0000"'),
        (-1, b'"31-Dec-1969 23:59:59 +0000"'),
        (10**30, b'"31-Dec-9999 23:59:59 +0000"'),
        (-(10**30), b'" 1-Jan-0001 00:00:00 +0000"'),
    ],
)
def test_internal_dates(micros, text):
    assert wire.date_time(micros) == text


def test_flags_with_keywords_and_recent():
    assert (
        wire.flags(Flag.SEEN | Flag.FORWARDED, ("Work",), recent=True) == b"\\Seen $Forwarded Work \\Recent"
    )
    assert wire.flags(0) == b""


EMBEDDED = (
    b"Subject: inner\r\nContent-Type: multipart/alternative; boundary=y\r\n\r\n--y\r\n\r\ninner one\r\n"
    b"--y\r\nContent-Type: text/html\r\nX-F: 1\r\n\r\n<p>\r\n--y--"
)
MULTIPART = (
    b"From: a@b.c\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\npreamble\r\n--x\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: inline\r\n"
    b"Content-Language: de, en\r\n\r\none\r\n"
    b"--x\r\nContent-Type: message/rfc822\r\n\r\n" + EMBEDDED + b"\r\n"
    b'--x\r\nContent-Type: application/pdf; name="a.pdf"\r\nContent-Transfer-Encoding: base64\r\n'
    b'Content-Disposition: attachment; filename="a.pdf"\r\nContent-MD5: abc\r\n\r\nAAAA\r\n--x--\r\n'
)


def test_body_and_bodystructure_of_nested_parts():
    rendered = render(MULTIPART)
    assert rendered.body == (
        b'(("text" "plain" ("charset" "utf-8") NIL NIL "7bit" 3 0)'
        b'("message" "rfc822" NIL NIL NIL "7bit" %d '
        b'(NIL "inner" NIL NIL NIL NIL NIL NIL NIL NIL) '
        b'(("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 9 0)("text" "html" NIL NIL NIL "7bit" 3 0)'
        b' "alternative") %d)'
        b'("application" "pdf" ("name" "a.pdf") NIL NIL "base64" 4) "mixed")'
    ) % (len(EMBEDDED), EMBEDDED.count(b"\n"))
    assert b'3 0 NIL ("inline" NIL) ("de" "en") NIL)' in rendered.bodystructure
    assert (
        b'"base64" 4 "abc" ("attachment" ("filename" "a.pdf")) NIL NIL) "mixed" ("boundary" "x") NIL NIL NIL)'
        in (rendered.bodystructure)
    )
    assert rendered.attachments == 2


def located(path: tuple[int, ...], text: SectionText = SectionText.WHOLE) -> bytes | None:
    prefix = b"Received: here\r\n"
    root = scan(MULTIPART)
    span = section.locate(
        Section(b"", text, path),
        section.pack(root),
        prefix_octets=len(prefix),
        header_octets=root.body_start,
        octets=len(prefix + MULTIPART),
    )
    return None if span is None else (prefix + MULTIPART)[span.start : span.end]


@pytest.mark.parametrize(
    ("path", "text", "octets"),
    [
        ((1,), SectionText.WHOLE, b"one"),
        (
            (1,),
            SectionText.MIME,
            MULTIPART[MULTIPART.index(b"Content-Type: text/plain") : MULTIPART.index(b"one\r\n")],
        ),
        ((1, 1), SectionText.WHOLE, None),
        ((2, 1), SectionText.WHOLE, b"inner one"),
        ((2, 2), SectionText.MIME, b"Content-Type: text/html\r\nX-F: 1\r\n\r\n"),
        (
            (2,),
            SectionText.HEADER,
            b"Subject: inner\r\nContent-Type: multipart/alternative; boundary=y\r\n\r\n",
        ),
        (
            (2,),
            SectionText.TEXT,
            b"--y\r\n\r\ninner one\r\n--y\r\nContent-Type: text/html\r\nX-F: 1\r\n\r\n<p>\r\n--y--",
        ),
        ((1,), SectionText.HEADER, None),
        ((3,), SectionText.WHOLE, b"AAAA"),
        ((4,), SectionText.WHOLE, None),
        ((2, 3), SectionText.WHOLE, None),
        ((), SectionText.WHOLE, b"Received: here\r\n" + MULTIPART),
        ((), SectionText.TEXT, MULTIPART[MULTIPART.index(b"preamble") :]),
    ],
)
def test_sections_are_found_by_their_part_numbers(path, text, octets):
    assert located(path, text) == octets


def test_only_part_of_a_plain_message_is_its_first():
    root = scan(b"Subject: x\r\n\r\nbody")
    for path, found in {(1,): (14, 18), (2,): None, (1, 1): None}.items():
        span = section.locate(
            Section(b"", SectionText.WHOLE, path),
            section.pack(root),
            prefix_octets=0,
            header_octets=14,
            octets=18,
        )
        assert (span and (span.start, span.end)) == found


HEADER = b"To: a\r\nSubject: x\r\n folded\r\nbad line\r\nSUBJECT : second\r\nX-Subject: no\r\n\r\n"


@pytest.mark.parametrize(
    ("text", "fields", "chosen"),
    [
        (SectionText.HEADER_FIELDS, {b"subject"}, b"Subject: x\r\n folded\r\nSUBJECT : second\r\n\r\n"),
        (SectionText.HEADER_FIELDS, {b"x-none"}, b"\r\n"),
        (SectionText.HEADER_FIELDS_NOT, {b"subject"}, b"To: a\r\nX-Subject: no\r\n\r\n"),
    ],
)
def test_header_fields_are_chosen_whole(text, fields, chosen):
    assert section.choose_fields(HEADER, Section(b"", text, fields=frozenset(fields))) == chosen


def test_header_without_blank_line_gets_one():
    chosen = section.choose_fields(
        b"Subject: x", Section(b"", SectionText.HEADER_FIELDS, fields=frozenset({b"subject"}))
    )
    assert chosen == b"Subject: x\r\n\r\n"


@given(st.binary(max_size=300))
def test_any_octets_are_rendered_without_a_line_end_outside_literals(content):
    rendered = render(content)
    for value in (rendered.envelope, rendered.body, rendered.bodystructure):
        assert value.startswith(b"(") and value.endswith(b")")
        assert b"\0" not in value
    assert "\0" not in rendered.text + rendered.preview + rendered.subject


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("*", ["INBOX", "a", "a/b", "a/b/c", "abc"]),
        ("%", ["INBOX", "a", "abc"]),
        ("a/%", ["a/b"]),
        ("a*", ["a", "a/b", "a/b/c", "abc"]),
        ("%/%", ["a/b"]),
        ("*c", ["a/b/c", "abc"]),
        ("*%*b*", ["a/b", "a/b/c", "abc"]),
        ("inbox", ["INBOX"]),
        ("i%", []),
        ("", []),
    ],
)
def test_list_patterns(pattern, matched):
    (test,) = matchers("", (pattern,))
    assert [name for name in ("INBOX", "a", "a/b", "a/b/c", "abc") if test(name)] == matched


def test_pattern_of_many_wildcards_takes_linear_time():
    assert not matchers("", ("*a" * 400 + "b",))[0]("a" * 5000)


def folder(name: str, *, subscribed: bool = False, special_use: str = "") -> Folder:
    return Folder(1, "inb_1", name, special_use, 1, 1, 1, subscribed)


def test_list_shows_parents_that_are_no_mailboxes():
    found = rows([folder("x/y")], matches=matchers("", ("%",)), selection=frozenset(), returns=frozenset())
    assert [(row.name, row.attributes) for row in found] == [
        ("x", ("\\NonExistent", "\\Noselect", "\\HasChildren"))
    ]


def test_special_use_selection_leaves_out_the_rest():
    found = rows(
        [folder("INBOX"), folder("Sent", special_use="\\Sent")],
        matches=matchers("", ("*",)),
        selection=frozenset({"SPECIAL-USE"}),
        returns=frozenset(),
    )
    assert [row.name for row in found] == ["Sent"]
