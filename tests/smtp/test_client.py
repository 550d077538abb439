"""The client against servers on loopback: scripted ones, and Debian's smtp-sink."""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from server.smtp.client import (
    Client,
    ConnectFailed,
    Endpoint,
    Stuffing,
    Timeouts,
    connect,
)
from server.smtp.client_machine import Answer, Dialect, Transaction
from server.tls import make_self_signed, opportunistic_context
from storage.records import Recipient
from tests.smtp.scripted import FAST, HELLO, PLAIN_HELLO, Scripted, script

TAKE = """
C MAIL FROM:<s@us.test>
S 250 ok
C RCPT TO:<a@peer.test>
S 250 ok
C DATA
S 354 go
"""


def chunks(*parts: bytes) -> Callable[[], AsyncIterator[bytes]]:
    async def give() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    return give


async def nothing(accepted: tuple[int, ...]) -> None:
    return None


async def opened(server: Scripted, timeouts: Timeouts = FAST, *, tls: bool = False) -> Client:
    context = opportunistic_context() if tls else None
    return await connect(server.endpoint(), hostname="us.test", tls=context, timeouts=timeouts)


async def send(client: Client, *parts: bytes, recipients: tuple[str, ...] = ("a@peer.test",)) -> list[Answer]:
    parties = tuple(Recipient(one) for one in recipients)
    transaction = Transaction("s@us.test", parties, sum(map(len, parts)))
    return list(await client.deliver(transaction, content=chunks(*parts), begin=nothing))


def code(answer: Answer) -> tuple[str, int | None]:
    return answer.phase, answer.reply.code if answer.reply else None


def test_a_message_arrives_octet_for_octet_and_the_connection_serves_again() -> None:
    message = b"Subject: x\r\n\r\n.dot\r\n..two\r\n.\r\nlast"

    async def run() -> None:
        again = TAKE.replace("S 354 go", "S 354 go\nBODY\nS 250 2.0.0 queued")
        async with Scripted(script(HELLO, again, again, "C QUIT")) as server:
            client = await opened(server)
            for _ in range(2):
                assert [code(one) for one in await send(client, message)] == [("final", 250)]
                assert client.ready
            assert client.transactions == 2
            client.quit()
            await asyncio.sleep(0)
            while len(server.lines) < 8:
                await asyncio.sleep(0.01)
            # The last line's CRLF is added, as SMTP cannot do without it.
            assert server.bodies == [message + b"\r\n"] * 2

    asyncio.run(asyncio.wait_for(run(), 20))


def test_transmission_is_recorded_before_the_first_octet_of_content() -> None:
    order: list[str] = []

    async def run() -> None:
        async with Scripted(script(HELLO, TAKE, "BODY", "S 250 ok")) as server:
            client = await opened(server)

            async def begin(accepted: tuple[int, ...]) -> None:
                await asyncio.sleep(0.05)
                order.append(f"begun {accepted} with {len(server.bodies)} bodies")

            async def content() -> AsyncIterator[bytes]:
                order.append("content")
                yield b"x\r\n"

            transaction = Transaction("s@us.test", (Recipient("a@peer.test"),), 3)
            await client.deliver(transaction, content=content, begin=begin)
            client.quit()

    asyncio.run(asyncio.wait_for(run(), 20))
    assert order == ["begun (0,) with 0 bodies", "content"]


def test_a_begin_that_fails_sends_nothing_and_drops_the_connection() -> None:
    async def run() -> None:
        async with Scripted(script(HELLO, TAKE, "BODY")) as server:
            client = await opened(server)

            async def begin(accepted: tuple[int, ...]) -> None:
                raise RuntimeError("lost")

            transaction = Transaction("s@us.test", (Recipient("a@peer.test"),), 3)
            with pytest.raises(RuntimeError):
                await client.deliver(transaction, content=chunks(b"x\r\n"), begin=begin)
            assert not client.ready
            assert server.bodies == []

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_large_message_is_streamed_in_pieces_with_backpressure() -> None:
    piece = b"." + b"x" * 998 + b"\r\n"
    message = [piece * 262 for _ in range(20)]

    async def run() -> None:
        async with Scripted(script(PLAIN_HELLO, TAKE, "BODY", "S 250 ok")) as server:
            client = await opened(server)
            assert [code(one) for one in await send(client, *message)] == [("final", 250)]
            assert server.bodies == [b"".join(message)]
            client.quit()

    asyncio.run(asyncio.wait_for(run(), 30))


@pytest.mark.parametrize(
    ("scenario", "expected"),
    [
        (script(HELLO, "C MAIL", "CLOSE"), ("mail", None)),
        (script(HELLO, "C MAIL", "S 250 ok", "C RCPT", "CLOSE"), ("rcpt", None)),
        (script(HELLO, TAKE, "CLOSE"), ("data", None)),
        (script(HELLO, TAKE, "BODY", "CLOSE"), ("final", None)),
        (script(HELLO, TAKE, "BODY", "S 421 4.3.0 bye", "WAIT"), ("final", 421)),
        (script(HELLO, TAKE, "BODY", "S 554 5.6.0 no"), ("final", 554)),
        (script(HELLO, TAKE, "BODY", "R 250-half"), ("final", None)),
        (script(HELLO, "C MAIL", "S 451 4.7.1 greylisted", "WAIT"), ("mail", 451)),
        (script(HELLO, "C MAIL", "R \\xff\\xff\\r\\n", "WAIT"), ("mail", None)),
    ],
)
def test_every_way_to_fail_is_an_answer(scenario: str, expected: tuple[str, int | None]) -> None:
    async def run() -> None:
        async with Scripted(scenario) as server:
            client = await opened(server, Timeouts(command=0.3, data=0.2, final=0.3))
            answers = await send(client, b"x\r\n" * 100_000)
            if expected == ("data", None):
                # Whether the loss is seen while content is written or after its dot, no reply came.
                assert code(answers[0]) in (("data", None), ("final", None))
            else:
                assert [code(one) for one in answers] == [expected]
            assert not client.ready or expected[1] is not None
            client.quit()

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_server_that_drips_its_replies_meets_the_deadline() -> None:
    drip = "\n".join(["R 2"] + ["R 5"] * 2000)

    async def run() -> None:
        async with Scripted(script(HELLO, "C MAIL", drip, "WAIT")) as server:
            client = await opened(server, Timeouts(command=0.2, data=0.1))
            answers = await send(client, b"x\r\n")
            assert answers[0].reply is None
            assert not client.ready

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_server_that_does_not_read_on_meets_the_deadline() -> None:
    async def run() -> None:
        async with Scripted(script(HELLO, TAKE, "STALL")) as server:
            client = await opened(server, Timeouts(block=0.2, final=0.2))
            answers = await send(client, *[b"x" * 500_000] * 100)
            assert code(answers[0]) == ("data", None)
            assert "read on" in answers[0].text

    asyncio.run(asyncio.wait_for(run(), 20))


@pytest.mark.parametrize(
    ("scenario", "phase"),
    [
        ("S 554 no mail here", "connect"),
        ("S 421 busy", "connect"),
        ("CLOSE", "connect"),
        ("WAIT", "connect"),
        (script("S 220 x", "C EHLO", "S 502 what", "C HELO", "S 550 no"), "ehlo"),
        (script("S 220 x", "C EHLO", "S 421 no"), "ehlo"),
        (script("S 220 x", "C EHLO", "\n".join(["S 250-x"] * 200)), "ehlo"),
    ],
)
def test_a_connection_that_does_not_become_ready_says_where(scenario: str, phase: str) -> None:
    async def run() -> None:
        async with Scripted(scenario) as server:
            with pytest.raises(ConnectFailed) as failed:
                await opened(server, Timeouts(command=0.3))
            assert failed.value.answer.phase == phase

    asyncio.run(asyncio.wait_for(run(), 20))


def test_nobody_listening_is_a_failure_to_connect() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        place = Endpoint("mx.peer.test", "127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ConnectFailed) as failed:
            asyncio.run(connect(place, hostname="us.test", tls=None, timeouts=FAST))
    assert failed.value.answer.phase == "connect"
    assert "refused" in failed.value.answer.text.lower()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_self_signed(tmp_path_factory.mktemp("tls"), names=["mx.peer.test"])


STARTTLS = """
S 220 mx.peer.test
C EHLO us.test
S 250-mx.peer.test
S 250 STARTTLS
C STARTTLS
S 220 go
"""


def test_tls_is_used_when_offered_and_reported(certificate: tuple[Path, Path]) -> None:
    secure = script(STARTTLS, "TLS", "C EHLO us.test", "S 250 mx.peer.test", TAKE, "BODY", "S 250 ok")

    async def run() -> None:
        async with Scripted(secure, certificate=certificate) as server:
            client = await opened(server, tls=True)
            assert client.tls_version == "TLSv1.3"
            assert client.tls_cipher
            assert [code(one) for one in await send(client, b"x\r\n")] == [("final", 250)]
            client.quit()

    asyncio.run(asyncio.wait_for(run(), 20))


@pytest.mark.parametrize(
    "after",
    ["S this is no handshake\nWAIT", "CLOSE", "WAIT"],
)
def test_a_failed_handshake_fails_in_the_tls_phase(after: str) -> None:
    async def run() -> None:
        async with Scripted(script(STARTTLS, after)) as server:
            with pytest.raises(ConnectFailed) as failed:
                await opened(server, Timeouts(command=0.5), tls=True)
            assert failed.value.answer.phase == "tls"

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_reply_injected_before_the_handshake_is_never_believed() -> None:
    injected = STARTTLS.replace("S 220 go", "R 220 go\\r\\n250 forged\\r\\n") + "\nWAIT"

    async def run() -> None:
        async with Scripted(injected) as server:
            with pytest.raises(ConnectFailed) as failed:
                await opened(server, tls=True)
            assert failed.value.answer.phase == "tls"
            assert "clear" in failed.value.answer.text

    asyncio.run(asyncio.wait_for(run(), 20))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
def test_dots_are_stuffed_alike_however_the_content_is_cut(size: int) -> None:
    content = b".first\r\nx.y\r\n..\r\n.\r\n\r\n.\r\nend\r\n.last"
    stuffing = Stuffing()
    pieces = [stuffing.feed(content[at : at + size]) for at in range(0, len(content), size)]
    whole = b"".join(pieces) + stuffing.finish()
    assert whole == b"..first\r\nx.y\r\n...\r\n..\r\n\r\n..\r\nend\r\n..last\r\n.\r\n"


@pytest.mark.parametrize(("content", "end"), [(b"", b".\r\n"), (b"x\r\n", b".\r\n"), (b"x", b"\r\n.\r\n")])
def test_the_final_dot_stands_on_a_line_of_its_own(content: bytes, end: bytes) -> None:
    stuffing = Stuffing()
    stuffing.feed(content)
    assert stuffing.finish() == end


SINK = shutil.which("smtp-sink", path="/usr/sbin:/usr/bin")


async def _sink(*options: str) -> tuple[asyncio.subprocess.Process, int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert SINK is not None
    process = await asyncio.create_subprocess_exec(SINK, *options, f"127.0.0.1:{port}", "100")
    for _ in range(500):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
            continue
        writer.close()
        break
    return process, port


@pytest.mark.skipif(SINK is None, reason="smtp-sink is in Debian's package postfix")
@pytest.mark.parametrize(
    ("options", "dialect", "expected"),
    [
        ((), Dialect.SMTP, ("final", 250)),
        (("-p",), Dialect.SMTP, ("final", 250)),
        (("-e",), Dialect.SMTP, ("final", 250)),
        (("-L",), Dialect.LMTP, ("final", 250)),
        (("-r", "RCPT"), Dialect.SMTP, ("rcpt", 450)),
        (("-f", "MAIL"), Dialect.SMTP, ("mail", 500)),
        (("-f", "DATA"), Dialect.SMTP, ("data", 500)),
        (("-r", "."), Dialect.SMTP, ("final", 450)),
        (("-q", "."), Dialect.SMTP, ("final", None)),
        (("-Q", "RCPT"), Dialect.SMTP, ("rcpt", 421)),
    ],
)
def test_smtp_sink_is_understood(
    options: tuple[str, ...], dialect: Dialect, expected: tuple[str, int | None]
) -> None:
    async def run() -> None:
        process, port = await _sink("-u", "nobody", *options)
        try:
            place = Endpoint("sink.test", "127.0.0.1", port, dialect)
            client = await connect(place, hostname="us.test", tls=None, timeouts=FAST)
            answers = await send(
                client, b"Subject: x\r\n\r\nx\r\n", recipients=("a@sink.test", "b@sink.test")
            )
            assert [code(one) for one in answers] == [expected] * 2
            client.quit()
        finally:
            process.kill()
            await process.wait()

    asyncio.run(asyncio.wait_for(run(), 30))
