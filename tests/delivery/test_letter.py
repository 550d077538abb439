"""The message's file as an attempt needs it."""

from pathlib import Path

import pytest

from server.delivery.letter import CHUNK_OCTETS, SMALL_OCTETS, read_letter


def letter(path: Path, content: bytes):
    (path / "m").write_bytes(content)
    return read_letter(path / "m")


def test_small_messages_are_read_whole_and_large_ones_only_looked_at(tmp_path: Path) -> None:
    assert letter(tmp_path, b"x" * SMALL_OCTETS).whole is not None
    large = letter(tmp_path, b"x" * (SMALL_OCTETS + 1))
    assert (large.whole, large.octets) == (None, SMALL_OCTETS + 1)


@pytest.mark.parametrize(
    ("content", "eight_bit", "utf8_header"),
    [
        (b"a: b\r\n\r\nplain", False, False),
        (b"a: b\r\n\r\n\xc3\xa9", True, False),
        (b"a: \xc3\xa9\r\n\r\nx", True, True),
        (b"a: \xc3\xa9", True, True),
        (b"a: b\r\n\r\n" + b"x" * 700_000 + b"\xe9", True, False),
    ],
)
def test_octets_over_127_are_found_in_header_and_body(
    tmp_path: Path, content: bytes, eight_bit: bool, utf8_header: bool
) -> None:
    found = letter(tmp_path, content)
    assert (found.eight_bit, found.utf8_header) == (eight_bit, utf8_header)


FIRST = SMALL_OCTETS + 1


@pytest.mark.parametrize(
    ("content", "bare"),
    [
        (b"", False),
        (b"a\r\nb\r\n", False),
        (b"a\nb", True),
        (b"a\rb", True),
        (b"a\r", True),
        (b"a\r\r\nb", True),
        (b"\na", True),
        # The border between two reads falls between CR and LF, and between two others.
        (b"x" * (FIRST - 1) + b"\r\nend\r\n", False),
        (b"x" * (FIRST - 1) + b"\rend", True),
        (b"x" * FIRST + b"\nend", True),
        (b"x" * (FIRST + CHUNK_OCTETS - 1) + b"\r\n", False),
        (b"x" * (FIRST + CHUNK_OCTETS - 1) + b"\r", True),
    ],
)
def test_a_cr_or_lf_alone_is_found_also_between_two_reads(tmp_path: Path, content: bytes, bare: bool) -> None:
    assert letter(tmp_path, content).bare_ends is bare
