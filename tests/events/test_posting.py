"""Calls of URLs: signatures as Standard Webhooks has them, addresses that are never called."""

import asyncio
import base64
import ssl
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from server.events.posting import Poster, UrlRefused, read_secret, read_url, signature, write_secret
from server.tls import make_self_signed
from tests.test_intake import Resolver

SECRET = b"k" * 32


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await scenario()

    asyncio.run(limited())


@asynccontextmanager
async def answering(
    answer: bytes, seen: list[bytes], *, tls: ssl.SSLContext | None = None, address="127.0.0.1"
):
    """An HTTP server that says one thing; yields its port."""
    talks = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.current_task())
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(next(line for line in head.lower().split(b"\r\n") if b"content-length" in line)[15:])
            seen.append(head + await reader.readexactly(length))
            writer.write(answer)
            await writer.drain()
            await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for one in talks:
            one.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


def poster(
    table=None, *, allow_private: bool = True, seconds: float = 5.0, trusted: Path | None = None
) -> Poster:
    return Poster(
        resolver=Resolver(table or {}),
        allow_private=allow_private,
        timeout_seconds=seconds,
        make_context=lambda: ssl.create_default_context(cafile=str(trusted) if trusted else None),
    )


async def post(made: Poster, url: str, body: bytes = b'{"a":1}'):
    return await made.post(read_url(url), call_id="whc_1", timestamp=1_700_000_000, body=body, secret=SECRET)


def test_the_signature_is_the_standards_own_example():
    # From the specification's repository: its test vector.
    secret = read_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    found = signature(
        secret,
        call_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        timestamp=1614265330,
        body=b'{"test": 2432232314}',
    )
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_secret_goes_out_and_comes_back():
    assert read_secret(write_secret(SECRET) + "\n") == SECRET
    for text in ("", "whsec_", "whsec_!!!!", "whsec_" + base64.b64encode(b"short").decode(), "whsec_ü"):
        with pytest.raises(ValueError):
            read_secret(text)


def test_a_call_is_signed_and_says_its_host():
    async def scenario() -> None:
        seen: list[bytes] = []
        async with answering(b"HTTP/1.1 204 No Content\r\n\r\n", seen) as port:
            found = await post(poster({"hook.test": ("127.0.0.1",)}), f"http://hook.test:{port}/in?x=1")
        assert (found.status, found.is_taken, found.address) == (204, True, "127.0.0.1")
        head, _, body = seen[0].partition(b"\r\n\r\n")
        lines = head.decode().lower().split("\r\n")
        assert lines[0] == "post /in?x=1 http/1.1"
        assert f"host: hook.test:{port}" in lines
        assert "webhook-id: whc_1" in lines
        assert body == b'{"a":1}'
        wanted = signature(SECRET, call_id="whc_1", timestamp=1_700_000_000, body=body)
        assert f"webhook-signature: {wanted.lower()}" in lines

    run(scenario)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "169.254.169.254",
        "192.168.0.1",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "fd00::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ],
)
def test_private_addresses_are_not_called_by_name_or_number(address):
    async def scenario() -> None:
        literal = f"[{address}]" if ":" in address else address
        kind = {"inside.test": (address,)}
        for url in (f"https://{literal}/", "https://inside.test/"):
            found = await post(poster(kind, allow_private=False), url)
            assert (found.status, found.is_taken) == (0, False)
            assert "no address that may be called" in found.text, found

    run(scenario)


@pytest.mark.parametrize("host", ["localhost", "2130706433", "0x7f.1", "127.1", "0177.0.0.1", "127.0.0.1."])
def test_odd_names_of_this_machine_lead_nowhere(host):
    async def scenario() -> None:
        found = await post(poster(allow_private=False, seconds=2), f"https://{host}/")
        assert not found.is_taken
        assert found.status == 0

    run(scenario)


def test_the_address_that_was_judged_is_the_one_that_is_called():
    async def scenario() -> None:
        class Rebinding:
            asked = 0

            async def resolve(self, name: str, rdtype: str):
                self.asked += 1
                return await Resolver({"hook.test": ("127.0.0.1",)}).resolve(name, rdtype)

        seen: list[bytes] = []
        made = poster()
        made._resolver = Rebinding()
        async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", seen) as port:
            assert (await post(made, f"http://hook.test:{port}/")).is_taken
        assert made._resolver.asked == 2  # A and AAAA, once

    run(scenario)


def test_no_clear_text_to_the_public_internet():
    async def scenario() -> None:
        found = await post(poster({"hook.test": ("9.9.9.9",)}), "http://hook.test/")
        assert "may be called by http" in found.text

    run(scenario)


def test_a_redirect_is_not_followed():
    async def scenario() -> None:
        seen: list[bytes] = []
        answer = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
        async with answering(answer, seen) as port:
            found = await post(poster(), f"http://127.0.0.1:{port}/")
        assert (found.status, found.is_taken, len(seen)) == (302, False, 1)

    run(scenario)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab",
    ],
)
def test_what_is_no_answer_is_none_within_its_time(answer):
    async def scenario() -> None:
        async with answering(answer, []) as port:
            found = await post(poster(seconds=0.5), f"http://127.0.0.1:{port}/")
        assert found.status == 0
        assert found.text

    run(scenario)


def test_the_certificate_is_held_to_the_name_of_the_url(tmp_path: Path):
    async def scenario() -> None:
        certificate, key = make_self_signed(tmp_path, names=["hook.test"])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        table = {"hook.test": ("127.0.0.1",), "other.test": ("127.0.0.1",)}
        async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", [], tls=context) as port:
            trusting = poster(table, trusted=certificate)
            assert (await post(trusting, f"https://hook.test:{port}/")).status == 200
            assert "certificate" in (await post(trusting, f"https://other.test:{port}/")).text.lower()
            assert "certificate" in (await post(poster(table), f"https://hook.test:{port}/")).text.lower()

    run(scenario)


@pytest.mark.parametrize(
    "url",
    ["", "x", "ftp://a.test/", "https://", "https://u:p@a.test/", "https://a.test:99999/", "https://a b/",
     "https://ä.test/", "https://a.test/\r\nX: y", "file:///etc/passwd"],
)  # fmt: skip
def test_what_is_no_url_to_call_is_refused(url):
    with pytest.raises(UrlRefused):
        read_url(url)
