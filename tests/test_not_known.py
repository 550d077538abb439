"""What replay has to take as none, said by name and only where a rule asks for it."""

from policies.compile import compile_rules
from policies.facts import DEFAULT_LIMITS
from server.trial import not_known

RULES = """
[[list]]
name = "feed"
kind = "networks"
dns = "feed.example"

[[rule]]
name = "a"
stage = "message"
when = 'correspondent_unwanted && subject == "x"'
action = "reject"

[[rule]]
name = "b"
stage = "helo"
when = 'helo_status == "fail" && client_ip.in_list("feed")'
action = "reject"

[[rule]]
name = "c"
stage = "submit"
when = 'sent_last_hour > 5'
action = "reject"
"""
PLAIN = """
[[rule]]
name = "p"
stage = "message"
when = 'subject == "x"'
action = "reject"
"""


def compiled(text: str):
    return compile_rules([("rules.toml", text)], DEFAULT_LIMITS)


def test_facts_and_lists_that_are_not_kept_are_named_where_a_rule_asks():
    assert not_known(compiled(PLAIN), compiled(RULES)) == [
        "correspondent_unwanted",
        "helo_status",
        'list "feed"',
    ]
    assert not_known(compiled(PLAIN)) == []
