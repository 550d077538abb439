"""XCLIENT: for named networks alone, what it changes, and what it must not."""

import pytest
import uvloop

from server.refusal import Refusal
from server.smtp import xclient
from server.smtp.settings import SmtpSettings
from storage.records import Peer
from tests.smtp.fakes import connected, running, until

TESTERS = SmtpSettings(xclient_networks=("127.0.0.0/8",))
PEER = Peer("127.0.0.1", 4711, "client.example", extended=True, tls_version="TLSv1.3", identity="crd_1")


@pytest.mark.parametrize("settings", [SmtpSettings(), SmtpSettings(xclient_networks=("192.0.2.0/24",))])
@pytest.mark.parametrize("line", ["XCLIENT ADDR=192.0.2.1", "XCLIENT", "XCLIENT \x01"])
def test_others_are_told_nothing_of_it(settings, line):
    async def scenario():
        async with running(settings) as rig, connected(rig.mx) as client:
            assert "XCLIENT" not in await client.ask("EHLO client.example")
            answer = await client.ask(line)
            assert answer[:9] == "500 5.5.2"
            assert {call[1].address for call in rig.intake.calls} == {"127.0.0.1"}

    uvloop.run(scenario())


@pytest.mark.parametrize("door", ["submission", "submissions"])
def test_submission_does_not_know_it(door):
    async def scenario():
        async with running(TESTERS) as rig:
            if door == "submission":
                async with connected(rig.submission) as client:
                    assert "XCLIENT" not in await client.ask("EHLO client.example")
                    assert (await client.ask("XCLIENT ADDR=192.0.2.1")).startswith("500")

    uvloop.run(scenario())


def test_the_session_begins_anew_as_another_client():
    async def scenario():
        async with running(TESTERS) as rig, connected(rig.mx) as client:
            announced = await client.ask("EHLO client.example")
            assert "XCLIENT NAME ADDR PORT PROTO HELO" in announced
            answer = await client.ask("XCLIENT NAME=far.example ADDR=IPV6:2001:db8::7 PORT=99")
            assert answer == "220 mx.example.org ESMTP"
            assert (await client.ask("MAIL FROM:<a@b.example>")).startswith("503")
            await client.ask("EHLO far.example")
            await client.ask_all("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>")
            peer = rig.intake.calls[-1][1]
            assert (peer.address, peer.port, peer.reverse_name) == ("2001:db8::7", 99, "far.example")
            assert (await client.ask("XCLIENT ADDR=192.0.2.1")).startswith("503 5.5.1")
        await until(lambda: rig.server.connections == 0)
        assert rig.server._by_network == {}

    uvloop.run(scenario())


def test_helo_and_protocol_may_be_said_too():
    async def scenario():
        async with running(TESTERS) as rig, connected(rig.mx) as client:
            assert (await client.ask("XCLIENT HELO=far.example PROTO=SMTP ADDR=192.0.2.1"))[:3] == "220"
            assert (await client.ask("MAIL FROM:<a@b.example>"))[:3] == "250"
            assert (await client.ask("RCPT TO:<c@d.example>"))[:3] == "250"
            peer = rig.intake.calls[-1][1]
            assert (peer.helo, peer.extended) == ("far.example", False)

    uvloop.run(scenario())


def test_a_client_that_is_refused_as_another_may_become_a_third():
    async def scenario():
        async with running(TESTERS) as rig, connected(rig.mx) as client:
            rig.intake.refusals["connected"] = Refusal(554, "5.7.1", "Not from there")
            assert (await client.ask("XCLIENT ADDR=192.0.2.1")) == "554 5.7.1 Not from there"
            assert (await client.ask("EHLO x")).startswith("503")
            rig.intake.refusals.clear()
            assert (await client.ask("XCLIENT ADDR=192.0.2.2")).startswith("220")
            assert (await client.ask("EHLO x")).startswith("250")

    uvloop.run(scenario())


def test_an_lmtp_host_may_say_whose_mail_it_brings():
    async def scenario():
        async with running(TESTERS) as rig, connected(rig.lmtp, hello="LHLO") as client:
            assert rig.intake.calls == []
            assert (await client.ask("XCLIENT ADDR=192.0.2.1")).startswith("220 mx.example.org LMTP")
            await client.ask("LHLO far.example")
            assert [(call[0], call[1].address) for call in rig.intake.calls] == [
                ("connected", "192.0.2.1"),
                ("helo", "192.0.2.1"),
            ]

    uvloop.run(scenario())


def test_what_is_not_said_stays_but_for_the_greeting_and_the_login():
    changed = xclient.apply(PEER, b"PORT=1")
    assert changed == Peer("127.0.0.1", 1, "", tls_version="TLSv1.3")
    assert xclient.apply(PEER, b"ADDR=192.0.2.1") == Peer("192.0.2.1", 0, "", tls_version="TLSv1.3")
    assert xclient.apply(PEER, b"addr=[unavailable] NAME=[TEMPUNAVAIL]").address == ""


@pytest.mark.parametrize(
    "argument",
    [
        b"",
        b"ADDR",
        b"ADDR=",
        b"ADDR=192.0.2.256",
        b"ADDR=IPV6:192.0.2.x",
        b"ADDR=192.0.2.1 ADDR=192.0.2.2",
        b"LOGIN=ann@example.org",
        b"DESTADDR=192.0.2.1",
        b"NAME=a+0D+0Ab",
        b"NAME=" + b"a" * 256,
        b"NAME=a+2",
        b"HELO=a+00b",
        b"HELO=a+20b",
        b"PORT=65536",
        b"PORT=-1",
        b"PROTO=LMTP",
        b"PROTO=[UNAVAILABLE]",
        "NAME=ä".encode(),
    ],
)
def test_malformed_attributes_are_501(argument):
    with pytest.raises(Refusal) as refused:
        xclient.apply(PEER, argument)
    assert (refused.value.code, refused.value.enhanced) == (501, "5.5.4")
