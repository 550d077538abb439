"""SIGTERM drains and loses nothing; SIGHUP brings new rules and certificates and drops no connection."""

import signal
import smtplib
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.tls import make_self_signed
from tests.daemon.letters import DOMAIN, message, wire
from tests.daemon.running import ROOT, Daemon, until
from tests.daemon.storm import Storm

REFUSING = """
[[rule]]
name = "closed"
stage = "rcpt"
when = 'recipient.startsWith("alice")'
action = "reject"
text = "Closed today"
"""


@pytest.fixture
def changeable(template: Path, tmp_path: Path) -> Iterator[Daemon]:
    """A running daemon with rules and a certificate in files of its own."""
    rules = tmp_path / "rules"
    rules.mkdir()
    for path in (ROOT / "conf/policies").glob("*.toml"):
        (rules / path.name).write_text(path.read_text())
    certificate, key = make_self_signed(tmp_path / "tls", names=["localhost", "127.0.0.1"])
    with Daemon(
        tmp_path / "daemon",
        template=template,
        policy={"directory": str(rules)},
        tls={"certificate_file": str(certificate), "key_file": str(key)},
    ) as running:
        yield running.start()


def reload(daemon: Daemon) -> None:
    """Send SIGHUP and wait until the daemon says it has read everything anew."""
    before = daemon.log.count("reloaded")
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: daemon.log.count("reloaded") > before, f"no reload\n{daemon.log}")


def shown_certificate(port: int) -> bytes:
    """The certificate that a new TLS connection is shown, in DER."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 20) as raw, context.wrap_socket(raw) as secured:
        return secured.getpeercert(binary_form=True) or b""


def test_sigterm_during_load_loses_nothing(template: Path, tmp_path: Path) -> None:
    with Daemon(tmp_path, template=template) as daemon:
        daemon.start()
        storm = Storm(daemon, seed=3, mx=6, submissions=0)
        storm.begin()
        for _ in range(3):
            goal = storm.count + 60
            until(lambda goal=goal: storm.count >= goal, "no load")
            assert daemon.stop() == 0
            promised = dict(storm.promised)
            # A drained daemon owes nothing: all lies in the mailboxes before the next start.
            for inbox in (daemon.alice, daemon.bob):
                found = [str(one["Subject"]) for one in daemon.messages(inbox)]
                wanted = {name for name, to in promised.items() if inbox.address in to}
                assert wanted - set(found) == set()
                assert len(found) == len(set(found))
            assert not list((daemon.data / "mail").rglob("tmp/*"))
            daemon.start()
        storm.end()
        assert storm.surprises == []


def test_sigterm_lets_a_begun_transaction_end(template: Path, tmp_path: Path) -> None:
    with Daemon(tmp_path, template=template) as daemon:
        daemon.start()
        client, idle = daemon.mx(), daemon.mx()
        for one in (client, idle):
            one.ehlo()
        client.mail("stranger@partner.test")
        client.rcpt(f"alice@{DOMAIN}")
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        code, text = idle.getreply()
        assert (code, text[:5]) == (421, b"4.3.2")
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", daemon.ports["mx"]), 5):
            pass
        assert client.data(wire(message("Just in time")))[0] == 250
        client.close()
        idle.close()
        assert daemon.process.wait(20) == 0
        assert [one["Subject"] for one in daemon.messages(daemon.alice)] == ["Just in time"]


def test_sigterm_is_over_within_the_limit(template: Path, tmp_path: Path) -> None:
    """A client that never ends its transaction holds the daemon no longer than drain_seconds."""
    with Daemon(tmp_path, template=template, server={"drain_seconds": 1}) as daemon:
        daemon.start()
        client, waiting = daemon.mx(), daemon.imap(daemon.alice)
        client.ehlo()
        client.mail("stranger@partner.test")
        client.rcpt(f"alice@{DOMAIN}")
        client.putcmd("DATA")
        assert client.getreply()[0] == 354
        waiting.select()
        begin = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - begin < 15  # far from the client's own patience of minutes
        client.close()
        waiting.shutdown()


def test_a_reload_brings_new_rules_into_an_open_session(changeable: Daemon, tmp_path: Path) -> None:
    mine = tmp_path / "rules" / "50-mine.toml"
    with changeable.mx() as client:
        client.ehlo()
        client.mail("stranger@partner.test")
        assert client.rcpt(f"alice@{DOMAIN}")[0] == 250
        mine.write_text(REFUSING)
        reload(changeable)
        assert client.rcpt(f"alice@{DOMAIN}") == (550, b"5.7.1 Closed today")
        assert client.rcpt(f"bob@{DOMAIN}")[0] == 250
        mine.write_text(REFUSING.replace("Closed today", "Closed for good"))
        reload(changeable)
        assert client.rcpt(f"alice@{DOMAIN}") == (550, b"5.7.1 Closed for good")


@pytest.mark.parametrize("faulty", [b"[[rule]\n", b"# caf\xe9\n"], ids=["no TOML", "no UTF-8"])
def test_a_faulty_reload_leaves_the_old_rules(changeable: Daemon, tmp_path: Path, faulty: bytes) -> None:
    (tmp_path / "rules" / "50-mine.toml").write_text(REFUSING)
    reload(changeable)
    (tmp_path / "rules" / "60-faulty.toml").write_bytes(faulty)
    reload(changeable)
    assert "60-faulty.toml" in changeable.log
    with changeable.mx() as client:
        client.ehlo()
        client.mail("stranger@partner.test")
        assert client.rcpt(f"alice@{DOMAIN}") == (550, b"5.7.1 Closed today")


def test_a_reload_shows_the_new_certificate_and_keeps_connections(changeable: Daemon, tmp_path: Path) -> None:
    ports = changeable.ports
    old = shown_certificate(ports["imaps"])
    context = ssl.create_default_context(cafile=str(tmp_path / "tls" / "certificate.pem"))
    with smtplib.SMTP_SSL("127.0.0.1", ports["submissions"], context=context, timeout=20) as living:
        living.login(changeable.alice.address, changeable.alice.password)
        renewed = tmp_path / "renewed"
        for path in make_self_signed(renewed, names=["localhost", "127.0.0.1"]):
            path.replace(tmp_path / "tls" / path.name)
        reload(changeable)
        new = {shown_certificate(ports[name]) for name in ("imaps", "submissions")}
        assert len(new) == 1 and old not in new
        with changeable.mx() as client:  # by STARTTLS too
            fresh = ssl.create_default_context(cafile=str(tmp_path / "tls" / "certificate.pem"))
            client.starttls(context=fresh)
            assert client.sock.getpeercert(binary_form=True) in new
        made = message("Still here", From=changeable.alice.address)
        living.sendmail(changeable.alice.address, changeable.bob.address, wire(made))
    changeable.find(changeable.bob, "Still here")


def test_a_faulty_certificate_leaves_the_old_one(changeable: Daemon, tmp_path: Path) -> None:
    old = shown_certificate(changeable.ports["imaps"])
    (tmp_path / "tls" / "certificate.pem").write_text("nonsense")
    reload(changeable)
    assert shown_certificate(changeable.ports["imaps"]) == old
    assert "certificate not reloaded" in changeable.log
