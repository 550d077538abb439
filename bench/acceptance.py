"""Messages a second from smtp-source into new/, Mailagents beside Postfix on one file system.

Both servers take the same load in turn; a message counts when its file is in
new/. A pair is one run of each; a cell is the median of the pairs' rates.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Protocol

from bench import disk, processor, report, verified
from bench.appliance import Appliance
from bench.postfix import Postfix, version

PAIRS = 5
QUICK_PAIRS = 1
PATIENCE_SECONDS = 120


class Server(Protocol):
    """What is measured."""

    port: int
    new: Path

    @property
    def pid(self) -> int:
        """The process that all its others are below."""
        ...


@dataclass(frozen=True)
class Load:
    """One cell's load; octets of content a message, sessions at once."""

    name: str
    octets: int
    sessions: int
    reuse: bool
    messages: int
    quick_messages: int
    goal: float
    is_verified: bool = False  # signed, and checked by a daemon of its own
    letter: Path | None = None  # sent in the place of smtp-source's own


LOADS = (
    Load("2k-c1-reuse", 2048, 1, True, 600, 250, 1.0),
    Load("2k-c10-reuse", 2048, 10, True, 5000, 1500, 1.5),
    Load("2k-c50-reuse", 2048, 50, True, 8000, 2000, 3.0),
    Load("2k-c10-one", 2048, 10, False, 3000, 1200, 1.2),
    Load("50k-c10-reuse", 50 * 1024, 10, True, 2000, 600, 1.2),
    Load("1m-c10-reuse", 1024 * 1024, 10, True, 200, 60, 1.0),
    Load("2k-c10-reuse-verified", 2048, 10, True, 5000, 1500, 1.0, is_verified=True),
)


def run(server: Server, load: Load, messages: int) -> float:
    """Send the load to a server and return messages a second until all are in new/."""
    before = count(server.new)
    command = ["smtp-source", "-s", str(load.sessions), "-m", str(messages)]
    command += ["-F", str(load.letter)] if load.letter else ["-l", str(load.octets)]
    if load.reuse:
        command.append("-d")
    command += ["-f", "sender@source.test", "-t", "user@bench.test", f"127.0.0.1:{server.port}"]
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wanted = before + messages
    while (arrived := count(server.new)) < wanted:
        if time.perf_counter() - begin > PATIENCE_SECONDS:
            raise TimeoutError(f"{load.name}: {arrived - before} of {messages} messages arrived")
        time.sleep(0.005)
    return messages / (time.perf_counter() - begin)


def count(directory: Path) -> int:
    """Return how many files a directory holds."""
    try:
        return len(os.listdir(directory))
    except FileNotFoundError:
        return 0


def clear(directory: Path) -> None:
    """Empty new/ between loads, so that no load pays for the one before."""
    for entry in os.scandir(directory) if directory.exists() else ():
        os.unlink(entry.path)
    os.sync()


def measure(
    ours: Server, theirs: Server | None, load: Load, *, quick: bool, facts: dict[str, str]
) -> report.Cell:
    """Return a cell, and note processor time among the facts.

    In quick runs a cell that falls short is run twice more and the median taken.
    """
    messages = load.quick_messages if quick else load.messages
    servers = [one for one in (ours, theirs) if one is not None]
    before = [processor.tree_seconds(one.pid) for one in servers]
    rates: list[tuple[float, float | None]] = []
    for number in range(QUICK_PAIRS if quick else PAIRS):
        rates.append(pair(ours, theirs, load, messages, swap=bool(number % 2)))
    if quick and theirs is not None and _cell(load, rates).ratio < load.goal:  # type: ignore[operator]
        rates += [pair(ours, theirs, load, messages, swap=swap) for swap in (True, False)]
    used = [
        (processor.tree_seconds(one.pid) - start) * 1000 / (len(rates) * messages)
        for one, start in zip(servers, before, strict=True)
    ]
    # With the workers' idling between runs; the disk's own work is the kernel's and in no server's account.
    facts[f"processor time a message, {load.name}"] = " beside ".join(f"{one:.2f} ms" for one in used)
    return _cell(load, rates)


def pair(
    ours: Server, theirs: Server | None, load: Load, messages: int, *, swap: bool
) -> tuple[float, float | None]:
    """Run both servers once, ours first unless swapped."""
    result: dict[int, float] = {}
    servers = [(0, ours)] if theirs is None else [(0, ours), (1, theirs)]
    for index, server in reversed(servers) if swap else servers:
        result[index] = run(server, load, messages)
        clear(server.new)
    return result[0], result.get(1)


def _cell(load: Load, rates: list[tuple[float, float | None]]) -> report.Cell:
    ours = median(rate for rate, _ in rates)
    others = [rate for _, rate in rates if rate is not None]
    theirs = median(others) if others else None
    ratio = median(mine / other for mine, other in rates if other is not None) if others else None
    return report.Cell(load.name, ours, theirs, ratio, "messages/s")


def main() -> int:
    """Run the bench; 0 when every cell reached its goal."""
    parser = argparse.ArgumentParser(prog="bench/accept", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one pair a cell")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    parser.add_argument("--cell", action="append", help="only this cell; may be given again")
    options = parser.parse_args()
    loads = [load for load in LOADS if not options.cell or load.name in options.cell]
    with disk.workplace() as (place, described):
        cells, facts = _measure_all(place, loads, quick=options.quick)
    facts["file system"] = described
    report.show(cells, facts, as_json=options.json)
    goals = {load.name: load.goal for load in loads}
    short = [cell.name for cell in cells if cell.ratio is not None and cell.ratio < goals[cell.name]]
    if short:
        print(f"below the goal: {', '.join(short)}", file=sys.stderr)
    return 1 if short else 0


def _measure_all(place: Path, loads: list[Load], *, quick: bool) -> tuple[list[report.Cell], dict[str, str]]:
    ours = Appliance(place / "mailagents", port=2600)
    theirs = Postfix(place / "postfix", port=2590) if os.geteuid() == 0 else None
    facts = report.machine(
        fdatasync=f"{disk.fdatasync_milliseconds(place):.2f} ms for 2 KB appended, median",
        postfix=f"{version()}, syncs each queue file before its 250 and each Maildir file"
        if theirs
        else "not run: it needs root",
        mailagents="one fdatasync of the journal before a batch's 250s; Maildir synced at checkpoints",
    )
    if theirs is not None:
        facts["postfix settings"] = ", ".join(f"{key}={value}" for key, value in theirs.settings.items())
    ours.start()
    try:
        if theirs is not None:
            theirs.start()
        cells = [
            measure(ours, theirs, load, quick=quick, facts=facts) for load in loads if not load.is_verified
        ]
        for load in loads:
            if load.is_verified:
                ours.stop()
                with verified.checking(place / "verified", port=2610) as (checking, letter):
                    cells.append(
                        measure(checking, theirs, replace(load, letter=letter), quick=quick, facts=facts)
                    )
        return cells, facts
    finally:
        ours.stop()
        if theirs is not None:
            theirs.stop()


if __name__ == "__main__":
    sys.exit(main())
