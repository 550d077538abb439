"""SASL exchanges that a submission session offers: PLAIN, LOGIN, SCRAM-SHA-256 and OAUTHBEARER.

Pure: responses go in as they stand on the wire, challenges or credentials come
out. Checks form alone; whether the credentials are right is the login's to say.
RFC 4954 (AUTH), 4616 (PLAIN), 4648 4 (base64), 5802 and 7677 (SCRAM), 7628 (OAUTHBEARER);
LOGIN as its Internet-Draft (murchison-sasl-login) describes it.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass

from server import scram
from server.refusal import Refusal

MECHANISMS = ("SCRAM-SHA-256", "OAUTHBEARER", "PLAIN", "LOGIN")
RESPONSE_OCTETS = 12288 - 2  # RFC 4954 4: 12288 with CRLF
CREDENTIAL_OCTETS = 1024
_ASK_USER = b"VXNlcm5hbWU6"  # "Username:"
_ASK_PASSWORD = b"UGFzc3dvcmQ6"  # "Password:"

_TOKEN_REFUSED = binascii.b2a_base64(b'{"status":"invalid_token"}', newline=False)
# RFC 7628 3.1: a GS2 header with the user's name, then key=value pairs between ^A.
_BEARER = re.compile(
    rb"[ny],a=([^,\x01]+),\x01(?:[A-Za-z]+=[^\x01]*\x01)*?auth=[Bb]earer +([^\x01 ]+)\x01"
    rb"(?:[A-Za-z]+=[^\x01]*\x01)*\x01"
)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and password as the client gave them."""

    user: str
    password: str


@dataclass(frozen=True, slots=True)
class Token(Credentials):
    """A bearer token as the password; a refusal of it is told by `token_refused` first."""


@dataclass(frozen=True, slots=True)
class Proof:
    """The end of SCRAM. credential_id: of the password that was proved, None for a wrong proof."""

    user: str
    credential_id: str | None


@dataclass(frozen=True, slots=True)
class Asks:
    """A SCRAM client named itself: `challenge` wants this user's keys."""

    user: str


Outcome = bytes | Credentials | Proof | Asks


class Exchange:
    """One AUTH dialogue. After each response: the next challenge in base64, or an outcome."""

    __slots__ = ("_mechanism", "_proved", "_refused", "_scram", "_user")

    def __init__(self, mechanism: str) -> None:
        if mechanism not in MECHANISMS:
            raise Refusal(504, "5.5.4", "Authentication mechanism not recognized")
        self._mechanism = mechanism
        self._user: str | None = None
        self._scram = scram.Exchange()
        self._proved: Proof | None = None
        self._refused = False

    def begin(self, initial: bytes | None) -> Outcome:
        """Take the initial response of the AUTH line, None if there was none; raises Refusal 501 or 535."""
        if initial is None:
            return _ASK_USER if self._mechanism == "LOGIN" else b""
        # RFC 4954 4: a lone "=" is an initial response of no octets.
        return self._take(b"" if initial == b"=" else _decode(initial))

    def answer(self, response: bytes) -> Outcome:
        """Take one line of the client; raises Refusal 500, 501 or 535."""
        if response == b"*":
            raise Refusal(501, "5.0.0", "Authentication cancelled")
        return self._take(_decode(response))

    def _take(self, octets: bytes) -> Outcome:
        if self._mechanism == "PLAIN":
            return _read_plain(octets)
        if self._mechanism == "OAUTHBEARER":
            return self._take_token(octets)
        if self._mechanism == "SCRAM-SHA-256":
            return self._take_scram(octets)
        if self._user is None:
            self._user = _text(octets)
            return _ASK_PASSWORD
        return Credentials(self._user, _text(octets))

    def challenge(self, keys: scram.Keys, nonce: str) -> bytes:
        """Return the challenge that answers Asks."""
        return binascii.b2a_base64(self._scram.challenge(keys, nonce), newline=False)

    def token_refused(self) -> bytes:
        """Return the challenge that tells of a refused Token (RFC 7628 3.2.2); its answer ends all."""
        self._refused = True
        return _TOKEN_REFUSED

    def _take_scram(self, octets: bytes) -> Outcome:
        if self._proved is not None:
            if octets:
                raise Refusal(501, "5.5.2", "The last response of SCRAM is empty")
            return self._proved
        try:
            if self._user is None:
                self._user = self._scram.open(octets)
                return Asks(self._user)
            proved = self._scram.finish(octets)
        except scram.ScramSyntax as error:
            raise Refusal(501, "5.5.2", f"SCRAM: {error}") from None
        if proved is None:
            return Proof(self._user, None)
        self._proved = Proof(self._user, proved[0])
        return binascii.b2a_base64(proved[1], newline=False)

    def _take_token(self, octets: bytes) -> Outcome:
        if self._refused:
            raise Refusal(535, "5.7.8", "Authentication credentials invalid")
        match = _BEARER.fullmatch(octets)
        if match is None:
            raise Refusal(501, "5.5.2", "OAUTHBEARER takes a=ADDRESS and auth=Bearer KEY")
        return Token(_text(match[1].replace(b"=2C", b",").replace(b"=3D", b"=")), _text(match[2]))


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
