"""TLS and AUTH as they are asked for: sslscan against an RSA key, swaks in every mode, gsasl's mechanisms."""

import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from tests.daemon.letters import DOMAIN
from tests.daemon.running import Daemon
from tests.interop.programs import program, run
from tests.interop.scans import judge_tls


@pytest.fixture(scope="module")
def rsa_daemon(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose certificate has an RSA key of 2048 bits."""
    directory = tmp_path_factory.mktemp("rsa")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.example.test")])
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    (directory / "rsa.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / "rsa.key").write_bytes(private)
    (directory / "rsa.key").chmod(0o600)
    files = {"certificate_file": str(directory / "rsa.pem"), "key_file": str(directory / "rsa.key")}
    with Daemon(directory / "daemon", template=template, tls=files) as running:
        yield running.start()


@pytest.mark.parametrize(
    ("door", "options"),
    [
        ("mx", ["--starttls-smtp"]),
        ("submission", ["--starttls-smtp"]),
        ("submissions", []),
        ("imap", ["--starttls-imap"]),
        ("imaps", []),
    ],
)
def test_sslscan_finds_no_weak_suite_over_rsa(
    rsa_daemon: Daemon, tmp_path: Path, door: str, options: list[str]
) -> None:
    found = judge_tls(tmp_path, f"127.0.0.1:{rsa_daemon.ports[door]}", options)
    (shown,) = found.iter("certificate")
    key = shown.find("pk")
    assert key is not None
    assert (key.get("type"), key.get("bits")) == ("RSA", "2048")


@pytest.mark.parametrize("mode", ["--tls", "--tls-optional", "--tls-optional-strict"])
@pytest.mark.parametrize("version", ["tlsv1_2", "tlsv1_3"])
def test_swaks_delivers_in_each_mode_and_version_of_tls(
    rsa_daemon: Daemon, tmp_path: Path, mode: str, version: str
) -> None:
    inbox = rsa_daemon.new_inbox()
    done = run(
        tmp_path, program("swaks"), "--server", f"127.0.0.1:{rsa_daemon.ports['mx']}", mode, "--tls-protocol",
        version, "--from", "a@partner.test", "--to", inbox.address, "--header", f"Subject: {mode} {version}",
    )  # fmt: skip
    assert f"TLS started with cipher TLSv1.{version[-1]}:" in done.stdout
    assert "with ESMTPS id" in rsa_daemon.find(inbox, f"{mode} {version}")["Received"]


@pytest.mark.parametrize("version", ["tlsv1", "tlsv1_1"])
@pytest.mark.parametrize(("door", "how"), [("mx", "--tls"), ("submissions", "--tls-on-connect")])
def test_old_versions_of_tls_are_not_spoken(
    rsa_daemon: Daemon, tmp_path: Path, version: str, door: str, how: str
) -> None:
    run(
        tmp_path, program("swaks"), "--server", f"127.0.0.1:{rsa_daemon.ports[door]}", how, "--tls-protocol",
        version, "--tls-cipher", "ALL:@SECLEVEL=0", "--to", f"alice@{DOMAIN}", status=29,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("door", "options", "answer"),
    [
        # Nothing is offered, and nothing taken, before TLS is there.
        ("submission", ["--auth", "PLAIN"], (28, "Host did not advertise authentication")),
        ("submission", ["--auth", "PLAIN", "--auth-optional"], (23, "530 5.7.0 Must issue a STARTTLS")),
        # Optional: without what the program speaks it goes on, and may not send.
        ("submission", ["--tls", "--auth-optional", "CRAM-MD5"], (23, "530 5.7.0 Authentication required")),
        ("submissions", ["--tls-on-connect", "--auth", "CRAM-MD5"], (28, "250")),
        ("mx", ["--tls", "--auth", "PLAIN"], (28, "Host did not advertise authentication")),
        ("submission", ["--tls", "--auth", "PLAIN"], (0, "235 2.7.0")),
        ("submission", ["--tls", "--auth", "LOGIN"], (0, "235 2.7.0")),
        ("submission", ["--tls-optional", "--auth", "PLAIN"], (0, "235 2.7.0")),
        ("submissions", ["--tls-on-connect", "--auth-optional", "LOGIN"], (0, "235 2.7.0")),
        ("submissions", ["--tls-on-connect", "--auth-optional-strict", "PLAIN"], (0, "235 2.7.0")),
    ],
)
def test_swaks_logs_in_where_it_may(
    rsa_daemon: Daemon, tmp_path: Path, door: str, options: list[str], answer: tuple[int, str]
) -> None:
    inbox = rsa_daemon.alice
    status, said = answer
    done = run(
        tmp_path, program("swaks"), "--server", f"127.0.0.1:{rsa_daemon.ports[door]}", *options,
        "--auth-user", inbox.address, "--auth-password", inbox.password, "--from", inbox.address,
        "--to", inbox.address, status=status,
    )  # fmt: skip
    assert said in done.stdout + done.stderr


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "PLAIN", "LOGIN"])
@pytest.mark.parametrize("is_right", [True, False])
def test_gsasl_logs_in(rsa_daemon: Daemon, tmp_path: Path, mechanism: str, is_right: bool) -> None:
    inbox = rsa_daemon.alice
    (tmp_path / "ca.pem").write_bytes((rsa_daemon.directory.parent / "rsa.pem").read_bytes())
    done = run(
        tmp_path, program("gsasl"), "--smtp", "--starttls", "--x509-ca-file=", "--mechanism", mechanism,
        "--authentication-id", inbox.address, "--authorization-id", "", "--password",
        inbox.password if is_right else "wrong", "--connect",
        f"127.0.0.1:{rsa_daemon.ports['submission']}", "--no-cb", status=0 if is_right else 1,
    )  # fmt: skip
    assert ("235 2.7.0" in done.stdout) is is_right
    assert ("535 5.7.8" in done.stdout) is not is_right
