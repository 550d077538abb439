"""A private Mailagents daemon for a bench: configured, provisioned, started, stopped.

All of reception is on but the checks that ask the DNS, as Postfix has none; bench/verified has those on.
smtp, more: further settings, of [smtp] and behind the last table.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench.postfix import wait_for_port

ROOT = Path(__file__).resolve().parent.parent


class Appliance:
    """One daemon under a directory, new or one that another daemon left; `new` is where it delivers."""

    def __init__(
        self,
        directory: Path,
        *,
        port: int,
        authentication: str = "enabled = false",
        policies: Path = ROOT / "conf/policies",
        smtp: str = "",
        more: str = "",
    ) -> None:
        is_new = not (directory / "data").exists()
        directory.mkdir(mode=0o755, exist_ok=True)
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port
        self.passwords: dict[str, str] = {}  # of the inboxes that were added here
        self._configuration = directory / "mailagents.toml"
        self._configuration.write_text(
            f"""
[server]
hostname = "localhost"
development = true
data_directory = "{directory}/data"
log_level = "warning"

[smtp]
listen_mx = ["tcp:127.0.0.1:{port}"]
listen_submission = ["tcp:127.0.0.1:{port + 1}"]
listen_submissions = ["tls:127.0.0.1:{port + 2}"]
max_connections = 5000
max_connections_per_address = 5000
{smtp}
[imap]
listen = ["tcp:127.0.0.1:{port + 3}"]
listen_tls = ["tls:127.0.0.1:{port + 4}"]
max_connections_per_inbox = 5000

[http]
listen = ["tcp:127.0.0.1:{port + 5}"]

[dkim]
watch_records = false

[authentication]
{authentication}

[policy]
directory = "{policies}"

[control]
socket = "{directory}/control.sock"
{more}"""
        )
        if is_new:
            self._command("domain", "add", "bench.test")
            first = self.add_inbox("user@bench.test")
            (directory / "inbox").symlink_to(first.relative_to(directory))
        self.new = directory / (directory / "inbox").readlink()

    def add_inbox(self, address: str) -> Path:
        """Make an inbox; returns where its deliveries are counted."""
        inbox = self._command("inbox", "add", address)
        self.passwords[address] = inbox["password"]
        return self._directory / "data" / "mail" / inbox["id"] / "new"

    def _command(self, *arguments: str) -> dict[str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "server", *arguments, "--config", str(self._configuration), "--json"],
            check=True,
            capture_output=True,
            cwd=ROOT,
        )
        result: dict[str, str] = json.loads(done.stdout)
        return result

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> float:
        """Start the daemon; returns the seconds until the port greeted."""
        begin = time.perf_counter()
        with open(self._directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "server", "serve", "--config", str(self._configuration)],
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        wait_for_port(self.port)
        return time.perf_counter() - begin

    def stop(self) -> None:
        """Stop the daemon and wait for its end."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGTERM)
            self._process.wait(timeout=60)
            self._process = None

    def rss_octets(self) -> int:
        """Return the resident memory of the daemon and its children."""
        return sum(_resident(pid) for pid in (self.pid, *_children(self.pid)))

    def processor_seconds(self) -> float:
        """Return the processor time that the daemon and its children have used."""
        ticks = sum(_ticks(pid) for pid in (self.pid, *_children(self.pid)))
        return ticks / os.sysconf("SC_CLK_TCK")

    def peak_octets(self) -> int:
        """Return the most that the daemon's process ever had resident."""
        return _resident(self.pid, "VmHWM:")


def _resident(pid: int, name: str = "VmRSS:") -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0


def _ticks(pid: int) -> int:
    # Its own and those of children it has waited for; the name before may hold spaces.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15]))


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found.extend(int(child) for child in (task / "children").read_text().split())
    return found
