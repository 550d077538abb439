"""Killed at any step, the store loses nothing that was acknowledged and delivers nothing twice.

The process is ended by SIGKILL at every write, link, rename, fsync, commit and
reply of a small load, and of a recovery; a longer run kills it at random
moments under load. What a power cut takes beside that is in test_journal.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from storage import schema
from storage.maildir import parse_base, parse_name
from storage.store import Store
from tests.storage.samples import fill, mail_files, opened, rows

ROOT = Path(__file__).parents[2]
# Seven times the steps of the longest load, which does not depend on how fast the machine is.
POINTS_LIMIT = 1000
# Where each message of the driver's load belongs.
pytestmark = pytest.mark.whole

PLACES = {
    "msg_plain": ("inb_0",),
    "msg_linked": ("inb_0", "inb_1"),
    "msg_spooled": ("inb_2",),
    "msg_flagged": ("inb_1",),
    "msg_aside": ("inb_0",),
    "msg_bounced": ("inb_0",),
    "msg_refused": ("inb_2",),
}
OUTGOING = {"msg_linked", "msg_spooled"}


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A closed store with mailboxes, an hour's worth of nothing in it."""
    path = tmp_path / "template"
    path.mkdir()
    with opened(path / "data", f"sqlite:///{path}/mailagents.sqlite") as store:
        fill(store.database)
    return path


def drive(template: Path, target: Path, load: str, first: int = 1, last: int = POINTS_LIMIT) -> list[Path]:
    """Run the load once a point; the directories of those runs that were killed."""
    target.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.storage.crash_driver", template, target, load, str(first), str(last)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    if last == POINTS_LIMIT:
        point, how = lines[-1]
        assert how == "done", f"no end after {(target / point / 'steps').read_text()}"
    return [target / point for point, how in lines if how == "killed"]


def acknowledged(directory: Path) -> list[str]:
    path = directory / "acknowledged"
    return path.read_text().split() if path.exists() else []


def check(directory: Path) -> int:
    """Recover a killed store and hold it against what it acknowledged; how many messages it has."""
    with opened(directory / "data", f"sqlite:///{directory}/mailagents.sqlite") as store:
        present = check_agreement(store, directory / "data")
        for message_id in acknowledged(directory):
            expected = Counter(PLACES.get(message_id, ("inb_0",)))
            assert present.get(message_id) == expected, (
                f"{directory.name}: {message_id} is {present.get(message_id)}"
            )
        for message_id, places in present.items():
            assert places == Counter(PLACES.get(message_id, ("inb_0",))), (
                f"{directory.name}: {message_id} in part"
            )
        check_outgoing(store, present)
        aside = {path.name for path in (directory / "data/aside").glob("*.eml")}
        assert aside == {f"{one}-0.eml" for one in ("msg_aside", "msg_bounced") if one in present}
        check_told(store, present)
        assert store.recovery.set_aside == []
        return len(present)


def check_agreement(store: Store, data: Path) -> dict[str, Counter[str]]:
    """Every entry has its one whole file and every file its entry; message ids to mailboxes."""
    folders = {row.id: row for row in rows(store.database, schema.folders)}
    files = {}
    for mailbox in {row.mailbox_id for row in folders.values()}:
        for name, octets in mail_files(data, mailbox).items():
            base, _ = parse_name(name.rsplit("/", 1)[1])
            if "/tmp/" in "/" + name:
                continue
            assert parse_base(base) is not None
            assert (mailbox, base) not in files, f"{base} lies twice in {mailbox}"
            files[mailbox, base] = octets
    present: dict[str, Counter[str]] = {}
    for entry in rows(store.database, schema.entries):
        mailbox = folders[entry.folder_id].mailbox_id
        octets = files.pop((mailbox, entry.name))
        assert len(octets) == entry.octets
        present.setdefault(entry.message_id, Counter())[mailbox] += 1
    assert files == {}, "files without entries"
    uids = Counter((entry.folder_id, entry.uid) for entry in rows(store.database, schema.entries))
    assert max(uids.values(), default=1) == 1
    assert {row.id for row in rows(store.database, schema.messages)} == set(present)
    return present


def check_told(store: Store, present: dict[str, Counter[str]]) -> None:
    """What had no inbox to go to is told once, and what was refused is remembered once."""
    for kind, message_id in (("message.aside", "msg_aside"), ("message.bounced", "msg_bounced")):
        found = rows(store.database, schema.events, schema.events.c.kind == kind)
        assert [row.message_id for row in found] == [message_id] * (message_id in present)
    kept = rows(store.database, schema.rejects)
    assert [row.message_id for row in kept] == ["msg_refused"] * ("msg_refused" in present)


def check_outgoing(store: Store, present: dict[str, Counter[str]]) -> None:
    queued = Counter(row.message_id for row in rows(store.database, schema.deliveries))
    assert queued == Counter(OUTGOING & set(present))
    for message_id in queued:
        (message,) = rows(store.database, schema.messages, schema.messages.c.id == message_id)
        octets = store.message_path(message_id).read_bytes()
        assert len(octets) == message.octets + len(message.trace)


def test_killed_at_every_step_of_a_load_nothing_is_lost_or_doubled(template: Path, tmp_path: Path) -> None:
    killed = drive(template, tmp_path / "runs", "small")
    assert len(killed) > 60
    found = [check(directory) for directory in killed]
    assert min(found) == 0
    assert max(found) == 10


def test_killed_at_every_step_of_a_recovery_nothing_is_lost_or_doubled(
    template: Path, tmp_path: Path
) -> None:
    # A run that died late in its load, with records in the journal, some applied and some not.
    runs = drive(template, tmp_path / "runs", "small", 70, 90)
    started = max(runs, key=lambda directory: (len(acknowledged(directory)), int(directory.name)))
    promised = len(acknowledged(started))
    assert promised >= 3
    killed = drive(started, tmp_path / "recoveries", "recovery")
    assert len(killed) > 10
    for directory in killed:
        assert check(directory) >= promised


LOADED = """
import os, sys, threading
from pathlib import Path
from tests.storage.samples import local, open_store, record

directory = Path(sys.argv[1])
acknowledged = os.open(directory / "acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
store = open_store(
    directory / "data",
    f"sqlite:///{directory}/mailagents.sqlite",
    checkpoint_seconds=0.05,
    segment_octets=1 << 18,
)

def send(_error=None):
    item = record(b"Subject: x" + bytes([13, 10, 13, 10]) + b"x" * 1500, events=())
    def durable(error):
        if error is None:
            os.write(acknowledged, item.message_id.encode() + b"\\n")
            send()
        else:
            threading.Timer(0.01, send).start()
    store.accept(item, durable=durable)

for _ in range(50):
    send()
print("ready", flush=True)
threading.Event().wait()
"""


@pytest.mark.slow
def test_killed_at_random_moments_under_load_nothing_is_lost_or_doubled(
    template: Path, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    moments = random.Random(seed)
    directory = tmp_path / "run"
    shutil.copytree(template, directory)
    for _ in range(15):
        child = subprocess.Popen(
            [sys.executable, "-c", LOADED, str(directory)], cwd=ROOT, stdout=subprocess.PIPE, env=os.environ
        )
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        threading.Event().wait(moments.uniform(0.0, 1.0))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert check(directory) >= len(acknowledged(directory)) > 0
