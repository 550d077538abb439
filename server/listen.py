"""Listening addresses as the configuration writes them: `tcp:0.0.0.0:25`, `systemd:smtp`.

Owns the one grammar of listeners and the dataclass that carries a parsed one.
Opens no socket: what listens makes sockets of these.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from enum import Enum

# sun_path holds 108 octets with its NUL on Linux.
UNIX_PATH_OCTETS = 107
# A comma that begins no option belongs to the path.
_OPTION = re.compile(r",(?:proxy|(?:mode|owner|group)=[^,/]*)\Z")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}")


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
    begins with a PROXY header. mode, owner, group: of a Unix socket's file; None and ''
    leave what the process's umask and user make.
    """

    kind: ListenKind
    host: str = ""
    port: int = 0
    name: str = ""
    proxy: bool = False
    mode: int | None = None
    owner: str = ""
    group: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        options = ",proxy" if self.proxy else ""
        if self.mode is not None:
            options += f",mode={self.mode:04o}"
        options += f",owner={self.owner}" if self.owner else ""
        options += f",group={self.group}" if self.group else ""
        return f"{self.kind.value}:{self.name or f'{host}:{self.port}'}{options}"


def parse_listen(text: str) -> Listen:
    """Return the listener that `tcp:HOST:PORT`, `tls:HOST:PORT`, `systemd:NAME` or `unix:PATH` names.

    Options may follow: `,proxy`, and for a Unix socket `,mode=0660`, `,owner=NAME`,
    `,group=NAME`. Raises ListenSyntax.
    """
    options: dict[str, str] = {}
    place = text
    while (found := _OPTION.search(place)) is not None:
        name, _, value = found[0][1:].partition("=")
        if name in options:
            raise ListenSyntax(f"{name} is given twice")
        options[name] = value
        place = place[: found.start()]
    listen = _parse_place(place)
    if listen.kind is not ListenKind.UNIX and options.keys() - {"proxy"}:
        raise ListenSyntax("mode, owner and group are those of a Unix socket's file")
    return replace(
        listen,
        proxy="proxy" in options,
        mode=_mode(options["mode"]) if "mode" in options else None,
        owner=_name(options.get("owner")),
        group=_name(options.get("group")),
    )


def _mode(digits: str) -> int:
    if re.fullmatch("0?[0-7]{3}", digits, re.ASCII) is None:
        raise ListenSyntax(f"mode={digits} is no mode such as 0660")
    return int(digits, 8)


def _name(text: str | None) -> str:
    if text is not None and _NAME.fullmatch(text) is None:
        raise ListenSyntax(f"{text!r} is no name of a user or group")
    return text or ""


def _parse_place(text: str) -> Listen:
    word, colon, rest = text.partition(":")
    if not colon or word not in {kind.value for kind in ListenKind}:
        raise ListenSyntax(f"{text!r} must begin with tcp:, tls:, systemd: or unix:")
    kind = ListenKind(word)
    if kind is ListenKind.UNIX:
        return Listen(kind, name=_unix_path(rest))
    if "," in rest:
        raise ListenSyntax(f"{rest.partition(',')[2]!r}: the one option of this listener is proxy")
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
