"""TLS and AUTH: STARTTLS, implicit TLS, what is said before and after, who may submit."""

import asyncio
import shutil
import smtplib
import socket
import ssl
import subprocess
from base64 import b64encode

import pytest
import uvloop

from server.smtp.settings import SmtpSettings
from server.tls import ServerTls, make_self_signed
from storage.records import Source
from tests.smtp.fakes import Client, connected, running, trusting, until

PLAIN = b64encode(b"\0ann@example.org\0pencil").decode()
WRONG = b64encode(b"\0ann@example.org\0crayon").decode()
SUBMIT = ["MAIL FROM:<ann@example.org>", "RCPT TO:<x@y.example>", "DATA"]


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> ssl.SSLContext:
    files = make_self_signed(tmp_path_factory.mktemp("tls"), names=["mx.example.org"])
    return ServerTls(*files).context()


async def start_tls(client: Client) -> None:
    """STARTTLS and the handshake, on the client's side."""
    assert (await client.ask("STARTTLS")).startswith("220 2.0.0")
    await client.writer.start_tls(trusting())


def test_starttls_secures_and_forgets(context):
    async def scenario():
        async with running(tls=context) as rig, connected(rig.mx) as client:
            assert "STARTTLS" in await client.ask("EHLO client.example")
            assert (await client.ask("MAIL FROM:<a@b.example>")).startswith("250")
            await start_tls(client)
            # RFC 3207 4.2: nothing said before counts.
            assert (await client.ask("RCPT TO:<c@d.example>")).startswith("503")
            assert (await client.ask("MAIL FROM:<a@b.example>")).startswith("503")
            again = await client.ask("EHLO client.example")
            assert "STARTTLS" not in again
            assert "AUTH" not in again
            assert (await client.ask("STARTTLS")).startswith("503 5.5.1")
            await client.ask_all("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
            assert (await client.ask(b"x\r\n.")).startswith("250")
            peer = rig.intake.arrivals[0].peer
            assert peer.tls_version == "TLSv1.3"
            assert peer.tls_cipher
            assert peer.helo == "client.example"

    uvloop.run(scenario())


@pytest.mark.parametrize(
    "behind", [b"NOOP\r\n", b"EHLO x\r\nMAIL FROM:<evil@example.org>\r\n", b"N", b"\r\n"]
)
def test_octets_behind_starttls_are_refused_and_never_read(context, behind):
    async def scenario():
        async with running(tls=context) as rig, connected(rig.mx) as client:
            client.send(b"STARTTLS\r\n" + behind)
            assert (await client.reply()).startswith("554 5.5.1 Octets behind STARTTLS")
            assert await client.is_closed()
            assert [call[0] for call in rig.intake.calls] == ["connected", "helo"]

    uvloop.run(scenario())


def test_plaintext_instead_of_a_handshake_ends_the_connection(context):
    async def scenario():
        async with running(tls=context) as rig, connected(rig.mx) as client:
            assert (await client.ask("STARTTLS")).startswith("220")
            client.send(b"EHLO x\r\nMAIL FROM:<evil@example.org>\r\n")
            answer = await client.reader.read()
            assert b"250" not in answer
            await until(lambda: rig.server.connections == 0)
            assert [call[0] for call in rig.intake.calls] == ["connected", "helo"]

    uvloop.run(scenario())


def test_plaintext_after_the_handshake_is_never_parsed(context):
    def attack(port):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
            plain.recv(1000)
            plain.sendall(b"EHLO x\r\n")
            plain.recv(1000)
            plain.sendall(b"STARTTLS\r\n")
            plain.recv(1000)
            descriptor = plain.dup()
            with trusting().wrap_socket(plain) as tls, descriptor:
                tls.sendall(b"EHLO x\r\n")
                assert tls.recv(1000).startswith(b"250-")
                tls.sendall(b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n")
                heard = b""
                while b"354" not in heard:
                    heard += tls.recv(1000)
                tls.sendall(b"half a message\r\n")
                descriptor.sendall(b".\r\nMAIL FROM:<evil@example.org>\r\n")
                try:
                    return tls.recv(1000)
                except OSError:
                    return b""

    async def scenario():
        async with running(tls=context) as rig:
            assert b"250" not in await asyncio.to_thread(attack, rig.mx)
            await until(lambda: rig.server.connections == 0)
            await until(lambda: rig.server._memory.used_octets == 0)
            assert rig.intake.arrivals == []
            assert [call[3].reverse_path for call in rig.intake.calls if call[0] == "sender"] == [
                "a@b.example"
            ]

    uvloop.run(scenario())


def test_handshake_has_a_time_limit(context):
    async def scenario():
        settings = SmtpSettings(handshake_timeout_seconds=0.05)
        async with running(settings, tls=context) as rig:
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.submissions)
            assert await reader.read() == b""
            writer.close()
            async with connected(rig.mx) as client:
                await client.ask("STARTTLS")
                assert await client.is_closed()
            await until(lambda: rig.server.connections == 0)

    uvloop.run(scenario())


def test_client_that_leaves_during_the_handshake_leaves_nothing(context):
    async def scenario():
        async with running(tls=context) as rig:
            _, writer = await asyncio.open_connection("127.0.0.1", rig.submissions)
            await until(lambda: rig.server.connections == 1)
            writer.close()
            await until(lambda: rig.server.connections == 0)

    uvloop.run(scenario())


def test_submission_asks_for_tls_then_for_a_login(context):
    async def scenario():
        async with running(tls=context) as rig, connected(rig.submission) as client:
            assert "AUTH" not in await client.ask("EHLO client.example")
            assert (await client.ask("AUTH PLAIN " + PLAIN)).startswith("538 5.7.11")
            assert (await client.ask("MAIL FROM:<ann@example.org>")).startswith(
                "530 5.7.0 Must issue a STARTTLS"
            )
            assert (await client.ask("VRFY ann")).startswith("530 5.7.0")
            await start_tls(client)
            assert (await client.ask("AUTH PLAIN " + PLAIN)).startswith("503 5.5.1")
            assert "250-AUTH SCRAM-SHA-256 OAUTHBEARER PLAIN LOGIN" in (
                await client.ask("EHLO client.example")
            ).replace("250 AUTH", "250-AUTH")
            assert (await client.ask("MAIL FROM:<ann@example.org>")) == "530 5.7.0 Authentication required"
            assert (await client.ask("AUTH PLAIN " + PLAIN)).startswith("235 2.7.0")
            assert (await client.ask("AUTH PLAIN " + PLAIN)).startswith("503 5.5.1")
            await client.ask_all(*SUBMIT)
            assert (await client.ask(b"x\r\n.")).startswith("250")
            arrival = rig.intake.arrivals[0]
            assert arrival.source is Source.SUBMISSION
            assert arrival.identity.address == "ann@example.org"
            assert arrival.peer.identity == "crd_1"
            identities = {call[2] for call in rig.intake.calls if call[0] in {"sender", "recipient"}}
            assert identities == {arrival.identity}

    uvloop.run(scenario())


@pytest.mark.parametrize(
    ("lines", "answers"),
    [
        (["AUTH PLAIN " + PLAIN], ["235 2.7.0"]),
        (["AUTH PLAIN", PLAIN], ["334 ", "235 2.7.0"]),
        (["AUTH LOGIN", "YW5uQGV4YW1wbGUub3Jn", "cGVuY2ls"], ["334 VXNlcm", "334 UGFzc3", "235 2.7.0"]),
        (["AUTH LOGIN YW5uQGV4YW1wbGUub3Jn", "cGVuY2ls"], ["334 UGFzc3", "235 2.7.0"]),
        (["AUTH PLAIN " + WRONG], ["535 5.7.8"]),
        (["AUTH LOGIN", "*", "NOOP"], ["334 ", "501 5.0.0", "250 2.0.0"]),
        (["AUTH LOGIN", "!", "NOOP"], ["334 ", "501 5.5.2", "250 2.0.0"]),
        (["AUTH PLAIN =", "NOOP"], ["501 5.5.2", "250 2.0.0"]),
        (["AUTH PLAIN", "", "NOOP"], ["334 ", "501 5.5.2", "250 2.0.0"]),
        (["AUTH PLAIN", "DATA", "NOOP"], ["334 ", "501 5.5.2", "250 2.0.0"]),
        (["AUTH PLAIN", "QUIT\0", "NOOP"], ["334 ", "500 5.5.2", "250 2.0.0"]),
        (["AUTH PLAIN", "A" * 12287, "NOOP"], ["334 ", "500 5.5.6", "250 2.0.0"]),
        (["AUTH PLAIN", "A" * 20000, "NOOP"], ["334 ", "500 5.5.", "250 2.0.0"]),
        (["AUTH CRAM-MD5", "NOOP"], ["504 5.5.4", "250 2.0.0"]),
        (["AUTH", "NOOP"], ["501 5.5.4", "250 2.0.0"]),
        (["AUTH PLAIN a b", "NOOP"], ["501 5.5.4", "250 2.0.0"]),
    ],
)
def test_auth_dialogues_over_implicit_tls(context, lines, answers):
    async def scenario():
        async with running(tls=context) as rig, connected(rig.submissions, tls=True) as client:
            for line, answer in zip(lines, answers, strict=True):
                assert (await client.ask(line)).startswith(answer)

    uvloop.run(scenario())


def test_auth_within_a_transaction_is_503(context):
    async def scenario():
        async with running(tls=context) as rig, connected(rig.submissions, tls=True) as client:
            await client.ask("AUTH PLAIN " + PLAIN)
            await client.ask("MAIL FROM:<ann@example.org> AUTH=<>")
            assert (await client.ask("AUTH PLAIN " + PLAIN)).startswith("503")
            assert (await client.ask("RCPT TO:<x@y.example>")).startswith("250")

    uvloop.run(scenario())


def test_guessing_passwords_ends_the_connection(context):
    async def scenario():
        async with running(tls=context) as rig, connected(rig.submissions, tls=True) as client:
            for _ in range(3):
                assert (await client.ask("AUTH PLAIN " + WRONG)).startswith("535 5.7.8")
            assert (await client.reply()).startswith("421 4.7.0")
            assert await client.is_closed()

    uvloop.run(scenario())


def test_login_survives_ehlo_and_rset(context):
    async def scenario():
        async with running(tls=context) as rig, connected(rig.submissions, tls=True) as client:
            await client.ask_all("AUTH PLAIN " + PLAIN, "RSET", "EHLO again.example")
            await client.ask_all(*SUBMIT)
            assert (await client.ask(".")).startswith("250")
            assert rig.intake.arrivals[0].peer.identity == "crd_1"

    uvloop.run(scenario())


def test_large_message_over_tls(context):
    async def scenario():
        settings = SmtpSettings(spool_threshold_octets=100_000)
        async with running(settings, tls=context) as rig, connected(rig.mx) as client:
            await start_tls(client)
            await client.ask("EHLO client.example")
            await client.ask_all("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
            content = b"\r\n" + b"y" * 70 + b"\r\n"
            client.send(content * 30_000 + b".\r\n")
            assert (await client.reply()).startswith("250")
            assert rig.intake.spools.writers[0].content == content * 30_000

    uvloop.run(scenario())


def test_without_a_certificate_implicit_tls_is_cut_off():
    async def scenario():
        async with running() as rig:
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.submissions)
            assert await reader.read() == b""
            writer.close()

    uvloop.run(scenario())


def test_smtplib_submits_over_both_doors(context):
    def submit(rig):
        with smtplib.SMTP("127.0.0.1", rig.submission, timeout=10) as smtp:
            smtp.starttls(context=trusting())
            smtp.login("ann@example.org", "pencil")
            assert smtp.sendmail("ann@example.org", ["x@y.example"], "Subject: one\n\nbody\n") == {}
        with smtplib.SMTP_SSL("127.0.0.1", rig.submissions, timeout=10, context=trusting()) as smtp:
            with pytest.raises(smtplib.SMTPAuthenticationError):
                smtp.login("ann@example.org", "crayon")
            smtp.login("ann@example.org", "pencil")
            assert smtp.sendmail("ann@example.org", ["x@y.example"], "Subject: two\n\nbody\n") == {}

    async def scenario():
        async with running(tls=context) as rig:
            await asyncio.to_thread(submit, rig)
            assert [content[:12] for content in rig.intake.contents()] == [b"Subject: one", b"Subject: two"]

    uvloop.run(scenario())


def swaks_speaks_tls() -> bool:
    """Whether Debian's swaks is there, with libnet-ssleay-perl beside it."""
    if shutil.which("swaks") is None:
        return False
    support = subprocess.run(["swaks", "--support"], capture_output=True, text=True, check=False)
    return "=== TLS supported" in support.stdout


@pytest.mark.interop
@pytest.mark.skipif(not swaks_speaks_tls(), reason="needs swaks and libnet-ssleay-perl")
@pytest.mark.parametrize(
    ("door", "options", "code"),
    [
        ("mx", [], 0),
        ("mx", ["--tls"], 0),
        ("mx", ["--pipeline"], 0),
        ("mx", ["--helo", "[192.0.2.1]"], 0),
        ("submission", ["--tls", "--auth", "PLAIN", "-au", "ann@example.org", "-ap", "pencil"], 0),
        ("submission", ["--tls", "--auth", "LOGIN", "-au", "ann@example.org", "-ap", "pencil"], 0),
        ("submission", ["--auth", "PLAIN", "-au", "ann@example.org", "-ap", "pencil"], 28),
        ("submission", ["--tls", "--auth", "PLAIN", "-au", "ann@example.org", "-ap", "crayon"], 28),
        ("submissions", ["--tlsc", "--auth", "PLAIN", "-au", "ann@example.org", "-ap", "pencil"], 0),
        ("submissions", ["--tlsc"], 23),
        *[
            (door, [tls, *protocol, "--auth", mechanism, "-au", "ann@example.org", "-ap", "pencil"], 0)
            for door, tls in (("submission", "--tls"), ("submissions", "--tlsc"))
            for protocol in (["--tls-protocol", "tlsv1_2"], ["--tls-protocol", "tlsv1_3"])
            for mechanism in ("PLAIN", "LOGIN")
        ],
        ("submissions", ["--tlsc", "--auth", "LOGIN", "-au", "ann@example.org", "-ap", "crayon"], 28),
        ("submission", ["--tls", "--auth", "CRAM-MD5", "-au", "ann@example.org", "-ap", "pencil"], 28),
        ("mx", ["--auth", "PLAIN", "-au", "ann@example.org", "-ap", "pencil"], 28),
        ("mx", ["--tls", "--auth-optional", "PLAIN", "-au", "ann@example.org", "-ap", "pencil"], 0),
        ("mx", ["--tls-optional"], 0),
        ("mx", ["--tls", "--pipeline"], 0),
        ("mx", ["--tls", "--tls-protocol", "tlsv1_1"], 29),
        ("mx", ["--tls", "--tls-cipher", "AES256-SHA:AES128-SHA", "--tls-protocol", "tlsv1_2"], 29),
        ("submissions", ["--tlsc", "--tls-protocol", "tlsv1"], 29),
        ("mx", ["--tlsc"], 29),
    ],
)
def test_swaks(context, door, options, code):
    async def scenario():
        async with running(tls=context) as rig:
            process = await asyncio.create_subprocess_exec(
                "swaks",
                *("--server", "127.0.0.1", "--port", str(getattr(rig, door)), "--timeout", "10"),
                *("--from", "ann@example.org", "--to", "x@y.example", "--hide-all"),
                *options,
            )
            assert await process.wait() == code
            assert len(rig.intake.arrivals) == (code == 0)

    uvloop.run(scenario())
