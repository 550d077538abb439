"""Command lines: what is read, and the precise code of what is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.refusal import Refusal
from server.smtp import door, grammar
from server.smtp.grammar import (
    Auth,
    Bdat,
    Data,
    Expn,
    Hello,
    Help,
    Mail,
    Noop,
    Quit,
    Rcpt,
    Rset,
    StartTls,
    Vrfy,
)
from storage.records import Envelope, Recipient

DSN = grammar.Dialect(door.SUBMITTING.mail - {b"AUTH"}, door.SUBMITTING.rcpt)
DSN_WIDE = grammar.Dialect(DSN.mail, DSN.rcpt, wide=True)


def parse(line: bytes, dialect=DSN):
    return grammar.parse(line, dialect)


def refusal(line: bytes, dialect=DSN) -> tuple[int, str]:
    with pytest.raises(Refusal) as caught:
        grammar.parse(line, dialect)
    return caught.value.code, caught.value.enhanced


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (b"EHLO mx.example.net", Hello("mx.example.net", True)),
        (b"ehlo  mx.example.net ", Hello("mx.example.net", True)),
        (b"HELO [192.0.2.1]", Hello("[192.0.2.1]", False)),
        (b"EHLO [IPv6:2001:db8::1]", Hello("[IPv6:2001:db8::1]", True)),
        (b"EHLO WIN_PC-1", Hello("WIN_PC-1", True)),
        (b"DATA", Data()),
        (b"data ", Data()),
        (b"RSET", Rset()),
        (b"NOOP", Noop()),
        (b"NOOP whatever", Noop()),
        (b"HELP MAIL", Help()),
        (b"HELP", Help()),
        (b"VRFY ann", Vrfy()),
        (b"EXPN staff", Expn()),
        (b"QuIt", Quit()),
        (b"STARTTLS", StartTls()),
        (b"AUTH plain", Auth("PLAIN", None)),
        (b"AUTH PLAIN =", Auth("PLAIN", b"=")),
        (b"AUTH LOGIN YW5u", Auth("LOGIN", b"YW5u")),
        (b"BDAT 10", Bdat(10, False)),
        (b"bdat 0 last", Bdat(0, True)),
    ],
)
def test_command_is_read(line, command):
    assert parse(line) == command


@pytest.mark.parametrize(
    ("path", "address"),
    [
        (b"<>", None),
        (b"<ann@example.org>", "ann@example.org"),
        (b" <ann@example.org>", "ann@example.org"),
        (b"<Ann.Lee+x=y@Example.ORG>", "Ann.Lee+x=y@Example.ORG"),
        (b'<"ann lee"@example.org>', '"ann lee"@example.org'),
        (b'<"a>b"@example.org>', '"a>b"@example.org'),
        (b'<"a\\"b"@example.org>', '"a\\"b"@example.org'),
        (b"<ann@[192.0.2.1]>", "ann@[192.0.2.1]"),
        (b"<ann@[IPv6:2001:db8::1]>", "ann@[IPv6:2001:db8::1]"),
        (b"<@a.example,@b.example:ann@example.org>", "ann@example.org"),
        (b"<@a.example:ann@example.org>", "ann@example.org"),
    ],
)
def test_reverse_path_is_read_without_its_source_route(path, address):
    assert parse(b"MAIL FROM:" + path).envelope == Envelope(address, ())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # the verb
        (b"", (500, "5.5.2")),
        (b" NOOP", (500, "5.5.2")),
        (b"FOO", (500, "5.5.2")),
        (b"MAILFROM:<a@b.example>", (500, "5.5.2")),
        (b"\xff\xfe", (500, "5.5.2")),
        (b"NOOP \x07", (500, "5.5.2")),
        (b"NOOP \x7f", (500, "5.5.2")),
        (b"SEND FROM:<a@b.example>", (502, "5.5.1")),
        (b"TURN", (502, "5.5.1")),
        # arguments
        (b"EHLO", (501, "5.5.4")),
        (b"HELO ", (501, "5.5.4")),
        (b"EHLO a b", (501, "5.5.4")),
        (b"EHLO [192.0.2.999]", (501, "5.5.4")),
        (b"EHLO [", (501, "5.5.4")),
        (b"EHLO m\xc3\xbcller.example", (501, "5.5.4")),
        (b"EHLO <script>", (501, "5.5.4")),
        (b"EHLO " + b"a" * 256, (501, "5.5.4")),
        (b"DATA now", (501, "5.5.4")),
        (b"RSET now", (501, "5.5.4")),
        (b"QUIT now", (501, "5.5.4")),
        (b"STARTTLS now", (501, "5.5.4")),
        (b"VRFY", (501, "5.5.4")),
        (b"EXPN ", (501, "5.5.4")),
        (b"AUTH", (501, "5.5.4")),
        (b"AUTH PLAIN a b", (501, "5.5.4")),
        (b"AUTH PL\xc3AIN", (501, "5.5.4")),
        (b"BDAT", (501, "5.5.4")),
        (b"BDAT x", (501, "5.5.4")),
        (b"BDAT -1", (501, "5.5.4")),
        (b"BDAT 1 FIRST", (501, "5.5.4")),
        (b"BDAT 1 LAST LAST", (501, "5.5.4")),
        (b"BDAT " + b"9" * 21, (501, "5.5.4")),
        # paths
        (b"MAIL", (501, "5.5.4")),
        (b"MAIL TO:<a@b.example>", (501, "5.5.4")),
        (b"MAIL FROM:", (501, "5.1.7")),
        (b"MAIL FROM:a@b.example", (501, "5.1.7")),
        (b"MAIL FROM:<a@b.example", (501, "5.1.7")),
        (b"MAIL FROM:<a>", (501, "5.1.7")),
        (b"MAIL FROM:<@b.example>", (501, "5.1.7")),
        (b"MAIL FROM:<a@>", (501, "5.1.7")),
        (b"MAIL FROM:<a..b@c.example>", (501, "5.1.7")),
        (b"MAIL FROM:<a b@c.example>", (501, "5.1.7")),
        (b"MAIL FROM:<a@b@c.example>", (501, "5.1.7")),
        (b"MAIL FROM:<a@-b.example>", (501, "5.1.7")),
        (b"MAIL FROM:<a@[1.2.3]>", (501, "5.1.7")),
        (b"MAIL FROM:<@a.example,b.example:c@d.example>", (501, "5.1.7")),
        (b"MAIL FROM:<@a.example:>", (501, "5.1.7")),
        (b"MAIL FROM:<a@b.example>x", (501, "5.5.4")),
        (b"MAIL FROM:<" + b"a" * 65 + b"@b.example>", (501, "5.1.7")),
        (b"MAIL FROM:<" + b"@a.example," * 24 + b"@b.example:c@d.example>", (501, "5.1.7")),
        (b"MAIL FROM:<m\xc3\xbc@b.example>", (553, "5.6.7")),
        (b"MAIL FROM:<m\xfc@b.example> SMTPUTF8", (501, "5.1.7")),
        (b"RCPT TO:", (501, "5.1.3")),
        (b"RCPT TO:<>", (501, "5.1.3")),
        (b"RCPT TO:<ann>", (501, "5.1.3")),
        (b"RCPT FROM:<ann@b.example>", (501, "5.5.4")),
        (b"RCPT TO:<m\xc3\xbc@b.example>", (553, "5.6.7")),
        (b"RCPT TO:<" + b"a" * 65 + b"@b.example>", (501, "5.1.3")),
        # parameters
        (b"MAIL FROM:<a@b.example> SIZE", (501, "5.5.4")),
        (b"MAIL FROM:<a@b.example> SIZE=x", (501, "5.5.4")),
        (b"MAIL FROM:<a@b.example> SIZE=-1", (501, "5.5.4")),
        (b"MAIL FROM:<a@b.example> SIZE=" + b"1" * 21, (501, "5.5.4")),
        (b"MAIL FROM:<a@b.example> SIZE=1 SIZE=1", (501, "5.5.4")),
        (b"MAIL FROM:<a@b.example> BODY", (501, "5.5.4")),
        (b"MAIL FROM:<a@b.example> SMTPUTF8=yes", (501, "5.5.4")),
        (b"MAIL FROM:<a@b.example> RET=ALL", (501, "5.5.4")),
        (b"MAIL FROM:<a@b.example> ENVID=", (501, "5.5.4")),
        (b"MAIL FROM:<a@b.example> ENVID=a+b", (501, "5.5.4")),
        (b"MAIL FROM:<a@b.example> ENVID=" + b"a" * 101, (501, "5.5.4")),
        (b"MAIL FROM:<a@b.example> =1", (501, "5.5.4")),
        (b"MAIL FROM:<a@b.example> -a=1", (501, "5.5.4")),
        (b"MAIL FROM:<a@b.example> SIZE=1=2", (501, "5.5.4")),
        (b"MAIL FROM:<a@b.example> COLOUR=red", (555, "5.5.4")),
        (b"MAIL FROM:<a@b.example> NOTIFY=NEVER", (555, "5.5.4")),
        (b"MAIL FROM:<a@b.example> AUTH=<>", (555, "5.5.4")),
        (b"RCPT TO:<a@b.example> SIZE=1", (555, "5.5.4")),
        (b"RCPT TO:<a@b.example> NOTIFY", (501, "5.5.4")),
        (b"RCPT TO:<a@b.example> NOTIFY=NEVER,DELAY", (501, "5.5.4")),
        (b"RCPT TO:<a@b.example> NOTIFY=SOMETIMES", (501, "5.5.4")),
        (b"RCPT TO:<a@b.example> ORCPT=ann@b.example", (501, "5.5.4")),
        (b"RCPT TO:<a@b.example> ORCPT=rfc822;", (501, "5.5.4")),
        (b"RCPT TO:<a@b.example> ORCPT=rfc822;a+zz", (501, "5.5.4")),
        (b"RCPT TO:<a@b.example> ORCPT=rfc822;" + b"a" * 494, (501, "5.5.4")),
        (b"MAIL FROM:<a@b.example>" + b" A=1" * 33, (501, "5.5.4")),
    ],
)
def test_refusal_has_its_code(line, expected):
    assert refusal(line) == expected


def test_all_mail_parameters_are_read():
    line = b"MAIL FROM:<a@b.example> size=1000 BODY=8bitmime SMTPUTF8 RET=hdrs ENVID=QQ+2B1"
    assert parse(line) == Mail(Envelope("a@b.example", (), "8BITMIME", True, "HDRS", "QQ+2B1"), 1000)


def test_all_rcpt_parameters_are_read():
    line = b"RCPT TO:<a@b.example> NOTIFY=success,DELAY ORCPT=rfc822;Ann+2Bx@b.example"
    recipient = Recipient("a@b.example", frozenset({"SUCCESS", "DELAY"}), "rfc822;Ann+2Bx@b.example")
    assert parse(line) == Rcpt(recipient)
    assert parse(b"RCPT TO:<a@b.example> NOTIFY=NEVER").recipient.notify == frozenset({"NEVER"})


def test_postmaster_needs_no_domain():
    assert parse(b"RCPT TO:<PostMaster>") == Rcpt(Recipient("PostMaster"))


def test_parameters_after_helo_are_refused():
    assert refusal(b"MAIL FROM:<a@b.example> SIZE=1", door.PLAIN) == (555, "5.5.4")
    assert refusal(b"RCPT TO:<a@b.example> NOTIFY=NEVER", door.PLAIN) == (555, "5.5.4")


def test_auth_parameter_is_understood_where_auth_is():
    assert parse(b"MAIL FROM:<a@b.example> AUTH=<>", door.SUBMITTING).envelope.reverse_path == "a@b.example"
    assert parse(b"MAIL FROM:<a@b.example> AUTH=x+3D@b.example", door.SUBMITTING).declared_octets is None
    assert refusal(b"MAIL FROM:<a@b.example> AUTH", door.SUBMITTING) == (501, "5.5.4")


def test_utf8_addresses_belong_to_smtputf8():
    path = "<jörg@exämple.org>".encode()
    assert parse(b"MAIL FROM:" + path + b" SMTPUTF8").envelope.reverse_path == "jörg@exämple.org"
    assert parse(b"RCPT TO:" + path, DSN_WIDE).recipient.address == "jörg@exämple.org"
    orcpt = b" ORCPT=utf-8;j\\x{F6}rg@example.org"
    assert parse(b"RCPT TO:" + path + orcpt, DSN_WIDE).recipient.orcpt == orcpt[7:].decode()


@pytest.mark.parametrize(
    ("start", "limit"),
    [
        (b"NOOP ", 512),
        (b"EHLO ", 512),
        (b"MAIL FROM:<a@b.example> ", grammar.LINE_OCTETS[b"MAIL"]),
        (b"RCPT TO:<a@b.example> ", grammar.LINE_OCTETS[b"RCPT"]),
        (b"AUTH PLAIN ", 12288),
    ],
)
def test_line_limit_counts_crlf(start, limit):
    def answer(octets):
        try:
            return parse(start + b"x" * (octets - 2 - len(start)))
        except Refusal as caught:
            return caught.public

    assert answer(limit) != "Line too long"
    assert answer(limit + 1) == "Line too long"


@given(st.binary(max_size=200))
def test_any_line_is_a_command_or_a_refusal(line):
    for dialect in (door.PLAIN, door.widened(door.SUBMITTING_HELD)):
        try:
            grammar.parse(line, dialect)
        except Refusal as caught:
            assert caught.code in {500, 501, 502, 504, 553, 555}
            assert caught.enhanced.startswith("5.")
