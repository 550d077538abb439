"""Certificates made for tests: authorities, what they sign, and every fault that a chain can have."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)
NOW = datetime.datetime(2027, 1, 15, 8, 0, tzinfo=datetime.UTC)  # FakeClock's beginning


@dataclass(frozen=True)
class Holder:
    """A certificate with its key and those above it, for a server to show."""

    certificate: x509.Certificate
    key: Any
    above: tuple[Holder, ...] = ()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def key_der(self) -> bytes:
        return self.certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def chain(self) -> list[bytes]:
        return [self.der, *(one.der for one in self.above)]


def make(
    name: str,
    *,
    by: Holder | None = None,
    names: Sequence[str] = (),
    ca: bool = False,
    begin: datetime.datetime = NOW - 400 * DAY,
    end: datetime.datetime = NOW + 400 * DAY,
    path_length: int | None = None,
    extensions: Sequence[tuple[Any, bool]] = (),
    key: Any = None,
) -> Holder:
    """Make a certificate, self-signed unless another signs it; shown with all but the root above it."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )
    if ca or path_length is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
    if names:
        told = x509.SubjectAlternativeName([x509.DNSName(one) for one in names])
        builder = builder.add_extension(told, critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    signing = by.key if by else key
    digest = None if signing.__class__.__name__.startswith("Ed") else hashes.SHA256()
    certificate = builder.sign(signing, digest)
    return Holder(certificate, key, (by, *by.above) if by else ())


def write(directory: Path, holder: Holder, *, without: Sequence[Holder] = ()) -> tuple[Path, Path]:
    """Write a chain and its key as PEM; `without` is left out of the chain."""
    directory.mkdir(parents=True, exist_ok=True)
    shown = [holder, *(one for one in holder.above if one not in without)]
    chain, key = directory / "chain.pem", directory / "key.pem"
    chain.write_bytes(b"".join(one.certificate.public_bytes(serialization.Encoding.PEM) for one in shown))
    key.write_bytes(
        holder.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return chain, key


def server_context(directory: Path, holder: Holder, *, without: Sequence[Holder] = ()) -> ssl.SSLContext:
    """Return the context of a server that shows a chain."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*write(directory, holder, without=without))
    return context
