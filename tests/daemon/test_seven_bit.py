"""Mail of ours leaves 7-bit and in short lines, and its signatures hold at the other end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemon.letters import DOMAIN
from tests.daemon.partner import Partner
from tests.daemon.running import Daemon, Inbox
from tests.daemon.test_flow import JUDGE

pytestmark = pytest.mark.whole

GREETING = "Grüße aus Zürich an alle, die hier noch lesen.\r\n"
HEAD = "From: {sender}\r\nSubject: {subject}\r\n"
CASES = {
    "wide text": "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n" + GREETING,
    "no MIME": "\r\n" + GREETING,
    "long line": "Content-Type: text/html; charset=us-ascii\r\n\r\n" + "<p>and so on</p>" * 400 + "\r\n",
    "both in parts": (
        'MIME-Version: 1.0\r\nContent-Type: multipart/alternative; boundary="=b"\r\n\r\n--=b\r\n\r\nplain\r\n'
        f"--=b\r\nContent-Type: text/html; charset=utf-8\r\n\r\n{GREETING * 40}{'ü' * 1000}\r\n--=b--\r\n"
    ),
    "long references": "References: " + " ".join(f"<{n}@a.test>" for n in range(150)) + "\r\n\r\nx\r\n",
}


def submit(daemon: Daemon, inbox: Inbox, content: bytes) -> tuple[int, bytes]:
    with daemon.submission(inbox) as client:
        assert client.mail(inbox.address, ["BODY=8BITMIME"])[0] == 250
        assert client.rcpt("customer@partner.test")[0] == 250
        return client.data(content)


@pytest.mark.parametrize("case", CASES)
def test_it_arrives_fit_and_verifies(daemon: Daemon, partner: Partner, tmp_path: Path, case: str) -> None:
    given = CASES[case]
    content = HEAD.format(sender=daemon.alice.address, subject=case) + given
    code, text = submit(daemon, daemon.alice, content.encode())
    assert code == 250, text
    got = partner.find(case)
    assert got.content.isascii()
    assert max(map(len, got.content.split(b"\r\n"))) <= 998
    last = list(got.message.walk())[-1]
    _, _, body = given.rpartition("\r\n\r\n")
    assert last.get_payload(decode=True).strip() == body.removesuffix("--=b--\r\n").strip().encode()
    (tmp_path / "got").write_bytes(got.content)
    records = daemon.cli("domain", "dns", DOMAIN)["records"]
    for added, verdict in ((b"", True), (b"From: eve@partner.test\r\n", False), (b"Subject: y\r\n", False)):
        (tmp_path / "got").write_bytes(added + got.content)
        judged = subprocess.run(
            [sys.executable, "-c", JUDGE, str(tmp_path / "got")],
            input=json.dumps(records),
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(judged.stdout) == [verdict, verdict]


def test_what_cannot_be_made_fit_is_refused_by_name(daemon: Daemon) -> None:
    content = (
        HEAD.format(sender=daemon.alice.address, subject="x") + "X-Token: " + "y" * 1200 + "\r\n\r\nz\r\n"
    )
    code, text = submit(daemon, daemon.alice, content.encode())
    assert code == 554
    assert text.startswith(b"5.6.3 ") and b"998 octets" in text
