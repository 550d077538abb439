"""LMTP through the whole daemon: what was answered 250 outlives a kill, for each organization."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.running import Daemon, Inbox, until

FIRST = (
    b"LHLO front.test\r\nMAIL FROM:<a@partner.test>\r\nRCPT TO:<%s>\r\nRCPT TO:<nobody@agents.test>\r\n"
    b"RCPT TO:<%s>\r\nDATA\r\n"
)


@pytest.fixture
def front(template: Path, tmp_path: Path) -> Iterator[tuple[Daemon, Path]]:
    """A running daemon and its LMTP socket."""
    with Daemon(tmp_path / "daemon", template=template) as running:
        path = running.control.with_name("lmtp")
        running.settings["smtp"] = {"listen_lmtp": [f"unix:{path},mode=0600"]}
        running.write_configuration()
        yield running.start(), path


def hand_over(path: Path, content: bytes, *recipients: str) -> list[bytes]:
    """The replies to the content of one transaction, the daemon told of two recipients and one unknown."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        client.sendall(FIRST % tuple(address.encode() for address in recipients))
        heard = b""
        while b"\r\n354 " not in heard:
            heard += client.recv(4096)
        client.sendall(content + b".\r\n")
        heard = b""
        while heard.count(b"\r\n") < 2:
            heard += client.recv(4096)
    return heard.split(b"\r\n")[:-1]


@pytest.mark.parametrize("octets", [100, 3_000_000], ids=["small", "spooled"])
def test_what_was_answered_250_outlives_a_kill(front: tuple[Daemon, Path], octets: int) -> None:
    daemon, path = front
    daemon.ask("organization-add", name="Others")
    daemon.ask("domain-add", name="other.test", organization="Others")
    row = daemon.ask("inbox-add", address="x@other.test")
    other = Inbox(row["id"], row["address"], row["password"])
    content = b"Subject: twice promised\r\n\r\n" + (b"x" * 76 + b"\r\n") * (octets // 78)
    answers = hand_over(path, content, daemon.alice.address, other.address)
    daemon.kill()
    assert [answer[:9] for answer in answers] == [b"250 2.0.0"] * 2
    assert answers[0] != answers[1], "a message of its own for each organization"
    daemon.start()
    for inbox in (daemon.alice, other):
        placed = daemon.find(inbox, "twice promised")
        assert placed["Delivered-To"] == inbox.address
        assert placed.get_payload(decode=True).rstrip() == content.partition(b"\r\n\r\n")[2].rstrip()
        assert len(daemon.files(inbox)) == 1
    answers = hand_over(path, b"Subject: again\r\n\r\nx\r\n", daemon.alice.address, other.address)
    assert [answer[:3] for answer in answers] == [b"250"] * 2


def test_a_host_that_is_not_named_is_turned_away(template: Path, tmp_path: Path) -> None:
    with Daemon(tmp_path, template=template) as daemon:
        port = daemon.ports["submission"]
        daemon.settings["smtp"] = {
            "listen_submission": [],
            "listen_lmtp": [f"tcp:127.0.0.1:{port}"],
            "lmtp_networks": ["192.0.2.0/24"],
        }
        daemon.write_configuration()
        daemon.start()
        with socket.create_connection(("127.0.0.1", port), 20) as client:
            assert client.recv(1000).startswith(b"554 5.7.1 ")
            assert client.recv(1000) == b""
        assert until(lambda: daemon.ask("status"), "no answer")
