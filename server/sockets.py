"""Listening sockets from listening addresses: bound, or inherited from systemd.

Owns the bind and its clear errors, and how peers' addresses are read and counted
whatever socket they came by. The listeners hand the sockets to the loop.
RFC 4291 2.5.5.2 (IPv4 in IPv6).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import shutil
import socket
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from server.listen import Listen, ListenKind, parse_listen

BACKLOG = 1024


class BindFailed(Exception):
    """A listening address cannot be used; the text says which and why."""


def open_listeners(
    addresses: Iterable[str], inherited: dict[str, list[socket.socket]]
) -> list[tuple[Listen, socket.socket]]:
    """Return a listening socket for each address; systemd names take the inherited ones.

    Raises BindFailed; sockets opened before it are closed.
    """
    opened: list[tuple[Listen, socket.socket]] = []
    try:
        for address in addresses:
            listen = parse_listen(address)
            opened.extend((listen, made) for made in _open(listen, inherited))
    except BindFailed:
        for _, made in opened:
            made.close()
        raise
    return opened


def _open(listen: Listen, inherited: dict[str, list[socket.socket]]) -> list[socket.socket]:
    if listen.kind is ListenKind.SYSTEMD:
        if listen.name not in inherited:
            raise BindFailed(f"{listen}: systemd passed no socket of that name")
        return inherited[listen.name]
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    unix = listen.kind is ListenKind.UNIX
    made = socket.socket(socket.AF_UNIX if unix else family, socket.SOCK_STREAM)
    try:
        if unix:
            _bind_file(made, listen)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind((listen.host, listen.port))
        made.listen(BACKLOG)
    except (OSError, LookupError) as error:  # LookupError: no such user or group
        made.close()
        number = error.errno if isinstance(error, OSError) else None
        raise BindFailed(f"{listen}: {os.strerror(number) if number else error}") from None
    made.setblocking(False)
    return [made]


def _bind_file(made: socket.socket, listen: Listen) -> None:
    """Bind to a path in place of the socket that an earlier process left there."""
    path = Path(listen.name)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "")
        path.unlink()
    # Nobody connects before `listen`, so what the umask left open for this moment opens nothing.
    made.bind(listen.name)
    if listen.owner:
        shutil.chown(path, user=listen.owner)
    if listen.group:
        shutil.chown(path, group=listen.group)
    if listen.mode is not None:
        path.chmod(listen.mode)


def plain_address(address: str) -> str:
    """Return a peer's address without scope; IPv4 as such, though a socket for both families brought it."""
    address = address.partition("%")[0]
    return address[7:] if address.startswith("::ffff:") and "." in address else address


class Networks:
    """Addresses and networks of clients that are treated apart; raises ValueError for what is neither."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(text, strict=False) for text in networks]

    def covers(self, address: str) -> bool:
        """Whether an IP address is among them; '' (a Unix socket) never is."""
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)


class Assigned:
    """What is assigned to networks of clients, the narrowest first; raises ValueError for no network."""

    def __init__(self, assigned: Mapping[str, str]) -> None:
        read = [(ipaddress.ip_network(text, strict=False), value) for text, value in assigned.items()]
        self._assigned = sorted(read, key=lambda one: one[0].prefixlen, reverse=True)

    def find(self, address: str) -> str:
        """Return what is assigned to an IP address, '' for nothing."""
        try:
            parsed = ipaddress.ip_address(plain_address(address))
        except ValueError:
            return ""
        return next((value for network, value in self._assigned if parsed in network), "")


def network_of(address: str) -> str:
    """Return what a peer is counted by: an IPv4 address, an IPv6 /64, '' for a Unix socket."""
    address = plain_address(address)
    if ":" not in address:
        return address
    return str(ipaddress.ip_network((address, 64), strict=False))
