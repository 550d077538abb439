"""MTA-STS records and policies: what is read, what is refused, which hosts a policy names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.transport.mtasts import (
    MAX_AGE_SECONDS,
    MAX_POLICY_OCTETS,
    Mode,
    Policy,
    PolicySyntax,
    matches,
    read_policy,
    read_record,
)

GOOD = "version: STSv1\r\nmode: enforce\r\nmx: mail.example.com\r\nmx: *.example.net\r\nmax_age: 604800\r\n"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([b"v=STSv1; id=20160831085700Z;"], "20160831085700Z"),
        ([b"v=STSv1; id=20160831085700Z"], "20160831085700Z"),
        ([b"v=STSv1;id=a1"], "a1"),
        ([b"v=STSv1 ; id = a1 ; "], "a1"),
        ([b"v=STSv1; id=a1; other=x y"], "a1"),
        ([b"v=spf1 -all", b"v=STSv1; id=a1"], "a1"),
        ([b"v=STSv1; id=a1", b"v=STSv1; id=a2"], None),
        ([b"v=STSv1; id=a1", b"v=STSv1"], None),
        ([b"v=STSv12; id=a1"], None),
        ([b" v=STSv1; id=a1"], None),
        ([b"V=STSv1; id=a1"], None),
        ([b"v=STSv1; id=a1; id=a2"], None),
        ([b"v=STSv1; id="], None),
        ([b"v=STSv1; id=" + b"a" * 33], None),
        ([b"v=STSv1; id=a-1"], None),
        ([b"v=STSv1; id=a1; junk"], None),
        ([b"v=STSv1; id=\xc3\xa4"], None),
        ([b"v=STSv1"], None),
        ([], None),
    ],
)
def test_record_names_one_id_or_there_is_none(texts: list[bytes], expected: str | None) -> None:
    assert read_record([(text,) for text in texts]) == expected


def test_record_in_several_strings_is_one() -> None:
    assert read_record([(b"v=STSv1; i", b"d=a1;")]) == "a1"


@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_policy_is_read_with_either_line_end(end: str) -> None:
    expected = Policy(Mode.ENFORCE, 604800, ("mail.example.com", "*.example.net"))
    assert read_policy(GOOD.replace("\r\n", end).encode()) == expected
    assert read_policy(GOOD.replace("\r\n", end).strip().encode()) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("version: STSv1\nmode: none\nmax_age: 0\n", Policy(Mode.NONE, 0)),
        ("version:STSv1\nmode:testing\nmx:A.Example\nmax_age:1", Policy(Mode.TESTING, 1, ("a.example",))),
        (
            GOOD + "future_key: any thing: at all\n",
            Policy(Mode.ENFORCE, 604800, ("mail.example.com", "*.example.net")),
        ),
        (GOOD + "mode: none\n", Policy(Mode.ENFORCE, 604800, ("mail.example.com", "*.example.net"))),
        ("version: STSv1\nmode: none\nmax_age: 31557600\n", Policy(Mode.NONE, MAX_AGE_SECONDS)),
        ("\nversion: STSv1\n\nmode: none\nmax_age: 5\n \n", Policy(Mode.NONE, 5)),
    ],
)
def test_policy_is_read(text: str, expected: Policy) -> None:
    assert read_policy(text.encode()) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mode: none\nmax_age: 5\n",
        "version: STSv2\nmode: none\nmax_age: 5\n",
        "version: STSv1\nmax_age: 5\n",
        "version: STSv1\nmode: Enforce\nmx: a.b\nmax_age: 5\n",
        "version: STSv1\nmode: enforce\nmax_age: 5\n",
        "version: STSv1\nmode: testing\nmax_age: 5\n",
        "version: STSv1\nmode: none\n",
        "version: STSv1\nmode: none\nmax_age: 31557601\n",
        "version: STSv1\nmode: none\nmax_age: -1\n",
        "version: STSv1\nmode: none\nmax_age: 1e3\n",
        "version: STSv1\nmode: none\nmax_age: \u0661\n",
        "version: STSv1\nmode: enforce\nmx: *.com\nmax_age: 5\n",
        "version: STSv1\nmode: enforce\nmx: *\nmax_age: 5\n",
        "version: STSv1\nmode: enforce\nmx: a.*.com\nmax_age: 5\n",
        "version: STSv1\nmode: enforce\nmx: *.*.com\nmax_age: 5\n",
        "version: STSv1\nmode: enforce\nmx: a b.com\nmax_age: 5\n",
        "version: STSv1\nmode: enforce\nmx: .b.com\nmax_age: 5\n",
        "version: STSv1\nmode: enforce\nmx: b.com.\nmax_age: 5\n",
        "version: STSv1\nmode: none\nmax_age: 5\nno key\n",
        "version: STSv1\nmode: none\nmax_age: 5\nempty:\n",
        "version: STSv1\rmode: none\rmax_age: 5\r",
        "<html><body>version: STSv1</body></html>",
        GOOD + "x" * MAX_POLICY_OCTETS,
    ],
)
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(PolicySyntax):
        read_policy(text.encode())


@given(st.binary(max_size=400))
def test_any_octets_are_a_policy_or_refused(octets: bytes) -> None:
    try:
        read_policy(octets)
    except PolicySyntax:
        return
    raise AssertionError("chance made a policy")


LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
NAME = st.lists(LABEL, min_size=2, max_size=4).map(".".join)
PATTERN = st.one_of(NAME, NAME.map("*.{}".format))


@given(
    st.sampled_from(list(Mode)), st.integers(0, MAX_AGE_SECONDS), st.lists(PATTERN, min_size=1, unique=True)
)
def test_what_is_written_is_read_again(mode: Mode, age: int, mx: list[str]) -> None:
    policy = Policy(mode, age, tuple(mx))
    assert read_policy(policy.text.encode()) == policy


@pytest.mark.parametrize(
    ("pattern", "host", "expected"),
    [
        ("mail.example.com", "mail.example.com", True),
        ("mail.example.com", "MAIL.example.com.", True),
        ("*.example.com", "mail.example.com", True),
        ("*.example.com", "a.mail.example.com", False),
        ("*.example.com", "example.com", False),
        ("mail.example.com", "xmail.example.com", False),
        ("mail.example.com", "a.mail.example.com", False),
    ],
)
def test_hosts_of_a_policy(pattern: str, host: str, expected: bool) -> None:
    assert matches(Policy(Mode.ENFORCE, 1, (pattern,)), host) is expected
