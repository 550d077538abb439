"""Lists that rules ask with in_list: their entries, read and looked up.

Owns the form of an entry of each kind and the look-up, which costs the same
however long the list is. Opens no file and asks no database: lines are given.
RFC 1123 2.1 (names), RFC 4632 (networks), RFC 5782 2.1 (the names a DNS list is asked for).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from policies.rules import ListKind, ListSource, Rule, RuleSet

MAX_ENTRIES = 1_000_000
MAX_ENTRY_CHARACTERS = 320
_DOMAIN = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*")
_ADDRESS = re.compile(r"[^\s@]*@" + _DOMAIN.pattern)


@dataclass(slots=True)
class Entries:
    """What a list holds now. networks: (IP version, prefix length) to the network numbers."""

    kind: ListKind
    exact: set[str] = field(default_factory=set)
    networks: dict[tuple[int, int], set[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.exact) + sum(map(len, self.networks.values()))

    def add(self, entry: str) -> None:
        """Take one entry; ValueError says what is wrong with it."""
        if self.kind is ListKind.NETWORKS:
            network = ipaddress.ip_network(entry)
            number = int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
            self.networks.setdefault((network.version, network.prefixlen), set()).add(number)
            return
        self.exact.add(_entry(self.kind, entry))

    def has(self, value: str) -> bool:
        """Return whether a fact's value is listed."""
        if self.kind is ListKind.NETWORKS:
            return self._covers(value)
        if self.kind is ListKind.DOMAINS:
            return self._has_domain(value.rpartition("@")[2])
        if self.kind is ListKind.ADDRESSES and value not in self.exact:
            return "@" in value and "@" + value.rpartition("@")[2] in self.exact
        return value in self.exact

    def _has_domain(self, domain: str) -> bool:
        if domain in self.exact:
            return True
        rest = domain
        while "." in rest:
            rest = rest.partition(".")[2]
            if "*." + rest in self.exact:
                return True
        return False

    def _covers(self, value: str) -> bool:
        try:
            address = ipaddress.ip_address(value)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        number, length = int(address), address.max_prefixlen
        return any(
            version == address.version and number >> (length - prefix) in numbers
            for (version, prefix), numbers in self.networks.items()
        )


def _entry(kind: ListKind, entry: str) -> str:
    if len(entry) > MAX_ENTRY_CHARACTERS:
        raise ValueError(f"it is over {MAX_ENTRY_CHARACTERS} characters")
    folded = entry.lower()
    if kind is ListKind.DOMAINS and not _DOMAIN.fullmatch(folded):
        raise ValueError("this is no domain: write example.net, or *.example.net for all below it")
    if kind is ListKind.ADDRESSES and not _ADDRESS.fullmatch(folded):
        raise ValueError("this is no address: write user@example.net, or @example.net for all of it")
    return folded


def read(kind: ListKind, entries: Iterable[str]) -> tuple[Entries, list[tuple[int, str]]]:
    """Return the entries of lines, and what is wrong as (line, message). '#' begins a comment."""
    found, faults = Entries(kind), []
    for number, line in enumerate(entries, 1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        if len(found) >= MAX_ENTRIES:
            faults.append((number, f"there are over {MAX_ENTRIES} entries"))
            break
        try:
            found.add(entry)
        except ValueError as error:
            faults.append((number, str(error)))
    return found, faults


def is_listed(entries: Mapping[str, Entries], name: str, value: str) -> bool:
    """Return whether a value is in a list; LookupError where the list has no entries to hand."""
    found = entries.get(name)
    if found is None:
        raise LookupError(f"the list {name} is not to hand")
    return found.has(value)


class Listed:
    """Lists as surroundings of a judging: by their names, without limits."""

    def __init__(self, entries: Mapping[str, Entries]) -> None:
        self._entries = entries

    def is_listed(self, name: str, value: str) -> bool:
        """Return whether a value is in a list; LookupError where it has no entries to hand."""
        return is_listed(self._entries, name, value)

    def spend(self, rule: Rule, value: str) -> bool:
        """Nothing is counted."""
        return True

    def has_returned(self, stage: str, facts: Mapping[str, object]) -> bool:
        """Nobody is new."""
        return True


def declared(rules: RuleSet) -> dict[str, Entries]:
    """Return the entries of those lists of a rule set that stand in the rule files themselves."""
    return {
        one.name: read(one.kind, one.values)[0]
        for one in rules.lists.values()
        if one.source is ListSource.VALUES
    }


def question(kind: ListKind, zone: str, value: str) -> str | None:
    """Return the name that a DNS list is asked for about a value, None if there is nothing to ask."""
    if kind is ListKind.NETWORKS:
        try:
            pointer = ipaddress.ip_address(value).reverse_pointer
        except ValueError:
            return None
        return f"{pointer.removesuffix('.in-addr.arpa').removesuffix('.ip6.arpa')}.{zone}"
    domain = value.rpartition("@")[2]
    return f"{domain}.{zone}" if _DOMAIN.fullmatch(domain) and len(domain) + len(zone) < 253 else None
