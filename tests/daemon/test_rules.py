"""Rules and sender authentication in the whole daemon, against a DNS server on loopback."""

import asyncio
import base64
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.daemon.letters import DOMAIN, message, queued_id, wire
from tests.daemon.running import HOSTNAME, ROOT, Daemon, Inbox
from tests.nameserver import Nameserver

RULES = """
[[rule]]
name = "unwanted"
stage = "message"
when = 'subject.contains("lottery")'
action = "reject"
code = 554
enhanced = "5.7.7"
text = "No games of chance"

[[rule]]
name = "doubtful"
stage = "message"
when = 'subject.contains("offer")'
action = "quarantine"
keyword = "Doubtful"

[[rule]]
name = "later"
stage = "message"
when = 'subject.contains("not now")'
action = "defer"
text = "Come back"

[[rule]]
name = "invoice"
stage = "message"
when = 'subject.contains("invoice")'
action = "tag"
keyword = "Invoice"
header = "X-Sorted: yes"

[[rule]]
name = "no-strangers"
stage = "rcpt"
when = 'recipient.startsWith("private") && !authenticated'
action = "reject"
text = "Not for you"
"""

# Signs as the stranger's own server does: stock dkimpy in a process of its own.
SIGNER = """
import sys, dkim
content = sys.stdin.buffer.read()
key = open(sys.argv[1], "rb").read()
sys.stdout.buffer.write(dkim.sign(content, b"s1", sys.argv[2].encode(), key) + content)
"""


@contextmanager
def answering(zone: dict[str, dict[str, list[str]]]) -> Iterator[Nameserver]:
    """A DNS server in a thread of its own."""
    loop = asyncio.new_event_loop()
    nameserver = Nameserver(zone)
    loop.run_until_complete(nameserver.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield nameserver
    finally:
        asyncio.run_coroutine_threadsafe(nameserver.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture(scope="session")
def signing_key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An RSA key file and its public record."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, 2048)
    path = tmp_path_factory.mktemp("signing") / "key.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return path, "v=DKIM1; k=rsa; p=" + base64.b64encode(public).decode()


@pytest.fixture(scope="session")
def checking(
    template: Path, signing_key: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """A daemon with rules of its own behind the shipped ones, and with all checks of senders on."""
    zone = {
        "honest.test": {"TXT": ["v=spf1 ip4:127.0.0.1 -all"], "MX": ["10 mx.honest.test"]},
        "s1._domainkey.honest.test": {"TXT": [signing_key[1]]},
        "_dmarc.honest.test": {"TXT": ["v=DMARC1; p=reject"]},
        # All of its mail comes from elsewhere.
        "bank.test": {"TXT": ["v=spf1 ip4:192.0.2.1 -all"]},
        "_dmarc.bank.test": {"TXT": ["v=DMARC1; p=reject"]},
        "shop.test": {"TXT": ["v=spf1 ip4:192.0.2.1 ~all"]},
        "_dmarc.shop.test": {"TXT": ["v=DMARC1; p=quarantine"]},
        "forwarder.test": {"TXT": ["v=spf1 ip4:127.0.0.1 -all"]},
    }
    directory = tmp_path_factory.mktemp("checking")
    rules = directory / "rules"
    rules.mkdir()
    for path in (ROOT / "conf/policies").glob("*.toml"):
        (rules / path.name).write_text(path.read_text())
    (rules / "50-own.toml").write_text(RULES)
    with answering(zone) as nameserver:
        settings = {
            "dns": {"servers": [nameserver.address]},
            "authentication": {"enabled": True},
            "policy": {"directory": str(rules)},
        }
        with Daemon(directory, template=template, **settings) as running:
            yield running.start()


@pytest.fixture
def receiver(checking: Daemon) -> Inbox:
    return checking.new_inbox()


def hand_in(daemon: Daemon, content: bytes, recipient: str, *, sender: str) -> tuple[int, bytes]:
    with daemon.mx() as client:
        client.ehlo()
        assert client.mail(sender)[0] == 250
        assert client.rcpt(recipient)[0] == 250
        return client.data(content)


@pytest.mark.parametrize("fields", [b"", b"From: a@open.test\r\nfrom: ceo@bank.test\r\n"])
def test_mail_without_one_from_field_is_refused(checking: Daemon, receiver: Inbox, fields: bytes) -> None:
    code, text = hand_in(
        checking, fields + b"Subject: x\r\n\r\nx\r\n", receiver.address, sender="a@open.test"
    )
    assert (code, text) == (550, b"5.6.0 The message needs one From field")


def test_a_rejecting_rule_gives_its_code_and_text(checking: Daemon, receiver: Inbox) -> None:
    content = wire(message("You won the LOTTERY"))
    reply = hand_in(checking, content, receiver.address, sender="x@nowhere.test")
    assert reply == (554, b"5.7.7 No games of chance")
    assert checking.messages(receiver) == []


def test_a_deferring_rule_asks_to_come_back(checking: Daemon, receiver: Inbox) -> None:
    reply = hand_in(checking, wire(message("Not now")), receiver.address, sender="x@nowhere.test")
    assert (reply[0], reply[1][:1]) == (451, b"4")


def test_a_rule_at_rcpt_spares_the_other_recipients(checking: Daemon, receiver: Inbox) -> None:
    private = checking.new_inbox("private-" + receiver.address.partition("@")[0])
    with checking.mx() as client:
        client.ehlo()
        client.mail("x@nowhere.test")
        assert client.rcpt(private.address) == (550, b"5.7.1 Not for you")
        assert client.rcpt(receiver.address)[0] == 250
        assert client.data(wire(message("For the other")))[0] == 250
    checking.find(receiver, "For the other")


def test_a_quarantined_message_lies_in_junk_with_its_keyword(checking: Daemon, receiver: Inbox) -> None:
    reply = hand_in(checking, wire(message("An offer")), receiver.address, sender="x@nowhere.test")
    checking.find(receiver, "An offer", folder="Junk")
    assert checking.messages(receiver) == []
    with checking.imap(receiver) as client:
        client.select("Junk")
        assert client.search(None, "KEYWORD", "Doubtful") == ("OK", [b"1"])
    told = checking.settled(queued_id(reply))
    assert told["message"]["decision"]["action"] == "quarantine"
    assert "doubtful" in told["timeline"][0]["data"]["rules"]


def test_a_tag_sets_a_keyword_and_a_field(checking: Daemon, receiver: Inbox) -> None:
    hand_in(checking, wire(message("Your invoice")), receiver.address, sender="x@nowhere.test")
    placed = checking.find(receiver, "Your invoice")
    assert placed["X-Sorted"] == "yes"
    with checking.imap(receiver) as client:
        client.select("INBOX")
        assert client.search(None, "KEYWORD", "Invoice") == ("OK", [b"1"])


def results(daemon: Daemon, inbox: Inbox, subject: str, folder: str = "INBOX") -> str:
    """Our own Authentication-Results of a message."""
    fields = daemon.find(inbox, subject, folder).get_all("Authentication-Results")
    assert fields and str(fields[0]).startswith(HOSTNAME)
    return " ".join(str(fields[0]).split())


def test_an_aligned_signature_passes_dmarc(
    checking: Daemon, receiver: Inbox, signing_key: tuple[Path, str]
) -> None:
    made = message("Honestly", From="Ann <ann@honest.test>", Date="Mon, 06 Jul 2026 10:00:00 +0000")
    signed = subprocess.run(
        [sys.executable, "-c", SIGNER, signing_key[0], "honest.test"],
        input=wire(made), capture_output=True, check=True,
    ).stdout  # fmt: skip
    # Forwarded: SPF speaks of the forwarder alone, the signature survives.
    reply = hand_in(checking, signed, receiver.address, sender="list@forwarder.test")
    assert reply[0] == 250, reply
    said = results(checking, receiver, "Honestly")
    assert "dmarc=pass" in said and "dkim=pass" in said and "spf=pass" in said
    verdicts = checking.settled(queued_id(reply))["message"]["verdicts"]
    assert {(one["method"], one["result"]) for one in verdicts} >= {("dkim", "pass"), ("dmarc", "pass")}


def test_a_changed_body_breaks_the_signature(
    checking: Daemon, receiver: Inbox, signing_key: tuple[Path, str]
) -> None:
    made = message("Changed", From="Ann <ann@honest.test>", Date="Mon, 06 Jul 2026 10:00:00 +0000")
    signed = subprocess.run(
        [sys.executable, "-c", SIGNER, signing_key[0], "honest.test"],
        input=wire(made), capture_output=True, check=True,
    ).stdout  # fmt: skip
    changed = signed.replace(b"Hello.", b"Send money.")
    reply = hand_in(checking, changed, receiver.address, sender="list@forwarder.test")
    assert reply[0] == 250
    # The forwarder passes SPF for itself: the shipped rules put the message aside, no more.
    assert "dkim=fail" in results(checking, receiver, "Changed", folder="Junk")


def test_spf_alone_passes_dmarc(checking: Daemon, receiver: Inbox) -> None:
    made = wire(message("By address", From="ann@honest.test"))
    assert hand_in(checking, made, receiver.address, sender="ann@honest.test")[0] == 250
    said = results(checking, receiver, "By address")
    assert "spf=pass" in said and "dmarc=pass" in said


def test_a_spoof_of_a_rejecting_domain_is_refused(checking: Daemon, receiver: Inbox) -> None:
    spoof = wire(message("Your account", From="Your Bank <service@bank.test>"))
    code, text = hand_in(checking, spoof, receiver.address, sender="service@bank.test")
    assert (code, text[:6]) == (550, b"5.7.26")
    assert checking.messages(receiver) == checking.messages(receiver, "Junk") == []


def test_a_spoof_of_a_quarantining_domain_lies_in_junk(checking: Daemon, receiver: Inbox) -> None:
    spoof = wire(message("Your parcel", From="service@shop.test"))
    assert hand_in(checking, spoof, receiver.address, sender="service@shop.test")[0] == 250
    assert "dmarc=fail" in results(checking, receiver, "Your parcel", folder="Junk")


def test_a_server_without_any_records_is_let_in(checking: Daemon, receiver: Inbox) -> None:
    assert (
        hand_in(checking, wire(message("Plain")), receiver.address, sender=f"x@{DOMAIN}.unknown.test")[0]
        == 250
    )
    said = results(checking, receiver, "Plain")
    assert "spf=none" in said
