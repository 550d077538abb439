"""What follows the end of TLS is nothing: plaintext is never read, unfinished content is discarded."""

import asyncio
import shutil
import socket
import ssl
import struct
from collections.abc import Callable

import pytest
import uvloop

from server.smtp.settings import SmtpSettings
from server.tls import ServerTls, make_self_signed
from tests.smtp.fakes import Rig, connected, running, until
from tests.tlswire import TlsWire, rest_of

EVIL = b"\r\n.\r\nRSET\r\nEHLO evil.example\r\nMAIL FROM:<evil@example.org>\r\n"
ENVELOPE = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"
LINE = b"x" * 70 + b"\r\n"
BEGUN = {
    "idle": (b"NOOP\r\n", b"250 2.0.0"),
    "half a command": (b"NOOP\r\nMAIL FR", b"250 2.0.0"),
    "transaction": (ENVELOPE, b"250 2.1.5"),
    "data": (ENVELOPE + b"DATA\r\n", b"354 "),
    "large data": (ENVELOPE + b"DATA\r\n" + LINE * 5000, b"354 "),
    "data but for its end": (ENVELOPE + b"DATA\r\nx\r\n.\r", b"354 "),
    "chunk": (ENVELOPE + b"BDAT 10000\r\nhalf", b"250 2.1.5"),
    "chunks without the last": (ENVELOPE + b"BDAT 4\r\na\r\n\r\n", b"250 2.0.0"),
}


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> ssl.SSLContext:
    return ServerTls(*make_self_signed(tmp_path_factory.mktemp("tls"), names=["mx.example.org"])).context()


def secured(port: int, maximum: ssl.TLSVersion | None = None) -> TlsWire:
    """A client behind STARTTLS and EHLO."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=10)
    raw.recv(1000)
    raw.sendall(b"EHLO client.example\r\n")
    raw.recv(1000)
    raw.sendall(b"STARTTLS\r\n")
    assert raw.recv(1000).startswith(b"220 ")
    wire = TlsWire(raw, maximum=maximum)
    wire.shake_hands()
    wire.send(b"EHLO client.example\r\n")
    wire.hear(b"250 REQUIRETLS\r\n")
    return wire


def notified(wire: TlsWire) -> None:
    wire.raw.sendall(wire.close_notify() + EVIL)


def notified_then_plain(wire: TlsWire) -> None:
    wire.raw.sendall(wire.close_notify())
    wire.raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for octet in EVIL:
        try:
            wire.raw.sendall(bytes([octet]))
        except OSError:
            return


def plain(wire: TlsWire) -> None:
    wire.raw.sendall(EVIL)


def forged_record(wire: TlsWire) -> None:
    record = bytearray(wire.records(EVIL))
    record[-1] ^= 1
    wire.raw.sendall(bytes(record) + EVIL)


def fatal_alert(wire: TlsWire) -> None:
    wire.raw.sendall(b"\x15\x03\x03\x00\x02\x02\x28" + EVIL)


def cut(wire: TlsWire) -> None:
    """The end of TCP without the end of TLS, as an attacker can make it."""
    wire.raw.shutdown(socket.SHUT_WR)


def reset(wire: TlsWire) -> None:
    wire.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.raw.close()


ENDINGS = [notified, notified_then_plain, plain, forged_record, fatal_alert, cut, reset]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("begun", BEGUN)
def test_nothing_is_read_or_kept_after_the_end_of_tls(
    context, begun: str, ending: Callable[[TlsWire], None], version: ssl.TLSVersion
):
    def attack(port: int) -> bytes:
        wire = secured(port, version)
        octets, mark = BEGUN[begun]
        wire.send(octets)
        wire.hear(mark)
        ending(wire)
        heard = b"" if wire.raw.fileno() < 0 else rest_of(wire.raw)
        wire.raw.close()
        return heard

    async def scenario():
        async with running(SmtpSettings(spool_threshold_octets=100_000), tls=context) as rig:
            heard = await asyncio.to_thread(attack, rig.mx)
            await until(lambda: rig.server.connections == 0)
            await until(lambda: rig.server._memory.used_octets == 0)
            assert b"250" not in heard, "no answer in the clear"
            writers = rig.intake.spools.writers
            await until(lambda: all(writer.state == "discarded" for writer in writers))
            _nothing_came_of_it(rig)
            async with connected(rig.mx) as good:
                assert (await good.ask("NOOP")).startswith("250")

    uvloop.run(scenario())


def _nothing_came_of_it(rig: Rig) -> None:
    assert rig.intake.arrivals == []
    senders = [call[3].reverse_path for call in rig.intake.calls if call[0] == "sender"]
    assert senders in ([], ["a@b.example"])
    assert {call[1].helo for call in rig.intake.calls if call[0] == "helo"} == {"client.example"}


def test_a_message_that_was_whole_before_close_notify_may_be_taken(context):
    """It was promised nothing, but nothing stands against it: its sender will ask again."""

    def send(port: int) -> None:
        wire = secured(port)
        wire.send(ENVELOPE + b"DATA\r\n")
        wire.hear(b"354 ")
        wire.raw.sendall(wire.records(b"whole\r\n.\r\n") + wire.close_notify() + EVIL)
        rest_of(wire.raw)
        wire.raw.close()

    async def scenario():
        async with running(tls=context) as rig:
            await asyncio.to_thread(send, rig.mx)
            await until(lambda: rig.server.connections == 0)
            assert rig.intake.contents() in ([], [b"whole\r\n"])

    uvloop.run(scenario())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_handshake_octets_behind_starttls_in_one_segment_are_refused_as_any_others(context, version):
    def attack(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
            raw.recv(1000)
            raw.sendall(b"STARTTLS\r\n" + TlsWire(raw, maximum=version).hello())
            return rest_of(raw)

    async def scenario():
        async with running(tls=context) as rig:
            assert (await asyncio.to_thread(attack, rig.mx)).startswith(b"554 5.5.1 ")

    uvloop.run(scenario())


@pytest.mark.parametrize("door", ["mx", "submissions"])
@pytest.mark.parametrize("endless", ["hello", "records", "plain"])
def test_an_endless_handshake_is_cut_off_early(context, door, endless):
    """A ClientHello that claims 16 MB, records without end, or no TLS at all."""

    def attack(port: int) -> int:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
            if door == "mx":
                raw.recv(1000)
                raw.sendall(b"STARTTLS\r\n")
                raw.recv(1000)
            record = b"\x16\x03\x01\x40\x00"
            first = b"\x01\xff\xff\xff\x03\x03" + b"\0" * (0x4000 - 6)
            sent = 0
            try:
                while sent < 64 << 20:
                    if endless == "plain":
                        sent += raw.send(b"x" * 0x4000)
                    else:
                        raw.sendall(record + (first if endless == "hello" and not sent else b"\0" * 0x4000))
                        sent += 0x4005
            except OSError:
                pass
            return sent

    async def scenario():
        async with running(tls=context) as rig:
            # What the kernel's buffers take is not the server's.
            assert await asyncio.to_thread(attack, getattr(rig, door)) < 32 << 20
            await until(lambda: rig.server.connections == 0)

    uvloop.run(scenario())


@pytest.mark.parametrize("octets", [1, 5, 100])
@pytest.mark.parametrize("door", ["mx", "submissions"])
def test_a_handshake_that_stops_halfway_has_a_time_limit(context, door, octets):
    def attack(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
            if door == "mx":
                raw.recv(1000)
                raw.sendall(b"STARTTLS\r\n")
                raw.recv(1000)
            raw.sendall(TlsWire(raw).hello()[:octets])
            return rest_of(raw)

    async def scenario():
        async with running(SmtpSettings(handshake_timeout_seconds=0.1), tls=context) as rig:
            assert await asyncio.to_thread(attack, getattr(rig, door)) == b""
            await until(lambda: rig.server.connections == 0)

    uvloop.run(scenario())


@pytest.mark.parametrize(
    "octets", [ENVELOPE + b"DATA\r\nx\r\n", ENVELOPE + b"BDAT 100\r\nx\r\n", b"MAIL FROM:<"]
)
def test_half_a_connection_in_the_clear_ends_what_was_begun(octets):
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            client.send(octets)
            client.writer.write_eof()
            await client.reader.read()
            await until(lambda: rig.server.connections == 0)
            assert rig.intake.arrivals == []

    uvloop.run(scenario())


def test_half_a_connection_is_answered_to_its_end():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            client.send(ENVELOPE + b"BDAT 3 LAST\r\nx\r\nNOOP\r\n")
            client.writer.write_eof()
            answers = (await client.reader.read()).split(b"\r\n")
            assert [answer[:3] for answer in answers] == [b"250"] * 4 + [b""]
            assert rig.intake.contents() == [b"x\r\n"]

    uvloop.run(scenario())


@pytest.mark.interop
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_renegotiation_is_refused(context):
    """openssl's client begins one where a line is R; TLS 1.3 has none."""

    async def scenario():
        async with running(tls=context) as rig:
            process = await asyncio.create_subprocess_exec(
                *("openssl", "s_client", "-tls1_2", "-starttls", "smtp"),
                *("-connect", f"127.0.0.1:{rig.mx}", "-crlf"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            process.stdin.write(b"NOOP\n")
            async with asyncio.timeout(20):
                heard = await process.stdout.readuntil(b"250 2.0.0 Ok")
                # It takes a command only where one read brings it alone.
                process.stdin.write(b"R\n")
                heard += await process.stdout.read()
                await process.wait()
            assert b"RENEGOTIATING" in heard
            assert b"no renegotiation" in heard
            await until(lambda: rig.server.connections == 0)
            async with connected(rig.mx) as good:
                assert (await good.ask("NOOP")).startswith("250")

    uvloop.run(scenario())
