"""One signed POST to a URL that somebody else chose: to an address looked up once and held to.

Owns the reading of such URLs, which addresses may be called, the connection to the very
address that was judged (so that a second answer of the DNS cannot lead elsewhere), and
the signature. Follows no redirect, uses no proxy, sends no cookie. Keeps nothing.
Standard Webhooks 1.0 (symmetric signatures); RFC 3986 3; RFC 9110.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from server import dns
from server.dns import DnsFailure
from server.http_client import HttpFault, exchange, once
from server.mail.network import is_public

if TYPE_CHECKING:
    from server.dns import Resolver

ANSWER_OCTETS = 64 << 10
ADDRESSES_LIMIT = 4
SECRET_PREFIX = "whsec_"  # noqa: S105 - a form, no secret
SECRET_OCTETS = (24, 64)
_PORTS = {"https": 443, "http": 80}


class UrlRefused(ValueError):
    """A URL that is not called, ever or for now; the text says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart. host: without brackets; authority: as the Host field has it."""

    scheme: str
    host: str
    port: int
    authority: str
    path: str

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"{self.scheme}://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Posted:
    """What came of a call: the status, 0 where nothing was answered, and words about it."""

    status: int
    text: str = ""
    address: str = ""

    @property
    def is_taken(self) -> bool:
        """Whether the other side took it."""
        return 200 <= self.status < 300


def read_url(url: str) -> Target:
    """Return a URL's parts; UrlRefused for what is none that can be called."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UrlRefused(str(error)) from None
    host = (parts.hostname or "").lower()
    if parts.scheme not in _PORTS or not host or not url.isascii() or not url.isprintable() or " " in url:
        raise UrlRefused("it is no http or https URL")
    if parts.username is not None or parts.password is not None:
        raise UrlRefused("it holds a user name or password")
    named = f"[{host}]" if ":" in host else host
    authority = f"{named}:{port}" if port else named
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port or _PORTS[parts.scheme], authority, path)


def read_secret(text: str) -> bytes:
    """Return the octets of a secret `whsec_…`; ValueError where it is none."""
    try:
        octets = base64.b64decode(text.strip().removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the secret of webhooks is no base64") from None
    if not SECRET_OCTETS[0] <= len(octets) <= SECRET_OCTETS[1]:
        raise ValueError(f"the secret of webhooks has {len(octets)} octets, not 24 to 64")
    return octets


def write_secret(octets: bytes) -> str:
    """Return a secret in the form that receivers are given."""
    return SECRET_PREFIX + base64.b64encode(octets).decode("ascii")


def signature(secret: bytes, *, call_id: str, timestamp: int, body: bytes) -> str:
    """Return the value of webhook-signature; timestamp: seconds since 1970."""
    signed = b"%b.%d.%b" % (call_id.encode("ascii"), timestamp, body)
    digest = hmac.digest(secret, signed, "sha256")
    return "v1," + base64.b64encode(digest).decode("ascii")


class Poster:
    """Posts to URLs. allow_private: loopback and private addresses too, and there without TLS."""

    def __init__(
        self,
        *,
        resolver: Resolver,
        allow_private: bool,
        timeout_seconds: float,
        make_context: Callable[[], ssl.SSLContext] = ssl.create_default_context,
    ) -> None:
        self._resolver = resolver
        self._allow_private = allow_private
        self._timeout_seconds = timeout_seconds
        self._make_context = make_context
        self._context: ssl.SSLContext | None = None

    async def post(
        self, target: Target, *, call_id: str, timestamp: int, body: bytes, secret: bytes
    ) -> Posted:
        """Call a URL with a signed JSON body; never raises for what the other side does."""
        headers = [
            ("Host", target.authority.encode("ascii")),
            ("User-Agent", b"mailagents"),
            ("Content-Type", b"application/json"),
            ("webhook-id", call_id.encode("ascii")),
            ("webhook-timestamp", b"%d" % timestamp),
            (
                "webhook-signature",
                signature(secret, call_id=call_id, timestamp=timestamp, body=body).encode("ascii"),
            ),
        ]
        return await self.call(target, headers, body)

    async def call(self, target: Target, headers: list[tuple[str, bytes]], body: bytes) -> Posted:
        """POST a body with these headers; never raises for what the other side does."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._call(target, headers, body)
        except TimeoutError:
            return Posted(0, f"no answer within {self._timeout_seconds:g} seconds")
        except (OSError, HttpFault, UrlRefused) as error:
            return Posted(0, f"{type(error).__name__}: {error}"[:300])

    async def _call(self, target: Target, headers: list[tuple[str, bytes]], body: bytes) -> Posted:
        reader, writer, address = await self._connect(target, await self._addresses(target))
        try:
            answer = await exchange(
                reader,
                writer,
                target=target.path,
                headers=headers,
                octets=len(body),
                body=once(body),
                limit_octets=ANSWER_OCTETS,
            )
        finally:
            writer.transport.abort()
        return Posted(answer.status, "", address)

    async def _addresses(self, target: Target) -> list[str]:
        """Return the addresses that a URL's host has and that may be called; UrlRefused where none may."""
        try:
            found: tuple[str, ...] = (str(ipaddress.ip_address(target.host)),)
        except ValueError:
            if target.host == "localhost":
                found = ("127.0.0.1",)
            else:
                try:
                    found = await dns.addresses(self._resolver, target.host)
                except DnsFailure as failure:
                    raise UrlRefused(str(failure)) from None
        public = [one for one in found if is_public(one)]
        if target.scheme == "http":
            # What a call tells of is nobody's on the way; on this machine or network it may go in clear.
            allowed = [one for one in found if one not in public] if self._allow_private else []
        else:
            allowed = list(found) if self._allow_private else public
        if not allowed:
            raise UrlRefused(f"{target.host} is at no address that may be called by {target.scheme}")
        return allowed[:ADDRESSES_LIMIT]

    async def _connect(
        self, target: Target, addresses: list[str]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
        context = self._tls() if target.scheme == "https" else None
        failure: OSError = ConnectionError("no address")
        for address in addresses:
            try:
                reader, writer = await asyncio.open_connection(
                    address, target.port, ssl=context, server_hostname=target.host if context else None
                )
            except OSError as error:
                failure = error
                continue
            return reader, writer, address
        raise failure

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            # Reading the system's authorities takes milliseconds and memory: only where it is wanted.
            self._context = self._make_context()
            self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        return self._context
