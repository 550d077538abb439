"""What the DNS says of a client's names: that of its address, and the one it gives in EHLO.

Owns two checks that decide nothing: whether a name of the address leads back to it, and whether the
EHLO name exists and leads to the address. Names that are followed are few.
RFC 8601 2.7.3 and 3 (iprev), RFC 7208 4.6.4 (how many PTR names), RFC 5321 4.1.3 (literals) and 4.1.4.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from server.dns import DnsFailure, DnsTemporary, NoAnswer, NoSuchDomain, Resolver, addresses
from storage.records import Verdict

NAMES_LIMIT = 10
ADDRESSES_LIMIT = 100  # of one name
_NAME = re.compile(
    r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
)

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Reverse:
    """The names of an address. status: 'pass', 'fail', 'none' or 'temperror'; '' where nobody asked.

    names: as the DNS gives them, lower-case. confirmed: the first of them that leads back, '' if none.
    """

    status: str = ""
    names: tuple[str, ...] = ()
    confirmed: str = ""


UNASKED = Reverse()
TEMPORARY = Reverse("temperror")
# RFC 8601 2.7.3: no PTR record is a permerror there.
_RESULTS = {"none": ("permerror", "no PTR record"), "fail": ("fail", "no name leads back to the address")}


def _read(text: str) -> Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


async def look_up(resolver: Resolver, text: str) -> Reverse:
    """Return the names of an IP address, and which of them leads back to it."""
    address = _read(text)
    if address is None:
        return UNASKED
    try:
        found = await resolver.resolve(address.reverse_pointer, "PTR")
    except DnsTemporary:
        return TEMPORARY
    except DnsFailure:
        return Reverse("none")
    names = tuple(name for name in dict.fromkeys(found.records[: 2 * NAMES_LIMIT]) if is_name(name))
    names = names[:NAMES_LIMIT]
    leads = await asyncio.gather(*(_leads_to(resolver, name, address) for name in names))
    for name, leads_back in zip(names, leads, strict=True):
        if leads_back:
            return Reverse("pass", names, name)
    return Reverse("temperror" if None in leads else "fail", names)


async def _leads_to(resolver: Resolver, name: str, address: Address) -> bool | None:
    """Return whether a name has an address; None where that cannot be known now."""
    try:
        found = await resolver.resolve(name, "A" if address.version == 4 else "AAAA")
    except DnsTemporary:
        return None
    except DnsFailure:
        return False
    return any(_read(one) == address for one in found.records[:ADDRESSES_LIMIT])


def is_name(text: str) -> bool:
    """Return whether a text may be a host's name that the DNS has: with a dot, and no address."""
    return _NAME.fullmatch(text) is not None


async def check_helo(resolver: Resolver, helo: str, text: str) -> str:
    """Return 'pass', 'fail', 'none' or 'temperror' for what a client at an IP address said in EHLO.

    pass: it leads to the address. fail: it exists and does not. none: it has no A, AAAA or MX record.
    """
    address = _read(text)
    if address is None:
        return ""
    if helo.startswith("["):
        literal = helo.strip("[]")
        return (
            "pass" if _read(literal[5:] if literal[:5].lower() == "ipv6:" else literal) == address else "fail"
        )
    name = helo.lower().removesuffix(".")
    if not is_name(name):
        return "none"
    try:
        found = await addresses(resolver, name)
    except (NoSuchDomain, NoAnswer):
        return await _has_mx(resolver, name)
    except DnsTemporary:
        return "temperror"
    return "pass" if any(_read(one) == address for one in found[:ADDRESSES_LIMIT]) else "fail"


async def _has_mx(resolver: Resolver, name: str) -> str:
    try:
        found = await resolver.resolve(name, "MX")
    except DnsTemporary:
        return "temperror"
    except DnsFailure:
        return "none"
    return "fail" if any(record.host for record in found.records) else "none"


def verdict(text: str, reverse: Reverse) -> Verdict:
    """Return the iprev result of an address (RFC 8601 2.7.3)."""
    result, reason = _RESULTS.get(reverse.status, (reverse.status, ""))
    return Verdict("iprev", result, reverse.confirmed, reason, {"policy.iprev": text})
