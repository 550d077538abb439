"""Scans within their limits, against scanners that answer, hang, break off and talk nonsense."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from server.scanners.clamav import ClamAv
from server.scanners.place import Place
from server.scanners.request import Held, Request
from server.scanners.rspamd import Rspamd
from server.scanners.scanning import Guard, Scanning
from storage.records import Envelope, Peer, Recipient
from tests.fakes import FakeClock

ENVELOPE = Envelope("a@b.test", (Recipient("c@d.test"),))
PEER = Peer("192.0.2.1", helo="x.test")
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await scenario()

    asyncio.run(limited())


@asynccontextmanager
async def serving(talk: Talk):
    """A scanner of our own on loopback; yields its address."""
    talks = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.current_task())
        try:
            await talk(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"tcp:127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for one in talks:
            one.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


def guard(address: str, kind=ClamAv, **changes) -> Guard:
    clock = changes.pop("clock", FakeClock())
    made = kind(Place.parse(address), hostname="mx.test") if kind is Rspamd else kind(Place.parse(address))
    limits = {"timeout_seconds": 5.0, "max_octets": 1 << 20, "concurrency": 2, "absence": "defer", **changes}
    return Guard(made, clock=clock, **limits)


def request(content: bytes = b"Subject: x\r\n\r\n") -> Request:
    return Request(PEER, ENVELOPE, Held(content), "q1")


async def take_stream(reader: asyncio.StreamReader) -> bytes:
    assert await reader.readexactly(10) == b"zINSTREAM\0"
    found = b""
    while octets := int.from_bytes(await reader.readexactly(4), "big"):
        found += await reader.readexactly(octets)
    return found


def test_the_whole_message_reaches_clamd():
    async def scenario() -> None:
        seen = []

        async def talk(reader, writer) -> None:
            seen.append(await take_stream(reader))
            writer.write(b"stream: OK\0")
            await writer.drain()

        content = bytes(range(256)) * 2000
        async with serving(talk) as address:
            assert (await guard(address).scan(request(content))).result == "clean"
        assert seen == [content]

    run(scenario)


def test_an_answer_in_the_middle_ends_the_stream():
    async def scenario() -> None:
        async def talk(reader, writer) -> None:
            await reader.readexactly(1000)
            writer.write(b"INSTREAM size limit exceeded. ERROR\0")
            await writer.drain()
            while await reader.read(1 << 16):
                pass

        async with serving(talk) as address:
            found = await guard(address, max_octets=1 << 30).scan(request(bytes(20 << 20)))
        assert found.result == "too_large"

    run(scenario)


async def hang(reader, writer) -> None:
    await asyncio.Event().wait()


async def hang_up(reader, writer) -> None:
    await reader.read(5)


async def nonsense(reader, writer) -> None:
    writer.write(b"\xff" * 10_000)
    await writer.drain()
    await reader.read()


async def endless(reader, writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


@pytest.mark.parametrize("kind", [ClamAv, Rspamd])
@pytest.mark.parametrize("talk", [hang, hang_up, nonsense, endless])
def test_a_scanner_that_fails_is_absent_within_its_time(kind, talk):
    async def scenario() -> None:
        async with serving(talk) as address:
            found = await guard(address, kind, timeout_seconds=0.3).scan(request(bytes(900_000)))
        assert found.result == "absent", found
        assert found.properties == {"absence": "defer"}
        assert found.reason

    run(scenario)


def test_a_scanner_that_is_not_there_is_absent():
    async def scenario() -> None:
        async with serving(hang) as address:
            pass
        assert (await guard(address).scan(request())).result == "absent"
        assert (await guard("unix:/nowhere/socket", Rspamd).scan(request())).result == "absent"

    run(scenario)


def test_one_that_does_not_answer_gets_a_rest_and_then_another_chance():
    async def scenario() -> None:
        asked = []

        async def talk(reader, writer) -> None:
            asked.append(1)
            if len(asked) > 3:
                await take_stream(reader)
                writer.write(b"stream: OK\0")
                await writer.drain()

        clock = FakeClock()
        async with serving(talk) as address:
            one = guard(address, clock=clock)
            results = [(await one.scan(request())).result for _ in range(6)]
            assert (results, len(asked)) == (["absent"] * 6, 3)
            clock.advance(6)
            assert (await one.scan(request())).result == "clean"
            assert (await one.scan(request())).result == "clean"

    run(scenario)


def test_no_more_scans_run_at_once_than_the_limit():
    async def scenario() -> None:
        running, most = 0, 0
        go = asyncio.Event()

        async def talk(reader, writer) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            if running == 2:
                go.set()
            await take_stream(reader)
            await go.wait()
            running -= 1
            writer.write(b"stream: OK\0")
            await writer.drain()

        async with serving(talk) as address:
            one = guard(address, concurrency=2)
            found = await asyncio.gather(*(one.scan(request()) for _ in range(20)))
        assert {verdict.result for verdict in found} == {"clean"}
        assert most == 2

    run(scenario)


def test_what_is_too_large_is_not_sent():
    async def scenario() -> None:
        found = await guard("unix:/nowhere", max_octets=10).scan(request(b"x" * 11))
        assert found.result == "too_large"

    run(scenario)


def test_a_message_whose_rules_ask_nothing_is_not_scanned_and_one_that_goes_away_leaves_nothing():
    async def scenario() -> None:
        begun = asyncio.Event()

        async def talk(reader, writer) -> None:
            begun.set()
            await asyncio.Event().wait()

        async with serving(talk) as address:
            scanning = Scanning([guard(address)], threads=None)  # type: ignore[arg-type]  # no file is read
            none = await scanning.begin((), peer=PEER, envelope=ENVELOPE, content=b"x")
            assert none.verdicts == ()
            assert none.known["rspamd_status"] == "off"
            assert "virus_name" not in none.known
            await none.end()
            assert not begun.is_set()
            scans = await scanning.begin({"virus_name"}, peer=PEER, envelope=ENVELOPE, content=b"x")
            await begun.wait()
            await scans.end()
            assert len(asyncio.all_tasks()) <= 3  # this one, the server's talk, and nothing of the scan

    run(scenario)
