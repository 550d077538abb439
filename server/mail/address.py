"""SMTP mailboxes: the one grammar for addresses in envelopes, routes and accounts.

Owns parsing, formatting and the normal form of `local@domain`, ASCII and
internationalised, with address literals. Refuses control characters in any
form, source routes, and anything longer than SMTP allows. Header address
lists, which must be read however broken they are, live in `address_list`.

RFC 5321 4.1.2, 4.1.3 and 4.5.3.1, RFC 6531 3.3, RFC 5890 to 5892 (by `idna`).
"""

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from unicodedata import normalize

import idna

from server.mail.address_list import HeaderAddress, parse_address_list

__all__ = [
    "AddressSyntax",
    "HeaderAddress",
    "Mailbox",
    "domain_of",
    "literal_address",
    "normalise",
    "normalise_domain",
    "parse_address_list",
    "parse_domain",
    "parse_mailbox",
]

MAX_LOCAL_OCTETS = 64  # RFC 5321 4.5.3.1.1
MAX_DOMAIN_OCTETS = 255  # RFC 5321 4.5.3.1.2
MAX_MAILBOX_OCTETS = 254  # RFC 5321 4.5.3.1.3: 256 for the path with its angle brackets
MAX_LABEL_OCTETS = 63  # RFC 1035 2.3.4

# Each repetition begins with a character the one before it cannot take, so no match backtracks.
_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_LABEL = r"[A-Za-z0-9]+(?:-+[A-Za-z0-9]+)*"
# C0 and C1 controls, line and paragraph separators, bidirectional controls, surrogates.
_CONTROLS = "\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_WIDE_ATEXT = rf"[^\s\"(),.:;<>@\[\]\\ {_CONTROLS}]"

_PLAIN = re.compile(rf"({_ATEXT}+(?:\.{_ATEXT}+)*)@({_LABEL}(?:\.{_LABEL})*)")
_DOT_STRING = re.compile(rf"{_ATEXT}+(?:\.{_ATEXT}+)*")
_WIDE_DOT_STRING = re.compile(rf"{_WIDE_ATEXT}+(?:\.{_WIDE_ATEXT}+)*")
_QUOTED = re.compile(rf'"(?:[^"\\{_CONTROLS}]|\\[ -~])*"')
_PAIR = re.compile(r"\\(.)")
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_GENERAL_LITERAL = re.compile(r"[A-Za-z0-9-]*[A-Za-z0-9]:[!-Z^-~]+")
_IPV6_TEXT = re.compile(r"[0-9A-Fa-f:.]+")


class AddressSyntax(ValueError):
    """An address that the grammar refuses; the text may be shown to the peer."""


@dataclass(frozen=True, slots=True)
class Mailbox:
    """A mailbox in its meaning: local part without quoting, domain as it was written.

    domain: A-labels, U-labels, or an address literal with its brackets.
    `str()` gives the shortest form that parses back to the same mailbox.
    """

    local: str
    domain: str

    def __str__(self) -> str:
        return f"{_format_local(self.local)}@{self.domain}"

    @property
    def normal(self) -> str:
        """The key under which the mailbox is known: lower-case local part, lower-case A-labels."""
        if self.local.isascii() and self.domain.isascii() and self.domain[0] != "[":
            return str(self).lower()
        return f"{_format_local(_fold(self.local))}@{normalise_domain(self.domain)}"

    @property
    def is_ascii(self) -> bool:
        """Whether a server without SMTPUTF8 can be told this mailbox once its domain is in A-labels."""
        return self.local.isascii()


def parse_mailbox(text: str, *, smtputf8: bool) -> Mailbox:
    """Read `local@domain` (RFC 5321 4.1.2 Mailbox); raises AddressSyntax.

    smtputf8: whether characters outside ASCII are allowed (RFC 6531 3.3).
    """
    if len(text) > MAX_MAILBOX_OCTETS:
        raise AddressSyntax("address too long")
    plain = _PLAIN.fullmatch(text)
    if plain is None:
        return _parse_uncommon(text, wide=smtputf8)
    local, domain = plain.groups()
    if len(local) > MAX_LOCAL_OCTETS:
        raise AddressSyntax("local part too long")
    if len(domain) > MAX_LABEL_OCTETS:
        _check_labels(domain)
    return Mailbox(local, domain)


def parse_domain(text: str, *, smtputf8: bool) -> str:
    """Check a domain name or address literal and give it back as written; raises AddressSyntax."""
    if not text.isascii():
        if not smtputf8:
            raise AddressSyntax("domain is not ASCII")
        _to_ascii(text)
    elif text[:1] == "[":
        _check_literal(text)
    elif _DOMAIN.fullmatch(text[: MAX_DOMAIN_OCTETS + 1]) is None:
        raise AddressSyntax("domain is not valid")
    _check_labels(text)
    return text


def normalise(address: str) -> str:
    """The normal form of a mailbox given as text: equal for equal mailboxes; raises AddressSyntax."""
    return parse_mailbox(address, smtputf8=True).normal


def normalise_domain(domain: str) -> str:
    """Lower-case A-labels of a domain, or the canonical address literal; raises AddressSyntax."""
    if domain[:1] == "[":
        address = literal_address(domain)
        if address is None:
            return domain.lower()
        return f"[ipv6:{address}]" if ":" in address else f"[{address}]"
    return domain.lower() if domain.isascii() else _to_ascii(domain)


def domain_of(address: str) -> str:
    """The domain of a mailbox in lower-case A-labels; raises AddressSyntax."""
    return normalise_domain(parse_mailbox(address, smtputf8=True).domain)


def literal_address(domain: str) -> str | None:
    """The IP address inside an address literal, compressed; None for names and other literals."""
    inside = domain[1:-1]
    if domain[:1] != "[" or domain[-1:] != "]":
        return None
    try:
        if inside[:5].lower() == "ipv6:" and _IPV6_TEXT.fullmatch(inside[5:]):
            return str(IPv6Address(inside[5:]))
        return str(IPv4Address(inside))
    except AddressValueError:
        return None


def _parse_uncommon(text: str, *, wide: bool) -> Mailbox:
    """Quoted local parts, address literals, characters outside ASCII."""
    if not wide and not text.isascii():
        raise AddressSyntax("address is not ASCII")
    written, at, domain = text.rpartition("@")
    if not at:
        raise AddressSyntax("address has no domain")
    if domain[-1:] == "]" and written.count("[") and not _is_local(written):
        # A general address literal may hold '@' itself (RFC 5321 4.1.3 dcontent).
        written, _, rest = text.partition("@[")
        domain = f"[{rest}"
    mailbox = Mailbox(_read_local(written), parse_domain(domain, smtputf8=wide))
    if not text.isascii():
        _check_octets(text)
        _check_octets(mailbox.normal)
    return mailbox


def _is_local(written: str) -> bool:
    return _WIDE_DOT_STRING.fullmatch(written) is not None or _QUOTED.fullmatch(written) is not None


def _read_local(written: str) -> str:
    if not _is_local(written):
        raise AddressSyntax("local part is not valid")
    if len(written) > MAX_LOCAL_OCTETS or len(written.encode()) > MAX_LOCAL_OCTETS:
        raise AddressSyntax("local part too long")
    return _PAIR.sub(r"\1", written[1:-1]) if written[0] == '"' else written


def _format_local(local: str) -> str:
    if _DOT_STRING.fullmatch(local) or _WIDE_DOT_STRING.fullmatch(local):
        return local
    escaped = local.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _fold(text: str) -> str:
    """Lower case in Normalization Form C, the same however often it is applied."""
    return normalize("NFC", normalize("NFC", text).lower())


def _to_ascii(domain: str) -> str:
    """U-labels to lower-case A-labels, label by label (RFC 5891 4, no UTS 46 mapping beyond case)."""
    if len(domain) > MAX_DOMAIN_OCTETS:
        raise AddressSyntax("domain too long")
    try:
        # Our own split: `idna` would also take ideographic full stops for dots.
        ascii_form = ".".join(_label_to_ascii(label) for label in _fold(domain).split("."))
    except (idna.IDNAError, UnicodeError, ValueError) as error:
        raise AddressSyntax("domain is not valid") from error
    if _DOMAIN.fullmatch(ascii_form) is None:
        raise AddressSyntax("domain is not valid")
    _check_labels(ascii_form)
    return ascii_form


def _label_to_ascii(label: str) -> str:
    return label if label.isascii() else idna.alabel(label).decode("ascii")


def _check_labels(domain: str) -> None:
    if len(domain) > MAX_DOMAIN_OCTETS:
        raise AddressSyntax("domain too long")
    if domain[:1] != "[" and any(len(label) > MAX_LABEL_OCTETS for label in domain.split(".")):
        raise AddressSyntax("domain label too long")


def _check_literal(domain: str) -> None:
    # RFC 5321 4.1.3; leading zeros of IPv4 numbers are refused, since some read them as octal.
    inside = domain[1:-1]
    if domain[-1:] != "]" or len(domain) > MAX_DOMAIN_OCTETS:
        raise AddressSyntax("address literal is not valid")
    if literal_address(domain) is not None:
        return
    if inside[:5].lower() == "ipv6:" or _GENERAL_LITERAL.fullmatch(inside) is None:
        raise AddressSyntax("address literal is not valid")


def _check_octets(address: str) -> None:
    local, _, domain = address.rpartition("@")
    octets = len(local.encode())
    if octets > MAX_LOCAL_OCTETS:
        raise AddressSyntax("local part too long")
    if octets + 1 + len(domain.encode()) > MAX_MAILBOX_OCTETS:
        raise AddressSyntax("address too long")
