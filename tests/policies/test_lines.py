"""Where keys stand in a TOML document."""

import tomllib

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.lines import positions

DOCUMENT = '''\
# a comment with key = 1
top = 1
[server]   # [not] a = table
hostname = "a#b = c" # said
"quoted key" = 'lit'
a.b . "c.d" = true
text = """
[no.table]
no_key = "x" \\"""
"""
literal = \'\'\'one line ''still''\'\'\'
when = 1979-05-27 07:32:00
numbers = [
  1, # one
  [2, "]"],
  { x = 1, y.z = 2 },
]
[[rule]]
name = "first"
[rule.sub]
k = 0x1F
[[rule]]
name = "second"
  [[rule.deep]]
  q = +1e3
[server.more]
z = -inf
'''


def test_keys_are_found_in_tables_dotted_quoted_arrays_and_inline_tables():
    keys = positions(DOCUMENT).keys
    tomllib.loads(DOCUMENT)
    expected = {
        ("top",): 2,
        ("server",): 3,
        ("server", "hostname"): 4,
        ("server", "quoted key"): 5,
        ("server", "a"): 6,
        ("server", "a", "b", "c.d"): 6,
        ("server", "text"): 7,
        ("server", "literal"): 11,
        ("server", "when"): 12,
        ("server", "numbers"): 13,
        ("server", "numbers", 0): 14,
        ("server", "numbers", 1, 1): 15,
        ("server", "numbers", 2, "x"): 16,
        ("server", "numbers", 2, "y", "z"): 16,
        ("rule",): 18,
        ("rule", 0, "name"): 19,
        ("rule", 0, "sub", "k"): 21,
        ("rule", 1, "name"): 23,
        ("rule", 1, "deep", 0, "q"): 25,
        ("server", "more", "z"): 27,
    }
    assert {path: keys.get(path) for path in expected} == expected
    assert ("no_key",) not in keys
    assert ("server", "no_key") not in keys


def test_a_text_begins_behind_the_line_end_that_toml_drops():
    texts = positions("a = '''\nx'''\nb = '''x\n'''\nc = 'x'\n").texts
    assert texts == {("a",): 2, ("b",): 3, ("c",): 5}


def paths(value, before=()):
    """Every path that tomllib's own result has."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*before, key)
        yield from paths(inner, (*before, key))


KEYS = st.sampled_from(["a", "b-1", '"q r"', "'s'", "a.b", "x . y", '"\\u00e9"'])
VALUES = st.recursive(
    st.sampled_from(
        [
            "1",
            "'t # ['",
            '"\\"]"',
            "true",
            '"""a\nb = 1\n"""',
            "'''\n[c]\n'''",
            "1.5e3",
            "2020-01-01",
            '""""q"""',
        ]
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[\n # c\n" + ",\n".join(items) + "]"),
        st.lists(inner, max_size=2).map(
            lambda items: "{" + ", ".join(f"k{at} = {item}" for at, item in enumerate(items)) + "}"
        ),
    ),
    max_leaves=5,
)
LINES = st.lists(
    st.one_of(
        st.tuples(KEYS, VALUES).map(lambda pair: f"{pair[0]} = {pair[1]} # c"),
        KEYS.map(lambda key: f"[{key}]"),
        KEYS.map(lambda key: f"[[ {key} ]]"),
        st.just("  # nothing = 1"),
    ),
    max_size=8,
)


@given(LINES)
@settings(max_examples=300)
def test_every_key_of_an_accepted_document_has_a_line_that_names_it(lines):
    text = "\n".join(lines) + "\n"
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    keys = positions(text).keys
    assert set(paths(document)) == set(keys)
    assert all(1 <= line <= text.count("\n") for line in keys.values())
