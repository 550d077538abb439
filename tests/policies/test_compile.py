"""Rule files: what is a rule, and what every mistake is told as."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.compile import MAX_RULES, PolicyError, compile_rules
from policies.rules import Action, OnError
from tests.policies.values import rule


def problems(text, path="a.toml"):
    with pytest.raises(PolicyError) as caught:
        compile_rules([(path, text)])
    return [str(problem) for problem in caught.value.problems]


def test_a_rule_with_all_keys_is_read():
    (made,) = compile_rules(
        [
            (
                "a.toml",
                rule(
                    "tls",
                    action="quarantine",
                    keyword="$Odd",
                    header="X-Odd: yes",
                    stop=True,
                    enabled=False,
                    description="d",
                    on_error="skip",
                ),
            )
        ]
    ).rules
    assert (made.name, made.stages, made.action) == ("it", ("message",), Action.QUARANTINE)
    assert (made.keyword, made.header, made.stop, made.enabled) == ("$Odd", ("X-Odd", "yes"), True, False)
    assert (made.place, made.when, made.on_error) == ("a.toml:3", "tls", OnError.SKIP)


def test_refusals_have_default_replies_and_always_stop():
    rejecting, deferring = compile_rules(
        [("a", rule("tls", action="reject") + rule("tls", name="two", action="defer"))]
    ).rules
    assert (rejecting.code, rejecting.enhanced, rejecting.stop) == (550, "5.7.1", True)
    assert (deferring.code, deferring.enhanced, deferring.stop) == (451, "4.7.1", True)


def test_what_keeps_mail_out_defers_on_error_and_what_lets_in_skips():
    def on_error(**keys):
        return compile_rules([("a", rule("tls", **keys))]).rules[0].on_error

    assert on_error(action="reject") is OnError.DEFER
    assert on_error(action="quarantine") is OnError.DEFER
    assert on_error(action="accept") is OnError.SKIP
    assert on_error(action="tag") is OnError.SKIP
    assert on_error(action="reject", on_error="skip") is OnError.SKIP
    bounce = rule("notice == 'delay'", action="reject", stage="bounce")
    assert compile_rules([("a", bounce)]).rules[0].on_error is OnError.SKIP


@pytest.mark.parametrize(
    ("keys", "line", "word"),
    [
        ({"nmae": "x"}, 7, "nmae is unknown: did you mean name?"),
        ({"name": "Has Space"}, 3, "is no name"),
        ({"stage": "mesage"}, 4, "no stage mesage: did you mean message?"),
        ({"stage": ["message", "message"]}, 4, "each once"),
        ({"action": "bounce"}, 5, "no action bounce: there are accept, reject"),
        ({"action": "redirect"}, 0, "redirect needs target"),
        ({"action": "redirect", "target": "nobody"}, 6, "redirect needs target"),
        ({"action": "reject", "code": 451}, 6, "451 is no reply code for reject"),
        ({"action": "reject", "code": 560}, 6, "560 is no reply code"),
        ({"action": "defer", "code": 421}, 6, "421 is no reply code for defer"),
        ({"action": "reject", "code": "550"}, 6, "code is a whole number"),
        ({"action": "reject", "enhanced": "4.7.1"}, 6, "is no enhanced status code for reject: 5.x.y"),
        ({"action": "reject", "text": "äöü"}, 6, "printable ASCII"),
        ({"action": "reject", "keyword": "X"}, 6, "keyword belongs to quarantine and tag, not to reject"),
        ({"action": "reject", "stop": False}, 6, "stop belongs to"),
        ({"keyword": "\\\\Seen"}, 6, "is no IMAP keyword"),
        ({"keyword": "two words"}, 6, "is no IMAP keyword"),
        ({"header": "X-Odd"}, 7, "written 'Name: value'"),
        ({"header": "From: a@b.example"}, 7, "the field From is not for rules"),
        ({"header": "Content-Type: text/plain"}, 7, "not for rules"),
        ({"header": "X-Odd: a\r\nBcc: x"}, 7, "printable ASCII"),
        ({"stop": "yes"}, 7, "stop is true or false"),
        ({"on_error": "accept"}, 7, "no accept: there are skip, defer"),
        ({"stage": "bounce", "when": "x"}, 0, "tag is not possible at stage bounce"),
    ],
)
def test_a_mistake_in_a_key_is_told_with_its_line(keys, line, word):
    keys.pop("when", None)
    found = problems(rule("true", **keys))
    matching = [problem for problem in found if word in problem]
    assert matching, found
    if line:
        assert matching[0].startswith(f"a.toml:{line}: ")


def test_a_mistake_in_a_condition_is_told_with_the_line_inside_it():
    text = """\
[[rule]]
name = "first"
stage = "mail"
when = '''
source == "mx"
  && dmarc == "fail"
  && sendr == "x"
'''
action = "reject"
"""
    assert problems(text) == [
        "a.toml:6: when, character 6: dmarc does not exist at stage mail: it exists at message, deliver",
        "a.toml:7: when, character 6: there is no fact sendr: did you mean sender?",
    ]


def test_all_mistakes_of_all_files_are_reported_at_once():
    with pytest.raises(PolicyError) as caught:
        compile_rules([("a", rule("nosuch")), ("b", "x = 1\n"), ("c", "[[rule]\n"), ("d", rule("true"))])
    assert [problem.file for problem in caught.value.problems] == ["a", "b", "c"]
    assert [problem.line for problem in caught.value.problems] == [2, 1, 1]


def test_a_name_that_is_used_twice_is_refused_with_both_places():
    with pytest.raises(PolicyError) as caught:
        compile_rules([("a", rule("true")), ("b", rule("true"))])
    assert str(caught.value) == "b:3: the name it is taken by the rule at a:3"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("rule = 1", "written as [[rule]]"),
        ("[rule]\nname='x'", "written as [[rule]]"),
        ("[[rules]]\nname='x'", "rules is unknown: write [[rule]]"),
        ("[[rule]]", "the rule lacks name"),
        ("x = " + "[" * 5000, "nested too deeply"),
        ("\x00", "not TOML"),
        ("#" * (1 << 21), "the file is over"),
    ],
)
def test_files_that_hold_no_rules_are_refused(text, word):
    assert any(word in problem for problem in problems(text))


def test_the_number_of_rules_has_a_limit():
    text = "".join(rule("true", name=f"r{number}", enabled=False) for number in range(MAX_RULES + 1))
    (found,) = problems(text)
    assert f"over {MAX_RULES} rules" in found


@given(st.text(max_size=60), st.text(max_size=20))
def test_any_text_is_a_rule_set_or_a_policy_error(text, value):
    for source in (text, f"[[rule]]\nwhen = {text}\nname = {value}", rule("true", description="d") + text):
        try:
            compile_rules([("a", source)])
        except PolicyError as error:
            assert error.problems
