"""Clients that the DNS knows something of, and those that nobody knows, in the whole daemon."""

import json
import sqlite3
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.letters import message, wire
from tests.daemon.running import Daemon, until
from tests.daemon.test_rules import answering
from tests.nameserver import Nameserver

LISTED, ALLOWED, UNKNOWN = "192.0.2.66", "192.0.2.67", "192.0.2.68"
ZONE = {
    "2.0.0.127.bl.test": {"A": ["127.0.0.2"]},
    "66.2.0.192.bl.test": {"A": ["127.0.0.4"]},
    "67.2.0.192.bl.test": {"A": ["127.0.0.4"]},
    "2.0.0.127.wl.test": {"A": ["127.0.0.2"]},
    "67.2.0.192.wl.test": {"A": ["127.0.5.2"]},
    "67.2.0.192.in-addr.arpa": {"PTR": ["mx.friend.test"]},
    "mx.friend.test": {"A": [ALLOWED]},
    "*.everyone.test": {"A": ["127.0.0.2"]},
}

STERN = """
[[rule]]
name = "stern"
stage = "message"
when = 'dnsbl_listed && dnsbl_score == 1 && "bl.test" in dnsbl_zones && dnswl_listed'
action = "reject"
text = "Nobody who is listed"
"""


@pytest.fixture
def nameserver() -> Iterator[Nameserver]:
    with answering(ZONE) as running:
        yield running


@pytest.fixture
def judging(template: Path, nameserver: Nameserver, tmp_path: Path) -> Iterator[Daemon]:
    settings: dict[str, dict[str, object]] = {
        "dns": {"servers": [nameserver.address]},
        "dns_lists": {"block": ["bl.test=127.0.0.[2..9]", "everyone.test"], "allow": ["wl.test"]},
        "smtp": {"xclient_networks": ["127.0.0.0/8"]},
        "authentication": {"enabled": True, "iprev": True},
        "greylist": {"delay_seconds": 1},
    }
    with Daemon(tmp_path / "judging", template=template, **settings) as running:
        path = running.directory / "policies/40-greylist.toml"
        path.write_text(path.read_text().replace("enabled = false", "enabled = true"))
        yield running.start()


def hand_in(
    daemon: Daemon,
    client: str,
    subject: str,
    *,
    sender: str = "someone@partner.test",
    helo: str = "mx.far.test",
) -> tuple[int, bytes]:
    with daemon.mx() as session:
        session.ehlo()
        assert session.docmd("XCLIENT", f"ADDR={client}")[0] == 220
        session.ehlo(helo)
        assert session.mail(sender)[0] == 250
        assert session.rcpt(daemon.alice.address)[0] == 250
        return session.data(wire(message(subject, Message_ID=f"<{subject}@partner.test>")))


def test_mail_of_a_listed_address_is_refused_and_kept_and_of_an_allowed_one_taken(judging: Daemon) -> None:
    alice = judging.alice
    code, text = hand_in(judging, LISTED, "listed")
    assert (code, text[:5]) == (550, b"5.7.1")
    kept = judging.find(alice, "listed", folder="Rejects")
    (told,) = until(lambda: events(judging, "message.refused"), "the event behind the file")
    assert (told["rules"][0], told["blocklists"]) == ("blocklisted", ["bl.test"])
    assert "iprev=permerror" in str(kept["Authentication-Results"])
    assert hand_in(judging, ALLOWED, "allowed")[0] == 250
    found = judging.find(alice, "allowed")
    (taken,) = until(lambda: events(judging, "message.accepted"), "the event behind the file")
    assert (taken["blocklists"], taken["allowlists"]) == (["bl.test"], ["wl.test"])
    assert f"iprev=pass policy.iprev={ALLOWED}" in str(found["Authentication-Results"])
    assert f"from mx.far.test (mx.friend.test [{ALLOWED}])" in " ".join(str(found["Received"]).split())
    # A list that lists everybody is not believed.
    assert "everyone.test" in judging.log
    assert "it lists everything" in judging.log


def events(daemon: Daemon, kind: str) -> list[dict[str, Any]]:
    """What the events of a kind say, in order."""
    found = sqlite3.connect(f"file:{daemon.data}/mailagents.sqlite?mode=ro", uri=True)
    try:
        rows = found.execute("SELECT data FROM events WHERE kind = ? ORDER BY seq", (kind,)).fetchall()
    finally:
        found.close()
    return [json.loads(row[0]) for row in rows]


def test_a_stranger_comes_back_and_is_known_after_a_crash(judging: Daemon) -> None:
    code, text = hand_in(judging, UNKNOWN, "first")
    assert (code, text[:5]) == (451, b"4.7.1")
    assert b"try again" in text
    # What was seen is written within seconds.
    until(lambda: hand_in(judging, UNKNOWN, "first")[0] == 250, "the retry is let in")
    judging.find(judging.alice, "first")
    until(lambda: known(judging), "it is written who is known")
    judging.kill()
    judging.start()
    assert hand_in(judging, UNKNOWN, "second", sender="other@partner.test")[0] == 250
    judging.find(judging.alice, "second")


def known(daemon: Daemon) -> bool:
    connection = sqlite3.connect(f"file:{daemon.data}/mailagents.sqlite?mode=ro", uri=True)
    try:
        return bool(connection.execute("SELECT count(*) FROM greylist WHERE known = 1").fetchone()[0])
    finally:
        connection.close()


def test_metrics_tell_of_lists_and_strangers(judging: Daemon) -> None:
    hand_in(judging, LISTED, "listed")
    hand_in(judging, UNKNOWN, "unknown")
    request = urllib.request.Request(
        f"http://127.0.0.1:{judging.ports['http']}/metrics",
        headers={"Authorization": f"Bearer {judging.keys['operator']}"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        told = answer.read().decode()
    assert 'mailagents_dns_list_answers_total{answer="listed",zone="bl.test"} 1.0' in told
    assert 'mailagents_dns_list_usable{of="IPv4",zone="everyone.test"} 0.0' in told
    assert 'mailagents_dns_list_usable{of="IPv4",zone="bl.test"} 1.0' in told
    assert 'mailagents_greylisted_total{answer="new"} 1.0' in told


def test_replay_knows_what_the_lists_said_then(judging: Daemon, tmp_path: Path) -> None:
    assert hand_in(judging, ALLOWED, "allowed")[0] == 250
    judging.find(judging.alice, "allowed")
    until(lambda: events(judging, "message.accepted"), "the event behind the file")
    rules = tmp_path / "new"
    rules.mkdir()
    for path in (judging.directory / "policies").iterdir():
        (rules / path.name).write_text(path.read_text())
    (rules / "90-stern.toml").write_text(STERN)
    told = judging.cli("policy", "replay", "--since", "1h", "--directory", rules)
    (found,) = told["differences"]
    assert (found["before"], found["after"]) == ("accept", "reject 550 5.7.1 Nobody who is listed")


def at_message(told: dict[str, Any]) -> dict[str, Any]:
    (found,) = [stage for stage in told["stages"] if stage["stage"] == "message"]
    return found


def test_explain_asks_lists_and_names_as_the_server_does(judging: Daemon, tmp_path: Path) -> None:
    letter = tmp_path / "m.eml"
    letter.write_bytes(wire(message("offer")))
    asking = ("policy", "explain", letter, "--from", "someone@partner.test", "--to", judging.alice.address)
    told = judging.cli(*asking, "--ip", LISTED, "--helo", "mx.far.test")
    last = at_message(told)
    assert last["decision"].startswith("reject 550 5.7.1")
    assert last["facts"]["dnsbl_listed"] is True
    told = judging.cli(*asking, "--ip", ALLOWED, "--helo", "mx.far.test")
    assert at_message(told)["facts"]["dnswl_listed"] is True
    offline = judging.cli(*asking, "--ip", LISTED, "--offline", "--fact", "dnswl_listed=true")
    assert at_message(offline)["facts"]["dnsbl_listed"] is False
