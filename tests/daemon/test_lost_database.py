"""An appliance whose database is gone: started again, it serves the mail it has under the UIDs it had."""

import imaplib
import json
import re
from pathlib import Path

import pytest

from tests.daemon.letters import DOMAIN, message, wire
from tests.daemon.running import Daemon, Inbox, until


def seen(client: imaplib.IMAP4_SSL, folder: str) -> tuple[bytes, dict[int, tuple[str, ...]]]:
    """UIDVALIDITY, and flags, keywords and subject by UID."""
    client.select(folder, readonly=True)
    _, (validity,) = client.response("UIDVALIDITY")
    _, answers = client.uid("FETCH", "1:*", "(FLAGS INTERNALDATE BODY.PEEK[HEADER.FIELDS (SUBJECT)])")
    found = {}
    for part in answers:
        if isinstance(part, tuple):
            uid = int(re.search(rb"UID (\d+)", part[0])[1])  # type: ignore[index]  # always there
            flags = re.search(rb"FLAGS \(([^)]*)\)", part[0])[1].decode()  # type: ignore[index]
            date = re.search(rb'INTERNALDATE "([^"]*)"', part[0])[1].decode()  # type: ignore[index]
            kept = sorted(set(flags.split()) - {"\\Recent"})
            found[uid] = (*kept, date, part[1].decode().strip())
    return validity, found


def is_listed(daemon: Daemon, count: int, word: str = "") -> bool:
    """Whether the list of alice's inbox names so many messages, and a word anywhere."""
    path = daemon.maildir(daemon.alice) / "mailagents-folder"
    if not path.exists():
        return False
    lines = [json.loads(line.partition(" ")[2]) for line in path.read_text().splitlines()]
    return bool(lines[-1]["live"] == count) and any(word in str(line) for line in lines)


@pytest.mark.parametrize("is_killed", [False, True], ids=["stopped", "killed"])
def test_mail_keeps_its_uids_without_its_database(template: Path, tmp_path: Path, is_killed: bool) -> None:
    with Daemon(tmp_path, template=template) as daemon:
        daemon.start()
        alice = daemon.alice
        with daemon.mx() as sender:
            for number in range(6):
                content = wire(message(f"m{number}"))
                sender.sendmail("a@partner.test", [alice.address], content)
        until(lambda: len(daemon.files(alice)) == 6, "the mail does not arrive")
        until(lambda: is_listed(daemon, 6), "the list does not follow", seconds=5)
        with daemon.imap(alice) as client:
            client.create("Work/Zurich")
            client.select("INBOX")
            client.uid("STORE", "2:4", "+FLAGS", r"(\Seen \Flagged blue)")
            client.uid("COPY", "2,5", "Work/Zurich")
            client.uid("STORE", "6", "+FLAGS", r"(\Deleted)")
            client.uid("EXPUNGE", "6")
            before = {name: seen(client, name) for name in ("INBOX", "Work/Zurich", "Drafts")}
        if is_killed:
            until(lambda: is_listed(daemon, 5, "blue"), "the list does not follow", seconds=5)
            until(
                lambda: len(list((daemon.maildir(alice) / "cur").glob("*FS"))) == 3, "no letters", seconds=5
            )
            daemon.kill()
        else:
            assert daemon.stop() == 0
        for path in daemon.data.glob("mailagents.sqlite*"):
            path.unlink()
        daemon.start()
        assert daemon.cli("inbox", "add", f"new@{DOMAIN}")["id"] != alice.id
        with daemon.mx() as sender:
            sender.sendmail("a@partner.test", [alice.address], wire(message("later")))
        until(lambda: len(daemon.files(alice)) == 6, "no mail is taken for the inbox that came back")
        assert "restored" in daemon.log
        # Passwords and keys are gone with the database, and made anew.
        assert len(daemon.cli("domain", "add", DOMAIN)["records"]) > 3
        made = daemon.cli("inbox", "add", alice.address)
        assert made["id"] == alice.id
        assert daemon.cli("inbox", "add", alice.address, status=1)["error"]["code"] == "exists_already"
        with daemon.imap(Inbox(alice.id, alice.address, made["password"])) as client:
            after = {name: seen(client, name) for name in before}
        for name, (validity, messages) in before.items():
            assert after[name][0] == validity
            assert {uid: after[name][1].get(uid) for uid in messages} == messages
            assert len(after[name][1]) == len(messages) + (name == "INBOX")
