"""Foreign clients: imaplib, imapclient, and Debian's curl, mbsync and mutt where they are installed."""

import imaplib
import shutil
import subprocess
from pathlib import Path

import imapclient
import pytest

from tests.imap.appliance import Appliance, Inbox, client_context

MESSAGE = (
    b"From: bob@elsewhere.example\r\nTo: ann@d.example\r\nSubject: Hello\r\n"
    b"Message-ID: <%d@x>\r\n\r\nBody %d\r\n"
)


def needs(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


def test_imaplib_reads_flags_copies_and_expunges(appliance: Appliance, inbox: Inbox):
    with imaplib.IMAP4(appliance.host, appliance.plain_port) as client:
        client.starttls(client_context())
        client.login(inbox.address, inbox.password)
        for number in range(3):
            status, data = client.append("INBOX", "(\\Seen)", None, MESSAGE % (number, number))
            assert status == "OK" and b"APPENDUID" in data[0]
        assert client.select() == ("OK", [b"3"])
        assert client.search(None, "SUBJECT", "hello") == ("OK", [b"1 2 3"])
        _, data = client.fetch("2", "(RFC822)")
        assert data[0][1] == MESSAGE % (1, 1)
        assert client.create("Kept")[0] == "OK"
        assert client.copy("1:2", "Kept")[0] == "OK"
        assert client.store("1:3", "+FLAGS", "\\Deleted")[0] == "OK"
        assert client.expunge() == ("OK", [b"3", b"2", b"1"])
        assert client.status("Kept", "(MESSAGES)") == ("OK", [b"Kept (MESSAGES 2)"])
        assert client.close()[0] == "OK"


def test_imaplib_authenticates_by_sasl_plain(appliance: Appliance, inbox: Inbox):
    with imaplib.IMAP4_SSL(appliance.host, appliance.tls_port, ssl_context=client_context()) as client:
        client.authenticate("PLAIN", lambda _: f"\0{inbox.address}\0{inbox.password}".encode())
        assert client.select(readonly=True)[0] == "OK"


def test_imapclient_full_round_with_idle(appliance: Appliance, inbox: Inbox):
    with imapclient.IMAPClient(appliance.host, appliance.tls_port, ssl_context=client_context()) as client:
        client.login(inbox.address, inbox.password)
        assert client.find_special_folder(b"\\Sent") == "Sent"
        client.create_folder("Entwürfe/Neu")
        assert "Entwürfe/Neu" in [name for _, _, name in client.list_folders()]
        client.select_folder("INBOX")
        client.idle()
        appliance.deliver(inbox, MESSAGE % (1, 1))
        events: list[object] = []
        while (1, b"EXISTS") not in events:
            events += client.idle_check(timeout=10)
        client.idle_done()
        (uid,) = client.search(["UNSEEN"])
        row = client.fetch([uid], ["ENVELOPE", "BODYSTRUCTURE", "FLAGS", "BODY.PEEK[]", "INTERNALDATE"])[uid]
        assert row[b"BODY[]"] == MESSAGE % (1, 1)
        assert row[b"ENVELOPE"].subject == b"Hello"
        assert client.add_flags([uid], [b"\\Flagged", b"$Work"]) == {
            uid: (b"\\Flagged", b"$Work", b"\\Recent")
        }
        client.move([uid], "Entwürfe/Neu")
        assert client.search() == []
        assert client.folder_status("Entwürfe/Neu")[b"MESSAGES"] == 1
        client.rename_folder("Entwürfe/Neu", "Alt")
        client.select_folder("Alt")
        client.delete_messages([1])
        client.uid_expunge([1]) if hasattr(client, "uid_expunge") else client.expunge()
        assert client.search() == []
        client.close_folder()
        client.delete_folder("Alt")


@pytest.mark.interop
def test_curl_lists_and_fetches(appliance: Appliance, inbox: Inbox):
    curl = needs("curl")
    appliance.deliver(inbox, MESSAGE % (7, 7))
    base = [curl, "-sS", "-k", "--user", f"{inbox.address}:{inbox.password}", "--max-time", "20"]
    url = f"imaps://{appliance.host}:{appliance.tls_port}"
    done = subprocess.run([*base, f"{url}/INBOX;UID=1"], capture_output=True, check=True)
    assert done.stdout == MESSAGE % (7, 7)
    done = subprocess.run([*base, f"{url}/"], capture_output=True, check=True)
    assert b'"/" INBOX' in done.stdout
    plain = f"imap://{appliance.host}:{appliance.plain_port}/INBOX?ALL"
    done = subprocess.run([*base, "--ssl-reqd", plain], capture_output=True, check=True)
    assert done.stdout.strip() == b"* SEARCH 1"


@pytest.mark.interop
def test_mbsync_takes_mail_down_and_flags_and_new_mail_up(appliance: Appliance, inbox: Inbox, tmp_path: Path):
    mbsync = needs("mbsync")
    for number in range(5):
        appliance.deliver(inbox, MESSAGE % (number, number))
    configuration = tmp_path / "mbsyncrc"
    configuration.write_text(
        f"""
IMAPAccount a
Host localhost
Port {appliance.tls_port}
User {inbox.address}
Pass {inbox.password}
SSLType IMAPS
CertificateFile {appliance.directory / "tls" / "certificate.pem"}

IMAPStore far
Account a

MaildirStore near
Path {tmp_path}/mail/
Inbox {tmp_path}/mail/INBOX
SubFolders Verbatim

Channel all
Far :far:
Near :near:
Patterns *
Create Both
Expunge Both
SyncState *
"""
    )
    (tmp_path / "mail").mkdir()

    def sync() -> None:
        done = subprocess.run(
            [mbsync, "-c", str(configuration), "-a"], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr

    sync()
    near = tmp_path / "mail" / "INBOX"
    files = sorted([*(near / "new").iterdir(), *(near / "cur").iterdir()])
    assert len(files) == 5
    seen = files[0]
    seen.rename(near / "cur" / (seen.name.partition(":")[0] + ":2,FS"))
    (near / "new" / "1700000000.local").write_bytes((MESSAGE % (99, 99)).replace(b"\r\n", b"\n"))
    sync()
    with imapclient.IMAPClient(appliance.host, appliance.tls_port, ssl_context=client_context()) as client:
        client.login(inbox.address, inbox.password)
        client.select_folder("INBOX")
        assert len(client.search()) == 6
        (flagged,) = client.search(["FLAGGED"])
        client.delete_messages([flagged])
        client.expunge()
    sync()
    assert len([*(near / "new").iterdir(), *(near / "cur").iterdir()]) == 5


@pytest.mark.interop
def test_mutt_opens_and_deletes_in_batch(appliance: Appliance, inbox: Inbox, tmp_path: Path):
    mutt = needs("mutt")
    for number in range(2):
        appliance.deliver(inbox, MESSAGE % (number, number))
    configuration = tmp_path / "muttrc"
    (tmp_path / "Mail").mkdir()
    certificate = appliance.directory / "tls" / "certificate.pem"
    configuration.write_text(
        f"set imap_user='{inbox.address}'\nset imap_pass='{inbox.password}'\nset ssl_force_tls=yes\n"
        f"set certificate_file='{certificate}'\nset ssl_verify_host=no\nset ssl_verify_dates=no\n"
        f"set delete=yes\nset quit=yes\nset confirmappend=no\nset header_cache=\nset wait_key=no\n"
        "push '<delete-message><sync-mailbox><quit>'\n"
    )
    url = f"imaps://{appliance.host}:{appliance.tls_port}/INBOX"
    environment = {"TERM": "vt100", "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["script", "-qec", f"{mutt} -F {configuration} -f {url}", "/dev/null"],
        env=environment, capture_output=True, timeout=30, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    with imapclient.IMAPClient(appliance.host, appliance.tls_port, ssl_context=client_context()) as client:
        client.login(inbox.address, inbox.password)
        client.select_folder("INBOX")
        assert len(client.search()) == 1, done.stdout[-2000:]
