"""IP addresses: whether one belongs to the public Internet.

Owns that question, for whatever connects to addresses that strangers' names lead to.
Resolves nothing. RFC 6890, RFC 4291 2.5.5.2 (mapped), RFC 6052 2.1 (NAT64), RFC 3056 2 (6to4).
"""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

_NAT64 = IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public Internet, also where it holds an IPv4 address.

    ValueError for what is no address.
    """
    parsed = ip_address(address.partition("%")[0])
    inner = _inner(parsed) if isinstance(parsed, IPv6Address) else None
    if inner is not None and not _is_public(inner):
        return False
    return (inner is not None and parsed in _MAPPED) or _is_public(parsed)


_MAPPED = IPv6Network("::ffff:0:0/96")


def _inner(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to."""
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    return address.is_global and not address.is_multicast
