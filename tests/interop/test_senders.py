"""Programs that send: swaks by every door and mechanism, curl, mutt, Python's smtplib with odd mail."""

from pathlib import Path

import pytest

from tests.daemon.letters import DOMAIN
from tests.daemon.partner import Partner
from tests.daemon.running import Daemon, Inbox, until
from tests.interop.programs import program, run


@pytest.mark.parametrize("tls", ["", "--tls"], ids=["plain", "starttls"])
def test_swaks_delivers_as_a_foreign_server(daemon: Daemon, inbox: Inbox, tmp_path: Path, tls: str) -> None:
    subject = f"By swaks{tls}"
    done = run(
        tmp_path, program("swaks"), "--server", f"127.0.0.1:{daemon.ports['mx']}", "--from", "a@partner.test",
        "--to", inbox.address, "--header", f"Subject: {subject}", "--body", "Hello.\n.\n..dots\n",
        *tls.split(),
    )  # fmt: skip
    assert "250 2.0.0" in done.stdout
    placed = daemon.find(inbox, subject)
    assert placed.get_payload().split("\r\n")[:3] == ["Hello.", ".", "..dots"]
    assert ("ESMTPS" in placed["Received"]) is bool(tls)


@pytest.mark.parametrize(
    "way", ["submission PLAIN", "submission LOGIN", "submissions PLAIN", "submissions LOGIN"]
)
def test_swaks_submits(daemon: Daemon, partner: Partner, inbox: Inbox, tmp_path: Path, way: str) -> None:
    door, mechanism = way.split()
    subject = f"{door} {mechanism} {inbox.id}"
    tls = "--tls" if door == "submission" else "--tls-on-connect"
    run(
        tmp_path, program("swaks"), "--server", f"127.0.0.1:{daemon.ports[door]}", tls,
        "--tls-verify", "--tls-ca-path", daemon.certificate, "--auth", mechanism, "--auth-user",
        inbox.address, "--auth-password", inbox.password, "--from", inbox.address,
        "--to", "customer@partner.test",
        "--header", f"Subject: {subject}",
    )  # fmt: skip
    assert partner.find(subject).reverse_path == inbox.address


def test_swaks_is_told_of_a_wrong_password_and_of_relaying(
    daemon: Daemon, inbox: Inbox, tmp_path: Path
) -> None:
    swaks = program("swaks")
    done = run(
        tmp_path, swaks, "--server", f"127.0.0.1:{daemon.ports['submissions']}", "--tls-on-connect",
        "--auth", "PLAIN", "--auth-user", inbox.address, "--auth-password", "wrong",
        "--to", "x@partner.test", status=28,
    )  # fmt: skip
    assert "535 5.7.8" in done.stdout
    done = run(
        tmp_path, swaks, "--server", f"127.0.0.1:{daemon.ports['mx']}", "--from", "a@partner.test", "--to",
        "x@elsewhere.test", status=24,
    )  # fmt: skip
    assert "550 5.7.1" in done.stdout


def test_swaks_sends_an_attachment_pipelined(daemon: Daemon, inbox: Inbox, tmp_path: Path) -> None:
    attached = tmp_path / "data.bin"
    attached.write_bytes(bytes(range(256)) * 2000)
    run(
        tmp_path, program("swaks"), "--server", f"127.0.0.1:{daemon.ports['mx']}", "--pipeline", "--from",
        "a@partner.test", "--to", f"{inbox.address},{daemon.bob.address}", "--header", f"Subject: {inbox.id}",
        "--attach", f"@{attached}",
    )  # fmt: skip
    for receiver in (inbox, daemon.bob):
        placed = daemon.find(receiver, inbox.id)
        assert [part.get_content() for part in placed.iter_attachments()] == [attached.read_bytes()]
        assert placed["Delivered-To"] == receiver.address


def test_curl_delivers_and_submits(daemon: Daemon, partner: Partner, inbox: Inbox, tmp_path: Path) -> None:
    curl = program("curl")
    letter = tmp_path / "letter.eml"
    letter.write_bytes(f"From: {inbox.address}\r\nSubject: curl {inbox.id}\r\n\r\nHello.\r\n".encode())
    run(
        tmp_path, curl, "-sS", f"smtp://127.0.0.1:{daemon.ports['mx']}/client.test", "--mail-from",
        "a@partner.test", "--mail-rcpt", inbox.address, "-T", letter,
    )  # fmt: skip
    daemon.find(inbox, f"curl {inbox.id}")

    def own() -> list[str]:
        """Subjects of what this inbox sent."""
        return [one.message["Subject"] for one in partner.taken if one.reverse_path == inbox.address]

    for url, more in ((f"smtps://127.0.0.1:{daemon.ports['submissions']}", []),
                      (f"smtp://127.0.0.1:{daemon.ports['submission']}", ["--ssl-reqd"])):  # fmt: skip
        count = len(own())
        run(
            tmp_path, curl, "-sS", url, *more, "--cacert", daemon.certificate, "--user",
            f"{inbox.address}:{inbox.password}", "--mail-from", inbox.address, "--mail-rcpt",
            "c@partner.test", "-T", letter,
        )  # fmt: skip
        until(lambda count=count: len(own()) > count, f"{url} brings nothing")
    assert own() == [f"curl {inbox.id}"] * 2


def test_mutt_sends_by_submission(daemon: Daemon, partner: Partner, inbox: Inbox, tmp_path: Path) -> None:
    user = inbox.address.replace("@", "%40")
    settings = tmp_path / "muttrc"
    settings.write_text(
        f'set smtp_url="smtps://{user}:{inbox.password}@127.0.0.1:{daemon.ports["submissions"]}"\n'
        f'set certificate_file="{daemon.certificate}"\n'
        f'set from="{inbox.address}"\nset realname="An Agent"\nset use_from=yes\nset copy=no\n'
        "set ssl_verify_host=no\n"
    )
    attached = tmp_path / "notes.txt"
    attached.write_text("Grüße\n")
    run(
        tmp_path, program("mutt"), "-n", "-F", settings, "-s", f"Grüße {inbox.id}",
        "-b", "hidden@partner.test", "-a", attached, "--", "customer@partner.test", text="Hello from mutt.\n",
    )  # fmt: skip
    taken = partner.find(f"Grüße {inbox.id}")
    assert set(taken.recipients) <= {"customer@partner.test", "hidden@partner.test"}
    assert taken.message["Bcc"] is None
    assert "Hello from mutt." in taken.message.get_body().get_content()
    assert [part.get_content() for part in taken.message.iter_attachments()] == ["Grüße\r\n"]
    assert taken.message["DKIM-Signature"] and DOMAIN in taken.message["From"]
