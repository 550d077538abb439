"""The shipped rules and the generated page."""

from pathlib import Path

from policies.compile import KEYS, compile_rules
from policies.facts import FACTS, SERVICES
from policies.reference import page
from policies.rules import ACTION_MEANINGS, ACTION_STAGES, Action

ROOT = Path(__file__).parent.parent.parent


def shipped():
    return compile_rules(
        [(path.name, path.read_text("utf-8")) for path in sorted((ROOT / "conf/policies").glob("*.toml"))],
        services=SERVICES,
    )


def test_the_page_is_current():
    assert (ROOT / "docs" / "policies.md").read_text("utf-8") == page(), "run python -m server.config"


def test_the_page_names_every_fact_action_and_key():
    text = page()
    for name in [*FACTS, *KEYS, *(action.value for action in Action)]:
        assert f"| `{name}` |" in text
    assert set(ACTION_MEANINGS) == set(ACTION_STAGES) == set(Action)


def test_the_rule_in_the_introduction_compiles():
    example = page().partition("```toml\n")[2].partition("```")[0]
    assert compile_rules([("page", example)]).rules[0].name == "invoices"


def test_every_shipped_rule_says_why_it_is_there():
    rules = shipped().rules
    assert rules
    assert all(rule.description for rule in rules)
    unless_wanted = {
        "dmarc-temporary",
        "junked-often",
        "rspamd-later",
        "nameless-client",
        "unknown-helo",
        "greylisted",
    }
    assert all(rule.name in unless_wanted or rule.enabled for rule in rules)


def test_shipped_rules_ask_cel_for_no_list():
    # A list costs CEL a microsecond an item; plain membership costs it nothing.
    lists = {"recipients", "header_names", "dkim"}
    assert not any(lists & set(rule.program_facts) for rule in shipped().rules)
