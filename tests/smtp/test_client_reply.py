"""Replies, whole and in pieces."""

import pytest

from server.smtp.client_reply import (
    LINE_LIMIT,
    LINES_LIMIT,
    Reply,
    ReplyReader,
    ReplySyntax,
    make_reply,
    printable,
    read_extensions,
)


def read(octets: bytes, size: int = 1 << 16) -> list[Reply]:
    reader = ReplyReader()
    found: list[Reply] = []
    for start in range(0, len(octets), size):
        found.extend(reader.feed(octets[start : start + size]))
    return found


GOOD = [
    (b"250 ok\r\n", Reply(250, "", ("ok",))),
    (b"250\r\n", Reply(250, "", ("",))),
    (b"250 \r\n", Reply(250, "", ("",))),
    (b"250 2.1.0 sender ok\r\n", Reply(250, "2.1.0", ("sender ok",))),
    (b"550-5.1.1 no\r\n550 5.1.1 such user\r\n", Reply(550, "5.1.1", ("no", "such user"))),
    (b"550 5.1.1\r\n", Reply(550, "5.1.1", ("",))),
    # The class must agree with the code's.
    (b"550 4.2.2 full\r\n", Reply(550, "", ("4.2.2 full",))),
    (b"220 2.2.0.1 is a host\r\n", Reply(220, "", ("2.2.0.1 is a host",))),
    (b"250 bare line feed\n", Reply(250, "", ("bare line feed",))),
    (b"250 caf\xc3\xa9 \xff\r\n", Reply(250, "", ("caf\u00e9 \\xff",))),
    (b"550 \x1b[31mred\x00\r\n", Reply(550, "", ("[31mred",))),
]


@pytest.mark.parametrize(("octets", "reply"), GOOD)
def test_a_reply_is_read_whole_and_split_at_every_octet(octets: bytes, reply: Reply) -> None:
    assert read(octets) == [reply]
    assert read(octets, 1) == [reply]
    for cut in range(1, len(octets)):
        reader = ReplyReader()
        assert [*reader.feed(octets[:cut]), *reader.feed(octets[cut:])] == [reply]
        assert not reader.pending


def test_replies_that_come_together_are_read_in_order() -> None:
    assert [reply.code for reply in read(b"250 a\r\n550-b\r\n550 c\r\n354 d\r\n")] == [250, 550, 354]


@pytest.mark.parametrize(
    "octets",
    [
        b"hello\r\n",
        b"25 ok\r\n",
        b"150 ok\r\n",
        b"600 ok\r\n",
        b"250_ok\r\n",
        b"\r\n",
        b"\xb2\xb5\xb0 ok\r\n",
        b"250 " + b"x" * LINE_LIMIT + b"\r\n",
        b"x" * (LINE_LIMIT + 2),
        b"250-x\r\n" * LINES_LIMIT,
    ],
)
def test_what_is_no_reply_or_has_no_end_is_refused(octets: bytes) -> None:
    for size in (1, 7, 1 << 16):
        with pytest.raises(ReplySyntax):
            read(octets, size)


def test_an_endless_line_is_held_no_longer_than_the_limit() -> None:
    reader = ReplyReader()
    list(reader.feed(b"2" * LINE_LIMIT))
    with pytest.raises(ReplySyntax):
        list(reader.feed(b"2"))


def test_extensions_are_read_without_the_greeting() -> None:
    reply = make_reply(250, ["mx.test SIZE 1", "SIZE 1000", "pipelining", "AUTH PLAIN LOGIN", "", "SIZE 5"])
    found = read_extensions(reply)
    assert found.size_limit == 1000
    assert "PIPELINING" in found
    assert found.keywords["AUTH"] == "PLAIN LOGIN"


@pytest.mark.parametrize("size", ["", "0", "-1", "lots", "9" * 21, "\u0661"])
def test_a_size_that_is_no_limit_is_none(size: str) -> None:
    assert read_extensions(make_reply(250, ["mx", f"SIZE {size}"])).size_limit is None


def test_printable_leaves_no_control_character() -> None:
    assert all(character.isprintable() for character in printable(bytes(range(256))))


@pytest.mark.parametrize(
    ("told", "limits"),
    [
        ("LIMITS MAILMAX=5 RCPTMAX=100", (5, 100)),
        ("limits rcptmax=7", (None, 7)),
        ("LIMITS", (None, None)),
        ("LIMITS MAILMAX RCPTMAX=", (None, None)),
        ("LIMITS MAILMAX=0 RCPTMAX=01", (None, None)),
        ("LIMITS MAILMAX=1000000 RCPTMAX=999999", (None, 999999)),
        ("LIMITS MAILMAX=-1 RCPTMAX=\u0663", (None, None)),
        ("LIMITS XRCPTMAX=3 RCPTMAX=4;5 MAILMAX=2", (2, None)),
        ("SIZE 5", (None, None)),
    ],
)
def test_limits_are_read_and_what_is_none_is_passed_over(
    told: str, limits: tuple[int | None, int | None]
) -> None:
    found = read_extensions(make_reply(250, ["mx", told]))
    assert (found.limit("MAILMAX"), found.limit("RCPTMAX")) == limits
