"""Milliseconds from the end of DATA to the 250 while messages come at half the rate that is possible.

The rate is half of what the same daemon took from smtp-source over 10 connections just before. The load is an
open loop (bench/open_loop.py): messages come by a schedule, whether or not the ones before are answered. Two
times are counted for each: from the moment it was due, which is what a sender feels, and from the moment its
final dot was written.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import acceptance, disk, report
from bench.appliance import ROOT, Appliance

LIMIT_MILLISECONDS = 50.0
CONNECTIONS = 50
OCTETS = 2048
# Each round as long as the journal's checkpoints are apart: one is always part of it.
SECONDS = 30.0
ROUNDS, QUICK_ROUNDS = 5, 1
# From this part of a processor on, the generator would measure itself.
GENERATOR_PART = 0.6


@dataclass(frozen=True)
class Measured:
    """One run: messages a second that were sent, and times in milliseconds, in order of size."""

    rate: float
    from_schedule: list[float]
    from_sending: list[float]
    lateness: list[float]
    generator_part: float
    daemon_part: float


def percentile(ordered: list[float], part: float) -> float:
    """Return the smallest value that this part of all values does not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * part) - 1)]


def measure(daemon: Appliance, *, rate: float, seconds: float, seed: int) -> Measured:
    """Send messages at a rate, by a schedule, and return what each waited; all must arrive."""
    messages = max(100, int(rate * seconds))
    before = acceptance.count(daemon.new)
    command = [sys.executable, "-m", "bench.open_loop", "--port", str(daemon.port), "--rate", str(rate)]
    command += ["--messages", str(messages), "--octets", str(OCTETS), "--connections", str(CONNECTIONS)]
    command += ["--recipient", "user@bench.test", "--seed", str(seed)]
    used = daemon.processor_seconds()
    done = subprocess.run(command, check=False, capture_output=True, cwd=ROOT)
    if done.returncode != 0:
        raise RuntimeError(f"the load ended: {done.stderr.decode(errors='replace')[-2000:]}")
    found = json.loads(done.stdout)
    used = daemon.processor_seconds() - used
    _wait_arrived(daemon.new, before + messages)
    return Measured(
        rate=messages / found["seconds"],
        from_schedule=sorted(found["from_schedule"]),
        from_sending=sorted(found["from_sending"]),
        lateness=sorted(found["lateness"]),
        generator_part=found["processor_seconds"] / found["seconds"],
        daemon_part=used / found["seconds"],
    )


def _wait_arrived(new: Path, wanted: int) -> None:
    end = time.monotonic() + acceptance.PATIENCE_SECONDS
    while (arrived := acceptance.count(new)) < wanted:
        if time.monotonic() > end:
            raise TimeoutError(f"{wanted - arrived} messages that had a 250 did not arrive")
        time.sleep(0.02)


def cells_of(runs: list[Measured]) -> list[report.Cell]:
    """Return the cells, each the median of the runs' figures."""

    def cell(name: str, values: list[float]) -> report.Cell:
        value = median(values)
        return report.Cell(
            name, value, LIMIT_MILLISECONDS, value / LIMIT_MILLISECONDS, "ms, theirs: the limit"
        )

    return [
        cell("p99-from-schedule", [percentile(run.from_schedule, 0.99) for run in runs]),
        cell("p99-from-sending", [percentile(run.from_sending, 0.99) for run in runs]),
        cell("p50-from-schedule", [percentile(run.from_schedule, 0.5) for run in runs]),
        cell("worst-from-schedule", [run.from_schedule[-1] for run in runs]),
        report.Cell("rate", median(run.rate for run in runs), None, None, "messages/s, open loop"),
    ]


def main() -> int:
    """Run the bench; 0 when 99 of 100 messages had their 250 within the limit."""
    parser = argparse.ArgumentParser(prog="bench/latency", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    parser.add_argument("--rate", type=float, help="messages a second, instead of half of what is possible")
    options = parser.parse_args()
    with disk.workplace() as (place, described):
        cells, facts = _measure_all(place, quick=options.quick, rate=options.rate)
    facts["file system"] = described
    report.show(cells, facts, as_json=options.json)
    found = {cell.name: cell.ours for cell in cells}
    slow = [name for name, value in found.items() if name.startswith("p99") and value >= LIMIT_MILLISECONDS]
    if slow:
        print(f"over the limit: {', '.join(slow)}", file=sys.stderr)
    return 1 if slow else 0


def _measure_all(place: Path, *, quick: bool, rate: float | None) -> tuple[list[report.Cell], dict[str, str]]:
    synced = f"{disk.fdatasync_milliseconds(place):.2f} ms for 2 KB appended, median"
    daemon = Appliance(place / "mailagents", port=2600)
    daemon.start()
    try:
        possible: list[float] = []
        runs: list[Measured] = []
        for number in range(QUICK_ROUNDS if quick else ROUNDS):
            if rate is None:
                possible.append(_possible(daemon, quick=quick))
            runs.append(
                measure(
                    daemon,
                    rate=rate or median(possible) / 2,
                    seconds=SECONDS,
                    seed=number,
                )
            )
            acceptance.clear(daemon.new)
    finally:
        daemon.stop()
    cells = cells_of(runs)
    if possible:
        cells.append(report.Cell("2k-c10-reuse", median(possible), None, None, "messages/s, closed loop"))
    generator = max(run.generator_part for run in runs)
    facts = report.machine(
        fdatasync=synced,
        load=f"{len(runs)} runs of {len(runs[0].from_schedule)} messages of 2 KB, {CONNECTIONS} connections",
        generator=f"{generator:.2f} of a processor, its writes {_late(runs)} ms late (p99)"
        + (": TOO BUSY, its figures are its own" if generator > GENERATOR_PART else ""),
        daemon=f"{median(run.daemon_part for run in runs):.2f} of a processor",
        mailagents="one fdatasync of the journal before a batch's 250s; Maildir synced at checkpoints",
    )
    return cells, facts


def _late(runs: list[Measured]) -> str:
    return f"{max(percentile(run.lateness, 0.99) for run in runs):.2f}"


def _possible(daemon: Appliance, *, quick: bool) -> float:
    load = next(one for one in acceptance.LOADS if one.name == "2k-c10-reuse")
    rate = acceptance.run(daemon, load, load.quick_messages if quick else load.messages)
    acceptance.clear(daemon.new)
    return rate


if __name__ == "__main__":
    sys.exit(main())
