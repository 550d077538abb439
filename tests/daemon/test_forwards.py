"""Mail that a rule sends on to another server, over real SMTP: its seal, its sender, and its bounce."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Connection

from storage import accounts
from storage.db import Database
from tests.daemon import partner as second
from tests.daemon.letters import DOMAIN, queued_id
from tests.daemon.partner import Partner
from tests.daemon.running import Daemon, until
from tests.daemon.test_rules import answering
from tests.sender_auth.letters import LETTER, record, rsa_key, sign

pytestmark = pytest.mark.whole

RULE = """
[[rule]]
name = "on"
stage = "message"
when = 'source == "mx" && !is_bounce'
action = "redirect"
target = "bob@partner.test"

[[rule]]
name = "nowhere"
stage = "message"
when = 'source == "mx" && is_bounce && subject == "for nobody"'
action = "redirect"
target = "reject@partner.test"
"""


@dataclass
class Road:
    """A daemon that sends on what comes for its inboxes, and the server that gets it."""

    daemon: Daemon
    partner: Partner


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[Road]:
    directory = tmp_path_factory.mktemp("forwards")
    (directory / "rules").mkdir()
    (directory / "rules" / "on.toml").write_text(RULE)
    zone = {
        "example.com": {"TXT": ["v=spf1 ip4:127.0.0.1 -all"], "A": ["127.0.0.1"]},
        "_dmarc.example.com": {"TXT": ["v=DMARC1; p=reject"]},
        "sel._domainkey.example.com": {"TXT": [record(rsa_key())]},
    }
    with second.serving(directory) as partner, answering(zone) as nameserver:
        settings = {
            "dns": {"servers": [nameserver.address]},
            "authentication": {"enabled": True},
            "policy": {"directory": str(directory / "rules")},
            "delivery": {
                "routes": {**partner.route, "example.com": f"smtp:127.0.0.1:{partner.port}"},
            },
        }
        with Daemon(directory, template=template, **settings) as running:
            yield Road(running.start(), partner)


def test_forwarded_mail_is_sealed_and_its_bounce_finds_the_sender(road: Road) -> None:
    content = sign(LETTER, rsa_key(), t=None)
    inbox = road.daemon.inboxes["alice"]
    with road.daemon.mx() as client:
        client.ehlo()
        assert client.mail("ann@example.com")[0] == 250
        assert client.rcpt(inbox.address)[0] == 250
        assert client.data(content)[0] == 250
    got = road.partner.find("An  invitation")
    assert got.content.endswith(content)
    assert got.content.startswith(b"ARC-Seal: a=rsa-sha256;")
    head = got.content[: got.content.index(b"\r\nReceived:")]
    assert b"cv=none" in head
    assert b"dmarc=pass" in head[: head.index(b"\r\nReceived-SPF:")]
    assert b"Received-SPF: pass" in head
    local, _, domain = got.reverse_path.partition("@")
    assert local.startswith("fwd-")
    assert domain == inbox.address.partition("@")[2]

    with road.daemon.mx() as client:
        client.ehlo()
        client.mail("eve@example.com")
        assert client.rcpt(got.reverse_path)[0] == 550
        client.rset()
        assert client.mail("")[0] == 250
        assert client.rcpt(got.reverse_path)[0] == 250
        assert client.data(b"From: mailer-daemon@partner.test\r\nSubject: it failed\r\n\r\nx\r\n")[0] == 250
    bounce = until(
        lambda: next((one for one in road.partner.taken if b"it failed" in one.content), None), "no bounce"
    )
    # Stock aiosmtpd calls the null sender so.
    assert (bounce.reverse_path, bounce.recipients) == ("<>", ("ann@example.com",))


def test_forwarded_mail_keeps_octets_that_mail_of_ours_would_not(road: Road) -> None:
    wide = LETTER.replace(b"An  invitation", b"As it was").replace(b"Come", "Kömm".encode())
    content = sign(wide, rsa_key(), t=None)
    with road.daemon.mx() as client:
        client.ehlo()
        assert client.mail("ann@example.com", ["BODY=8BITMIME"])[0] == 250
        assert client.rcpt(road.daemon.inboxes["alice"].address)[0] == 250
        assert client.data(content)[0] == 250
    got = road.partner.find("As it was")
    assert got.content.endswith(content)
    assert b"dkim=pass" in got.content[: got.content.index(b"\r\nReceived:")]


def test_a_bounce_of_a_bounce_goes_nowhere(road: Road) -> None:
    """A null reverse-path that is forwarded stays null, and its failure is told to nobody."""
    before = len(road.partner.taken)
    with road.daemon.mx() as client:
        client.ehlo()
        client.mail("")
        assert client.rcpt(road.daemon.inboxes["bob"].address)[0] == 250
        code, text = client.data(b"From: m@example.com\r\nSubject: for nobody\r\n\r\nAgain\r\n")
        assert code == 250
    message_id = queued_id(text)
    road.daemon.settled(message_id)
    assert "notified" not in road.daemon.kinds(message_id)
    assert not [one for one in road.partner.taken[before:] if b"Undeliverable" in one.content]
    (waiting,) = road.daemon.deliveries(state="held")
    road.daemon.cli("queue", "cancel", waiting["id"])


def test_forwarded_mail_that_nobody_may_be_told_of_is_held(road: Road) -> None:
    daemon = road.daemon
    with daemon.mx() as client:
        client.ehlo()
        client.mail("")
        assert client.rcpt(daemon.inboxes["bob"].address)[0] == 250
        code, text = client.data(b"From: mailer@example.com\r\nSubject: for nobody\r\n\r\nKeep me\r\n")
        assert code == 250
    message_id = queued_id(text)
    (delivery,) = daemon.settled(message_id)["deliveries"]
    assert delivery["state"] == "held"
    assert "held" in daemon.kinds(message_id)
    assert "bounced" not in daemon.kinds(message_id)
    daemon.kill()
    daemon.start()
    (waiting,) = daemon.deliveries(state="held")
    assert waiting["id"] == delivery["id"]
    daemon.cli("queue", "cancel", waiting["id"])
    assert daemon.deliveries(state="held") == []


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[Road]:
    """A daemon whose addresses alias@ and lost@ have routes to another server."""
    directory = tmp_path_factory.mktemp("routed")
    zone = {
        "example.com": {"TXT": ["v=spf1 ip4:127.0.0.1 -all"], "A": ["127.0.0.1"]},
        "_dmarc.example.com": {"TXT": ["v=DMARC1; p=reject"]},
        "sel._domainkey.example.com": {"TXT": [record(rsa_key())]},
    }
    with second.serving(directory) as partner, answering(zone) as nameserver:
        settings = {
            "dns": {"servers": [nameserver.address]},
            "authentication": {"enabled": True},
            "delivery": {"routes": {**partner.route, "example.com": f"smtp:127.0.0.1:{partner.port}"}},
        }
        with Daemon(directory, template=template, **settings) as running:
            add_routes(running)
            yield Road(running.start(), partner)


def add_routes(daemon: Daemon) -> None:
    """Routes as the store keeps them, put there while the daemon is down."""
    database = Database.open(f"sqlite:///{daemon.data}/mailagents.sqlite")

    def unit(connection: Connection) -> None:
        owner = accounts.find_domain(connection, name=DOMAIN)
        assert owner is not None
        for alias, target in (("alias", "bob@partner.test"), ("lost", "reject@partner.test")):
            accounts.add_route(
                connection,
                organization_id=owner.organization_id,
                pattern=f"{alias}@{DOMAIN}",
                kind="forward",
                target=target,
                at=1,
            )

    database.write(unit)
    database.close()


def test_a_route_seals_rewrites_the_sender_and_leads_the_failure_back(routed: Road) -> None:
    daemon, partner = routed.daemon, routed.partner
    content = sign(LETTER.replace(b"An  inv", b"By route: an inv"), rsa_key(), t=None)
    ids = {}
    for alias in ("alias", "lost"):
        with daemon.mx() as client:
            client.ehlo()
            assert client.mail("ann@example.com")[0] == 250
            assert client.rcpt(f"{alias}@{DOMAIN}")[0] == 250
            code, text = client.data(content)
            assert code == 250, text
        ids[alias] = queued_id(text)
    got = partner.find("By route: an invitation")
    assert got.content.endswith(content)
    assert got.content.startswith(b"ARC-Seal: a=rsa-sha256;")
    assert b"dkim=pass" in got.content and b"dmarc=pass" in got.content
    assert got.recipients == ("bob@partner.test",)
    local, _, domain = got.reverse_path.partition("@")
    assert local.startswith("fwd-") and domain == DOMAIN

    # The other one is refused there: its sender is told, from the null reverse-path and as automatic mail.
    notice = until(
        lambda: next((one for one in partner.taken if one.recipients == ("ann@example.com",)), None),
        "no notice",
    )
    assert notice.reverse_path == "<>"
    assert notice.message["Auto-Submitted"] == "auto-replied"
    assert "reject@partner.test" in notice.content.decode("ascii")
    daemon.settled(ids["lost"])
    assert {"bounced", "notified"} <= set(daemon.kinds(ids["lost"]))


def test_a_routed_notice_keeps_the_null_sender_and_is_never_answered(routed: Road) -> None:
    daemon, partner = routed.daemon, routed.partner
    sent = {}
    for alias in ("alias", "lost"):
        with daemon.mx() as client:
            client.ehlo()
            assert client.mail("")[0] == 250
            assert client.rcpt(f"{alias}@{DOMAIN}")[0] == 250
            code, text = client.data(
                f"From: mailer@example.com\r\nSubject: null to {alias}\r\n\r\nx\r\n".encode()
            )
            assert code == 250, text
        sent[alias] = queued_id(text)
    assert partner.find("null to alias").reverse_path == "<>"
    (delivery,) = daemon.settled(sent["lost"])["deliveries"]
    assert delivery["state"] == "held"
    assert "notified" not in daemon.kinds(sent["lost"])
    assert not [one for one in partner.taken if b"null to lost" in one.content]
