"""Two whole daemons and a validating resolver: what one publishes, the other is held to, and reports."""

import os
import random
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from server.operations import OperationFailed
from tests.daemon.letters import DOMAIN, message
from tests.daemon.running import HOSTNAME, Daemon, Inbox, free_ports, run_cli, until
from tests.daemon.test_dmarc import DAY
from tests.daemon.test_flow import submit
from tests.transport import unbound
from tests.transport.authority import Holder, make, write

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="ports 25 and 443 need root"),
    pytest.mark.skipif(not os.path.exists(unbound.UNBOUND), reason="no unbound"),
]
THEIRS, THEIR_HOST = "theirs.test", "mx.theirs.test"


@dataclass
class Pair:
    """Ours, which sends, and theirs, which publishes; both ask one resolver."""

    ours: Daemon
    theirs: Daemon
    inbox: Inbox
    authority: Path

    def send(self, subject: str) -> dict[str, Any]:
        """Send a message to theirs; the event that its attempt ended with."""
        made = message(subject, From=self.ours.alice.address, To=self.inbox.address)
        identifier = submit(self.ours, self.ours.alice, made, self.inbox.address)

        def attempted() -> dict[str, Any] | None:
            try:
                steps = self.ours.explain(identifier)["timeline"]
            except OperationFailed:  # not applied yet
                return None
            kinds = ("message.delivered", "message.deferred", "message.bounced")
            return next((one for one in steps if one["kind"] in kinds), None)

        return {**until(attempted, "no attempt"), "message": identifier}


def free_address() -> str:
    """A loopback address whose ports 25 and 443 nobody has."""
    dice = random.SystemRandom()
    while True:
        address = f"127.{dice.randrange(2, 250)}.{dice.randrange(250)}.{dice.randrange(2, 250)}"
        try:
            for port in (25, 443):
                with socket.socket() as probe:
                    probe.bind((address, port))
        except OSError:
            continue
        return address


@contextmanager
def pair(
    directory: Path, template: Path, *, signed: bool, certificate: Holder, root: Holder
) -> Iterator[Pair]:
    """Two daemons, with the DNS records that theirs advises and an address for each name."""
    address, (port,) = free_address(), free_ports(1)
    chain, key = write(directory / "tls", certificate)
    authority = directory / "root.pem"
    authority.write_bytes(root.certificate.public_bytes(serialization.Encoding.PEM))
    resolver = {"servers": [f"127.0.0.1:{port}"], "cache_entries": 100}
    common = {"allow_private_addresses": True, "default_route": "mx", "retry_first_seconds": 1}
    their_settings: dict[str, Any] = {
        "server": {"hostname": THEIR_HOST},
        "smtp": {"listen_mx": [f"tcp:{address}:25"]},
        "http": {"listen": [f"tls:{address}:443"]},
        "tls": {"certificate_file": str(chain), "key_file": str(key)},
        "dns": resolver,
        "authentication": {"enabled": True},
        "delivery": common,
        "transport": {"publish_mode": "enforce", "publish_tlsa": signed},
        "tls_reports": {"report_address": f"tls-reports@{THEIRS}", "send_reports": False},
    }
    our_settings: dict[str, Any] = {
        "dns": resolver,
        "delivery": common,
        "tls_reports": {"report_address": f"tls-reports@{DOMAIN}", "spread_seconds": 0},
    }
    with (
        Daemon(directory / "theirs", **their_settings) as theirs,
        Daemon(directory / "ours", template=template, **our_settings) as ours,
    ):
        theirs.cli("domain", "add", THEIRS)
        made = theirs.cli("inbox", "add", f"bob@{THEIRS}")
        theirs.cli("inbox", "add", f"tls-reports@{THEIRS}")
        records = theirs.cli("domain", "dns", THEIRS)["records"]
        ours_told = ours.cli("domain", "dns", DOMAIN)["records"]
        zones = {
            THEIRS: zone(records, {THEIR_HOST: address}),
            DOMAIN: zone(ours_told, {HOSTNAME: "127.0.0.1"}),
        }
        given = zones if signed else {}
        plain = {} if signed else zones
        with unbound.running(directory / "unbound", port, given, plain=plain):
            trusted = {"SSL_CERT_FILE": str(authority)}
            theirs.start(**trusted)
            ours.start(**trusted)
            yield Pair(ours, theirs, Inbox(made["id"], made["address"], made["password"]), authority)


def zone(records: list[dict[str, str]], addresses: dict[str, str]) -> unbound.Zone:
    """The records that a daemon advises, and the addresses that it leaves to its owner."""
    made: dict[str, dict[str, list[str]]] = {}
    for one in records:
        made.setdefault(one["name"], {}).setdefault(one["type"], []).append(one["value"])
    for name, address in addresses.items():
        made.setdefault(name, {})["A"] = [address]
    return made


def test_published_tlsa_record_is_what_the_other_daemon_holds_us_to(template: Path, tmp_path: Path) -> None:
    own = make("self")
    with pair(tmp_path, template, signed=True, certificate=own, root=make("root", ca=True)) as both:
        event = both.send("by dane")
        data = event["data"]
        assert event["kind"] == "message.delivered", data
        assert (data["tls_policy"], data["host"], data["tls_version"]) == ("dane", THEIR_HOST, "TLSv1.3")
        assert data["tls_reason"] == f"DNSSEC proves 1 TLSA record of {THEIR_HOST}"
        both.theirs.find(both.inbox, "by dane")
        shown = run_cli("explain", event["message"], "--config", both.ours.configuration).stdout
        assert "(policy dane)" in shown and "TLS: DNSSEC proves" in shown
        # The key changes, and the record does not: nothing goes there any more.
        other = make("another")
        write(tmp_path / "tls", other)
        assert both.theirs.process is not None
        os.kill(both.theirs.pid, 1)
        until(lambda: both.theirs.log.count("reloaded") or None, "no reload")
        time_out_idle(both.ours)
        event = both.send("not any more")
        data = event["data"]
        assert (event["kind"], data["tls_policy"]) == ("message.deferred", "dane"), data
        assert "no TLSA record names" in data["text"] and data["enhanced"] == "4.7.5"


def time_out_idle(daemon: Daemon) -> None:
    """Wait until the daemon has let go of connections that it keeps for five seconds."""
    until(lambda: not _connections(daemon), "a connection is kept", seconds=20)


def _connections(daemon: Daemon) -> list[str]:
    found = subprocess.run(["ss", "-Htnp", "dport", "=", ":25"], capture_output=True, text=True, check=True)
    return [line for line in found.stdout.splitlines() if f"pid={daemon.pid}," in line]


def test_served_policy_is_enforced_and_reported(template: Path, tmp_path: Path) -> None:
    root = make("root", ca=True)
    names = [THEIR_HOST, f"mta-sts.{THEIRS}"]
    good = make("theirs", by=root, names=names)
    with pair(tmp_path, template, signed=False, certificate=good, root=root) as both:
        event = both.send("by mta-sts")
        data = event["data"]
        assert (event["kind"], data["tls_policy"]) == ("message.delivered", "sts enforce"), data
        shown = both.ours.ask("explain", id=event["message"])
        assert any(one["data"].get("tls_policy") == "sts enforce" for one in shown["timeline"])
        # A certificate for another name: the policy is kept, and nothing goes there.
        write(tmp_path / "tls", make("theirs", by=root, names=["elsewhere.test"]))
        os.kill(both.theirs.pid, 1)
        until(lambda: both.theirs.log.count("reloaded") or None, "no reload")
        time_out_idle(both.ours)
        event = both.send("to nobody")
        data = event["data"]
        assert (event["kind"], data["tls_policy"]) == ("message.deferred", "sts enforce"), data
        assert "ostname mismatch" in data["text"]
        until(lambda: sum(counted(both.ours.data).values()) >= 2, "the sessions are counted")
        both.ours.stop()
        let_a_day_pass(both.ours.data)
        both.ours.start(SSL_CERT_FILE=str(both.authority))
        # RFC 8460 3, RFC 8689 5: the report goes out though the policy forbids it to all other mail.
        told = until(lambda: both.theirs.ask("domain-tls", name=THEIRS)["reports"], "no report is read")
        assert (told[0]["reporter"], told[0]["successes"]) == (HOSTNAME, 1) and told[0]["failures"] >= 1
        results = {one["result"] for one in both.theirs.cli("domain", "tls", THEIRS)["results"]}
        assert results == {"success", "certificate-host-mismatch"}
        shown_text = run_cli("domain", "tls", THEIRS, "--config", both.theirs.configuration).stdout
        assert "certificate-host-mismatch" in shown_text and HOSTNAME in shown_text


def counted(data: Path) -> dict[str, int]:
    with sqlite3.connect(data / "mailagents.sqlite") as connection:
        rows = connection.execute("SELECT fault, sum(count) FROM tls_counts GROUP BY fault").fetchall()
    connection.close()
    return dict(rows)


def let_a_day_pass(data: Path) -> None:
    """Make what was counted a day older, as if the daemon had slept."""
    with sqlite3.connect(data / "mailagents.sqlite") as connection:
        for table, columns in (
            ("tls_counts", ["begin_at"]),
            ("tls_periods", ["begin_at", "end_at", "due_at"]),
        ):
            shifted = ", ".join(f"{one} = {one} - {DAY}" for one in columns)
            assert connection.execute(f"UPDATE {table} SET {shifted}").rowcount >= 1
        # What is due waits for the grace after midnight.
        connection.execute("UPDATE tls_periods SET due_at = ?", (int(time.time() * 1_000_000),))
    connection.close()
