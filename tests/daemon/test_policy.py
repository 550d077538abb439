"""`mailagents policy …` and held mail, as an operator uses them on a running daemon."""

import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.letters import DOMAIN, message, wire
from tests.daemon.running import ROOT, Daemon, Inbox, run_cli, until

OWN = """
[[list]]
name = "vip"
kind = "addresses"
database = true

[[list]]
name = "partners"
kind = "domains"
file = "partners.txt"

[[rule]]
name = "vip"
stage = "message"
when = 'sender.in_list("vip")'
action = "tag"
keyword = "Vip"

[[rule]]
name = "checked-by-hand"
stage = "message"
when = 'source == "mx" && subject.matches("(?i)^wire transfer")'
action = "hold"

[[rule]]
name = "partners"
stage = "message"
when = 'sender_domain.in_list("partners")'
action = "tag"
keyword = "Partner"
"""
STRICTER = """
[[rule]]
name = "no-lottery"
stage = "message"
when = 'subject.matches("lottery [0-9]+")'
action = "reject"
text = "No games of chance"

[[rule]]
name = "two-an-hour"
stage = "submit"
when = "sent_last_hour >= 2"
action = "defer"
"""


@pytest.fixture(scope="module")
def ruled(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with rules and lists of its own, whose files it looks at four times a second."""
    directory = tmp_path_factory.mktemp("ruled")
    rules = directory / "rules"
    rules.mkdir()
    (rules / "20.toml").write_text((ROOT / "conf/policies/20-submission.toml").read_text())
    (rules / "50-own.toml").write_text(OWN)
    (rules / "partners.txt").write_text("partner.example\n")
    policy = {"directory": str(rules), "list_reload_seconds": 0.25}
    with Daemon(directory, template=template, policy=policy) as running:
        yield running.start()


@pytest.fixture
def receiver(ruled: Daemon) -> Inbox:
    return ruled.new_inbox()


def deliver(daemon: Daemon, subject: str, inbox: Inbox, sender: str = "ann@far.example") -> None:
    with daemon.mx() as client:
        client.sendmail(sender, [inbox.address], wire(message(subject)))


def keywords(daemon: Daemon, inbox: Inbox, subject: str) -> set[str]:
    client = daemon.imap(inbox)
    client.select("INBOX")
    # The file is there before its row.
    found = until(
        lambda: client.search(None, "SUBJECT", f'"{subject}"')[1][0].split(), "the message is not listed"
    )
    _, flags = client.fetch(found[0], "(FLAGS)")
    client.logout()
    return set(str(flags[0]).partition("FLAGS (")[2].partition(")")[0].split())


def test_held_mail_comes_when_it_is_released(ruled: Daemon, receiver: Inbox) -> None:
    deliver(ruled, "Wire transfer of today", receiver)
    row = until(
        lambda: next(
            (
                r
                for r in ruled.cli("queue", "list", "--state", "held")["deliveries"]
                if r["recipient"] == receiver.address
            ),
            None,
        ),
        "nothing is held",
    )
    assert ruled.messages(receiver) == []
    ruled.cli("queue", "release", row["id"])
    assert ruled.find(receiver, "Wire transfer of today")
    steps = [step["kind"] for step in ruled.cli("explain", row["id"])["timeline"]]
    assert steps[0] == "message.accepted"
    assert "message.released" in steps
    ruled.cli("queue", "release", row["id"], status=1)


def test_cancelled_mail_never_comes(ruled: Daemon, receiver: Inbox) -> None:
    deliver(ruled, "wire transfer again", receiver)
    row = until(
        lambda: next(
            (
                r
                for r in ruled.cli("queue", "list", "--state", "held")["deliveries"]
                if r["recipient"] == receiver.address
            ),
            None,
        ),
        "nothing is held",
    )
    ruled.cli("queue", "cancel", row["id"])
    deliver(ruled, "after", receiver)
    ruled.find(receiver, "after")
    assert len(ruled.messages(receiver)) == 1


def test_entries_of_a_list_in_the_database_are_known_at_once(ruled: Daemon, receiver: Inbox) -> None:
    refused = ruled.cli("policy", "list-add", "vip", "no address", status=1)
    assert refused["error"]["code"] == "bad_entry"
    refused = ruled.cli("policy", "list-add", "partners", "x.example", status=1)
    assert refused["error"]["code"] == "no_such_list"
    ruled.cli("policy", "list-add", "vip", "Boss@far.example")
    assert ruled.cli("policy", "lists")["lists"] == {"vip": ["boss@far.example"]}
    number = 0

    def is_known() -> bool:
        nonlocal number
        number += 1
        deliver(ruled, f"vip {number}", receiver, sender="boss@far.example")
        ruled.find(receiver, f"vip {number}")
        return "Vip" in keywords(ruled, receiver, f"vip {number}")

    until(is_known, "the list is not known")
    ruled.cli("policy", "list-remove", "vip", "boss@far.example")
    assert ruled.cli("policy", "lists")["lists"] == {}


def test_a_list_in_a_file_is_read_anew_when_it_changes(ruled: Daemon, receiver: Inbox) -> None:
    path = Path(ruled.settings["policy"]["directory"]) / "partners.txt"  # type: ignore[arg-type]
    deliver(ruled, "first", receiver, sender="x@partner.example")
    ruled.find(receiver, "first")
    assert "Partner" in keywords(ruled, receiver, "first")
    path.write_text("other.example\nnew.example\n")
    number = 0

    def is_known() -> bool:
        nonlocal number
        number += 1
        deliver(ruled, f"new {number}", receiver, sender="x@new.example")
        ruled.find(receiver, f"new {number}")
        return "Partner" in keywords(ruled, receiver, f"new {number}")

    until(is_known, "the file is not read anew")


def test_explain_knows_the_inbox_and_the_lists_of_the_server(
    ruled: Daemon, receiver: Inbox, tmp_path: Path
) -> None:
    ruled.cli("policy", "list-add", "vip", "chief@far.example")
    letter = tmp_path / "m.eml"
    letter.write_bytes(b"From: chief@far.example\nSubject: x\n\ny\n")
    found = ruled.cli(
        "policy",
        "explain",
        letter,
        "--from",
        "chief@far.example",
        "--to",
        receiver.address,
        "--ip",
        "192.0.2.1",
        "--offline",
    )
    stages = {row["stage"]: row for row in found["stages"]}
    assert stages["message"]["decision"] == "accept; keyword Vip"
    assert {row["rule"]: row["matched"] for row in stages["message"]["rules"]} == {
        "vip": True,
        "checked-by-hand": False,
        "partners": False,
    }
    ruled.cli("policy", "list-remove", "vip", "chief@far.example")


def test_replay_tells_what_other_rules_would_have_done(
    ruled: Daemon, receiver: Inbox, tmp_path: Path
) -> None:
    deliver(ruled, "lottery 1", receiver)
    deliver(ruled, "lottery", receiver)
    ruled.find(receiver, "lottery 1")
    ruled.find(receiver, "lottery")
    with ruled.submission(ruled.alice) as client:
        for number in range(4):
            client.sendmail(
                ruled.alice.address, [receiver.address], wire(message(f"n{number}", From=ruled.alice.address))
            )
    ruled.find(receiver, "n3")
    rules = tmp_path / "new"
    rules.mkdir()
    for path in Path(ruled.settings["policy"]["directory"]).iterdir():  # type: ignore[arg-type]
        (rules / path.name).write_text(path.read_text())
    same = ruled.cli("policy", "replay", "--since", "1h", "--directory", rules)
    assert (same["changed"], same["differences"]) == (0, [])
    assert same["tried"] >= 6
    assert same["partly"] >= 4  # what was submitted is gone from the queue
    (rules / "90-new.toml").write_text(STRICTER)
    found = ruled.cli("policy", "replay", "--since", "1h", "--directory", rules)
    told = [(row["before"], row["after"], row["after_rules"]) for row in found["differences"]]
    assert ("accept", "reject 550 5.7.1 No games of chance", ["no-lottery"]) in told
    deferred = [row for row in found["differences"] if row["after_rules"] == ["two-an-hour"]]
    assert [row["source"] for row in deferred] == ["submission", "submission"]
    assert found["changed"] == 3
    text = run_cli("policy", "replay", "--directory", rules, "--config", ruled.configuration).stdout
    assert "3 fare otherwise" in text.splitlines()[0]
    assert "  after   reject 550 5.7.1 No games of chance  (no-lottery)" in text.splitlines()


def test_faulty_rules_are_named_with_their_line(ruled: Daemon, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        '[[rule]]\nname = "a"\nstage = "mial"\nwhen = "true"\naction = "accept"\n'
    )
    done = run_cli("policy", "check", tmp_path, "--config", ruled.configuration)
    assert done.returncode == 4
    assert f"{tmp_path}/a.toml:3: there is no stage mial: did you mean mail?" in done.stderr


def test_nothing_is_paused_and_what_is_not_paused_cannot_be_lifted(ruled: Daemon) -> None:
    assert ruled.cli("policy", "pauses") == {"pauses": []}
    assert ruled.cli("policy", "resume", "org_0", status=1)["error"]["code"] == "not_found"


def test_bulk_by_submission_is_refused_in_clear_words(ruled: Daemon) -> None:
    letter = wire(message("sale", From=ruled.alice.address, Precedence="bulk"))
    with ruled.submission(ruled.alice) as client, pytest.raises(smtplib.SMTPDataError) as caught:
        client.sendmail(ruled.alice.address, [f"bob@{DOMAIN}"], letter)
    assert (caught.value.smtp_code, caught.value.smtp_error[:6]) == (550, b"5.7.1 ")
