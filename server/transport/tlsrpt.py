"""TLS-RPT records: where a domain wants to be told how TLS with it goes.

Owns the grammar of `_smtp._tls` records and of the places in them, and our own record. Asks
no DNS. Pure. RFC 8460 3, RFC 6068 (mailto).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from urllib.parse import quote, unquote

from server.mail.address import AddressSyntax, normalise_domain, parse_mailbox

MAX_TARGETS = 5
MAX_URI_OCTETS = 1000
_WSP = " \t"


def read_record(texts: Iterable[Sequence[bytes]]) -> tuple[str, ...] | None:
    """Return the places of the one record among TXT records, None without one (RFC 8460 3).

    More than one that begins with v=TLSRPTv1 is none. A place is 'mailto:' and an address in normal form,
    or an https URL; others are passed over, and so is what is beyond MAX_TARGETS.
    """
    joined = [b"".join(strings) for strings in texts]
    records = [one for one in joined if one.startswith(b"v=TLSRPTv1") and one[10:11] in (b";", b" ", b"\t")]
    if len(records) != 1:
        return None
    text = records[0].decode("utf-8", "replace")
    for field in text.split(";")[1:]:
        name, equals, value = field.strip(_WSP).partition("=")
        if equals and name.strip(_WSP) == "rua":
            return _places(value)
    return None


def _places(value: str) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for uri in value.split(","):
        place = _place(uri.strip(_WSP))
        if place:
            found[place] = None
    return tuple(found)[:MAX_TARGETS]


def _place(uri: str) -> str:
    if len(uri) > MAX_URI_OCTETS:
        return ""
    scheme, _, rest = uri.partition(":")
    if scheme.lower() == "https":
        return f"https:{rest}" if rest.startswith("//") and rest.isascii() and rest.isprintable() else ""
    return _mailto(rest) if scheme.lower() == "mailto" else ""


def _mailto(text: str) -> str:
    try:
        mailbox = parse_mailbox(unquote(text.partition("?")[0], errors="strict"), smtputf8=True)
        domain = normalise_domain(mailbox.domain)
    except (AddressSyntax, ValueError):
        return ""
    if domain.startswith("[") or "." not in domain:
        return ""
    return f"mailto:{str(mailbox).rpartition('@')[0]}@{domain}"


def record_of(address: str) -> str:
    """Return the record that asks for reports by mail to an address."""
    return f"v=TLSRPTv1; rua=mailto:{quote(address, safe='@')}"
