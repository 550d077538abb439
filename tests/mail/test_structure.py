import mmap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.mail.structure import MAX_DEPTH, MAX_PARTS, scan
from tests.fuzz.targets_mail import check_structure, model, outline

MIXED = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"


def kinds(part):
    return [part.kind, *[kinds(inner) for inner in part.parts]]


def bodies(message):
    return [message[p.body_start : p.body_end] for p in scan(message).walk() if not p.parts]


def test_plain_message_is_one_part():
    message = b"Subject: x\r\n\r\none\r\ntwo\r\n"
    root = scan(message)
    assert (root.header_start, root.body_start, root.body_end, root.lines) == (0, 14, 24, 2)
    assert root.kind == "text/plain"
    assert root.content.media.parameters == ((b"charset", b"us-ascii"),)


@pytest.mark.parametrize("message", [b"", b"\r\n", b"\n", b"x", b"A: b", b"A: b\r\n", b"\r\n\r\n"])
def test_fragments_are_text(message):
    root = scan(message)
    assert (root.kind, root.body_end, root.parts) == ("text/plain", len(message), ())


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_multipart_parts_lie_between_delimiters(end):
    lines = [
        b"Content-Type: multipart/mixed; boundary=b", b"", b"preamble", b"--b", b"Content-Type: text/html",
        b"", b"one", b"two", b"--b", b"", b"three", b"--b--", b"epilogue", b"--b", b"", b"never",
    ]  # fmt: skip
    message = end.join(lines)
    root = scan(message)
    assert kinds(root) == ["multipart/mixed", ["text/html"], ["text/plain"]]
    assert bodies(message) == [b"one" + end + b"two", b"three"]
    assert [part.lines for part in root.parts] == [1, 0]
    assert root.body_end == len(message)


def test_line_end_before_a_delimiter_belongs_to_it():
    assert bodies(MIXED + b"--b\r\n\r\n--b\r\n\r\n\r\n--b\r\n\r\nx\r\n\r\n--b--") == [b"", b"", b"x\r\n"]


@pytest.mark.parametrize("padding", [b"", b" ", b"\t \t"])
def test_white_space_may_follow_a_delimiter(padding):
    assert bodies(MIXED + b"--b" + padding + b"\r\n\r\nx\r\n--b--" + padding) == [b"x"]


@pytest.mark.parametrize(
    "line", [b"--bb", b"--b-", b"--b x", b"-- b", b" --b", b"--B", b"--b--x", b"--b" + b" " * 400 + b"x"]
)
def test_what_only_looks_like_a_delimiter_is_text(line):
    assert bodies(MIXED + b"--b\r\n\r\nx\r\n" + line + b"\r\ny\r\n--b--") == [b"x\r\n" + line + b"\r\ny"]


def test_missing_close_delimiter_ends_with_the_message():
    assert bodies(MIXED + b"--b\r\n\r\nx\r\n") == [b"x\r\n"]


def test_outer_delimiter_ends_inner_multiparts():
    inner = b"Content-Type: multipart/mixed; boundary=i\r\n\r\n--i\r\n\r\nx\r\n"
    message = MIXED + b"--b\r\n" + inner + b"--b\r\n\r\ny\r\n--i\r\n--b--"
    assert kinds(scan(message)) == ["multipart/mixed", ["multipart/mixed", ["text/plain"]], ["text/plain"]]
    assert bodies(message) == [b"x", b"y\r\n--i"]


@pytest.mark.parametrize(
    ("outer", "inner"), [(b"b", b"b-1"), (b"b-1", b"b"), (b"b", b"b--"), (b"b", b"b"), (b"ab", b"a")]
)
def test_boundaries_that_begin_alike_are_told_apart(outer, inner):
    message = (
        b"Content-Type: multipart/mixed; boundary=%b\r\n\r\n--%b\r\n"
        b"Content-Type: multipart/alternative; boundary=%b\r\n\r\n--%b\r\n\r\nx\r\n--%b--\r\n"
        b"--%b\r\n\r\ny\r\n--%b--\r\n"
    ) % (outer, outer, inner, inner, inner, outer, outer)  # fmt: skip
    assert kinds(scan(message)) == [
        "multipart/mixed",
        ["multipart/alternative", ["text/plain"]],
        ["text/plain"],
    ]


def test_embedded_message_is_a_part_of_its_own():
    message = b"Content-Type: message/rfc822\r\n\r\nSubject: in\r\nContent-Type: text/html\r\n\r\nbody\r\n"
    root = scan(message)
    assert root.is_message
    assert root.lines == 4
    (inner,) = root.parts
    assert message[inner.header_start : inner.body_start] == b"Subject: in\r\nContent-Type: text/html\r\n\r\n"
    assert (inner.kind, inner.body_end) == ("text/html", len(message))


def test_digest_holds_messages_where_nothing_else_is_said():
    message = (
        b"Content-Type: multipart/digest; boundary=b\r\n\r\n--b\r\n\r\nSubject: m\r\n\r\nx\r\n"
        b"--b\r\nContent-Type: text/plain\r\n\r\ny\r\n--b--"
    )
    assert kinds(scan(message)) == ["multipart/digest", ["message/rfc822", ["text/plain"]], ["text/plain"]]


@pytest.mark.parametrize(
    "type_",
    [
        b"multipart/mixed",
        b"multipart/mixed; boundary=",
        b'multipart/mixed; boundary=" "',
        b"multipart/mixed; boundary=" + b"x" * 300,
        b"multipart/mixed; boundary=other",
        b"garbage",
        b"text",
        b"/",
        b"",
    ],
)
def test_unusable_types_are_plain_text(type_):
    message = b"Content-Type: " + type_ + b"\r\n\r\n--b\r\n\r\nx\r\n"
    assert kinds(scan(message)) == ["text/plain"]
    assert bodies(message) == [b"--b\r\n\r\nx\r\n"]


@pytest.mark.parametrize(
    "type_",
    [
        b'multipart/mixed; boundary="b"',
        b"multipart/mixed; BOUNDARY=b",
        b'multipart/mixed;\r\n\tboundary="b "',
        b"multipart/mixed (x); (y) boundary = b",
        b"multipart/mixed\r\n boundary=b",
        b"multipart/mixed; boundary*0=; boundary*1=b",
        b"multipart/mixed; boundary*=us-ascii''%62",
        b"MULTIPART/weird; boundary=b; x=y",
    ],
)
def test_boundaries_are_read_in_every_spelling(type_):
    assert bodies(b"Content-Type: " + type_ + b"\r\n\r\n--b\r\n\r\nx\r\n--b--") == [b"x"]


def test_header_without_blank_line_ends_at_the_delimiter():
    message = MIXED + b"--b\r\nContent-Type: text/html\r\n--b\r\n--b\r\n\r\nx\r\n--b--"
    assert kinds(scan(message)) == ["multipart/mixed", ["text/html"], ["text/plain"], ["text/plain"]]
    assert bodies(message) == [b"", b"", b"x"]


def test_multipart_header_may_run_into_its_first_delimiter():
    message = b"Content-Type: multipart/mixed; boundary=b\r\n--b\r\nContent-Type: text/html\r\n\r\nx\r\n--b--"
    assert kinds(scan(message)) == ["multipart/mixed", ["text/html"]]


def test_first_of_repeated_fields_counts():
    assert scan(b"Content-Type: text/html\r\nContent-Type: text/plain\r\n\r\n").kind == "text/html"


def test_content_fields_are_kept_as_written():
    header = (
        b"Content-Type: Text/X-Own; CharSet=\"UTF-8\"; name=a\r\n"
        b"Content-Transfer-Encoding: Quoted-Printable\r\n"
        b"Content-ID: <id@x>\r\nContent-Description: about\r\n it\r\nContent-MD5: Q2hlY2s=\r\n"
        b"Content-Disposition: Attachment; filename*=utf-8''%C3%A9.txt\r\n"
        b"Content-Language: en, de ,\r\nContent-Location: http://x/\r\n\r\n"
    )  # fmt: skip
    content = scan(header).content
    assert (content.media.type, content.media.subtype) == (b"Text", b"X-Own")
    assert content.media.parameters == ((b"CharSet", b"UTF-8"), (b"name", b"a"))
    assert content.encoding == b"Quoted-Printable"
    assert (content.id, content.description, content.md5) == (b"<id@x>", b"about it", b"Q2hlY2s=")
    assert content.disposition == (b"Attachment", ((b"filename*", b"utf-8''%C3%A9.txt"),))
    assert (content.language, content.location) == ((b"en", b"de"), b"http://x/")
    assert (content.charset, content.filename) == ("utf-8", "é.txt")


def test_depth_is_bounded_and_what_is_deeper_is_text():
    nested = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(3000)
    )
    parts = list(scan(nested).walk())
    assert len(parts) == MAX_DEPTH + 1
    assert parts[-1].kind == "text/plain"
    deep = scan(b"Content-Type: message/rfc822\r\n\r\n" * 3000)
    assert list(deep.walk())[-1].kind == "application/octet-stream"


def test_number_of_parts_is_bounded():
    assert len(list(scan(MIXED + b"--b\r\n\r\nx\r\n" * (MAX_PARTS + 500)).walk())) == MAX_PARTS


@pytest.mark.parametrize(
    "octets",
    [
        b"--c\n", b"--b\r\n", b"--b\n\n", b"--b\r\na: b\r\n", b"\n--", b"--", b"\r\n\r\n", b"\n\n",
        b"--b--\n", b"--b\r\nContent-Type: message/rfc822\r\n\r\n",
        b"--b\r\nContent-Type: multipart/x; boundary=b\r\n\r\n",
    ],
)  # fmt: skip
def test_a_megabyte_of_anything_has_a_bounded_structure(octets):
    message = MIXED + octets * (1_000_000 // len(octets))
    root = scan(message)
    assert root.body_end == len(message)
    assert len(list(root.walk())) <= MAX_PARTS


def test_mapped_file_reads_as_bytes_do(tmp_path):
    message = (
        MIXED + b"--b\r\n\r\nx\r\ny\r\n--b\r\nContent-Type: message/rfc822\r\n\r\nA: b\r\n\r\nz\r\n--b--\r\n"
    )
    path = tmp_path / "message"
    path.write_bytes(message)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert scan(mapped) == scan(message)


LINES = st.sampled_from(
    [
        b"--a", b"--a--", b"--ab", b"--ab--", b"--a ", b"--", b"", b"", b"x", b" folded", b"--a-",
        b"Subject: y",
        b"Content-Type: multipart/mixed; boundary=a", b'Content-Type: multipart/digest; boundary="ab"',
        b"Content-Type: multipart/x; boundary=a-", b"Content-Type: message/rfc822",
    ]
)  # fmt: skip
ENDS = st.sampled_from([b"\r\n", b"\n", b"\r\n", b"\n", b"\r", b""])


@settings(max_examples=250, deadline=None)
@given(st.lists(st.tuples(LINES, ENDS), max_size=30))
def test_scanner_finds_what_a_line_by_line_reader_finds(lines):
    message = b"".join(line + end for line, end in lines)
    check_structure(message)


def test_the_line_by_line_reader_would_notice_a_wrong_offset():
    message = MIXED + b"--b\r\n\r\nx\r\n--b--"
    assert outline(scan(message)) == model(message) == (0, 45, 60, ((50, 52, 53, ()),))
