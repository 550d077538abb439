"""Listening addresses as the configuration writes them: `tcp:0.0.0.0:25`, `systemd:smtp`.

Owns the one grammar of listeners and the dataclass that carries a parsed one.
Opens no socket: what listens makes sockets of these.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from enum import Enum

# sun_path holds 108 octets with its NUL on Linux.
UNIX_PATH_OCTETS = 107
PROXY_OPTION = ",proxy"


class ListenKind(str, Enum):
    """What a listener is made of; TLS is TCP with TLS from the first octet."""

    TCP = "tcp"
    TLS = "tls"
    SYSTEMD = "systemd"
    UNIX = "unix"


class ListenSyntax(ValueError):
    """A listening address that cannot be read; the text says which part and what is allowed there."""


@dataclass(frozen=True, slots=True)
class Listen:
    """One listener.

    host and port: of tcp and tls, port 0 lets the kernel choose. name: the socket's
    FileDescriptorName for systemd, the absolute path for unix. proxy: each connection
    begins with a PROXY header.
    """

    kind: ListenKind
    host: str = ""
    port: int = 0
    name: str = ""
    proxy: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        place = self.name or f"{host}:{self.port}"
        return f"{self.kind.value}:{place}{PROXY_OPTION if self.proxy else ''}"


def parse_listen(text: str) -> Listen:
    """Return the listener that `tcp:HOST:PORT`, `tls:HOST:PORT`, `systemd:NAME` or `unix:PATH` names.

    `,proxy` may follow. Raises ListenSyntax.
    """
    place = text.removesuffix(PROXY_OPTION)
    return replace(_parse_place(place), proxy=place != text)


def _parse_place(text: str) -> Listen:
    word, colon, rest = text.partition(":")
    if not colon or word not in {kind.value for kind in ListenKind}:
        raise ListenSyntax(f"{text!r} must begin with tcp:, tls:, systemd: or unix:")
    kind = ListenKind(word)
    if kind is ListenKind.UNIX:
        return Listen(kind, name=_unix_path(rest))
    if "," in rest:
        raise ListenSyntax(f"{rest.partition(',')[2]!r}: the one option of a listener is proxy")
    if kind is ListenKind.SYSTEMD:
        return Listen(kind, name=_systemd_name(rest))
    host, port = _host_and_port(rest)
    return Listen(kind, host=host, port=port)


def _unix_path(path: str) -> str:
    if not path.startswith("/"):
        raise ListenSyntax(f"the path {path!r} must be absolute")
    if len(path.encode()) > UNIX_PATH_OCTETS:
        raise ListenSyntax(f"the path is longer than {UNIX_PATH_OCTETS} octets")
    return path


def _systemd_name(name: str) -> str:
    # sd_listen_fds_with_names: ASCII without control characters and ':', 255 at most.
    if not name or len(name) > 255 or not name.isascii() or not name.isprintable() or ":" in name:
        raise ListenSyntax(f"{name!r} is no FileDescriptorName= of a systemd socket")
    return name


def _host_and_port(place: str) -> tuple[str, int]:
    host, colon, digits = place.rpartition(":")
    if not colon:
        raise ListenSyntax(f"{place!r} lacks a port: write HOST:PORT")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and int(digits) <= 65535):
        raise ListenSyntax(f"{digits!r} is no port from 0 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ListenSyntax(f"the IPv6 address {host!r} must stand in brackets: [{host}]")
    try:
        return str(ipaddress.ip_address(host)), int(digits)
    except ValueError:
        if host == "localhost":
            return "127.0.0.1", int(digits)
        raise ListenSyntax(f"{host!r} is no IP address") from None
