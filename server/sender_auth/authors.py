"""The author domains of a message: what its From says, as DMARC reads it.

Owns the reading of every From field into domains and the reasons why a message
has none that counts. Judges nothing and asks nothing. RFC 5322 3.6.2, 6854
(groups), 9989 5.3.1 and 11.5.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from server.mail.address import parse_address_list
from server.mail.header import HeaderField
from server.sender_auth.names import domain_name

MAX_AUTHORS = 5  # distinct domains of one message that are evaluated
MAX_FROM_FIELDS = 5  # that are read; more than one is a fault in any case
KNOWN_OCTETS = 256  # of a field that is remembered
MAX_ADDRESSES = 100  # of one field that are looked at


@dataclass(frozen=True, slots=True)
class Authors:
    """The distinct domains in order, and why they can't be all that matters; '' where they are."""

    domains: tuple[str, ...]
    fault: str = ""


def read_authors(fields: Sequence[HeaderField]) -> Authors:
    """Return the author domains of a header's fields, MAX_AUTHORS at most."""
    found = [field.value for field in fields if field.name.lower() == b"from"]
    domains: dict[str, None] = {}
    is_unreadable = is_beyond_limit = False
    for value in found[:MAX_FROM_FIELDS]:
        named = _known_domains(value) if len(value) <= KNOWN_OCTETS else _read_domains(value)
        is_beyond_limit |= len(named) > MAX_ADDRESSES
        for domain in named[:MAX_ADDRESSES]:
            if domain is None:
                is_unreadable = True
            else:
                domains[domain] = None
    if len(found) != 1:
        fault = "not one From field"
    elif is_unreadable or not domains:
        fault = "From without a valid domain"
    else:
        fault = "too many author domains" if is_beyond_limit or len(domains) > MAX_AUTHORS else ""
    return Authors(tuple(domains)[:MAX_AUTHORS], fault)


def _read_domains(value: bytes) -> tuple[str | None, ...]:
    """Return the domain of each mailbox of a field, None for one that has none; one beyond the limit."""
    addresses = [address for address in parse_address_list(value) if address.is_mailbox]
    return tuple(
        domain_name((address.domain or b"").decode("utf-8", "replace")) if address.local else None
        for address in addresses[: MAX_ADDRESSES + 1]
    )


_known_domains = functools.lru_cache(maxsize=1024)(_read_domains)  # few senders write often
