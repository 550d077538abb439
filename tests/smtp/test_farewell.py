"""A client that sends on while it is refused reads the refusal all the same."""

import asyncio
import ssl
from pathlib import Path

import pytest
import uvloop

from server.smtp.settings import SmtpSettings
from server.smtp.steps import HEARD_OUT_OCTETS
from server.tls import make_self_signed
from tests.fakes import FakeClock
from tests.smtp.fakes import running, until

MUCH = b"x" * (1 << 20)


async def sending_on(port: int, *lines: bytes, octets: int = 4) -> bytes:
    """All that a client reads that sends so many MiB behind its lines before it looks."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for line in lines:
        writer.write(line + b"\r\n")
    for _ in range(octets):
        writer.write(MUCH)
        await writer.drain()
    writer.write_eof()
    try:
        return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("lines", "reply"),
    [
        ([b"EHLO x", b"BDAT 99999999999 LAST"], b"552 5.3.4 "),
        ([b"EHLO x", *[b"FOO"] * 20], b"421 4.7.0 "),
    ],
    ids=["bdat", "errors"],
)
def test_a_refused_client_that_sends_on_reads_why(lines: list[bytes], reply: bytes) -> None:
    async def scenario() -> None:
        async with running(SmtpSettings(max_errors=20)) as rig:
            said = await sending_on(rig.mx, *lines)
            assert said.split(b"\r\n")[-2].startswith(reply)
            await until(lambda: rig.server.connections == 0)

    uvloop.run(scenario())


def test_who_sends_on_for_ever_is_cut_off() -> None:
    async def scenario() -> None:
        async with running() as rig:
            with pytest.raises(ConnectionError):
                await sending_on(rig.mx, b"BDAT 99999999999 LAST", octets=4 * (HEARD_OUT_OCTETS >> 20))
            await until(lambda: rig.server.connections == 0)

    uvloop.run(scenario())


def test_who_says_nothing_more_and_stays_is_cut_off_in_the_end() -> None:
    async def scenario() -> None:
        clock = FakeClock()
        async with running(clock=clock) as rig:
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.mx)
            writer.write(b"BDAT 99999999999 LAST\r\n")
            # The server's half is closed at once, the client's stays.
            assert b"552 5.3.4 " in await reader.read()
            assert rig.server.connections == 1
            clock.advance(11)
            rig.server.sweep()
            await until(lambda: rig.server.connections == 0)
            writer.close()

    uvloop.run(scenario())


def test_under_tls_the_refusal_is_read_and_the_connection_ends(tmp_path: Path) -> None:
    make_self_signed(tmp_path / "t", names=["mail.example.org"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*sorted((tmp_path / "t").iterdir(), key=lambda path: "key" in path.name))
    lax = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    lax.check_hostname, lax.verify_mode = False, ssl.CERT_NONE

    async def scenario() -> None:
        async with running(tls=context) as rig:
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.submissions, ssl=lax)
            writer.write(b"BDAT 99999999999 LAST\r\n")
            assert b"552 5.3.4 " in await reader.read()
            writer.close()
            await until(lambda: rig.server.connections == 0)

    uvloop.run(scenario())
