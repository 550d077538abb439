"""HTTP behind a PROXY header, plain and with TLS behind the header."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from server.http.listener import HttpListener
from server.proxied import Proxies
from server.sections import Http
from server.sockets import open_listeners
from server.tls import ServerTls, make_self_signed
from tests.http.world import World
from tests.smtp.fakes import trusting

HEADER = b"PROXY TCP4 192.0.2.7 192.0.2.8 4711 80\r\n"
REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


async def tell_client(scope, receive, send) -> None:
    """An application that answers with the client's address."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": repr(tuple(scope["client"])).encode()})


@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_the_client_is_whom_the_header_names(kind: str, world: World, tmp_path: Path) -> None:
    tls = ServerTls(*make_self_signed(tmp_path, names=["localhost"]))

    async def talk() -> None:
        made = HttpListener(
            tell_client, settings=Http(), tls_context=tls.context, proxies=Proxies(["127.0.0.1/32"])
        )
        bound = open_listeners((f"{kind}:127.0.0.1:0,proxy",), {})
        await made.start(bound)
        reader, writer = await asyncio.open_connection(*bound[0][1].getsockname())
        with contextlib.closing(writer):
            writer.write(HEADER)
            if kind == "tls":
                await writer.start_tls(trusting())
            writer.write(REQUEST)
            assert b"('192.0.2.7', 4711)" in await asyncio.wait_for(reader.read(), 20)
        await made.stop(1.0)

    world.run(talk())
