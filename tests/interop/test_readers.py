"""Programs that read and change: curl, mutt, mbsync, offlineimap, getmail, imapclient."""

from pathlib import Path

import pytest
from imapclient import IMAPClient

from tests.daemon.letters import message, parsed, wire
from tests.daemon.running import Daemon, Inbox, until
from tests.interop.programs import program, run


def fill(daemon: Daemon, inbox: Inbox, *subjects: str) -> None:
    """Deliver messages of these subjects and wait until they are there."""
    with daemon.mx() as client:
        client.ehlo()
        for subject in subjects:
            client.sendmail(
                "a@partner.test", [inbox.address], wire(message(subject, f"Body of {subject}.\n"))
            )
    for subject in subjects:
        daemon.find(inbox, subject)


@pytest.fixture
def imap(daemon: Daemon, inbox: Inbox):
    """imapclient, logged in."""
    with IMAPClient("127.0.0.1", daemon.ports["imaps"], ssl_context=daemon.tls(), timeout=20) as client:
        client.login(inbox.address, inbox.password)
        yield client


def test_curl_lists_fetches_and_appends(daemon: Daemon, inbox: Inbox, tmp_path: Path) -> None:
    fill(daemon, inbox, "One", "Two")
    curl = [
        program("curl"),
        "-sS",
        "--cacert",
        daemon.certificate,
        "--user",
        f"{inbox.address}:{inbox.password}",
    ]
    url = f"imaps://127.0.0.1:{daemon.ports['imaps']}"
    listed = run(tmp_path, *curl, f"{url}/").stdout
    for folder in ("INBOX", "Drafts", "Sent", "Junk", "Trash"):
        assert folder in listed
    fetched = run(tmp_path, *curl, f"{url}/INBOX;MAILINDEX=2").stdout
    assert "Body of Two." in fetched
    assert "* SEARCH 1\n" in run(tmp_path, *curl, f"{url}/INBOX?SUBJECT%20One").stdout.replace("\r", "")
    letter = tmp_path / "letter.eml"
    letter.write_bytes(b"Subject: A draft\r\n\r\nNot yet.\r\n")
    run(tmp_path, *curl, "-T", letter, f"{url}/Drafts")
    assert [one["Subject"] for one in daemon.messages(inbox, "Drafts")] == ["A draft"]
    plain = f"imap://127.0.0.1:{daemon.ports['imap']}/INBOX;UID=1;SECTION=TEXT"
    assert "Body of One." in run(tmp_path, *curl, "--ssl-reqd", plain).stdout


MBSYNC = """
IMAPAccount daemon
Host localhost
Port {port}
User {address}
Pass {password}
SSLType IMAPS
CertificateFile {certificate}

IMAPStore far
Account daemon

MaildirStore near
Path {home}/mail/
Inbox {home}/mail/INBOX
SubFolders Verbatim

Channel all
Far :far:
Near :near:
Patterns *
Create Both
Expunge Both
SyncState *
"""


def test_mbsync_carries_changes_both_ways(
    daemon: Daemon, inbox: Inbox, imap: IMAPClient, tmp_path: Path
) -> None:
    mbsync = program("mbsync")
    (tmp_path / "mail").mkdir()
    settings = tmp_path / "mbsyncrc"
    settings.write_text(
        MBSYNC.format(
            port=daemon.ports["imaps"], address=inbox.address, password=inbox.password,
            certificate=daemon.certificate, home=tmp_path,
        )
    )  # fmt: skip

    def sync() -> None:
        run(tmp_path, mbsync, "-c", settings, "-a")

    def near(folder: str = "INBOX") -> dict[str, str]:
        """Subjects and Maildir letters of the local copy."""
        place = tmp_path / "mail" / folder
        found = [path for name in ("new", "cur") for path in (place / name).iterdir()]
        return {str(parsed(path.read_bytes())["Subject"]): path.name.rpartition(",")[2] for path in found}

    fill(daemon, inbox, "Stays", "Read there", "Deleted there", "Read here", "Deleted here")
    sync()
    assert set(near()) == {"Stays", "Read there", "Deleted there", "Read here", "Deleted here"}
    imap.select_folder("INBOX")
    uids = {name: imap.search(["SUBJECT", name])[0] for name in near()}
    imap.add_flags(uids["Read there"], [b"\\Seen", b"\\Flagged"])
    imap.delete_messages(uids["Deleted there"])
    imap.expunge()
    imap.create_folder("Far folder")
    imap.append("Far folder", b"Subject: Far\r\n\r\nfar\r\n")
    for path in [*(tmp_path / "mail/INBOX/cur").iterdir(), *(tmp_path / "mail/INBOX/new").iterdir()]:
        subject = parsed(path.read_bytes())["Subject"]
        if subject == "Read here":
            path.rename(path.parent.parent / "cur" / (path.name.partition(":")[0] + ":2,RS"))
        elif subject == "Deleted here":
            path.unlink()
    for name in ("cur", "new", "tmp"):
        (tmp_path / "mail" / "Near folder" / name).mkdir(parents=True)
    (tmp_path / "mail" / "Near folder" / "new" / "1.here").write_bytes(b"Subject: Near\n\nnear\n")
    sync()
    sync()
    assert near().keys() == {"Stays", "Read there", "Read here"}
    assert set("FS") <= set(near()["Read there"])
    assert set(near("Far folder")) == {"Far"}
    imap.select_folder("INBOX")
    assert sorted(imap.search()) == sorted(uids[name] for name in near())
    flags = imap.get_flags(list(uids.values()))
    assert {b"\\Seen", b"\\Answered"} <= set(flags[uids["Read here"]])
    assert b"\\Seen" not in flags[uids["Stays"]]
    assert imap.select_folder("Near folder")[b"EXISTS"] == 1
    until(lambda: [one["Subject"] for one in daemon.messages(inbox, "Near folder")] == ["Near"], "no file")
    sync()
    assert imap.folder_status("Near folder")[b"MESSAGES"] == 1


OFFLINEIMAP = """
[general]
accounts = all
metadata = {home}/state
ui = basic
[Account all]
localrepository = near
remoterepository = far
[Repository near]
type = Maildir
localfolders = {home}/mail
sync_deletes = yes
[Repository far]
type = IMAP
remotehost = localhost
remoteport = {port}
remoteuser = {address}
remotepass = {password}
ssl = yes
sslcacertfile = {certificate}
"""


def test_offlineimap_carries_changes_both_ways(
    daemon: Daemon, inbox: Inbox, imap: IMAPClient, tmp_path: Path
) -> None:
    offlineimap = program("offlineimap")
    settings = tmp_path / "offlineimaprc"
    settings.write_text(
        OFFLINEIMAP.format(
            port=daemon.ports["imaps"], address=inbox.address, password=inbox.password,
            certificate=daemon.certificate, home=tmp_path,
        )
    )  # fmt: skip
    fill(daemon, inbox, "First", "Second", "Third")

    def sync() -> None:
        run(tmp_path, offlineimap, "-c", settings, "-o", "-1")

    sync()
    place = tmp_path / "mail" / "INBOX"
    files = {str(parsed(path.read_bytes())["Subject"]): path for path in place.rglob("*:2,*")}
    assert set(files) == {"First", "Second", "Third"}
    path = files["First"]
    path.rename(place / "cur" / (path.name.partition(":")[0] + ":2,FS"))
    files["Second"].unlink()
    imap.select_folder("INBOX")
    imap.add_flags(imap.search(["SUBJECT", "Third"]), [b"\\Answered"])
    sync()
    imap.select_folder("INBOX")
    assert imap.search(["SUBJECT", "Second"]) == []
    assert len(imap.search(["SUBJECT", "First", "FLAGGED", "SEEN"])) == 1
    assert any("R" in one.name.rpartition(",")[2] for one in place.rglob("*:2,*"))


def test_mutt_reads_flags_and_deletes_over_imap(daemon: Daemon, inbox: Inbox, tmp_path: Path) -> None:
    mutt = program("mutt")
    fill(daemon, inbox, "Keep", "Drop", "Mark")
    settings = tmp_path / "muttrc"
    user = inbox.address.replace("@", "%40")
    settings.write_text(
        f'set imap_user="{inbox.address}"\nset imap_pass="{inbox.password}"\n'
        f'set certificate_file="{daemon.certificate}"\nset ssl_verify_host=no\n'
        "set delete=yes\nset quit=yes\nset sort=mailbox-order\nset wait_key=no\nset sleep_time=0\n"
        f'set pipe_decode=yes\nset folder="imaps://{user}@127.0.0.1:{daemon.ports["imaps"]}/"\n'
    )
    copied = tmp_path / "copied"
    pressed = (
        f'push "<limit>~A<enter><search>~s<space>Keep<enter><pipe-message>cat<space>><space>{copied}<enter>'
        "<search>~s<space>Drop<enter><delete-message><search>~s<space>Mark<enter><flag-message>"
        '<sync-mailbox><quit>"'
    )
    run(tmp_path, "/usr/bin/script", "-qec",
        f"{mutt} -n -F {settings} -f imaps://{user}@127.0.0.1:{daemon.ports['imaps']}/INBOX -e '{pressed}'",
        "/dev/null")  # fmt: skip
    assert "Body of Keep." in copied.read_text()
    with daemon.imap(inbox) as client:
        client.select("INBOX")
        assert client.search(None, "SUBJECT", "Drop") == ("OK", [b""])
        assert len(client.search(None, "FLAGGED", "SUBJECT", "Mark")[1][0].split()) == 1


GETMAIL = """
[retriever]
type = SimpleIMAPSSLRetriever
server = localhost
port = {port}
username = {address}
password = {password}
ca_certs = {certificate}
[destination]
type = MDA_external
path = /bin/sh
arguments = ("-c", "cat >> {home}/taken")
unixfrom = true
allow_root_commands = true
[options]
read_all = true
delete = true
delivered_to = false
received = false
"""


def test_getmail_takes_everything_away(daemon: Daemon, inbox: Inbox, tmp_path: Path) -> None:
    getmail = program("getmail")
    fill(daemon, inbox, "Alpha", "Beta")
    place = tmp_path / "getmail"
    place.mkdir()
    (place / "getmailrc").write_text(
        GETMAIL.format(
            port=daemon.ports["imaps"], address=inbox.address, password=inbox.password,
            certificate=daemon.certificate, home=tmp_path,
        )
    )  # fmt: skip
    run(tmp_path, getmail, "--getmaildir", place, "--rcfile", "getmailrc")
    taken = (tmp_path / "taken").read_text()
    for subject in ("Alpha", "Beta"):
        assert taken.count(f"Subject: {subject}\n") == taken.count(f"Body of {subject}.") == 1
    with daemon.imap(inbox) as client:
        assert client.select("INBOX")[1] == [b"0"]


def test_imapclient_sees_mail_come_while_idling(daemon: Daemon, inbox: Inbox, imap: IMAPClient) -> None:
    imap.select_folder("INBOX")
    imap.idle()
    fill(daemon, inbox, "News")
    told: list[object] = []
    until(lambda: told.extend(imap.idle_check(timeout=1)) or (1, b"EXISTS") in told, "IDLE is silent")
    imap.idle_done()
    with daemon.imap(inbox) as other:
        other.select("INBOX")
        other.store("1", "+FLAGS", "(\\Seen)")
        imap.idle()
        told.clear()
        other.store("1", "+FLAGS", "(\\Deleted)")
        other.expunge()
        until(lambda: told.extend(imap.idle_check(timeout=1)) or (1, b"EXPUNGE") in told, "no EXPUNGE")
        imap.idle_done()


def test_imapclient_uses_folders_and_special_uses(imap: IMAPClient) -> None:
    assert imap.find_special_folder(b"\\Sent") == "Sent"
    assert imap.namespace().personal == (("", "/"),)
    for name in ("Kunden/Müller & Söhne", "a.b", 'Quote " and \\', "日本"):
        imap.create_folder(name)
        imap.append(name, "Subject: Größe\r\n\r\nx\r\n".encode(), [b"\\Seen", b"$Mine"])
        assert imap.select_folder(name)[b"EXISTS"] == 1
        assert set(imap.get_flags([1])[1]) >= {b"\\Seen", b"$Mine"}
        imap.rename_folder(name, name + " 2")
        assert imap.folder_exists(name + " 2") and not imap.folder_exists(name)
        imap.unsubscribe_folder(name + " 2")
        imap.select_folder("INBOX")
        imap.delete_folder(name + " 2")
