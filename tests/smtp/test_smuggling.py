"""SMTP smuggling: no false end of content, whatever the octets and however they are cut."""

import pytest
import uvloop

from tests.smtp.fakes import connected, running

BEGIN = ["MAIL FROM:<a@b.example>", "RCPT TO:<ann@example.org>", "DATA"]
COMMANDS = b"MAIL FROM:<evil@example.org>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\nSubject: smuggled\r\n\r\nx"
FALSE_ENDS = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\n.\r",
    b"\r.\n",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\0\r\n..\r\n",
    b"\r\r\n.\r\r\n",
    b"\n\n.\n\n",
]


@pytest.mark.parametrize("end", FALSE_ENDS, ids=repr)
def test_false_end_is_refused_after_the_true_end(end):
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            stream = b"Subject: good\r\n\r\ntext" + end + COMMANDS + b"\r\n.\r\n"
            for cut in (len(stream), 1, 2, 3, 7):
                await client.ask_all(*BEGIN)
                await client.send_segments(stream[at : at + cut] for at in range(0, len(stream), cut))
                answer = await client.reply()
                assert answer.startswith("550 5.5.2 Message refused: it contains a bare CR, a bare LF or NUL")
                assert (await client.ask("NOOP")).startswith("250 2.0.0")
            senders = {call[3].reverse_path for call in rig.intake.calls if call[0] == "sender"}
            assert senders == {"a@b.example"}
            assert rig.intake.arrivals == []

    uvloop.run(scenario())


def test_every_segmentation_of_the_true_end():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            stream = b"Subject: x\r\n\r\n..\r\n.\r\nNOOP\r\n"
            for first in range(len(stream) - 12, len(stream)):
                for second in range(first + 1, len(stream)):
                    await client.ask_all(*BEGIN)
                    segments = (stream[:first], stream[first:second], stream[second:])
                    await client.send_segments(segments)
                    assert (await client.reply()).startswith("250 2.0.0 Ok: msg_")
                    assert (await client.reply()) == "250 2.0.0 Ok"
            assert set(rig.intake.contents()) == {b"Subject: x\r\n\r\n.\r\n"}

    uvloop.run(scenario())


@pytest.mark.parametrize(
    "command",
    [
        b"NOOP\nMAIL FROM:<evil@example.org>\r\n",
        b"NOOP\rMAIL FROM:<evil@example.org>\r\n",
        b"NOOP\r\r\n",
        b"NOOP\n\r\n",
        b"NOOP \0\r\n",
        b"\n\r\n",
        b"MAIL FROM:<a\nb@example.org>\r\n",
        b'MAIL FROM:<"a\rb"@example.org>\r\n',
    ],
    ids=repr,
)
def test_command_with_bare_line_end_is_refused_whole(command):
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            for cut in (len(command), 1):
                await client.send_segments(command[at : at + cut] for at in range(0, len(command), cut))
                answer = await client.reply()
                assert answer == "500 5.5.2 Commands end in CRLF; bare CR, bare LF and NUL are not allowed"
                assert (await client.ask("NOOP")) == "250 2.0.0 Ok"
            assert not any(call[0] == "sender" for call in rig.intake.calls)

    uvloop.run(scenario())


def test_client_without_cr_is_told_at_once():
    async def scenario():
        async with running() as rig, connected(rig.mx, greet=False) as client:
            client.send(b"EHLO x\n")
            assert (await client.reply()).startswith("500 5.5.2 Commands end in CRLF")

    uvloop.run(scenario())


def test_bdat_is_checked_as_data_is():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            await client.ask_all(*BEGIN[:2])
            client.send(b"BDAT 4 LAST\r\na\n.\nNOOP\r\n")
            assert (await client.reply()).startswith("550 5.5.2 Message refused")
            assert (await client.reply()) == "250 2.0.0 Ok"
            assert rig.intake.arrivals == []

    uvloop.run(scenario())
