"""What the benches count and print; their figures themselves are no test's business."""

import json
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import latencies, mailboxes, report
from bench.latencies import Measured, percentile
from bench.mailboxes import Arrivals

ROOT = Path(__file__).resolve().parents[1]


def test_a_percentile_is_a_value_that_was_measured() -> None:
    hundred = [float(number) for number in range(1, 101)]
    assert percentile(hundred, 0.99) == 99.0
    assert percentile(hundred, 0.5) == 50.0
    assert percentile(hundred, 1.0) == 100.0
    assert percentile([7.0], 0.01) == 7.0


def run_of(*milliseconds: float) -> Measured:
    return Measured(
        rate=10.0,
        from_schedule=[one + 1 for one in milliseconds],
        from_sending=list(milliseconds),
        lateness=[1.0] * len(milliseconds),
        generator_part=0.1,
        daemon_part=0.5,
    )


def test_latency_cells_are_held_against_the_limit() -> None:
    runs = [run_of(*range(1, 201)), run_of(*range(11, 211)), run_of(*range(1001, 1201))]
    cells = {cell.name: cell for cell in latencies.cells_of(runs)}
    # The median of the runs' figures, not a figure of all their messages.
    assert cells["p99-from-sending"].ours == 208
    assert cells["p99-from-schedule"].ours == 209
    assert cells["p99-from-schedule"].theirs == 50
    assert cells["p99-from-schedule"].ratio == pytest.approx(4.18)
    assert cells["rate"].theirs is None


def test_mailbox_cells_are_medians_of_rounds_beside_the_empty_one() -> None:
    rates = {"full": [80.0, 100.0, 90.0], "beside": [50.0, 50.0, 50.0], "alone": [100.0, 100.0, 50.0]}
    full, beside = mailboxes.cells_of(rates, 500_000)
    assert (full.name, full.ours, full.theirs, full.ratio) == ("mailbox-500000", 90.0, 100.0, 1.0)
    assert (beside.name, beside.ratio) == ("beside-500000", 0.5)


def test_json_of_a_report_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    report.show([report.Cell("a", 1.0, 50.0, 0.02, "ms")], report.machine(load="none"), as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["cells"] == [{"name": "a", "ours": 1.0, "theirs": 50.0, "ratio": 0.02, "unit": "ms"}]
    assert shown["machine"]["load"] == "none"


def test_arrivals_are_counted_by_what_the_kernel_tells(tmp_path: Path) -> None:
    new, tmp = tmp_path / "new", tmp_path / "tmp"
    new.mkdir()
    tmp.mkdir()
    (new / "before").touch()
    arrivals = Arrivals(new)
    for number in range(3000):
        (tmp / f"{number}").touch()
        (tmp / f"{number}").rename(new / f"{number}")
    (new / "linked").hardlink_to(new / "before")
    (new / "before").unlink()
    while arrivals.read(timeout_seconds=0.0) < 3001:
        pass
    assert arrivals.read(timeout_seconds=0.0) == 3001
    arrivals.close()


class Door(socketserver.ThreadingTCPServer):
    """An SMTP server that keeps what it is sent, and answers DATA as it is told."""

    daemon_threads = True

    def __init__(self, verdict: bytes = b"250 kept") -> None:
        super().__init__(("127.0.0.1", 0), Conversation)
        self.verdict = verdict
        self.taken: list[bytes] = []
        self.connections = 0


class Conversation(socketserver.StreamRequestHandler):
    server: Door

    def handle(self) -> None:
        self.server.connections += 1
        self.wfile.write(b"220 a\r\n")
        while line := self.rfile.readline():
            if line == b"DATA\r\n":
                self.wfile.write(b"354 go\r\n")
                content = [self.rfile.readline()]
                while content[-1] not in (b".\r\n", b""):
                    content.append(self.rfile.readline())
                self.server.taken.append(b"".join(content))
                self.wfile.write(self.server.verdict + b"\r\n")
            else:
                self.wfile.write(b"250-first\r\n250 last\r\n")


@contextmanager
def serving(door: Door) -> Iterator[Door]:
    with door:
        thread = threading.Thread(target=door.serve_forever)
        thread.start()
        try:
            yield door
        finally:
            door.shutdown()
            thread.join()


def load(door: Door, *, messages: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.open_loop", "--port", str(door.server_address[1])]
    command += ["--rate", "500", "--messages", str(messages), "--octets", "2048", "--connections", "3"]
    command += ["--recipient", "user@bench.test"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_open_loop_sends_each_message_once_and_counts_each_answer() -> None:
    with serving(Door()) as door:
        done = load(door, messages=60)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert door.connections == 3
    subjects = {line for one in door.taken for line in one.split(b"\r\n") if line.startswith(b"Subject:")}
    whole = [one for one in door.taken if one.endswith(b"\r\n.\r\n")]
    assert len(whole) == len(subjects) == 60
    assert all(2048 <= len(one) < 2400 for one in whole)
    for name in ("from_schedule", "from_sending", "lateness"):
        assert len(measured[name]) == 60
        assert min(measured[name]) >= 0
    pairs = zip(measured["from_schedule"], measured["from_sending"], strict=True)
    assert all(whole >= part for whole, part in pairs)


def test_the_open_loop_ends_where_a_message_is_refused() -> None:
    with serving(Door(verdict=b"451 not now")) as door:
        done = load(door, messages=10)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "451 not now" in done.stderr
