"""Content readers: transparency, the one true end, line ends, limits, any segmentation."""

import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.smtp.data import ChunkReader, ContentLimits, DataReader, LineEnds
from tests.fuzz.targets_smtp import check_data, check_grammar, read_chunks

LIMITS = ContentLimits(octets=10_000)
# Streams dense in what matters: line ends, dots, NUL, header names.
PIECES = [
    b"\r\n",
    b"\r",
    b"\n",
    b".",
    b"\r\n.",
    b"\r\n.\r\n",
    b"\0",
    b"a",
    b"Received: x\r\n",
    b"\r\n\r\n",
    b"x" * 90,
]
STREAMS = st.builds(
    bytes.__add__, st.binary(min_size=2, max_size=2), st.lists(st.sampled_from(PIECES)).map(b"".join)
)


def read(stream: bytes, limits=LIMITS):
    reader = DataReader(limits)
    content = reader.feed(stream)
    return content, reader


@pytest.mark.parametrize(
    ("stream", "content", "rest"),
    [
        (b".\r\n", b"", b""),
        (b".\r\nQUIT\r\n", b"", b"QUIT\r\n"),
        (b"\r\n.\r\n", b"\r\n", b""),
        (b"a\r\n.\r\n", b"a\r\n", b""),
        (b"..\r\n.\r\n", b".\r\n", b""),
        (b".a\r\n.\r\n", b"a\r\n", b""),
        (b"a\r\n..b\r\n.c\r\n.\r\nNOOP", b"a\r\n.b\r\nc\r\n", b"NOOP"),
        (b"..\r\n..\r\n.\r\n", b".\r\n.\r\n", b""),
        (b"a.\r\n.\r\n", b"a.\r\n", b""),
        (b"a\r\n.\r\n.\r\n", b"a\r\n", b".\r\n"),
    ],
)
def test_content_ends_at_a_lone_dot_and_loses_its_stuffing(stream, content, rest):
    found, reader = read(stream)
    assert reader.fault is None
    assert reader.ended
    assert (found, reader.rest) == (content, rest)


@pytest.mark.parametrize(
    "middle",
    [
        b"\n.\n",
        b"\n.\r\n",
        b"\r.\r",
        b"\r.\r\n",
        b"\r\n.\n",
        b"\r\n.\r",
        b"\r\n\0.\r\n",
        b"\r\n.\0\r\n",
        b"\0",
        b"\r\r\n.\r\n",
        b"\n\r.\r\n",
        b"\r\n.\r\r\n",
    ],
)
def test_smuggled_end_ends_nothing_and_is_refused(middle):
    smuggled = b"Subject: a\r\n\r\nb" + middle + b"MAIL FROM:<evil@example.org>\r\n"
    if b"\r\n.\r\n" in smuggled:
        smuggled = smuggled.partition(b"\r\n.\r\n")[0]
        _, reader = read(smuggled + b"\r\n.\r\n")
    else:
        _, reader = read(smuggled)
        assert not reader.ended
        reader.feed(b".\r\n")
    assert reader.ended
    assert reader.rest == b""
    assert (reader.fault.code, reader.fault.enhanced) == (550, "5.5.2")


def test_size_limit_counts_content_without_stuffing():
    limits = ContentLimits(octets=4)
    assert read(b"..a\r\n.\r\n", limits)[1].fault is None
    assert read(b"..ab\r\n.\r\n", limits)[1].fault.code == 552


def test_refused_content_is_not_kept():
    reader = DataReader(ContentLimits(octets=10))
    assert reader.feed(b"a" * 11 + b"\r\n") == b""
    assert reader.feed(b"b\r\n") == b""
    assert not reader.ended
    reader.feed(b".\r\nNOOP\r\n")
    assert reader.ended
    assert reader.rest == b"NOOP\r\n"


def test_received_fields_at_the_limit_are_a_loop():
    limits = ContentLimits(octets=10_000, received=3)
    hops = b"received: a\r\nSubject: x\r\nReceived: b\r\n"
    body = b"\r\nReceived: not a field\r\n.\r\n"
    assert read(hops + body, limits)[1].fault is None
    fault = read(hops + b"RECEIVED:c\r\n" + body, limits)[1].fault
    assert (fault.code, fault.enhanced) == (554, "5.4.6")


def test_header_without_body_is_judged_too():
    limits = ContentLimits(octets=10_000, received=1)
    assert read(b"Received: a\r\n.\r\n", limits)[1].fault.code == 554


def test_long_header_line_is_refused_and_long_body_line_is_not():
    limits = ContentLimits(octets=10_000, header_line_octets=100)
    line = b"x" * 99 + b"\r\n"
    assert read(b"\r\n" + line + b".\r\n", limits)[1].fault is None
    assert read(line + b"\r\n.\r\n", limits)[1].fault.enhanced == "5.6.0"
    assert read(b"x" * 98 + b"\r\n\r\n.\r\n", limits)[1].fault is None


@pytest.mark.parametrize("cut", [1, 50, 1000])
def test_header_without_end_is_bounded(cut):
    limits = ContentLimits(octets=10_000, header_octets=300)
    reader = DataReader(limits)
    stream = b"Subject: x\r\n" * 50
    for at in range(0, len(stream), cut):
        reader.feed(stream[at : at + cut])
    assert (reader.fault.code, reader.fault.enhanced) == (552, "5.3.4")


@pytest.mark.parametrize("block", [4096, 1 << 21])
def test_header_up_to_a_mebi_is_taken_and_little_of_it_is_kept(block):
    for octets, code in ((1_000_000, None), (1_048_600, 552)):
        reader = DataReader(ContentLimits(octets=2 << 20))
        stream = (b"X: " + b"y" * 95 + b"\r\n") * (octets // 100) + b"\r\nbody\r\n.\r\n"
        for at in range(0, len(stream), block):
            reader.feed(stream[at : at + block])
            assert len(reader.inspection._line or b"") <= 200
        assert reader.ended
        assert (reader.fault and reader.fault.code) == code


def test_fifty_hops_are_a_loop():
    for hops, code in ((49, None), (50, 554)):
        _, reader = read(b"Received: a\r\n" * hops + b"\r\n.\r\n")
        assert (reader.fault and reader.fault.code) == code


def test_every_two_way_split_reads_the_same():
    stream = b"A: b\r\n\r\n..dot\r\n.\rx\r\n\r\n.\r\nNOOP\r\n"
    good = b"A: b\r\n\r\n..dot\r\n.x\r\n\r\n.\r\nNOOP\r\n"
    for whole in (stream, good):
        expected, reference = read(whole)
        for at in range(len(whole)):
            reader = DataReader(LIMITS)
            content = reader.feed(whole[:at])
            if reader.ended:
                assert reader.rest + whole[at:] == reference.rest
            else:
                content += reader.feed(whole[at:])
                assert reader.rest == reference.rest
            assert reader.ended
            assert (reader.fault is None) == (reference.fault is None)
            if reader.fault is None:
                assert content == expected


@given(STREAMS)
@example(b"\0\0\r\n.\r\n")
@example(b"\0\0a\r\n.\r")
@example(b"\x00\x00.\r.\r\n")
def test_any_segmentation_reads_like_an_octet_machine(octets):
    check_data(octets)


@given(st.binary(max_size=300))
def test_any_octets_keep_the_invariant(octets):
    check_data(octets)


VERBS = [
    b"MAIL FROM:",
    b"RCPT TO:",
    b"EHLO ",
    b"BDAT ",
    b"AUTH ",
    b"<",
    b">",
    b"@",
    b"a.example",
    b"[IPv6:",
    b"]",
]
WORDS = [
    b'"',
    b"\\",
    b" ",
    b"SMTPUTF8",
    b"ORCPT=",
    b"utf-8;",
    b"rfc822;",
    b"NOTIFY=",
    b"\xc3\xa4",
    b"\r",
    b"\0",
    b"1",
]


@given(st.lists(st.sampled_from(VERBS + WORDS)).map(b"".join))
def test_any_line_keeps_the_invariant(line):
    check_grammar(line)


# BDAT


def chunks(*parts: bytes, limits=LIMITS):
    reader = ChunkReader(limits)
    content = b""
    for index, part in enumerate(parts):
        content += reader.open(len(part), last=index == len(parts) - 1)
        if part:
            content += reader.feed(part)
    return content, reader


def test_chunks_join_across_a_split_line_end():
    content, reader = chunks(b"a\r", b"\nb\r\n", b"")
    assert (content, reader.fault, reader.ended) == (b"a\r\nb\r\n", None, True)


def test_chunk_dots_are_content():
    assert chunks(b".\r\n..\r\n")[0] == b".\r\n..\r\n"


def test_chunk_gives_back_what_lies_behind_it():
    reader = ChunkReader(LIMITS)
    reader.open(3, last=False)
    assert reader.feed(b"a\r\nNOOP\r\n") == b"a\r\n"
    assert reader.complete
    assert reader.rest == b"NOOP\r\n"


def test_last_chunk_inside_a_line_is_completed():
    assert chunks(b"a", b"b")[0] == b"ab\r\n"
    assert chunks(b"a\r\n", b"")[0] == b"a\r\n"
    assert chunks(b"")[0] == b""


@pytest.mark.parametrize(
    "parts", [(b"a\r",), (b"a\r", b""), (b"a\r", b"b"), (b"\n",), (b"a\0",), (b"a\n", b"b\r\n")]
)
def test_chunks_with_bare_line_ends_are_refused(parts):
    content, reader = chunks(*parts)
    assert content == b"" or parts[0][-1:] == b"\r"
    assert (reader.fault.code, reader.fault.enhanced) == (550, "5.5.2")


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_nul_behind_the_last_line_is_mended_away_however_it_comes(cut):
    stream = b"\r\na\r\n\0\0"
    parts = [stream[at : at + cut] for at in range(0, len(stream), cut)]
    assert read_chunks(parts, 3, LineEnds.MENDED) == (b"\r\na\r\n", False)


def test_reading_costs_no_more_than_linear_in_tiny_segments():
    # 60,000 segments of one octet: a quadratic reader would copy gigabytes. Counted, not timed.
    reader = DataReader(ContentLimits(octets=100_000, header_octets=100_000, header_line_octets=100_000))
    copied = 0
    stream = b"Subject: x\r\n" * 5000
    for at in range(len(stream)):
        reader.feed(stream[at : at + 1])
        copied += sys.getsizeof(reader._held)
    assert reader.fault is None
    assert copied < 40 * len(stream)
