"""TLS contexts: the server's, reloaded without dropping a connection, and the client's.

Owns certificate loading and the self-signed certificate of a first start. TLS
1.2 and later with forward secrecy only (RFC 9325, RFC 8996). Refuses to fall
back to a self-signed certificate where one was configured and cannot be read.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from storage.files import put

# RFC 9325 4.2: ECDHE with AEAD; TLS 1.3 suites are always on.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


class CertificateError(Exception):
    """The certificate or its key cannot be used; the text names the file."""


class ServerTls:
    """The listeners' TLS context, replaced whole by `reload`.

    A connection keeps the context that it began with; new ones ask `context`.
    """

    def __init__(self, certificate_file: Path, key_file: Path) -> None:
        self._files = (certificate_file, key_file)
        self._context = _server_context(*self._files)

    def context(self) -> ssl.SSLContext:
        """Return the context for a connection that begins now."""
        return self._context

    def reload(self) -> None:
        """Read the files again; on CertificateError the old certificate stays in use."""
        self._context = _server_context(*self._files)


def _server_context(certificate_file: Path, key_file: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        context.load_cert_chain(certificate_file, key_file)
    except (OSError, ssl.SSLError) as error:
        raise CertificateError(f"{certificate_file} with {key_file}: {error.strerror or error}") from None
    return context


def opportunistic_context() -> ssl.SSLContext:
    """Return the client context of opportunistic TLS: encrypts, does not authenticate (RFC 7435)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def verifying_context(trusted_file: Path | None = None) -> ssl.SSLContext:
    """Return the client context that takes no server but the one it was told to find (RFC 9525).

    trusted_file: PEM file of the authorities, the system's where there is none.
    """
    context = ssl.create_default_context(cafile=str(trusted_file) if trusted_file else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def make_self_signed(directory: Path, *, names: list[str], days: int = 825) -> tuple[Path, Path]:
    """Write a P-256 key and a self-signed certificate for names; returns (certificate, key) paths.

    Files that are there already are kept. The key is readable by its owner alone.
    """
    certificate_file, key_file = directory / "certificate.pem", directory / "key.pem"
    if certificate_file.exists() and key_file.exists():
        return certificate_file, key_file
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    put(key_file, pem)
    put(certificate_file, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
    return certificate_file, key_file


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
