"""Address lists of header fields, read as they come.

Owns the tolerant reader of From, To and their like: display names, groups,
comments, source routes, quoted strings, encoded words left undecoded. It never
refuses and never raises: what can't be read is skipped, in linear time, with a
stated limit of octets and of addresses. The strict SMTP grammar is `address`.

RFC 5322 3.4 and 4.4, RFC 9051 7.5.2 (group markers).
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from server.mail.lexis import read_comment, read_quoted

MAX_LIST_OCTETS = 131_072
MAX_ADDRESSES = 4_096
MAX_TOKENS = 32_768
KNOWN_OCTETS = 256  # of a value that is remembered

# One mailbox without anything unusual, with the comma behind it: most there are.
_SINGLE = re.compile(
    rb'[ \t]{0,9}(?:"([^"\\\x00\r\n]*)"[ \t]*<|([^"(),:;<>@\[\]\\\x00\r\n]*)<)?'
    rb'([^\x00-\x20"(),:;<>@\[\]\\]+)@([^\x00-\x20"(),:;<>@\[\]\\]+)(>?)[ \t]{0,9}(?:,|\Z)'
)
_BLANK = b"\x00 \t\r\n"
_SPECIALS = frozenset((b'"', b")", b",", b":", b";", b"<", b">", b"@", b"[", b"]", b"\\"))
_TOKEN = re.compile(rb'[ \t\r\n\x00]+|[^\x00\t\r\n "(),:;<>@\[\]\\]+|.', re.DOTALL)
_CLOSED_LITERAL = re.compile(rb"([^\[\]\\ \t\r\n]*)\]")
_OPEN_LITERAL = re.compile(rb"([^\[\]\\\r\n,<>]*)")


@dataclass(frozen=True, slots=True)
class HeaderAddress:
    """One address of a header field, undecoded, or one end of a group (RFC 9051 7.5.2).

    Group start: domain None, local the group's name. Group end: all None. An address
    without a domain, or without a local part, has b'' there. route: '@a,@b' or None.
    """

    display: bytes | None
    route: bytes | None
    local: bytes | None
    domain: bytes | None

    @property
    def is_mailbox(self) -> bool:
        """Whether this is an address and not the mark of a group."""
        return self.domain is not None

    @property
    def address(self) -> bytes:
        """`local@domain` as written, or b'' for marks of groups."""
        return (self.local or b"") + b"@" + self.domain if self.domain is not None else b""


GROUP_END = HeaderAddress(None, None, None, None)


def parse_address_list(value: bytes) -> list[HeaderAddress]:
    """The addresses of an unfolded field value, in order, with group marks; never raises."""
    value = value[:MAX_LIST_OCTETS].strip(_BLANK)
    return _Reader(value).read()


def read_addresses(value: bytes) -> tuple[HeaderAddress, ...]:
    """The same, not read again where it was lately: few write often, and to few."""
    return _lately_read(value) if len(value) <= KNOWN_OCTETS else tuple(parse_address_list(value))


@lru_cache(maxsize=1024)
def _lately_read(value: bytes) -> tuple[HeaderAddress, ...]:
    return tuple(parse_address_list(value))


def _plain_address(match: re.Match[bytes]) -> HeaderAddress | None:
    """What `_SINGLE` matched, unless only one of its angle brackets is there."""
    quoted, phrase, local, domain, closed = match.groups()
    display = quoted if quoted is not None else phrase
    if (display is None) == bool(closed):
        return None
    return HeaderAddress(b" ".join(display.split()) or None if display else None, None, local, domain)


class _Reader:
    """One pass over a value: every token is looked at once or twice."""

    __slots__ = ("comment", "found", "in_group", "pending", "position", "tokens", "value", "words")

    def __init__(self, value: bytes) -> None:
        self.value = value
        self.position = 0
        self.tokens = MAX_TOKENS
        self.found: list[HeaderAddress] = []
        self.words: list[bytes] = []
        self.comment = b""
        self.pending: HeaderAddress | None = None
        self.in_group = False

    def read(self) -> list[HeaderAddress]:
        self._read_plain()
        while len(self.found) < MAX_ADDRESSES - 2:
            token = self._take()
            if not token:
                break
            self._step(token)
        self._flush()
        if self.in_group:
            self.found.append(GROUP_END)
        return self.found

    def _read_plain(self) -> None:
        """The addresses that hold nothing unusual, each up to its comma, as far as there are such."""
        while len(self.found) < MAX_ADDRESSES - 2:
            match = _SINGLE.match(self.value, self.position)
            address = _plain_address(match) if match else None
            if match is None or address is None:
                return
            self.position = match.end()
            self.found.append(address)

    def _step(self, token: bytes) -> None:
        match token:
            case b",":
                self._flush()
                self._read_plain()
            case b"<":
                self._read_angle()
            case b"@":
                self._read_bare()
            case b":":
                self._open_group()
            case b";":
                self._flush()
                self._close_group()
            case b'"' | b"(" | b"[":
                self._read_enclosed(token)
            case b">" | b"]" | b")" | b"\\":
                pass
            case _:
                self._add_word(token)

    def _add_word(self, token: bytes) -> None:
        if token.strip(_BLANK):
            self.words.append(token)

    def _take(self) -> bytes:
        found = _TOKEN.match(self.value, self.position) if self.tokens else None
        if found is None:
            return b""
        self.tokens -= 1
        self.position = found.end()
        return found.group()

    def _read_enclosed(self, opening: bytes) -> None:
        if opening == b"(":
            self._read_comment()
        elif opening == b'"':
            self.words.append(self._read_quoted())
        else:
            self.words.append(self._read_literal())

    def _read_quoted(self) -> bytes:
        text, self.position = read_quoted(self.value, self.position)
        return text

    def _read_literal(self) -> bytes:
        closed = _CLOSED_LITERAL.match(self.value, self.position)
        found = closed or _OPEN_LITERAL.match(self.value, self.position)
        text = found.group(1) if found else b""
        self.position = found.end() if found else self.position
        return b"[%b]" % text

    def _read_comment(self) -> None:
        """Past a comment; the first one with text may name the address."""
        text, self.position = read_comment(self.value, self.position)
        self.comment = self.comment or text

    def _flush(self) -> None:
        """The end of one address: what is known of it goes to the list."""
        if self.pending is not None:
            self._settle()
        elif self.words:
            # A word alone is a local part whose domain is missing.
            self.found.append(HeaderAddress(self.comment or None, None, _join(self.words), b""))
        self.words = []
        self.comment = b""

    def _settle(self) -> None:
        """The pending address goes to the list, named by a comment where it has no other name."""
        pending, self.pending = self.pending, None
        if pending is not None:
            display = pending.display or self.comment or None
            self.found.append(HeaderAddress(display, pending.route, pending.local, pending.domain))
            self.comment = b""

    def _open_group(self) -> None:
        self._settle()
        self._close_group()
        if self.words:
            self.found.append(HeaderAddress(None, None, _join(self.words), None))
            self.in_group = True
        self.words = []
        self.comment = b""

    def _close_group(self) -> None:
        if self.in_group:
            self.found.append(GROUP_END)
        self.in_group = False

    def _read_bare(self) -> None:
        """An address without angle brackets: the words before '@' end in its local part."""
        self._settle()
        words, self.words = self.words, []
        local = words.pop() if words else b""
        while words and (local.startswith(b".") or words[-1].endswith(b".")):
            local = words.pop() + local
        self.pending = HeaderAddress(_join(words) or None, None, local, self._read_domain())

    def _read_angle(self) -> None:
        """What stands between angle brackets: a route perhaps, local part, '@', domain."""
        self._settle()
        display, self.words = _join(self.words) or None, []
        route = self._read_route() if self._next() == b"@" else None
        local = self._read_local()
        domain = b""
        if self._next() == b"@":
            self.position += 1
            domain = self._read_domain()
        self._leave_angle()
        self.pending = HeaderAddress(display, route, local, domain)

    def _next(self) -> bytes:
        """The next octet after white space, left where it is."""
        found = _TOKEN.match(self.value, self.position)
        while found is not None and not found.group().strip(_BLANK):
            self.position = found.end()
            found = _TOKEN.match(self.value, self.position)
        return self.value[self.position : self.position + 1]

    def _read_route(self) -> bytes | None:
        """A source route (RFC 5322 4.4 obs-route) without its colon; None if it is none after all."""
        start, hops = self.position, []
        while self._next() in (b"@", b",") and self.tokens:
            if self._take() == b"@":
                hops.append(b"@" + self._read_domain())
        if self._next() == b":":
            self.position += 1
            return b",".join(hops)
        self.position = start
        return None

    def _read_local(self) -> bytes:
        pieces: list[bytes] = []
        while token := self._take():
            if token == b'"':
                pieces.append(self._read_quoted())
            elif token == b"(":
                self._read_comment()
            elif token in (b"@", b">", b",", b";", b"<", b":"):
                self.position -= 1
                break
            elif token not in (b")", b"[", b"]", b"\\") and token.strip(_BLANK):
                pieces.append(token)
        return b"".join(pieces)

    def _leave_angle(self) -> None:
        """Past the closing bracket; a comma or another bracket also ends one that was never closed."""
        while token := self._take():
            if token == b">":
                return
            if token in (b",", b";", b"<"):
                self.position -= 1
                return
            if token in (b'"', b"("):
                self._skip_enclosed(token)

    def _skip_enclosed(self, opening: bytes) -> None:
        if opening == b"(":
            self._read_comment()
        else:
            self._read_quoted()

    def _read_domain(self) -> bytes:
        pieces = b""
        while True:
            before = self.position
            token = self._take()
            if token == b"(":
                self._read_comment()
            elif token == b"[" and not pieces:
                return self._read_literal()
            elif token and not token.strip(_BLANK):
                continue
            elif token and token not in _SPECIALS and _continues(pieces, token):
                pieces += token
            else:
                break
        self.position = before
        return pieces


def _continues(pieces: bytes, token: bytes) -> bool:
    """Whether an atom belongs to the domain before it: white space is only allowed around dots."""
    return not pieces or pieces.endswith(b".") or token.startswith(b".")


def _join(words: list[bytes]) -> bytes:
    return b" ".join(words)
