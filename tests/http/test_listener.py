"""The listener on real sockets: start, serve, limits, drain."""

import asyncio
import contextlib
import signal
import ssl
from pathlib import Path

import httpx
import pytest

from server.http import listener as listeners
from server.http.listener import HttpListener
from server.proxied import PENDING_PER_NETWORK
from server.sections import Http
from server.sockets import open_listeners
from server.tls import ServerTls, make_self_signed
from tests.http.world import World

PLAIN = "tcp:127.0.0.1:0"


def no_tls() -> ssl.SSLContext:
    raise AssertionError("this listener is a plain one")


@contextlib.asynccontextmanager
async def serving(world: World, *addresses: str, tls=no_tls, **settings):
    """Serve the world's application; yields the listener and the ports."""
    made = HttpListener(world.app, settings=Http(**settings), tls_context=tls)
    bound = open_listeners(addresses or (PLAIN,), {})
    ports = [one.getsockname()[1] for _, one in bound]
    await made.start(bound)
    try:
        yield made, ports
    finally:
        await made.stop(5.0)


async def exchange(port: int, octets: bytes) -> bytes:
    """Send octets and return all that comes until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(octets)
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()


def test_it_serves_over_tcp_and_tls_and_captures_no_signal(world: World, tmp_path: Path) -> None:
    files = make_self_signed(tmp_path, names=["localhost", "127.0.0.1"])
    tls = ServerTls(*files)

    async def talk() -> None:
        before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
        async with serving(world, PLAIN, "tls:127.0.0.1:0", tls=tls.context) as (_, ports):
            assert {one: signal.getsignal(one) for one in before} == before
            trust = ssl.create_default_context(cafile=str(files[0]))
            async with httpx.AsyncClient(verify=trust) as client:
                for scheme, port in zip(("http", "https"), ports, strict=True):
                    answer = await client.get(f"{scheme}://127.0.0.1:{port}/health")
                    assert answer.json() == {"status": "ok"}
                    assert "date" in answer.headers
                    assert "server" not in answer.headers

    world.run(talk())


def test_it_serves_on_a_unix_socket(world: World, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"

    async def talk() -> None:
        made = HttpListener(world.app, settings=Http(), tls_context=no_tls)
        await made.start(open_listeners([f"unix:{path}"], {}))
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path))) as client:
            assert (await client.get("http://x/health")).status_code == 200
            # Nobody can tell who asks through a proxy's socket: metrics need a key.
            assert (await client.get("http://x/metrics")).status_code == 401
        await made.stop(5.0)

    world.run(talk())


def test_a_header_without_end_is_431(world: World) -> None:
    async def talk() -> None:
        async with serving(world) as (_, (port,)):
            fields = b"".join(b"X-%d: %s\r\n" % (number, b"y" * 1000) for number in range(100))
            answer = await exchange(port, b"GET /health HTTP/1.1\r\nHost: x\r\n" + fields)
            assert answer.startswith(b"HTTP/1.1 431 ")
            assert b"headers_too_large" in answer

    world.run(talk())


def test_a_large_body_right_behind_its_header_is_no_large_header(world: World) -> None:
    async def talk() -> None:
        async with serving(world) as (_, (port,)):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = b"POST /v1/inboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n"
            for _ in range(2):
                # The second one proves that the connection is still good.
                writer.write(head + b"x" * 200_000)
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 401 ")
                await reader.readuntil(b"}")
            writer.close()

    world.run(talk())


@pytest.mark.parametrize("octets", [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: x\r\n"])
def test_a_client_that_does_not_finish_its_header_is_cut_off(
    world: World, octets: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "HEADER_SECONDS", 0.05)
    monkeypatch.setattr(listeners.Connection._arm, "__defaults__", (0.05,))

    async def talk() -> None:
        async with serving(world) as (_, (port,)):
            assert await exchange(port, octets) == b""

    world.run(talk())


def test_a_body_that_nobody_reads_does_not_hold_the_connection(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "LINGER_SECONDS", 0.05)

    async def talk() -> None:
        async with serving(world) as (_, (port,)):
            head = b"POST /v1/inboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
            assert (await exchange(port, head + b"x" * 1000)).startswith(b"HTTP/1.1 401 ")

    world.run(talk())


@pytest.mark.parametrize(
    "octets",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"EHLO mail.example\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/inboxes HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\r\n" * 50 + b"?\r\n\r\n",
    ],
)
def test_what_is_no_http_gets_an_error_and_the_end(world: World, octets: bytes) -> None:
    async def talk() -> None:
        async with serving(world) as (_, (port,)):
            answer = await exchange(port, octets)
            assert not answer or answer.split(b" ")[1].startswith(b"4")
            assert b"Traceback" not in answer

    world.run(talk())


def test_connections_beyond_the_limit_are_503(world: World) -> None:
    async def talk() -> None:
        async with serving(world, max_connections=2) as (_, (port,)):
            held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            request = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            assert (await exchange(port, request)).startswith(b"HTTP/1.1 503 ")
            for _, writer in held:
                writer.close()

    world.run(talk())


@contextlib.asynccontextmanager
async def sending(world: World, key: str):
    """A listener with one request under way that waits in intake."""
    world.intake.hold = asyncio.Event()
    async with (
        serving(world) as (made, (port,)),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        asked = asyncio.create_task(
            client.post(
                f"/v1/inboxes/{world.one.id}/messages",
                json={"to": ["a@far.example"]},
                headers={"Authorization": f"Bearer {key}"},
            )
        )
        while not made._server.server_state.tasks:
            await asyncio.sleep(0)
        yield made, port, asked


def test_a_drain_lets_a_request_end_and_takes_no_new_one(world: World) -> None:
    key = world.key("message:send")

    async def talk() -> None:
        async with sending(world, key) as (made, port, asked):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stopping = asyncio.create_task(made.stop(10.0))
            assert await reader.read() == b""
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", port)
            world.intake.hold.set()
            assert (await asked).status_code == 202
            await stopping
            writer.close()

    world.run(talk())


def test_a_drain_ends_at_its_limit(world: World) -> None:
    key = world.key("message:send")

    async def talk() -> None:
        async with sending(world, key) as (made, _, asked):
            await made.stop(0.05)
            with pytest.raises(httpx.HTTPError):
                await asked
        assert world.intake.arrivals == []

    world.run(talk())


def test_stalled_handshakes_of_one_address_keep_nobody_else_away(world: World, tmp_path: Path) -> None:
    tls = ServerTls(*make_self_signed(tmp_path, names=["localhost", "127.0.0.1"]))

    async def talk() -> None:
        async with serving(world, "tls:127.0.0.1:0", tls=tls.context) as (_, (port,)):
            stalled = [await asyncio.open_connection("127.0.0.1", port) for _ in range(PENDING_PER_NETWORK)]
            assert await exchange(port, b"") == b"", "one too many is closed at once"
            trust = ssl.create_default_context(cafile=str(tmp_path / "certificate.pem"))
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=trust, local_addr=("127.0.0.2", 0)
            )
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b'{"status":"ok"}' in await asyncio.wait_for(reader.read(), 20)
            writer.close()
            for _, one in stalled:
                one.close()

    world.run(talk())
