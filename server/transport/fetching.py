"""MTA-STS policy files fetched: HTTPS to an address that was judged, once, with no second place.

Owns the request, what of the answer is asked for, and which failure is of what type. Follows
no redirect, sends no cookie, uses no proxy, keeps nothing. RFC 8461 3.3; RFC 8460 4.3.2.2.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from server import dns
from server.dns import DnsFailure
from server.http_client import HttpFault, Response, get
from server.mail.network import is_public
from server.transport.mtasts import MAX_POLICY_OCTETS, WELL_KNOWN, Policy, PolicySyntax, read_policy
from server.transport.security import Fault, ResultType

if TYPE_CHECKING:
    from server.dns import Resolver

HTTPS_PORT = 443
ADDRESSES_LIMIT = 4
# RFC 8461 3.3: a minute is what the RFC suggests.
FETCH_SECONDS = 60.0
CONNECT_SECONDS = 15.0


class FetchFailed(Exception):
    """No policy was got; fault says why, in the words of reports."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.text)
        self.fault = fault


class PolicyFetcher:
    """Fetches policies. allow_private: from loopback and private addresses too."""

    def __init__(
        self,
        *,
        resolver: Resolver,
        allow_private: bool,
        make_context: Callable[[], ssl.SSLContext],
        port: int = HTTPS_PORT,
        seconds: float = FETCH_SECONDS,
    ) -> None:
        self._resolver = resolver
        self._allow_private = allow_private
        self._make_context = make_context
        self._context: ssl.SSLContext | None = None
        self._port = port
        self._seconds = seconds

    async def fetch(self, domain: str) -> Policy:
        """Return a domain's policy; raises FetchFailed."""
        host = f"mta-sts.{domain}"
        try:
            async with asyncio.timeout(self._seconds):
                octets = await self._request(host)
            return read_policy(octets)
        except PolicySyntax as error:
            raise _failed(ResultType.STS_INVALID, host, str(error)) from None
        except TimeoutError:
            raise _failed(ResultType.STS_FETCH, host, f"no policy within {self._seconds:g} seconds") from None
        except ssl.SSLCertVerificationError as error:
            raise _failed(ResultType.STS_WEBPKI, host, error.verify_message) from None
        except ssl.SSLError as error:
            raise _failed(ResultType.STS_WEBPKI, host, f"TLS: {error.reason or error}") from None
        except (OSError, HttpFault, DnsFailure) as error:
            raise _failed(ResultType.STS_FETCH, host, str(error) or type(error).__name__) from None

    async def _request(self, host: str) -> bytes:
        reader, writer = await self._connect(host, await self._addresses(host))
        try:
            answer = await get(
                reader,
                writer,
                target=WELL_KNOWN,
                headers=(
                    ("Host", host.encode("ascii")),
                    ("User-Agent", b"mailagents"),
                    ("Accept", b"text/plain"),
                ),
                limit_octets=MAX_POLICY_OCTETS,
            )
        finally:
            writer.transport.abort()
        _check(answer)
        return answer.body

    async def _addresses(self, host: str) -> list[str]:
        found = await dns.addresses(self._resolver, host)
        usable = [one for one in found if self._allow_private or is_public(one)]
        if not usable:
            raise HttpFault("it is at private addresses only")
        return usable[:ADDRESSES_LIMIT]

    async def _connect(
        self, host: str, addresses: Sequence[str]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._context is None:
            # Reading the system's authorities takes milliseconds and memory: only where it is wanted.
            self._context = self._make_context()
        failure: OSError = ConnectionError("no address")
        for address in addresses:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    return await asyncio.open_connection(
                        address, self._port, ssl=self._context, server_hostname=host
                    )
            except OSError as error:  # TimeoutError is one
                failure = error
        raise failure


def _check(answer: Response) -> None:
    """RFC 8461 3.3: 200, text/plain, and no other place."""
    if answer.status != 200:
        raise HttpFault(f"the answer is {answer.status}")
    kinds = [value for name, value in answer.headers if name.lower() == b"content-type"]
    kind = kinds[0].split(b";")[0].strip().lower() if len(kinds) == 1 else b""
    if kind != b"text/plain":
        raise HttpFault(f"the answer's type is {kind[:60].decode('ascii', 'replace')!a}, not text/plain")


def _failed(kind: ResultType, host: str, text: str) -> FetchFailed:
    return FetchFailed(Fault(kind, f"{host}: {text}"[:300]))
