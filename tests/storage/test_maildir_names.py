"""Names and paths of Maildir: Maildir++ folders, info letters, base names of our own."""

import mailbox
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.maildir import (
    Maildir,
    Origin,
    base_name,
    decode_utf7,
    directory_name,
    encode_utf7,
    file_name,
    flags_of,
    folder_name,
    info,
    parse_base,
    parse_name,
)
from storage.records import Entry, Flag


@pytest.mark.parametrize(
    ("folder", "directory"),
    [
        ("Sent", ".Sent"),
        ("Archive/2026", ".Archive.2026"),
        ("v1.5", ".v1&AC4-5"),
        ("R&D", ".R&-D"),
        ("Entwürfe", ".Entw&APw-rfe"),
        ("台北", ".&U,BTFw-"),
        ("a/../b", ".a.&AC4-&AC4-.b"),
    ],
)
def test_folder_directory_is_maildir_plus_plus(folder: str, directory: str) -> None:
    assert directory_name(folder) == directory
    assert folder_name(directory) == folder


def test_modified_utf7_of_the_rfc() -> None:
    # RFC 3501 5.1.3: its own example.
    assert encode_utf7("~peter/mail/台北/日本語") == "~peter/mail/&U,BTFw-/&ZeVnLIqe-"


@given(st.text(st.characters(blacklist_categories=["Cs"])))
def test_modified_utf7_round_trips_and_is_printable(text: str) -> None:
    encoded = encode_utf7(text)
    assert all(" " <= character <= "~" for character in encoded)
    assert decode_utf7(encoded) == text


def test_folder_of_nothing_but_a_separator_has_no_directory() -> None:
    with pytest.raises(ValueError, match="needs a name"):
        directory_name("/")


@given(st.text(st.characters(blacklist_categories=["Cs"]), min_size=1).filter(lambda name: name != "/"))
def test_folder_never_leaves_its_mailbox(folder: str) -> None:
    directory = directory_name(folder)
    assert "/" not in directory and "\0" not in directory and directory != ".."
    assert folder_name(directory) == folder


@pytest.mark.parametrize("text", ["&", "&AC4", "&*-", "&U-"])
def test_malformed_utf7_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        decode_utf7(text)


def test_info_letters_are_in_ascii_order() -> None:
    assert info(63) == "DFPRST"
    assert info(Flag.SEEN | Flag.ANSWERED) == "RS"
    assert info(0) == ""


def test_letters_give_their_flags_back() -> None:
    assert [flags_of(info(bits)) for bits in range(64)] == list(range(64))
    assert flags_of("aSz") == Flag.SEEN


def test_name_parts() -> None:
    assert parse_name("1.M2J3_0.host:2,FS") == ("1.M2J3_0.host", "FS")
    assert parse_name("1.M2J3_0.host") == ("1.M2J3_0.host", "")
    assert file_name("base", "cur", "") == "base:2,"
    assert file_name("base", "new", "") == "base"


def test_base_name_tells_its_journal_record() -> None:
    name = base_name(at=1_800_000_000_000_042, sequence=77, index=3, instance="k3v9")
    assert name == "1800000000.M42J77_3.k3v9"
    assert parse_base(name) == Origin(instance="k3v9", sequence=77, index=3)


@pytest.mark.parametrize(
    "name", ["", "1800000000.M42P5.host", "1.MJ_.x", "1.M1J1_1", "1.M1Jx_1.h", "1.M1J1_.h", "1.M1J٣_1.h"]
)
def test_foreign_base_name_is_nobodys(name: str) -> None:
    assert parse_base(name) is None


def test_python_reads_the_tree_as_maildir(tmp_path: Path) -> None:
    maildir = Maildir(tmp_path)
    maildir.ensure("inb_1", "INBOX")
    path = maildir.ensure("inb_1", "Archive/2026")
    (path / "cur" / "1.M2J3_0.host:2,FS").write_bytes(b"Subject: kept\r\n\r\nbody\r\n")
    found = mailbox.Maildir(str(maildir.mailbox_path("inb_1")), create=False)
    assert found.list_folders() == ["Archive.2026"]
    (message,) = found.get_folder("Archive.2026")
    assert (message["Subject"], message.get_flags()) == ("kept", "FS")


def test_entry_path_follows_the_mirrored_name(tmp_path: Path) -> None:
    maildir = Maildir(tmp_path)
    entry = Entry(
        folder_id=1,
        uid=1,
        modseq=1,
        message_id="msg_1",
        flags=1,
        keywords=(),
        internal_date=0,
        octets=1,
        prefix_octets=0,
        name="base",
        subdirectory="cur",
        mirrored="S",
    )
    assert maildir.entry_path("inb_1", "INBOX", entry) == tmp_path / "inb_1" / "cur" / "base:2,S"
