"""SASL exchanges that a submission session offers: PLAIN and LOGIN.

Pure: responses go in as they stand on the wire, challenges or credentials come
out. Checks form alone; whether the credentials are right is the login's to say.
RFC 4954 (AUTH), 4616 (PLAIN), 4648 4 (base64); LOGIN as its Internet-Draft
(murchison-sasl-login) describes it.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass

from server.refusal import Refusal

MECHANISMS = ("PLAIN", "LOGIN")
RESPONSE_OCTETS = 12288 - 2  # RFC 4954 4: 12288 with CRLF
CREDENTIAL_OCTETS = 1024
_ASK_USER = b"VXNlcm5hbWU6"  # "Username:"
_ASK_PASSWORD = b"UGFzc3dvcmQ6"  # "Password:"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and password as the client gave them."""

    user: str
    password: str


class Exchange:
    """One AUTH dialogue. After each response: the next challenge in base64, or Credentials."""

    __slots__ = ("_mechanism", "_user")

    def __init__(self, mechanism: str) -> None:
        if mechanism not in MECHANISMS:
            raise Refusal(504, "5.5.4", "Authentication mechanism not recognized")
        self._mechanism = mechanism
        self._user: str | None = None

    def begin(self, initial: bytes | None) -> bytes | Credentials:
        """Take the initial response of the AUTH line, None if there was none; raises Refusal 501 or 535."""
        if initial is None:
            return b"" if self._mechanism == "PLAIN" else _ASK_USER
        # RFC 4954 4: a lone "=" is an initial response of no octets.
        return self._take(b"" if initial == b"=" else _decode(initial))

    def answer(self, response: bytes) -> bytes | Credentials:
        """Take one line of the client; raises Refusal 500, 501 or 535."""
        if response == b"*":
            raise Refusal(501, "5.0.0", "Authentication cancelled")
        return self._take(_decode(response))

    def _take(self, octets: bytes) -> bytes | Credentials:
        if self._mechanism == "PLAIN":
            return _read_plain(octets)
        if self._user is None:
            self._user = _text(octets)
            return _ASK_PASSWORD
        return Credentials(self._user, _text(octets))


def _decode(response: bytes) -> bytes:
    if len(response) > RESPONSE_OCTETS:
        raise Refusal(500, "5.5.6", "Authentication exchange line is too long")
    try:
        return binascii.a2b_base64(response, strict_mode=True) if response else b""
    except (binascii.Error, ValueError):
        raise Refusal(501, "5.5.2", "Invalid base64 data") from None


def _read_plain(octets: bytes) -> Credentials:
    """Read authzid NUL authcid NUL passwd (RFC 4616 2)."""
    fields = octets.split(b"\0")
    if len(fields) != 3:
        raise Refusal(501, "5.5.2", "PLAIN takes an identity, a user and a password between NULs")
    acting_as, user, password = (_text(field) if field else "" for field in fields)
    if not user or not password:
        raise Refusal(501, "5.5.2", "PLAIN takes a user and a password")
    if acting_as and acting_as != user:
        raise Refusal(535, "5.7.8", "Acting as another user is not allowed")
    return Credentials(user, password)


def _text(octets: bytes) -> str:
    if not octets or len(octets) > CREDENTIAL_OCTETS or b"\0" in octets:
        raise Refusal(501, "5.5.2", "Malformed credentials")
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        raise Refusal(501, "5.5.2", "Credentials are not UTF-8") from None
