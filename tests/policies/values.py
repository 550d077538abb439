"""Facts for the tests of rules: every fact of a stage, empty unless given."""

from policies.facts import Kind, facts_at

EMPTY = {Kind.STRING: "", Kind.INT: 0, Kind.BOOL: False, Kind.STRINGS: []}


def facts(stage, **given):
    """All facts of a stage with their empty values, and those that are given."""
    return {fact.name: EMPTY[fact.kind] for fact in facts_at(stage)} | given


def rule(when, **keys):
    """One rule in TOML; a tag at message unless the keys say otherwise."""
    table = {"name": "it", "stage": "message", "action": "tag", "keyword": "Hit"} | keys
    if "action" in keys and keys["action"] not in {"tag", "quarantine"} and "keyword" not in keys:
        del table["keyword"]
    lines = ["[[rule]]", f"when = '''{when}'''"]
    for key, value in table.items():
        if isinstance(value, bool):
            value = "true" if value else "false"
        elif not isinstance(value, int):
            value = repr(value).replace("'", '"')
        lines.append(f"{key} = {value}")
    return "\n".join(lines) + "\n"
