"""utf7, sequence sets, line ends: the small pure modules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.imap import sequence, utf7
from server.imap.line_ends import LineEnds, NulFound
from server.imap.sequence import SequenceSet, SequenceSyntax


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        ("Entwürfe", b"Entw&APw-rfe"),
        ("~peter/mail/台北/日本語", b"~peter/mail/&U,BTFw-/&ZeVnLIqe-"),  # RFC 3501 5.1.3
        ("A&B", b"A&-B"),
        ("&", b"&-"),
        ("😀", b"&2D3eAA-"),
        ("plain", b"plain"),
    ],
)
def test_names_in_modified_utf7(text, wire):
    assert utf7.encode(text) == wire
    assert utf7.decode(wire) == text


@given(st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"))))
def test_every_name_survives_the_wire(text):
    assert utf7.decode(utf7.encode(text)) == text


@pytest.mark.parametrize(
    "wire",
    [
        b"a&b", b"&", b"&AGE-", b"&APw", b"&AP-", b"&APw=-", b"&/////-", b"\xc3\xbc", b"a\x01b", b"&AAA-",
        b"&2D0-", b"&U,BTFw-&ZeVnLIqe-", b"&ICg-x",
    ],
)  # fmt: skip
def test_what_is_not_canonical_is_refused(wire):
    with pytest.raises(utf7.NameSyntax):
        utf7.decode(wire)


@given(st.binary(max_size=60))
def test_decoding_any_octets_gives_the_name_or_a_refusal(wire):
    try:
        text = utf7.decode(wire)
    except utf7.NameSyntax:
        return
    assert utf7.encode(text) == wire


@pytest.mark.parametrize(
    ("text", "largest", "ranges"),
    [
        (b"1", 5, [(1, 1)]),
        (b"2:4", 5, [(2, 4)]),
        (b"4:2", 5, [(2, 4)]),
        (b"1:*", 4_294_967_295, [(1, 4_294_967_295)]),
        (b"*", 7, [(7, 7)]),
        (b"*:3", 7, [(3, 7)]),
        (b"9:*", 7, [(7, 9)]),
        (b"1,2,3,7,5:6", 9, [(1, 3), (5, 7)]),
        (b"4:4294967295,1", 9, [(1, 1), (4, 4_294_967_295)]),
        (b"*", 0, []),
    ],
)
def test_sequence_sets_resolve_to_merged_ranges(text, largest, ranges):
    assert sequence.parse(text).resolve(largest) == ranges


@pytest.mark.parametrize(
    "text", [b"", b"0", b"1,", b",1", b"1:", b":1", b"1:2:3", b"01", b"4294967296", b"a", b"1 2", b"**"]
)
def test_malformed_sequence_set_is_refused(text):
    with pytest.raises(SequenceSyntax):
        sequence.parse(text)


def test_dollar_is_the_saved_result():
    assert sequence.parse(b"$") == SequenceSet((), saved=True)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=6),
    st.sets(st.integers(1, 60)),
)
def test_uids_of_a_set_are_those_that_a_filter_finds(ranges, uids):
    named = SequenceSet(tuple(ranges))
    ordered = sorted(uids)
    found = [
        uid for start, end in sequence.indexes(named, ordered, len(ordered)) for uid in ordered[start:end]
    ]
    assert found == [uid for uid in ordered if any(min(r) <= uid <= max(r) for r in ranges)]


@given(st.lists(st.integers(1, 50), unique=True))
def test_compact_keeps_the_numbers_and_their_order(numbers):
    text = sequence.compact(numbers)
    spelled: list[int] = []
    for part in text.split(b",") if text else []:
        low, _, high = part.partition(b":")
        spelled.extend(range(int(low), int(high or low) + 1))
    assert spelled == numbers


@pytest.mark.parametrize(
    ("text", "count", "beyond"),
    [(b"1", 0, True), (b"1:*", 0, False), (b"3", 2, True), (b"*:5", 3, True), (b"2", 2, False)],
)
def test_message_numbers_beyond_the_mailbox_are_noticed(text, count, beyond):
    assert sequence.parse(text).names_beyond(count) is beyond


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"a", b"bc"]), max_size=20), st.integers(1, 5))
def test_line_ends_are_crlf_however_the_message_is_cut(pieces, size):
    message = b"".join(pieces)
    ends = LineEnds()
    out = b"".join(ends.feed(message[start : start + size]) for start in range(0, len(message), size))
    assert out == LineEnds().feed(message)
    assert out.count(b"\n") == out.count(b"\r\n")
    assert out.replace(b"\r\n", b"\n") == message.replace(b"\r\n", b"\n")


def test_nul_is_refused_in_a_message():
    with pytest.raises(NulFound):
        LineEnds().feed(b"a\0b")
