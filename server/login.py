"""Who is this: app passwords and API keys, checked in equal time for unknown names.

Owns password hashing (argon2id, RFC 9106), SCRAM verifiers (RFC 5802, 7677), key
secrets and a short keyed cache of successes; failures are counted in
server.throttle. A check costs one derivation and one argon2id, however many
passwords an inbox has and whether or not there is one. Never logs a name with
a secret, never says which of name and password was wrong.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import argon2
import structlog

from server import scram
from server.mail.address import AddressSyntax, normalise
from server.refusal import Refusal
from server.throttle import Throttle
from storage import accounts
from storage.files import put
from storage.records import ApiKey, Credential, Mailbox

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from server.threads import Threads
    from storage.db import Notice

KEY_MARK = "mak_"
HOST = "host"  # kind of an identity that the configuration vouches for, by the client's address
SCRAM_ITERATIONS = 4096  # RFC 7677 4; the passwords have 128 bits and more of their own
CACHE_SECONDS = 60
CACHE_LIMIT = 10_000
SECRET_OCTETS = 32
_NO_SALT = bytes(16)
PROTOCOL_SCOPE = {"smtp": "message:send", "imap": "message:read"}

log = structlog.get_logger("login")

# Memory 19 MiB, 2 passes, 1 lane: OWASP's and RFC 9106's small profile; passwords are random already.
_hasher = argon2.PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)


@dataclass(frozen=True, slots=True)
class Identity:
    """An authenticated client. kind: 'password', 'key' or 'host'; mailbox_id None: an organization's key."""

    organization_id: str
    mailbox_id: str | None
    address: str
    kind: str
    id: str
    scopes: frozenset[str] = frozenset()


def hash_password(password: str) -> str:
    """Return the argon2id hash in PHC form."""
    return _hasher.hash(password)


def scram_verifier(password: str, salt: bytes | None = None) -> str:
    """Return 'iterations$salt$StoredKey$ServerKey' for SCRAM-SHA-256 (RFC 5802 3), base64 parts."""
    salt = salt or secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, SCRAM_ITERATIONS)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    stored_key = hashlib.sha256(client_key).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    parts = (base64.b64encode(part).decode() for part in (salt, stored_key, server_key))
    return "$".join([str(SCRAM_ITERATIONS), *parts])


def kept_secret(path: Path) -> bytes:
    """Return the 32 secret octets of a file, made where it is absent or of another length."""
    with contextlib.suppress(FileNotFoundError):
        octets = path.read_bytes()
        if len(octets) == SECRET_OCTETS:
            return octets
    octets = secrets.token_bytes(SECRET_OCTETS)
    put(path, octets)
    return octets


def shared_salt(connection: Connection, mailbox_id: str) -> bytes | None:
    """Return the salt of an inbox's newest password: with one salt for all, SCRAM takes each of them."""
    for _, text in accounts.scram_verifiers(connection, mailbox_id=mailbox_id):
        read = _read_verifier(text)
        if read is not None:
            return read[1]
    return None


def new_password() -> str:
    """Return an app password of 130 bits in groups that can be typed."""
    letters = base64.b32encode(secrets.token_bytes(17)).decode().rstrip("=").lower()[:26]
    return "-".join(letters[start : start + 5] for start in range(0, 26, 5))


def new_key() -> tuple[str, str, bytes]:
    """Return (secret, prefix that identifies it, SHA-256 of the secret) of a new API key."""
    secret = KEY_MARK + secrets.token_urlsafe(32)
    return secret, secret[:12], hashlib.sha256(secret.encode()).digest()


class Login:
    """Checks secrets for every protocol; one per process."""

    def __init__(self, threads: Threads, clock: Clock, *, decoy_secret: bytes = b"") -> None:
        self._threads = threads
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._decoy_secret = decoy_secret or self._secret
        self._known: dict[bytes, tuple[float, Identity]] = {}
        self._failures = Throttle(clock)
        self._generation = 0  # an answer that a change overtook is given once and not remembered
        self._dummy_hash = ""
        threads.hub.subscribe("accounts", None, self._forget)

    def _forget(self, _notice: Notice) -> None:
        self._generation += 1
        self._known.clear()

    async def check(self, *, protocol: str, user: str, password: str, peer: str) -> Identity:
        """Return who logs in with an inbox address and an app password or a key.

        protocol: 'smtp' or 'imap'. peer: IP address; failures are counted by its network.
        Raises Refusal 535 5.7.8 for wrong credentials, 454 4.7.0 for a throttled peer.
        """
        mark = self._mark(protocol, user, password)
        identity = self._remembered(mark)
        if identity is None:
            # Who was let in a moment ago is not locked out by others behind the same address.
            account = _account_of(user)
            self._failures.require(peer, account)
            generation = self._generation
            identity = await self._examine(protocol, user, password)
            if identity is None:
                self._failed(peer, account)
                raise Refusal(535, "5.7.8", "Authentication credentials invalid", f"{protocol} login")
            self._failures.succeeded(peer, account)
            if generation == self._generation:
                self._remember(mark, identity)
        return identity

    async def scram_keys(self, user: str, *, peer: str) -> scram.Keys:
        """Return what SCRAM tells a user's client; made up for a name that may not log in.

        Passwords count that share the newest one's salt. Raises Refusal 454 4.7.0 for a throttled peer.
        """
        self._failures.require(peer, _account_of(user))
        address = _address_of(user)
        held = await self._threads.read(lambda c: _scram_verifiers(c, address))
        read = [(name, _read_verifier(text)) for name, text in held]
        kept = [(name, parts) for name, parts in read if parts is not None]
        if not kept:
            # A user who asks again, after a restart too, is told the same salt, as a real one would be.
            salt = hmac.digest(self._decoy_secret, b"scram\0" + address.encode(), "sha256")[:16]
            decoy = scram.Verifier("", secrets.token_bytes(32), secrets.token_bytes(32))
            return scram.Keys(SCRAM_ITERATIONS, salt, (decoy,))
        iterations, salt, *_ = kept[0][1]
        same = [(name, parts) for name, parts in kept if parts[:2] == (iterations, salt)]
        return scram.Keys(
            iterations, salt, tuple(scram.Verifier(name, parts[2], parts[3]) for name, parts in same)
        )

    async def scram(self, *, protocol: str, user: str, credential_id: str | None, peer: str) -> Identity:
        """Return who proved to know a password; credential_id: its id, None for a wrong proof.

        Raises as `check` does.
        """
        account = _account_of(user)
        self._failures.require(peer, account)
        address = _address_of(user)
        mailbox, credentials = await self._threads.read(lambda c: _credentials(c, address))
        if (
            mailbox is None
            or credential_id not in {row.id for row, _ in credentials}
            or credential_id is None
        ):
            self._failed(peer, account)
            raise Refusal(535, "5.7.8", "Authentication credentials invalid", f"{protocol} login")
        self._failures.succeeded(peer, account)
        return Identity(mailbox.organization_id, mailbox.id, mailbox.address, "password", credential_id)

    async def vouched(self, address: str) -> Identity | None:
        """Return who a host submits as that needs no login, None where the inbox is not active."""
        mark = self._mark("vouched", address, "")
        identity = self._remembered(mark)
        if identity is None:
            generation = self._generation
            mailbox = await self._threads.read(lambda c: _open_mailbox(c, _address_of(address)))
            if mailbox is None:
                log.warning("a submission host's inbox is not there or not active", inbox=address)
                return None
            identity = Identity(mailbox.organization_id, mailbox.id, mailbox.address, HOST, mailbox.id)
            if generation == self._generation:
                self._remember(mark, identity)
        return identity

    async def bearer(self, token: str, *, peer: str) -> Identity:
        """Return the identity of an API key; raises as `check` does."""
        mark = self._mark("bearer", "", token)
        identity = self._remembered(mark)
        if identity is None:
            # Who was let in a moment ago is not locked out by others behind the same address.
            self._failures.require(peer)
            generation = self._generation
            key = await self._find_key(token)
            if key is None:
                self._failed(peer)
                raise Refusal(535, "5.7.8", "The key is unknown, expired or revoked")
            identity = _of_key(key)
            if generation == self._generation:
                self._remember(mark, identity, expires_at=key.expires_at)
        return identity

    async def _examine(self, protocol: str, user: str, password: str) -> Identity | None:
        address = _address_of(user)
        if password.startswith(KEY_MARK):
            return await self._by_key(protocol, address, password)
        mailbox, credentials = await self._threads.read(lambda c: _credentials(c, address))
        held = [(row.id, row.password_hash, text) for row, text in credentials]
        used = await self._threads.compute(_match, held, await self._decoy(), password)
        if used is None or mailbox is None:
            return None
        return Identity(mailbox.organization_id, mailbox.id, mailbox.address, "password", used)

    async def _by_key(self, protocol: str, address: str, secret: str) -> Identity | None:
        key = await self._find_key(secret)
        if key is None or PROTOCOL_SCOPE[protocol] not in key.scopes:
            return None
        mailbox = await self._threads.read(lambda c: _open_mailbox(c, address))
        if mailbox is None or mailbox.organization_id != key.organization_id:
            return None
        if key.mailbox_id not in (None, mailbox.id):
            return None
        return Identity(mailbox.organization_id, mailbox.id, mailbox.address, "key", key.id, key.scopes)

    async def _find_key(self, secret: str) -> ApiKey | None:
        digest = hashlib.sha256(secret.encode(errors="replace")).digest()
        key = await self._threads.read(lambda c: accounts.find_api_key(c, key_hash=digest))
        now = self._clock.now()
        if key is None or key.revoked_at is not None:
            return None
        return key if key.expires_at is None or key.expires_at > now else None

    async def _decoy(self) -> str:
        if not self._dummy_hash:
            self._dummy_hash = await self._threads.compute(hash_password, secrets.token_urlsafe(16))
        return self._dummy_hash

    def _mark(self, *parts: str) -> bytes:
        text = "\0".join(parts).encode(errors="surrogateescape")
        return hmac.digest(self._secret, text, "sha256")

    def _remembered(self, mark: bytes) -> Identity | None:
        until, identity = self._known.get(mark, (0.0, None))
        return identity if until > self._clock.monotonic() else None

    def _remember(self, mark: bytes, identity: Identity, *, expires_at: int | None = None) -> None:
        if len(self._known) >= CACHE_LIMIT:
            self._known.clear()
        seconds = float(CACHE_SECONDS)
        if expires_at is not None:
            seconds = min(seconds, (expires_at - self._clock.now()) / 1_000_000)
        self._known[mark] = (self._clock.monotonic() + seconds, identity)

    def _failed(self, peer: str, account: str = "") -> None:
        self._failures.failed(peer, account)
        log.info("login failed", peer=peer)


def _account_of(user: str) -> str:
    """Return what failures are counted by: the address, or a name that is none as it was given, cut."""
    return _address_of(user) or user[:254].lower()


def _address_of(user: str) -> str:
    """Return a login name as an address, '' where it is none."""
    try:
        return normalise(user)
    except (AddressSyntax, ValueError):
        return ""


def _scram_verifiers(connection: Connection, address: str) -> list[tuple[str, str]]:
    mailbox = _open_mailbox(connection, address)
    return accounts.scram_verifiers(connection, mailbox_id=mailbox.id) if mailbox is not None else []


def _read_verifier(text: str) -> tuple[int, bytes, bytes, bytes] | None:
    """Read what scram_verifier wrote, None if it is something else."""
    iterations, *parts = text.split("$")
    try:
        salt, stored_key, server_key = (base64.b64decode(part, validate=True) for part in parts)
        return int(iterations), salt, stored_key, server_key
    except ValueError:
        return None


def _of_key(key: ApiKey) -> Identity:
    return Identity(key.organization_id, key.mailbox_id, "", "key", key.id, key.scopes)


def _credentials(connection: Connection, address: str) -> tuple[Mailbox | None, list[tuple[Credential, str]]]:
    mailbox = _open_mailbox(connection, address)
    if mailbox is None:
        return None, []
    texts = dict(accounts.scram_verifiers(connection, mailbox_id=mailbox.id))
    held = accounts.credentials(connection, mailbox_id=mailbox.id)
    return mailbox, [(row, texts.get(row.id, "")) for row in held]


def _open_mailbox(connection: Connection, address: str) -> Mailbox | None:
    """Return an address's inbox unless it, or its organization, is suspended or closed."""
    mailbox = accounts.find_mailbox(connection, address=address) if address else None
    if mailbox is None or mailbox.state != "active":
        return None
    owner = accounts.organization(connection, organization_id=mailbox.organization_id)
    return mailbox if owner is not None and owner.state == "active" else None


def _match(held: list[tuple[str, str, str]], decoy: str, password: str) -> str | None:
    """Return the id of the password that was given; held: (id, argon2id hash, SCRAM verifier).

    The verifiers share one salt, so one derivation tells which hash to try, the decoy's where it is none.
    """
    read = [(name, hashed, _read_verifier(text)) for name, hashed, text in held]
    # One at least, so that an unknown name takes as long.
    salts = {parts[:2] for *_, parts in read if parts is not None} or {(SCRAM_ITERATIONS, _NO_SALT)}
    stored = {pair: _stored_key(password, *pair) for pair in salts}
    likely = [
        (name, hashed)
        for name, hashed, parts in read
        if parts is None or hmac.compare_digest(stored[parts[:2]], parts[2])
    ]
    for name, hashed in likely or [("", decoy)]:
        try:
            _hasher.verify(hashed, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            continue
        return name or None
    return None


def _stored_key(password: str, iterations: int, salt: bytes) -> bytes:
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(errors="surrogateescape"), salt, iterations)
    return hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
