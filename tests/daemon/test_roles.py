"""Parts of the daemon: roles alone, inherited sockets, the control socket, vanishing peers."""

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.daemon.letters import DOMAIN, message, queued_id, wire
from tests.daemon.partner import serving
from tests.daemon.running import ROOT, Daemon, run_cli, until

SERVED = {"smtp": {"mx", "submission", "submissions"}, "imap": {"imap", "imaps"}, "http": {"http"}}


def listening(daemon: Daemon) -> set[str]:
    """The names of the ports that answer."""
    found = set()
    for name, port in daemon.ports.items():
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                found.add(name)
    return found


@pytest.mark.parametrize("role", ["smtp", "imap", "http", "delivery"])
def test_a_role_alone_serves_its_own_ports(template: Path, tmp_path: Path, role: str) -> None:
    with Daemon(tmp_path, template=template, server={"roles": [role]}) as daemon:
        daemon.start()
        assert listening(daemon) == SERVED.get(role, set())
        assert daemon.ask("status")["queue"]["scheduled"] == 0
        assert daemon.stop() == 0


def test_mail_taken_without_the_delivery_role_waits_for_it(template: Path, tmp_path: Path) -> None:
    with Daemon(tmp_path, template=template, server={"roles": ["smtp"]}) as daemon:
        daemon.start()
        alice, bob = daemon.alice.address, daemon.bob.address
        with daemon.submission(daemon.alice) as client:
            client.sendmail(alice, [bob], wire(message("Waits", From=alice)))
        until(lambda: daemon.deliveries(state="scheduled"), "it is not queued")
        assert daemon.stop() == 0
        daemon.settings["server"] = {}
        daemon.write_configuration()
        daemon.start()
        daemon.find(daemon.bob, "Waits")


def test_sockets_opened_by_systemd_are_served(template: Path, tmp_path: Path) -> None:
    activate = shutil.which("systemd-socket-activate")
    if activate is None:
        if os.environ.get("MAILAGENTS_REQUIRE_ALL") == "1":
            pytest.fail("systemd-socket-activate is not installed")
        pytest.skip("systemd-socket-activate is not installed")
    listeners = {"listen_mx": ["systemd:mx"], "listen_submission": [], "listen_submissions": []}
    with Daemon(tmp_path, template=template, smtp=listeners) as daemon:
        command = [
            activate, "-l", f"127.0.0.1:{daemon.ports['mx']}", "--fdname=mx", sys.executable,
            "-m", "server", "serve", "--config", str(daemon.configuration),
        ]  # fmt: skip
        with daemon.log_file.open("ab") as log:
            daemon.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        until(lambda: "mx" in listening(daemon), "nothing listens")
        # The first connection starts the daemon, and waits in the socket's queue meanwhile.
        with daemon.mx() as client:
            client.sendmail("a@partner.test", [f"alice@{DOMAIN}"], wire(message("Woken")))
        daemon.find(daemon.alice, "Woken")


def test_the_control_socket_answers_nonsense_and_nobody_else(daemon: Daemon) -> None:
    place = daemon.control
    assert place.stat().st_mode & 0o077 == 0
    nonsense = [
        b"\n", b"{}\n", b"[]\n", b'"x"\n', b"\xff\xfe\n", b"[" * 200_000 + b"\n",
        b'{"operation": 5}\n', b'{"operation": []}\n',
        b'{"operation": "status", "arguments": 1}\n', b'{"operation": "status", "arguments": {"a": 1}}\n',
    ]  # fmt: skip
    for question in nonsense:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(place))
            client.sendall(question)
            answer = b""
            while not answer.endswith(b"\n"):
                answer += client.recv(65536)
        assert "error" in json.loads(answer), question
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(place))
        with pytest.raises(OSError):  # cut off, not gathered without end
            for _ in range(100):
                client.sendall(b"x" * 100_000)
    assert daemon.ask("status")["queue"]["active"] == 0


def test_the_command_line_works_beside_and_without_the_daemon(template: Path, tmp_path: Path) -> None:
    with Daemon(tmp_path, template=template) as daemon:
        daemon.start()
        made = daemon.cli("inbox", "add", f"new@{DOMAIN}")
        with daemon.mx() as client:  # known at once
            assert client.sendmail("a@partner.test", [made["address"]], wire(message("Hello"))) == {}
        assert daemon.cli("inbox", "add", f"new@{DOMAIN}", status=1)["error"]["code"] == "exists_already"
        assert daemon.stop() == 0
        daemon.cli("inbox", "add", f"newer@{DOMAIN}")
        assert run_cli("explain", "nothing", "--config", daemon.configuration).returncode == 1
        assert run_cli("inbox", "add", "--config", daemon.configuration).returncode == 2
        daemon.start()
        with daemon.mx() as client:
            assert client.sendmail("a@partner.test", [f"newer@{DOMAIN}"], wire(message("Hello"))) == {}


def test_mail_waits_for_a_server_that_is_down(template: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "partner") as partner:
        port = partner.port
    routes = {"partner.test": f"smtp:127.0.0.1:{port}"}
    settings = {"routes": routes, "retry_first_seconds": 1, "retry_max_seconds": 1}
    with Daemon(tmp_path / "daemon", template=template, delivery=settings) as daemon:
        daemon.start()
        alice = daemon.alice.address
        with daemon.submission(daemon.alice) as client:
            client.mail(alice)
            client.rcpt("x@partner.test")
            identifier = queued_id(client.data(wire(message("Patiently", From=alice))))
        found = until(lambda: daemon.deliveries(state="deferred"), "it is not deferred")
        assert "refused" in found[0]["last_outcome"]["text"].lower()
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGKILL)
        daemon.process.wait()
        daemon.start()
        with serving(tmp_path / "partner", port=port) as partner:
            assert partner.find("Patiently").reverse_path == alice
            until(lambda: "delivered" in daemon.kinds(identifier), "the timeline does not show it")


def test_clients_that_vanish_leave_nothing_behind(template: Path, tmp_path: Path) -> None:
    """Gone during the handshake, after half a command, in the middle of a message, or in IDLE."""
    beginnings = {
        "submissions": [b"", b"\x16\x03\x01", b"GET / HTTP/1.0\r\n\r\n"],
        "imaps": [b"", b"\x16\x03\x01", b"GET / HTTP/1.0\r\n\r\n"],
        "mx": [b"", b"EHLO", b"EHLO x\r\nMAIL FROM:<a@b.test>\r\n", b"EHLO x\r\nSTARTTLS\r\n",
               b"EHLO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<alice@agents.test>\r\nDATA\r\nhalf"],
        "imap": [b"", b"a STARTTLS\r\n", b'a LOGIN {5}\r\n', b"a LOGIN {99999999999999}\r\n"],
        "http": [b"", b"GET /", b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf"],
    }  # fmt: skip
    with Daemon(tmp_path, template=template, server={"drain_seconds": 60}) as daemon:
        daemon.start()
        for number in range(30):
            for name, firsts in beginnings.items():
                for first in firsts:
                    with socket.create_connection(("127.0.0.1", daemon.ports[name]), 20) as client:
                        client.sendall(first)
                        if number % 3 == 1:
                            # With a reset in the place of an end.
                            linger = struct.pack("ii", 1, 0)
                            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                        elif number % 3 == 2 and first:
                            client.shutdown(socket.SHUT_WR)
                            with suppress(OSError):
                                client.recv(65536)
        for _ in range(20):
            idle = daemon.imap(daemon.alice)
            idle.select()
            idle.send(b"x IDLE\r\n")
            idle.readline()
            idle.shutdown()
        # Nobody is left whom a drain would have to wait for.
        begin = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - begin < 20
        assert daemon.messages(daemon.alice) == []
        assert "Traceback" not in daemon.log and "exception" not in daemon.log.lower(), daemon.log[-5000:]
