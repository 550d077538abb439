"""Hosts of the house and testers: Postfix and swaks over LMTP, swaks with XCLIENT, sslscan at every door."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.postfix import Postfix
from tests.daemon.letters import DOMAIN
from tests.daemon.running import ROOT, Daemon, free_ports, until
from tests.interop.programs import program, run
from tests.interop.scans import judge_tls

REFUSING = """
[[rule]]
name = "far"
stage = "connect"
when = 'client_ip == "203.0.113.7"'
action = "reject"
text = "Not from there"

[[rule]]
name = "large"
stage = "message"
when = 'source == "lmtp" && subject == "refuse me"'
action = "reject"
text = "Refused by name"
"""


@pytest.fixture(scope="module")
def house(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with LMTP over TCP and a Unix socket, HTTP over TLS and XCLIENT for this machine."""
    directory = tmp_path_factory.mktemp("house")
    rules = directory / "rules"
    shutil.copytree(ROOT / "conf/policies", rules)
    (rules / "01-mine.toml").write_text(REFUSING)
    lmtp, https = free_ports(2)
    # Where Postfix's own user may look.
    sockets = Path(tempfile.mkdtemp(prefix="lmtp-"))
    sockets.chmod(0o755)
    group = ",group=postfix" if os.geteuid() == 0 and Path("/usr/sbin/postfix").exists() else ""
    with Daemon(
        directory / "daemon",
        template=template,
        policy={"directory": str(rules)},
        smtp={
            "listen_lmtp": [f"tcp:127.0.0.1:{lmtp}", f"unix:{sockets}/lmtp,mode=0660{group}"],
            "xclient_networks": ["127.0.0.1/32"],
        },
        http={"listen": [f"tls:127.0.0.1:{https}"]},
        authentication={"enabled": True},
        dns={"servers": ["127.0.0.1:9"], "timeout_seconds": 0.1},
    ) as running:
        running.ports |= {"lmtp": lmtp, "https": https}
        running.lmtp_socket = sockets / "lmtp"
        yield running.start()
    shutil.rmtree(sockets)


@pytest.mark.parametrize("way", ["tcp", "unix", "pipelined"])
def test_swaks_hands_over_by_lmtp(house: Daemon, tmp_path: Path, way: str) -> None:
    one, two = house.new_inbox(), house.new_inbox()
    to = (
        ["--socket", house.lmtp_socket] if way == "unix" else ["--server", f"127.0.0.1:{house.ports['lmtp']}"]
    )
    done = run(
        tmp_path, program("swaks"), "--protocol", "LMTP", *to, "--from", "a@partner.test",
        "--to", f"{one.address},nobody@{DOMAIN},{two.address}", "--header", f"Subject: {way}",
        *(["--pipeline"] if way == "pipelined" else []),
    )  # fmt: skip
    assert done.stdout.count("250 2.0.0 Ok: msg_") == 2
    assert done.stdout.count("550 5.1.1") == 1
    for inbox in (one, two):
        placed = house.find(inbox, way)
        assert "with LMTP id" in placed["Received"]
        assert placed["Return-Path"] == "<a@partner.test>"
        assert placed["Authentication-Results"] is None


def test_swaks_is_refused_apiece(house: Daemon, tmp_path: Path) -> None:
    done = run(
        tmp_path, program("swaks"), "--protocol", "LMTP", "--socket", house.lmtp_socket, "--from",
        "a@partner.test", "--to", f"{house.alice.address},{house.bob.address}", "--header",
        "Subject: refuse me", status=26,
    )  # fmt: skip
    assert done.stdout.count("550 5.7.1 Refused by name") == 2


def test_swaks_by_lmtp_over_tls(house: Daemon, tmp_path: Path) -> None:
    inbox = house.new_inbox()
    run(
        tmp_path, program("swaks"), "--protocol", "LMTP", "--server", f"127.0.0.1:{house.ports['lmtp']}",
        "--tls", "--from", "a@partner.test", "--to", inbox.address, "--header", "Subject: secured",
    )  # fmt: skip
    assert "with LMTPS id" in house.find(inbox, "secured")["Received"]


def test_swaks_stands_for_another_client(house: Daemon, tmp_path: Path) -> None:
    inbox = house.new_inbox()
    common = (
        program("swaks"), "--server", f"127.0.0.1:{house.ports['mx']}", "--from", "a@partner.test",
        "--to", inbox.address, "--header", "Subject: from afar", "--xclient-helo", "far.example",
        "--xclient-name", "far.example", "--xclient-addr",
    )  # fmt: skip
    run(tmp_path, *common, "203.0.113.9", status=0)
    placed = house.find(inbox, "from afar")
    assert "(far.example [203.0.113.9])" in placed["Received"]
    assert "spf=" in placed["Authentication-Results"]
    done = run(tmp_path, *common, "203.0.113.7", status=33)
    assert "550 5.7.1 Not from there" in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="Postfix needs root")
@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_postfix_delivers_by_lmtp(house: Daemon, tmp_path: Path, way: str) -> None:
    program("postfix")
    (port,) = free_ports(1)
    place = Path(tempfile.mkdtemp(prefix="postfix-"))
    place.chmod(0o755)
    postfix = Postfix(place / "one", port=port)
    target = f"inet:127.0.0.1:{house.ports['lmtp']}" if way == "tcp" else f"unix:{house.lmtp_socket}"
    with (place / "one/etc/main.cf").open("a") as file:
        file.write(f"relay_domains = {DOMAIN}\nrelay_transport = lmtp:{target}\nmynetworks = 127.0.0.1/32\n")
    with (place / "one/etc/master.cf").open("a") as file:
        file.write("lmtp unix - - n - - lmtp\n")
    one, two = house.new_inbox(), house.new_inbox()
    postfix.start()
    try:
        run(
            tmp_path, program("swaks"), "--server", f"127.0.0.1:{port}", "--from", "a@partner.test",
            "--to", f"{one.address},{two.address}", "--header", f"Subject: postfix {way}",
        )  # fmt: skip
        for inbox in (one, two):
            assert "with LMTP id" in house.find(inbox, f"postfix {way}")["Received"]

        def done() -> bool:
            """Whether Postfix was told of each recipient and keeps nothing."""
            queue = subprocess.run(
                ["postqueue", "-c", str(place / "one/etc"), "-j"], capture_output=True, text=True
            ).stdout
            return not queue and (place / "one/log").read_text().count("status=sent (250 2.0.0 Ok: msg_") == 2

        until(done, "Postfix keeps it")
    finally:
        postfix.stop()
        shutil.rmtree(place)


@pytest.mark.parametrize(
    ("door", "options"),
    [
        ("mx", ["--starttls-smtp"]),
        ("submission", ["--starttls-smtp"]),
        ("submissions", []),
        ("imap", ["--starttls-imap"]),
        ("imaps", []),
        ("https", []),
    ],
)
def test_sslscan_finds_no_weak_suite(house: Daemon, tmp_path: Path, door: str, options: list[str]) -> None:
    judge_tls(tmp_path, f"127.0.0.1:{house.ports[door]}", options)
