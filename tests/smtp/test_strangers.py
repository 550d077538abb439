"""Clients that nobody knows: their rates, the greeting they wait for, and those who guess at names."""

import asyncio

import pytest
import uvloop

from server.refusal import Refusal
from server.smtp import strangers
from server.smtp.settings import SmtpSettings
from server.smtp.strangers import StrangerLimits, Strangers
from tests.fakes import FakeClock
from tests.smtp.fakes import Client, connected, running, until

ADDRESS = "192.0.2.7"
NO_SUCH_USER = Refusal(550, "5.1.1", "No such mailbox here")


def limits(**changes) -> StrangerLimits:
    """Limits under which the tests' own clients are strangers, without a delay unless one is asked for."""
    return StrangerLimits(**{"exempt_networks": (), "greeting_delay_seconds": 0.0} | changes)


def settings(**changes) -> SmtpSettings:
    return SmtpSettings(strangers=limits(**changes))


async def refused(client: Client, *lines: str) -> list[str]:
    return [answer[:9] for answer in await client.ask_all(*lines)]


@pytest.mark.parametrize(
    ("limit", "count"),
    [
        ("connections_per_minute", Strangers.connect),
        ("messages_per_hour", Strangers.message),
        ("recipients_per_hour", Strangers.recipient),
    ],
)
def test_an_address_may_bring_so_much_and_its_network_some_times_that(limit, count):
    clock = FakeClock()
    known = Strangers(clock, limits(**{limit: 3}, network_factor=2))
    for _ in range(3):
        count(known, ADDRESS)
    with pytest.raises(Refusal) as refusal:
        count(known, ADDRESS)
    assert refusal.value.temporary
    for last in (8, 9, 10):
        count(known, f"192.0.2.{last}")
    with pytest.raises(Refusal):
        count(known, "192.0.2.11")
    count(known, "192.0.3.11")
    clock.advance(2 * 3600)
    count(known, ADDRESS)


def test_a_rate_falls_bit_by_bit_and_what_was_refused_does_not_count():
    clock = FakeClock()
    known = Strangers(clock, limits(connections_per_minute=60))
    for _ in range(60):
        known.connect(ADDRESS)
    for _ in range(1000):
        with pytest.raises(Refusal):
            known.connect(ADDRESS)
    clock.advance(90)
    for _ in range(30):
        known.connect(ADDRESS)
    with pytest.raises(Refusal):
        known.connect(ADDRESS)


def test_addresses_of_one_ipv6_network_count_as_one():
    known = Strangers(FakeClock(), limits(messages_per_hour=1, network_factor=2))
    known.message("2001:db8:1:2::1")
    with pytest.raises(Refusal):
        known.message("2001:db8:1:2:ffff::9")
    known.message("2001:db8:1:3::1")
    with pytest.raises(Refusal):
        known.message("2001:db8:1:4::1")


def test_no_limit_is_none():
    known = Strangers(FakeClock(), limits(messages_per_hour=0))
    for _ in range(20_000):
        known.message(ADDRESS)


def test_only_so_many_are_remembered(monkeypatch):
    monkeypatch.setattr(strangers, "COUNTED", 100)
    known = Strangers(FakeClock(), limits())
    for number in range(1000):
        known.connect(f"10.{number // 250}.{number % 250}.1")
    assert len(known._records) == 100


def test_hosts_of_the_house_are_not_counted():
    known = Strangers(FakeClock(), StrangerLimits(exempt_networks=("127.0.0.0/8", "10.0.0.0/8")))
    assert [known.counts(address) for address in ("127.0.0.1", "10.1.2.3", "", ADDRESS)] == [
        False,
        False,
        False,
        True,
    ]


def test_a_connection_too_many_is_421():
    async def scenario():
        async with running(settings(connections_per_minute=2)) as rig:
            for _ in range(2):
                async with connected(rig.mx):
                    pass
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.mx)
            client = Client(reader, writer)
            assert await client.reply() == "421 4.7.0 Too many connections, try again later"
            assert await client.is_closed()
            client.close()
            # Users are counted elsewhere.
            async with connected(rig.submission) as other:
                assert (await other.ask("NOOP")).startswith("250")
            assert rig.server.strangers.refused == {"connections": 1}

    uvloop.run(scenario())


def test_a_message_or_recipient_too_many_is_451_and_the_session_goes_on():
    async def scenario():
        async with (
            running(settings(messages_per_hour=2, recipients_per_hour=3)) as rig,
            connected(rig.mx) as client,
        ):
            assert await refused(client, "MAIL FROM:<>", *["RCPT TO:<ann@example.org>"] * 4) == [
                "250 2.1.0",
                *["250 2.1.5"] * 3,
                "451 4.7.1",
            ]
            await client.ask("RSET")
            assert await refused(client, "MAIL FROM:<>", "RSET", "MAIL FROM:<>") == [
                "250 2.1.0",
                "250 2.0.0",
                "451 4.7.1",
            ]
            assert (await client.ask("NOOP")).startswith("250")

    uvloop.run(scenario())


def test_who_speaks_before_the_greeting_gets_554_in_its_place():
    async def scenario():
        async with running(settings(greeting_delay_seconds=30)) as rig:
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.mx)
            client = Client(reader, writer)
            await until(lambda: rig.server._sessions)
            (session,) = rig.server._sessions
            client.send(b"EHLO bot.example\r\nMAIL FROM:<>\r\n")
            await until(lambda: session.has_input)
            session.hurry()
            assert await client.reply() == "554 5.5.1 You spoke before the greeting"
            assert (await client.reply()).startswith("503 The connection was refused")
            assert (await client.reply())[:9] == "503 5.5.1"
            assert (await client.ask("QUIT")).startswith("221")
            client.close()
            assert rig.server.strangers.greeting_delay("127.0.0.1") == 30

    uvloop.run(scenario())


def test_who_waits_for_the_greeting_once_gets_the_next_at_once():
    async def scenario():
        async with running(settings(greeting_delay_seconds=0.01)) as rig:
            async with connected(rig.mx) as client:
                assert (await client.ask("NOOP")).startswith("250")
            assert rig.server.strangers.greeting_delay("127.0.0.1") == 0.0
            async with connected(rig.mx) as client:
                assert (await client.ask("NOOP")).startswith("250")
            assert rig.server.strangers.refused == {}

    uvloop.run(scenario())


def test_who_leaves_before_the_greeting_is_no_acquaintance():
    async def scenario():
        async with running(settings(greeting_delay_seconds=30)) as rig:
            _, writer = await asyncio.open_connection("127.0.0.1", rig.mx)
            await until(lambda: rig.server._sessions)
            writer.close()
            await until(lambda: not rig.server._sessions)
            await asyncio.sleep(0)
            assert rig.server.strangers.greeting_delay("127.0.0.1") == 30

    uvloop.run(scenario())


def test_the_server_stops_while_clients_wait():
    async def scenario():
        async with running(settings(greeting_delay_seconds=3600)) as rig:
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.mx)
            await until(lambda: rig.server._sessions)
            await rig.server.drain(5)
            assert (await reader.read()).startswith(b"421 4.3.2")
            writer.close()

    uvloop.run(scenario())


def test_answers_about_unknown_recipients_come_later_and_later():
    known = Strangers(FakeClock(), limits(tarpit_after=3, tarpit_step_seconds=0.5, tarpit_most_seconds=2))
    delays = [known.unknown_recipient(ADDRESS) for _ in range(10)]
    assert delays == [0, 0, 0, 0.5, 1, 1.5, 2, 2, 2, 2]
    assert known.unknown_recipient("198.51.100.1") == 0


def test_a_harvester_waits_and_its_next_connections_are_refused():
    async def scenario():
        limit = settings(
            tarpit_after=2, tarpit_step_seconds=3600, tarpit_most_seconds=3600, unknown_recipients_per_hour=4
        )
        async with running(limit) as rig:
            rig.intake.refusals |= {f"u{n}@example.org": NO_SUCH_USER for n in range(9)}
            async with connected(rig.mx) as client:
                lines = ["MAIL FROM:<>", "RCPT TO:<u0@example.org>", "RCPT TO:<u1@example.org>"]
                assert (await refused(client, *lines))[1:] == ["550 5.1.1"] * 2
                for number in (2, 3):
                    client.send(b"RCPT TO:<u%d@example.org>\r\n" % number)
                    await until(lambda: next(iter(rig.server._sessions))._pause)
                    next(iter(rig.server._sessions)).hurry()
                    assert (await client.reply())[:9] == "550 5.1.1"
                # One that exists is answered at once.
                assert (await client.ask("RCPT TO:<ann@example.org>"))[:9] == "250 2.1.5"
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.mx)
            assert (await reader.read()).startswith(b"421 4.7.0 Too many unknown recipients")
            writer.close()

    uvloop.run(scenario())


def test_a_harvester_that_leaves_is_not_waited_for():
    async def scenario():
        limit = settings(tarpit_after=0, tarpit_step_seconds=3600, tarpit_most_seconds=3600)
        async with running(limit) as rig, connected(rig.mx) as client:
            rig.intake.refusals["u@example.org"] = NO_SUCH_USER
            await client.ask("MAIL FROM:<>")
            (session,) = rig.server._sessions
            client.send(b"RCPT TO:<u@example.org>\r\n")
            await until(lambda: session._pause)
            client.close()
            await until(lambda: session.task is None and not rig.server._sessions)

    uvloop.run(scenario())


def test_nobody_is_kept_waiting_when_connections_are_many():
    async def scenario():
        limit = SmtpSettings(
            max_connections=2,
            strangers=limits(tarpit_after=0, tarpit_step_seconds=3600, tarpit_most_seconds=3600),
        )
        async with running(limit) as rig, connected(rig.mx) as client, connected(rig.mx):
            rig.intake.refusals["u@example.org"] = NO_SUCH_USER
            assert await refused(client, "MAIL FROM:<>", "RCPT TO:<u@example.org>") == [
                "250 2.1.0",
                "550 5.1.1",
            ]

    uvloop.run(scenario())


def test_content_that_trickles_ends_in_421():
    async def scenario():
        clock = FakeClock()
        limit = SmtpSettings(data_timeout_seconds=100, least_octets_per_second=10)
        async with running(limit, clock=clock) as rig, connected(rig.mx) as client:
            await client.ask_all("MAIL FROM:<>", "RCPT TO:<ann@example.org>", "DATA")
            (session,) = rig.server._sessions
            for _ in range(12):
                clock.advance(9)
                before = session.reader.received
                client.send(b"a")
                await until(lambda before=before: session.reader is None or session.reader.received > before)
                rig.server.sweep()
                if session.transport.is_closing():
                    break
            assert (await client.reply())[:3] == "421"

    uvloop.run(scenario())


def test_content_that_trickles_in_whole_chunks_ends_in_421():
    async def scenario():
        clock = FakeClock()
        limit = SmtpSettings(
            data_timeout_seconds=100, command_timeout_seconds=100, least_octets_per_second=10
        )
        async with running(limit, clock=clock) as rig, connected(rig.mx) as client:
            await client.ask_all("MAIL FROM:<>", "RCPT TO:<ann@example.org>")
            (session,) = rig.server._sessions
            for number in range(9):
                clock.advance(20)
                rig.server.sweep()
                if session.transport.is_closing():
                    break
                client.send(b"BDAT 1\r\na")
                assert (await client.reply())[:3] == "250", number
            assert number == 6
            assert (await client.reply())[:3] == "421"

    uvloop.run(scenario())


def test_content_that_comes_slowly_but_well_is_taken():
    async def scenario():
        clock = FakeClock()
        limit = SmtpSettings(data_timeout_seconds=100, least_octets_per_second=10)
        async with running(limit, clock=clock) as rig, connected(rig.mx) as client:
            await client.ask_all("MAIL FROM:<>", "RCPT TO:<ann@example.org>", "DATA")
            (session,) = rig.server._sessions
            for _ in range(30):
                clock.advance(90)
                before = session.reader.received
                client.send(b"x" * 898 + b"\r\n")
                await until(lambda before=before: session.reader.received > before)
                rig.server.sweep()
            assert (await client.ask(".")).startswith("250")

    uvloop.run(scenario())


def test_what_the_server_takes_to_write_content_is_not_counted_against_the_client():
    async def scenario():
        clock = FakeClock()
        limit = SmtpSettings(data_timeout_seconds=100, least_octets_per_second=10, spool_threshold_octets=100)
        async with running(limit, clock=clock) as rig, connected(rig.mx) as client:
            gate = asyncio.Event()
            run = rig.server.threads.run

            async def slowly(function, *args):
                await gate.wait()
                return await run(function, *args)

            rig.server.threads.run = slowly
            await client.ask_all("MAIL FROM:<>", "RCPT TO:<ann@example.org>", "DATA")
            (session,) = rig.server._sessions
            client.send(b"x" * 198 + b"\r\n")
            await until(lambda: session.task)
            clock.advance(5000)
            rig.server.sweep()
            gate.set()
            await until(lambda: session.task is None)
            rig.server.sweep()
            clock.advance(50)
            rig.server.sweep()
            assert (await client.ask(".")).startswith("250")

    uvloop.run(scenario())


def useless(number: int) -> tuple[str, ...]:
    """Commands that lead to no message, never the same ones."""
    return (
        ("NOOP",),
        ("MAIL FROM:<a@far.example>", f"RCPT TO:<u{number}@example.org>", "RSET"),
        ("EHLO client.example",),
        ("NONSENSE",),
    )[number % 4]


def test_commands_that_bring_no_message_end_in_421():
    async def scenario():
        clock = FakeClock()
        async with running(SmtpSettings(), clock=clock) as rig, connected(rig.mx) as client:
            (session,) = rig.server._sessions
            for number in range(10):
                clock.advance(200)
                rig.server.sweep()
                if session.transport.is_closing():
                    break
                await client.ask_all(*useless(number))
            assert number == 8
            assert (await client.reply())[:9] == "421 4.4.2"

    uvloop.run(scenario())


def test_recipients_one_now_and_then_end_in_421():
    async def scenario():
        clock = FakeClock()
        async with running(SmtpSettings(), clock=clock) as rig, connected(rig.mx) as client:
            await client.ask("MAIL FROM:<a@far.example>")
            (session,) = rig.server._sessions
            for number in range(10):
                clock.advance(290)
                rig.server.sweep()
                if session.transport.is_closing():
                    break
                assert (await client.ask(f"RCPT TO:<u{number}@example.org>"))[:3] == "250"
            assert number == 6

    uvloop.run(scenario())


@pytest.mark.parametrize("door", ["mx", "lmtp"])
def test_who_brings_messages_or_is_of_the_house_may_stay(door):
    async def scenario():
        clock = FakeClock()
        hello = "LHLO" if door == "lmtp" else "EHLO"
        async with (
            running(SmtpSettings(), clock=clock) as rig,
            connected(getattr(rig, door), hello=hello) as client,
        ):
            for _ in range(30):
                clock.advance(290)
                rig.server.sweep()
                lines = ("NOOP",) if door == "lmtp" else ("MAIL FROM:<>", "RCPT TO:<a@example.org>", "DATA")
                await client.ask_all(*lines)
                if door == "mx":
                    assert (await client.ask("."))[:3] == "250"

    uvloop.run(scenario())
