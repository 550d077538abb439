"""Names, stages and types of conditions."""

import pytest

from policies.check import check
from policies.expression import parse
from policies.facts import FACTS, PYTHON_TYPES, STAGES, facts_at, faults
from tests.policies.values import facts


def messages(text, *stages):
    return [(fault.at, fault.message) for fault in check(parse(text), stages or ("message",))]


@pytest.mark.parametrize(
    "text",
    [
        "true",
        "authenticated",
        "source == 'mx'",
        "recipient_count > 2 && recipient_count - 1 < 100",
        "'example.org' in dkim",
        "spf in ['fail', 'softfail']",
        "received_count in [1, 2]",
        "subject.contains('invoice') || subject.startsWith('re:')",
        "size(dkim) == 0 && subject.size() > 3",
        "recipients.exists(it, it.endsWith('@example.net'))",
        "!header_names.all(field, field != 'x-loop')",
        "recipients.exists(a, a == sender) || recipients.exists(a, a == helo)",
    ],
)
def test_sound_conditions_have_no_fault(text):
    stages = ("submit",) if text == "authenticated" else ("message",)
    assert messages(text, *stages) == []


@pytest.mark.parametrize(
    ("text", "at", "word"),
    [
        ("dmrac == 'fail'", 0, "no fact dmrac: did you mean dmarc?"),
        ("xyzzy == 'fail'", 0, "no fact xyzzy"),
        ("subject", 0, "must be true or false, this is of type string"),
        ("recipient_count", 0, "must be true or false"),
        ("subject == 1", 8, "string and int are never equal"),
        ("tls == 'yes'", 4, "bool and string are never equal"),
        ("dkim == dkim", 5, "lists are not compared"),
        ("subject > 1", 0, "int is wanted beside >"),
        ("subject && tls", 0, "bool is wanted beside &&"),
        ("!subject", 1, "bool is wanted behind !"),
        ("-subject > 1", 1, "int is wanted behind -"),
        ("1 in dkim", 0, "holds no value of type int"),
        ("'a' in subject", 7, "list<string> is wanted behind in"),
        ("spf in []", 7, "nothing is in an empty list"),
        ("spf in ['a', 1]", 13, "the list should hold string"),
        ("['a'] == dkim", 0, "only behind in"),
        ("subject.contains(1)", 17, "string is wanted in contains()"),
        ("dkim.contains('a')", 0, "string is wanted before .contains"),
        ("contains(subject, 'a')", 0, "written text.contains(text)"),
        ("size(tls) == 1", 5, "only texts and lists have a size"),
        ("size() == 1", 0, "written size(x) or x.size()"),
        ("subject.matches('(a')", 16, "no pattern of RE2: missing )"),
        ("subject.matches(helo)", 8, "is written fact.matches(text)"),
        ("recipients.exists(a, a.matches('x'))", 23, "ask the fact itself"),
        ("size_octets.matches('a')", 0, "only texts and lists of texts have .matches"),
        ("sender_domain.in_list('partners')", 22, "no list partners: declare it"),
        ("subject.startWith('a')", 8, "did you mean startsWith?"),
        ("subject.lowerAscii() == 'a'", 8, "no function lowerAscii"),
        ("recipients.map(a, a) == recipients", 11, "use exists or all"),
        ("recipients.exists(a)", 11, "written list.exists(item, condition)"),
        ("subject.exists(a, a == 'x')", 0, "list<string> is wanted before .exists"),
        ("recipients.exists(dkim, dkim == 'x')", 18, "is a fact: give the item another name"),
        ("recipients.exists(a, a)", 21, "bool is wanted as the condition"),
        ("recipients.exists(a, dkim.exists(b, b == a))", 26, "may not stand inside another"),
        ("recipients.exists(a, a == 'x') && a == 'y'", 34, "no fact a"),
    ],
)
def test_faulty_conditions_are_named_with_their_place(text, at, word):
    found = messages(text)
    assert len(found) == 1
    assert found[0][0] == at
    assert word in found[0][1]


def test_a_fact_is_refused_before_its_stage_and_told_where_it_exists():
    ((at, message),) = messages("source == 'mx' && dmarc == 'fail'", "mail")
    assert at == 18
    assert message == "dmarc does not exist at stage mail: it exists at message, deliver"


def test_a_rule_of_two_stages_needs_its_facts_at_both():
    assert messages("recipient_count > 1", "rcpt", "submit") == []
    ((_, message),) = messages("recipient == 'a@b.example'", "rcpt", "submit")
    assert "at stage submit" in message


def test_all_faults_of_a_condition_are_reported_at_once():
    found = messages("nosuch == 'x' && subject > 3 && helo.matches('(')")
    assert [at for at, _ in found] == [0, 17, 45]


def test_every_fact_stands_at_known_stages_in_their_order():
    order = list(STAGES)
    for fact in FACTS.values():
        assert fact.stages, fact.name
        assert list(fact.stages) == sorted(fact.stages, key=order.index), fact.name
        assert fact.earliest in STAGES
        assert fact.meaning.endswith("."), fact.name
        assert fact.kind in PYTHON_TYPES


def test_faults_names_absent_mistyped_and_unknown_facts():
    assert faults("message", facts("message")) == []
    wrong = facts("message", recipient_count=True, bogus="x")
    del wrong["spf"]
    found = faults("message", wrong)
    assert sorted(found) == [
        "bogus is no fact",
        "recipient_count is bool, not int",
        "spf is absent at message",
    ]


def test_each_stage_has_facts():
    assert all(facts_at(stage) for stage in STAGES)
