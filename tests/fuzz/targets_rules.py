"""Fuzz target of rule files: any text, and what judges by it.

`check_rules`: a text is a rule set or a PolicyError whose problems name lines of it;
a set judges every stage over empty facts without an error, twice alike, and what it
rules is one line where it becomes a reply or a field.
`check_lists`: any lines are entries of each kind or faults that name them; what is
asked of them has an answer, and what the DNS is asked for fits into a name.
"""

from policies.compile import PolicyError, compile_rules
from policies.engine import judge
from policies.facts import STAGES
from policies.lists import Listed, declared, question, read
from policies.rules import ListKind
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
