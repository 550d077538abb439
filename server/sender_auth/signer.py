"""DKIM signatures of our own domains: one field for each active key.

Owns what is signed and how the fields are written, and the keys of domains as
they were when last read; a notice of changed accounts drops them. Which mail is
signed is the caller's choice. Refuses to sign with another organization's key.
RFC 6376 3.5, 5.4 (signed fields), 8463 (Ed25519), 8301 (RSA).
"""

from __future__ import annotations

import functools
import hashlib
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from server.mail import header
from server.refusal import Broken
from server.sender_auth import arc_seal
from server.sender_auth.canonical import BodyHash, compress, relaxed_value
from storage import accounts
from storage.records import DkimKey, Spooled

if TYPE_CHECKING:
    from server.threads import Threads
    from storage.db import Notice

MAX_DOMAINS = 10_000  # whose keys are kept
MAX_HEADER_OCTETS = 1 << 20
MAX_INSTANCES = 20  # of one field that are signed, the lowest ones
PIECE_OCTETS = 262_144
CHUNK = 64  # octets of base64 in a row, so that lines stay short
# Signed once more than they occur: none of them can be added later (RFC 6376 5.4, 8.15).
SIGNED_FIELDS = (
    b"From", b"To", b"Cc", b"Subject", b"Date", b"Message-ID", b"Reply-To", b"MIME-Version",
    b"Content-Type", b"Content-Transfer-Encoding", b"In-Reply-To", b"References",
    b"List-Unsubscribe", b"List-Unsubscribe-Post",
)  # fmt: skip
# RFC 8058 4: both are signed where there is one of them. Where there is none they are not: a list that adds
# its own to a message and changes nothing else leaves the signature whole.
LIST_FIELDS = frozenset({b"List-Unsubscribe", b"List-Unsubscribe-Post"})

SIGNATURE = b"DKIM-Signature"

PrivateKey = rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class _Key:
    """A key of a domain, parsed."""

    organization_id: str
    domain: str
    selector: str
    algorithm: str
    private: PrivateKey


class Signer:
    """Signs messages with the active keys of their domain."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._keys: dict[str, tuple[_Key, ...]] = {}
        self._generation = 0
        threads.hub.subscribe("accounts", None, self._forget)

    async def sign(
        self, *, domain: str, organization_id: str, added: bytes, content: bytes | Spooled, at: int
    ) -> bytes:
        """Return the DKIM-Signature fields with CRLF; b'' where the domain has no key of the organization.

        added: header fields with CRLF that stand on top of content. at: microseconds.
        Broken where a key or a spooled content can't be read.
        """
        keys = [key for key in await self._keys_of(domain) if key.organization_id == organization_id]
        if not keys:
            return b""
        place = self._threads.store.read_spooled(content) if isinstance(content, Spooled) else content
        try:
            return await self._threads.compute(_sign, keys, added, place, at // 1_000_000)
        except OSError as error:
            raise Broken(f"spooled content can't be read: {error}") from error

    async def seal(
        self,
        *,
        domain: str,
        organization_id: str,
        authserv_id: str,
        status: str,
        added: bytes,
        content: bytes | Spooled,
        at: int,
    ) -> bytes:
        """Return one more set of ARC fields with CRLF for a message that goes on to another server.

        b'' where the domain has no RSA key of the organization, or nothing may be added. status:
        of the present chain, as arc_seal.status_of gives it. Otherwise as sign.
        """
        keys = await self._keys_of(domain) if status else ()
        for key in keys:
            if key.organization_id == organization_id and isinstance(key.private, rsa.RSAPrivateKey):
                place = self._threads.store.read_spooled(content) if isinstance(content, Spooled) else content
                seal = arc_seal.Seal(
                    key.domain.encode(),
                    key.selector.encode(),
                    authserv_id,
                    at // 1_000_000,
                    functools.partial(_make, key.private),
                )
                try:
                    return await self._threads.compute(seal_message, seal, status, added, place)
                except OSError as error:
                    raise Broken(f"spooled content can't be read: {error}") from error
        return b""

    def _forget(self, _notice: Notice) -> None:
        self._generation += 1
        self._keys.clear()

    async def _keys_of(self, domain: str) -> tuple[_Key, ...]:
        known = self._keys.get(domain)
        if known is not None:
            return known
        generation = self._generation
        rows = await self._threads.read(lambda connection: accounts.dkim_keys(connection, domain=domain))
        keys = await self._threads.compute(_parse, rows)
        if generation == self._generation:  # else what was read may be from before the change
            if len(self._keys) >= MAX_DOMAINS:
                self._keys.clear()
            self._keys[domain] = keys
        return keys


def _parse(rows: Sequence[DkimKey]) -> tuple[_Key, ...]:
    return tuple(
        _Key(row.organization_id, row.domain, row.selector, row.algorithm, _private(row)) for row in rows
    )


def _private(row: DkimKey) -> PrivateKey:
    try:
        private = serialization.load_pem_private_key(row.private_pem, None)
    except (ValueError, TypeError) as error:
        raise Broken(f"DKIM key {row.id} can't be read: {error}") from error
    expected = rsa.RSAPrivateKey if row.algorithm == "rsa-sha256" else ed25519.Ed25519PrivateKey
    if not isinstance(private, expected):
        raise Broken(f"DKIM key {row.id} is not {row.algorithm}")
    return private


def _sign(keys: Sequence[_Key], added: bytes, content: bytes | Path, at: int) -> bytes:
    body = BodyHash(relaxed=True)
    head = added + _hash(content, body)
    names, signed = _choose(head, SIGNED_FIELDS)
    body_hash = b64encode(body.digest())
    return b"".join(_field(key, b": ".join(names), signed, body_hash=body_hash, at=at) for key in keys)


def seal_message(
    seal: arc_seal.Seal,
    status: str,
    added: bytes,
    content: bytes | Path,
    *,
    signed_fields: Sequence[bytes] = (*SIGNED_FIELDS, SIGNATURE),
    is_closed: bool = True,
) -> bytes:
    """Return a set of ARC fields for content under added fields; see arc_seal.make_set.

    is_closed: whether fields are signed once more than they occur.
    """
    body = BodyHash(relaxed=True)
    head = added + _hash(content, body)
    names, signed = _choose(head, signed_fields, is_closed=is_closed)
    return arc_seal.make_set(
        header.fields(head),
        names=names,
        signed=signed,
        body_hash=b64encode(body.digest()),
        status=status,
        seal=seal,
    )


def _hash(content: bytes | Path, body: BodyHash) -> bytes:
    """Feed the body to its hash and return the header."""
    pieces = _pieces(content)
    beginning = next(pieces, b"")
    header_octets = header.split(beginning)
    body.update(beginning[header_octets:])
    for piece in pieces:
        body.update(piece)
    body.finish()
    return beginning[:header_octets]


def _pieces(content: bytes | Path) -> Iterator[bytes]:
    """Yield the content; the first piece holds the header."""
    if isinstance(content, bytes):
        yield content
        return
    with open(content, "rb") as file:
        size = MAX_HEADER_OCTETS
        while piece := file.read(size):
            yield piece
            size = PIECE_OCTETS


def _choose(
    head: bytes, signed_fields: Sequence[bytes], *, is_closed: bool = True
) -> tuple[list[bytes], bytes]:
    """Return the names as h= lists them, and the signed fields in relaxed form."""
    by_name: dict[bytes, list[bytes]] = {}
    for field in header.fields(head):
        by_name.setdefault(field.name.lower(), []).append(field.raw.partition(b":")[2])
    names: list[bytes] = []
    signed: list[bytes] = []
    has_list = any(name.lower() in by_name for name in LIST_FIELDS)
    for name in signed_fields:
        if name in LIST_FIELDS and not has_list:
            continue
        # RFC 6376 5.4.2: the fields of one name are signed from the lowest up.
        present = by_name.get(name.lower(), [])
        values = present[: -MAX_INSTANCES - 1 : -1]
        # Whoever passes a message on may sign it: only further signatures may be added to it.
        extra = is_closed and name != SIGNATURE
        names += [name] * min(len(present) + extra, MAX_INSTANCES)
        signed += [name.lower() + b":" + relaxed_value(value) for value in values]
    return names, b"".join(signed)


def _field(key: _Key, names: bytes, signed: bytes, *, body_hash: bytes, at: int) -> bytes:
    """Return one folded field."""
    tags = (
        f"v=1; a={key.algorithm}; c=relaxed/relaxed; d={key.domain}; s={key.selector}; t={at}; bh=".encode()
        + body_hash
        + b"; h="
        + names
        + b"; b="
    )
    # The field is signed with its b= empty and without its line end (RFC 6376 3.7).
    signature = b64encode(_make(key.private, signed + b"dkim-signature:" + compress(tags)))
    chunks = [signature[start : start + CHUNK] for start in range(0, len(signature), CHUNK)]
    return header.fold("DKIM-Signature", tags + b" ".join(chunks))


def _make(private: PrivateKey, data: bytes) -> bytes:
    if isinstance(private, rsa.RSAPrivateKey):
        return private.sign(data, padding.PKCS1v15(), hashes.SHA256())
    # RFC 8463 3: Ed25519 signs the digest, not the data.
    return private.sign(hashlib.sha256(data).digest())
