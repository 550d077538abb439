"""Sessions over real sockets: order of commands, replies, transactions, failures behind them."""

import asyncio
import smtplib

import pytest
import uvloop

from server.refusal import Refusal
from server.smtp.settings import SmtpSettings
from storage.records import Envelope, Recipient, Source
from tests.smtp.fakes import Client, connected, running, until

MESSAGE = b"Subject: hello\r\n\r\nbody\r\n"


async def transact(client: Client, content: bytes = MESSAGE, sender: str = "a@b.example") -> list[str]:
    answers = await client.ask_all(f"MAIL FROM:<{sender}>", "RCPT TO:<ann@example.org>", "DATA")
    client.send(content + b".\r\n")
    return [*answers, await client.reply()]


def test_message_is_taken_in_with_its_envelope():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            answers = await transact(client)
            assert answers == [
                "250 2.1.0 Sender ok",
                "250 2.1.5 Recipient ok",
                "354 Start mail input; end with <CRLF>.<CRLF>",
                "250 2.0.0 Ok: msg_1",
            ]
            (arrival,) = rig.intake.arrivals
            assert arrival.content == MESSAGE
            assert arrival.source is Source.MX
            assert arrival.envelope == Envelope("a@b.example", (Recipient("ann@example.org"),))
            assert arrival.peer.address == "127.0.0.1"
            assert (arrival.peer.helo, arrival.peer.extended) == ("client.example", True)
            assert arrival.identity is None

    uvloop.run(scenario())


def test_greeting_and_ehlo_have_no_enhanced_code():
    async def scenario():
        async with running() as rig, connected(rig.mx, greet=False) as client:
            answer = await client.ask("EHLO client.example")
            assert answer.split("|")[0] == "250-mx.example.org"
            assert "250-PIPELINING" in answer
            assert "STARTTLS" not in answer
            assert await client.ask("HELO client.example") == "250 mx.example.org"
            assert (await client.ask("EHLO")).startswith("501 Syntax")
            assert (await client.ask("HELO a b")).startswith("501 Syntax")

    uvloop.run(scenario())


@pytest.mark.parametrize(
    ("lines", "last"),
    [
        (["MAIL FROM:<a@b.example>"], "503 5.5.1"),
        (["EHLO x", "RCPT TO:<a@b.example>"], "503 5.5.1"),
        (["EHLO x", "DATA"], "503 5.5.1"),
        (["EHLO x", "MAIL FROM:<>", "DATA"], "503 5.5.1"),
        (["EHLO x", "MAIL FROM:<>", "MAIL FROM:<>"], "503 5.5.1"),
        (["EHLO x", "MAIL FROM:<>", "RSET", "RCPT TO:<a@b.example>"], "503 5.5.1"),
        (["EHLO x", "MAIL FROM:<>", "EHLO y", "RCPT TO:<a@b.example>"], "503 5.5.1"),
        (["EHLO x", "MAIL FROM:<>", "HELO y", "RCPT TO:<a@b.example>"], "503 5.5.1"),
        (["EHLO x", "MAIL FROM:<>", "EHLO", "RCPT TO:<a@b.example>"], "250 2.1.5"),
        (["EHLO x", "MAIL FROM:<>", "VRFY ann", "NOOP", "HELP", "RCPT TO:<a@b.example>"], "250 2.1.5"),
        (["HELO x", "MAIL FROM:<a@b.example> SIZE=1"], "555 5.5.4"),
        (["EHLO x", "MAIL FROM:<a@b.example> SIZE=52428800"], "250 2.1.0"),
        (["EHLO x", "MAIL FROM:<a@b.example> SIZE=52428801"], "552 5.3.4"),
        (["NOOP"], "250 2.0.0"),
        (["RSET"], "250 2.0.0"),
        (["HELP"], "214 2.0.0"),
        (["VRFY ann"], "252 2.0.0"),
        (["EXPN staff"], "550 5.7.1"),
        (["STARTTLS"], "502 5.5.1"),
        (["EHLO x", "AUTH PLAIN"], "502 5.5.1"),
        (["FOO"], "500 5.5.2"),
        (["TURN"], "502 5.5.1"),
        (["QUIT now"], "501 5.5.4"),
        (["QUIT"], "221 2.0.0"),
        (["EHLO x", "MAIL FROM:<m\xfc@b.example>"], "553 5.6.7"),
        (["EHLO x", "MAIL FROM:<a@b.example>", "RCPT TO:<m\xfc@b.example>"], "553 5.6.7"),
        (["EHLO x", "MAIL FROM:<a@b.example> SMTPUTF8", "RCPT TO:<m\xfc@b.example>"], "250 2.1.5"),
        (["EHLO x", "MAIL FROM:<a@b.example> SMTPUTF8", "RSET", "MAIL FROM:<m\xfc@b.example>"], "553 5.6.7"),
    ],
)
def test_order_of_commands(lines, last):
    async def scenario():
        async with running() as rig, connected(rig.mx, greet=False) as client:
            answers = await client.ask_all(*lines)
            assert answers[-1].startswith(last)

    uvloop.run(scenario())


def test_quit_closes():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            assert (await client.ask("QUIT")).startswith("221 2.0.0")
            assert await client.is_closed()
            await until(lambda: rig.server.connections == 0)

    uvloop.run(scenario())


def test_several_messages_in_one_session():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            for number in range(5):
                assert (await transact(client, b"n%d\r\n" % number))[-1] == f"250 2.0.0 Ok: msg_{number + 1}"
            assert rig.intake.contents() == [b"n%d\r\n" % number for number in range(5)]

    uvloop.run(scenario())


def test_null_reverse_path_and_bare_postmaster():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            await client.ask_all("MAIL FROM:<>", "RCPT TO:<Postmaster>", "DATA")
            assert (await client.ask(".")).startswith("250 ")
            envelope = rig.intake.arrivals[0].envelope
            assert envelope.reverse_path is None
            assert envelope.recipients == (Recipient("Postmaster"),)
            assert rig.intake.contents() == [b""]

    uvloop.run(scenario())


def test_parameters_reach_intake():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            await client.ask_all(
                "MAIL FROM:<a@b.example> SIZE=99 BODY=8BITMIME",
                "RCPT TO:<ann@example.org>",
                "DATA",
            )
            await client.ask(".")
            assert [call[-1] for call in rig.intake.calls if call[0] == "sender"] == [99]
            recipient = Recipient("ann@example.org")
            assert rig.intake.arrivals[0].envelope == Envelope("a@b.example", (recipient,), "8BITMIME", False)

    uvloop.run(scenario())


def test_parameters_of_every_extension_reach_the_envelope():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            assert (await client.ask("MAIL FROM:<a@b.example> RET=HDRS ENVID=q+2B BODY=8BITMIME"))[
                :3
            ] == "250"
            line = "RCPT TO:<ann@example.org> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;ann+40old.example"
            assert (await client.ask(line))[:3] == "250"
            await client.ask("DATA")
            assert (await client.ask("a: b\r\n\r\n."))[:3] == "250"
            envelope = rig.intake.arrivals[0].envelope
            assert (envelope.ret, envelope.envid, envelope.body) == ("HDRS", "q+2B", "8BITMIME")
            recipient = envelope.recipients[0]
            assert recipient.notify == {"SUCCESS", "DELAY"}
            assert recipient.orcpt == "rfc822;ann+40old.example"

    uvloop.run(scenario())


@pytest.mark.parametrize("parameter", ["REQUIRETLS", "HOLDFOR=60", "HOLDUNTIL=2040-01-01T00:00:00Z"])
def test_parameters_that_were_not_announced_are_refused(parameter):
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            assert (await client.ask(f"MAIL FROM:<a@b.example> {parameter}")).startswith("555 5.5.4")

    uvloop.run(scenario())


def test_recipient_is_judged_with_those_before_it():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            rig.intake.refusals["bad@example.org"] = Refusal(550, "5.1.1", "No such user")
            answers = await client.ask_all(
                "MAIL FROM:<a@b.example>",
                "RCPT TO:<one@example.org>",
                "RCPT TO:<bad@example.org>",
                "RCPT TO:<two@example.org>",
            )
            assert answers[2] == "550 5.1.1 No such user"
            judged = [
                [r.address for r in call[3].recipients] for call in rig.intake.calls if call[0] == "recipient"
            ]
            assert judged == [[], ["one@example.org"], ["one@example.org"]]
            await client.ask("DATA")
            await client.ask(".")
            assert [r.address for r in rig.intake.arrivals[0].envelope.recipients] == [
                "one@example.org",
                "two@example.org",
            ]

    uvloop.run(scenario())


def test_data_without_a_valid_recipient_is_554():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            rig.intake.refusals["recipient"] = Refusal(550, "5.1.1", "No such user")
            answers = await client.ask_all("MAIL FROM:<>", "RCPT TO:<a@b.example>", "DATA")
            assert answers[-1] == "554 5.5.1 No valid recipients"
            assert (await client.ask("NOOP")).startswith("250")

    uvloop.run(scenario())


@pytest.mark.parametrize("step", ["helo", "sender", "recipient", "accept"])
def test_refusal_of_intake_is_answered_and_the_session_goes_on(step):
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            rig.intake.refusals[step] = Refusal(450, "4.7.1", "Come back later", "private cause")
            if step == "helo":
                assert await client.ask("EHLO y") == "450 Come back later"
            else:
                answers = await client.ask_all("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
                if step == "accept":
                    answers.append(await client.ask("."))
                assert "450 4.7.1 Come back later" in answers
            assert not any("private" in answer for answer in [await client.ask("RSET")])
            rig.intake.refusals.clear()
            assert (await transact(client))[-1].startswith("250 ")

    uvloop.run(scenario())


def test_failure_before_the_greeting_is_451_and_no_traceback_of_the_loop():
    async def scenario():
        faults: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: faults.append(context))
        async with running() as rig:
            rig.intake.refusals["connected"] = RuntimeError("/secret/path")
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.mx)
            async with asyncio.timeout(10):
                assert await reader.readline() == b"451 4.3.0 Local error, try again later\r\n"
            writer.close()
        assert faults == []

    uvloop.run(scenario())


@pytest.mark.parametrize("step", ["connected", "helo", "sender", "recipient", "accept"])
def test_failure_of_intake_is_451_and_the_session_goes_on(step):
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            rig.intake.refusals[step] = RuntimeError("/secret/path")
            answers = await client.ask_all(
                "EHLO x", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA"
            )
            if answers[-1].startswith("354"):
                answers.append(await client.ask("."))
            if step != "connected":
                assert "451 4.3.0 Local error, try again later" in answers
            assert "secret" not in "".join(answers)
            rig.intake.refusals.clear()
            await client.ask_all("RSET", "EHLO x")
            assert (await transact(client))[-1].startswith("250 ")

    uvloop.run(scenario())


def test_connection_refused_with_554_waits_for_quit():
    async def scenario():
        async with running() as rig:
            rig.intake.refusals["connected"] = Refusal(554, "5.7.1", "Not from there")
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.mx)
            client = Client(reader, writer)
            assert await client.reply() == "554 5.7.1 Not from there"
            for line in ("EHLO x", "MAIL FROM:<>", "NOOP", "DATA"):
                assert (await client.ask(line)).startswith("503")
            assert (await client.ask("QUIT")).startswith("221")
            assert await client.is_closed()

    uvloop.run(scenario())


@pytest.mark.parametrize("step", ["connected", "helo", "sender", "recipient", "accept"])
def test_421_of_intake_closes(step):
    async def scenario():
        async with running() as rig:
            rig.intake.refusals[step] = Refusal(421, "4.7.0", "Go away for now")
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.mx)
            client = Client(reader, writer)
            answers = [await client.reply()]
            for line in ("EHLO x", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA", "."):
                if answers[-1].startswith("421"):
                    break
                answers.append(await client.ask(line))
            assert answers[-1] == "421 4.7.0 Go away for now"
            assert await client.is_closed()
            client.close()

    uvloop.run(scenario())


def test_replies_to_pipelined_commands_come_in_order_and_together():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            writes = []
            session = next(iter(rig.server._sessions))
            transport = session.transport

            class Watched:
                def __getattr__(self, name):
                    return getattr(transport, name)

                def write(self, octets):
                    writes.append(octets)
                    transport.write(octets)

            session.transport = Watched()
            client.send(
                b"MAIL FROM:<a@b.example>\r\nRCPT TO:<one@example.org>\r\nNOOP\r\n"
                b"RCPT TO:<two@example.org>\r\nDATA\r\n"
            )
            answers = [(await client.reply())[:3] for _ in range(5)]
            assert answers == ["250", "250", "250", "250", "354"]
            assert len(writes) == 1
            client.send(MESSAGE + b".\r\nMAIL FROM:<x@b.example>\r\nRSET\r\nQUIT\r\n")
            assert [(await client.reply())[:3] for _ in range(4)] == ["250", "250", "250", "221"]
            assert rig.intake.contents() == [MESSAGE]

    uvloop.run(scenario())


def test_commands_in_single_octets():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            stream = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"
            await client.send_segments(stream[at : at + 1] for at in range(len(stream)))
            assert [(await client.reply())[:3] for _ in range(3)] == ["250", "250", "354"]
            stream = MESSAGE + b".\r\nQUIT\r\n"
            await client.send_segments(stream[at : at + 1] for at in range(len(stream)))
            assert [(await client.reply())[:3] for _ in range(2)] == ["250", "221"]
            assert rig.intake.contents() == [MESSAGE]

    uvloop.run(scenario())


def test_content_behind_a_refused_data_is_never_read_as_commands():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            client.send(b"MAIL FROM:<a@b.example>\r\nDATA\r\nNOOP\r\nNOOP\r\n.\r\n")
            assert (await client.reply()).startswith("250")
            assert (await client.reply()).startswith("503")
            assert await client.is_closed()
            assert rig.intake.arrivals == []

    uvloop.run(scenario())


def test_another_protocol_is_cut_off():
    async def scenario():
        async with running() as rig, connected(rig.mx, greet=False) as client:
            client.send(b"POST / HTTP/1.1\r\nHost: x\r\n\r\nEHLO x\r\nMAIL FROM:<a@b.example>\r\n")
            assert (await client.reply()).startswith("500 5.5.2")
            assert await client.is_closed()
            assert [call[0] for call in rig.intake.calls] == ["connected"]

    uvloop.run(scenario())


def test_commands_sent_before_the_greeting_wait_for_it():
    async def scenario():
        async with running() as rig:
            rig.intake.gates["connected"] = asyncio.Event()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.mx)
            client = Client(reader, writer)
            client.send(b"EHLO early.example\r\nNOOP\r\n")
            await until(lambda: rig.server.connections == 1)
            assert [call[0] for call in rig.intake.calls] == ["connected"]
            rig.intake.gates["connected"].set()
            assert [(await client.reply())[:3] for _ in range(3)] == ["220", "250", "250"]
            client.close()

    uvloop.run(scenario())


def test_half_closed_client_still_gets_its_answers():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            rig.intake.gates["sender"] = asyncio.Event()
            client.send(b"MAIL FROM:<a@b.example>\r\nNOOP\r\n")
            client.writer.write_eof()
            await until(lambda: any(call[0] == "sender" for call in rig.intake.calls))
            await until(lambda: next(iter(rig.server._sessions))._at_eof)
            rig.intake.gates["sender"].set()
            assert (await client.reply()).startswith("250 2.1.0")
            assert (await client.reply()).startswith("250 2.0.0")
            assert await client.is_closed()

    uvloop.run(scenario())


@pytest.mark.parametrize("cut", [b"", b"Subject: x\r\n\r\nhalf", MESSAGE, MESSAGE + b".", MESSAGE + b".\r"])
def test_unfinished_content_is_discarded_when_the_client_goes(cut):
    async def scenario():
        async with running() as rig:
            async with connected(rig.mx) as client:
                await client.ask_all("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
                client.send(cut)
                await client.writer.drain()
            await until(lambda: rig.server.connections == 0)
            await until(lambda: rig.server._memory.used_octets == 0)
            assert rig.intake.arrivals == []

    uvloop.run(scenario())


def test_accept_is_not_cut_off_when_the_client_goes():
    async def scenario():
        async with running() as rig:
            rig.intake.gates["accept"] = asyncio.Event()
            async with connected(rig.mx) as client:
                await client.ask_all("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
                client.send(MESSAGE + b".\r\n")
                await until(lambda: any(call[0] == "accept" for call in rig.intake.calls))
                client.writer.transport.abort()
            await until(lambda: next(iter(rig.server._sessions))._at_eof)
            rig.intake.gates["accept"].set()
            await until(lambda: rig.intake.contents() == [MESSAGE])
            await until(lambda: rig.server._memory.used_octets == 0)

    uvloop.run(scenario())


def test_smtplib_delivers():
    async def scenario():
        async with running() as rig:

            def deliver():
                with smtplib.SMTP("127.0.0.1", rig.mx, timeout=10) as smtp:
                    refused = smtp.sendmail(
                        "a@b.example",
                        ["ann@example.org", "bob@example.org"],
                        "Subject: x\n\n.dot\n..two\nend",
                        mail_options=["BODY=8BITMIME"],
                    )
                    assert refused == {}
                    assert smtp.vrfy("ann")[0] == 252
                    assert smtp.noop()[0] == 250
                    assert smtp.expn("staff")[0] == 550

            await asyncio.to_thread(deliver)
            assert rig.intake.contents() == [b"Subject: x\r\n\r\n.dot\r\n..two\r\nend\r\n"]

    uvloop.run(scenario())


def test_client_that_does_not_read_is_not_read_from():
    async def scenario():
        async with running(SmtpSettings(max_idle_commands=10**9)) as rig, connected(rig.mx) as client:
            session = next(iter(rig.server._sessions))
            client.writer.transport.pause_reading()
            asked = 0
            while not session._writing_paused:
                if client.writer.transport.get_write_buffer_size() < 60_000:
                    client.send(b"HELP\r\n" * 10_000)
                    asked += 10_000
                await asyncio.sleep(0)
                assert asked < 20_000_000  # the kernel holds megabytes for each of the two
            # One batch of replies may stand above the high-water mark, and no more.
            assert session.transport.get_write_buffer_size() < 8_000_000
            client.writer.transport.resume_reading()
            answered = 0
            while answered < asked:
                answered += (await client.reader.read(1 << 20)).count(b"\n")
            assert answered == asked

    uvloop.run(scenario())
