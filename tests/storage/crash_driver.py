"""Runs a small load on a store again and again, and dies at a chosen step of it.

A program of its own, without threads until it forks: `crash_driver.py TEMPLATE
TARGET LOAD FIRST LAST` copies the template's data directory to TARGET/<point>
for each point, forks, and lets the child be killed at that step. A line
`<point> <done|killed>` goes to stdout for each; the acknowledged message ids
are in TARGET/<point>/acknowledged, what the steps before the end were in
TARGET/<point>/steps. A child that ends in any other way ends the driver.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Engine, event

from storage.db import Database
from storage.folder_names import REJECTS
from storage.records import Envelope, LocalTarget, Recipient, RemoteTarget
from storage.store import Store
from tests.storage.faults import Watched, kill_at
from tests.storage.samples import accept, content, local, open_store, record, refused, remote

SIGN = "steps"
SAME = b"X-Same: yes\r\n"
TO_INBOX_8 = Envelope("alice@a.example", (Recipient("inb_8@b.example"), Recipient("inb_0@b.example")))


def letters(store: Store) -> list:
    """One message of each kind, ids by their place."""
    writer = store.spool()
    writer.write(content("spooled") * 500)
    spooled = writer.finish()

    def outgoing(number: int) -> RemoteTarget:
        return remote(delivery_id=f"dlv_{number}")

    def inbox(number: int, **changes) -> LocalTarget:
        return local(f"inb_{number}", **changes)

    return [
        record(message_id="msg_plain", events=()),
        record(
            message_id="msg_linked",
            local=(inbox(0, prefix=SAME), inbox(1, prefix=SAME)),
            remote=(outgoing(1),),
            events=(),
        ),
        record(spooled, message_id="msg_spooled", local=(inbox(2),), remote=(outgoing(2),), events=()),
        record(message_id="msg_flagged", local=(inbox(1, flags=1, folder="Work/2026"),), events=()),
        record(message_id="msg_aside", local=(inbox(9), inbox(0)), events=()),
        # Its sender is to be told.
        record(message_id="msg_bounced", local=(inbox(8), inbox(0)), envelope=TO_INBOX_8, events=()),
        refused(message_id="msg_refused", local=(inbox(2, folder=REJECTS),)),
    ]


def small_load(store: Store, acknowledge: Callable[[str], None]) -> None:
    """Each kind by itself, then all kinds' checkpoint, then some together."""
    for number, item in enumerate([*letters(store), None, *[record(events=()) for _ in range(3)]]):
        if item is None:
            store.checkpoint()
            continue
        send(store, item, acknowledge, wait=number < 9)
    store.close()


def send(store: Store, item, acknowledge: Callable[[str], None], *, wait: bool) -> None:
    promise = accept(store, item)
    promise.durable.wait()
    assert promise.durable_error is None
    acknowledge(item.message_id)
    if wait:
        promise.applied.wait()


def recovery_load(store: Store, _acknowledge: Callable[[str], None]) -> None:
    """Nothing but opening and closing: what there is to do is in the journal already."""
    store.close()


LOADS = {"small": small_load, "recovery": recovery_load}


def child(directory: Path, load: str, point: int) -> None:
    """Run a load and die at a step of it; exits 0 where there was no such step."""
    step = kill_at(point, directory / SIGN)
    acknowledged = os.open(directory / "acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def acknowledge(message_id: str) -> None:
        step("reply")
        os.write(acknowledged, message_id.encode() + b"\n")
        step("replied")

    finish = Database._finish

    def finish_watched(self, *arguments) -> None:
        step("finish")
        finish(self, *arguments)

    Database._finish = finish_watched
    event.listen(Engine, "commit", lambda _connection: step("commit"))
    files = Watched(lambda name, _arguments: step(name))
    store = open_store(directory / "data", f"sqlite:///{directory}/mailagents.sqlite", files=files)
    LOADS[load](store, acknowledge)


def main() -> None:
    template, target, load, first, last = sys.argv[1:]
    for point in range(int(first), int(last)):
        directory = Path(target) / str(point)
        shutil.copytree(template, directory)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                child(directory, load, point)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        is_done = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
        is_ours = os.WIFSIGNALED(status) and (directory / SIGN).exists()
        if not (is_done or is_ours):
            sys.exit(f"the child of point {point} ended by itself or by another's hand: status {status:#x}")
        print(point, "done" if is_done else "killed", flush=True)
        if is_done:
            break


if __name__ == "__main__":
    main()
