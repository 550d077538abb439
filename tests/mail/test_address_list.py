import pytest

from server.mail.address_list import GROUP_END, MAX_ADDRESSES, HeaderAddress, parse_address_list


def one(display, local, domain, route=None):
    return HeaderAddress(display, route, local, domain)


def group(name):
    return HeaderAddress(None, None, name, None)


CASES = [
    (b"", []),
    (b" , ,, ", []),
    (b"a@b", [one(None, b"a", b"b")]),
    (b"<a@b>", [one(None, b"a", b"b")]),
    (b"From Real <u@d.org>", [one(b"From Real", b"u", b"d.org")]),
    (b'"Last, First" <u@d>', [one(b"Last, First", b"u", b"d")]),
    (b'"q \\" \\\\" <u@d>', [one(b'q " \\', b"u", b"d")]),
    (b"J. Q. Public <u@d>", [one(b"J. Q. Public", b"u", b"d")]),
    (b"Two  Spaces <u@d>", [one(b"Two Spaces", b"u", b"d")]),
    (b"=?utf-8?q?=C3=BC?= <u@d>", [one(b"=?utf-8?q?=C3=BC?=", b"u", b"d")]),
    (b"\xc3\xbc <\xc3\xbc@\xc3\xbc>", [one(b"\xc3\xbc", b"\xc3\xbc", b"\xc3\xbc")]),
    (b"u@d (Real Name)", [one(b"Real Name", b"u", b"d")]),
    (b"u@d (a (b) c)", [one(b"a (b) c", b"u", b"d")]),
    (b"Name <u@d> (comment)", [one(b"Name", b"u", b"d")]),
    (b"<u (c)@ (c) d.org>", [one(b"c", b"u", b"d.org")]),
    (b"a . b @ c . d", [one(None, b"a.b", b"c.d")]),
    (b'"a b"@c', [one(None, b"a b", b"c")]),
    (b"u@[192.0.2.1]", [one(None, b"u", b"[192.0.2.1]")]),
    (b"u@[x:a<b,c>]", [one(None, b"u", b"[x:a<b,c>]")]),
    (b"u@[open, a@b", [one(None, b"u", b"[open]"), one(None, b"a", b"b")]),
    (b"<@route:u@d>", [one(None, b"u", b"d", b"@route")]),
    (b"N <@a,@b:u@d>", [one(b"N", b"u", b"d", b"@a,@b")]),
    (b"a@b, c@d", [one(None, b"a", b"b"), one(None, b"c", b"d")]),
    (b"undisclosed-recipients:;", [group(b"undisclosed-recipients"), GROUP_END]),
    (
        b"group: g1@d1.org, g2@d2.org;, group2: g3@d3.org;",
        [
            group(b"group"),
            one(None, b"g1", b"d1.org"),
            one(None, b"g2", b"d2.org"),
            GROUP_END,
            group(b"group2"),
            one(None, b"g3", b"d3.org"),
            GROUP_END,
        ],
    ),
    (b"open: a@b", [group(b"open"), one(None, b"a", b"b"), GROUP_END]),
    (b"word", [one(None, b"word", b"")]),
    (b"Foo, Bar <x@y>", [one(None, b"Foo", b""), one(b"Bar", b"x", b"y")]),
    (b"Foo <>", [one(b"Foo", b"", b"")]),
    (b"@d", [one(None, b"", b"d")]),
    (b"<@d>", [one(None, b"", b"d")]),
    (b"Real Name a@b", [one(b"Real Name", b"a", b"b")]),
    (b"<a@b> <c@d>", [one(None, b"a", b"b"), one(None, b"c", b"d")]),
    (b"a@b c@d", [one(None, b"a", b"b"), one(None, b"c", b"d")]),
    (b"<a@b, X <c@d>", [one(None, b"a", b"b"), one(b"X", b"c", b"d")]),
    (b'"never closed <a@b>', [one(None, b"never closed <a@b>", b"")]),
    (b"(never closed a@b", []),
]


@pytest.mark.parametrize(("value", "expected"), CASES)
def test_lists_are_read_as_they_come(value, expected):
    assert parse_address_list(value) == expected


def test_a_second_address_is_never_hidden_behind_the_first():
    for value in (b"<a@good> <b@evil>", b"<a@good>, <b@evil>", b"a@good b@evil", b"x <a@good> y <b@evil>"):
        assert [a.domain for a in parse_address_list(value)] == [b"good", b"evil"]


def test_the_number_of_addresses_is_bounded_and_groups_are_closed():
    found = parse_address_list(b"g: " + b"a@b," * 20_000)
    assert len(found) <= MAX_ADDRESSES
    assert found[-1] == GROUP_END


@pytest.mark.parametrize(
    "octets",
    [b"(", b'"\\', b"<", b"@", b"a:", b" ", b"a ", b"<@", b'\\"', b"[", b"()", b"a@b .", b'<"', b"<a,"],
)
def test_long_nonsense_yields_bounded_lists(octets):
    found = parse_address_list(octets * (1_000_000 // len(octets)))
    assert len(found) <= MAX_ADDRESSES
    assert sum(len(a.local or b"") + len(a.display or b"") for a in found) < 400_000


def test_address_joins_local_part_and_domain():
    assert one(None, b"a", b"b").address == b"a@b"
    assert GROUP_END.address == b""
    assert not group(b"g").is_mailbox
