"""What foreign programs do in a Maildir is found and applied, and nothing of ours is mistaken for it."""

import hashlib
import mailbox
import os
import pty
import pwd
import select
import shutil
import subprocess
import tempfile
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage import mailboxes
from storage import scan as scanning
from storage.db import Database
from storage.errors import Missing
from storage.mailboxes import FlagMode
from storage.maildir import base_name, copy_name
from storage.mirror import mirror
from storage.records import Flag, Rendered
from storage.rendition import plain
from storage.scan import BATCH_FILES, Scanned, scan
from storage.watch import RACY_NS, Watch
from tests.postgres import require_all
from tests.storage.mailroom import CONTENT, INSTANCE, MAILBOX, NOW, Mailroom, open_mailroom

FOREIGN = b"From: b@peer.test\r\nSubject: from outside\r\n\r\nHi.\r\n"


def render(content: bytes) -> Rendered:
    return plain(content)


@pytest.fixture
def room(database: Database, tmp_path: Path) -> Mailroom:
    """An inbox with its first folders, and directories for all of them."""
    room = open_mailroom(database, tmp_path)
    for name in room.folders:
        room.maildir.ensure(MAILBOX, name)
    return room


def look(room: Mailroom, folder: str = "INBOX", renderer: Callable[[bytes], Rendered] = render) -> Scanned:
    return scan(
        room.database, maildir=room.maildir, folder_id=room.folders[folder].id, render=renderer, at=NOW
    )


def put(room: Mailroom, path: str, content: bytes = FOREIGN, folder: str = "INBOX") -> Path:
    target = room.path(folder) / path
    target.write_bytes(content)
    return target


def flag(room: Mailroom, uids: list[int], mode: FlagMode, flags: int) -> None:
    folder_id = room.folders["INBOX"].id
    room.write(lambda c: mailboxes.store_flags(c, folder_id=folder_id, uids=uids, mode=mode, flags=flags))


def step(room: Mailroom) -> int:
    """Mirror all that is due; how many files were renamed or removed."""
    files, again = 0, True
    while again:
        done = mirror(room.database, maildir=room.maildir)
        files, again = files + done.files, done.again
    return files


def read(room: Mailroom, uid: int, folder: str = "INBOX") -> bytes:
    entry = next(entry for entry in room.entries(folder) if entry.uid == uid)
    return room.maildir.entry_path(MAILBOX, folder, entry).read_bytes()


NOTHING = (0, 0, 0, 0)


def done(scanned: Scanned) -> tuple[int, int, int, int]:
    return scanned.received, scanned.changed, scanned.vanished, scanned.removed


# ---- new files ----


def test_a_file_delivered_from_outside_becomes_a_message(room: Mailroom) -> None:
    room.add(1)
    path = put(room, "new/1700000000.P1Q1.host")
    os.utime(path, ns=(0, 1_700_000_000_123_456_000))
    assert done(look(room)) == (1, 0, 0, 0)
    entry = room.entries()[1]
    assert (entry.uid, entry.flags, entry.octets, entry.prefix_octets) == (2, 0, len(FOREIGN), 0)
    assert entry.internal_date == 1_700_000_000_123_456
    assert entry.modseq == room.folder().highestmodseq
    message = room.rows("SELECT * FROM messages WHERE id = ?", entry.message_id)[0]
    assert (message.source, message.organization_id, message.octets) == ("append", "org_a", len(FOREIGN))
    assert bytes(message.digest) == hashlib.sha256(FOREIGN).digest()
    assert len(room.rows("SELECT 1 FROM renditions WHERE message_id = ?", entry.message_id)) == 1
    events = room.rows("SELECT kind, data FROM events WHERE message_id = ?", entry.message_id)
    assert [tuple(row) for row in events] == [
        ("message.received", '{"folder":"INBOX","uid":2,"found":"maildir"}')
    ]
    assert room.used() == len(CONTENT) + len(FOREIGN)
    assert {notice.topic for notice in room.notices} >= {"folder", "events"}
    assert room.is_consistent()
    assert done(look(room)) == NOTHING


def test_letters_of_a_delivered_file_become_flags(room: Mailroom) -> None:
    put(room, "cur/1.P1.host:2,FSa")
    look(room)
    entry = room.entries()[0]
    assert (entry.flags, entry.mirrored) == (int(Flag.SEEN | Flag.FLAGGED), "FSa")
    assert room.is_consistent()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cur/1.P1.host", "cur/1.P1.host:2,"),
        ("new/1.P1.host:2,S", "cur/1.P1.host:2,S"),
        ("new/1.P1.host:2,", "new/1.P1.host"),
        ("cur/1.P1.host:1,x", "cur/1.P1.host:1,x:2,"),
        ("cur/1.caf\udce9.host:2,S", "cur/1.caf%E9.host:2,S"),
        ("new/caf\u00e9", "new/caf\u00e9"),
    ],
)
def test_odd_names_are_made_fit(room: Mailroom, name: str, expected: str) -> None:
    put(room, name)
    assert done(look(room)) == (1, 0, 0, 0)
    assert room.files() == [expected]
    assert room.is_consistent()
    assert done(look(room)) == NOTHING


def test_line_ends_become_crlf_under_a_new_name(room: Mailroom) -> None:
    path = put(room, "new/1.P1.host,S=40,W=45", b"Subject: x\n\nbare\nlines\r\nand a NUL \0.\n")
    os.utime(path, ns=(0, 1_700_000_000_000_000_000))
    assert done(look(room)) == (1, 0, 0, 0)
    fit = b"Subject: x\r\n\r\nbare\r\nlines\r\nand a NUL \x80.\r\n"
    assert read(room, 1) == fit
    assert room.files() == [f"new/1.P1.host,S={len(fit)}"]
    assert room.entries()[0].octets == len(fit)
    assert room.entries()[0].internal_date == 1_700_000_000_000_000
    assert done(look(room)) == NOTHING


def test_a_rewriting_that_was_cut_short_leaves_no_second_message(room: Mailroom) -> None:
    content = b"Subject: x\n\nbare\n"
    put(room, "new/1.P1.host", content)
    look(room)
    put(room, "new/1.P1.host", content)  # as if the old name had not yet been unlinked
    look(room)
    assert len(room.files()) == 1
    assert len(room.entries()) == 1


def test_what_cannot_be_rendered_is_received_all_the_same(room: Mailroom) -> None:
    def failing(content: bytes) -> Rendered:
        raise RecursionError

    put(room, "new/1.P1.host")
    assert done(look(room, renderer=failing)) == (1, 0, 0, 0)
    assert read(room, 1) == FOREIGN


def test_what_is_no_message_is_left_alone(room: Mailroom, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (room.path() / "new" / "link").symlink_to(tmp_path / "secret")
    (room.path() / "new" / "directory").mkdir()
    os.mkfifo(room.path() / "cur" / "pipe:2,")
    put(room, "new/.hidden")
    scanned = look(room)
    assert done(scanned) == NOTHING
    assert not scanned.again
    assert room.entries() == []
    assert (room.path() / "new" / "link").is_symlink()


def test_many_new_files_come_in_batches(room: Mailroom) -> None:
    for number in range(BATCH_FILES + 3):
        put(room, f"new/{number}.P.host")
    first = look(room)
    assert (first.received, first.again) == (BATCH_FILES, True)
    second = look(room)
    assert (second.received, second.again) == (3, False)
    assert room.is_consistent()


def test_a_reply_joins_the_thread_it_refers_to(room: Mailroom) -> None:
    def threaded(content: bytes) -> Rendered:
        name, _, parent = content.decode("ascii").partition(" ")
        values = {name: getattr(plain(content), name) for name in Rendered.__slots__}
        return Rendered(**{**values, "message_id": f"<{name}@x>", "references": f"<y@x> <{parent}@x>"})

    for number, text in enumerate(("one none", "two one", "three else")):
        put(room, f"new/{number}", text.encode("ascii"))
        look(room, renderer=threaded)
    threads = [row[0] for row in room.rows("SELECT thread_id FROM messages ORDER BY id")]
    assert threads[0] == threads[1] != threads[2]


# ---- our own files ----


def test_our_own_file_in_flight_is_left_alone(room: Mailroom) -> None:
    room.add(1)
    name = base_name(at=NOW, sequence=room.sequence + 1, index=0, instance=INSTANCE)
    put(room, f"new/{name}")
    assert done(look(room)) == NOTHING
    assert len(room.entries()) == 1
    put(room, "new/" + base_name(at=NOW, sequence=9, index=0, instance="otherone"))
    assert done(look(room)) == (1, 0, 0, 0)


def test_a_file_of_ours_that_came_back_is_a_message_again(room: Mailroom) -> None:
    room.add(1)
    name = room.files()[0]
    room.expunge([1])
    step(room)
    put(room, name)
    assert done(look(room)) == (1, 0, 0, 0)
    assert [entry.uid for entry in room.entries()] == [2]


def test_the_file_of_an_expunged_message_does_not_come_back(room: Mailroom) -> None:
    room.add(2)
    room.expunge([1])
    assert done(look(room)) == NOTHING
    step(room)
    assert done(look(room)) == NOTHING
    assert [entry.uid for entry in room.entries()] == [2]


def test_a_copy_in_flight_is_left_alone(room: Mailroom, monkeypatch: pytest.MonkeyPatch) -> None:
    room.add(1)
    name = copy_name(at=NOW, uid=1, folder_id=room.folders["Archive"].id)
    os.link(room.path() / room.files()[0], room.path("Archive") / "new" / name)
    read_some = scanning._read_some

    def committing(*given: Any) -> Any:
        # The copy is committed between the comparison and the scan's own unit.
        found = {"source_id": room.folders["INBOX"].id, "target_id": room.folders["Archive"].id}
        room.write(lambda c: mailboxes.copy(c, maildir=room.maildir, uids=[1], at=NOW, **found))
        return read_some(*given)

    monkeypatch.setattr(scanning, "_read_some", committing)
    assert done(look(room, "Archive")) == NOTHING
    assert len(room.entries("Archive")) == 1
    assert room.is_consistent()


@pytest.mark.parametrize("is_uid_taken", [False, True])
def test_a_copy_that_was_undone_is_removed(room: Mailroom, is_uid_taken: bool) -> None:
    room.add(1)
    name = copy_name(at=NOW, uid=1, folder_id=room.folders["Archive"].id)
    os.link(room.path() / room.files()[0], room.path("Archive") / "new" / name)
    if is_uid_taken:
        room.add(1, folder="Archive")
    assert done(look(room, "Archive")) == (0, 0, 0, 1)
    assert len(room.files("Archive")) == int(is_uid_taken)
    assert room.is_consistent()


def test_a_failed_copy_that_is_the_last_of_its_bytes_is_kept(room: Mailroom) -> None:
    name = copy_name(at=NOW, uid=1, folder_id=room.folders["INBOX"].id)
    room.add(1)
    put(room, f"cur/{name}:2,S")
    assert done(look(room)) == (1, 0, 0, 0)


def test_mirroring_is_no_change_from_outside(room: Mailroom) -> None:
    uids = room.add(3)
    flag(room, uids, FlagMode.ADD, Flag.SEEN)
    assert done(look(room)) == NOTHING
    step(room)
    assert done(look(room)) == NOTHING
    flag(room, uids, FlagMode.REMOVE, Flag.SEEN)
    step(room)
    assert done(look(room)) == NOTHING
    assert {entry.flags for entry in room.entries()} == {0}


# ---- renames ----


def test_a_file_moved_to_cur_and_flagged_changes_flags(room: Mailroom) -> None:
    room.add(2)
    name = os.path.basename(room.files()[0])
    os.rename(room.path() / "new" / name, room.path() / "cur" / f"{name}:2,RS")
    before = room.folder().highestmodseq
    assert done(look(room)) == (0, 1, 0, 0)
    entry = room.entries()[0]
    assert (entry.flags, entry.subdirectory, entry.mirrored) == (int(Flag.ANSWERED | Flag.SEEN), "cur", "RS")
    assert entry.modseq == before + 1
    assert room.is_consistent()
    assert done(look(room)) == NOTHING


def test_moving_to_cur_alone_changes_no_modseq(room: Mailroom) -> None:
    room.add(2)
    names = [os.path.basename(path) for path in room.files()]
    os.rename(room.path() / "new" / names[0], room.path() / "cur" / f"{names[0]}:2,")
    os.rename(room.path() / "new" / names[1], room.path() / "cur" / names[1])
    before = room.folder()
    assert done(look(room)) == NOTHING
    assert room.folder() == before
    assert [entry.subdirectory for entry in room.entries()] == ["cur", "cur"]
    assert room.is_consistent()


def test_only_the_difference_to_what_was_mirrored_is_applied(room: Mailroom) -> None:
    room.add(1, flags=Flag.SEEN)
    path = room.path() / room.files()[0]
    # One client takes \Seen and adds \Flagged; mutt, knowing neither, adds R.
    flag(room, [1], FlagMode.SET, Flag.FLAGGED)
    path.rename(path.with_name(path.name.replace(":2,S", ":2,RS")))
    assert done(look(room)) == (0, 1, 0, 0)
    assert room.entries()[0].flags == int(Flag.FLAGGED | Flag.ANSWERED)
    step(room)
    assert room.files()[0].endswith(":2,FR")
    assert room.is_consistent()


def test_a_flag_taken_away_outside_is_taken_away(room: Mailroom) -> None:
    room.add(1, flags=Flag.SEEN | Flag.FLAGGED)
    path = room.path() / room.files()[0]
    path.rename(path.with_name(path.name.replace(":2,FS", ":2,S")))
    look(room)
    assert room.entries()[0].flags == int(Flag.SEEN)
    assert step(room) == 0


def test_keywords_survive_a_rename(room: Mailroom) -> None:
    room.add(1, keywords="work $Junk")
    name = os.path.basename(room.files()[0])
    os.rename(room.path() / "new" / name, room.path() / "cur" / f"{name}:2,S")
    look(room)
    assert room.entries()[0].keywords == ("work", "$Junk")


# ---- deletions ----


def test_a_deleted_file_becomes_an_expunge_with_a_tombstone(room: Mailroom) -> None:
    room.add(3)
    before = room.folder().highestmodseq
    (room.path() / room.files()[1]).unlink()
    assert done(look(room)) == (0, 0, 1, 0)
    changes = room.read(lambda c: mailboxes.changes(c, folder_id=room.folders["INBOX"].id, since=before))
    assert (changes.vanished, changes.highestmodseq) == ([2], before + 1)
    assert room.used() == 2 * len(CONTENT)
    assert room.is_consistent()


def test_a_file_moved_to_another_folder_is_moved(room: Mailroom) -> None:
    room.add(1, flags=Flag.SEEN)
    path = room.path() / room.files()[0]
    path.rename(room.path("Archive") / "cur" / path.name)
    assert done(look(room)) == (0, 0, 1, 0)
    assert done(look(room, "Archive")) == (1, 0, 0, 0)
    assert read(room, 1, "Archive") == CONTENT
    assert room.entries("Archive")[0].flags == int(Flag.SEEN)


def test_nothing_is_concluded_from_a_directory_that_is_not_there(room: Mailroom) -> None:
    room.add(3)
    room.path().rename(room.directory / "elsewhere")
    scanned = look(room)
    assert done(scanned) == NOTHING
    assert scanned.missing
    assert len(room.entries()) == 3
    (room.directory / "elsewhere").rename(room.path())
    assert done(look(room)) == NOTHING


def test_a_deletion_is_not_believed_while_the_directory_changes(
    room: Mailroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.add(1)
    path = room.path() / room.files()[0]
    hidden = room.directory / "hidden"
    path.rename(hidden)
    stamps = scanning.stamps

    def returning(directory: Path) -> scanning.Stamps | None:
        found = stamps(directory)
        if not path.exists():
            hidden.rename(path)
        return found

    monkeypatch.setattr(
        scanning, "_confirm", lambda directory, difference: (difference, returning(directory) is not None)
    )
    scanned = look(room)
    assert (done(scanned), len(room.entries())) == (NOTHING, 1)


def test_a_scan_of_no_folder_is_missing(room: Mailroom) -> None:
    with pytest.raises(Missing):
        scan(room.database, maildir=room.maildir, folder_id=99, render=render, at=NOW)


# ---- when to look ----


class Clocks:
    """Time as a test has it."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.wall_ns = 0

    def watch(self, room: Mailroom) -> Watch:
        return Watch(
            database=room.database,
            maildir=room.maildir,
            render=render,
            monotonic=lambda: self.seconds,
            wall_ns=lambda: self.wall_ns,
        )

    def settle(self, room: Mailroom) -> None:
        times = [os.stat(room.path() / name).st_mtime_ns for name in ("new", "cur")]
        self.wall_ns = max(times) + RACY_NS


def test_an_unchanged_directory_is_not_scanned_again(room: Mailroom) -> None:
    clocks = Clocks()
    watch, folder = clocks.watch(room), room.folders["INBOX"]
    clocks.settle(room)
    assert watch.look(folder, at=NOW) is not None
    assert watch.look(folder, at=NOW) is None
    put(room, "new/1.P1.host")
    found = watch.look(folder, at=NOW)
    assert found is not None
    assert found.received == 1


def test_a_directory_changed_just_now_is_looked_at_again(room: Mailroom) -> None:
    clocks = Clocks()
    watch, folder = clocks.watch(room), room.folders["INBOX"]
    clocks.settle(room)
    clocks.wall_ns -= 1
    assert watch.look(folder, at=NOW) is not None
    assert watch.look(folder, at=NOW) is not None
    clocks.wall_ns += 1
    assert watch.look(folder, at=NOW) is not None
    assert watch.look(folder, at=NOW) is None


def test_a_slow_scan_is_followed_by_a_rest(room: Mailroom) -> None:
    clocks = Clocks()
    folder = room.folders["INBOX"]

    def slow(content: bytes) -> Rendered:
        clocks.seconds += 1.0
        return plain(content)

    watch = Watch(
        database=room.database,
        maildir=room.maildir,
        render=slow,
        monotonic=lambda: clocks.seconds,
        wall_ns=lambda: clocks.wall_ns,
    )
    put(room, "new/1.P1.host")
    assert watch.look(folder, at=NOW) is not None
    put(room, "new/2.P1.host")
    assert watch.look(folder, at=NOW) is None
    clocks.seconds += 20.0
    found = watch.look(folder, at=NOW)
    assert found is not None
    assert found.received == 1


# ---- other programs ----


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
