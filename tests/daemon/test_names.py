"""A certificate for each domain at every door, renewed by SIGHUP while connections live on."""

import smtplib
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509

from server.tls import make_self_signed
from tests.daemon.letters import message, wire
from tests.daemon.running import Daemon, free_ports
from tests.daemon.test_signals import reload

FIRST, SECOND = "mail.first.test", "mail.second.test"


@pytest.fixture
def named(template: Path, tmp_path: Path) -> Iterator[Daemon]:
    """A running daemon with a certificate for each of two domains, and HTTP over TLS."""
    for name in (FIRST, SECOND):
        make_self_signed(tmp_path / "domains" / name, names=[name])
    (https,) = free_ports(1)
    with Daemon(
        tmp_path / "daemon",
        template=template,
        tls={"domains_directory": str(tmp_path / "domains")},
        http={"listen": [f"tls:127.0.0.1:{https}"]},
    ) as running:
        running.ports["https"] = https
        yield running.start()


def lax() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _ask(raw: socket.socket, line: bytes, end: bytes) -> None:
    heard = b""
    raw.sendall(line)
    while end not in heard:
        octets = raw.recv(4096)
        assert octets, heard
        heard += octets


def _smtp(raw: socket.socket) -> None:
    _ask(raw, b"", b"220 ")
    _ask(raw, b"EHLO client.test\r\n", b"250 ")
    _ask(raw, b"STARTTLS\r\n", b"220 ")


def _imap(raw: socket.socket) -> None:
    _ask(raw, b"", b"* OK")
    _ask(raw, b"a STARTTLS\r\n", b"a OK")


DOORS: dict[str, Callable[[socket.socket], None]] = {
    "mx": _smtp,
    "submission": _smtp,
    "submissions": lambda _: None,
    "imap": _imap,
    "imaps": lambda _: None,
    "https": lambda _: None,
}


def shown(daemon: Daemon, door: str, name: str | None) -> tuple[str, int]:
    """Subject and serial number of the certificate that a door shows to who asks for a name."""
    with socket.create_connection(("127.0.0.1", daemon.ports[door]), 20) as raw:
        DOORS[door](raw)
        with lax().wrap_socket(raw, server_hostname=name) as secured:
            found = x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")
    return found.subject.rfc4514_string().removeprefix("CN="), found.serial_number


def test_every_door_shows_the_certificate_of_the_name_and_renews_it(named: Daemon, tmp_path: Path) -> None:
    old = {}
    for door in DOORS:
        for asked in (FIRST, SECOND, "unknown.test", None):
            subject, serial = shown(named, door, asked)
            assert subject == (asked if asked in (FIRST, SECOND) else "mx.agents.test"), door
            old[asked] = serial
    with smtplib.SMTP_SSL("127.0.0.1", named.ports["submissions"], context=lax(), timeout=20) as living:
        living.login(named.alice.address, named.alice.password)
        renewed = make_self_signed(tmp_path / "renewed", names=[FIRST, "mail.third.test"])
        for path in renewed:
            path.replace(tmp_path / "domains" / FIRST / path.name)
        (tmp_path / "domains" / SECOND / "certificate.pem").write_text("nonsense")
        reload(named)
        for door in DOORS:
            assert shown(named, door, FIRST)[1] != old[FIRST], door
            assert shown(named, door, "mail.third.test")[0] == FIRST
            assert shown(named, door, SECOND) == (SECOND, old[SECOND]), "a broken file takes nothing away"
        assert f"{tmp_path / 'domains' / SECOND / 'certificate.pem'} with" in named.log
        made = message("Lived through it", From=named.alice.address)
        living.sendmail(named.alice.address, named.bob.address, wire(made))
    named.find(named.bob, "Lived through it")


def test_a_name_that_is_no_text_makes_no_traceback(named: Daemon) -> None:
    """The end of the fixture looks for one in the log."""
    for door in ("submissions", "imaps", "https"):
        arriving, leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        connection = lax().wrap_bio(arriving, leaving, server_hostname="bad.test")
        with pytest.raises(ssl.SSLWantReadError):
            connection.do_handshake()
        hello = leaving.read()
        assert b"bad.test" in hello
        with socket.create_connection(("127.0.0.1", named.ports[door]), 20) as raw:
            raw.sendall(hello.replace(b"bad.test", b"b\xff\xfe.test"))
            answer = raw.recv(4096)
            assert answer[:1] != b"\x16", "no handshake goes on"
        assert shown(named, door, FIRST)[0] == FIRST
