"""Fuzz target of rule files: any text, and what judges by it.

`check_rules`: a text is a rule set or a PolicyError whose problems name lines of it;
a set judges every stage over empty facts without an error, twice alike, and what it
rules is one line where it becomes a reply or a field.
`check_lists`: any lines are entries of each kind or faults that name them; what is
asked of them has an answer, and what the DNS is asked for fits into a name.
`check_names`: any entry of a DNS list is one or a ValueError, any answer says something, and any
EHLO name is held against any address without an error.
"""

import asyncio
import ipaddress

from policies.compile import PolicyError, compile_rules
from policies.engine import judge
from policies.facts import STAGES
from policies.lists import Listed, declared, question, read
from policies.rules import ListKind
from server.dns import NoSuchDomain
from server.dns_list import parse, said
from server.names import reverse
from tests.policies.values import facts

FACTS = {stage: facts(stage) for stage in STAGES}


def check_rules(data: bytes) -> None:
    """Any octets are rules or a PolicyError, and rules judge without an error."""
    text = data.decode("utf-8", "replace")
    try:
        rules = compile_rules([("a.toml", text)])
    except PolicyError as error:
        assert error.problems
        lines = text.count("\n") + text.count("\r") + 1
        for problem in error.problems:
            assert 0 <= problem.line <= lines
            assert problem.message
        return
    surroundings = Listed(declared(rules))
    for stage in STAGES:
        ruling = judge(rules, stage, FACTS[stage], surroundings)
        assert ruling == judge(rules, stage, FACTS[stage], surroundings)
        assert ruling.text.isascii()
        assert ruling.text == "" or ruling.text.isprintable()
        for name, value in ruling.headers:
            assert not any(ord(c) < 32 or ord(c) == 127 for c in name + value)


def check_lists(data: bytes) -> None:
    """Any lines are read, and any line may be looked up."""
    lines = data.decode("utf-8", "replace").split("\n")
    for kind in ListKind:
        entries, faults = read(kind, lines)
        assert all(1 <= number <= len(lines) and message for number, message in faults)
        for line in lines:
            entries.has(line)
            name = question(kind, "dnsbl.test", line)
            assert name is None or len(name) <= 253
        for entry in entries.exact:
            assert entries.has(entry) or kind is ListKind.DOMAINS or entry.startswith("@")


class Nobody:
    """Knows no name, and is asked for none that is too long."""

    async def resolve(self, name: str, rdtype: str) -> None:
        assert 0 < len(name) <= 253 and name.isascii() and rdtype
        raise NoSuchDomain(name)


def check_names(data: bytes) -> None:
    """Entries of DNS lists, their answers, and names of clients."""
    first, *lines = data.decode("utf-8", "replace").split("\n")
    records = [str(ipaddress.IPv4Address(data[at : at + 4])) for at in range(0, len(data) - 3, 4)]
    answer = said(records)
    assert all(code.startswith("127.") for code in answer.codes)
    try:
        entry = parse(first)
    except ValueError as error:
        assert str(error)
    else:
        assert 1 <= entry.weight <= 100
        assert {entry.counts(code) for code in answer.codes} <= {True, False}
    asyncio.run(_look_up(lines[:20]))


async def _look_up(lines: list[str]) -> None:
    for line in lines:
        found = await reverse.check_helo(Nobody(), line, "192.0.2.1")  # type: ignore[arg-type]
        assert found in ("pass", "fail", "none")
        await reverse.look_up(Nobody(), line)  # type: ignore[arg-type]
