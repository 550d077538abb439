"""A whole daemon in a process of its own, for tests: configured, provisioned, started, killed.

What is asked of it goes the ways that users have: the command line, the control socket,
and the ports. Readiness is what the daemon tells its service manager.
"""

import imaplib
import json
import os
import random
import shutil
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any, TypeVar

from server.control import ask_all, ask_any
from server.operations import OperationFailed
from tests.daemon.letters import DOMAIN, parsed

ROOT = Path(__file__).resolve().parents[2]
HOSTNAME = "mx.agents.test"
NAMES = ("mx", "submission", "submissions", "imap", "imaps", "http")
PATIENCE_SECONDS = 30.0

T = TypeVar("T")


class Trouble(AssertionError):
    """The daemon or the command line did not do what a test stands on."""


@dataclass(frozen=True)
class Inbox:
    """An inbox with its app password."""

    id: str
    address: str
    password: str


def free_ports(count: int) -> list[int]:
    """Ports that nobody has, below those that the kernel gives to outgoing connections.

    A daemon that is killed and started again must find its port still free, and a client
    that knocks meanwhile must not be given that very port to knock from.
    """
    dice = random.SystemRandom()
    found: list[int] = []
    while len(found) < count:
        port = dice.randrange(12_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found


def until(check: Callable[[], T | None], what: str, *, seconds: float = PATIENCE_SECONDS) -> T:
    """Return the first true value of check; fails with its words when none comes in time."""
    end = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > end:
            raise Trouble(f"waited {seconds:.0f} s: {what}")
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """The processes that a process has started and not yet lost."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def run_cli(*arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    command = [sys.executable, "-m", "server", *map(str, arguments)]
    wide = {**os.environ, "COLUMNS": "250"}
    settings: dict[str, Any] = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 60, "env": wide}
    return subprocess.run(command, **{**settings, "check": False, **more})


class Daemon:
    """One daemon over a directory. settings: sections of the configuration, over the usual ones.

    template: a stopped daemon's directory whose data and accounts are copied.
    data: where the data directory is, if not below the directory. beside: another process of the
    same appliance, whose data, ports, accounts and control socket this one shares.
    """

    def __init__(
        self,
        directory: Path,
        *,
        template: Path | None = None,
        data: Path | None = None,
        beside: "Daemon | None" = None,
        **settings: Mapping[str, object],
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.data = data or directory / "data"
        self.ports = dict(zip(NAMES, free_ports(len(NAMES)), strict=True))
        self.process: subprocess.Popen[bytes] | None = None
        self.notices: list[str] = []
        self.inboxes: dict[str, Inbox] = {}
        self.keys: dict[str, str] = {}
        # Unix sockets have short names, and pytest's directories have long ones.
        self._short = beside._short if beside else Path(tempfile.mkdtemp(prefix="mailagents-"))
        self._beside = beside
        if beside is not None:
            self.data, self.inboxes, self.keys = beside.data, beside.inboxes, beside.keys
            self.ports = dict(beside.ports)
        self.configuration = directory / "mailagents.toml"
        self.settings = settings
        self.write_configuration()
        if template is not None:
            shutil.copytree(template / "data", self.data)
            self._remember(json.loads((template / "accounts.json").read_text()))

    # ---- configuration and accounts ----

    def write_configuration(self) -> None:
        """Write the file anew from the usual settings and self.settings."""
        usual: dict[str, dict[str, object]] = {
            "server": {
                "hostname": HOSTNAME,
                "development": True,
                "data_directory": str(self.data),
                "drain_seconds": 10,
            },
            "store": {"disk_reserve_octets": 0, "journal_segment_octets": 1 << 20},
            "smtp": {
                "listen_mx": [self._at("tcp", "mx")],
                "listen_submission": [self._at("tcp", "submission")],
                "listen_submissions": [self._at("tls", "submissions")],
            },
            "imap": {"listen": [self._at("tcp", "imap")], "listen_tls": [self._at("tls", "imaps")]},
            "http": {"listen": [self._at("tcp", "http")]},
            "authentication": {"enabled": False},
            "dkim": {"watch_records": False},
            "policy": {"directory": str(self._rules())},
            "delivery": {"default_route": "capture"},
            "control": {"socket": str(self.control)},
        }
        for section, values in self.settings.items():
            usual.setdefault(section, {}).update(values)
        self.configuration.write_text(
            "\n".join(
                f"[{section}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())
                for section, values in usual.items()
            )
        )

    def _rules(self) -> Path:
        """The shipped rules, but that mail for tests of something else needs no From field."""
        rules = self.directory / "policies"
        rules.mkdir(exist_ok=True)
        for path in (ROOT / "conf/policies").glob("*.toml"):
            text = path.read_text()
            (rules / path.name).write_text(
                text.replace('name = "from-fields"', 'name = "from-fields"\nenabled = false')
            )
        return rules

    def _at(self, kind: str, name: str) -> str:
        return f"{kind}:127.0.0.1:{self.ports[name]}"

    def provision(self) -> None:
        """Make a domain, two inboxes, a key of the first and an operator's, by the command line."""
        self.cli("domain", "add", DOMAIN)
        made = [self.cli("inbox", "add", f"{name}@{DOMAIN}") for name in ("alice", "bob")]
        key = self.cli("key", "add", "--inbox", f"alice@{DOMAIN}")
        operator = ("--organization", DOMAIN, "--scope", "operator", "--scope", "org:admin")
        console = self.cli("key", "add", *operator, "--scope", "event:read")
        known = {"inboxes": made, "keys": {"alice": key["key"], "operator": console["key"]}}
        (self.directory / "accounts.json").write_text(json.dumps(known))
        self._remember(known)

    def _remember(self, known: dict[str, Any]) -> None:
        for row in known["inboxes"]:
            inbox = Inbox(row["id"], row["address"], row["password"])
            self.inboxes[inbox.address.partition("@")[0]] = inbox
        self.keys |= known["keys"]

    @property
    def alice(self) -> Inbox:
        return self.inboxes["alice"]

    @property
    def bob(self) -> Inbox:
        return self.inboxes["bob"]

    def new_inbox(self, local: str | None = None) -> Inbox:
        """Make an inbox that no other test has."""
        address = f"{local or 'i' + uuid.uuid4().hex[:12]}@{DOMAIN}"
        row = self.ask("inbox-add", address=address)
        return Inbox(row["id"], row["address"], row["password"])

    def cli(self, *arguments: object, status: int = 0) -> dict[str, Any]:
        """Run a command with --json; its answer. Fails on any other exit status."""
        done = run_cli(*arguments, "--config", self.configuration, "--json")
        if done.returncode != status or "Traceback" in done.stderr:
            raise Trouble(f"{arguments} ended with {done.returncode}: {done.stdout}{done.stderr}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    @property
    def control(self) -> Path:
        """The control socket."""
        return self._short / "control"

    def ask(self, operation: str, **arguments: object) -> dict[str, Any]:
        """Ask over the control socket, as the command line does."""
        return ask_any(self.control, operation, arguments, timeout_seconds=PATIENCE_SECONDS)

    # ---- the process ----

    def spawn(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start the process and return at once."""
        command = [sys.executable, "-m", "server", "serve", "--config", str(self.configuration)]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONFAULTHANDLER": "1", **environment},
            )
        return self.process

    def start(self, **environment: str) -> "Daemon":
        """Start the process and return once it says that it is ready."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            place = f"mailagents-{uuid.uuid4().hex}"
            manager.bind("\0" + place)
            manager.settimeout(0.1)
            process = self.spawn(NOTIFY_SOCKET="@" + place, **environment)
            end = time.monotonic() + PATIENCE_SECONDS
            while "READY=1" not in (notice := _datagram(manager)).splitlines():
                if process.poll() is not None or time.monotonic() > end:
                    raise Trouble(f"the daemon does not start ({process.poll()}):\n{self.log[-5000:]}")
            self.notices.append(notice)
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """End the process at this very instant."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE_SECONDS)

    def show_stacks(self) -> None:
        """End the process so that it writes where each of its threads stands into the log."""
        assert self.process is not None
        self.process.send_signal(signal.SIGABRT)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE_SECONDS)

    def stop(self) -> int:
        """Ask the process to end; its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        """End the process, however the test went."""
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
        if self._beside is None:
            shutil.rmtree(self._short, ignore_errors=True)

    def __enter__(self) -> "Daemon":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close()
        if kind is None:
            assert "Traceback" not in self.log, self.log

    @property
    def log_file(self) -> Path:
        return self.directory / "log"

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    # ---- clients ----

    @property
    def certificate(self) -> Path:
        """The certificate that the daemon made for itself."""
        return self.data / "tls" / "certificate.pem"

    def tls(self) -> ssl.SSLContext:
        """A client's context that trusts this daemon and no one else."""
        return ssl.create_default_context(cafile=str(self.certificate))

    def mx(self) -> smtplib.SMTP:
        """A foreign server's connection."""
        return smtplib.SMTP("127.0.0.1", self.ports["mx"], local_hostname="client.test", timeout=20)

    def submission(self, inbox: Inbox, *, password: str | None = None) -> smtplib.SMTP_SSL:
        """A user's logged-in connection over TLS."""
        client = smtplib.SMTP_SSL(
            "127.0.0.1",
            self.ports["submissions"],
            timeout=20,
            context=self.tls(),
            local_hostname="[127.0.0.1]",
        )
        client.login(inbox.address, password or inbox.password)
        return client

    def imap(self, inbox: Inbox) -> imaplib.IMAP4_SSL:
        """A logged-in IMAP connection over TLS."""
        client = imaplib.IMAP4_SSL("127.0.0.1", self.ports["imaps"], ssl_context=self.tls(), timeout=20)
        client.login(inbox.address, inbox.password)
        return client

    # ---- what has come ----

    def maildir(self, inbox: Inbox, folder: str = "INBOX") -> Path:
        root = self.data / "mail" / inbox.id
        return root if folder == "INBOX" else root / f".{folder}"

    def files(self, inbox: Inbox, folder: str = "INBOX") -> list[Path]:
        """The message files of a folder, as a foreign program sees them."""
        place = self.maildir(inbox, folder)
        return [path for name in ("new", "cur") for path in sorted((place / name).glob("*"))]

    def messages(self, inbox: Inbox, folder: str = "INBOX") -> list[EmailMessage]:
        """The messages of a folder, read from its files."""
        return [parsed(path.read_bytes()) for path in self.files(inbox, folder)]

    def find(self, inbox: Inbox, subject: str, folder: str = "INBOX") -> EmailMessage:
        """Wait for the message of a subject."""
        return until(
            lambda: next((one for one in self.messages(inbox, folder) if one["Subject"] == subject), None),
            f"{subject!r} is not in {folder} of {inbox.address}\n{self.log}",
        )

    def explain(self, message_id: str) -> dict[str, Any]:
        return self.ask("explain", id=message_id)

    def kinds(self, message_id: str) -> list[str]:
        """The kinds of the events on a message's timeline, in order; none before it is applied."""
        try:
            steps = self.explain(message_id)["timeline"]
        except OperationFailed:
            return []
        return [step["kind"].removeprefix("message.") for step in steps]

    def deliveries(self, **arguments: object) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.ask("queue-list", **arguments)["deliveries"]
        return rows

    def drained(self, *, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until everything accepted is applied and nothing waits in the queue."""

        def is_empty() -> bool:
            # Of several processes each has a backlog of its own.
            answers = ask_all(self.control, "status", {}, timeout_seconds=PATIENCE_SECONDS)
            backlog = sum(answer["journal_backlog_octets"] for answer in answers)
            return not backlog and not any(answers[-1]["queue"].values())

        until(is_empty, "the queue does not get empty", seconds=seconds)

    def settled(self, message_id: str) -> dict[str, Any]:
        """Wait until no delivery of a message is under way or new; what explain says then."""

        def explained() -> dict[str, Any] | None:
            try:
                found = self.explain(message_id)
            except OperationFailed:  # not applied yet
                return None
            waiting = any(row["state"] in ("scheduled", "active") for row in found["deliveries"])
            return None if waiting else found

        return until(explained, f"{message_id} is not settled") or {}


def _datagram(manager: socket.socket) -> str:
    try:
        return manager.recv(4096).decode()
    except TimeoutError:
        return ""


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
