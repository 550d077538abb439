"""The PROXY protocol, versions 1 and 2: who a load balancer speaks for.

Pure. Owns the reading of the header that stands before a connection's own octets.
It never asks for an octet behind the header, so that whatever follows, TLS
included, stays in the socket. The source is haproxy's proxy-protocol.txt.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LINE_OCTETS = 107  # 2.1: the longest line of version 1, with CRLF
HEADER_OCTETS = 2048  # of version 2 with its TLVs; the addresses take 216 at most
_FIXED_OCTETS = 16
_SHORTEST_OCTETS = len(b"PROXY UNKNOWN\r\n")
_FAMILIES = {"TCP4": 4, "TCP6": 6}
_INET, _INET6, _UNIX = 1, 2, 3
_ADDRESS_OCTETS = {_INET: 12, _INET6: 36, _UNIX: 216}


class ProxySyntax(ValueError):
    """The octets are no PROXY header; the text says why."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The client behind a proxy: its IP address, '' on a Unix socket, and its port."""

    address: str
    port: int = 0


@dataclass(frozen=True, slots=True)
class Header:
    """A header that was read whole; origin None: the connection is the proxy's own (LOCAL, UNKNOWN)."""

    origin: Origin | None


class HeaderReader:
    """Reads one header. Feed at most `wanted` octets at a time until a Header comes back."""

    __slots__ = ("_octets",)

    def __init__(self) -> None:
        self._octets = b""

    @property
    def wanted(self) -> int:
        """How many octets may be read without reading past the header; at least 1."""
        have = self._octets
        if len(have) < _SHORTEST_OCTETS:
            return _SHORTEST_OCTETS - len(have)
        if not have.startswith(SIGNATURE):
            return 1 if have.endswith(b"\r") else 2
        return _length(have) - len(have) if len(have) >= _FIXED_OCTETS else _FIXED_OCTETS - len(have)

    def feed(self, octets: bytes) -> Header | None:
        """Take octets; return the header once it is whole. Raises ProxySyntax."""
        self._octets += octets
        have = self._octets
        if SIGNATURE.startswith(have[: len(SIGNATURE)]):
            whole = len(have) >= _FIXED_OCTETS and len(have) >= _length(have)
            return _read_binary(have) if whole else None
        if not have.startswith(b"PROXY "[: len(have)]):
            raise ProxySyntax("no PROXY header")
        if have.endswith(b"\r\n"):
            return _read_line(have[:-2])
        if len(have) >= LINE_OCTETS or b"\n" in have:
            raise ProxySyntax("the PROXY line does not end in CRLF")
        return None


def _length(octets: bytes) -> int:
    """Return the octets of a whole version 2 header from its fixed part. Raises ProxySyntax."""
    if octets[12] >> 4 != 2:
        raise ProxySyntax("the version is not 2")
    length = _FIXED_OCTETS + int.from_bytes(octets[14:16], "big")
    if length > HEADER_OCTETS:
        raise ProxySyntax(f"the header is longer than {HEADER_OCTETS} octets")
    return length


def _read_binary(octets: bytes) -> Header:
    command, family, transport = octets[12] & 15, octets[13] >> 4, octets[13] & 15
    if command > 1:
        raise ProxySyntax("the command is neither LOCAL nor PROXY")
    if command == 0 or family == 0 or transport == 0:
        return Header(None)
    if family not in _ADDRESS_OCTETS or transport != 1:
        raise ProxySyntax("the family or the transport is not one of a stream")
    addresses = octets[_FIXED_OCTETS:]
    if len(addresses) < _ADDRESS_OCTETS[family]:
        raise ProxySyntax("the addresses are cut short")
    # What stands behind the addresses are TLVs, of which none is needed.
    if family == _UNIX:
        return Header(Origin(""))
    size = 4 if family == _INET else 16
    address = ipaddress.ip_address(addresses[:size])
    return Header(Origin(_plain(address), int.from_bytes(addresses[2 * size : 2 * size + 2], "big")))


def _read_line(line: bytes) -> Header:
    try:
        words = line.decode("ascii").split(" ")
    except UnicodeDecodeError:
        raise ProxySyntax("the PROXY line is not ASCII") from None
    if words[:2] == ["PROXY", "UNKNOWN"]:
        return Header(None)
    if len(words) != 6 or words[1] not in _FAMILIES:
        raise ProxySyntax("the PROXY line is not of the form PROXY TCP4 SOURCE DESTINATION PORT PORT")
    source, _ = (_address(word, _FAMILIES[words[1]]) for word in words[2:4])
    port, _ = (_port(word) for word in words[4:])
    return Header(Origin(source, port))


def _address(word: str, version: int) -> str:
    try:
        address = ipaddress.ip_address(word)
    except ValueError:
        raise ProxySyntax("an address cannot be read") from None
    if address.version != version or "%" in word:
        raise ProxySyntax("an address is of another family")
    return _plain(address)


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _port(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) <= 5 and int(word) <= 65535):
        raise ProxySyntax("a port cannot be read")
    return int(word)
