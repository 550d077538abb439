"""What is submitted is made fit for every next hop before it is signed; what is only passed on is not."""

from dataclasses import replace
from email import message_from_bytes, policy
from pathlib import Path

import pytest

from server.arrival import Arrival
from server.mail.seven_bit import is_fit
from server.refusal import Refusal
from storage.records import Envelope, Recipient, Source, Spooled
from tests.test_intake import PEER, Appliance, run

HEAD = b"From: one@ours.example\r\nTo: x@far.example\r\nSubject: s\r\nMessage-ID: <1@ours.example>\r\n"
WIDE = (
    HEAD
    + b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
    + "Grüße an alle\r\n".encode()
)
LONG = HEAD + b"\r\n" + b"x" * 1500 + b"\r\n"
NESTED = (
    HEAD
    + b'MIME-Version: 1.0\r\nContent-Type: multipart/signed; boundary="b"; protocol="a/b"\r\n\r\n--b\r\n\r\n'
    + b"%b\r\n--b\r\nContent-Type: a/b\r\n\r\nsig\r\n--b--\r\n"
)
TO = Envelope("one@ours.example", (Recipient("x@far.example"),), body="8BITMIME")


async def submitted(
    appliance: Appliance, content: bytes, *, source: Source = Source.SUBMISSION, is_spooled: bool = False
) -> bytes:
    """The content that reaches the journal."""
    given = appliance.spool(content) if is_spooled else content
    arrival = Arrival(source, PEER, TO, given, organization_id="org_1")
    if source not in (Source.SUBMISSION, Source.API, Source.NOTICE):
        inbox = Recipient("one@ours.example")
        arrival = replace(arrival, envelope=replace(TO, reverse_path="x@far.example", recipients=(inbox,)))
    await appliance.intake.accept(arrival)
    kept = appliance.accepted[-1].content
    if isinstance(kept, Spooled):
        return appliance.store.read_spooled(kept).read_bytes()
    return kept


def text(content: bytes) -> bytes:
    """What the only part means."""
    read = message_from_bytes(content, policy=policy.default).get_payload(decode=True)
    assert isinstance(read, bytes)
    return read


@pytest.mark.parametrize("content", [WIDE, LONG])
@pytest.mark.parametrize("is_spooled", [False, True])
@pytest.mark.parametrize("source", [Source.SUBMISSION, Source.API])
def test_what_users_send_becomes_fit(
    tmp_path: Path, content: bytes, is_spooled: bool, source: Source
) -> None:
    async def scenario(appliance: Appliance) -> None:
        kept = await submitted(appliance, content, source=source, is_spooled=is_spooled)
        assert is_fit(kept) and not is_fit(content)
        assert appliance.accepted[-1].events[0].data["recoded"] is True
        assert text(kept) == content[content.index(b"\r\n\r\n") + 4 :]
        assert len(appliance.spooled()) == is_spooled

    run(tmp_path, scenario)


@pytest.mark.parametrize("is_spooled", [False, True])
def test_what_is_fit_is_not_touched(tmp_path: Path, is_spooled: bool) -> None:
    content = HEAD + b"Date: Mon, 1 Jan 2024 00:00:00 +0000\r\n\r\nplain\r\n"

    async def scenario(appliance: Appliance) -> None:
        assert await submitted(appliance, content, is_spooled=is_spooled) == content
        assert "recoded" not in appliance.accepted[-1].events[0].data

    run(tmp_path, scenario)


@pytest.mark.parametrize("source", [Source.MX, Source.LMTP, Source.LOCAL])
@pytest.mark.parametrize(
    "content", [WIDE, LONG, HEAD.replace(b"s\r\n", b"w " * 700 + b"\r\n") + b"\r\nx\r\n"]
)
def test_what_others_send_stays_octet_for_octet(tmp_path: Path, source: Source, content: bytes) -> None:
    async def scenario(appliance: Appliance) -> None:
        assert await submitted(appliance, content, source=source) == content

    run(tmp_path, scenario)


SIGNATURE = b"DKIM-Signature: v=1; a=rsa-sha256; d=far.example; s=s; h=from; bh=; b=\r\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (SIGNATURE + LONG, "it is signed"),
        (b"ARC-Message-Signature: i=1; a=rsa-sha256\r\n" + LONG, "it is signed"),
        (NESTED.replace(b"%b", b"y" * 999), "multipart/signed"),
        (HEAD + b"X-A: " + b"y" * 999 + b"\r\n\r\nx\r\n", "no place to be folded"),
        (
            HEAD + b"Content-Type: message/rfc822\r\n\r\nSubject: x\r\n\r\n" + b"y" * 999 + b"\r\n",
            "message/rfc822",
        ),
    ],
)
@pytest.mark.parametrize("is_spooled", [False, True])
def test_what_cannot_become_fit_is_refused_with_the_reason(
    tmp_path: Path, content: bytes, words: str, is_spooled: bool
) -> None:
    async def scenario(appliance: Appliance) -> None:
        with pytest.raises(Refusal) as refused:
            await submitted(appliance, content, is_spooled=is_spooled)
        assert (refused.value.code, refused.value.enhanced) == (554, "5.6.3")
        assert words in refused.value.public
        assert appliance.accepted == []
        assert appliance.spooled() == []

    run(tmp_path, scenario)


@pytest.mark.parametrize("content", [SIGNATURE + WIDE, NESTED.replace(b"%b", "Grüße\r\n".encode())])
@pytest.mark.parametrize("is_spooled", [False, True])
def test_what_is_signed_by_others_keeps_its_octets(tmp_path: Path, content: bytes, is_spooled: bool) -> None:
    async def scenario(appliance: Appliance) -> None:
        assert (await submitted(appliance, content, is_spooled=is_spooled)).endswith(content)

    run(tmp_path, scenario)


def test_binary_text_ends_up_fit_too(tmp_path: Path) -> None:
    content = HEAD + (
        b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Content-Transfer-Encoding: binary\r\n\r\n" + "Grüße an alle\r\n".encode()
    )

    async def scenario(appliance: Appliance) -> None:
        envelope = replace(TO, body="BINARYMIME")
        await appliance.intake.accept(
            Arrival(Source.SUBMISSION, PEER, envelope, content, organization_id="org_1")
        )
        kept = appliance.accepted[-1].content
        assert isinstance(kept, bytes)
        assert is_fit(kept)
        assert text(kept) == "Grüße an alle\r\n".encode()

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("added", "found"), [(b"", b"auto-generated"), (b"Auto-Submitted: auto-replied\r\n", b"auto-replied")]
)
def test_whatever_this_server_says_is_said_to_be_automatic(
    tmp_path: Path, added: bytes, found: bytes
) -> None:
    async def scenario(appliance: Appliance) -> None:
        kept = await submitted(appliance, added + HEAD + b"\r\nx\r\n", source=Source.NOTICE)
        assert kept.lower().count(b"auto-submitted") == 1
        assert b"Auto-Submitted: " + found + b"\r\n" in kept

    run(tmp_path, scenario)
