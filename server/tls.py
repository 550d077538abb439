"""TLS contexts: the server's, reloaded without dropping a connection, and the client's.

Owns certificate loading, the choice of a certificate by name (RFC 6066 3) and the
self-signed certificate of a first start. TLS 1.2 and later with forward secrecy
only (RFC 9325, RFC 8996). Refuses to fall back to a self-signed certificate where
one was configured and cannot be read.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from storage.files import put

# RFC 9325 4.2: ECDHE with AEAD; TLS 1.3 suites are always on.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
# How certbot and dehydrated name a chain and its key, and how this project does.
FILE_NAMES = (("fullchain.pem", "privkey.pem"), ("certificate.pem", "key.pem"))
TICKET_KEY_SECONDS = 24 * 3600
DOMAINS_LIMIT = 2000  # certificates: 20 KiB of memory and a millisecond each
_DER = 2  # _ssl.ENCODING_DER
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class CertificateError(Exception):
    """The certificate or its key cannot be used; the text names the file."""


class ServerTls:
    """The listeners' TLS contexts: one for each certificate, chosen by the name that the client asks for.

    domains_directory: holds a directory for each further certificate, whose own names
    say what it is for. `reload` reads anew what has changed; a connection keeps the
    certificate that it began with, new ones get the present one, even by a context that
    was taken before.
    """

    def __init__(
        self,
        certificate_file: Path,
        key_file: Path,
        *,
        domains_directory: Path | None = None,
        minimum_version: str = "1.2",
    ) -> None:
        self._minimum = _VERSIONS[minimum_version]
        self._domains_directory = domains_directory
        self._default = self._load(certificate_file, key_file)
        self._tickets_until = time.monotonic() + TICKET_KEY_SECONDS
        self._domains: dict[Path, _Pair] = {}
        self._names: dict[str, ssl.SSLContext] = {}
        self.problems = self._load_domains()

    def context(self) -> ssl.SSLContext:
        """Return the context for a connection that begins now."""
        if time.monotonic() >= self._tickets_until:
            self._change_ticket_keys()
        return self._default.context

    def _change_ticket_keys(self) -> None:
        """Begin with new keys of session tickets (RFC 9325 3.4), which belong to the default context.

        A certificate that has changed on disk waits for `reload` nevertheless.
        """
        self._tickets_until = time.monotonic() + TICKET_KEY_SECONDS
        pair = self._default
        try:
            if pair.mark == _mark(pair.certificate_file, pair.key_file):
                self._default = self._load(pair.certificate_file, pair.key_file)
        except CertificateError:
            return  # `reload` will say so

    def reload(self) -> tuple[str, ...]:
        """Read changed files again; returns what is wrong, each with its file: there the old stays in use."""
        problems: tuple[str, ...] = ()
        try:
            self._default = self._renewed(self._default)
        except CertificateError as error:
            problems = (str(error),)
        self.problems = problems + self._load_domains()
        return self.problems

    def _load_domains(self) -> tuple[str, ...]:
        problems: list[str] = []
        found: dict[Path, _Pair] = {}
        for directory in self._directories(problems):
            old = self._domains.get(directory)
            try:
                files = _files_in(directory)
                same = old is not None and (old.certificate_file, old.key_file) == files
                found[directory] = self._renewed(old) if old is not None and same else self._load(*files)
            except CertificateError as error:
                problems.append(str(error))
                if old is not None:
                    found[directory] = old
        self._domains = found
        # Where several are for one name, the one that is good for longest.
        by_age = sorted(found.values(), key=lambda pair: pair.valid_until)
        self._names = {name: pair.context for pair in by_age for name in pair.names}
        return tuple(problems)

    def _directories(self, problems: list[str]) -> list[Path]:
        if self._domains_directory is None:
            return []
        try:
            found = sorted(path for path in self._domains_directory.iterdir() if path.is_dir())
        except OSError as error:
            problems.append(f"{self._domains_directory}: {error.strerror}")
            return list(self._domains)
        if len(found) > DOMAINS_LIMIT:
            problems.append(
                f"{self._domains_directory}: only the first {DOMAINS_LIMIT} certificates are read"
            )
        return found[:DOMAINS_LIMIT]

    def _renewed(self, pair: _Pair) -> _Pair:
        if pair.mark == _mark(pair.certificate_file, pair.key_file):
            return pair
        return self._load(pair.certificate_file, pair.key_file)

    def _load(self, certificate_file: Path, key_file: Path) -> _Pair:
        # Before the files: what changes while they are read is read again by the next reload.
        mark = _mark(certificate_file, key_file)
        context = _server_context(certificate_file, key_file, self._minimum)
        context.sni_callback = self._choose
        names, valid_until = _described(certificate_file)
        return _Pair(certificate_file, key_file, context, names, valid_until, mark)

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Give a connection the certificate for the name it asks for (RFC 6066 3), else the default one."""
        chosen = self._default.context
        if name is not None and self._names:
            name = name.lower()
            # RFC 9525 6.3: a wildcard stands for one whole label.
            chosen = self._names.get(name) or self._names.get(f"*.{name.partition('.')[2]}") or chosen
        if chosen is not context:
            connection.context = chosen


@dataclass(frozen=True, slots=True)
class _Pair:
    """A certificate with its key, loaded. valid_until: seconds since 1970. mark: tells changed files."""

    certificate_file: Path
    key_file: Path
    context: ssl.SSLContext
    names: tuple[str, ...]
    valid_until: float
    mark: tuple[tuple[int, int, int], ...]


def _files_in(directory: Path) -> tuple[Path, Path]:
    try:
        there = {path.name for path in directory.iterdir()}
    except OSError as error:
        raise CertificateError(f"{directory}: {error.strerror}") from None
    for certificate, key in FILE_NAMES:
        if certificate in there and key in there:
            return directory / certificate, directory / key
    wanted = " or ".join(" with ".join(names) for names in FILE_NAMES)
    raise CertificateError(f"{directory}: there is no {wanted}")


def _mark(*files: Path) -> tuple[tuple[int, int, int], ...]:
    try:
        return tuple((found.st_ino, found.st_size, found.st_mtime_ns) for found in map(os.stat, files))
    except OSError as error:
        raise CertificateError(f"{error.filename}: {error.strerror}") from None


def _described(certificate_file: Path) -> tuple[tuple[str, ...], float]:
    """Return the names that the first certificate of a file is for, in lower case, and when it ends."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = tuple(name.lower() for name in names.get_values_for_type(x509.DNSName))
    except x509.ExtensionNotFound:
        found = ()
    except (OSError, ValueError) as error:
        raise CertificateError(f"{certificate_file}: {error}") from None
    return found, certificate.not_valid_after_utc.timestamp()


def _server_context(certificate_file: Path, key_file: Path, minimum: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = minimum
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        # The password: without one OpenSSL would ask at the terminal for that of an encrypted key.
        context.load_cert_chain(certificate_file, key_file, password="")
    except (OSError, ValueError) as error:  # OSError includes ssl.SSLError
        reason = getattr(error, "strerror", None) or error
        raise CertificateError(f"{certificate_file} with {key_file}: {reason}") from None
    return context


def read_leaf(certificate_file: Path) -> bytes:
    """Return the first certificate of a PEM file in DER; raises CertificateError."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
    except (OSError, ValueError) as error:
        raise CertificateError(f"{certificate_file}: {error}") from None
    return certificate.public_bytes(serialization.Encoding.DER)


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
    # RFC 9525 6.4: a common name says nothing about who a server is.
    context.hostname_checks_common_name = False
    return context


def peer_chain(connection: Any) -> list[bytes]:
    """Return the certificates that a peer showed, its own first, in DER and unverified; [] without any.

    Python has a public name for them from 3.13 on; OpenSSL's chain is reached the same way before.
    """
    public = getattr(connection, "get_unverified_chain", None)
    if public is not None:
        return [bytes(one) for one in public()]
    inner = getattr(connection, "_sslobj", None)
    found = inner.get_unverified_chain() if inner is not None else None
    return [one.public_bytes(_DER) for one in found or ()]


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
