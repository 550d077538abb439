"""RFC 5321 at the door, command by command and limit by limit, over real sockets.

Each row is what a client says and how the last answer begins. Every answer is held to
RFC 2034 besides: an enhanced code of the reply's class, but for the greeting, replies to
EHLO and HELO, and 3yz.
"""

import re

import pytest
import uvloop

from server.smtp.settings import SmtpSettings
from storage.records import Recipient
from tests.smtp.fakes import Client, connected, running

OPEN = ["EHLO client.example"]
MAIL = [*OPEN, "MAIL FROM:<a@b.example>"]
RCPT = [*MAIL, "RCPT TO:<c@d.example>"]
OVER_HELO = ["HELO client.example"]
WIDE = [*OPEN, "MAIL FROM:<a@b.example> SMTPUTF8"]
LOCAL_64, LOCAL_65 = "l" * 64, "l" * 65
LABEL = "d" * 63
# With local part, '@' and angle brackets: a path of 256 octets, and one of 257.
DOMAIN_189 = ".".join([LABEL, LABEL, "d" * 61])
PATH_256 = f"<{LOCAL_64}@{DOMAIN_189}>"
PATH_257 = f"<{LOCAL_64}@{DOMAIN_189}d>"
HOST_255 = ".".join([LABEL, LABEL, LABEL, LABEL])


def line_of(octets: int, *, begin: str) -> str:
    """A command line of so many octets, its CRLF included."""
    return begin + "x" * (octets - 2 - len(begin))


SECTION_4_1_1 = [
    # EHLO and HELO, 4.1.1.1 and 4.1.4
    ([], "EHLO client.example", "250"),
    ([], "ehlo client.example", "250"),
    ([], "HELO client.example", "250 mx.example.org"),
    ([], "EHLO [192.0.2.1]", "250"),
    ([], "EHLO [IPv6:2001:db8::1]", "250"),
    ([], "HELO [192.0.2.1]", "250"),
    ([], "EHLO localhost", "250"),
    ([], "EHLO under_score.example", "250"),
    ([], "EHLO", "501 "),
    ([], "HELO", "501 "),
    ([], "EHLO a b", "501 "),
    ([], "EHLO [192.0.2.256]", "501 "),
    ([], "EHLO [IPv6:2001:db8::1", "501 "),
    ([], "EHLO <client>", "501 "),
    ([], f"EHLO {HOST_255}", "250"),
    ([], f"EHLO {HOST_255}d", "501 "),
    (MAIL, "EHLO client.example", "250"),
    ([*MAIL, "EHLO client.example"], "RCPT TO:<c@d.example>", "503 5.5.1"),
    ([*MAIL, "HELO client.example"], "RCPT TO:<c@d.example>", "503 5.5.1"),
    ([*MAIL, "HELO"], "RCPT TO:<c@d.example>", "250 2.1.5"),
    # MAIL, 4.1.1.2
    (OPEN, "MAIL FROM:<a@b.example>", "250 2.1.0"),
    (OPEN, "mail from:<a@b.example>", "250 2.1.0"),
    (OPEN, "MAIL FROM: <a@b.example>", "250 2.1.0"),
    (OPEN, "MAIL FROM:<>", "250 2.1.0"),
    (OPEN, "MAIL FROM:<a@b.example>   ", "250 2.1.0"),
    (OPEN, "MAIL", "501 5.5.4"),
    (OPEN, "MAIL FROM", "501 5.5.4"),
    (OPEN, "MAIL FROM:", "501 5.1.7"),
    (OPEN, "MAIL FROM:a@b.example", "501 5.1.7"),
    (OPEN, "MAIL FROM:<a@b.example", "501 5.1.7"),
    (OPEN, "MAIL FROM:<a@b.example>x", "501 5.5.4"),
    (OPEN, "MAIL FROM:<a@b.example> <c@d.example>", "501 5.5.4"),
    (OPEN, "MAIL TO:<a@b.example>", "501 5.5.4"),
    (OPEN, "MAIL FROM:<a@b.example> FOO=BAR", "555 5.5.4"),
    (OPEN, "MAIL FROM:<a@b.example> SIZE=x", "501 5.5.4"),
    (OPEN, "MAIL FROM:<a@b.example> SIZE=1 SIZE=1", "501 5.5.4"),
    (OVER_HELO, "MAIL FROM:<a@b.example>", "250 2.1.0"),
    (OVER_HELO, "MAIL FROM:<a@b.example> BODY=8BITMIME", "555 5.5.4"),
    ([], "MAIL FROM:<a@b.example>", "503 5.5.1"),
    (MAIL, "MAIL FROM:<a@b.example>", "503 5.5.1"),
    # RCPT, 4.1.1.3
    (MAIL, "RCPT TO:<c@d.example>", "250 2.1.5"),
    (MAIL, "rcpt to:<c@d.example>", "250 2.1.5"),
    (MAIL, "RCPT TO:<postmaster>", "250 2.1.5"),
    (MAIL, "RCPT TO:<PostMaster>", "250 2.1.5"),
    (MAIL, "RCPT TO:<Postmaster@example.org>", "250 2.1.5"),
    (MAIL, "RCPT TO:<abuse>", "501 5.1.3"),
    (MAIL, "RCPT TO:<>", "501 5.1.3"),
    (MAIL, "RCPT TO:c@d.example", "501 5.1.3"),
    (MAIL, "RCPT FROM:<c@d.example>", "501 5.5.4"),
    (MAIL, "RCPT TO:<c@d.example> SIZE=1", "555 5.5.4"),
    (OPEN, "RCPT TO:<c@d.example>", "503 5.5.1"),
    # DATA, 4.1.1.4
    (RCPT, "DATA", "354 "),
    (RCPT, "data", "354 "),
    (RCPT, "DATA now", "501 5.5.4"),
    (MAIL, "DATA", "503 5.5.1"),
    ([*OPEN], "DATA", "503 5.5.1"),
    # RSET to QUIT, 4.1.1.5 to 4.1.1.10
    (RCPT, "RSET", "250 2.0.0"),
    ([], "RSET", "250 2.0.0"),
    ([*RCPT, "RSET"], "DATA", "503 5.5.1"),
    ([*RCPT, "RSET"], "MAIL FROM:<a@b.example>", "250 2.1.0"),
    (RCPT, "RSET now", "501 5.5.4"),
    ([], "VRFY ann", "252 2.0.0"),
    ([], "VRFY ann@example.org", "252 2.0.0"),
    ([], "VRFY", "501 5.5.4"),
    ([], "EXPN staff", "550 5.7.1"),
    ([], "EXPN", "501 5.5.4"),
    ([], "HELP", "214 2.0.0"),
    ([], "HELP MAIL", "214 2.0.0"),
    ([], "NOOP", "250 2.0.0"),
    ([], "NOOP any string", "250 2.0.0"),
    ([], 'NOOP "quoted string"', "250 2.0.0"),
    ([*MAIL, "NOOP", "HELP", "VRFY ann"], "RCPT TO:<c@d.example>", "250 2.1.5"),
    ([], "QUIT", "221 2.0.0"),
    ([], "quit", "221 2.0.0"),
    (RCPT, "QUIT", "221 2.0.0"),
    ([], "QUIT now", "501 5.5.4"),
    # What there is not
    ([], "SEND FROM:<a@b.example>", "502 5.5.1"),
    ([], "TURN", "502 5.5.1"),
    ([], "ETRN example.org", "502 5.5.1"),
    ([], "XYZZY", "500 5.5.2"),
    ([], "", "500 5.5.2"),
    ([], " NOOP", "500 5.5.2"),
    ([], "MAIL\tFROM:<a@b.example>", "500 5.5.2"),
    (OPEN, "MAIL FROM:<a@b\x01.example>", "500 5.5.2"),
]

ADDRESSES = [
    # 4.1.2 and 4.1.3: how a mailbox may be written
    ("<a@b.example>", True),
    ('<"a b"@c.example>', True),
    (r'<"a\"b"@c.example>', True),
    (r'<"a\\"@c.example>', True),
    ('<"a@b"@c.example>', True),
    ('<"a>b"@c.example>', True),
    ('<""@c.example>', True),
    ("<a@[192.0.2.1]>", True),
    ("<a@[IPv6:2001:db8::1]>", True),
    ("<a@[ipv6:2001:db8::1]>", True),
    ("<a@[x-tag:content]>", True),
    ("<a+b=c/d?e@f.example>", True),
    ("<a@localhost>", True),
    ("<a@b-c.d9.example>", True),
    ("<a..b@c.example>", False),
    ("<.a@b.example>", False),
    ("<a.@b.example>", False),
    ("<a b@c.example>", False),
    ("<a@b..example>", False),
    ("<a@b.example.>", False),
    ("<a@-b.example>", False),
    ("<a@b-.example>", False),
    ("<a@>", False),
    ("<@b.example>", False),
    ("<a@b@c.example>", False),
    ("<a@[192.0.2.256]>", False),
    ("<a@[192.0.2.1>", False),
    ("<a@[192.0.2.01]>", False),
    ("<a@[IPv6:2001:db8::1::2]>", False),
    ("<a@192.0.2.1]>", False),
    ('<"a@b.example>', False),
    ("<a(comment)@b.example>", False),
]

# Source routes are read and dropped: 4.1.1.3, appendix C.
ROUTES = [
    ("<@one.example:a@b.example>", "a@b.example"),
    ("<@one.example,@two.example:a@b.example>", "a@b.example"),
    ('<@one.example:"a,b:c"@b.example>', '"a,b:c"@b.example'),
    ("<@one.example:a@[192.0.2.1]>", "a@[192.0.2.1]"),
]
FAULTY_ROUTES = ["<@one.example>", "<@one.example,:a@b.example>", "<@:a@b.example>", "<@one.example:>"]

SECTION_4_5_3 = [
    # 4.5.3.1.1 to 4.5.3.1.3: local part, domain, path
    (OPEN, f"MAIL FROM:<{LOCAL_64}@b.example>", "250 2.1.0"),
    (OPEN, f"MAIL FROM:<{LOCAL_65}@b.example>", "501 5.1.7"),
    (MAIL, f"RCPT TO:<{LOCAL_64}@b.example>", "250 2.1.5"),
    (MAIL, f"RCPT TO:<{LOCAL_65}@b.example>", "501 5.1.3"),
    (MAIL, f'RCPT TO:<"{"l" * 62}"@b.example>', "250 2.1.5"),
    (MAIL, f'RCPT TO:<"{"l" * 63}"@b.example>', "501 5.1.3"),
    (MAIL, f"RCPT TO:<c@{LABEL}.example>", "250 2.1.5"),
    (MAIL, f"RCPT TO:<c@{LABEL}d.example>", "501 5.1.3"),
    (MAIL, f"RCPT TO:<c@{HOST_255}>", "501 5.1.3"),
    (MAIL, f"RCPT TO:{PATH_256}", "250 2.1.5"),
    (MAIL, f"RCPT TO:{PATH_257}", "501 5.1.3"),
    (OPEN, f"MAIL FROM:{PATH_256}", "250 2.1.0"),
    (OPEN, f"MAIL FROM:{PATH_257}", "501 5.1.7"),
    # 4.5.3.1.4: the command line, and what extensions add to it
    ([], line_of(512, begin="NOOP "), "250 2.0.0"),
    ([], line_of(513, begin="NOOP "), "500 5.5.2"),
    ([], line_of(100_000, begin="NOOP "), "500 5.5.2"),
    (OPEN, f"MAIL FROM:{PATH_256} SIZE=99 BODY=8BITMIME RET=HDRS ENVID={'e' * 100}", "250 2.1.0"),
    (MAIL, f"RCPT TO:{PATH_256} NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;{'o' * 493}", "250 2.1.5"),
    (MAIL, f"RCPT TO:{PATH_256} NOTIFY=NEVER ORCPT=rfc822;{'o' * 494}", "501 5.5.4"),
    (MAIL, line_of(1126, begin="RCPT TO:<c@d.example> ORCPT=rfc822;"), "500 5.5.2"),
    (OPEN, line_of(1242, begin="MAIL FROM:<a@b.example> ENVID="), "500 5.5.2"),
]


async def say(client: Client, line: str) -> str:
    """Say a line; its answer, held to RFC 2034."""
    answer = await client.ask(line)
    greets = line[:4].upper() in {"EHLO", "HELO"}
    for one in answer.split("|"):
        assert len(one) <= 510
        code, enhanced = one[:3], re.match(r"\d{3}[ -]([245]\.\d{1,3}\.\d{1,3}) .", one)
        if greets or code[0] == "3":
            assert enhanced is None, one
        else:
            assert enhanced is not None, one
            assert enhanced[1][0] == code[0], one
    return answer


@pytest.mark.parametrize(("before", "line", "answer"), SECTION_4_1_1 + SECTION_4_5_3)
def test_command(before, line, answer):
    async def scenario():
        async with running() as rig, connected(rig.mx, greet=False) as client:
            for one in before:
                await say(client, one)
            assert (await say(client, line)).startswith(answer)
            if line.upper() == "QUIT":
                assert await client.is_closed()
            elif not answer.startswith("354"):
                assert (await say(client, "NOOP")).startswith("250"), "the session goes on"

    uvloop.run(scenario())


@pytest.mark.parametrize(("path", "is_taken"), ADDRESSES)
def test_mailbox(path, is_taken):
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            answer = await say(client, f"MAIL FROM:{path}")
            assert answer.startswith("250 2.1.0" if is_taken else "501 5.1.7")
            await say(client, "RSET")
            await say(client, "MAIL FROM:<>")
            answer = await say(client, f"RCPT TO:{path}")
            assert answer.startswith("250 2.1.5" if is_taken else "501 5.1.3")
            if is_taken:
                assert rig.intake.calls[-1][-1] == Recipient(path[1:-1])

    uvloop.run(scenario())


@pytest.mark.parametrize(("path", "meant"), ROUTES)
def test_source_routes_are_dropped(path, meant):
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            for line in (f"MAIL FROM:{path}", f"RCPT TO:{path}", "DATA"):
                await say(client, line)
            assert (await say(client, ".")).startswith("250 2.0.0")
            envelope = rig.intake.arrivals[0].envelope
            assert (envelope.reverse_path, envelope.recipients) == (meant, (Recipient(meant),))

    uvloop.run(scenario())


@pytest.mark.parametrize("path", FAULTY_ROUTES)
def test_faulty_source_routes_are_501(path):
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            assert (await say(client, f"MAIL FROM:{path}")).startswith("501 5.1.7")

    uvloop.run(scenario())


@pytest.mark.parametrize("octets", [998, 999, 16_000, 200_000])
def test_text_lines_are_taken_as_long_as_they_are(octets):
    """4.5.3.1.6 asks for 1000 octets with CRLF at least, 4.5.3.1 for no limit where there need be none."""

    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            for line in ("MAIL FROM:<>", "RCPT TO:<c@d.example>", "DATA"):
                await say(client, line)
            content = b"Subject: long\r\n\r\n" + b"x" * octets + b"\r\n"
            client.send(content + b".\r\n")
            assert (await client.reply()).startswith("250 2.0.0")
            assert rig.intake.contents() == [content]

    uvloop.run(scenario())


@pytest.mark.parametrize("wanted", [100, 150])
def test_recipients_beyond_the_limit_are_452_and_those_within_it_delivered(wanted):
    """4.5.3.1.8 and 4.5.3.1.10: 100 at least, and the code of one too many."""

    async def scenario():
        async with running(SmtpSettings(max_recipients=wanted)) as rig, connected(rig.mx) as client:
            await say(client, "MAIL FROM:<>")
            answers = [await say(client, f"RCPT TO:<u{number}@d.example>") for number in range(wanted + 3)]
            assert [answer[:9] for answer in answers] == ["250 2.1.5"] * wanted + ["452 4.5.3"] * 3
            await say(client, "DATA")
            assert (await say(client, ".")).startswith("250 2.0.0")
            assert len(rig.intake.arrivals[0].envelope.recipients) == wanted

    uvloop.run(scenario())


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("RCPT TO:<ü@d.example>", "250 2.1.5"),
        ("RCPT TO:<c@bücher.example>", "250 2.1.5"),
        (f"RCPT TO:<{'ü' * 32}@d.example>", "250 2.1.5"),
        (f"RCPT TO:<{'ü' * 32}x@d.example>", "501 5.1.3"),
        ("RCPT TO:<c@" + "ü" * 60 + ".example>", "501 5.1.3"),
    ],
)
def test_limits_count_octets_of_utf8(line, answer):
    async def scenario():
        async with running() as rig, connected(rig.mx, greet=False) as client:
            for one in WIDE:
                await say(client, one)
            assert (await say(client, line)).startswith(answer)

    uvloop.run(scenario())
