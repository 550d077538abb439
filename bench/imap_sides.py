"""Both servers of bench/imap by one interface: started, filled over LMTP, asked, weighed."""

import shutil
import smtplib
import subprocess
from pathlib import Path
from typing import Protocol

from bench.appliance import Appliance
from bench.dovecot import Dovecot
from bench.imap_client import ImapClient
from bench.imap_mail import messages

LOGIN = "user@bench.test"


class Side(Protocol):
    """A server with one inbox."""

    name: str
    lmtp_port: int

    def start(self) -> None:
        """Start it and wait until it answers."""
        ...

    def stop(self) -> None:
        """Stop it and wait for its end."""
        ...

    def client(self) -> ImapClient:
        """Return a new session that is logged in."""
        ...

    def deliver(self, count: int) -> None:
        """Deliver messages over LMTP."""
        ...

    def make_cold(self, *, indexed: bool) -> None:
        """While it is stopped: leave of what it knows about the mail what delivery left."""
        ...

    def pss_octets(self) -> int:
        """Return the memory of all its processes, shared pages by share."""
        ...


class Ours:
    """Mailagents."""

    name = "mailagents"

    def __init__(self, directory: Path) -> None:
        port = 2640
        self.lmtp_port = port + 6
        self._daemon = Appliance(
            directory,
            port=port,
            smtp=f'listen_lmtp = ["tcp:127.0.0.1:{self.lmtp_port}"]\n',
        )
        self._password = self._daemon.passwords[LOGIN]

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._daemon.start()

    def stop(self) -> None:
        """Stop it and wait for its end."""
        self._daemon.stop()

    def client(self) -> ImapClient:
        """Return a new session that is logged in."""
        return ImapClient(self._daemon.port + 4, login=LOGIN, password=self._password)

    def deliver(self, count: int) -> None:
        """Deliver messages over LMTP and wait until all are applied."""
        _deliver(self.lmtp_port, count)
        client = self.client()
        while b"MESSAGES %d" % count not in client.command(b"STATUS INBOX (MESSAGES)"):
            pass
        client.close()

    def make_cold(self, *, indexed: bool) -> None:
        """Nothing is built after delivery."""

    def pss_octets(self) -> int:
        """Return the memory of all its processes, shared pages by share."""
        return _pss_tree(self._daemon.pid)


class Theirs:
    """Dovecot."""

    name = "dovecot"

    def __init__(self, directory: Path, *, certificate: Path) -> None:
        _make_certificate(certificate)
        self._daemon = Dovecot(
            directory, port=2660, certificate=certificate / "cert.pem", key=certificate / "key.pem"
        )
        self.lmtp_port = self._daemon.lmtp_port
        self._kept = directory / "indexes"
        self.version = self._daemon.version()

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._daemon.start()

    def stop(self) -> None:
        """Stop it and wait for its end."""
        self._daemon.stop()

    def client(self) -> ImapClient:
        """Return a new session that is logged in."""
        return ImapClient(self._daemon.tls_port, login=LOGIN, password="secret")

    def deliver(self, count: int) -> None:
        """Deliver messages over LMTP."""
        _deliver(self.lmtp_port, count)

    def keep_indexes(self) -> None:
        """Keep its indexes as delivery left them, before anybody reads."""
        self._kept.mkdir()
        for path in self._daemon.maildir.glob("dovecot.index*"):
            shutil.copy2(path, self._kept)

    def make_cold(self, *, indexed: bool) -> None:
        """Bring back the indexes as delivery left them, or none."""
        self._daemon.forget_indexes()
        if indexed:
            for path in self._kept.iterdir():
                target = self._daemon.maildir / path.name
                shutil.copy2(path, target)
                shutil.chown(target, "mail", "mail")

    def pss_octets(self) -> int:
        """Return the memory of all its processes, shared pages by share."""
        return _pss_tree(self._daemon.pid)


def _deliver(port: int, count: int) -> None:
    with smtplib.LMTP("127.0.0.1", port, timeout=120) as client:
        for message in messages(count):
            client.sendmail("sender@source.test", [LOGIN], message)


def _make_certificate(directory: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", "/CN=localhost", "-days", "2"]
    command += ["-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)


def _pss_tree(pid: int) -> int:
    octets = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            octets = int(line.split()[1]) * 1024
    for task in Path(f"/proc/{pid}/task").iterdir():
        octets += sum(_pss_tree(int(child)) for child in (task / "children").read_text().split())
    return octets
