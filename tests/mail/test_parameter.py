import pytest

from server.mail.parameter import MAX_PARAMETERS, parameter, parameter_text, parse_parameters

CASES = [
    (b"text/plain", b"text/plain", ()),
    (b"text/plain; charset=utf-8", b"text/plain", ((b"charset", b"utf-8"),)),
    (b'a/b; x="1; 2"; y=3', b"a/b", ((b"x", b"1; 2"), (b"y", b"3"))),
    (b'a/b; x="q\\"\\\\"', b"a/b", ((b"x", b'q"\\'),)),
    (b"a / b ; x = y", b"a/b", ((b"x", b"y"),)),
    (b"a/b (c(d)); (e) x=(f)y", b"a/b", ((b"x", b"y"),)),
    (b"a/b;;;x=y;", b"a/b", ((b"x", b"y"),)),
    (b"a/b x=y", b"a/b", ((b"x", b"y"),)),
    (b'a/b; x="1" y=2', b"a/b", ((b"x", b"1"), (b"y", b"2"))),
    (b"inline; filename=my file.pdf; size=3", b"inline", ((b"filename", b"my file.pdf"), (b"size", b"3"))),
    (b"a/b; x=y=z", b"a/b", ((b"x", b"y=z"),)),
    (b"a/b; flag; x=y", b"a/b", ((b"x", b"y"),)),
    (b"a/b; =x", b"a/b", ()),
    (b'a/b; x="open', b"a/b", ((b"x", b"open"),)),
    (b"a/b; x=", b"a/b", ((b"x", b""),)),
    (b"; x=y", b"", ((b"x", b"y"),)),
    (b"", b"", ()),
    (b"a/b; x*0=1; x*1=2; z=3", b"a/b", ((b"x", b"12"), (b"z", b"3"))),
    (b"a/b; x*1=2; x*0=1", b"a/b", ((b"x", b"12"),)),
    (b"a/b; x*0=1; x*2=3", b"a/b", ((b"x", b"1"),)),
    (b"a/b; x*0*=utf-8''%C3; x*1*=%A9; x*2=\" !\"", b"a/b", ((b"x*", b"utf-8''%C3%A9%20!"),)),
    (b"a/b; x*0=%; x*1*=%C3%A9", b"a/b", ((b"x*", b"''%25%C3%A9"),)),
]  # fmt: skip


@pytest.mark.parametrize(("value", "main", "parameters"), CASES)
def test_values_are_read_with_their_parameters(value, main, parameters):
    assert parse_parameters(value) == (main, parameters)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"a/b; name=x", "x"),
        (b"a/b; NAME=x", "x"),
        (b'a/b; name="=?utf-8?q?=C3=A9?="', "é"),
        (b"a/b; name=\xc3\xa9", "é"),
        (b"a/b; name*=utf-8''%C3%A9", "é"),
        (b"a/b; name*=iso-8859-1'de'%E9", "é"),
        (b"a/b; name*=%C3%A9", "é"),
        (b"a/b; name*=utf-8''%zz%C", "%zz%C"),
        (b"a/b; name=plain; name*=utf-8''wide", "wide"),
        (b"a/b; name*0*=utf-8''%C3; name*1*=%A9", "é"),
        (b"a/b; name*=utf-8''a%00b%0D", "a\ufffdb\r"),
        (b"a/b; other=x", None),
    ],
)
def test_parameter_text_is_decoded(value, text):
    _, parameters = parse_parameters(value)
    assert parameter_text(parameters, b"name") == text


def test_parameter_is_found_in_any_case_and_the_first_counts():
    _, parameters = parse_parameters(b"a/b; X=1; x=2")
    assert parameter(parameters, b"x") == b"1"


@pytest.mark.parametrize("octets", [b";", b"x=1;", b"(", b'"', b"a ", b'\\"', b"x*1=1;", b"="])
def test_parameters_are_bounded(octets):
    _, parameters = parse_parameters(b"a/b;" + octets * 50_000)
    assert len(parameters) <= MAX_PARAMETERS
