"""DNS lists as settings name them: the zone, the codes that count, and what they weigh.

Pure. Owns the form of an entry, `ZONE[=CODES][*WEIGHT]` as Postfix writes it, and what the records
of an answer say. RFC 5782 2.1 (codes), 2.3 (meanings), 5 (the entries by which a list is tested).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

MAX_WEIGHT = 100
MAX_RECORDS = 100  # of one answer; a list has a handful of codes
FORM = "a list of ZONE, ZONE=127.0.0.[2..11] or ZONE=CODES*WEIGHT"
_ZONE = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?)+")
_ENTRY = re.compile(r"(?P<zone>[^=*]+)(?:=(?P<codes>[^*]+))?(?:\*(?P<weight>-?[0-9]{1,3}))?")
_OCTET = re.compile(r"[0-9]{1,3}|\[[0-9.;]{1,200}\]")
_RANGE = re.compile(r"([0-9]{1,3})(?:\.\.([0-9]{1,3}))?")

Codes = tuple[frozenset[int], ...]


@dataclass(frozen=True, slots=True)
class DnsList:
    """One list. codes: for each octet of an answer those that count; () counts all that say 'listed'."""

    zone: str
    codes: Codes = ()
    weight: int = 1

    def counts(self, code: str) -> bool:
        """Return whether a code of an answer is one that counts."""
        octets = tuple(map(int, code.split(".")))
        if self.codes:
            return all(octet in wanted for octet, wanted in zip(octets, self.codes, strict=True))
        # Never an entry of its own (RFC 5782 5), and how some lists say that the asker is refused.
        return octets != (127, 0, 0, 1)


@dataclass(frozen=True, slots=True)
class Lists:
    """The lists of the settings: which addresses are blocked or allowed, which domains are blocked."""

    block: tuple[DnsList, ...] = ()
    allow: tuple[DnsList, ...] = ()
    block_domains: tuple[DnsList, ...] = ()


@dataclass(frozen=True, slots=True)
class Said:
    """What an answer says. codes: within 127.0.0.0/8. refused: the list does not serve this resolver.

    strange: an address that no list gives, '' if there is none.
    """

    codes: frozenset[str] = frozenset()
    refused: bool = False
    strange: str = ""


NOTHING = Said()


def parse(text: str) -> DnsList:
    """Return the list that an entry names; raises ValueError."""
    found = _ENTRY.fullmatch(text)
    zone = found["zone"].lower().rstrip(".") if found else ""
    if found is None or not _ZONE.fullmatch(zone) or len(zone) > 180:
        raise ValueError(f"{text!r} is no DNS list: {FORM}")
    weight = int(found["weight"]) if found["weight"] else 1
    if not 1 <= weight <= MAX_WEIGHT:
        raise ValueError(f"the weight of {text!r} is 1 to {MAX_WEIGHT}")
    return DnsList(zone, _codes(found["codes"]) if found["codes"] else (), weight)


def _codes(text: str) -> Codes:
    parts = re.findall(_OCTET, text)
    if len(parts) != 4 or ".".join(parts) != text:
        raise ValueError(f"{text!r} are no codes such as 127.0.0.2 or 127.0.[0..1].[2;4..11]")
    codes = tuple(_octets(part) for part in parts)
    if codes[0] != {127}:
        raise ValueError(f"{text!r}: the codes of a DNS list begin with 127")
    return codes


def _octets(part: str) -> frozenset[int]:
    found: set[int] = set()
    for piece in part.strip("[]").split(";"):
        ends = _RANGE.fullmatch(piece)
        if ends is None:
            raise ValueError(f"{piece!r} is no number and no range such as 2..11")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if not first <= last <= 255:
            raise ValueError(f"{piece!r} is not within 0..255")
        found.update(range(first, last + 1))
    return frozenset(found)


def said(records: Iterable[object]) -> Said:
    """Return what the A records of an answer say."""
    texts = [str(record) for record in islice(records, MAX_RECORDS)]
    # 127.255.255.0/24 is how public lists say that they do not serve the asker.
    codes = frozenset(
        text for text in texts if text.startswith("127.") and not text.startswith("127.255.255.")
    )
    refused = any(text.startswith("127.255.255.") for text in texts)
    strange = next((text for text in texts if not text.startswith("127.")), "")
    return Said(codes, refused, strange)
