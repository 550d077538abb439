"""Transcripts of judging: each NAME.in is a dialogue with the engine, NAME.expected what it answers.

A line of an .in file is one of: `rules: FILE...` (below the checkout, or beside the transcript),
`services: NAME, …` (what is configured from here on; the rules are read anew),
`STAGE: fact = value, …` (values as in TOML; all other facts of the stage are empty), a comment, or blank.
"""

import tomllib
from pathlib import Path

import pytest

from policies.compile import PolicyError, compile_rules
from policies.engine import judge
from policies.explain import explain
from policies.facts import faults
from policies.lists import Listed, declared
from policies.rules import RuleSet
from tests.policies.values import facts

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def source(name):
    path = HERE / name if (HERE / name).exists() else ROOT / name
    return path.name, path.read_text("utf-8")


def read_rules(names, answer, services=()):
    try:
        return compile_rules([source(name) for name in names], services=services)
    except PolicyError as error:
        answer += [f"! {problem}" for problem in error.problems]
        return RuleSet()


def ask(rules, line, answer):
    stage, _, rest = line.partition(":")
    values = tomllib.loads(f"given = {{ {rest} }}")["given"]
    given = facts(stage, **values)
    assert faults(stage, given) == [], line
    answer += explain(judge(rules, stage, given, Listed(declared(rules))))


def play(text):
    rules, answer = RuleSet(), []
    for line in text.splitlines():
        answer.append(line)
        if line.startswith("rules:"):
            names = line.removeprefix("rules:").split()
            rules = read_rules(names, answer)
        elif line.startswith("services:"):
            rules = read_rules(names, answer, line.removeprefix("services:").replace(",", " ").split())
        elif line.strip() and not line.startswith("#"):
            ask(rules, line, answer)
    return "\n".join(answer) + "\n"


@pytest.mark.parametrize("path", sorted(HERE.glob("*.in")), ids=lambda path: path.stem)
def test_the_transcript_is_as_expected(path):
    expected = path.with_suffix(".expected")
    assert play(path.read_text("utf-8")) == expected.read_text("utf-8")


def test_there_are_transcripts_of_every_shipped_file():
    asked = "\n".join(path.read_text("utf-8") for path in HERE.glob("*.in"))
    for path in (ROOT / "conf" / "policies").glob("*.toml"):
        assert f"conf/policies/{path.name}" in asked
