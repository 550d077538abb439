"""LMTP over real sockets: LHLO alone, an answer for each recipient, who may bring mail."""

import asyncio
import smtplib
import socket

import pytest
import uvloop

from server.proxied import Proxies
from server.refusal import Refusal
from server.smtp.settings import SmtpSettings
from storage.errors import Full
from storage.records import Source
from tests.smtp.fakes import Client, connected, running, until

GONE = Refusal(550, "5.2.1", "Mailbox is closed")
BUSY = Refusal(452, "4.3.1", "Insufficient system storage, try again later")
THREE = ["MAIL FROM:<a@b.example>", *(f"RCPT TO:<{name}@example.org>" for name in ("one", "two", "three"))]


def lmtp(scenario):
    """Run a scenario with a rig and a client behind LHLO."""

    async def whole():
        async with running() as rig, connected(rig.lmtp, hello="LHLO") as client:
            await scenario(rig, client)

    uvloop.run(whole())


async def replies(client: Client, count: int) -> list[str]:
    return [await client.reply() for _ in range(count)]


@pytest.mark.parametrize("verb", ["EHLO", "HELO", "ehlo"])
def test_helo_and_ehlo_are_unknown_here(verb):
    async def scenario(_rig, client):
        assert (await client.ask(f"{verb} client.example")).startswith("500")

    lmtp(scenario)


def test_lhlo_is_unknown_elsewhere():
    async def scenario():
        async with running() as rig, connected(rig.mx) as client:
            assert await client.ask("LHLO client.example") == "500 Command not recognized"
            assert (await client.ask("MAIL FROM:<>")).startswith("250")

    uvloop.run(scenario())


def test_extensions_are_announced_as_over_smtp():
    async def scenario():
        async with running() as rig, connected(rig.lmtp, greet=False) as client:
            assert (await client.ask("MAIL FROM:<>")) == "503 5.5.1 Send LHLO first"
            answer = await client.ask("LHLO client.example")
            keywords = {line[4:].partition(" ")[0] for line in answer.split("|")[1:]}
            assert keywords >= {
                "PIPELINING", "ENHANCEDSTATUSCODES", "8BITMIME", "SMTPUTF8", "SIZE", "CHUNKING", "DSN",
            }  # fmt: skip
            assert not keywords & {"AUTH", "XCLIENT"}
            assert (await client.ask("LHLO")).startswith("501 Syntax: LHLO")
            assert "LHLO" in await client.ask("HELP")
            assert (await client.ask("AUTH PLAIN")).startswith("502")

    uvloop.run(scenario())


def test_the_host_is_nobody_s_client_and_is_asked_nothing():
    async def scenario(rig, client):
        await client.ask_all(*THREE, "DATA")
        client.send(b"x\r\n.\r\n")
        await replies(client, 3)
        assert [call[0] for call in rig.intake.calls] == ["sender"] + ["recipient"] * 3 + ["accept"]
        (arrival,) = rig.intake.arrivals
        assert arrival.source is Source.LMTP
        assert (arrival.peer.address, arrival.peer.helo) == ("", "client.example")

    lmtp(scenario)


def test_each_recipient_has_its_answer_in_the_order_of_rcpt():
    async def scenario(rig, client):
        rig.intake.late = {"two@example.org": GONE}
        rig.intake.refusals["four@example.org"] = Refusal(550, "5.1.1", "No such user")
        answers = await client.ask_all(*THREE[:3], "RCPT TO:<four@example.org>", THREE[3], "DATA")
        assert [answer[:3] for answer in answers] == ["250", "250", "250", "550", "250", "354"]
        client.send(b"x\r\n.\r\nNOOP\r\n")
        assert await replies(client, 4) == [
            "250 2.0.0 Ok: msg_1",
            "550 5.2.1 Mailbox is closed",
            "250 2.0.0 Ok: msg_1",
            "250 2.0.0 Ok",
        ]
        assert [one.address for one in rig.intake.arrivals[0].envelope.recipients] == [
            "one@example.org",
            "three@example.org",
        ]

    lmtp(scenario)


def test_the_last_chunk_is_answered_apiece_and_the_others_once():
    async def scenario(rig, client):
        rig.intake.late = {"one@example.org": GONE}
        await client.ask_all(*THREE)
        client.send(b"BDAT 3\r\na\r\nBDAT 3\r\nb\r\nBDAT 3 LAST\r\nc\r\nNOOP\r\n")
        answers = await replies(client, 6)
        assert [answer[:9] for answer in answers] == [
            "250 2.0.0", "250 2.0.0", "550 5.2.1", "250 2.0.0", "250 2.0.0", "250 2.0.0",
        ]  # fmt: skip
        assert rig.intake.contents() == [b"a\r\nb\r\nc\r\n"]

    lmtp(scenario)


@pytest.mark.parametrize(
    ("failure", "answer"),
    [
        (GONE, "550 5.2.1"),
        (Refusal(421, "4.7.0", "Later"), "421 4.7.0"),
        (Full("disk"), "452 4.3.1"),
        (RuntimeError("/secret"), "451 4.3.0"),
    ],
)
def test_what_befalls_the_message_is_answered_to_each(failure, answer):
    async def scenario(rig, client):
        rig.intake.refusals["accept"] = failure
        await client.ask_all(*THREE, "DATA")
        client.send(b"x\r\n.\r\n")
        assert [reply[:9] for reply in await replies(client, 3)] == [answer] * 3
        assert rig.intake.arrivals == []
        if answer.startswith("421"):
            assert await client.is_closed()
        else:
            assert (await client.ask("NOOP")).startswith("250")

    lmtp(scenario)


def test_421_for_one_recipient_does_not_speak_of_the_connection():
    async def scenario(rig, client):
        rig.intake.late = {"two@example.org": Refusal(421, "4.7.0", "Later")}
        await client.ask_all(*THREE, "DATA")
        client.send(b"x\r\n.\r\nNOOP\r\n")
        assert [reply[:9] for reply in await replies(client, 4)] == [
            "250 2.0.0", "451 4.7.0", "250 2.0.0", "250 2.0.0",
        ]  # fmt: skip

    lmtp(scenario)


@pytest.mark.parametrize(
    ("octets", "answer"), [(b"a\nb\r\n.\r\n", "550 5.5.2"), (b"\0\r\n.\r\n", "550 5.5.2")]
)
def test_content_that_is_refused_is_refused_to_each(octets, answer):
    async def scenario(rig, client):
        await client.ask_all(*THREE, "DATA")
        client.send(octets + b"NOOP\r\n")
        assert [reply[:9] for reply in await replies(client, 4)] == [answer] * 3 + ["250 2.0.0"]

    lmtp(scenario)


def test_a_recipient_given_twice_is_answered_twice():
    async def scenario(_rig, client):
        await client.ask_all(*THREE[:2], THREE[1], "DATA")
        client.send(b"x\r\n.\r\nNOOP\r\n")
        assert await replies(client, 3) == ["250 2.0.0 Ok: msg_1"] * 2 + ["250 2.0.0 Ok"]

    lmtp(scenario)


def test_without_recipients_data_is_503_and_the_last_chunk_has_one_answer():
    async def scenario(rig, client):
        rig.intake.refusals["recipient"] = GONE
        assert (await client.ask_all(*THREE[:2], "DATA"))[-1].startswith("503 5.5.1")
        client.send(b"BDAT 3 LAST\r\na\r\nNOOP\r\n")
        assert [reply[:3] for reply in await replies(client, 2)] == ["503", "250"]

    lmtp(scenario)


def test_a_pipelined_transaction_in_single_octets():
    async def scenario(rig, client):
        stream = "\r\n".join(THREE).encode() + b"\r\nDATA\r\n"
        await client.send_segments(stream[at : at + 1] for at in range(len(stream)))
        assert [reply[:3] for reply in await replies(client, 5)] == ["250"] * 4 + ["354"]
        stream = b"Subject: x\r\n\r\n..dot\r\n.\r\nQUIT\r\n"
        await client.send_segments(stream[at : at + 1] for at in range(len(stream)))
        assert [reply[:3] for reply in await replies(client, 4)] == ["250"] * 3 + ["221"]
        assert rig.intake.contents() == [b"Subject: x\r\n\r\n.dot\r\n"]

    lmtp(scenario)


def test_hosts_that_are_not_named_are_turned_away():
    async def scenario():
        async with running(SmtpSettings(lmtp_networks=("192.0.2.0/24",))) as rig:
            client = Client(*await asyncio.open_connection("127.0.0.1", rig.lmtp))
            assert await client.reply() == "554 5.7.1 LMTP is for named hosts alone"
            assert await client.is_closed()
            assert rig.server.connections == 0

    uvloop.run(scenario())


def test_connections_of_hosts_are_not_limited_by_address():
    async def scenario():
        async with running(SmtpSettings(max_connections_per_address=1)) as rig:
            async with connected(rig.lmtp, hello="LHLO") as one, connected(rig.lmtp, hello="LHLO") as two:
                assert (await one.ask("NOOP"))[:3] == (await two.ask("NOOP"))[:3] == "250"
            await until(lambda: rig.server.connections == 0)
            assert rig.server._by_network == {}

    uvloop.run(scenario())


def test_refused_recipients_of_a_host_do_not_end_its_connection():
    async def scenario():
        async with running(SmtpSettings(max_refused_recipients=3)) as rig:
            rig.intake.refusals["recipient"] = GONE
            async with connected(rig.lmtp, hello="LHLO") as client:
                answers = await client.ask_all(THREE[0], *[THREE[1]] * 10)
                assert [answer[:3] for answer in answers] == ["250"] + ["550"] * 10

    uvloop.run(scenario())


def test_a_client_that_a_proxy_names_is_judged_as_one():
    async def scenario():
        async with running(proxies=Proxies(["127.0.0.0/8"])) as rig:
            client = Client(*await asyncio.open_connection("127.0.0.1", rig.lmtp))
            client.send(b"PROXY TCP4 192.0.2.7 192.0.2.8 4711 24\r\nLHLO client.example\r\n")
            assert (await client.reply()).startswith("220 ")
            assert (await client.reply()).startswith("250-")
            assert [(call[0], call[1].address) for call in rig.intake.calls] == [
                ("connected", "192.0.2.7"),
                ("helo", "192.0.2.7"),
            ]
            client.close()

    uvloop.run(scenario())


def test_smtplib_over_a_unix_socket(tmp_path):
    def send(path: str) -> list[bytes]:
        # Its sendmail reads one answer, however many recipients there are.
        with smtplib.LMTP(path) as client:
            client.ehlo_or_helo_if_needed()
            client.mail("a@b.example")
            codes = [client.rcpt(f"{name}@example.org")[0] for name in ("one", "two")]
            assert codes == [250, 250]
            return [client.data(b"Subject: hello\r\n\r\nbody\r\n")[1], client.getreply()[1]]

    async def scenario():
        path = tmp_path / "lmtp"
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
            bound.listen()
            bound.setblocking(False)
            async with running() as rig:
                await rig.server.start(lmtp=[bound])
                assert await asyncio.to_thread(send, str(path)) == [b"2.0.0 Ok: msg_1"] * 2
                assert rig.intake.contents() == [b"Subject: hello\r\n\r\nbody\r\n"]

    uvloop.run(scenario())
