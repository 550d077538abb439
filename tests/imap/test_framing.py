import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.imap import framing
from server.imap.framing import Announced, Chunk, Command, Continue, Excess, Framing, Limits, Refused, Tail
from tests.fuzz.targets_imap import check_grammar, events_of


def all_events(frames: Framing) -> list[framing.Event]:
    found = []
    while (event := frames.next()) is not None:
        found.append(event)
    return found


def test_commands_end_at_crlf_and_at_bare_lf():
    frames = Framing()
    frames.feed(b"a NOOP\r\nb NOOP\nc NO")
    assert all_events(frames) == [Command(b"a NOOP"), Command(b"b NOOP")]
    frames.feed(b"OP\r\n")
    assert all_events(frames) == [Command(b"c NOOP")]


def test_synchronising_literal_asks_for_a_continuation_and_stays_in_its_command():
    frames = Framing()
    frames.feed(b"a LOGIN {3}\r\n")
    assert all_events(frames) == [Continue()]
    frames.feed(b"ann {2}\r\n")
    assert all_events(frames) == [Continue()]
    frames.feed(b"\r\n\r\n")
    assert all_events(frames) == [Command(b"a LOGIN {3}\r\nann {2}\r\n\r\n")]


def test_literal_may_hold_what_looks_like_a_command():
    frames = Framing()
    frames.feed(b"a LOGIN {9+}\r\nb NOOP\r\n{ x\r\nc NOOP\r\n")
    assert all_events(frames) == [Command(b"a LOGIN {9+}\r\nb NOOP\r\n{ x"), Command(b"c NOOP")]


def test_message_of_append_is_announced_and_streamed():
    frames = Framing()
    frames.feed(b"a APPEND INBOX (\\Seen) {10}\r\n")
    announced = Announced(b"a APPEND INBOX (\\Seen) ", 10, synchronising=True, binary=False)
    assert all_events(frames) == [announced]
    frames.feed(b"01234")
    assert all_events(frames) == []
    frames.accept()
    assert all_events(frames) == [Chunk(b"01234", last=False)]
    frames.feed(b"56789\r\nb NOOP\r\n")
    assert all_events(frames) == [Chunk(b"56789", last=True), Tail(b""), Command(b"b NOOP")]


def test_mailbox_of_append_may_be_a_literal_of_its_own():
    frames = Framing()
    frames.feed(b"a append {5+}\r\nINBOX {3+}\r\n")
    assert all_events(frames) == [Announced(b"a append {5+}\r\nINBOX ", 3, synchronising=False, binary=False)]


def test_refused_synchronising_literal_is_not_waited_for():
    frames = Framing()
    frames.feed(b"a APPEND INBOX {10}\r\n")
    all_events(frames)
    frames.refuse()
    frames.feed(b"b NOOP\r\n")
    assert all_events(frames) == [Command(b"b NOOP")]


def test_refused_literal_without_synchronisation_is_skipped_with_its_command():
    frames = Framing()
    frames.feed(b"a APPEND INBOX {10+}\r\n01234")
    all_events(frames)
    frames.refuse()
    frames.feed(b"56789 {4+}\r\nmore\r\nb NOOP\r\n")
    assert all_events(frames) == [Command(b"b NOOP")]


def test_second_message_is_announced_with_what_stood_between():
    frames = Framing()
    frames.feed(b"a APPEND INBOX {1+}\r\nx")
    all_events(frames)
    frames.accept()
    frames.feed(b" (\\Seen) {2+}\r\n")
    assert all_events(frames) == [
        Chunk(b"x", last=True),
        Announced(b" (\\Seen) ", 2, synchronising=False, binary=False),
    ]


def test_abandoned_literal_is_skipped_to_the_end_of_its_command():
    frames = Framing()
    frames.feed(b"a APPEND INBOX {10+}\r\n012")
    all_events(frames)
    frames.accept()
    assert all_events(frames) == [Chunk(b"012", last=False)]
    frames.abandon()
    frames.feed(b"3456789\r\nb NOOP\r\n")
    assert all_events(frames) == [Command(b"b NOOP")]


LIMITS = Limits(line_octets=40, literal_octets=20, literals=2)


@pytest.mark.parametrize(
    ("sent", "excess"),
    [
        (b"a NOOP " + b"x" * 50 + b"\r\n", Excess.LINE),
        (b"a LOGIN " + b"x" * 50 + b" {3+}\r\nabc\r\n", Excess.LINE),
        (b"a LOGIN {21+}\r\n" + b"x" * 21 + b" y\r\n", Excess.LITERAL),
        (b"a LOGIN {11+}\r\n" + b"x" * 11 + b" {10+}\r\n" + b"y" * 10 + b"\r\n", Excess.LITERAL),
        (b"a X {1+}\r\na {1+}\r\nb {1+}\r\nc\r\n", Excess.LITERALS),
    ],
)
def test_command_beyond_a_limit_is_refused_once_and_skipped(sent, excess):
    frames = Framing(LIMITS)
    frames.feed(sent + b"b NOOP\r\n")
    refused, *rest = all_events(frames)
    assert isinstance(refused, Refused) and refused.excess is excess
    assert refused.head.startswith(b"a ")
    assert rest == [Command(b"b NOOP")]


def test_too_large_synchronising_literal_ends_its_command_at_once():
    frames = Framing(LIMITS)
    frames.feed(b"a LOGIN {1000}\r\nb NOOP\r\n")
    assert [type(event) for event in all_events(frames)] == [Refused, Command]


def test_line_without_end_keeps_no_more_than_the_limit():
    frames = Framing(LIMITS)
    for _ in range(1000):
        frames.feed(b"x" * 100)
        all_events(frames)
        assert frames.buffered_octets <= 140


def test_lines_for_continuations_are_not_looked_at_for_literals():
    frames = Framing()
    frames.feed(b"dGVzd{3+}\r\nDONE\r\n")
    assert frames.next_line(100) == b"dGVzd{3+}"
    assert frames.next_line(100) == b"DONE"
    assert frames.next_line(100) is None


@given(st.integers(1, 40))
def test_overlong_continuation_line_is_cut_the_same_way_in_pieces(size):
    sent = b"y" * 30 + b"\r\nDONE\r\n"
    frames, lines = Framing(), []
    for start in range(0, len(sent), size):
        frames.feed(sent[start : start + size])
        while (line := frames.next_line(10)) is not None:
            lines.append(line)
    assert lines == [b"y" * 11, b"DONE"]


def test_discard_forgets_what_was_pipelined():
    frames = Framing()
    frames.feed(b"a STARTTLS\r\nb LOGIN x y\r\n")
    assert frames.next() == Command(b"a STARTTLS")
    assert frames.discard() == len(b"b LOGIN x y\r\n")
    assert frames.next() is None


PIECES = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.sampled_from(
            [
                b"a NOOP\r\n", b"a APPEND x ", b"{3}\r\n", b"{3+}\r\n", b"{4+}\r\n", b"~{2+}\r\n", b"abc",
                b"\n", b"{99999+}\r\n", b"a FETCH 1 BODY[", b'"', b"\r\n", b"a SEARCH ", b"(", b" ",
            ]
        ),
    ),
    max_size=30,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(PIECES)
def test_any_octets_give_the_same_events_split_anywhere(pieces):
    check_grammar(b"".join(pieces))


TRANSCRIPT = (
    b'a1 LOGIN {3+}\r\nann "pass\\"word"\r\nb2 SELECT {5}\r\nINBOX\r\n'
    b"c3 APPEND INBOX (\\Seen) {11+}\r\nFrom: x\r\n\r\n\r\n"
    b"d4 FETCH 1:* (FLAGS BODY[HEADER.FIELDS (DATE {4+}\r\nFROM)])\r\n"
)


@pytest.mark.parametrize("at", range(len(TRANSCRIPT)))
def test_commands_are_the_same_split_at_every_octet(at):
    assert events_of([TRANSCRIPT[:at], TRANSCRIPT[at:]]) == events_of([TRANSCRIPT])
