"""SCRAM-SHA-256, the server's side of one exchange.

Pure: messages go in and come out decoded, a nonce and keys are given. Whoever
knows no such user gives keys made up, and the exchange runs as any other.
Channel binding is not offered. RFC 5802 (messages, proofs), 7677 (SHA-256).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import b64encode
from binascii import Error as Base64Error
from binascii import a2b_base64
from dataclasses import dataclass

MECHANISM = "SCRAM-SHA-256"
MESSAGE_OCTETS = 2048
# gs2-cbind-flag, authzid, username, client nonce; no mandatory extension (m=).
_FIRST = re.compile(r"([ny],(?:a=([^,]*))?,)(n=([^,]+),r=([\x21-\x2b\x2d-\x7e]+)(?:,.*)?)", re.DOTALL)
_FINAL = re.compile(r"(c=([^,]+),r=([^,]+)(?:,.+)?),p=([^,]+)", re.DOTALL)


class ScramSyntax(ValueError):
    """A message that cannot be read or breaks the exchange; the text says why."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """What is kept of one password: StoredKey and ServerKey, by the credential's id."""

    id: str
    stored_key: bytes
    server_key: bytes


@dataclass(frozen=True, slots=True)
class Keys:
    """What a user's client is told, and the passwords that share the salt."""

    iterations: int
    salt: bytes
    verifiers: tuple[Verifier, ...]


class Exchange:
    """One authentication: open, challenge, finish, in this order."""

    __slots__ = ("_bare", "_client_nonce", "_header", "_keys", "_nonce", "_server_first", "user")

    def __init__(self) -> None:
        self.user = ""

    def open(self, message: bytes) -> str:
        """Take client-first-message, return the user's name. Raises ScramSyntax."""
        match = _FIRST.fullmatch(_text(message))
        if match is None:
            raise ScramSyntax("not a client-first-message without channel binding")
        self._header, acting_as, self._bare, name, self._client_nonce = match.groups()
        self.user = _unescaped(name)
        if acting_as and _unescaped(acting_as) != self.user:
            raise ScramSyntax("acting as another user is not allowed")
        return self.user

    def challenge(self, keys: Keys, nonce: str) -> bytes:
        """Return server-first-message; nonce: the server's part."""
        self._keys = keys
        self._nonce = self._client_nonce + nonce
        salt = b64encode(keys.salt).decode()
        self._server_first = f"r={self._nonce},s={salt},i={keys.iterations}"
        return self._server_first.encode()

    def finish(self, message: bytes) -> tuple[str, bytes] | None:
        """Take client-final-message.

        Return the credential's id and server-final-message, None for a wrong proof.
        Raises ScramSyntax.
        """
        match = _FINAL.fullmatch(_text(message))
        if match is None:
            raise ScramSyntax("not a client-final-message")
        without_proof, binding, nonce, proof = match.groups()
        if nonce != self._nonce or _decoded(binding) != self._header.encode():
            raise ScramSyntax("the nonce or the channel binding is not that of this exchange")
        signed = f"{self._bare},{self._server_first},{without_proof}".encode()
        return self._verify(_decoded(proof), signed)

    def _verify(self, proof: bytes, signed: bytes) -> tuple[str, bytes] | None:
        found: tuple[str, bytes] | None = None
        for verifier in self._keys.verifiers:
            signature = hmac.digest(verifier.stored_key, signed, "sha256")
            client_key = bytes(left ^ right for left, right in zip(proof, signature, strict=False))
            stored_key = hashlib.sha256(client_key).digest()
            if hmac.compare_digest(stored_key, verifier.stored_key) and len(proof) == len(signature):
                server = hmac.digest(verifier.server_key, signed, "sha256")
                found = found or (verifier.id, b"v=" + b64encode(server))
        return found


def _text(message: bytes) -> str:
    if len(message) > MESSAGE_OCTETS or b"\0" in message:
        raise ScramSyntax("the message is too long or holds NUL")
    try:
        return message.decode("utf-8")
    except UnicodeDecodeError:
        raise ScramSyntax("the message is not UTF-8") from None


def _unescaped(name: str) -> str:
    if re.search(r"=(?!2C|3D)", name):
        raise ScramSyntax("'=' in a name stands for nothing but '=2C' and '=3D'")
    return name.replace("=2C", ",").replace("=3D", "=")


def _decoded(text: str) -> bytes:
    try:
        return a2b_base64(text.encode(), strict_mode=True)
    except (Base64Error, ValueError):
        raise ScramSyntax("not base64") from None
