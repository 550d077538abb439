"""What settings are made of: the kinds of value, how each is checked by itself, and the base of all sections.

Refuses a value by raising ValueError with what is allowed.
"""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from server.dns_list import parse as parse_dns_list
from server.listen import parse_listen
from server.mail.address import parse_mailbox
from server.next_hop import FORMS, parse_next_hop

MEBI = 1 << 20
HOUR = 3600
DAY = 24 * HOUR


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("the path must be absolute")
    return path


def directory(text: str) -> str:
    """Return an absolute path, or nothing."""
    if text:
        _absolute(Path(text))
    return text


def _reference(text: str) -> str:
    if text and not re.fullmatch(r"/[^\x00-\x1f]*|credential:[A-Za-z0-9_.@-]{1,255}", text):
        raise ValueError("a file is named by its absolute path or as credential:NAME")
    return text


def _listen(text: str) -> str:
    parse_listen(text)
    return text


def next_hop(text: str) -> str:
    """Return a next hop as server.next_hop reads it."""
    parse_next_hop(text)
    return text


def rate(text: str) -> str:
    """Return a rate of recipients as delivery reads it."""
    if not re.fullmatch(r"[1-9][0-9]{0,8}/(second|minute|hour|day)", text):
        raise ValueError("a rate is N/second, N/minute, N/hour or N/day")
    return text


def fixed_hop(text: str) -> str:
    """Return a next hop that names a host, or nothing."""
    if text and not parse_next_hop(text).host:
        raise ValueError("the next hop must name a host")
    return text


def zone(text: str) -> str:
    """Return the zone of a DNS list, without codes and weight."""
    found = parse_dns_list(text)
    if found.codes or found.weight != 1:
        raise ValueError("the zone alone")
    return found.zone


def ip_text(text: str) -> str:
    """Return an IP address in its usual form."""
    return str(ip_address(text))


def network(text: str) -> str:
    """Return a network, or an address as one."""
    ip_network(text)
    return text


def server_address(text: str) -> str:
    """Return the address of a DNS server: an address, or HOST:PORT."""
    parse_listen(f"tcp:{text}" if re.search(r"\]:\d+$|^[^:]+:\d+$", text) else f"tcp:[{text}]:53")
    return text


def mail_address(text: str) -> str:
    """Return the normal form of a mail address, or nothing."""
    return parse_mailbox(text, smtputf8=False).normal if text else ""


PATH = "an absolute path"
FILE = "an absolute path, or credential:NAME for a systemd credential"
LISTENERS = "a list of tcp:HOST:PORT, systemd:NAME or unix:PATH, each with ,proxy behind it or not"
UNIX_LISTENERS = LISTENERS.replace("unix:PATH,", "unix:PATH,mode=0660,owner=USER,group=GROUP,")
ANY_LISTENERS = LISTENERS.replace("tcp:HOST:PORT,", "tcp:HOST:PORT, tls:HOST:PORT,")
TLS_LISTENERS = "a list of tls:HOST:PORT, systemd:NAME or unix:PATH, each with ,proxy behind it or not"
NEXT_HOP = FORMS

Directory = Annotated[Path, Field(strict=False), AfterValidator(_absolute)]
SecretFile = Annotated[str, AfterValidator(_reference)]
Listener = Annotated[str, AfterValidator(_listen)]
Network = Annotated[str, AfterValidator(network)]
Networks = Annotated[tuple[Network, ...], Field(strict=False, max_length=256)]
Listeners = Annotated[tuple[Listener, ...], Field(strict=False, max_length=32)]


class Section(BaseModel):
    """One table of the configuration file: no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)
