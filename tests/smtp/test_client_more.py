"""The client's BDAT, its logins, and TLS from the first octet."""

import asyncio
import ssl
from base64 import b64encode
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from server.smtp.client import Client, ConnectFailed, Endpoint, connect
from server.smtp.client_machine import Answer, Credentials, Transaction
from server.tls import make_self_signed
from storage.records import Recipient
from tests.smtp.scripted import FAST, Scripted, script

CHUNKED = script("S 220 mx.peer.test", "C EHLO", "S 250-mx.peer.test", "S 250-PIPELINING", "S 250 CHUNKING")
LOGIN = Credentials("ann@ours.test", "päss")


def run(test: Awaitable[None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await test

    asyncio.run(limited())


async def nothing(_accepted: tuple[int, ...]) -> None:
    return None


async def send(
    client: Client, *parts: bytes, octets: int | None = None, recipients: int = 1
) -> tuple[Answer, ...]:
    async def chunks():  # type: ignore[no-untyped-def]  # an async generator
        for part in parts:
            yield part

    transaction = Transaction(
        "s@ours.test",
        tuple(Recipient(f"r{number}@peer.test") for number in range(recipients)),
        sum(map(len, parts)) if octets is None else octets,
        chunked=True,
    )
    return await client.deliver(transaction, content=chunks, begin=nothing)


async def opened(place: Endpoint, tls: ssl.SSLContext | None = None) -> Client:
    return await connect(place, hostname="us.test", tls=tls, timeouts=FAST)


def test_bdat_carries_the_octets_as_they_are() -> None:
    body = b"a: b\r\n\r\n.dots\r\n.\r\n" + b"x" * 700_000 + b"\r\n"
    take = ("C MAIL", "S 250 ok", "C RCPT", "S 250 ok", f"C BDAT {len(body)} LAST", f"OCTETS {len(body)}")

    async def test() -> None:
        async with Scripted(script(CHUNKED, *take, "S 250 2.0.0 got it", *take, "S 452 4.3.1 no")) as server:
            client = await opened(server.endpoint())
            (answer,) = await send(client, body[:9], body[9:300_000], body[300_000:])
            assert (answer.phase, answer.reply and answer.reply.code) == ("final", 250)
            assert client.ready
            (answer,) = await send(client, body)
            assert answer.reply is not None
            assert answer.reply.code == 452
            assert server.bodies == [body, body]
            client.quit()

    run(test())


@pytest.mark.parametrize("refused", ["MAIL", "RCPT"])
def test_nothing_is_sent_where_nobody_takes_it(refused: str) -> None:
    first = "S 550 5.1.8 no" if refused == "MAIL" else "S 250 ok"
    take = script("C MAIL", first, "C RCPT", "S 550 5.1.1 no such user")
    again = script(
        "C RSET", "S 250 ok", "C MAIL", "S 250 ok", "C RCPT", "S 250 ok", "C BDAT 6 LAST", "OCTETS 6"
    )

    async def test() -> None:
        async with Scripted(script(CHUNKED, take, again, "S 250 ok")) as server:
            client = await opened(server.endpoint())
            (answer,) = await send(client, b"hello\n")
            assert answer.phase == refused.lower()
            assert client.ready
            (answer,) = await send(client, b"hello\n")
            assert answer.phase == "final"
            client.quit()

    run(test())


@pytest.mark.parametrize("octets", [5, 7])
def test_content_that_is_not_as_long_as_announced_ends_the_connection(octets: int) -> None:
    take = script("C MAIL", "S 250 ok", "C RCPT", "S 250 ok", "WAIT")

    async def test() -> None:
        async with Scripted(script(CHUNKED, take)) as server:
            client = await opened(server.endpoint())
            (answer,) = await send(client, b"hello\n", octets=octets)
            assert (answer.phase, answer.reply) == ("data", None)
            assert not client.ready

    run(test())


def test_each_recipient_has_its_answer_and_bdat_goes_to_the_rest() -> None:
    take = script(
        "C MAIL", "S 250 ok", "C RCPT", "S 550 no", "C RCPT", "S 250 ok", "C BDAT 3 LAST", "OCTETS 3"
    )

    async def test() -> None:
        async with Scripted(script(CHUNKED, take, "S 250 ok")) as server:
            client = await opened(server.endpoint())
            answers = await send(client, b"x\r\n", recipients=2)
            assert [one.phase for one in answers] == ["rcpt", "final"]
            client.quit()

    run(test())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_self_signed(tmp_path_factory.mktemp("tls"), names=["mx.peer.test"])


def trusting(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificate[0]))
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    return context


def secured(*steps: str, offered: str) -> str:
    return script(
        "S 220 mx.peer.test", "C EHLO", "S 250-mx.peer.test", "S 250 STARTTLS", "C STARTTLS", "S 220 go",
        "TLS",
        "C EHLO", "S 250-mx.peer.test", f"S 250 AUTH {offered}", *steps,
    )  # fmt: skip


def coded(text: str) -> str:
    return b64encode(text.encode()).decode()


PLAIN = f"C AUTH PLAIN {coded(chr(0) + 'ann@ours.test' + chr(0) + 'päss')}"
BY_STEPS = ("C AUTH LOGIN", "S 334 VXNlcm5hbWU6", f"C {coded('ann@ours.test')}", "S 334 UGFzc3dvcmQ6",
            f"C {coded('päss')}")  # fmt: skip


@pytest.mark.parametrize(
    ("offered", "steps"),
    [("LOGIN PLAIN XOAUTH2", (PLAIN,)), ("LOGIN", BY_STEPS)],
    ids=["plain", "login"],
)
def test_a_login_is_shown_under_tls(
    certificate: tuple[Path, Path], offered: str, steps: tuple[str, ...]
) -> None:
    take = ("C MAIL", "S 250 ok", "C RCPT", "S 250 ok", "C DATA", "S 354 go", "BODY", "S 250 ok")
    scenario = secured(*steps, "S 235 2.7.0 welcome", *take, offered=offered)

    async def test() -> None:
        async with Scripted(scenario, certificate=certificate) as server:
            client = await opened(replace(server.endpoint(), login=LOGIN), trusting(certificate))
            (answer,) = await send(client, b"x\r\n")
            assert answer.phase == "final"
            client.quit()

    run(test())


@pytest.mark.parametrize(
    ("scenario", "text"),
    [
        (secured(PLAIN, "S 535 5.7.8 wrong", "WAIT", offered="PLAIN"), "wrong"),
        (secured(BY_STEPS[0], "S 334 x", BY_STEPS[2], "S 501 no", "WAIT", offered="LOGIN"), "no"),
        (secured("WAIT", offered="GSSAPI"), "neither PLAIN nor LOGIN"),
        (script("S 220 x", "C EHLO", "S 250-x", "S 250 AUTH PLAIN", "WAIT"), "not shown in clear"),
    ],
    ids=["refused", "half", "unknown", "clear"],
)
def test_a_login_that_fails_is_no_fault_of_the_message(
    certificate: tuple[Path, Path], scenario: str, text: str
) -> None:
    async def test() -> None:
        async with Scripted(scenario, certificate=certificate) as server:
            with pytest.raises(ConnectFailed) as failed:
                await opened(replace(server.endpoint(), login=LOGIN), trusting(certificate))
            assert failed.value.answer.phase == "auth"
            assert text in failed.value.answer.text
            assert not any("AUTH" in line for line in server.lines if "clear" in text)

    run(test())


def test_a_login_is_never_shown_where_it_is_printed() -> None:
    assert "päss" not in repr(LOGIN)
    assert "päss" not in repr(Endpoint("h", "127.0.0.1", 25, login=LOGIN))


async def implicit(
    certificate: tuple[Path, Path],
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> asyncio.Server:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)


def test_tls_from_the_first_octet(certificate: tuple[Path, Path]) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mx.peer.test\r\n")
        await reader.readuntil(b"\r\n")
        writer.write(b"250-mx.peer.test\r\n250 AUTH PLAIN\r\n")
        assert (await reader.readuntil(b"\r\n")).startswith(b"AUTH PLAIN")
        writer.write(b"235 2.7.0 ok\r\n")
        await reader.read()
        writer.close()

    async def test() -> None:
        server = await implicit(certificate, serve)
        port = server.sockets[0].getsockname()[1]
        place = Endpoint("mx.peer.test", "127.0.0.1", port, implicit_tls=True, login=LOGIN)
        client = await opened(place, trusting(certificate))
        assert client.ready
        assert client.tls_version is not None
        client.quit()
        with pytest.raises(ConnectFailed) as failed:
            await opened(replace(place, host="other.test"), trusting(certificate))
        assert (failed.value.answer.phase, failed.value.fault is not None) == ("tls", True)
        server.close()

    run(test())


def test_a_connection_comes_from_the_address_that_is_asked_for() -> None:
    async def test() -> None:
        async with Scripted(script(CHUNKED, "C QUIT")) as server:
            client = await opened(replace(server.endpoint(), source="127.0.0.9", name="out9.ours.test"))
            assert client.source == "127.0.0.9"
            assert server.lines[0] == "EHLO out9.ours.test"
            client.quit()

    run(test())
