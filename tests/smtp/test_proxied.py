"""Doors behind a load balancer: who the client is, and who is not believed."""

import asyncio
import socket

import pytest

from server.proxied import Proxies, ProxyListener
from server.tls import ServerTls, make_self_signed
from tests.smtp.fakes import HOST, Client, Rig, listener, running, trusting

LOOPBACK = Proxies(["127.0.0.0/8"])
HEADER = b"PROXY TCP4 192.0.2.7 192.0.2.8 4711 25\r\n"


async def opened(port: int) -> Client:
    return Client(*await asyncio.open_connection("127.0.0.1", port))


def peers(rig: Rig) -> list[tuple[str, int]]:
    return [(call[1].address, call[1].port) for call in rig.intake.calls if call[0] == "connected"]


@pytest.mark.parametrize(("header", "address"), [(HEADER, "192.0.2.7"), (b"PROXY UNKNOWN\r\n", "127.0.0.1")])
def test_the_client_is_whom_the_header_names(header, address):
    async def scenario():
        async with running(proxies=LOOPBACK) as rig:
            client = await opened(rig.mx)
            client.send(header)
            assert (await client.reply()).startswith("220 ")
            client.send(b"EHLO client.example\r\n")
            assert (await client.reply()).startswith("250-")
            assert [address for address, _ in peers(rig)] == [address]
            client.close()

    asyncio.run(scenario())


def test_a_header_in_single_octets():
    async def scenario():
        async with running(proxies=LOOPBACK) as rig:
            client = await opened(rig.mx)
            await client.send_segments([bytes([octet]) for octet in HEADER])
            assert (await client.reply()).startswith("220 ")
            assert peers(rig) == [("192.0.2.7", 4711)]
            client.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("proxies", "octets"), [(LOOPBACK, b"EHLO client.example\r\n"), (Proxies(["192.0.2.0/24"]), HEADER)]
)
def test_without_header_or_from_elsewhere_the_connection_is_closed(proxies, octets):
    async def scenario():
        async with running(proxies=proxies) as rig:
            client = await opened(rig.mx)
            client.send(octets)
            assert await client.is_closed()
            assert peers(rig) == []
            client.close()

    asyncio.run(scenario())


def test_a_header_that_does_not_come_has_a_deadline():
    async def scenario():
        bound = listener()

        async def connect(accepted: socket.socket, _origin) -> None:
            raise AssertionError("no header came")

        behind = ProxyListener(bound, LOOPBACK, connect, header_seconds=0.01)
        client = await opened(bound.getsockname()[1])
        client.send(b"PROXY TCP4 ")
        assert await client.is_closed()
        behind.close()
        client.close()

    asyncio.run(scenario())


def test_the_header_stands_before_implicit_tls(tmp_path):
    context = ServerTls(*make_self_signed(tmp_path, names=[HOST])).context()

    async def scenario():
        async with running(proxies=LOOPBACK, tls=context) as rig:
            client = await opened(rig.submissions)
            client.send(HEADER)
            await client.writer.start_tls(trusting())
            assert (await client.reply()).startswith("220 ")
            assert peers(rig) == [("192.0.2.7", 4711)]
            client.close()

    asyncio.run(scenario())
