"""The process beside apply: does batches, may die at any time, never outlives its parent's lock."""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import Connection

from storage import rendition, schema, worker
from storage.errors import StorageError
from storage.maildir import Maildir
from storage.ownership import lock
from storage.placing import Placing
from storage.records import Rendered
from storage.spool import Spool
from storage.worker import Worker, WorkerFailed
from tests.storage.samples import (
    accept,
    content,
    deliver,
    file_octets,
    fill,
    local,
    mail_files,
    open_store,
    opened,
    record,
    remote,
    rows,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["sqlite"])
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data"


def render_or_fail(octets: bytes) -> Rendered:
    if b"unreadable" in octets:
        raise ValueError("unreadable")
    return rendition.plain(octets)


def batch(store, items) -> list:
    """Accept records while the writer is held, so that they are applied together."""
    holding, release = threading.Event(), threading.Event()

    def hold(_conn: Connection) -> None:
        holding.set()
        release.wait(30)

    store.database.submit(hold, lambda _result, _error: None)
    holding.wait(30)
    promises = [accept(store, item) for item in items]
    assert all(promise.durable.wait(30) for promise in promises)
    release.set()
    assert all(promise.applied.wait(30) for promise in promises)
    return promises


def kinds() -> list:
    return [
        record(),
        record(local=(local(prefix=b"A: b\r\n"), local("inb_1", prefix=b"A: b\r\n")), remote=(remote(),)),
        record(content("unreadable")),
        record(local=(local("inb_gone"), local("inb_2", flags=1, folder="Work/2026"))),
        *[record(content(str(number)), local=(local("inb_2"),)) for number in range(30)],
    ]


def spy(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts batches that the worker did."""
    counts: Counter[str] = Counter()
    plain = Worker.do

    def do(self, items, locations):
        counts["asked"] += 1
        done = plain(self, items, locations)
        counts["done"] += 1
        return done

    monkeypatch.setattr(Worker, "do", do)
    return counts


def test_worker_does_what_apply_would(
    directory: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = spy(monkeypatch)
    with opened(directory, database_url, render=render_or_fail) as store:
        fill(store.database)
        items = kinds()
        promises = batch(store, items)
        assert counts["done"] > 0 and counts["asked"] == counts["done"]
        assert [promise.applied_error for promise in promises] == [None] * len(items)
        for item in items:
            for target in item.local:
                found = mail_files(directory, target.mailbox_id).values()
                assert (file_octets(item, target) in found) == (target.mailbox_id != "inb_gone")
        linked = next(path for path in (directory / "mail/inb_1/new").iterdir())
        assert linked.stat().st_nlink == 2
        assert any(name.startswith(".Work.2026/cur/") for name in mail_files(directory, "inb_2"))
        assert store.message_path(items[1].message_id).read_bytes() == items[1].trace + items[1].content
        events = Counter(row.kind for row in rows(store.database, schema.events))
        assert (events["message.unrendered"], events["message.aside"]) == (1, 1)
        assert len(list((directory / "aside").iterdir())) == 1


def test_worker_that_is_killed_is_replaced_and_nothing_is_lost_or_doubled(
    directory: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Worker.do
    killed = []

    def do(self, items, locations):
        if len(killed) < 2:
            if self._process is None:
                self._start()
            killed.append(self._process.pid)
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
        return plain(self, items, locations)

    monkeypatch.setattr(Worker, "do", do)
    with opened(directory, database_url) as store:
        fill(store.database)
        items = [record() for _ in range(60)]
        batch(store, items[:30])
        batch(store, items[30:])
        assert len(killed) == 2
        assert sorted(mail_files(directory).values()) == sorted(
            file_octets(item, item.local[0]) for item in items
        )
        assert len(rows(store.database, schema.entries)) == 60


def test_batch_the_worker_did_in_part_is_done_again_by_name(
    directory: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Worker.do

    def do(self, items, locations):
        plain(self, items, locations)
        raise WorkerFailed("after the work")

    monkeypatch.setattr(Worker, "do", do)
    with opened(directory, database_url) as store:
        fill(store.database)
        items = [record() for _ in range(20)]
        batch(store, items)
        assert len(mail_files(directory)) == len(rows(store.database, schema.entries)) == 20


def test_worker_that_always_fails_is_left_alone(
    directory: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.worker.sys.executable", "/bin/false")
    counts = spy(monkeypatch)
    with opened(directory, database_url) as store:
        fill(store.database)
        for _ in range(6):
            batch(store, [record() for _ in range(10)])
        assert counts["done"] == 0
        assert counts["asked"] == worker.FAILURES_LIMIT
        assert len(mail_files(directory)) == 60


def test_function_that_no_other_process_can_import_is_rendered_here(tmp_path: Path) -> None:
    def inner(octets: bytes) -> Rendered:
        return rendition.plain(octets)

    spool = Spool(tmp_path, reserve_octets=0, files=os)
    placing = Placing(
        maildir=Maildir(tmp_path), spool=spool, outbox=tmp_path, aside=tmp_path, instance="x" * 8, files=os
    )
    assert not Worker(placing=placing, render=inner, keep_open=()).is_usable()
    assert Worker(placing=placing, render=rendition.plain, keep_open=()).is_usable()


OWNER = """
import sys
from pathlib import Path
from tests.storage.samples import accept, fill, open_store, record

store = open_store(Path(sys.argv[1]) / "data", f"sqlite:///{sys.argv[1]}/mailagents.sqlite")
fill(store.database)
store._applier._worker._start()
print(store._applier._worker._process.pid, flush=True)
sys.stdin.read()
"""


def test_worker_ends_with_its_parent_and_the_lock_with_it(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert owner.stdout is not None and owner.stdin is not None
    pid = int(owner.stdout.readline())
    os.kill(pid, 0)
    with pytest.raises(StorageError, match=f"pid {owner.pid}"):
        lock(tmp_path / "data")
    owner.kill()
    owner.wait()
    owner.stdin.close()
    owner.stdout.close()
    # The lock is the proof: it is free only when the worker, too, is gone.
    os.close(lock(tmp_path / "data"))
    store = open_store(tmp_path / "data", f"sqlite:///{tmp_path}/mailagents.sqlite")
    deliver(store, record())
    store.close()
