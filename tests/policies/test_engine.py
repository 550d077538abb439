"""Judging: order, effects, errors, and the index against the plain meaning of the conditions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import library
from policies.compile import compile_rules
from policies.engine import judge
from policies.explain import ask_all, explain
from policies.rules import RuleSet, Ruling
from tests.policies.values import facts, rule


def ruling(text, stage="message", **given_facts):
    return judge(compile_rules([("a.toml", text)]), stage, facts(stage, **given_facts))


def test_without_rules_everything_is_accepted():
    assert judge(RuleSet(), "message", {}) == Ruling()


def test_a_stage_without_rules_is_absent_from_the_set():
    rules = compile_rules(
        [("a", rule("true") + rule("true", name="off", stage="mail", action="reject", enabled=False))]
    )
    assert set(rules.by_stage) == {"message"}


def test_a_reject_ends_the_stage_and_carries_its_reply():
    text = rule("tls", action="reject", code=554, enhanced="5.7.0", text="No") + rule("true", name="later")
    found = ruling(text, tls=True)
    assert (found.action, found.code, found.enhanced, found.text) == ("reject", 554, "5.7.0", "No")
    assert [step.rule for step in found.trace] == ["it"]
    assert found.tags == ()


def test_an_accept_ends_the_stage_and_keeps_what_came_before():
    text = (
        rule("true", name="a", action="quarantine")
        + rule("tls", name="b", action="accept")
        + rule("true", name="c", action="reject")
    )
    assert ruling(text, tls=True).action == "quarantine"
    assert ruling(text, tls=False).action == "reject"


def test_tags_and_fields_add_up_each_once_in_order():
    text = (
        rule("true", name="a", keyword="A", header="X-A: 1")
        + rule("true", name="b", keyword="B")
        + rule("true", name="c", keyword="A", header="X-A: 1")
    )
    found = ruling(text)
    assert (found.action, found.tags, found.headers) == ("accept", ("A", "B"), (("X-A", "1"),))


def test_a_rule_that_stops_hides_the_ones_behind_it():
    text = rule("true", name="a", keyword="A", stop=True) + rule("true", name="b", keyword="B")
    assert ruling(text).tags == ("A",)


def test_the_first_redirect_wins_and_the_second_says_so():
    text = rule("true", name="a", action="redirect", target="a@x.example") + rule(
        "true", name="b", action="redirect", target="b@x.example"
    )
    found = ruling(text)
    assert found.redirect == "a@x.example"
    assert "without effect" in found.trace[1].effect


def test_a_disabled_rule_is_never_asked():
    assert ruling(rule("true", action="reject", enabled=False)) == Ruling()


def test_an_absent_fact_defers_what_keeps_mail_out():
    rules = compile_rules([("a", rule("spf == 'fail'", action="reject"))])
    given_facts = facts("message")
    del given_facts["spf"]
    found = judge(rules, "message", given_facts)
    assert (found.action, found.code, found.enhanced) == ("defer", 451, "4.3.5")
    assert found.trace[0].matched is False
    assert found.trace[0].effect == "error: spf is absent: deferred"


def test_an_absent_fact_skips_a_tag_and_the_trace_says_so():
    rules = compile_rules([("a", rule("subject.contains('x')"))])
    given_facts = facts("message")
    del given_facts["subject"]
    found = judge(rules, "message", given_facts)
    assert found.action == "accept"
    assert [step.effect for step in found.trace] == ["error: subject is absent: skipped"]


def test_what_another_test_rules_out_needs_no_absent_fact():
    rules = compile_rules([("a", rule("spf == 'fail' && source == 'mx'", action="reject"))])
    given_facts = facts("message", source="local")
    del given_facts["spf"]
    assert judge(rules, "message", given_facts) == Ruling()


@pytest.mark.parametrize("odd", [None, b"fail", 1, ["fail"], {"fail"}])
def test_a_fact_of_another_type_is_an_error_and_no_traceback(odd):
    found = ruling(rule("spf == 'fail'", action="reject"), spf=odd)
    assert "spf is of another type" in found.trace[0].effect


def test_a_choice_needs_no_absent_fact_where_another_test_of_it_holds():
    rules = compile_rules([("a", rule("spf == 'fail' || tls", keyword="K"))])
    assert rules.rules[0].program is None
    given_facts = facts("message", tls=True)
    del given_facts["spf"]
    assert judge(rules, "message", given_facts).tags == ("K",)
    ruling = judge(rules, "message", {**given_facts, "tls": False})
    assert ruling.tags == ()
    assert "spf is absent" in ruling.trace[0].effect


def test_a_rule_is_looked_up_by_what_most_mail_does_not_have():
    text = rule("source == 'mx' && header_from_fields == 1 && helo_is_ours")
    index = compile_rules([("a", text)]).by_stage["message"]
    assert index.by_fact == {"helo_is_ours": {True: (0,)}}


def test_an_overflow_is_an_error_of_the_rule():
    found = ruling(rule("size_octets * 9223372036854775807 > 1", action="reject"), size_octets=3)
    assert found.action == "defer"
    assert "OverflowError" in found.trace[0].effect


def test_a_text_that_cel_cannot_hold_is_an_error_of_the_rule():
    found = ruling(rule("subject.contains('x')"), subject="\udc80")
    assert found.trace[0].effect.startswith("error: ValueError")


def test_values_are_computed_only_when_a_rule_asks_for_them():
    class Lazy(dict):
        def __missing__(self, name):
            asked.append(name)
            return 3

    asked = []
    given_facts = Lazy(facts("message", source="mx"))
    del given_facts["attachments"]
    rules = compile_rules([("a", rule("source == 'mx' && attachments > 2"))])
    assert judge(rules, "message", given_facts).tags == ("Hit",)
    given_facts["source"] = "local"
    assert judge(rules, "message", given_facts).tags == ()
    assert asked == ["attachments"]


def test_ask_all_tells_of_every_rule_of_the_stage():
    text = (
        rule("tls", name="a", action="reject")
        + rule("spf == 'x'", name="b")
        + rule("true", name="c", enabled=False)
        + rule("true", name="d", stage="deliver")
    )
    steps = ask_all(compile_rules([("a", text)]), "message", facts("message", tls=True))
    assert [(step.rule, step.matched, step.effect) for step in steps] == [
        ("a", True, "reject"),
        ("b", False, ""),
        ("c", False, "disabled, would match"),
    ]


def test_an_empty_ruling_explains_itself():
    assert explain(Ruling()) == ["accept", "  no rule matched"]


TERMS = st.sampled_from(
    [
        "source == 'mx'",
        "'mx' != source",
        "spf in ['fail', 'softfail']",
        "!(spf in ['fail'])",
        "tls",
        "!tls",
        "!!tls",
        "tls == false",
        "tls != true",
        "'x.example' in dkim",
        "!('x.example' in dkim)",
        "size_octets > 2",
        "size_octets == 3",
        "!(size_octets != 3)",
        "subject.contains('a')",
        "(tls || spf == 'fail')",
        "(tls || spf == 'fail' || size_octets == 2)",
        "(!tls || 'x.example' in dkim)",
        "(size_octets > 2 || tls)",
        "!(tls || spf == 'fail')",
        "dkim.exists(d, d == sender_domain)",
        "false",
    ]
)
CONDITIONS = st.lists(TERMS, min_size=1, max_size=4).map(" && ".join)
GIVEN = st.fixed_dictionaries(
    {
        "source": st.sampled_from(["mx", "api"]),
        "spf": st.sampled_from(["fail", "pass", "softfail"]),
        "tls": st.booleans(),
        "dkim": st.lists(st.sampled_from(["x.example", "y.example"]), max_size=2),
        "sender_domain": st.sampled_from(["x.example", ""]),
        "size_octets": st.integers(0, 4),
        "subject": st.sampled_from(["", "abc"]),
    }
)


@given(st.lists(CONDITIONS, min_size=1, max_size=12), GIVEN)
def test_index_and_plain_tests_agree_with_cel_alone(conditions, values):
    text = "".join(rule(when, name=f"r{at}", keyword=f"K{at}") for at, when in enumerate(conditions))
    rules = compile_rules([("a", text)])
    given_facts = facts("message", **values)
    context = library.context(given_facts)
    wanted = [one.keyword for one in rules.rules if library.program(one.canonical).execute(context)]
    found = judge(rules, "message", given_facts)
    assert list(found.tags) == wanted
    assert [step.matched for step in ask_all(rules, "message", given_facts)] == [
        one.keyword in wanted for one in rules.rules
    ]
    position = {f"r{at}": at for at in range(len(conditions))}
    order = [position[step.rule] for step in found.trace]
    assert order == sorted(order)


def test_of_many_rules_on_one_fact_only_those_with_its_value_are_asked():
    text = "".join(
        rule(f"source == 'mx' && sender_domain == 'd{at}.example'", name=f"r{at}", keyword=f"K{at}")
        for at in range(200)
    )
    index = compile_rules([("a", text)]).by_stage["message"]
    assert index.always == ()
    assert index.by_fact["sender_domain"]["d7.example"] == (7,)
    assert set(index.by_fact) == {"sender_domain"}
