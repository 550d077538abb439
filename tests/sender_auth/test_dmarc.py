"""DMARC evaluation by tables: records, tree walks, policies, alignment (RFC 9989)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.sender_auth import dmarc
from server.sender_auth.dmarc import Evaluation, Records, Unknown, choose, evaluate, parse, walk


def records(failed: tuple[str, ...] = (), /, **texts: str) -> Records:
    """Records by domain; '__' in a keyword is a dot."""
    found = {}
    for name, text in texts.items():
        record = parse(text)
        assert record is not None
        found[name.replace("__", ".")] = record
    return Records(found, frozenset(failed))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "v=spf1 -all",
        "v=DMARC2; p=none",
        "v=dmarc1; p=none",  # the value is case-sensitive
        " v=DMARC1; p=none",
        "p=none; v=DMARC1",
        "v=DMARC1 p=none",
        "v=DMARC1x; p=none",
        "v=DMARC1; p=none; x=" + "y" * 9000,
    ],
)
def test_what_does_not_begin_as_a_record_is_none(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    ("text", "policies"),
    [
        ("v=DMARC1; p=reject", ("reject", "reject", "reject")),
        ("V = DMARC1 ;p = Reject", ("reject", "reject", "reject")),
        ("v=DMARC1; p=reject; sp=none", ("reject", "none", "none")),
        ("v=DMARC1; p=none; np=reject", ("none", "none", "reject")),
        ("v=DMARC1; p=none; sp=quarantine; np=reject;", ("none", "quarantine", "reject")),
        ("v=DMARC1; pct=50; p=reject; x y; =; ;;; foo=bar", ("reject", "reject", "reject")),
        ("v=DMARC1; p=none; p=reject", ("none", "none", "none")),
        # 4.10.1: no valid p, or a bad sp or np: as p=none where reports are wanted, else nothing.
        ("v=DMARC1", ("", "", "")),
        ("v=DMARC1; p=", ("", "", "")),
        ("v=DMARC1; p=bogus", ("", "", "")),
        ("v=DMARC1; p=reject; sp=bogus", ("", "", "")),
        ("v=DMARC1; p=reject; np=", ("", "", "")),
        ("v=DMARC1; p=bogus; rua=mailto:a@example.com", ("none", "none", "none")),
        ("v=DMARC1; p=reject; sp=bogus; rua=mailto:a@example.com!10m", ("none", "none", "none")),
        ("v=DMARC1; rua=https://example.com/in", ("none", "none", "none")),
        ("v=DMARC1; rua=nonsense, mailto:a@example.com", ("none", "none", "none")),
        ("v=DMARC1; rua=nonsense", ("", "", "")),
        ("v=DMARC1; rua=mailto:nobody", ("", "", "")),
        ("v=DMARC1; rua=mailto:", ("", "", "")),
    ],
)
def test_policies_of_a_record(text: str, policies: tuple[str, str, str]) -> None:
    record = parse(text)
    assert record is not None
    assert (record.p, record.sp, record.np) == policies


@pytest.mark.parametrize(
    ("tags", "dkim", "spf", "psd", "testing"),
    [
        ("", False, False, "u", False),
        ("adkim=s; aspf=S; psd=Y; t=y", True, True, "y", True),
        ("adkim=r; aspf=r; psd=n; t=n", False, False, "n", False),
        ("adkim=x; aspf=; psd=maybe; t=yes", False, False, "u", False),
    ],
)
def test_modes_of_a_record(tags: str, dkim: bool, spf: bool, psd: str, testing: bool) -> None:
    record = parse(f"v=DMARC1; p=none; {tags}")
    assert record is not None
    assert (record.is_dkim_strict, record.is_spf_strict) == (dkim, spf)
    assert (record.psd, record.is_testing) == (psd, testing)


def test_several_records_are_as_none() -> None:
    assert choose(["v=DMARC1; p=none", "v=DMARC1; p=reject"]) is None
    assert choose(["v=DMARC1; p=none", "v=DMARC1"]) is None
    assert choose(["google-site-verification=x", "v=DMARC1; p=reject"]) == parse("v=DMARC1; p=reject")
    assert choose([]) is None


@pytest.mark.parametrize(
    ("domain", "names"),
    [
        ("com", ["com"]),
        ("a.mail.example.com", ["a.mail.example.com", "mail.example.com", "example.com", "com"]),
        (
            "a.b.c.d.e.f.g.h.i.j.mail.example.com",  # 4.10's own example
            [
                "a.b.c.d.e.f.g.h.i.j.mail.example.com",
                "g.h.i.j.mail.example.com",
                "h.i.j.mail.example.com",
                "i.j.mail.example.com",
                "j.mail.example.com",
                "mail.example.com",
                "example.com",
                "com",
            ],
        ),
    ],
)
def test_walk_asks_for(domain: str, names: list[str]) -> None:
    assert walk(domain) == names


@pytest.mark.parametrize(("labels", "queries"), [(7, 7), (8, 8), (9, 8), (120, 8)])
def test_walk_never_asks_more_than_eight_names(labels: int, queries: int) -> None:
    names = walk(".".join(["a"] * labels))
    assert len(names) == queries
    assert names[1].count(".") == min(labels - 2, 6)


NONE = "v=DMARC1; p=none"


@pytest.mark.parametrize(
    ("domain", "found", "organization"),
    [
        # The examples of 4.10.2.
        ("a.mail.example.com", {"mail__example__com": NONE, "example__com": NONE}, "example.com"),
        (
            "a.mail.example.com",
            {"mail__example__com": NONE + "; psd=n", "example__com": NONE},
            "mail.example.com",
        ),
        ("a.mail.example.com", {"com": NONE + "; psd=y"}, "example.com"),
        # None found: the domain itself.
        ("a.mail.example.com", {}, "a.mail.example.com"),
        # A suffix that asks for its own mail is its own organization.
        ("com", {"com": NONE + "; psd=y"}, "com"),
        ("bank.example", {"bank__example": NONE + "; psd=y", "example": NONE}, "bank.example"),
        ("example.com", {"example__com": NONE + "; psd=n", "com": NONE}, "example.com"),
        # The walk ends at psd=y, whatever lies above.
        ("a.b.bank.example", {"bank__example": NONE + "; psd=y", "example": NONE}, "b.bank.example"),
        ("a.b.example", {"a__b__example": NONE, "b__example": NONE, "example": NONE}, "example"),
    ],
)
def test_organizational_domain(domain: str, found: dict[str, str], organization: str) -> None:
    assert dmarc.organizational_domain(domain, records(**found)) == organization


@pytest.mark.parametrize(
    ("author", "found", "name"),
    [
        ("example.com", {"example__com": NONE}, "example.com"),
        ("a.example.com", {"a__example__com": NONE, "example__com": NONE}, "a.example.com"),
        ("b.a.example.com", {"a__example__com": NONE, "example__com": NONE}, "example.com"),
        ("a.example.com", {"com": NONE + "; psd=y"}, "com"),  # the suffix, since example.com has none
        ("a.example.com", {"example__com": NONE, "com": NONE + "; psd=y"}, "example.com"),
        ("a.example.com", {}, None),
    ],
)
def test_policy_discovery(author: str, found: dict[str, str], name: str | None) -> None:
    assert dmarc.applied(author, records(**found)) == name


SIMPLE = {"example__com": "v=DMARC1; p=reject", "signing__example__com": NONE}
BANK = {"bank__example": NONE + "; psd=y", "giant__bank__example": "v=DMARC1; p=reject"}


@pytest.mark.parametrize(
    ("author", "found", "spf", "dkim", "aligned"),
    [
        # Appendix B.4: simple, deep, and with a public suffix's record.
        ("example.com", SIMPLE, "example.com", (), "example.com"),
        ("example.com", SIMPLE, None, ("signing.example.com",), "signing.example.com"),
        ("a.b.c.d.e.f.g.h.i.j.k.example.com", SIMPLE, "example.com", (), "example.com"),
        (
            "a.b.c.d.e.f.g.h.i.j.k.example.com",
            SIMPLE,
            None,
            ("signing.example.com",),
            "signing.example.com",
        ),
        ("giant.bank.example", BANK, "mail.giant.bank.example", (), "mail.giant.bank.example"),
        ("giant.bank.example", BANK, None, ("mail.mega.bank.example",), ""),
        ("giant.bank.example", BANK, None, ("bank.example",), ""),
        # 4.4's table.
        ("news.example.com", SIMPLE, None, ("foo.example.com",), "foo.example.com"),
        ("news.example.com", SIMPLE, None, ("foo.example.net",), ""),
        ("example.com", SIMPLE, "evil-example.com", ("com", "example.com.evil.net"), ""),
        # Strict: the same domain and no other.
        ("example.com", {"example__com": NONE + "; adkim=s"}, None, ("a.example.com",), ""),
        ("example.com", {"example__com": NONE + "; aspf=s"}, "a.example.com", (), ""),
        ("example.com", {"example__com": NONE + "; aspf=s"}, None, ("a.example.com",), "a.example.com"),
        ("example.com", {"example__com": NONE + "; adkim=s; aspf=s"}, "example.com", (), "example.com"),
        # Any one of several signatures does.
        ("example.com", SIMPLE, "x.net", ("y.net", "b.example.com"), "b.example.com"),
        # psd=n parts a subdomain from its parent.
        (
            "a.example.com",
            {"a__example__com": NONE + "; psd=n", "example__com": NONE},
            "example.com",
            (),
            "",
        ),
    ],
)
def test_alignment(
    author: str, found: dict[str, str], spf: str | None, dkim: tuple[str, ...], aligned: str
) -> None:
    evaluation = evaluate(author, records(**found), spf=spf, dkim=dkim, exists=True)
    assert (evaluation.result, evaluation.aligned) == ("pass" if aligned else "fail", aligned)


@pytest.mark.parametrize(
    ("author", "text", "exists", "policy"),
    [
        ("example.com", "p=reject; sp=none; np=none", True, "reject"),
        ("example.com", "p=reject; sp=none; np=none", False, "reject"),  # the record's own domain
        ("a.example.com", "p=reject; sp=quarantine; np=none", True, "quarantine"),
        ("a.example.com", "p=none; sp=quarantine; np=reject", False, "reject"),
        ("a.example.com", "p=none; np=reject", True, "none"),
        ("a.example.com", "p=none; sp=reject", False, "reject"),
        ("a.example.com", "p=quarantine", False, "quarantine"),
        ("example.com", "p=reject; t=y", True, "quarantine"),
        ("example.com", "p=quarantine; t=y", True, "none"),
        ("example.com", "p=none; t=y", True, "none"),
        ("a.example.com", "p=none; np=reject; t=y", False, "quarantine"),
        ("example.com", "p=reject; pct=0", True, "reject"),
    ],
)
def test_policy_asked_for(author: str, text: str, exists: bool, policy: str) -> None:
    found = records(example__com=f"v=DMARC1; {text}")
    evaluation = evaluate(author, found, spf=None, dkim=(), exists=exists)
    assert evaluation == Evaluation(author, "fail", policy, "example.com")


def test_policy_of_a_public_suffix_reaches_organizations_without_a_record() -> None:
    found = records(bank__example="v=DMARC1; p=none; sp=quarantine; np=reject; psd=y")
    for exists, policy in ((True, "quarantine"), (False, "reject")):
        evaluation = evaluate("a.bank.example", found, spf=None, dkim=(), exists=exists)
        assert (evaluation.policy, evaluation.record_domain) == (policy, "bank.example")


def test_without_a_record_there_is_no_result_to_have() -> None:
    evaluation = evaluate("example.com", Records({}), spf="example.com", dkim=("example.com",), exists=True)
    assert evaluation == Evaluation("example.com", "none")


def test_record_without_a_usable_policy_is_permerror_and_asks_for_nothing() -> None:
    found = records(a__example__com="v=DMARC1; p=rejct", example__com="v=DMARC1; p=reject")
    evaluation = evaluate("a.example.com", found, spf="example.com", dkim=(), exists=True)
    assert (evaluation.result, evaluation.policy) == ("permerror", "")


@pytest.mark.parametrize(
    ("author", "failed", "spf", "result"),
    [
        ("a.example.com", ("a.example.com",), "a.example.com", "temperror"),
        ("a.example.com", ("com",), "a.example.com", "temperror"),  # may be a public suffix's
        ("example.com", ("com",), "example.com", "pass"),  # the same domain needs no walk
        ("example.com", ("com",), "b.example.com", "temperror"),
        ("example.com", ("b.example.com",), "b.example.com", "temperror"),
        ("example.com", ("b.example.net",), "b.example.net", "fail"),  # no matter for this author
    ],
)
def test_failed_lookup_matters_where_the_answer_depends_on_it(
    author: str, failed: tuple[str, ...], spf: str, result: str
) -> None:
    found = records(failed, example__com="v=DMARC1; p=reject")
    evaluation = evaluate(author, found, spf=spf, dkim=(), exists=True)
    assert evaluation.result == result
    assert bool(evaluation.reason) == (result == "temperror")


def test_unknown_existence_matters_where_sp_and_np_differ() -> None:
    differs = records(example__com="v=DMARC1; p=none; np=reject")
    same = records(example__com="v=DMARC1; p=reject")
    assert dmarc.depends_on_existence("a.example.com", differs)
    assert not dmarc.depends_on_existence("a.example.com", same)
    assert not dmarc.depends_on_existence("example.com", differs)
    assert evaluate("a.example.com", differs, spf=None, dkim=(), exists=None).result == "temperror"
    assert evaluate("a.example.com", same, spf=None, dkim=(), exists=None).result == "fail"


def test_strictest_failing_policy_of_several_authors_counts() -> None:
    results = {
        "pass": Evaluation("a.example", "pass", "reject", "a.example", "a.example"),
        "none": Evaluation("b.example", "none"),
        "temperror": Evaluation("c.example", "temperror"),
        "permerror": Evaluation("d.example", "permerror"),
        "fail none": Evaluation("e.example", "fail", "none", "e.example"),
        "fail quarantine": Evaluation("f.example", "fail", "quarantine", "f.example"),
        "fail reject": Evaluation("g.example", "fail", "reject", "g.example"),
    }
    order = ["pass", "none", "permerror", "temperror", "fail none", "fail quarantine", "fail reject"]
    for position in range(1, len(order) + 1):
        given = [results[name] for name in order[:position]]
        assert dmarc.combine(given) == results[order[position - 1]]
        assert dmarc.combine(given[::-1]) == results[order[position - 1]]


labels = st.lists(st.sampled_from("abc"), min_size=1, max_size=11).map(".".join)
tags = st.sampled_from(
    [NONE, NONE + "; psd=y", NONE + "; psd=n", "v=DMARC1; p=x", "v=DMARC1; p=reject; adkim=s"]
)


@settings(max_examples=500, deadline=None)
@given(labels, labels, st.dictionaries(labels, tags, max_size=6), st.sets(labels, max_size=3))
def test_evaluation_is_sound(author: str, other: str, texts: dict[str, str], failed: set[str]) -> None:
    parsed = {name: record for name, text in texts.items() if (record := parse(text)) is not None}
    known = Records(parsed, failed - parsed.keys())
    evaluation = evaluate(author, known, spf=other, dkim=(), exists=True)
    try:
        organization = dmarc.organizational_domain(author, known)
        assert author == organization or author.endswith("." + organization)
    except Unknown:
        organization = None
    if evaluation.result == "pass" and author != other:
        assert organization is not None
        assert other == organization or other.endswith("." + organization)
        assert dmarc.may_be_aligned(author, other, known)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60).map(lambda text: "v=DMARC1;" + text))
def test_no_record_makes_parsing_raise(text: str) -> None:
    assert parse(text) is not None
