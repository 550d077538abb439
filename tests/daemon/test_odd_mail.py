"""Odd and large mail through the whole daemon: what is taken comes back octet for octet."""

import hashlib
import imaplib
import random
import re
import smtplib
import threading

import pytest

from tests.daemon.letters import DOMAIN, queued_id
from tests.daemon.partner import Partner
from tests.daemon.running import Daemon, Inbox, until

BODY = "=== the line that search looks for ===\r\n"


def send(daemon: Daemon, content: bytes, *recipients: str, options: tuple[str, ...] = ()) -> str:
    """Hand octets in as they are; the id."""
    with daemon.mx() as client:
        client.ehlo()
        assert client.mail("a@partner.test", list(options))[0] == 250
        for recipient in recipients:
            assert client.rcpt(recipient)[0] == 250
        # smtplib's data() would put other line ends where it thinks it must.
        client.putcmd("DATA")
        assert client.getreply()[0] == 354
        client.sock.sendall(content.replace(b"\r\n.", b"\r\n..") + b".\r\n")
        reply = client.getreply()
    assert reply[0] == 250, reply
    return queued_id(reply)


def fetched(daemon: Daemon, inbox: Inbox) -> bytes:
    """The one message of an inbox as IMAP gives it."""
    with daemon.imap(inbox) as client:
        until(lambda: client.select("INBOX", readonly=True)[1] == [b"1"], "it does not come")
        client.fetch("1", "(ENVELOPE BODYSTRUCTURE)")
        _, answer = client.fetch("1", "(RFC822.SIZE BODY.PEEK[])")
    first, content = next(one for one in answer if isinstance(one, tuple))
    assert int(re.search(rb"RFC822\.SIZE (\d+)", first)[1]) == len(content)  # type: ignore[index]
    assert isinstance(content, bytes)
    return content


def lines(octets: int) -> bytes:
    dice = random.Random(octets)
    line = bytes(dice.choice(b"abcdefghijklmnopqrstuvwxyz ") for _ in range(76)) + b"\r\n"
    return (line * (octets // len(line) + 1))[: octets - octets % len(line)]


CASES = {
    "no body": b"Subject: only a header\r\nFrom: a@partner.test\r\n\r\n",
    "no blank line": b"Subject: only a header\r\nFrom: a@partner.test\r\n",
    "no header": b"\r\nOnly a body.\r\n",
    "text at once": b"This is no header at all.\r\nNor is this.\r\n",
    "nothing": b"",
    "one blank line": b"\r\n",
    "eight bits": b"Subject: Gr\xfc\xdfe\r\n\r\n\xe4\xf6\xfc \xff\xfe\r\n",
    "utf-8 header": "Subject: Grüße 日本\r\nFrom: Jürgen <a@partner.test>\r\n\r\nÄ\r\n".encode(),
    "lines of 998": b"Subject: long\r\n\r\n" + (b"x" * 998 + b"\r\n") * 3,
    "dots": b"Subject: dots\r\n\r\n.\r\n..\r\n...\r\n.x\r\n",
    "folded": b"Subject: a\r\n b\r\n\tc\r\nX-Empty:\r\nTo: =?utf-8?q?=41?=\r\n <b@partner.test>\r\n\r\nx\r\n",
    "broken multipart": b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\nno end\r\n",
    "deep": b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(500)
    ),
    "many parts": b"Content-Type: multipart/mixed; boundary=x\r\n\r\n"
    + b"--x\r\n\r\np\r\n" * 5000
    + b"--x--\r\n",
    "many fields": b"".join(b"X-%d: y\r\n" % n for n in range(3000)) + b"\r\nx\r\n",
    "nested messages": b"Content-Type: message/rfc822\r\n\r\n" * 300 + b"Subject: in\r\n\r\nx\r\n",
    "odd addresses": b'From: "a\\"b" <"x y"@partner.test>\r\nCc: (c) <>, none:;\r\nTo: @,@\r\n\r\nx\r\n',
    "spooled": b"Subject: large\r\n\r\n" + lines(400_000),
    "ten megabytes": b"Subject: larger\r\n\r\n" + lines(10 << 20),
}


@pytest.mark.parametrize("case", CASES)
def test_odd_mail_comes_back_octet_for_octet(daemon: Daemon, inbox: Inbox, case: str) -> None:
    content = CASES[case]
    identifier = send(daemon, content, inbox.address, options=("BODY=8BITMIME",))
    got = fetched(daemon, inbox)
    assert got.startswith(b"Return-Path: <a@partner.test>\r\nDelivered-To: ")
    assert got.endswith(content)
    (path,) = daemon.files(inbox)
    assert path.read_bytes() == got
    facts = daemon.explain(identifier)["message"]
    assert facts["digest"] == hashlib.sha256(content).hexdigest()
    with daemon.imap(inbox) as client:
        client.select("INBOX")
        assert client.search(None, "TEXT", '"no such words in it"')[0] == "OK"
        assert client.search(None, "SENTSINCE", "1-Jan-1990", "NOT", "SUBJECT", "zzz")[0] == "OK"
        client.fetch("1", "(BODY[1] BODY[1.MIME] BODY[TEXT] BODY[HEADER] BODY[HEADER.FIELDS (SUBJECT)])")


@pytest.mark.parametrize(
    "content",
    [b"Subject: x\r\n\r\n" + b"x" * 2000 + b"\r\n", b"Subject: x\r\n\r\n" + b"x" * 100_000 + b"\r\n"],
)
def test_lines_over_the_limit_have_an_answer_and_the_session_goes_on(
    daemon: Daemon, inbox: Inbox, content: bytes
) -> None:
    with daemon.mx() as client:
        client.ehlo()
        client.mail("a@partner.test")
        client.rcpt(inbox.address)
        code, _ = client.data(content)
        assert code in (250, 500, 550, 554)
        assert client.noop()[0] == 250


def test_a_message_that_fills_its_last_page_can_be_searched(daemon: Daemon) -> None:
    """Files of whole pages have killed a search: a reader looked one octet too far."""
    inbox = daemon.new_inbox()
    send(daemon, b"Subject: probe\r\n\r\n", inbox.address)
    (probe,) = until(lambda: daemon.files(inbox), "no probe")
    front = probe.stat().st_size - len(b"Subject: probe\r\n\r\n")
    pages = (1, 2, 16, 64, 256)
    for count in pages:
        head = b"Subject: probe\r\n\r\n" + BODY.encode()
        octets = count * 4096 - front - len(head)
        send(daemon, head + _padding(octets), inbox.address)
    until(lambda: len(daemon.files(inbox)) == 1 + len(pages), "not all are there")
    assert sum(path.stat().st_size % 4096 == 0 for path in daemon.files(inbox)) == len(pages)
    with daemon.imap(inbox) as client:
        client.select("INBOX")
        for key in ("TEXT", "BODY"):
            assert client.search(None, key, '"that search looks for"') == ("OK", [b"2 3 4 5 6"])
        client.search(None, "TEXT", '"not in any of them"')


def _padding(octets: int) -> bytes:
    """Lines of text with a whole of so many octets."""
    line = b"padding " * 9 + b"\r\n"
    count, rest = divmod(octets, len(line))
    return line * (count - 1) + b"x" * (len(line) + rest - 2) + b"\r\n"


def test_smtputf8_addresses_go_in_and_out(daemon: Daemon, partner: Partner) -> None:
    inbox = daemon.new_inbox("jürgen")
    with daemon.mx() as client:
        client.ehlo()
        client.command_encoding = "utf-8"
        assert client.mail("пётр@partner.test", ["SMTPUTF8", "BODY=8BITMIME"])[0] == 250
        assert client.rcpt(f"jürgen@{DOMAIN}")[0] == 250
        assert client.data("Subject: Grüße\r\nFrom: пётр@partner.test\r\n\r\nä\r\n".encode())[0] == 250
        assert client.mail("пётр@partner.test")[0] in (501, 550, 553)
    placed = until(lambda: daemon.files(inbox), "it does not come")[0].read_bytes()
    assert "Return-Path: <пётр@partner.test>".encode() in placed
    assert b"UTF8SMTP" in placed
    with smtplib.SMTP_SSL("127.0.0.1", daemon.ports["submissions"], context=daemon.tls()) as client:
        client.ehlo()
        client.command_encoding = "utf-8"
        client.login(daemon.alice.address, daemon.alice.password)
        client.mail(daemon.alice.address, ["SMTPUTF8"])
        assert client.rcpt("пётр@partner.test")[0] == 250
        assert client.data(f"Subject: zurück\r\nFrom: {daemon.alice.address}\r\n\r\nx\r\n".encode())[0] == 250
    assert partner.find("zurück").recipients == ("пётр@partner.test",)


def test_a_thousand_recipients_get_one_copy_each(daemon: Daemon, inbox: Inbox) -> None:
    local = inbox.address.partition("@")[0]
    addresses = [f"{local}+{number}@{DOMAIN}" for number in range(1000)]
    with daemon.mx() as client:
        client.ehlo()
        client.mail("a@partner.test")
        assert {client.rcpt(address)[0] for address in addresses} == {250}
        assert client.rcpt(f"{local}+1000@{DOMAIN}")[0] == 452
        assert client.data(b"Subject: to all\r\n\r\nHello.\r\n")[0] == 250
    until(lambda: len(daemon.files(inbox)) == 1000, "not all are there")
    assert {str(one["Delivered-To"]) for one in daemon.messages(inbox)} == set(addresses)
    assert all("for <" not in str(one["Received"]) for one in daemon.messages(inbox))


def test_a_recipient_named_twice_gets_one_copy(daemon: Daemon, partner: Partner, inbox: Inbox) -> None:
    content = f"From: {inbox.address}\r\nSubject: twice\r\n\r\nx\r\n".encode()
    daemon.settled(send(daemon, content, inbox.address, inbox.address, inbox.address.upper()))
    assert len(daemon.files(inbox)) == 1
    customer = f"{inbox.id}@partner.test"
    with daemon.submission(inbox) as client:
        client.mail(inbox.address)
        assert [client.rcpt(customer)[0] for _ in range(2)] == [250, 250]
        identifier = queued_id(client.data(content))
    daemon.settled(identifier)
    assert [one.recipients for one in partner.taken if customer in one.recipients] == [(customer,)]


def test_sessions_that_change_one_folder_at_once_end_up_agreeing(daemon: Daemon, inbox: Inbox) -> None:
    """Four clients store, copy, append and expunge at random while mail comes in; then all see the same."""
    total = 60
    for number in range(total):
        send(daemon, b"Subject: m%d\r\n\r\nx\r\n" % number, inbox.address)
    problems: list[str] = []

    def client(seed: int) -> None:
        dice = random.Random(seed)
        try:
            with daemon.imap(inbox) as session:
                session.select("INBOX")
                for step in range(60):
                    uids = session.uid("SEARCH", "ALL")[1][0].split()
                    if not uids:
                        break
                    uid = dice.choice(uids).decode()
                    match dice.randrange(6):
                        case 0 | 1:
                            flag = dice.choice(("\\Seen", "\\Flagged", f"k{seed}"))
                            session.uid("STORE", uid, dice.choice(("+FLAGS", "-FLAGS")), f"({flag})")
                        case 2:
                            session.uid("COPY", uid, dice.choice(("INBOX", "Archive")))
                        case 3:
                            session.append(
                                "INBOX", "\\Draft", "", b"Subject: s%d-%d\r\n\r\nx\r\n" % (seed, step)
                            )
                        case 4:
                            session.uid("STORE", uid, "+FLAGS", "(\\Deleted)")
                            session.expunge()
                        case 5:
                            session.uid("MOVE", uid, "Archive")
        except (imaplib.IMAP4.error, OSError, AssertionError) as error:
            problems.append(f"client {seed}: {error!r}")

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(4)]
    with daemon.imap(inbox) as first:
        if first.select("Archive")[0] != "OK":
            assert first.create("Archive")[0] == "OK"
        watcher = first
        watcher.select("INBOX")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert problems == []
        watcher.noop()
        seen = {folder: _state(watcher, folder) for folder in ("INBOX", "Archive")}
    with daemon.imap(inbox) as second:
        assert {folder: _state(second, folder) for folder in ("INBOX", "Archive")} == seen
    for folder, state in seen.items():
        until(lambda: len(daemon.files(inbox, folder)) == len(state), f"files in {folder} differ")  # noqa: B023
    found = daemon.ask("reconcile")
    healed = (
        "messages_received",
        "messages_expunged",
        "messages_changed",
        "folders_adopted",
        "sums_corrected",
    )
    assert {name: found[name] for name in healed if found.get(name)} == {}
    assert found["problems"] == []


def _state(session: imaplib.IMAP4, folder: str) -> dict[bytes, frozenset[bytes]]:
    """UIDs with their flags, as a session sees a folder."""
    session.select(folder, readonly=True)
    found: dict[bytes, frozenset[bytes]] = {}
    for line in session.fetch("1:*", "(UID FLAGS)")[1]:
        if line is not None:
            assert isinstance(line, bytes)
            uid = re.search(rb"UID (\d+)", line)
            flags = re.search(rb"FLAGS \(([^)]*)\)", line)
            assert uid and flags
            found[uid[1]] = frozenset(flags[1].split()) - {b"\\Recent"}
    return found
