"""Other programs read and change what we keep: Python's mailbox, Dovecot, mutt."""

import mailbox
import os
import pty
import pwd
import select
import shutil
import subprocess
import tempfile
import termios
from pathlib import Path
from typing import Any

import pytest

from storage import mailboxes
from storage.db import Database
from storage.listing import Listing
from storage.lists import FOLDER_FILE
from storage.records import Flag
from tests.postgres import require_all
from tests.storage.mailroom import (
    MAILBOX,
    NOW,
    Mailroom,
    look,
    open_mailroom,
    read,
    with_directories,
)


@pytest.fixture
def room(database: Database, tmp_path: Path) -> Mailroom:
    """An inbox with its first folders, directories for all of them, and the lists that we keep there."""
    room = with_directories(open_mailroom(database, tmp_path))
    Listing(room.database, room.maildir).run()
    assert (room.path() / FOLDER_FILE).exists()
    assert (room.path("Sent") / FOLDER_FILE).exists()
    return room


def programs(name: str) -> str:
    """Return the path of a foreign program; skips or fails the test where there is none."""
    found = shutil.which(name)
    if found is None:
        reason = f"{name} is not installed"
        if require_all():
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def test_pythons_maildir_reads_and_changes_what_we_keep(room: Mailroom) -> None:
    room.add(2)
    room.add(1, folder="Archive", flags=Flag.SEEN)
    foreign = mailbox.Maildir(str(room.path()), create=False)
    assert len(foreign) == 2
    assert sorted(foreign.list_folders()) == ["Archive", "Drafts", "Junk", "Sent", "Trash"]
    assert [message.get_flags() for message in foreign.get_folder("Archive")] == ["S"]
    key = min(foreign.keys())
    message = foreign[key]
    message.set_subdir("cur")
    message.set_flags("FS")
    foreign[key] = message
    foreign.remove(max(foreign.keys()))
    foreign.add(mailbox.MaildirMessage(b"Subject: added\n\nby Python\n"))
    while look(room).again:
        pass
    flags = {entry.flags for entry in room.entries()}
    assert flags == {0, int(Flag.SEEN | Flag.FLAGGED)}
    assert read(room, max(entry.uid for entry in room.entries())).endswith(b"by Python\r\n")
    assert room.is_consistent()


class Doveadm:
    """Dovecot's own tool on a copy of a Maildir, run as a plain user: it refuses to read mail as root."""

    def __init__(self, directory: Path, maildir: Path) -> None:
        self.program = programs("doveadm")
        self.directory = directory
        self.copy = directory / "copy"
        shutil.copytree(maildir, self.copy)
        self.config = directory / "dovecot.conf"
        self.config.write_text(
            f"base_dir = {directory}/run\nmail_location = maildir:{self.copy}:INDEX=MEMORY\n"
            "first_valid_uid = 1\nlog_path = /dev/stderr\nssl = no\n"
            "namespace inbox {\n  inbox = yes\n  separator = /\n}\n"
        )
        self.user: dict[str, Any] = {}
        if os.geteuid() == 0:
            account = pwd.getpwnam("mail")
            self.user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            for path in (directory, *directory.rglob("*")):
                os.chown(path, account.pw_uid, account.pw_gid)

    def ask(self, *words: str) -> list[str]:
        """Run one command and return its lines."""
        done = subprocess.run(
            [self.program, "-c", self.config, *words],
            env={**os.environ, "USER": "mail", "HOME": str(self.directory)},
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **self.user,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


@pytest.mark.interop
def test_dovecot_reads_and_changes_what_we_keep(room: Mailroom) -> None:
    room.add(2)
    folder = room.write(
        lambda c: mailboxes.create_folder(c, mailbox_id=MAILBOX, name="Z\u00fcrich & Bern/\u2713", at=NOW)
    )
    room.folders[folder.name] = folder
    room.add(1, folder=folder.name, flags=Flag.SEEN | Flag.FORWARDED)
    with tempfile.TemporaryDirectory() as directory:
        doveadm = Doveadm(Path(directory), room.path())
        assert {"INBOX", "Archive", folder.name} <= set(doveadm.ask("mailbox", "list", "-8"))
        shown = doveadm.ask("-f", "flow", "fetch", "flags", "mailbox", folder.name, "all")
        assert len(shown) == 1
        assert "\\Seen" in shown[0]
        doveadm.ask("flags", "add", "\\Flagged \\Seen", "mailbox", "INBOX", "uid", "1")
        doveadm.ask("expunge", "mailbox", "INBOX", "uid", "2")
        for one in ("new", "cur"):
            shutil.rmtree(room.path() / one)
            shutil.copytree(doveadm.copy / one, room.path() / one)
    scanned = look(room)
    assert (scanned.received, scanned.changed, scanned.vanished) == (0, 1, 1)
    assert [entry.flags for entry in room.entries()] == [int(Flag.SEEN | Flag.FLAGGED)]
    assert room.is_consistent()


def on_a_terminal(command: list[str], environment: dict[str, str]) -> None:
    """Run a program on a terminal of its own until it ends; fails where it does not."""
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    program = subprocess.Popen(
        command, env=environment, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
    )
    os.close(terminal)
    shown = b""
    try:
        while select.select([controller], [], [], 60)[0]:
            try:
                shown += os.read(controller, 65536)
            except OSError:  # the other end is closed: the program has ended
                break
        else:
            pytest.fail(f"no answer from {command[0]}: {shown[-1000:]!r}")
        assert program.wait(60) == 0, shown
    finally:
        program.kill()
        program.wait()
        os.close(controller)


@pytest.mark.interop
def test_mutt_reads_what_we_keep(room: Mailroom, tmp_path: Path) -> None:
    mutt = programs("mutt")
    room.add(2)
    settings = tmp_path / "muttrc"
    settings.write_text(
        "set mbox_type=Maildir sleep_time=0 move=no mark_old=no folder=/ record='' spoolfile=/\n"
    )
    pressed = "push '<first-entry><flag-message><last-entry><delete-message><sync-mailbox><exit>'"
    command = [mutt, "-n", "-F", str(settings), "-f", str(room.path()), "-e", "set delete=yes", "-e", pressed]
    on_a_terminal(command, {**os.environ, "TERM": "vt100", "HOME": str(tmp_path)})
    while look(room).again:
        pass
    assert [entry.flags & Flag.FLAGGED for entry in room.entries()] == [Flag.FLAGGED]
    assert room.is_consistent()
