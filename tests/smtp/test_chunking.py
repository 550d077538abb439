"""CHUNKING (RFC 3030): chunks, their order, and what follows a failure."""

import pytest
import uvloop

from server.refusal import Refusal
from server.smtp.settings import SmtpSettings
from tests.smtp.fakes import connected, running

BEGIN = ["MAIL FROM:<a@b.example>", "RCPT TO:<ann@example.org>"]


def test_message_in_chunks():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            await client.ask_all(*BEGIN)
            client.send(b"BDAT 3\r\na\r\n")
            assert await client.reply() == "250 2.0.0 3 octets received"
            client.send(b"BDAT 6\r\n.\r\n.\r\nBDAT 0 LAST\r\nNOOP\r\n")
            assert await client.reply() == "250 2.0.0 9 octets received"
            assert await client.reply() == "250 2.0.0 Ok: msg_1"
            assert await client.reply() == "250 2.0.0 Ok"
            assert rig.intake.contents() == [b"a\r\n.\r\n.\r\n"]

    uvloop.run(scenario())


def test_pipelined_whole_transaction():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            one = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<ann@example.org>\r\nBDAT 6 LAST\r\nx\r\ny\r\n"
            await client.send_segments((one + one)[at : at + 5] for at in range(0, 2 * len(one), 5))
            assert [(await client.reply())[:3] for _ in range(6)] == ["250"] * 6
            assert rig.intake.contents() == [b"x\r\ny\r\n"] * 2

    uvloop.run(scenario())


def test_chunk_without_transaction_is_swallowed_and_refused():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            client.send(b"BDAT 6\r\nNOOP\r\nNOOP\r\nBDAT 6 LAST\r\nQUIT\r\nNOOP\r\n")
            answers = [(await client.reply())[:9] for _ in range(4)]
            assert answers == ["503 5.5.1", "250 2.0.0", "503 5.5.1", "250 2.0.0"]
            assert rig.server._memory.used_octets == 0

    uvloop.run(scenario())


def test_chunk_with_all_recipients_refused_is_554():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            rig.intake.refusals["recipient"] = Refusal(550, "5.1.1", "No")
            client.send(b"MAIL FROM:<>\r\nRCPT TO:<x@b.example>\r\nBDAT 6 LAST\r\nNOOP\r\nRSET\r\n")
            assert [(await client.reply())[:9] for _ in range(4)] == [
                "250 2.1.0",
                "550 5.1.1",
                "554 5.5.1",
                "250 2.0.0",
            ]

    uvloop.run(scenario())


def test_chunks_behind_a_refused_one_are_swallowed():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            await client.ask_all(*BEGIN)
            client.send(b"BDAT 2\r\na\nBDAT 6\r\nNOOP\r\nBDAT 6 LAST\r\nQUIT\r\nNOOP\r\n")
            answers = [(await client.reply())[:9] for _ in range(4)]
            assert answers == ["550 5.5.2", "503 5.5.1", "503 5.5.1", "250 2.0.0"]
            await client.ask_all(*BEGIN)
            client.send(b"BDAT 3 LAST\r\nb\r\n")
            assert (await client.reply()).startswith("250 2.0.0 Ok")
            assert rig.intake.contents() == [b"b\r\n"]

    uvloop.run(scenario())


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("DATA", "503 5.5.1"),
        ("MAIL FROM:<>", "503 5.5.1"),
        ("RCPT TO:<x@b.example>", "503 5.5.1"),
        ("NOOP", "250 2.0.0"),
        ("RSET", "250 2.0.0"),
        ("EHLO again", "250-mx.ex"),
        ("QUIT", "221 2.0.0"),
    ],
)
def test_commands_between_chunks(line, answer):
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            await client.ask_all(*BEGIN)
            client.send(b"BDAT 3\r\na\r\n")
            await client.reply()
            assert (await client.ask(line))[:9] == answer
            if line in {"RSET", "EHLO again"}:
                assert (await client.ask("BDAT 0 LAST")).startswith("503")
                assert rig.server._memory.used_octets == 0
            elif line == "QUIT":
                assert await client.is_closed()
            else:
                assert (await client.ask("BDAT 0 LAST")).startswith("250 2.0.0 Ok")

    uvloop.run(scenario())


@pytest.mark.parametrize("line", ["BDAT", "BDAT x", "BDAT 99999999999999999999 LAST", "BDAT 5 FIRST"])
def test_chunk_of_unknown_length_ends_the_connection(line):
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            await client.ask_all(*BEGIN)
            client.send(line.encode() + b"\r\nNOOP\r\nNOOP\r\n")
            assert (await client.reply())[:4] in {"501 ", "552 "}
            assert await client.is_closed()

    uvloop.run(scenario())


def test_chunks_beyond_the_size_limit_are_refused_and_swallowed():
    async def scenario():
        async with running(SmtpSettings(max_message_octets=10)) as rig, connected(rig.mx) as client:
            await client.ask_all(*BEGIN)
            client.send(b"BDAT 12 LAST\r\n0123456789\r\nNOOP\r\n")
            assert (await client.reply()).startswith("552 5.3.4")
            assert (await client.reply()).startswith("250 2.0.0")

    uvloop.run(scenario())


def test_empty_chunks_without_transaction_count_as_errors():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            client.send(b"BDAT 0\r\n" * 50)
            answers = [await client.reply() for _ in range(20)]
            assert answers[18].startswith("503")
            assert answers[19].startswith("421 4.7.0")
            assert await client.is_closed()

    uvloop.run(scenario())
