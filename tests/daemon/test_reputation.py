"""Refused mail kept, and correspondents learnt of, in the whole daemon: real SMTP, IMAP, HTTP and SIGKILL."""

import imaplib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.letters import DOMAIN, message, wire
from tests.daemon.running import ROOT, Daemon, Inbox, run_cli, until

RULES = """
[[rule]]
name = "unknown-codes"
stage = "message"
when = 'source == "mx" && subject.contains("code") && !correspondent_known'
action = "reject"
reason = "reputation"
code = 554
text = "We do not know you"
"""


@pytest.fixture(scope="session")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("reputation-rules")
    for path in (ROOT / "conf/policies").glob("*.toml"):
        (directory / path.name).write_text(path.read_text())
    (directory / "50-own.toml").write_text(RULES)
    return directory


@pytest.fixture
def judging(template: Path, rules: Path, tmp_path: Path) -> Iterator[Daemon]:
    settings = {"policy": {"directory": str(rules)}, "server": {"postmaster": f"gone@{DOMAIN}"}}
    with Daemon(tmp_path / "judging", template=template, **settings) as running:
        yield running.start()


def hand_in(daemon: Daemon, subject: str, recipient: str, *, number: int = 1) -> tuple[int, bytes]:
    content = wire(message(subject, Message_ID=f"<{number}@partner.test>"))
    with daemon.mx() as client:
        client.ehlo()
        assert client.mail("someone@partner.test")[0] == 250
        assert client.rcpt(recipient)[0] == 250
        return client.data(content)


def count(client: imaplib.IMAP4, folder: str, item: str) -> int:
    kind, answer = client.status(folder, f"({item})")
    assert kind == "OK", answer
    return int(answer[0].rpartition(b" ")[2].rstrip(b")"))


def folders(client: imaplib.IMAP4, how: str = "list") -> list[bytes]:
    return [line.rpartition(b" ")[2].strip(b'"') for line in getattr(client, how)()[1]]


def api(daemon: Daemon, method: str, path: str, body: object = None) -> object:
    request = urllib.request.Request(
        f"http://127.0.0.1:{daemon.ports['http']}/v1{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {daemon.keys['alice']}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def learnt(daemon: Daemon, sign: str, times: int = 1) -> None:
    """Wait until an owner's acts were learnt from."""

    def known() -> bool:
        return sum(data["sign"] == sign for data in judged(daemon)) >= times

    until(known, f"nothing was learnt: {sign}\n{daemon.log}")


def judged(daemon: Daemon) -> list[dict[str, str]]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{daemon.ports['http']}/v1/events?kind=correspondent.judged",
        headers={"Authorization": f"Bearer {daemon.keys['operator']}"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return [event["data"] for event in json.loads(answer.read())["events"]]


def test_a_refused_code_is_found_in_rejects_after_a_crash_and_brought_home(judging: Daemon) -> None:
    alice = judging.alice
    assert hand_in(judging, "Your code", alice.address) == (554, b"5.7.1 We do not know you")
    judging.kill()
    judging.start()
    assert hand_in(judging, "Your code", alice.address)[0] == 554  # the same again: kept once
    judging.find(alice, "Your code", folder="Rejects")
    with judging.imap(alice) as client:
        until(lambda: b"Rejects" in folders(client), "the folder's row")
        assert b"Rejects" in folders(client, "lsub")
        until(lambda: count(client, "Rejects", "MESSAGES") == 1, "the row behind the file")
        assert count(client, "Rejects", "RECENT") == 0
        assert count(client, "INBOX", "UNSEEN") == count(client, "INBOX", "MESSAGES") == 0
        client.select("Rejects")
        assert client.uid("MOVE", "1", "INBOX")[0] == "OK"
    judging.find(alice, "Your code")
    learnt(judging, "welcome")
    # Known now: the next code arrives.
    assert hand_in(judging, "Another code", alice.address, number=2)[0] == 250
    judging.find(alice, "Another code")
    # Another inbox knows nothing of it.
    assert hand_in(judging, "Another code", judging.bob.address, number=3)[0] == 554


def test_the_api_shows_refused_mail_and_its_reason_and_moves_it(judging: Daemon) -> None:
    alice = judging.alice
    hand_in(judging, "Your code", alice.address)
    judging.find(alice, "Your code", folder="Rejects")
    place = f"/inboxes/{alice.id}/messages"

    def shown() -> dict[str, str] | None:
        try:
            found = api(judging, "GET", f"{place}?folder=Rejects")
        except urllib.error.HTTPError:  # the folder's first message is not applied yet
            return None
        return next(iter(found["messages"]), None)

    listed = until(shown, "not in the list")
    assert api(judging, "GET", place)["messages"] == []
    told = api(judging, "GET", f"/messages/{listed['id']}/timeline")
    (first, *_) = told["events"]
    assert (first["kind"], first["data"]["reason"]) == ("message.refused", "reputation")
    key = judging.cli(
        "key", "add", "--inbox", alice.address, "--scope", "message:delete", "--scope", "message:read"
    )
    judging.keys["alice"] = key["key"]
    api(judging, "POST", f"{place}/{listed['id']}/move", {"folder": "INBOX"})
    assert [one["id"] for one in api(judging, "GET", place)["messages"]] == [listed["id"]]
    learnt(judging, "welcome")


@pytest.mark.parametrize("way", ["move", "copy", "keyword"])
def test_junk_by_any_clients_way_is_learnt(judging: Daemon, way: str) -> None:
    inbox: Inbox = judging.alice
    for number in (1, 2):
        assert hand_in(judging, f"Offer {number}", inbox.address, number=number)[0] == 250
        judging.find(inbox, f"Offer {number}")
    with judging.imap(inbox) as client:
        until(lambda: count(client, "INBOX", "MESSAGES") == 2, "the rows behind the files")
        client.select("INBOX")
        if way == "move":
            assert client.uid("MOVE", "1:2", "Junk")[0] == "OK"
        elif way == "copy":
            assert client.uid("COPY", "1:2", "Junk")[0] == "OK"
            client.uid("STORE", "1:2", "+FLAGS.SILENT", r"(\Deleted)")
            client.expunge()
        else:
            assert client.uid("STORE", "1:2", "+FLAGS", "($Junk)")[0] == "OK"
    learnt(judging, "junk", 2)
    assert hand_in(judging, "Offer 3", inbox.address, number=3)[0] == 250
    judging.find(inbox, "Offer 3", folder="Junk")
    with judging.imap(inbox) as client:
        client.select("Junk")
        wanted = ("KEYWORD", "$Junk", "SUBJECT", '"Offer 3"')
        until(lambda: client.search(None, *wanted)[1] != [b""], "the keyword")


def test_an_operator_without_an_inbox_is_told_at_start_and_by_config_check(judging: Daemon) -> None:
    assert "nobody reads mail for the operator" in judging.log
    assert "server.postmaster: there is no inbox" in judging.log  # addresses are not for the log
    done = run_cli("config", "check", "--config", judging.configuration)
    assert done.returncode == 0
    assert f"warning: server.postmaster: there is no inbox gone@{DOMAIN}" in done.stderr
    # It is read by somebody all the same, and not refused for reputation.
    assert hand_in(judging, "A code for you", "postmaster")[0] == 250
    judging.find(judging.alice, "A code for you", folder="Junk")
