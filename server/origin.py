"""Whom a message is from, as far as a receiver can know it: the correspondent that reputation is about.

Pure. Owns the choice of the name under which an inbox remembers a sender: the address in
From where the domain vouches for it, else that address together with the network
that it came from, so that nobody inherits a good name by writing it into a header.
RFC 9989 4.4 (alignment), RFC 7208, RFC 6376.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network

from server.mail.address import AddressSyntax, normalise
from storage.records import Verdict

V4_BITS, V6_BITS = 24, 64


@dataclass(frozen=True, slots=True)
class Origin:
    """A correspondent and the wider one it belongs to, its domain or network; '' where there is none."""

    correspondent: str = ""
    wider: str = ""
    is_authenticated: bool = False


NOBODY = Origin()


def origin_of(authors: Sequence[str], verdicts: Sequence[Verdict], client: str) -> Origin:
    """Return a message's origin. authors: the addresses in From; client: IP address, '' for none."""
    if len(authors) != 1:
        return NOBODY  # several authors: no one of them answers for the message
    try:
        address = normalise(authors[0])
    except AddressSyntax:
        return NOBODY
    domain = address.rpartition("@")[2]
    if is_vouched_for(domain, verdicts):
        return Origin(f"address {address}", f"domain {domain}", is_authenticated=True)
    network = network_of(client)
    if not network:
        return NOBODY
    return Origin(f"address {address} from {network}", f"network {network}")


def is_vouched_for(domain: str, verdicts: Sequence[Verdict]) -> bool:
    """Return whether authentication says that a domain stands behind a message."""
    found = [verdict.result for verdict in verdicts if verdict.method == "dmarc"]
    if "pass" in found or "fail" in found:
        return "fail" not in found
    # Without a policy of the domain: by the domain itself or one above it, never by one below.
    return any(
        verdict.result == "pass" and verdict.method in ("spf", "dkim") and _is_within(domain, verdict.domain)
        for verdict in verdicts
    )


def _is_within(domain: str, passing: str) -> bool:
    passing = passing.lower()
    return "." in passing and (domain == passing or domain.endswith(f".{passing}"))


def network_of(client: str) -> str:
    """Return the network of an address, IPv4 /24 or IPv6 /64; '' for what is none."""
    try:
        address = ip_address(client)
    except ValueError:
        return ""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return str(ip_network((address, V6_BITS), strict=False))
        address = address.ipv4_mapped
    return str(ip_network((address, V4_BITS), strict=False))
