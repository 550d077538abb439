"""Return paths that tell of their delivery, and links that tell of their reader: signed, with an expiry.

Owns the forms and the key that signs them. A return path is `b-<id><mac>@domain`: the delivery's id
without its kind and 80 bits of a keyed hash over id and domain. Whoever has no key makes none that
is taken. Reads no clock: the id has its time, and now is an argument.
RFC 5321 4.5.3.1.1 (64 octets of a local part), RFC 8058 3.1 (an opaque, hard to forge part).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from dataclasses import dataclass

PREFIX = "b-"
MAC_OCTETS = 10
LINK_MAC_OCTETS = 16
LINK_LIMIT = 1400
_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"
_FORM = re.compile(rf"{PREFIX}([{_DIGITS}]{{26}})([{_DIGITS}]{{16}})@(.{{1,255}})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Unsubscribing:
    """What a link says: who wants no more mail of whom. Addresses in normal form."""

    organization_id: str
    sender: str
    recipient: str
    message_id: str


class ReturnTokens:
    """Makes and reads signed addresses and links. secret: 32 octets that all processes share."""

    def __init__(self, secret: bytes, *, lifetime: int) -> None:
        """lifetime: of a return path, in microseconds from the making of the delivery's id."""
        self._secret = secret
        self._lifetime = lifetime

    def address(self, delivery_id: str, domain: str) -> str:
        """Return the return path of a delivery. domain: lower-case A-labels."""
        identifier = delivery_id.partition("_")[2]
        return f"{PREFIX}{identifier}{self._mac(identifier, domain)}@{domain}"

    def delivery(self, address: str, *, now: int) -> str | None:
        """Return the id of the delivery whose return path an address is; None: forged, expired or none."""
        found = _FORM.fullmatch(address)
        if found is None:
            return None
        identifier, mac, domain = found[1].lower(), found[2].lower(), found[3].lower()
        if not hmac.compare_digest(mac, self._mac(identifier, domain)):
            return None
        if now - made_at(identifier) > self._lifetime:
            return None
        return f"dlv_{identifier}"

    def link(self, wish: Unsubscribing) -> str:
        """Return the part of a link that unsubscribes a reader, of URL characters alone."""
        text = json.dumps([wish.organization_id, wish.sender, wish.recipient, wish.message_id])
        octets = text.encode()
        return (
            urlsafe_b64encode(self._sign(b"unsubscribe", octets, LINK_MAC_OCTETS) + octets)
            .decode()
            .rstrip("=")
        )

    def wish(self, link: str) -> Unsubscribing | None:
        """Return what such a part says; None where it was not made here."""
        if len(link) > LINK_LIMIT or not re.fullmatch(r"[A-Za-z0-9_-]+", link):
            return None
        try:
            octets = urlsafe_b64decode(link + "=" * (-len(link) % 4))
        except (Base64Error, ValueError):
            return None
        mac, said = octets[:LINK_MAC_OCTETS], octets[LINK_MAC_OCTETS:]
        if not hmac.compare_digest(mac, self._sign(b"unsubscribe", said, LINK_MAC_OCTETS)):
            return None
        return Unsubscribing(*json.loads(said))

    def _mac(self, identifier: str, domain: str) -> str:
        octets = self._sign(b"return path", f"{identifier}@{domain}".encode("utf-8", "replace"), MAC_OCTETS)
        number = int.from_bytes(octets, "big")
        return "".join(_DIGITS[number >> shift & 31] for shift in range(75, -1, -5))

    def _sign(self, purpose: bytes, octets: bytes, length: int) -> bytes:
        return hashlib.blake2b(octets, key=self._secret, digest_size=length, person=purpose[:16]).digest()


def has_form(address: str) -> bool:
    """Whether an address looks like such a return path, whoever made it."""
    return _FORM.fullmatch(address) is not None


def made_at(identifier: str) -> int:
    """Return when an id was made, in microseconds: its first ten digits are milliseconds since 1970."""
    number = 0
    for digit in identifier[:10]:
        number = number << 5 | _DIGITS.index(digit)
    return number * 1000
