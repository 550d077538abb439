"""Killed at random moments under load, the daemon keeps every promise it made, and makes it once."""

import os
import random
import re
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.daemon.letters import DOMAIN
from tests.daemon.partner import serving
from tests.daemon.running import Daemon, Inbox, children, until
from tests.daemon.storm import LIMITS, Storm, strike


@pytest.mark.parametrize(
    ("seed", "kills"), [(1, 5), pytest.param(2, 60, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_every_250_is_kept_once_through_kills(template: Path, tmp_path: Path, seed: int, kills: int) -> None:
    dice = random.Random(seed)
    with (
        serving(tmp_path / "partner") as partner,
        Daemon(
            tmp_path / "daemon",
            template=template,
            # Frequent checkpoints of the small segments that all tests use, so that kills hit these too.
            store={"checkpoint_seconds": 1},
            delivery={"routes": partner.route, "retry_first_seconds": 1, "per_domain_concurrency": 4},
            limits=LIMITS,
        ) as daemon,
    ):
        daemon.start()
        storm = Storm(daemon, seed=seed, mx=4, submissions=2, readers=2)
        storm.begin()
        for _ in range(kills):
            strike(daemon, storm, dice, after=dice.randrange(5, 60))
        storm.end()
        assert storm.surprises == []
        daemon.drained(seconds=60)
        for inbox in (daemon.alice, daemon.bob):
            check_inbox(daemon, storm, inbox)
        check_drafts(daemon, storm)
        check_notices(daemon, storm)
        check_partner(storm, Counter(), kills=kills, taken=[
            (str(one.message["Subject"]), str(one.message["Message-ID"]), storm.is_whole(one.message))
            for one in partner.taken
        ])  # fmt: skip
        check_residue(daemon)
        assert "Traceback" not in daemon.log


def check_inbox(daemon: Daemon, storm: Storm, inbox: Inbox) -> None:
    """What was promised lies in the inbox once, what was not at most once, and all of it whole."""
    expected = {name for name, recipients in storm.promised.items() if inbox.address in recipients}
    found = daemon.messages(inbox)
    by_files = Counter(str(one["Subject"]) for one in found)
    assert expected - set(by_files) == set(), "lost"
    assert {name for name, count in by_files.items() if count > 1} == set(), "twice"
    assert set(by_files) <= storm.sent
    assert all(storm.is_whole(one) for one in found)
    assert {one["Delivered-To"] for one in found} == {inbox.address}
    assert by_imap(daemon, inbox) == by_files


def check_drafts(daemon: Daemon, storm: Storm) -> None:
    """What readers were told OK for is so: appended once, flagged, gone for good."""
    files = Counter(str(one["Subject"]) for one in daemon.messages(daemon.alice, "Drafts"))
    assert storm.kept and storm.gone and storm.flagged
    assert storm.kept - set(files) == set(), "lost"
    assert storm.gone & set(files) == set(), "came back"
    assert {name for name, count in files.items() if count > 1} == set(), "twice"
    with daemon.imap(daemon.alice) as client:
        client.select("Drafts", readonly=True)
        _, answers = client.uid("FETCH", "1:*", "(FLAGS BODY.PEEK[HEADER.FIELDS (SUBJECT)])")
    shown = {
        part[1].split(b":", 1)[1].strip().decode(): part[0] for part in answers if isinstance(part, tuple)
    }
    assert set(shown) == set(files)
    unmarked = {name for name in storm.flagged & set(shown) if b"\\Flagged" not in shown[name]}
    assert unmarked == set()


def by_imap(daemon: Daemon, inbox: Inbox) -> Counter[str]:
    """The subjects that an IMAP client sees, each under a UID of its own."""
    with daemon.imap(inbox) as client:
        client.select("INBOX", readonly=True)
        _, answers = client.uid("FETCH", "1:*", "(UID BODY.PEEK[HEADER.FIELDS (SUBJECT)])")
    parts = [answer for answer in answers if isinstance(answer, tuple)]
    uids = [re.search(rb"UID (\d+)", part[0])[1] for part in parts]  # type: ignore[index]  # always there
    assert len(set(uids)) == len(uids)
    return Counter(part[1].split(b":", 1)[1].strip().decode() for part in parts)


def check_partner(
    storm: Storm, counts: Counter[str], *, kills: int, taken: list[tuple[str, str, bool]]
) -> None:
    """What was submitted arrived whole under its Message-ID; only kills in mid-transmission make copies."""
    for subject, message_id, is_whole in taken:
        assert message_id == f"<{subject}@storm.test>"
        assert is_whole
        counts[subject] += 1
    expected = {name for name, to in storm.promised.items() if to[0] == f"{name}@partner.test"}
    assert expected - set(counts) == set(), "lost"
    assert set(counts) <= storm.sent
    assert max(counts.values()) <= 1 + kills
    # Four transmissions at once at most (per_domain_concurrency), and a kill leaves those in doubt.
    assert sum(counts.values()) - len(counts) <= 4 * kills


def check_notices(daemon: Daemon, storm: Storm) -> None:
    """The sender of what was refused got one notice for each message."""
    expected = {name for name, to in storm.promised.items() if to[0] == f"reject-{name}@partner.test"}

    def told() -> Counter[str]:
        notices = daemon.messages(storm.sender)
        return Counter(re.findall(r"<(\w+)@storm\.test>", one.as_string())[-1] for one in notices)

    until(lambda: expected <= set(told()), f"{expected - set(told())} got no notice")
    daemon.drained()
    assert {name for name, count in told().items() if count > 1} == set(), "told twice"


def check_residue(daemon: Daemon) -> None:
    """Nothing half-made is left to be seen, and nothing that was finished is kept."""
    assert daemon.stop() == 0
    assert not list((daemon.data / "mail").rglob("tmp/*"))
    assert list((daemon.data / "spool").iterdir()) == []
    assert list((daemon.data / "aside").iterdir()) == []
    journal = [path for path in (daemon.data / "journal").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in journal if "spool" in path.parts) == 0


def test_a_daemon_started_on_what_a_kill_left_says_so(template: Path, tmp_path: Path) -> None:
    """One kill in the middle of one large message: nothing of it shows after the restart."""
    with Daemon(tmp_path, template=template) as daemon:
        daemon.start()
        client = daemon.mx()
        client.ehlo()
        client.mail("stranger@partner.test")
        client.rcpt(f"alice@{DOMAIN}")
        client.putcmd("DATA")
        assert client.getreply()[0] == 354
        client.sock.sendall(b"Subject: half\r\n\r\n" + b"x" * 76 * 1000)
        client.sock.sendall((b"x" * 76 + b"\r\n") * 40_000)
        spooled = daemon.data / "journal"
        until(lambda: any(path.stat().st_size for path in spooled.glob("*/spool/*")), "nothing is spooled")
        daemon.kill()
        client.close()
        daemon.start()
        assert daemon.messages(daemon.alice) == []
        assert list(spooled.glob("*/spool/*")) == []


def test_the_death_of_the_writing_process_is_not_noticed_outside(template: Path, tmp_path: Path) -> None:
    """The process that writes files is killed under load: its work is done all the same."""
    with Daemon(tmp_path, template=template) as daemon:
        daemon.start()
        storm = Storm(daemon, seed=4, mx=8)
        storm.begin()
        for _ in range(2):
            goal = storm.count + 100
            found = until(
                lambda goal=goal: storm.count >= goal and children(daemon.pid), "no writing process"
            )
            for pid in found:
                os.kill(pid, signal.SIGKILL)
        storm.end()
        assert storm.surprises == []
        daemon.drained(seconds=60)
        for inbox in (daemon.alice, daemon.bob):
            check_inbox(daemon, storm, inbox)
        check_residue(daemon)
