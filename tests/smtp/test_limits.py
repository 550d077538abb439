"""Limits of sessions and server: lines, errors, sizes, memory, time, connections, drain."""

import asyncio

import pytest
import uvloop

from server.refusal import Refusal
from server.smtp.body import BLOCK_OCTETS
from server.smtp.settings import MEBI, SmtpSettings
from server.sockets import network_of
from storage.errors import Full
from storage.records import Spooled
from tests.smtp.fakes import Client, connected, running, until

BEGIN = ["MAIL FROM:<a@b.example>", "RCPT TO:<ann@example.org>", "DATA"]
LINE = b"x" * 70 + b"\r\n"


def test_too_long_line_is_answered_once_and_skipped():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            assert (await client.ask(b"NOOP " + b"x" * 505)).startswith("250")
            assert (await client.ask(b"NOOP " + b"x" * 506)) == "500 5.5.2 Line too long"
            client.send(b"NOOP " + b"x" * 100_000)
            assert (await client.reply()) == "500 5.5.2 Line too long"
            client.send(b"x" * 100_000 + b"\r\nNOOP\r\n")
            assert (await client.reply()) == "250 2.0.0 Ok"
            session = next(iter(rig.server._sessions))
            assert len(session._input) == 0

    uvloop.run(scenario())


def test_too_many_errors_close():
    async def scenario():
        async with running(SmtpSettings(max_errors=3)) as rig, connected(rig.mx) as client:
            answers = await client.ask_all("FOO", "DATA", "BAR")
            assert [answer[:9] for answer in answers] == ["500 5.5.2", "503 5.5.1", "421 4.7.0"]
            assert await client.is_closed()

    uvloop.run(scenario())


def test_too_many_commands_without_mail_close():
    async def scenario():
        async with running(SmtpSettings(max_idle_commands=3)) as rig, connected(rig.mx) as client:
            answers = await client.ask_all("NOOP", "RSET", "NOOP")
            assert [answer[:9] for answer in answers] == ["250 2.0.0", "250 2.0.0", "421 4.7.0"]
            assert await client.is_closed()

    uvloop.run(scenario())


def test_too_many_recipients_are_452_and_the_rest_is_delivered():
    async def scenario():
        async with running(SmtpSettings(max_recipients=2)) as rig, connected(rig.mx) as client:
            await client.ask("MAIL FROM:<>")
            answers = await client.ask_all(*[f"RCPT TO:<u{n}@example.org>" for n in range(4)])
            assert [answer[:9] for answer in answers] == ["250 2.1.5"] * 2 + ["452 4.5.3"] * 2
            await client.ask("DATA")
            assert (await client.ask(".")).startswith("250")
            assert len(rig.intake.arrivals[0].envelope.recipients) == 2

    uvloop.run(scenario())


def test_harvesting_recipients_closes():
    async def scenario():
        async with running(SmtpSettings(max_refused_recipients=3)) as rig, connected(rig.mx) as client:
            rig.intake.refusals["recipient"] = Refusal(550, "5.1.1", "No such user")
            answers = []
            for number in range(3):
                answers += await client.ask_all("RSET", "MAIL FROM:<>", f"RCPT TO:<u{number}@example.org>")
            assert answers[-4].startswith("550")
            assert answers[-1].startswith("421 4.7.0")
            assert await client.is_closed()

    uvloop.run(scenario())


def test_message_beyond_the_limit_is_552_and_the_session_goes_on():
    async def scenario():
        async with running(SmtpSettings(max_message_octets=1000)) as rig, connected(rig.mx) as client:
            await client.ask_all(*BEGIN)
            client.send(LINE * 20 + b".\r\n")
            assert (await client.reply()).startswith("552 5.3.4")
            await client.ask_all(*BEGIN)
            client.send(LINE * 13 + b".\r\n")
            assert (await client.reply()).startswith("250")
            assert rig.intake.contents() == [LINE * 13]

    uvloop.run(scenario())


def test_endless_message_is_cut_off():
    async def scenario():
        async with running(SmtpSettings(max_message_octets=100_000)) as rig, connected(rig.mx) as client:
            await client.ask_all(*BEGIN)
            try:
                for _ in range(400):
                    client.send(LINE * 100)
                    await client.writer.drain()
            except ConnectionError:
                pass
            await until(lambda: rig.server.connections == 0)
            await until(lambda: rig.server._memory.used_octets == 0)
            assert rig.intake.arrivals == []

    uvloop.run(scenario())


def test_large_message_goes_to_the_spool_in_blocks():
    async def scenario():
        async with running(SmtpSettings(spool_threshold_octets=100_000)) as rig, connected(rig.mx) as client:
            content = b"\r\n" + LINE * 40_000
            await client.ask_all(*BEGIN)
            client.send(content + b".\r\nNOOP\r\n")
            assert (await client.reply()).startswith("250 2.0.0 Ok: msg_1")
            assert (await client.reply()) == "250 2.0.0 Ok"
            (writer,) = rig.intake.spools.writers
            assert isinstance(rig.intake.arrivals[0].content, Spooled)
            assert writer.content == content
            assert writer.state == "finished"
            # A block, and at most what one read of the loop and the input buffer add to it.
            assert rig.intake.spools.largest_write <= BLOCK_OCTETS + 2 * 256 * 1024 + 64 * 1024
            assert rig.server._memory.used_octets == 0

    uvloop.run(scenario())


@pytest.mark.parametrize("octets", [99_936, 100_008])
def test_threshold_decides_between_memory_and_spool(octets):
    async def scenario():
        async with running(SmtpSettings(spool_threshold_octets=100_000)) as rig, connected(rig.mx) as client:
            await client.ask_all(*BEGIN)
            client.send(LINE * (octets // 72) + b".\r\n")
            assert (await client.reply()).startswith("250")
            assert isinstance(rig.intake.arrivals[0].content, bytes) == (octets < 100_000)

    uvloop.run(scenario())


def test_chunks_go_to_the_spool_too():
    async def scenario():
        async with running(SmtpSettings(spool_threshold_octets=50_000)) as rig, connected(rig.mx) as client:
            await client.ask_all(*BEGIN[:2])
            chunk = LINE * 1000
            for last in (b"", b"", b" LAST"):
                client.send(b"BDAT %d%s\r\n" % (len(chunk), last) + chunk)
                assert (await client.reply()).startswith("250")
            assert rig.intake.spools.writers[0].content == chunk * 3

    uvloop.run(scenario())


def test_memory_of_all_sessions_is_capped():
    async def scenario():
        settings = SmtpSettings(max_memory_octets=100_000)
        async with running(settings) as rig, connected(rig.mx) as one, connected(rig.mx) as two:
            for client in (one, two):
                await client.ask_all(*BEGIN)
                client.send(LINE * 1200)
            await until(lambda: any(writer.content for writer in rig.intake.spools.writers))
            await until(lambda: rig.server._memory.used_octets <= 100_000)
            for client in (one, two):
                client.send(b".\r\n")
                assert (await client.reply()).startswith("250")
            assert rig.server._memory.used_octets == 0

    uvloop.run(scenario())


@pytest.mark.parametrize(
    ("failure", "answer"), [(Full("disk"), "452 4.3.1"), (OSError(5, "Input/output error"), "451 4.3.0")]
)
def test_spool_that_cannot_be_written_refuses_at_the_true_end(failure, answer):
    async def scenario():
        async with running(SmtpSettings(spool_threshold_octets=1000)) as rig, connected(rig.mx) as client:
            rig.intake.spools.failure = failure
            await client.ask_all(*BEGIN)
            client.send(LINE * 100)
            await until(lambda: rig.intake.spools.writers != [])
            client.send(LINE * 100 + b".\r\nNOOP\r\n")
            assert (await client.reply())[:9] == answer
            assert (await client.reply()).startswith("250")
            assert rig.intake.spools.writers[0].state == "discarded"
            assert rig.intake.arrivals == []

    uvloop.run(scenario())


def test_spool_that_cannot_be_opened_refuses_at_the_true_end():
    async def scenario():
        async with running(SmtpSettings(spool_threshold_octets=1000)) as rig, connected(rig.mx) as client:
            rig.intake.spools.has_room = False
            for content in (LINE * 20, LINE * 5000):
                await client.ask_all(*BEGIN)
                client.send(content + b".\r\nNOOP\r\n")
                assert (await client.reply()).startswith("452 4.3.1")
                assert (await client.reply()).startswith("250")
                assert rig.server._memory.used_octets == 0

    uvloop.run(scenario())


def test_spool_file_of_an_unfinished_message_is_discarded():
    async def scenario():
        async with running(SmtpSettings(spool_threshold_octets=1000)) as rig:
            async with connected(rig.mx) as client:
                await client.ask_all(*BEGIN)
                client.send(LINE * 100)
                await until(lambda: rig.intake.spools.writers != [])
            await until(lambda: rig.intake.spools.writers[0].state == "discarded")

    uvloop.run(scenario())


def test_spool_file_of_a_refused_message_is_discarded():
    async def scenario():
        async with running(SmtpSettings(spool_threshold_octets=1000)) as rig, connected(rig.mx) as client:
            rig.intake.refusals["accept"] = Refusal(550, "5.7.1", "Spam")
            await client.ask_all(*BEGIN)
            client.send(LINE * 100 + b".\r\n")
            assert (await client.reply()) == "550 5.7.1 Spam"
            assert rig.intake.spools.writers[0].state == "discarded"

    uvloop.run(scenario())


# Time


def test_silent_client_gets_421_after_the_command_timeout():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            rig.clock.advance(299)
            rig.server.sweep()
            assert (await client.ask("NOOP")).startswith("250")
            rig.clock.advance(299)
            rig.server.sweep()
            # Half a command does not move the deadline.
            client.send(b"NOO")
            await until(lambda: next(iter(rig.server._sessions))._input == b"NOO")
            rig.clock.advance(2)
            rig.server.sweep()
            assert (await client.reply()).startswith("421 4.4.2")
            assert await client.is_closed()

    uvloop.run(scenario())


def test_content_has_its_own_timeout_that_progress_moves():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            await client.ask_all(*BEGIN)
            reader = next(iter(rig.server._sessions)).reader
            for _ in range(5):
                rig.clock.advance(170)
                before = reader.received
                client.send(b"x" * 19_998 + b"\r\n")
                await until(lambda before=before: reader.received == before + 20_000)
                rig.server.sweep()
            rig.clock.advance(181)
            rig.server.sweep()
            assert (await client.reply()).startswith("421 4.4.2")
            await until(lambda: rig.server.connections == 0)
            await until(lambda: rig.server._memory.used_octets == 0)

    uvloop.run(scenario())


def test_time_that_intake_takes_is_not_the_client_s():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            rig.intake.gates["accept"] = asyncio.Event()
            await client.ask_all(*BEGIN)
            client.send(b".\r\n")
            await until(lambda: any(call[0] == "accept" for call in rig.intake.calls))
            rig.clock.advance(10_000)
            rig.server.sweep()
            rig.intake.gates["accept"].set()
            assert (await client.reply()).startswith("250")
            assert (await client.ask("NOOP")).startswith("250")

    uvloop.run(scenario())


def test_server_sweeps_by_itself():
    async def scenario():
        settings = SmtpSettings(command_timeout_seconds=0.05)

        class Ticking:
            def now(self):
                return 0

            def monotonic(self):
                return asyncio.get_running_loop().time()

        async with running(settings, clock=Ticking()) as rig, connected(rig.mx, greet=False) as client:
            assert (await client.reply()).startswith("421 4.4.2")

    uvloop.run(scenario())


# Connections


def test_connections_per_address_are_limited():
    async def scenario():
        async with running(SmtpSettings(max_connections_per_address=2)) as rig, connected(rig.mx):
            async with connected(rig.submission):
                reader, writer = await asyncio.open_connection("127.0.0.1", rig.mx)
                third = Client(reader, writer)
                assert (await third.reply()).startswith("421 4.7.0 Too many connections")
                assert await third.is_closed()
                third.close()
            await until(lambda: rig.server.connections == 1)
            async with connected(rig.mx) as again:
                assert (await again.ask("NOOP")).startswith("250")

    uvloop.run(scenario())


def test_connections_in_all_are_limited():
    async def scenario():
        async with running(SmtpSettings(max_connections=1)) as rig, connected(rig.mx):
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.mx)
            second = Client(reader, writer)
            assert (await second.reply()).startswith("421 4.7.0")
            second.close()

    uvloop.run(scenario())


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("", ""),
    ],
)
def test_ipv6_is_counted_by_its_network(address, network):
    assert network_of(address) == network


def test_counts_are_empty_when_all_have_gone():
    async def scenario():
        async with running() as rig:
            for _ in range(5):
                async with connected(rig.mx) as client:
                    await client.ask("MAIL FROM:<>")
            await until(lambda: rig.server.connections == 0)
            assert rig.server._by_network == {}

    uvloop.run(scenario())


# Drain


def test_drain_sends_idle_clients_away_and_waits_for_a_transaction():
    async def scenario():
        async with running() as rig, connected(rig.mx) as idle, connected(rig.mx) as busy:
            await busy.ask_all(*BEGIN)
            drain = asyncio.ensure_future(rig.server.drain(10))
            assert (await idle.reply()).startswith("421 4.3.2")
            assert await idle.is_closed()
            with pytest.raises(ConnectionError):
                await asyncio.open_connection("127.0.0.1", rig.mx)
            busy.send(b"kept\r\n.\r\n")
            assert (await busy.reply()).startswith("250 2.0.0 Ok")
            assert (await busy.reply()).startswith("421 4.3.2")
            assert await busy.is_closed()
            await drain
            assert rig.intake.contents() == [b"kept\r\n"]
            assert rig.server.connections == 0

    uvloop.run(scenario())


def test_drain_ends_at_its_limit():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            await client.ask_all(*BEGIN)
            client.send(b"half")
            await rig.server.drain(0.05)
            assert (await client.reply()).startswith("421 4.3.2")
            assert rig.server.connections == 0
            assert rig.intake.arrivals == []

    uvloop.run(scenario())


def test_drain_does_not_cut_what_intake_is_taking_in():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            rig.intake.gates["accept"] = asyncio.Event()
            await client.ask_all(*BEGIN)
            client.send(b".\r\n")
            await until(lambda: any(call[0] == "accept" for call in rig.intake.calls))
            drain = asyncio.ensure_future(rig.server.drain(10))
            await asyncio.sleep(0)
            rig.intake.gates["accept"].set()
            assert (await client.reply()).startswith("250")
            assert (await client.reply()).startswith("421 4.3.2")
            await drain

    uvloop.run(scenario())


def test_many_idle_connections_do_not_hold_up_a_good_one():
    async def scenario():
        settings = SmtpSettings(max_connections=400, max_connections_per_address=400)
        async with running(settings) as rig:
            idle = [await asyncio.open_connection("127.0.0.1", rig.mx) for _ in range(300)]
            for number, (_, writer) in enumerate(idle):
                writer.write(b"EHLO slo"[: number % 8])
            async with connected(rig.mx) as client:
                await client.ask_all(*BEGIN)
                assert (await client.ask(".")).startswith("250")
            for _, writer in idle:
                writer.close()

    uvloop.run(scenario())


def test_client_that_reads_nothing_cannot_fill_the_memory():
    async def scenario():
        async with running(SmtpSettings(max_idle_commands=10**9)) as rig, connected(rig.mx) as client:
            session = next(iter(rig.server._sessions))
            transport = client.writer.transport
            transport.pause_reading()
            sent = 0
            while not session._writing_paused:
                if transport.get_write_buffer_size() < 60_000:
                    client.send(b"HELP\r\n" * 10_000)
                await asyncio.sleep(0)
            # What comes now stays with the client: the kernel holds a few MiB, the session almost none.
            while sent < 64 * MEBI and transport.get_write_buffer_size() < 4 * MEBI:
                client.send(b"HELP\r\n" * 100_000)
                sent += 600_000
                for _ in range(20):
                    await asyncio.sleep(0)
            assert len(session._input) < MEBI
            assert sent < 64 * MEBI
            transport.abort()

    uvloop.run(scenario())


def test_refused_senders_close():
    async def scenario():
        async with running(SmtpSettings(max_refused_recipients=3)) as rig, connected(rig.mx) as client:
            rig.intake.refusals["sender"] = Refusal(550, "5.7.1", "Not from you")
            answers = await client.ask_all(*["MAIL FROM:<a@b.example>"] * 3)
            assert [answer[:9] for answer in answers] == ["550 5.7.1", "550 5.7.1", "421 4.7.0"]
            assert await client.is_closed()

    uvloop.run(scenario())


def test_empty_chunks_close():
    async def scenario():
        async with running(SmtpSettings(max_idle_commands=4)) as rig, connected(rig.mx) as client:
            await client.ask_all(*BEGIN[:2])
            answers = await client.ask_all(*["BDAT 0"] * 4)
            assert [answer[:9] for answer in answers] == ["250 2.0.0"] * 3 + ["421 4.7.0"]
            assert await client.is_closed()

    uvloop.run(scenario())
