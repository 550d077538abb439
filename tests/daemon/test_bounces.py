"""What comes back of sent mail, over real SMTP and HTTP: bounces, suppressions, unsubscribing."""

import smtplib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.mail.dsn import Action, RecipientStatus, Report, compose_dsn
from tests.daemon import partner as second
from tests.daemon.letters import message
from tests.daemon.partner import Partner, Taken
from tests.daemon.running import Daemon, Inbox, until
from tests.daemon.test_flow import submit

pytestmark = pytest.mark.whole


@dataclass
class Road:
    """A daemon that signs its return paths, and the server that gets its mail."""

    daemon: Daemon
    partner: Partner

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.daemon.ports['http']}"

    def suppressed(self, address: str) -> list[dict[str, Any]]:
        found = self.daemon.cli("suppression", "list", "--address", address)
        rows: list[dict[str, Any]] = found["suppressions"]
        return rows

    def step(self, message_id: str, kind: str) -> dict[str, Any]:
        """Wait for a step of a message's timeline; its data."""

        def found() -> dict[str, Any] | None:
            steps = self.daemon.explain(message_id)["timeline"]
            return next((one for one in steps if one["kind"] == f"message.{kind}"), None)

        return until(found, f"no {kind}")["data"]


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[Road]:
    directory = tmp_path_factory.mktemp("bounces")
    with second.serving(directory) as partner:
        settings: dict[str, dict[str, object]] = {
            "delivery": {"routes": partner.route},
            "bounces": {
                "verp": ["agents.test"],
                "unsubscribe": "all",
                "unsubscribe_url": "https://mx.agents.test",
            },
        }
        with Daemon(directory, template=template, **settings) as running:
            yield Road(running.start(), partner)


def send(road: Road, subject: str, *recipients: str, inbox: Inbox | None = None) -> str:
    inbox = inbox or road.daemon.alice
    return submit(road.daemon, inbox, message(subject, From=inbox.address, To=recipients[0]), *recipients)


def dsn(to: str, recipient: str, returned: bytes, *, said: str = "550 5.1.1 no such user") -> bytes:
    status = RecipientStatus(recipient, Action.FAILED, "5.1.1", diagnostic=said)
    report = Report(
        "partner.test", "mailer-daemon@partner.test", to, "dsn@partner.test", 1, (status,), returned
    )
    return compose_dsn(report)


def answer(road: Road, to: str, content: bytes, *, sender: str = "") -> tuple[int, bytes]:
    """Hand a notice in at the MX door; the last reply."""
    with road.daemon.mx() as client:
        client.ehlo()
        client.mail(sender)
        code, text = client.rcpt(to)
        return client.data(content) if code == 250 else (code, text)


def taken(road: Road, subject: str, count: int) -> list[Taken]:
    def found() -> list[Taken]:
        got = [one for one in road.partner.taken if one.message["Subject"] == subject]
        return got if len(got) == count else []

    return until(found, f"{count} of {subject} did not arrive")


def test_each_recipient_has_a_return_path_whose_bounce_suppresses_it_alone(road: Road) -> None:
    sent = send(road, "two readers", "gone@partner.test", "here@partner.test")
    road.daemon.settled(sent)
    by_reader = {one.recipients[0]: one for one in taken(road, "two readers", 2)}
    paths = {name: one.reverse_path for name, one in by_reader.items()}
    assert len(set(paths.values())) == 2
    assert all(path.startswith("b-") and path.endswith("@agents.test") for path in paths.values())
    back = paths["gone@partner.test"]
    content = dsn(back, "someone-behind-an-alias@partner.test", by_reader["gone@partner.test"].content)
    assert answer(road, back, content)[0] == 250
    later = road.step(sent, "bounced_later")
    assert (later["recipient"], later["class"], later["blame"]) == ("gone@partner.test", "hard", "recipient")
    assert later["proof"] == "return path"
    (row,) = road.suppressed("gone@partner.test")
    assert (row["cause"], row["scope"]) == ("hard_bounce", "organization")
    assert not road.suppressed("here@partner.test")
    again = send(road, "once more", "gone@partner.test", "here@partner.test")
    states = {one["recipient"]: one["state"] for one in road.daemon.settled(again)["deliveries"]}
    assert states == {"gone@partner.test": "suppressed", "here@partner.test": "delivered"}
    assert road.step(again, "suppressed")["text"] == "the address is suppressed: hard_bounce"
    # Who sent it has the bounce once, as any other, and is told of what was not sent.
    mine = road.daemon.alice
    subject = "Undeliverable: your message could not be delivered"
    bounces = [one for one in road.daemon.messages(mine) if one["Subject"] == subject]

    def is_told() -> bool:
        bounces[:] = [one for one in road.daemon.messages(mine) if one["Subject"] == subject]
        return len(bounces) == 2

    until(is_told, "not told")


def test_a_bounce_that_comes_twice_is_noted_once(road: Road) -> None:
    sent = send(road, "twice", "doubly@partner.test")
    (got,) = taken(road, "twice", 1)
    road.daemon.settled(sent)
    content = dsn(got.reverse_path, "doubly@partner.test", got.content)
    assert answer(road, got.reverse_path, content)[0] == 250
    road.step(sent, "bounced_later")
    assert answer(road, got.reverse_path, content)[0] == 250
    other = send(road, "behind it", "behind@partner.test")
    (last,) = taken(road, "behind it", 1)
    road.daemon.settled(other)
    answer(road, last.reverse_path, dsn(last.reverse_path, "behind@partner.test", last.content))
    road.step(other, "bounced_later")  # events are worked through in order
    assert road.daemon.kinds(sent).count("bounced_later") == 1


def test_forged_and_misused_return_paths_are_refused_at_rcpt(road: Road) -> None:
    send(road, "signed", "signed@partner.test")
    (got,) = taken(road, "signed", 1)
    local, _, domain = got.reverse_path.partition("@")
    flipped = "0" if local[-1] != "0" else "1"
    other = "0" if local[12] != "0" else "1"
    for path in (f"{local[:-1]}{flipped}@{domain}", f"{local[:12]}{other}{local[13:]}@{domain}"):
        assert answer(road, path, b"Subject: x\r\n\r\nx\r\n")[0] == 550
    code, text = answer(road, got.reverse_path, b"Subject: x\r\n\r\nx\r\n", sender="who@partner.test")
    assert (code, text[:5]) == (550, b"5.7.1")
    # An answer of a program comes this way, too, and says nothing of the address.
    away = b"Auto-Submitted: auto-replied\r\nSubject: Out of office\r\nFrom: a@partner.test\r\n\r\nAway.\r\n"
    assert answer(road, got.reverse_path.upper(), away)[0] == 250
    road.daemon.find(road.daemon.alice, "Out of office")
    assert not road.suppressed("signed@partner.test")


def test_at_an_ordinary_address_a_notice_counts_only_with_what_we_put_on_the_message(road: Road) -> None:
    inbox = road.daemon.new_inbox()
    sent = send(road, "proof", "proven@partner.test", inbox=inbox)
    (got,) = taken(road, "proof", 1)
    road.daemon.settled(sent)
    forged = (
        b"Message-ID: <made@up.test>\r\nReceived: from a by b with SMTP id msg_" + b"0" * 26 + b"\r\n\r\n"
    )
    assert answer(road, inbox.address, dsn(inbox.address, "proven@partner.test", forged))[0] == 250
    subject = "Undeliverable: your message could not be delivered"
    junk = road.daemon.find(inbox, subject, folder="Junk")
    assert junk is not None
    assert not road.suppressed("proven@partner.test")
    # The trace is gone, the signature still fits.
    header = b"\r\n".join(
        line for line in unfolded(got.content).split(b"\r\n") if not line.lower().startswith(b"received:")
    )
    assert answer(road, inbox.address, dsn(inbox.address, "proven@partner.test", header))[0] == 250
    assert road.step(sent, "bounced_later")["proof"] == "signature"
    (row,) = road.suppressed("proven@partner.test")
    assert row["event_id"]
    road.daemon.find(inbox, subject)


def test_a_notice_with_our_trace_is_proved(road: Road) -> None:
    inbox = road.daemon.new_inbox()
    sent = send(road, "trace", "traced@partner.test", inbox=inbox)
    (got,) = taken(road, "trace", 1)
    road.daemon.settled(sent)
    full = dsn(inbox.address, "traced@partner.test", got.content, said="552 5.2.2 mailbox full")
    assert answer(road, inbox.address, full.replace(b"Status: 5.1.1", b"Status: 5.2.2"))[0] == 250
    later = road.step(sent, "bounced_later")
    assert (later["proof"], later["class"]) == ("trace", "mailbox_full")
    assert not road.suppressed("traced@partner.test")  # once is no run


def unfolded(content: bytes) -> bytes:
    return content.partition(b"\r\n\r\n")[0].replace(b"\r\n\t", b"\t").replace(b"\r\n ", b" ") + b"\r\n\r\n"


def test_a_refusal_for_good_suppresses_at_once_and_says_its_class(road: Road) -> None:
    sent = send(road, "refused", "reject@partner.test")
    road.daemon.settled(sent)
    bounced = road.step(sent, "bounced")
    assert {"class", "blame"} <= bounced.keys()
    rows = road.suppressed("reject@partner.test")
    assert [row["cause"] for row in rows] == (["hard_bounce"] if bounced["blame"] == "recipient" else [])


def test_one_click_unsubscribes_from_one_sender(road: Road) -> None:
    send(road, "news", "reader@partner.test")
    (got,) = taken(road, "news", 1)
    assert got.message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    link = str(got.message["List-Unsubscribe"]).strip("<>").replace("https://mx.agents.test", road.base)
    signed = " ".join(str(one) for one in got.message.get_all("DKIM-Signature") or ())
    assert "List-Unsubscribe:" in signed.replace(" ", "")
    assert "List-Unsubscribe-Post" in signed.replace(" ", "")
    page = httpx.get(link)
    assert page.status_code == 200
    assert "<button>" in page.text
    assert not road.suppressed("reader@partner.test")
    assert httpx.post(link, data={"x": "y"}).status_code == 400
    assert httpx.post(link[:-3] + "AAA", data={"List-Unsubscribe": "One-Click"}).status_code == 404
    done = httpx.post(link, files={"List-Unsubscribe": (None, "One-Click")})
    assert (done.status_code, httpx.post(link, data={"List-Unsubscribe": "One-Click"}).status_code) == (
        200,
        200,
    )
    (row,) = road.suppressed("reader@partner.test")
    assert (row["cause"], row["scope"], row["sender"]) == ("unsubscribe", "sender", road.daemon.alice.address)
    by_alice = road.daemon.settled(send(road, "more news", "reader@partner.test"))
    assert by_alice["deliveries"][0]["state"] == "suppressed"
    by_bob = road.daemon.settled(send(road, "of another", "reader@partner.test", inbox=road.daemon.bob))
    assert by_bob["deliveries"][0]["state"] == "delivered"


def test_the_command_line_adds_and_removes_with_a_reason(road: Road) -> None:
    added = road.daemon.cli("suppression", "add", "Vip@partner.test", "--reason", "asked by phone")
    assert (added["address"], added["in_flight"]) == ("vip@partner.test", [])
    tagged = road.daemon.settled(send(road, "tag", "vip+tag@partner.test"))
    assert tagged["deliveries"][0]["state"] == "suppressed"
    road.daemon.cli("suppression", "remove", "vip@partner.test", "--reason", "asked again")
    free = road.daemon.settled(send(road, "tag again", "vip+tag@partner.test"))
    assert free["deliveries"][0]["state"] == "delivered"


def test_smtp_still_says_no_to_strangers_of_other_domains(road: Road) -> None:
    with road.daemon.mx() as client:
        client.ehlo()
        client.mail("")
        code, _ = client.rcpt("b-" + "0" * 42 + "@elsewhere.test")
    assert code == 550
    assert isinstance(client, smtplib.SMTP)
