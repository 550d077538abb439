"""MTA-STS records and policies: octets become frozen values, and hosts are held against them.

Owns the grammar of `_mta-sts` records and of policy files, and the matching of MX hosts.
Fetches nothing. Refuses with PolicySyntax what a policy must not be; keys that it does not
know are passed over. Pure. RFC 8461 3.1, 3.2, 4.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

VERSION = "STSv1"
MAX_AGE_SECONDS = 31_557_600  # RFC 8461 3.2: about a year
MAX_POLICY_OCTETS = 64 << 10
MAX_PATTERNS = 500
WELL_KNOWN = "/.well-known/mta-sts.txt"
_ID = re.compile(r"[A-Za-z0-9]{1,32}")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_WSP = " \t"


class PolicySyntax(ValueError):
    """What is no policy; the text says what is wrong."""


class Mode(str, Enum):
    """What a policy asks senders to do (RFC 8461 5)."""

    ENFORCE = "enforce"
    TESTING = "testing"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy. mx: lower-case names of hosts, the left-most label perhaps `*`; max_age in seconds."""

    mode: Mode
    max_age: int
    mx: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """The policy in the form of its file."""
        named = tuple(f"mx: {one}" for one in self.mx)
        return (f"version: {VERSION}", f"mode: {self.mode.value}", *named, f"max_age: {self.max_age}")

    @property
    def text(self) -> str:
        """The policy as a file has it, with CRLF line ends."""
        return "".join(f"{line}\r\n" for line in self.lines)


def read_record(texts: Iterable[Sequence[bytes]]) -> str | None:
    """Return the id of the one record among TXT records, None without one (RFC 8461 3.1).

    More than one that begins with v=STSv1 is none, and so is one that is malformed.
    """
    joined = [b"".join(strings) for strings in texts]
    records = [one for one in joined if one.startswith(b"v=STSv1") and one[7:8] in (b";", b" ", b"\t", b"")]
    if len(records) != 1:
        return None
    try:
        text = records[0].decode("ascii")
    except UnicodeDecodeError:
        return None
    return _record_id(text)


def _record_id(text: str) -> str | None:
    found: str | None = None
    for field in text.split(";")[1:]:
        name, equals, value = field.strip(_WSP).partition("=")
        if not name and not equals:
            continue  # a last semicolon, or one too many
        if not equals or not value:
            return None
        if name.strip(_WSP) == "id":
            if found is not None:
                return None
            found = value.strip(_WSP)
    return found if found is not None and _ID.fullmatch(found) else None


def read_policy(octets: bytes) -> Policy:
    """Return the policy in a file; raises PolicySyntax. Line ends are CRLF or LF (RFC 8461 3.2)."""
    if len(octets) > MAX_POLICY_OCTETS:
        raise PolicySyntax(f"the policy is larger than {MAX_POLICY_OCTETS} octets")
    try:
        text = octets.decode("utf-8")
    except UnicodeDecodeError:
        raise PolicySyntax("the policy is no UTF-8 text") from None
    fields, patterns = _fields(text)
    if fields.get("version") != VERSION:
        raise PolicySyntax(f"the version is not {VERSION}")
    return Policy(_mode(fields, patterns), _max_age(fields), patterns)


def _fields(text: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the first value of each key, and the MX patterns."""
    fields: dict[str, str] = {}
    patterns: dict[str, None] = {}
    for line in text.split("\n"):
        key, colon, value = line.removesuffix("\r").partition(":")
        if not colon and not key.strip(_WSP):
            continue
        key, value = key.strip(_WSP), value.strip(_WSP)
        if not colon or not _KEY.fullmatch(key) or not _is_printable(value):
            raise PolicySyntax(f"a line is no key with a value: {line[:60]!a}")
        if key == "mx":
            patterns[_pattern(value)] = None
        else:
            # RFC 8461 3.2: of keys that come again the first counts.
            fields.setdefault(key, value)
    if len(patterns) > MAX_PATTERNS:
        raise PolicySyntax(f"the policy names more than {MAX_PATTERNS} hosts")
    return fields, tuple(patterns)


def _is_printable(value: str) -> bool:
    return bool(value) and not any(char < " " or char == "\x7f" for char in value)


def _pattern(value: str) -> str:
    name = value.lower()
    labels = name.removeprefix("*.").split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise PolicySyntax(f"{value[:80]!a} is no name of an MX host")
    if name.startswith("*.") and len(labels) < 2:
        raise PolicySyntax(f"{value[:80]!a} stands for all of a top-level domain")
    return name


def _mode(fields: dict[str, str], patterns: tuple[str, ...]) -> Mode:
    try:
        mode = Mode(fields.get("mode", ""))
    except ValueError:
        raise PolicySyntax(f"the mode is {fields.get('mode', '')[:40]!a}") from None
    if mode is not Mode.NONE and not patterns:
        raise PolicySyntax("the policy names no MX host")
    return mode


def _max_age(fields: dict[str, str]) -> int:
    text = fields.get("max_age", "")
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) > MAX_AGE_SECONDS:
        raise PolicySyntax(f"max_age is {text[:40]!a}, not 0 to {MAX_AGE_SECONDS} seconds")
    return int(text)


def matches(policy: Policy, host: str) -> bool:
    """Whether a policy names an MX host (RFC 8461 4.1): a wildcard is one label, the left-most."""
    name = host.rstrip(".").lower()
    _, dot, above = name.partition(".")
    return name in policy.mx or (bool(dot) and f"*.{above}" in policy.mx)
