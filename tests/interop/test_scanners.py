"""The real clamd and rspamd asked by a whole daemon: what they find decides where mail goes."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import scanner_daemons
from tests.daemon.letters import message, queued_id, wire
from tests.daemon.running import ROOT, Daemon, Inbox, Trouble, run_cli, until
from tests.scanner_daemons import ADD_HEADER_GTUBE, EICAR, GTUBE, VIRUS, Running


@pytest.fixture(scope="module")
def clamd() -> Iterator[Running]:
    with scanner_daemons.clamd(StreamMaxLength="4M") as running:
        yield running


@pytest.fixture(scope="module")
def rspamd() -> Iterator[Running]:
    with scanner_daemons.rspamd() as running:
        yield running


@pytest.fixture(scope="module")
def scanned(
    clamd: Running, rspamd: Running, template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    settings = {
        "scanners": {
            "clamav_address": clamd.address,
            "clamav_timeout_seconds": 2.0,
            "clamav_max_octets": 3 << 20,
            "rspamd_address": rspamd.address,
            "rspamd_timeout_seconds": 10.0,
        },
        "policy": {"directory": str(ROOT / "conf/policies")},
        "authentication": {"enabled": False},
        "delivery": {"default_route": "capture"},
    }
    with Daemon(tmp_path_factory.mktemp("scanned"), template=template, **settings) as running:
        yield running.start()


@pytest.fixture
def receiver(scanned: Daemon) -> Inbox:
    return scanned.new_inbox()


def hand_in(daemon: Daemon, content: bytes, inbox: Inbox) -> tuple[int, bytes]:
    with daemon.mx() as client:
        client.ehlo()
        assert client.mail("stranger@far.test")[0] == 250
        assert client.rcpt(inbox.address)[0] == 250
        return client.data(content)


def letter(subject: str, body: bytes) -> bytes:
    return wire(message(subject, From="stranger@far.test")) + body + b"\r\n"


def verdicts(daemon: Daemon, reply: tuple[int, bytes]) -> dict[str, dict[str, object]]:
    return {one["method"]: one for one in daemon.settled(queued_id(reply))["message"]["verdicts"]}


def test_eicar_is_held_and_reaches_nobody_until_it_is_released(scanned: Daemon, receiver: Inbox) -> None:
    reply = hand_in(scanned, letter("Infected", EICAR), receiver)
    assert reply[0] == 250
    told = scanned.settled(queued_id(reply))
    assert [row["state"] for row in told["deliveries"]] == ["held"]
    accepted = told["timeline"][0]["data"]
    assert (accepted["virus"], accepted["verdicts"]["clamav"]) == (VIRUS, "infected")
    assert "virus" in accepted["rules"]
    assert scanned.messages(receiver) == []
    # A person has looked at it.
    scanned.cli("queue", "release", queued_id(reply))
    assert scanned.find(receiver, "Infected")["X-Virus"] == "yes"


def test_eicar_in_a_spooled_attachment_is_found_as_well(scanned: Daemon, receiver: Inbox) -> None:
    made = message("Large and infected", From="stranger@far.test")
    made.add_attachment(b"x" * 1_800_000, maintype="application", subtype="octet-stream", filename="a.bin")
    made.add_attachment(EICAR, maintype="application", subtype="octet-stream", filename="b.com")
    reply = hand_in(scanned, wire(made), receiver)
    assert verdicts(scanned, reply)["clamav"]["result"] == "infected"
    assert scanned.messages(receiver) == []


def test_what_is_over_the_limit_is_let_in_and_said_not_to_be_scanned(
    scanned: Daemon, receiver: Inbox
) -> None:
    reply = hand_in(scanned, letter("Huge", b"xxxxxxxx\r\n" * 400_000), receiver)
    assert verdicts(scanned, reply)["clamav"]["result"] == "too_large"
    scanned.find(receiver, "Huge")


def test_rspamd_rejects_gtube(scanned: Daemon, receiver: Inbox) -> None:
    assert hand_in(scanned, letter("Spam", GTUBE), receiver) == (554, b"5.7.1 The message looks like spam")


def test_rspamd_puts_what_it_doubts_into_junk(scanned: Daemon, receiver: Inbox) -> None:
    reply = hand_in(scanned, letter("Doubtful", ADD_HEADER_GTUBE), receiver)
    scanned.find(receiver, "Doubtful", folder="Junk")
    found = verdicts(scanned, reply)
    assert found["rspamd"]["properties"]["symbols"] == "GTUBE"
    assert found["clamav"]["result"] == "clean"


def test_a_good_message_is_scanned_by_both_and_has_no_word_of_it(scanned: Daemon, receiver: Inbox) -> None:
    reply = hand_in(scanned, letter("Good", b"Hello."), receiver)
    found = scanned.find(receiver, "Good")
    assert "clamav" not in str(found.get("Authentication-Results", ""))
    assert {name: one["result"] for name, one in verdicts(scanned, reply).items()} == {
        "clamav": "clean",
        "rspamd": "no action",
    }


def test_a_user_who_sends_a_virus_is_told(scanned: Daemon, receiver: Inbox) -> None:
    with scanned.submission(receiver) as client:
        client.mail(receiver.address)
        client.rcpt("friend@elsewhere.test")
        made = wire(message("From me", From=receiver.address)) + EICAR + b"\r\n"
        code, text = client.data(made)
    assert (code, text[:5]) == (554, b"5.7.1")


def test_a_scanner_that_hangs_makes_mail_wait(scanned: Daemon, receiver: Inbox, clamd: Running) -> None:
    os.kill(clamd.process.pid, signal.SIGSTOP)
    try:
        assert hand_in(scanned, letter("Later", b"Hello."), receiver)[0] == 451
    finally:
        os.kill(clamd.process.pid, signal.SIGCONT)

    def is_taken() -> bool:
        return hand_in(scanned, letter("Later", b"Hello."), receiver)[0] == 250

    until(is_taken, "clamd answers again and mail is still refused")


def test_replay_tells_from_the_recorded_scan(scanned: Daemon, receiver: Inbox, tmp_path: Path) -> None:
    reply = hand_in(scanned, letter("Replayed", ADD_HEADER_GTUBE), receiver)
    scanned.settled(queued_id(reply))
    changed = tmp_path / "changed"
    changed.mkdir()
    for path in (ROOT / "conf/policies").glob("*.toml"):
        text = path.read_text().replace('["add header", "rewrite subject"]', '["rewrite subject"]')
        (changed / path.name).write_text(text)
    told = scanned.cli("policy", "replay", "--since", "1h", "--directory", changed)
    rows = [row for row in told["differences"] if row["id"] == queued_id(reply)]
    assert [(row["before"].split(";")[0], row["after"]) for row in rows] == [("quarantine", "accept")]


def test_explain_asks_the_scanners_unless_offline(scanned: Daemon, receiver: Inbox, tmp_path: Path) -> None:
    path = tmp_path / "m.eml"
    path.write_bytes(letter("Explained", EICAR))
    words = ("policy", "explain", path, "--from", "a@b.test", "--to", receiver.address, "--ip", "192.0.2.1")
    stages = {one["stage"]: one for one in scanned.cli(*words)["stages"]}
    assert stages["message"]["facts"]["virus_name"] == VIRUS
    assert stages["message"]["decision"].startswith("hold")
    stages = {one["stage"]: one for one in scanned.cli(*words, "--offline")["stages"]}
    assert stages["message"]["facts"]["virus_name"] == ""
    assert stages["message"]["decision"] == "accept"


def test_check_says_which_scanners_there_are(scanned: Daemon) -> None:
    assert scanned.cli("policy", "check")["services"] == "clamav, rspamd"
    done = run_cli("policy", "check", ROOT / "conf/policies", "--json", "--config", scanned.configuration)
    if done.returncode:
        raise Trouble(done.stderr)
