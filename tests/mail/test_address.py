import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.mail.address import (
    AddressSyntax,
    Mailbox,
    domain_of,
    literal_address,
    normalise,
    normalise_domain,
    parse_domain,
    parse_mailbox,
)

VALID = [
    ("a@b", "a", "b"),
    ("first.last@example.org", "first.last", "example.org"),
    ("!#$%&'*+-/=?^_`{|}~@example.org", "!#$%&'*+-/=?^_`{|}~", "example.org"),
    ("user+tag@EXAMPLE.Org", "user+tag", "EXAMPLE.Org"),
    ('"two words"@example.org', "two words", "example.org"),
    ('"a@b"@example.org', "a@b", "example.org"),
    ('"qu\\"ote"@example.org', 'qu"ote', "example.org"),
    ('""@example.org', "", "example.org"),
    ('"plain"@example.org', "plain", "example.org"),
    ("a@192.0.2.1", "a", "192.0.2.1"),
    ("a@[192.0.2.1]", "a", "[192.0.2.1]"),
    ("a@[IPv6:2001:db8::1]", "a", "[IPv6:2001:db8::1]"),
    ("a@[IPv6:::ffff:192.0.2.1]", "a", "[IPv6:::ffff:192.0.2.1]"),
    ("a@[x-tag:any@thing]", "a", "[x-tag:any@thing]"),
    ("a@xn--bcher-kva.example", "a", "xn--bcher-kva.example"),
    ("a@a-b--c.example", "a", "a-b--c.example"),
    ("x" * 64 + "@example.org", "x" * 64, "example.org"),
    ("a@" + "x" * 63 + ".org", "a", "x" * 63 + ".org"),
]

INVALID = [
    "", "a", "@", "a@", "@b", "a@b@c", "a..b@c", ".a@b", "a.@b", "a b@c", "a@b c", " a@b", "a@b ",
    "a@b.", "a@.b", "a@b..c", "a@-b", "a@b-", "a@b_c", "a@b/c", "a\x00@b", "a\r\n@b", "a@b\n", "a@b\x7f",
    '"a@b', 'a"b"@c', '"a"b@c', '"a\\"@b', '"a\nb"@c', '"a\\\nb"@c', "a(c)@b", "<a@b>", "a@<b>",
    "a@[192.0.2.256]", "a@[192.0.2.01]", "a@[192.0.2]", "a@[]", "a@[IPv6:]", "a@[IPv6:1:2]",
    "a@[ipv6:fe80::1%eth0]", "a@[192.0.2.1", "a@192.0.2.1]", "a@[x]", "a@[x-:y]", "a@[x:]", "a@[x:a\\b]",
    "x" * 65 + "@b", "a@" + "x" * 64, "a@" + ".".join(["x" * 60] * 5), "@route:a@b", "@a,@b:c@d",
    "a@b\x80", "a;b@c", "a,b@c", "a:b@c",
]  # fmt: skip

WIDE_VALID = [
    ("ü@example.org", "ü@example.org"),
    ("Ü@BÜCHER.example", "ü@xn--bcher-kva.example"),
    ("用户@例子.广告", "用户@xn--fsqu00a.xn--4rr70v"),
    ('"ü ü"@example.org', '"ü ü"@example.org'),
    ("u\u0308@example.org", "ü@example.org"),
    ("a@straße.example", "a@xn--strae-oqa.example"),
]

WIDE_INVALID = [
    "a@ex\u3002ample", "a@\u2100.org", "a@xn--ü.org", "a@-ü.org", "\u202ea@b", "a\u2028@b", "a\u0085@b",
    "a\udc80@b", '"a\udc80"@b', "a@ü\udc80", "ü" * 33 + "@b", "a@" + "ü" * 63 + ".org", "a\u3000b@c",
    "a@b\u200b.c", "a@\u2069b",
]  # fmt: skip


@pytest.mark.parametrize(("text", "local", "domain"), VALID)
@pytest.mark.parametrize("smtputf8", [False, True])
def test_ascii_mailboxes_are_read_with_and_without_smtputf8(text, local, domain, smtputf8):
    assert parse_mailbox(text, smtputf8=smtputf8) == Mailbox(local, domain)


@pytest.mark.parametrize("text", INVALID)
@pytest.mark.parametrize("smtputf8", [False, True])
def test_what_the_grammar_does_not_give_is_refused(text, smtputf8):
    with pytest.raises(AddressSyntax):
        parse_mailbox(text, smtputf8=smtputf8)


@pytest.mark.parametrize(("text", "normal"), WIDE_VALID)
def test_wide_mailboxes_need_smtputf8_and_have_a_normal_form(text, normal):
    with pytest.raises(AddressSyntax):
        parse_mailbox(text, smtputf8=False)
    assert parse_mailbox(text, smtputf8=True).normal == normal


@pytest.mark.parametrize("text", WIDE_INVALID)
def test_wide_mailboxes_with_controls_or_bad_labels_are_refused(text):
    with pytest.raises(AddressSyntax):
        parse_mailbox(text, smtputf8=True)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("User@Example.ORG", "user@example.org"),
        ('"user"@example.org', "user@example.org"),
        ('"u\\ser"@example.org', "user@example.org"),
        ("a@[IPv6:2001:DB8:0:0::1]", "a@[ipv6:2001:db8::1]"),
        ("a@bücher.example", "a@XN--BCHER-KVA.example"),
    ],
)
def test_equal_mailboxes_have_one_normal_form(one, other):
    assert normalise(one) == normalise(other)


def test_different_local_parts_stay_different():
    assert normalise("a.b@example.org") != normalise("ab@example.org")
    assert normalise("a+b@example.org") != normalise("a@example.org")


def test_length_counts_octets_and_not_characters():
    parse_mailbox("ü" * 32 + "@b", smtputf8=True)
    with pytest.raises(AddressSyntax):
        parse_mailbox("ü" * 32 + "x@b", smtputf8=True)


def test_path_of_256_octets_with_its_brackets_is_the_limit():
    longest = "a" * 64 + "@" + ".".join(["x" * 46] * 4) + ".x"
    assert len(longest) == 254
    parse_mailbox(longest, smtputf8=False)
    with pytest.raises(AddressSyntax):
        parse_mailbox(longest + "x", smtputf8=False)


@pytest.mark.parametrize("domain", ["example.org", "[192.0.2.1]", "[IPv6:::1]", "bücher.example"])
def test_domains_are_given_back_as_written(domain):
    assert parse_domain(domain, smtputf8=True) == domain


@pytest.mark.parametrize("domain", ["", "a b", "a.", "[", "[]", "a\n", "a" * 64, "a\x00", "é\n"])
def test_bad_domains_are_refused(domain):
    with pytest.raises(AddressSyntax):
        parse_domain(domain, smtputf8=True)


def test_domain_of_gives_the_queue_its_key():
    assert domain_of('"x@y"@BÜCHER.example') == "xn--bcher-kva.example"
    assert domain_of("a@[192.0.2.1]") == "[192.0.2.1]"


def test_literals_give_their_address_and_names_give_none():
    assert literal_address("[IPv6:2001:DB8::0]") == "2001:db8::"
    assert literal_address("[192.0.2.1]") == "192.0.2.1"
    assert literal_address("192.0.2.1") is None
    assert literal_address("[x:y]") is None
    assert normalise_domain("[X:Y]") == "[x:y]"


LOCALS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20) | st.text(max_size=12)


@given(LOCALS, st.from_regex(r"[A-Za-z0-9]{1,8}(\.[A-Za-z]{1,5}){0,2}", fullmatch=True))
def test_any_local_part_without_controls_survives_writing_and_reading(local, domain):
    mailbox = Mailbox(local, domain)
    try:
        read = parse_mailbox(str(mailbox), smtputf8=True)
    except AddressSyntax:
        # Too long in octets, or characters that no mailbox may hold.
        assert len(str(mailbox).encode("utf-8", "replace")) > 60 or not local.isprintable()
        return
    assert read == mailbox
    assert normalise(read.normal) == read.normal
