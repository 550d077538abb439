"""Extensions of the SMTP door: BINARYMIME, REQUIRETLS, FUTURERELEASE, and line ends that are mended."""

import ssl
from base64 import b64encode

import pytest
import uvloop

from server.smtp.data import ChunkReader, ContentLimits, DataReader, LineEnds
from server.smtp.settings import SmtpSettings
from server.tls import ServerTls, make_self_signed
from tests.smtp.fakes import Client, connected, running, trusting

LIMITS = ContentLimits(octets=10_000)
PLAIN = b64encode(b"\0ann@example.org\0pencil").decode()
BINARY = b"Subject: b\r\n\r\n\0\r\n.\r\n\r\n\n\r\xff\0end"
LOOSE = b"Subject: a\nX: \0b\r\r\nline\n.lone\n..two\r.\n.\r\nend\n\r\n"
# Bare LF begins a line as CRLF does, and its dot is stuffing; only CRLF.CRLF ends.
MENDED = b"Subject: a\r\nX: b\r\n\r\nline\r\nlone\r\n.two\r\n\r\n\r\nend\r\n\r\n"
# BDAT stuffs no dots.
MENDED_CHUNKS = b"Subject: a\r\nX: b\r\n\r\nline\r\n.lone\r\n..two\r\n.\r\n.\r\nend\r\n\r\n"


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> ssl.SSLContext:
    return ServerTls(*make_self_signed(tmp_path_factory.mktemp("tls"), names=["mx.example.org"])).context()


async def logged_in(client: Client) -> str:
    greeting = await client.ask("EHLO client.example")
    assert (await client.ask(f"AUTH PLAIN {PLAIN}")).startswith("235")
    return greeting


def test_binary_content_is_taken_as_it_is():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            for size in (1, 7, len(BINARY)):
                await client.ask_all("MAIL FROM:<a@b.example> BODY=BINARYMIME", "RCPT TO:<ann@example.org>")
                chunks = [BINARY[at : at + size] for at in range(0, len(BINARY), size)]
                for chunk in chunks:
                    client.send(b"BDAT %d\r\n" % len(chunk) + chunk)
                    assert (await client.reply()).startswith("250")
                assert (await client.ask("BDAT 0 LAST")).startswith("250 2.0.0 Ok")
            assert rig.intake.contents() == [BINARY] * 3
            assert rig.intake.arrivals[0].envelope.body == "BINARYMIME"

    uvloop.run(scenario())


def test_binary_content_by_data_is_refused():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            assert "BINARYMIME" in await client.ask("EHLO again.example")
            await client.ask_all("MAIL FROM:<a@b.example> BODY=BINARYMIME", "RCPT TO:<ann@example.org>")
            assert (await client.ask("DATA")).startswith("503 5.5.1")
            client.send(b"BDAT 2 LAST\r\n\0\n")
            assert (await client.reply())[:3] == "550"  # all of it is header
            assert rig.intake.arrivals == []

    uvloop.run(scenario())


@pytest.mark.parametrize("header", [b"A: \0\r\n", b"A: b\nC: d\r\n", b"A: b\rC\r\n", b"A: b\n\n", b"\n\r\n"])
def test_header_of_binary_content_has_line_ends(header):
    for size in (1, 2, 3, 100):
        reader = ChunkReader(LIMITS, LineEnds.BINARY)
        content = header + b"\r\n\r\nbody"
        reader.open(len(content), last=True)
        for at in range(0, len(content), size):
            reader.feed(content[at : at + size])
        assert (reader.fault.code, reader.fault.enhanced) == (550, "5.5.2")


@pytest.mark.parametrize("size", range(1, len(LOOSE) + 6))
def test_line_ends_are_mended_the_same_however_they_come(size):
    stream = LOOSE + b".\r\nNOOP"
    reader = DataReader(LIMITS, LineEnds.MENDED)
    content = b""
    for at in range(0, len(stream), size):
        assert not reader.ended or at >= len(LOOSE) + 3
        content += reader.feed(stream[at : at + size]) if not reader.ended else b""
    assert reader.ended
    assert reader.fault is None
    assert content == MENDED


@pytest.mark.parametrize("size", range(1, len(LOOSE) + 1))
def test_chunks_are_mended_the_same_however_they_come(size):
    reader = ChunkReader(LIMITS, LineEnds.MENDED)
    content = b""
    for at in range(0, len(LOOSE), size):
        block = LOOSE[at : at + size]
        content += reader.open(len(block), last=at + size >= len(LOOSE)) + reader.feed(block)
    assert reader.ended
    assert content == MENDED_CHUNKS


def test_only_named_networks_have_their_line_ends_mended():
    async def scenario():
        for network, code in (("127.0.0.0/8", "250"), ("192.0.2.1", "550")):
            settings = SmtpSettings(mend_line_ends_of=(network,))
            async with running(settings) as rig, connected(rig.mx) as client:
                await client.ask_all("MAIL FROM:<a@b.example>", "RCPT TO:<ann@example.org>", "DATA")
                assert (await client.ask(b"a: b\n\nc\n.\nRSET\r\n."))[:3] == code
                if code == "250":
                    assert rig.intake.contents() == [b"a: b\r\n\r\nc\r\n\r\nRSET\r\n"]

    uvloop.run(scenario())


def test_tls_is_required_only_where_there_is_tls(context):
    async def scenario():
        async with running(tls=context) as rig, connected(rig.mx) as client:
            assert "REQUIRETLS" not in await client.ask("EHLO a.example")
            await client.ask("STARTTLS")
            await client.writer.start_tls(trusting())
            assert "REQUIRETLS" in await client.ask("EHLO a.example")
            assert (await client.ask("MAIL FROM:<a@b.example> REQUIRETLS=1")).startswith("501")
            await client.ask_all("MAIL FROM:<a@b.example> REQUIRETLS", "RCPT TO:<c@d.example>", "DATA")
            assert (await client.ask("a: b\r\n\r\n."))[:3] == "250"
            assert rig.intake.arrivals[0].envelope.require_tls

    uvloop.run(scenario())


def test_release_in_the_future_is_announced_with_its_limits(context):
    async def scenario():
        settings = SmtpSettings(max_hold_seconds=3600)
        async with running(settings, tls=context) as rig, connected(rig.submissions, tls=True) as client:
            assert "FUTURERELEASE 3600 2027-01-15T09:00:00Z" in await logged_in(client)
            rig.clock.advance(60)
            assert "FUTURERELEASE 3600 2027-01-15T09:01:00Z" in await client.ask("EHLO client.example")

    uvloop.run(scenario())


@pytest.mark.parametrize(
    ("parameter", "seconds"),
    [("HOLDFOR=3600", 3600), ("HOLDFOR=0", 0), ("HOLDUNTIL=2027-01-15T08:30:00Z", 1800),
     ("HOLDUNTIL=2027-01-15T09:30:00+01:00", 1800)],
)  # fmt: skip
def test_hold_reaches_the_envelope(context, parameter, seconds):
    async def scenario():
        settings = SmtpSettings(max_hold_seconds=3600)
        async with running(settings, tls=context) as rig, connected(rig.submissions, tls=True) as client:
            await logged_in(client)
            begin = f"MAIL FROM:<ann@example.org> {parameter}"
            await client.ask_all(begin, "RCPT TO:<x@y.example>", "RCPT TO:<z@y.example>", "DATA")
            assert (await client.ask("a: b\r\n\r\n."))[:3] == "250"
            held = rig.intake.arrivals[0].envelope.hold_until
            assert held == rig.clock.now() + seconds * 1_000_000

    uvloop.run(scenario())


@pytest.mark.parametrize(
    "parameters",
    ["HOLDFOR=3601", "HOLDFOR=-1", "HOLDFOR", "HOLDFOR=9999999999", "HOLDUNTIL=2027-01-15T09:00:01Z",
     "HOLDUNTIL=2027-01-15T07:59:59Z", "HOLDUNTIL=2027-13-15T07:59:59Z", "HOLDUNTIL=2027-01-15",
     "HOLDUNTIL=0001-01-01T00:00:00+23:59", "HOLDUNTIL=9999-12-31T23:59:59-23:59",
     "HOLDFOR=60 HOLDUNTIL=2027-01-15T08:30:00Z"],
)  # fmt: skip
def test_hold_that_is_not_taken_is_501(context, parameters):
    async def scenario():
        settings = SmtpSettings(max_hold_seconds=3600)
        async with running(settings, tls=context) as rig, connected(rig.submissions, tls=True) as client:
            await logged_in(client)
            assert (await client.ask(f"MAIL FROM:<ann@example.org> {parameters}")).startswith("501 5.5.4")

    uvloop.run(scenario())


def test_no_hold_where_none_is_allowed(context):
    async def scenario():
        settings = SmtpSettings(max_hold_seconds=0)
        async with running(settings, tls=context) as rig, connected(rig.submissions, tls=True) as client:
            assert "FUTURERELEASE" not in await logged_in(client)
            assert (await client.ask("MAIL FROM:<ann@example.org> HOLDFOR=1")).startswith("555")

    uvloop.run(scenario())
