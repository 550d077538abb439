"""Domain names as sender authentication compares and asks for them.

Owns the one form that SPF, DKIM and DMARC share: lower-case A-labels without a
final dot. Underscores are allowed, since names in the DNS have them; address
literals and single labels are no domains here. RFC 1035 2.3.4, 5890 2.3.
"""

from __future__ import annotations

import re

from server.mail.address import AddressSyntax, normalise_domain

MAX_NAME_OCTETS = 253
_NAME = re.compile(r"(?:[a-z0-9_-]{1,63}\.)+[a-z0-9_-]{1,63}")


def domain_name(text: str) -> str | None:
    """Return a domain in lower-case A-labels; None for what is no name of two labels or more."""
    if len(text) > MAX_NAME_OCTETS + 1:
        return None
    try:
        name = normalise_domain(text.removesuffix("."))
    except AddressSyntax:
        return None
    return name if len(name) <= MAX_NAME_OCTETS and _NAME.fullmatch(name) else None


def is_at_or_below(name: str, parent: str) -> bool:
    """Return whether a name is the parent or one of its subdomains; both as domain_name gives them."""
    return name == parent or name.endswith("." + parent)
