"""The process beside apply: does batches, may die at any time, never outlives its parent's lock."""

import json
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
from storage.folder_names import REJECTS
from storage.maildir import Maildir
from storage.ownership import lock
from storage.placing import Placing
from storage.records import Decision, Envelope, Recipient, Rendered, Source
from storage.rendition import Render
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
    refused,
    remote,
    rows,
)

ROOT = Path(__file__).parents[2]


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
    """Counts batches that the worker was asked to do, and those it committed."""
    counts: Counter[str] = Counter()
    place, commit = Worker.place, Worker.commit

    def asked(self, items, locations):
        counts["asked"] += 1
        place(self, items, locations)

    def done(self, at):
        answer = commit(self, at)
        counts["done"] += 1
        return answer

    monkeypatch.setattr(Worker, "place", asked)
    monkeypatch.setattr(Worker, "commit", done)
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


def test_worker_tells_of_closed_inboxes_and_keeps_refused_mail_as_apply_would(
    directory: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = spy(monkeypatch)
    envelope = Envelope("a@a.example", (Recipient("gone@b.example", None, "rfc822;first@b.example"),))
    late = record(local=(local("inb_gone", recipient="gone@b.example"),), envelope=envelope)
    redirected = record(
        local=(local("inb_gone", recipient="else@b.example"),),
        envelope=envelope,
        decision=Decision(redirect="else@b.example"),
    )
    kept = refused(local=(local("inb_1", folder=REJECTS),))
    sent = record(source=Source.SUBMISSION, local=(), remote=(remote(),))
    with opened(directory, database_url) as store:
        fill(store.database)
        batch(store, [late, redirected, kept, sent, *[record() for _ in range(30)]])
        assert counts["done"] > 0 and counts["asked"] == counts["done"]
        bounced = rows(store.database, schema.events, schema.events.c.kind == "message.bounced")
        told = {row.message_id: json.loads(row.data) for row in bounced}
        assert told.keys() == {late.message_id, redirected.message_id}
        for data in told.values():
            assert (data["recipient"], data["orcpt"]) == ("gone@b.example", "rfc822;first@b.example")
        (row,) = rows(store.database, schema.rejects)
        assert (row.mailbox_id, row.message_id) == ("inb_1", kept.message_id)
        (folder,) = rows(store.database, schema.folders, schema.folders.c.name == REJECTS)
        assert folder.recent_uid == folder.uidnext == 2
        (act,) = rows(store.database, schema.signs_due)
        assert (act.message_id, act.kind) == (sent.message_id, "written")


@pytest.mark.parametrize("step", ["place", "commit"])
def test_worker_that_is_killed_is_replaced_and_nothing_is_lost_or_doubled(
    directory: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    plain = getattr(Worker, step)
    killed = []

    def kill_first(self, *arguments):
        if len(killed) < 2:
            if self._process is None:
                self._start()
            killed.append(self._process.pid)
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
        return plain(self, *arguments)

    monkeypatch.setattr(Worker, step, kill_first)
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


@pytest.mark.parametrize("step", ["place", "commit"])
def test_batch_whose_answer_was_lost_is_not_done_twice(
    directory: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    plain = getattr(Worker, step)

    def lose(self, *arguments):
        plain(self, *arguments)
        raise WorkerFailed("after the work")

    monkeypatch.setattr(Worker, step, lose)
    with opened(directory, database_url) as store:
        fill(store.database)
        items = [record() for _ in range(20)]
        promises = batch(store, items)
        assert len(mail_files(directory)) == len(rows(store.database, schema.entries)) == 20
        found = {row.message_id: row.uid for row in rows(store.database, schema.entries)}
        assert [promise.placed[0].uid for promise in promises] == [found[item.message_id] for item in items]


def test_folder_that_changed_meanwhile_sends_the_batch_back(directory: Path, database_url: str) -> None:
    with opened(directory, database_url) as store:
        fill(store.database)
        batch(store, [record(local=(local("inb_2", folder="Work/2026"),)) for _ in range(10)])
        change = schema.folders.update().where(schema.folders.c.name == "Work/2026").values(name="Old")
        store.database.write(lambda connection: connection.execute(change).rowcount)
        os.rename(directory / "mail/inb_2/.Work.2026", directory / "mail/inb_2/.Old")
        batch(store, [record(local=(local("inb_2", folder="Work/2026"),)) for _ in range(10)])
        names = mail_files(directory, "inb_2")
        assert sorted(name.split("/")[0] for name in names) == [".Old"] * 10 + ["new"] * 10


def test_news_of_a_batch_are_heard(directory: Path, database_url: str) -> None:
    heard: list = []
    with opened(directory, database_url) as store:
        fill(store.database)
        store.database.listen(heard.extend)
        batch(store, [record() for _ in range(10)])
        modseq = max(row.highestmodseq for row in rows(store.database, schema.folders))
        assert max(notice.position for notice in heard if notice.topic == "folder") == modseq
        assert any(notice.topic == "events" for notice in heard)


def test_password_of_the_database_is_not_among_the_arguments(directory: Path, database_url: str) -> None:
    with opened(directory, database_url) as store:
        store._applier._worker._start()
        arguments = Path(f"/proc/{store._applier._worker._process.pid}/cmdline").read_bytes()
        assert b"sqlite" not in arguments and b"postgresql" not in arguments


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

    def usable(render: Render) -> bool:
        made = Worker(placing=placing, render=render, database="sqlite:////x", origin="x", keep_open=())
        return made.is_usable()

    assert not usable(inner)
    assert usable(rendition.plain)


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
