"""XCLIENT: a test client says which client it stands for (Postfix's protocol of that name).

Pure. Owns the attributes and what they make of a peer; who may say so is not decided
here. Attributes as in Postfix's XCLIENT_README; values are xtext (RFC 3461 4).
LOGIN is not among them: nobody becomes a user without a password.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import ip_address

from server.refusal import Refusal
from storage.records import Peer

KEYWORD = "XCLIENT NAME ADDR PORT PROTO HELO"
UNKNOWN = frozenset({"[UNAVAILABLE]", "[TEMPUNAVAIL]"})
VALUE_CHARACTERS = 255

_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-Fa-f]{2})++")
_ESCAPED = re.compile(r"\+([0-9A-Fa-f]{2})")
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*+)")
_HELO = re.compile(r"[!-~]++")


def apply(peer: Peer, argument: bytes) -> Peer:
    """Return the peer with what the argument of XCLIENT says in place; raises Refusal 501.

    The session begins anew: EHLO is forgotten unless HELO says it.
    """
    changed = replace(peer, helo="", extended=False, identity=None)
    attributes = _attributes(argument)
    if "ADDR" in attributes:
        # Another address has a name and a port of its own.
        changed = replace(changed, reverse_name=None, port=0)
    for name in sorted(attributes):
        changed = _TAKERS[name](changed, attributes[name])
    return changed


def _attributes(argument: bytes) -> Mapping[str, str]:
    attributes: dict[str, str] = {}
    for word in argument.decode("ascii", "replace").split():
        name, equals, value = word.partition("=")
        name = name.upper()
        if not equals or name not in _TAKERS or name in attributes:
            raise _syntax("Syntax: XCLIENT attribute=value, of the attributes announced, each once")
        if _XTEXT.fullmatch(value) is None:
            raise _syntax(f"{name} is not in xtext")
        text = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), value)
        if len(text) > VALUE_CHARACTERS:
            raise _syntax(f"{name} is too long")
        attributes[name] = "" if text.upper() in UNKNOWN else text
    if not attributes:
        raise _syntax("Syntax: XCLIENT attribute=value")
    return attributes


def _name(peer: Peer, value: str) -> Peer:
    if value and _NAME.fullmatch(value) is None:
        raise _syntax("NAME is no host name")
    return replace(peer, reverse_name=value or None)


def _addr(peer: Peer, value: str) -> Peer:
    try:
        address = str(ip_address(value[5:] if value[:5].upper() == "IPV6:" else value)) if value else ""
    except ValueError:
        raise _syntax("ADDR is no address such as 192.0.2.1 or IPV6:2001:db8::1") from None
    return replace(peer, address=address)


def _port(peer: Peer, value: str) -> Peer:
    if value and not (value.isascii() and value.isdigit() and len(value) <= 5 and int(value) <= 65535):
        raise _syntax("PORT is no port")
    return replace(peer, port=int(value or 0))


def _proto(peer: Peer, value: str) -> Peer:
    if value.upper() not in {"SMTP", "ESMTP"}:
        raise _syntax("PROTO is SMTP or ESMTP")
    return replace(peer, extended=value.upper() == "ESMTP")


def _helo(peer: Peer, value: str) -> Peer:
    if value and _HELO.fullmatch(value) is None:
        raise _syntax("HELO is no host name")
    return replace(peer, helo=value)


def _syntax(text: str) -> Refusal:
    return Refusal(501, "5.5.4", text)


_TAKERS: Mapping[str, Callable[[Peer, str], Peer]] = {
    "NAME": _name,
    "ADDR": _addr,
    "PORT": _port,
    "PROTO": _proto,
    "HELO": _helo,
}
