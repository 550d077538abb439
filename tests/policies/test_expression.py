"""The grammar of conditions: what is read, how it binds, what is refused and where."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import library
from policies.expression import MAX_CHARACTERS, MAX_DEPTH, ExpressionError, canonical, parse, quoted


def value(text, **facts):
    return library.program(text).execute(library.context(facts))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a && b || c && d", "((a && b) || (c && d))"),
        ("a || b || c", "(a || b || c)"),
        ("a && b && c", "(a && b && c)"),
        ("!a && b", "(!(a) && b)"),
        ("!(a && b)", "!((a && b))"),
        ("a == 'x' && b != 2", '((a == "x") && (b != 2))'),
        ("a + 2 * b - 3 > 4", "((a + (2 * b) - 3) > 4)"),
        ("a - (b - c)", "(a - (b - c))"),
        ("-5 < a", "(-5 < a)"),
        ("-a < 5", "(-(a) < 5)"),
        ("a in ['x', \"y\",]", '(a in ["x", "y"])'),
        ("'x' in a", '("x" in a)'),
        ("a.startsWith('x').size() == 1", '(a.startsWith("x").size() == 1)'),
        ("size(a) > 1", "(size(a) > 1)"),
        ("a.exists(x, x == 'y')", 'a.exists(x, (x == "y"))'),
        ("true // the rest is said, not done\n || false", "(true || false)"),
        ("007 == a", "(7 == a)"),
    ],
)
def test_conditions_bind_as_cel_does(text, expected):
    assert canonical(parse(text)) == expected


@pytest.mark.parametrize(
    ("text", "at", "word"),
    [
        ("", 0, "ends too early"),
        ("a &&", 4, "ends too early"),
        ("a & b", 2, "write &&"),
        ("a = b", 2, "write =="),
        ("a == 'x", 5, "not closed"),
        ("a == 1.5", 5, "no whole decimal number"),
        ("a == 0x1f", 5, "no whole decimal number"),
        ("a == 1u", 5, "no whole decimal number"),
        ("a == 9223372036854775808", 5, "64 bits"),
        ("a == -9223372036854775809", 6, "64 bits"),
        ("a ? b : c", 2, "ternary"),
        ("a / 2", 2, "division"),
        ("a % 2", 2, "remainders"),
        ("a[0] == 'x'", 1, "indexing"),
        ("{'a': 1}", 0, "maps"),
        ("a.b == 'x'", 2, "facts have no fields"),
        ("a.1", 2, "function's name is expected"),
        ("a == r'x'", 5, "raw texts"),
        ("a == b'x'", 5, "raw texts"),
        ("null == a", 0, "word of CEL's own"),
        ("(a || b", 7, "')' is expected"),
        ("a b", 2, "unexpected"),
        ("a == 'x' == b", 9, "do not chain"),
        ("a in [b]", 6, "texts or numbers only"),
        ("a == '\\q'", 6, "no escape"),
        ("a == '\\ud800'", 6, "no escape"),
        ("a == §", 5, "no meaning"),
    ],
)
def test_what_the_subset_leaves_out_is_refused_with_its_place(text, at, word):
    with pytest.raises(ExpressionError) as caught:
        parse(text)
    assert word in caught.value.message
    assert caught.value.at == at


def test_nesting_and_length_have_limits():
    parse("(" * MAX_DEPTH + "a" + ")" * MAX_DEPTH)
    for text in (
        "(" * 5000 + "a",
        "!" * 3000 + "a",
        "a" + ".size()" * 500,
        "size(" * 700 + "a",
        " " * MAX_CHARACTERS + "a",
        "a || " * 700 + "a",
    ):
        with pytest.raises(ExpressionError):
            parse(text)


def test_the_deepest_condition_allowed_compiles_in_the_library():
    for text in (
        "!(" * (MAX_DEPTH // 2) + "true" + ")" * (MAX_DEPTH // 2),
        "(" * MAX_DEPTH + "true" + ")" * MAX_DEPTH,
        "true && " * 200 + "true",
        "(true || false) && " * 60 + "true",
        "1 + " * 200 + "1 > 0",
    ):
        assert value(canonical(parse(text))) is True


@given(st.text())
def test_a_quoted_text_means_itself_to_both_parsers(text):
    literal = quoted(text)
    assert parse(literal).value == text
    assert value(literal) == text


@given(st.text(st.sampled_from("\\\"'abfnrtvxuU0123457?`qx é\U0001f600"), max_size=14))
def test_escapes_mean_the_same_to_both_parsers(body):
    literal = f'"{body}"'
    try:
        ours = parse(literal).value
    except (ExpressionError, AttributeError):
        return  # refused, or no single literal
    assert value(literal) == ours


WORDS = [
    "a",
    "b",
    "true",
    "1",
    "'x'",
    "[",
    "]",
    "(",
    ")",
    "&&",
    "||",
    "!",
    "==",
    "in",
    "-",
    ".",
    ",",
    "size",
    "?",
]


@given(st.lists(st.sampled_from(WORDS), max_size=25))
def test_any_row_of_tokens_is_read_or_refused_at_a_place_inside(words):
    text = " ".join(words)
    try:
        tree = parse(text)
    except ExpressionError as error:
        assert 0 <= error.at <= len(text)
    else:
        assert canonical(parse(canonical(tree))) == canonical(tree)


@given(st.text(max_size=200))
@settings(max_examples=200)
def test_any_text_is_read_or_refused(text):
    try:
        parse(text)
    except ExpressionError as error:
        assert 0 <= error.at <= len(text)


BOOLS = st.recursive(
    st.sampled_from(
        ["true", "false", "a", "b", "n > 1", "n == 2", "n - 1 < 1", "s == 'x'", "s in ['x','y']"]
    ),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["&&", "||"]), inner).map(" ".join),
        inner.map(lambda text: f"!({text})"),
        inner.map(lambda text: f"({text})"),
    ),
    max_leaves=8,
)


@given(BOOLS, st.booleans(), st.booleans(), st.integers(-2, 3), st.sampled_from(["x", "z", ""]))
def test_the_canonical_text_means_what_was_written(text, a, b, n, s):
    facts = {"a": a, "b": b, "n": n, "s": s}
    assert value(canonical(parse(text)), **facts) == value(text, **facts)
