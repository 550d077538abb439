"""Fuzz target of rule files: any text, and what judges by it.

`check_rules`: a text is a rule set or a PolicyError whose problems name lines of it;
a set judges every stage over empty facts without an error, twice alike, and what it
rules is one line where it becomes a reply or a field.
"""

from policies.compile import PolicyError, compile_rules
from policies.engine import judge
from policies.facts import STAGES
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
    for stage in STAGES:
        ruling = judge(rules, stage, FACTS[stage])
        assert ruling == judge(rules, stage, FACTS[stage])
        assert ruling.text.isascii()
        assert ruling.text == "" or ruling.text.isprintable()
        for name, value in ruling.headers:
            assert not any(ord(c) < 32 or ord(c) == 127 for c in name + value)
