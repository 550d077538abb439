"""Messages a second into a mailbox of 500,000 messages, beside an empty one.

One daemon's mailbox is filled by smtp-source. Then the load 2k-c10-reuse goes in turn into that mailbox, into
a new one of the same daemon, and into a new one of a daemon that holds nothing else, which is what both are
held against. A message counts when the kernel tells of its file in new/: nobody lists 500,000 names.
"""

import argparse
import ctypes
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench import acceptance, disk, report
from bench.appliance import Appliance

MESSAGES, QUICK_MESSAGES = 500_000, 20_000
ROUNDS, QUICK_ROUNDS = 5, 3
GOAL = 0.8
FILL_SESSIONS, FILL_PART = 50, 25_000
WARMING = 300
QUIET_SECONDS, QUIET_PART, QUIET_PATIENCE_SECONDS = 1.0, 0.05, 300.0
# A file a message, a file system of 12 GiB: ext4's usual share of inodes would not do.
DISK_OCTETS, DISK_OPTIONS = 12 << 30, ("-i", "4096")
_CREATED = 0x00000100 | 0x00000080  # IN_CREATE, IN_MOVED_TO
_OVERFLOW = 0x00004000
_HEAD = struct.Struct("iIII")


class Arrivals:
    """How many files came into a directory since this was made, as inotify tells."""

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0 or libc.inotify_add_watch(self._fd, os.fsencode(directory), _CREATED) < 0:
            raise OSError(ctypes.get_errno(), "inotify", str(directory))
        self.count = 0

    def read(self, *, timeout_seconds: float) -> int:
        """Take in what is told meanwhile; returns the count."""
        if select.select([self._fd], [], [], timeout_seconds)[0]:
            told, position = os.read(self._fd, 1 << 16), 0
            while position < len(told):
                _, mask, _, length = _HEAD.unpack_from(told, position)
                if mask & _OVERFLOW:
                    raise RuntimeError("more files came than the kernel can tell of")
                self.count += 1
                position += _HEAD.size + length
        return self.count

    def close(self) -> None:
        """Watch no longer."""
        os.close(self._fd)


def send(daemon: Appliance, *, recipient: str, new: Path, messages: int, sessions: int = 10) -> float:
    """Send messages of 2 KB to a recipient; returns messages a second until all are in new/."""
    arrivals = Arrivals(new)
    command = ["smtp-source", "-s", str(sessions), "-m", str(messages), "-l", "2048", "-d"]
    command += ["-f", "sender@source.test", "-t", recipient, f"127.0.0.1:{daemon.port}"]
    begin = time.perf_counter()
    source = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while arrivals.read(timeout_seconds=1.0) < messages:
            if source.poll():
                raise RuntimeError(f"smtp-source ended with {source.returncode}")
            if time.perf_counter() - begin > acceptance.PATIENCE_SECONDS:
                raise TimeoutError(f"{arrivals.count} of {messages} messages arrived")
        return messages / (time.perf_counter() - begin)
    finally:
        arrivals.close()
        source.kill()
        source.wait()


def fill(daemon: Appliance, wanted: int) -> None:
    """Bring the daemon's first mailbox to a number of messages."""
    held = acceptance.count(daemon.new)
    while held < wanted:
        part = min(FILL_PART, wanted - held)
        rate = send(
            daemon, recipient="user@bench.test", new=daemon.new, messages=part, sessions=FILL_SESSIONS
        )
        held += part
        print(f"filling: {held:,} of {wanted:,} messages, {rate:,.0f} a second", file=sys.stderr, flush=True)
    settle(daemon)


def settle(daemon: Appliance) -> None:
    """Wait until the daemon does nothing any more: what follows the load before is not part of the next."""
    end = time.monotonic() + QUIET_PATIENCE_SECONDS
    before = daemon.processor_seconds()
    while True:
        time.sleep(QUIET_SECONDS)
        used, before = daemon.processor_seconds() - before, daemon.processor_seconds()
        if used < QUIET_PART * QUIET_SECONDS:
            return
        if time.monotonic() > end:
            raise TimeoutError("the daemon does not come to rest")


def measure(full: Appliance, empty: Appliance, *, rounds: int, messages: int) -> dict[str, list[float]]:
    """Return the rates of each round into the full mailbox, a new one beside it, and one alone."""
    rates: dict[str, list[float]] = {"full": [], "beside": [], "alone": []}
    for number in range(rounds):
        address = f"new{number}-{int(time.time())}@bench.test"
        loads: dict[str, Callable[[int], float]] = {
            "full": _load(full, "user@bench.test", full.new),
            "beside": _load(full, address, full.add_inbox(address)),
            "alone": _load(empty, address, empty.add_inbox(address)),
        }
        names = list(loads)
        for name in names[number % 3 :] + names[: number % 3]:
            # The first messages start what a daemon without work lets go, and make directories.
            loads[name](WARMING)
            rates[name].append(loads[name](messages))
    return rates


def _load(daemon: Appliance, recipient: str, new: Path) -> Callable[[int], float]:
    def run(messages: int) -> float:
        new.mkdir(mode=0o700, parents=True, exist_ok=True)
        return send(daemon, recipient=recipient, new=new, messages=messages)

    return run


def cells_of(rates: dict[str, list[float]], count: int) -> list[report.Cell]:
    """Return the cells; theirs is the mailbox of a daemon that holds nothing else."""

    def cell(name: str, ours: list[float]) -> report.Cell:
        ratio = median(mine / other for mine, other in zip(ours, rates["alone"], strict=True))
        return report.Cell(name, median(ours), median(rates["alone"]), ratio, "messages/s, theirs: empty")

    return [cell(f"mailbox-{count}", rates["full"]), cell(f"beside-{count}", rates["beside"])]


def main() -> int:
    """Run the bench; 0 when the full mailbox is at most a fifth slower than the empty one."""
    parser = argparse.ArgumentParser(prog="bench/mailbox", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"a mailbox of {QUICK_MESSAGES:,} instead")
    parser.add_argument("--messages", type=int, help="a mailbox of so many instead")
    parser.add_argument("--image", type=Path, help="a file system to keep and use again: filled once")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    options = parser.parse_args()
    count = options.messages or (QUICK_MESSAGES if options.quick else MESSAGES)
    with disk.workplace(octets=DISK_OCTETS, options=DISK_OPTIONS, image=options.image) as (place, described):
        cells, facts = _measure_all(place, count, quick=options.quick)
    facts["file system"] = described
    report.show(cells, facts, as_json=options.json)
    short = [cell.name for cell in cells if cell.ratio is not None and cell.ratio < GOAL]
    if short:
        print(f"below the goal: {', '.join(short)}", file=sys.stderr)
    return 1 if short else 0


def _measure_all(place: Path, count: int, *, quick: bool) -> tuple[list[report.Cell], dict[str, str]]:
    synced = f"{disk.fdatasync_milliseconds(place):.2f} ms for 2 KB appended, median"
    full, empty = Appliance(place / "full", port=2600), Appliance(place / "empty", port=2620)
    started = []
    try:
        for daemon in (full, empty):
            daemon.start()
            started.append(daemon)
        settle(full)
        fill(full, count)
        load = next(one for one in acceptance.LOADS if one.name == "2k-c10-reuse")
        messages = load.quick_messages if quick else load.messages
        rates = measure(full, empty, rounds=QUICK_ROUNDS if quick else ROUNDS, messages=messages)
    finally:
        for daemon in started:
            daemon.stop()
    facts = report.machine(
        fdatasync=synced,
        load=f"{len(rates['full'])} rounds of {messages} messages of 2 KB, 10 connections",
        rounds="; ".join(
            f"{name} {', '.join(f'{one:,.0f}' for one in found)}" for name, found in rates.items()
        ),
        mailagents="one fdatasync of the journal before a batch's 250s; Maildir synced at checkpoints",
    )
    return cells_of(rates, count), facts


if __name__ == "__main__":
    sys.exit(main())
