"""SCRAM-SHA-256 and OAUTHBEARER over real connections under TLS."""

import asyncio
import hashlib
import hmac
import ssl
from base64 import b64decode, b64encode

import pytest

from server.smtp.settings import SmtpSettings
from server.tls import ServerTls, make_self_signed
from tests.smtp.fakes import HOST, Client, connected, running


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> ssl.SSLContext:
    return ServerTls(*make_self_signed(tmp_path_factory.mktemp("tls"), names=[HOST])).context()


def coded(text: str) -> str:
    return b64encode(text.encode()).decode()


async def scram(client: Client, user: str, password: str) -> tuple[str, bytes]:
    """A client's side of the exchange; returns the reply to its proof, and the signature it expects."""
    bare = f"n={user},r=clientnonce"
    first = b64decode((await client.ask("AUTH SCRAM-SHA-256 " + coded("n,," + bare))).removeprefix("334 "))
    nonce, salt, iterations = (part[2:] for part in first.decode().split(","))
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), b64decode(salt), int(iterations))
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    signed = f"{bare},{first.decode()},c=biws,r={nonce}".encode()
    signature = hmac.digest(hashlib.sha256(client_key).digest(), signed, "sha256")
    proof = b64encode(bytes(a ^ b for a, b in zip(client_key, signature, strict=True))).decode()
    expected = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), signed, "sha256")
    return await client.ask(coded(f"c=biws,r={nonce},p={proof}")), expected


def test_scram_lets_in_and_proves_the_server(context):
    async def scenario():
        async with running(tls=context) as rig, connected(rig.submissions, tls=True) as client:
            reply, expected = await scram(client, "ann@example.org", "pencil")
            assert b64decode(reply.removeprefix("334 ")) == b"v=" + b64encode(expected)
            assert (await client.ask("")).startswith("235 2.7.0")
            assert (await client.ask("MAIL FROM:<ann@example.org>")).startswith("250 ")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("user", "password"), [("ann@example.org", "wrong"), ("nobody@example.org", "pencil")]
)
def test_scram_refuses_a_wrong_proof_and_goes_on(context, user, password):
    async def scenario():
        async with running(tls=context) as rig, connected(rig.submissions, tls=True) as client:
            assert (await scram(client, user, password))[0].startswith("535 5.7.8")
            assert (await client.ask("MAIL FROM:<ann@example.org>")).startswith("530 ")
            assert (await client.ask("NOOP")).startswith("250 ")

    asyncio.run(scenario())


def test_a_key_is_a_bearer_token(context):
    async def scenario():
        async with running(tls=context) as rig, connected(rig.submissions, tls=True) as client:
            rig.login.known = ("ann@example.org", "mak_secret")
            token = coded("n,a=ann@example.org,\x01host=mx\x01port=465\x01auth=Bearer mak_secret\x01\x01")
            assert (await client.ask("AUTH OAUTHBEARER " + token)).startswith("235 ")

    asyncio.run(scenario())


@pytest.mark.parametrize("secret", ["mak_other", "pencil"])
def test_a_refused_token_is_told_and_a_password_is_none(context, secret):
    async def scenario():
        async with running(tls=context) as rig, connected(rig.submissions, tls=True) as client:
            token = coded(f"n,a=ann@example.org,\x01auth=Bearer {secret}\x01\x01")
            told = await client.ask("AUTH OAUTHBEARER " + token)
            assert b"invalid_token" in b64decode(told.removeprefix("334 "))
            assert (await client.ask("AQ==")).startswith("535 5.7.8")
            assert (await client.ask("NOOP")).startswith("250 ")

    asyncio.run(scenario())


def test_a_host_of_the_house_submits_without_login_and_may_still_log_in(context):
    hosts = {"127.0.0.0/8": "nobody@example.org", "127.0.0.1": "ann@example.org"}

    async def scenario():
        settings = SmtpSettings(submission_hosts=hosts)
        async with running(settings, tls=context) as rig:
            async with connected(rig.submission) as client:
                await client.ask("EHLO client.test")
                assert (await client.ask("MAIL FROM:<ann@example.org>")).startswith("250 ")
            async with connected(rig.submissions, tls=True) as client:
                assert (await scram(client, "ann@example.org", "pencil"))[0].startswith("334 ")
            async with connected(rig.mx) as client:
                await client.ask("EHLO client.test")
                assert (await client.ask("AUTH PLAIN")).startswith("502 ")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "hosts", [{"10.0.0.0/8": "ann@example.org"}, {"127.0.0.1": "nobody@example.org"}], ids=["other", "none"]
)
def test_any_other_host_logs_in(context, hosts):
    async def scenario():
        settings = SmtpSettings(submission_hosts=hosts)
        async with running(settings, tls=context) as rig, connected(rig.submission) as client:
            await client.ask("EHLO client.test")
            assert (await client.ask("MAIL FROM:<ann@example.org>")).startswith("530 ")

    asyncio.run(scenario())
