"""Command lines of an SMTP session, read into typed commands.

Pure: one line without its CRLF goes in, a command or a Refusal with the precise
code comes out. Owns verbs, paths, ESMTP parameters and the length limits of
lines; knows nothing of order, state or policy.
RFC 5321 4.1 and 4.5.3.1, 1870 (SIZE), 6152 (BODY), 6531 (SMTPUTF8), 3461 (DSN),
3030 (BDAT, BINARYMIME), 4954 (AUTH), 3207 (STARTTLS), 8689 (REQUIRETLS), 4865
(HOLDFOR, HOLDUNTIL), 3463 and 2034 (enhanced codes).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from server.mail.address import AddressSyntax, parse_domain, parse_mailbox
from server.refusal import Refusal
from storage.records import Envelope, Recipient

COMMAND_OCTETS = 512  # RFC 5321 4.5.3.1.4, with CRLF
PATH_OCTETS = 256  # RFC 5321 4.5.3.1.3, with its angle brackets
PARAMETERS = 32
ENVID_OCTETS = 100  # RFC 3461 4.4
ORCPT_OCTETS = 500  # RFC 3461 4.2

# What the extensions allow beyond 512 octets, by verb (names of the parameters beside each).
LINE_OCTETS = {
    # SIZE 26, BODY 17, SMTPUTF8 10, AUTH 500, RET and ENVID 131, REQUIRETLS 11, HOLDUNTIL 34.
    b"MAIL": COMMAND_OCTETS + 26 + 17 + 10 + 500 + 131 + 11 + 34,
    b"RCPT": COMMAND_OCTETS + 613,  # NOTIFY and ORCPT
    b"VRFY": COMMAND_OCTETS + 10,  # RFC 6531 3.1
    b"EXPN": COMMAND_OCTETS + 10,
    b"AUTH": 12288,  # RFC 4954 4
}
LONGEST_LINE_OCTETS = max(LINE_OCTETS.values())
# Commands that are kept as they were read, a dialect: their number and length.
KNOWN_LINES = 1024
KNOWN_OCTETS = 200

# Verbs that exist, here or in other servers, but not in the session at hand.
UNIMPLEMENTED = frozenset({b"SEND", b"SOML", b"SAML", b"TURN", b"ETRN", b"ATRN", b"BURL"})
# First words of other protocols' requests: a browser or a proxy was led here.
FOREIGN = frozenset({b"GET", b"POST", b"PUT", b"CONNECT", b"HEAD", b"OPTIONS", b"DELETE", b"PATCH"})

# Possessive repetition: no match backtracks.
_PATH = re.compile(rb'<(?:[^<>"\\]|"(?:[^"\\]|\\.)*+")*+>')
_KEYWORD = re.compile(rb"[A-Za-z0-9][A-Za-z0-9-]*+")
_VALUE = re.compile(rb"[!-<>-~\x80-\xff]++")  # RFC 5321 4.1.2 esmtp-value, RFC 6531 3.3
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*+")  # RFC 3461 4
_UNITEXT = re.compile(  # RFC 6533 3: utf-8-addr-xtext or utf-8-addr-unitext
    r"(?:[!-*,-<>-\[\]-~\x80-\U0010ffff]|\\x\{[0-9A-Fa-f]{2,6}\}|\+[0-9A-F]{2})*+"
)
_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]++")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*+)")
_MECHANISM = re.compile(rb"[A-Za-z0-9_-]{1,20}")
_NOTIFY = frozenset({"SUCCESS", "FAILURE", "DELAY"})
# RFC 3339 5.6: date-time; colons and 'Z' as ESMTP carries them.
_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Dialect:
    """What the session at hand understands beyond RFC 821.

    mail, rcpt: parameter keywords that were announced, in capitals. wide: whether
    paths may hold UTF-8, as in a transaction begun with SMTPUTF8. known: short MAIL and
    RCPT lines read lately: senders say the same ones again and again.
    """

    mail: frozenset[bytes] = frozenset()
    rcpt: frozenset[bytes] = frozenset()
    wide: bool = False
    known: dict[bytes, Mail | Rcpt] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Hello:
    """EHLO (extended), LHLO (extended, lmtp) or HELO with its domain or address literal."""

    name: str
    extended: bool
    lmtp: bool = False


@dataclass(frozen=True, slots=True)
class Mail:
    """MAIL FROM: an envelope without recipients, and the SIZE that was declared.

    hold_seconds: HOLDFOR, which the caller turns into a time; HOLDUNTIL is in the envelope.
    """

    envelope: Envelope
    declared_octets: int | None
    hold_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Rcpt:
    """RCPT TO."""

    recipient: Recipient


@dataclass(frozen=True, slots=True)
class Data:
    """DATA."""


@dataclass(frozen=True, slots=True)
class Bdat:
    """BDAT: a chunk's octets, and whether it is the last (RFC 3030 2)."""

    octets: int
    last: bool


@dataclass(frozen=True, slots=True)
class Rset:
    """RSET."""


@dataclass(frozen=True, slots=True)
class Noop:
    """NOOP."""


@dataclass(frozen=True, slots=True)
class Help:
    """HELP."""


@dataclass(frozen=True, slots=True)
class Vrfy:
    """VRFY; what was asked is not looked at."""


@dataclass(frozen=True, slots=True)
class Expn:
    """EXPN; what was asked is not looked at."""


@dataclass(frozen=True, slots=True)
class Quit:
    """QUIT."""


@dataclass(frozen=True, slots=True)
class StartTls:
    """STARTTLS."""


@dataclass(frozen=True, slots=True)
class Auth:
    """AUTH: mechanism in capitals, and the initial response as sent, None if absent."""

    mechanism: str
    initial: bytes | None


@dataclass(frozen=True, slots=True)
class Xclient:
    """XCLIENT; whoever may say it has its attributes read."""

    argument: bytes


Command = (
    Hello | Mail | Rcpt | Data | Bdat | Rset | Noop | Help | Vrfy | Expn | Quit | StartTls | Auth | Xclient
)


def parse(line: bytes, dialect: Dialect) -> Command:
    """Read one command line without its CRLF; raises Refusal 500, 501, 502, 504, 553 or 555."""
    known = dialect.known.get(line)
    if known is not None:
        return known
    command = _read(line, dialect)
    if isinstance(command, (Mail, Rcpt)) and len(line) <= KNOWN_OCTETS:
        if len(dialect.known) >= KNOWN_LINES:
            dialect.known.clear()
        dialect.known[line] = command
    return command


def _read(line: bytes, dialect: Dialect) -> Command:
    # RFC 5321 4.1.1: trailing white space is tolerated.
    verb, _, argument = line.rstrip(b" \t").partition(b" ")
    verb = verb.upper()
    reader = _READERS.get(verb)
    if len(line) + 2 > COMMAND_OCTETS and len(line) + 2 > LINE_OCTETS.get(verb, COMMAND_OCTETS):
        raise too_long()
    if reader is None:
        raise _unknown(verb)
    if _CONTROL.search(line) is not None:
        raise Refusal(500, "5.5.2", "Control characters are not allowed in commands")
    return reader(argument, dialect)


def too_long() -> Refusal:
    """Return the refusal of a line beyond its limit (RFC 5321 4.5.3.1.10)."""
    return Refusal(500, "5.5.2", "Line too long")


def bare_line_end() -> Refusal:
    """Return the refusal of a command with CR, LF or NUL inside (RFC 5321 2.3.8)."""
    return Refusal(500, "5.5.2", "Commands end in CRLF; bare CR, bare LF and NUL are not allowed")


def unrecognized() -> Refusal:
    """Return the refusal of a command that the session at hand does not have."""
    return Refusal(500, "5.5.2", "Command not recognized")


def _unknown(verb: bytes) -> Refusal:
    if verb in UNIMPLEMENTED:
        return Refusal(502, "5.5.1", "Command not implemented")
    return unrecognized()


def _syntax(text: str) -> Refusal:
    return Refusal(501, "5.5.4", text)


def _hello(argument: bytes, verb: str) -> Hello:
    name = argument.strip(b" ").decode("ascii", "replace")
    if not _is_host(name):
        raise _syntax(f"Syntax: {verb} domain or address literal")
    return Hello(name, extended=verb != "HELO", lmtp=verb == "LHLO")


def _is_host(name: str) -> bool:
    if name[:1] != "[":
        # RFC 5321 4.1.4: a name that proves nothing is no ground to refuse; underscores are in wide use.
        return len(name) <= 255 and _HOST.fullmatch(name) is not None
    try:
        parse_domain(name, smtputf8=False)
    except AddressSyntax:
        return False
    return True


def _ehlo(argument: bytes, _dialect: Dialect) -> Hello:
    return _hello(argument, "EHLO")


def _helo(argument: bytes, _dialect: Dialect) -> Hello:
    return _hello(argument, "HELO")


def _lhlo(argument: bytes, _dialect: Dialect) -> Hello:
    return _hello(argument, "LHLO")


def _xclient(argument: bytes, _dialect: Dialect) -> Xclient:
    return Xclient(argument)


def _mail(argument: bytes, dialect: Dialect) -> Mail:
    path, rest = _split_path(argument, b"FROM:", "Syntax: MAIL FROM:<address> [parameters]", "5.1.7")
    parameters = _parameters(rest, dialect.mail) if rest else {}
    declared, body, smtputf8, ret, envid = None, "7BIT", False, None, None
    require_tls, hold_seconds, hold_until = False, None, None
    for keyword, value in parameters.items():
        if keyword == b"SIZE":
            declared = _size(value)
        elif keyword == b"BODY":
            body = _body(value)
        elif keyword == b"SMTPUTF8":
            smtputf8 = _flag(value, "SMTPUTF8")
        elif keyword == b"RET":
            ret = _ret(value)
        elif keyword == b"ENVID":
            envid = _envid(value)
        elif keyword == b"AUTH":
            _check_auth_parameter(value)
        elif keyword == b"REQUIRETLS":
            require_tls = _flag(value, "REQUIRETLS")
        elif keyword == b"HOLDFOR":
            hold_seconds = _hold_for(value)
        elif keyword == b"HOLDUNTIL":
            hold_until = _hold_until(value)
    if hold_seconds is not None and hold_until is not None:
        raise _syntax("HOLDFOR and HOLDUNTIL exclude each other")  # RFC 4865 3 (4)
    reverse_path = None if path == b"<>" else _mailbox(path, wide=smtputf8, enhanced="5.1.7")
    envelope = Envelope(reverse_path, (), body, smtputf8, ret, envid, require_tls, hold_until)
    return Mail(envelope, declared, hold_seconds)


def _rcpt(argument: bytes, dialect: Dialect) -> Rcpt:
    path, rest = _split_path(argument, b"TO:", "Syntax: RCPT TO:<address> [parameters]", "5.1.3")
    parameters = _parameters(rest, dialect.rcpt) if rest else {}
    notify, orcpt = None, None
    for keyword, value in parameters.items():
        if keyword == b"NOTIFY":
            notify = _notify(value)
        elif keyword == b"ORCPT":
            orcpt = _orcpt(value, wide=dialect.wide)
    if path == b"<>":
        raise Refusal(501, "5.1.3", "The null path is no recipient")
    # RFC 5321 4.1.1.3: <postmaster> without a domain is always understood.
    if path.lower() == b"<postmaster>":
        return Rcpt(Recipient(path[1:-1].decode("ascii"), notify, orcpt))
    return Rcpt(Recipient(_mailbox(path, wide=dialect.wide, enhanced="5.1.3"), notify, orcpt))


def _split_path(argument: bytes, prefix: bytes, usage: str, enhanced: str) -> tuple[bytes, bytes]:
    """Return the path with its brackets, and the parameters behind it."""
    if argument[: len(prefix)].upper() != prefix:
        raise _syntax(usage)
    # A space behind the colon is not in the grammar, but in wide use.
    rest = argument[len(prefix) :].lstrip(b" ")
    matched = _PATH.match(rest)
    if matched is None:
        raise Refusal(501, enhanced, usage)
    path = matched.group()
    if len(path) > PATH_OCTETS:
        raise Refusal(501, enhanced, "Path too long")
    parameters = rest[len(path) :]
    if parameters[:1] not in {b"", b" "}:
        raise _syntax(usage)
    return path, parameters


def _mailbox(path: bytes, *, wide: bool, enhanced: str) -> str:
    """Return the mailbox inside a path as it was written, without a source route."""
    inside = path[1:-1]
    try:
        text = inside.decode("utf-8" if wide else "ascii")
    except UnicodeDecodeError:
        if wide:
            raise Refusal(501, enhanced, "Address is not valid UTF-8") from None
        # RFC 6531 3.5: the client must say SMTPUTF8 before it uses such an address.
        raise Refusal(553, "5.6.7", "Non-ASCII address without SMTPUTF8") from None
    try:
        if text[:1] == "@":
            text = _without_route(text, wide=wide)
        parse_mailbox(text, smtputf8=wide)
    except AddressSyntax as error:
        raise Refusal(501, enhanced, f"Bad address syntax: {error}") from None
    return text


def _without_route(text: str, *, wide: bool) -> str:
    """Drop `@a,@b:` (RFC 5321 4.1.2, appendix C); raises AddressSyntax."""
    route, colon, mailbox = text.partition(":")
    if not colon:
        raise AddressSyntax("source route without mailbox")
    for hop in route.split(","):
        if hop[:1] != "@" or hop[1:2] == "[":
            raise AddressSyntax("source route is not valid")
        parse_domain(hop[1:], smtputf8=wide)
    return mailbox


def _parameters(text: bytes, known: frozenset[bytes]) -> dict[bytes, bytes | None]:
    """Return ESMTP parameters by keyword in capitals; None for a keyword without a value."""
    words = text.split()
    if len(words) > PARAMETERS:
        raise _syntax("Too many parameters")
    parameters: dict[bytes, bytes | None] = {}
    for word in words:
        keyword, equals, value = word.partition(b"=")
        if _KEYWORD.fullmatch(keyword) is None or (equals and _VALUE.fullmatch(value) is None):
            raise _syntax("Malformed parameter")
        keyword = keyword.upper()
        if keyword not in known:
            raise Refusal(555, "5.5.4", "Parameter not recognized or not implemented")
        if keyword in parameters:
            raise _syntax("Parameter given twice")
        parameters[keyword] = value if equals else None
    return parameters


def _size(value: bytes | None) -> int:
    if value is None or not value.isdigit() or len(value) > 20:  # RFC 1870 5: 1*20DIGIT
        raise _syntax("SIZE takes a number of octets")
    return int(value)


def _body(value: bytes | None) -> str:
    body = (value or b"").upper()
    if body not in {b"7BIT", b"8BITMIME", b"BINARYMIME"}:
        raise _syntax("BODY is 7BIT, 8BITMIME or BINARYMIME")
    return body.decode("ascii")


def _flag(value: bytes | None, keyword: str) -> bool:
    if value is not None:
        raise _syntax(f"{keyword} takes no value")
    return True


def _ret(value: bytes | None) -> str:
    ret = (value or b"").upper()
    if ret not in {b"FULL", b"HDRS"}:
        raise _syntax("RET is FULL or HDRS")
    return ret.decode("ascii")


def _envid(value: bytes | None) -> str:
    text = _ascii(value)
    if not text or len(text) > ENVID_OCTETS or _XTEXT.fullmatch(text) is None:
        raise _syntax("ENVID takes up to 100 characters of xtext")
    return text


def _hold_for(value: bytes | None) -> int:
    if value is None or not value.isdigit() or len(value) > 9:  # RFC 4865 3 (4): 1*9DIGIT
        raise _syntax("HOLDFOR takes a number of seconds")
    return int(value)


def _hold_until(value: bytes | None) -> int:
    """Return microseconds of UTC since 1970."""
    text = _ascii(value)
    try:
        if _DATE_TIME.fullmatch(text) is None:
            raise ValueError
        at = datetime.fromisoformat(text.upper()).astimezone(UTC)
        return round(at.timestamp() * 1_000_000)
    except (ValueError, OverflowError):
        raise _syntax("HOLDUNTIL takes a date and time as in 2030-01-31T08:00:00Z") from None


def _check_auth_parameter(value: bytes | None) -> None:
    # RFC 4954 5: read and dropped; the login alone says who submits.
    if value != b"<>" and (not value or _XTEXT.fullmatch(_ascii(value)) is None):
        raise _syntax("AUTH takes <> or an address as xtext")


def _notify(value: bytes | None) -> frozenset[str]:
    words = _ascii(value).upper().split(",")
    if words == ["NEVER"]:
        return frozenset(words)
    notify = frozenset(words)
    if not notify <= _NOTIFY:
        raise _syntax("NOTIFY is NEVER, or a list of SUCCESS, FAILURE and DELAY")
    return notify


def _orcpt(value: bytes | None, *, wide: bool) -> str:
    try:
        text = (value or b"").decode("utf-8" if wide else "ascii")
    except UnicodeDecodeError:
        raise _syntax("ORCPT is not valid") from None
    kind, semicolon, address = text.partition(";")
    pattern = _UNITEXT if kind.lower() == "utf-8" else _XTEXT
    if (
        not (semicolon and address)
        or len(value or b"") > ORCPT_OCTETS
        or _ATOM.fullmatch(kind) is None
        or pattern.fullmatch(address) is None
    ):
        raise _syntax("ORCPT takes an address type, ';' and an address as xtext")
    return text


def _ascii(value: bytes | None) -> str:
    try:
        return (value or b"").decode("ascii")
    except UnicodeDecodeError:
        raise _syntax("Parameter value is not ASCII") from None


def _bdat(argument: bytes, _dialect: Dialect) -> Bdat:
    words = argument.upper().split()
    last = len(words) == 2 and words[1] == b"LAST"
    if not words or (len(words) > 1 and not last) or not words[0].isdigit() or len(words[0]) > 20:
        raise _syntax("Syntax: BDAT octets [LAST]")
    return Bdat(int(words[0]), last)


def _auth(argument: bytes, _dialect: Dialect) -> Auth:
    words = argument.split()
    if not 1 <= len(words) <= 2 or _MECHANISM.fullmatch(words[0]) is None:
        raise _syntax("Syntax: AUTH mechanism [initial response]")
    return Auth(words[0].upper().decode("ascii"), words[1] if len(words) == 2 else None)


def _alone(usage: str, command: Command) -> Callable[[bytes, Dialect], Command]:
    """Return the reader of a verb that takes no argument."""

    def read(argument: bytes, _dialect: Dialect) -> Command:
        if argument.strip(b" "):
            raise _syntax(f"{usage} takes no argument")
        return command

    return read


def _free(command: Command) -> Callable[[bytes, Dialect], Command]:
    """Return the reader of a verb whose argument is of no consequence."""
    return lambda _argument, _dialect: command


def _named(usage: str, command: Command) -> Callable[[bytes, Dialect], Command]:
    """Return the reader of a verb that needs an argument which is not looked at."""

    def read(argument: bytes, _dialect: Dialect) -> Command:
        if not argument.strip(b" "):
            raise _syntax(f"Syntax: {usage}")
        return command

    return read


_READERS: dict[bytes, Callable[[bytes, Dialect], Command]] = {
    b"EHLO": _ehlo,
    b"HELO": _helo,
    b"LHLO": _lhlo,
    b"MAIL": _mail,
    b"RCPT": _rcpt,
    b"DATA": _alone("DATA", Data()),
    b"BDAT": _bdat,
    b"RSET": _alone("RSET", Rset()),
    b"NOOP": _free(Noop()),
    b"HELP": _free(Help()),
    b"VRFY": _named("VRFY address", Vrfy()),
    b"EXPN": _named("EXPN list", Expn()),
    b"QUIT": _alone("QUIT", Quit()),
    b"STARTTLS": _alone("STARTTLS", StartTls()),
    b"AUTH": _auth,
    b"XCLIENT": _xclient,
}
