"""What SMTP extensions promise, through the whole daemon: DSN, BINARYMIME, FUTURERELEASE, grants."""

import re
import smtplib
import time
from email import message_from_bytes, policy
from email.message import EmailMessage

import pytest

from tests.daemon.letters import DOMAIN, message, queued_id, wire
from tests.daemon.partner import Partner
from tests.daemon.running import Daemon, Inbox, until

BINARY = bytes(range(256)) * 3


def binary_message(subject: str, sender: str) -> bytes:
    return (
        f"From: {sender}\r\nSubject: {subject}\r\nMIME-Version: 1.0\r\nContent-Type: image/x-any\r\n"
        "Content-Transfer-Encoding: binary\r\n\r\n"
    ).encode() + BINARY


def send_in_chunks(client: smtplib.SMTP, content: bytes, sender: str, *recipients: str) -> tuple[int, bytes]:
    client.ehlo()
    assert client.mail(sender, ["BODY=BINARYMIME"])[0] == 250
    for recipient in recipients:
        assert client.rcpt(recipient)[0] == 250
    client.send(b"BDAT %d LAST\r\n" % len(content) + content)
    return client.getreply()


def test_success_of_mail_from_outside_is_told_to_who_asked(
    daemon: Daemon, partner: Partner, inbox: Inbox
) -> None:
    sender = f"asker-{inbox.id[-6:]}@partner.test"
    with daemon.mx() as client:
        client.ehlo()
        client.mail(sender, ["RET=FULL", "ENVID=env+2B7"])
        assert (
            client.rcpt(inbox.address, ["NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;old@partner.test"])[0] == 250
        )
        reply = client.data(wire(message("Asked", To=inbox.address)))
    notice = until(
        lambda: next((one for one in partner.taken if sender in one.recipients), None), "no notice"
    )
    assert notice.reverse_path in ("", "<>")
    text = notice.content
    for expected in (
        b"Original-Envelope-Id: env+7",
        b"Original-Recipient: rfc822;old@partner.test",
        b"Final-Recipient: rfc822; " + inbox.address.encode(),
        b"Action: delivered",
        b"Status: 2.0.0",
    ):
        assert expected in text
    until(lambda: "notified" in daemon.kinds(queued_id(reply)), "the timeline does not show the notice")


@pytest.mark.parametrize("notify", [["NOTIFY=NEVER"], ["NOTIFY=FAILURE,DELAY"], []])
def test_success_that_nobody_asked_for_is_no_event(daemon: Daemon, inbox: Inbox, notify: list[str]) -> None:
    with daemon.mx() as client:
        client.ehlo()
        client.mail("someone@partner.test")
        client.rcpt(inbox.address, notify)
        reply = client.data(wire(message("Unasked", To=inbox.address)))
    daemon.find(inbox, "Unasked")
    assert "succeeded" not in daemon.kinds(queued_id(reply))


def test_the_null_reverse_path_is_told_nothing(daemon: Daemon, inbox: Inbox) -> None:
    with daemon.mx() as client:
        client.ehlo()
        client.mail("")
        client.rcpt(inbox.address, ["NOTIFY=SUCCESS"])
        reply = client.data(wire(message("Nobody", To=inbox.address)))
    daemon.find(inbox, "Nobody")
    assert "succeeded" not in daemon.kinds(queued_id(reply))


def test_binary_mail_is_stored_exactly_and_imap_serves_it(daemon: Daemon, inbox: Inbox) -> None:
    content = binary_message("Exactly", "x@partner.test")
    with daemon.mx() as client:
        assert send_in_chunks(client, content, "x@partner.test", inbox.address)[0] == 250
    (path,) = until(lambda: daemon.files(inbox), "not placed")
    assert path.read_bytes().endswith(content)
    with daemon.imap(inbox) as imap:
        imap.select("INBOX")
        kind, answer = imap.fetch("1", "(RFC822.SIZE ENVELOPE BODYSTRUCTURE BODY[])")
        assert kind == "OK"
        assert len(answer[0][1]) == len(path.read_bytes())
        assert b'"BINARY"' in answer[0][0].upper()
        assert imap.noop()[0] == "OK"
        assert imap.search(None, "TEXT", "exactly")[1] == [b"1"]


def test_large_binary_mail_is_stored_exactly(daemon: Daemon, inbox: Inbox) -> None:
    content = binary_message("Large", "x@partner.test") + BINARY * 2000
    with daemon.mx() as client:
        assert send_in_chunks(client, content, "x@partner.test", inbox.address)[0] == 250
    (path,) = until(lambda: daemon.files(inbox), "not placed")
    assert path.read_bytes().endswith(content)
    with daemon.imap(inbox) as imap:
        imap.select("INBOX")
        answer = imap.fetch("1", "(BODY[])")[1]
        assert len(answer[0][1]) == len(path.read_bytes())


@pytest.mark.parametrize("times", [1, 1000])
def test_binary_mail_is_encoded_and_signed_before_it_leaves(
    daemon: Daemon, partner: Partner, times: int
) -> None:
    alice = daemon.alice
    content = binary_message(f"Leaving {times}", alice.address) + BINARY * times
    with daemon.submission(alice) as client:
        assert send_in_chunks(client, content, alice.address, "x@partner.test")[0] == 250
    taken = partner.find(f"Leaving {times}")
    parsed = message_from_bytes(taken.content, policy=policy.default)
    assert parsed["Content-Transfer-Encoding"] == "base64"
    assert parsed.get_payload(decode=True) == BINARY * (times + 1)
    assert parsed["DKIM-Signature"]
    assert taken.content.isascii()


def test_binary_mail_that_cannot_be_encoded_is_refused(daemon: Daemon) -> None:
    content = binary_message("Never", daemon.alice.address).replace(b"image/x-any", b"message/partial")
    with daemon.submission(daemon.alice) as client:
        code, text = send_in_chunks(client, content, daemon.alice.address, "x@partner.test")
    assert (code, text[:5]) == (554, b"5.6.3")


def test_a_message_is_held_until_its_time(daemon: Daemon, partner: Partner) -> None:
    alice = daemon.alice
    made = message("Held", From=alice.address, To="x@partner.test")
    with daemon.submission(alice) as client:
        client.ehlo()
        assert re.fullmatch(
            r"2592000 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", client.esmtp_features["futurerelease"]
        )
        before = time.time()
        assert client.mail(alice.address, ["HOLDFOR=2"])[0] == 250
        client.rcpt("x@partner.test")
        reply = client.data(wire(made))
        client.mail(alice.address, ["HOLDFOR=86400"])
        client.rcpt("later@partner.test")
        later = queued_id(client.data(wire(message("Held on", From=alice.address))))
    partner.find("Held")
    assert time.time() - before >= 2
    step = daemon.explain(queued_id(reply))["timeline"][0]
    assert step["data"]["hold_until"] >= (before + 2) * 1_000_000
    (row,) = until(lambda: daemon.explain(later)["deliveries"], "not queued")
    assert row["state"] == "scheduled"
    assert row["next_attempt_at"] > (before + 86_000) * 1_000_000
    assert row["tries"] == 0


def submit(daemon: Daemon, inbox: Inbox, made: EmailMessage | bytes, sender: str) -> tuple[int, bytes]:
    with daemon.submission(inbox) as client:
        code, text = client.mail(sender)
        if code == 250:
            client.rcpt("x@partner.test")
            code, text = client.data(made if isinstance(made, bytes) else wire(made))
    return code, text


def test_a_grant_lets_an_inbox_send_as_another(daemon: Daemon, partner: Partner, inbox: Inbox) -> None:
    address = f"team-{inbox.id[-6:]}@{DOMAIN}"
    made = message(f"As {address}", From=address)
    assert submit(daemon, inbox, made, address)[0] == 553
    assert submit(daemon, inbox, made, inbox.address)[0] == 553
    grant = daemon.cli("grant", "add", address, "--inbox", inbox.address)
    assert submit(daemon, inbox, made, address)[0] == 250
    assert partner.find(f"As {address}").reverse_path == address
    assert submit(daemon, daemon.alice, made, address)[0] == 553
    assert [one["address"] for one in daemon.cli("grant", "list")["grants"]].count(address) == 1
    daemon.cli("grant", "remove", grant["id"])
    assert submit(daemon, inbox, made, address)[0] == 553
    daemon.cli("grant", "add", "a@elsewhere.test", "--inbox", inbox.address, status=1)
    daemon.cli("grant", "add", address, status=1)


def test_fields_of_a_submission_are_completed(daemon: Daemon, partner: Partner) -> None:
    alice, bob = daemon.alice, daemon.bob
    grant = daemon.ask("grant-add", address=bob.address, inbox=alice.address)
    head = (
        f"From: {alice.address}, {bob.address}\r\nSubject: Two\r\nBcc: s@x.test\r\nResent-Bcc: t@x.test\r\n"
    )
    assert submit(daemon, alice, head.encode() + b"\r\nbody\xff\r\n", alice.address)[0] == 250
    daemon.ask("grant-remove", id=grant["id"])
    taken = partner.find("Two")
    assert taken.message["Sender"] == alice.address
    assert taken.message["Date"] and taken.message["Message-ID"]
    assert b"Bcc" not in taken.content
    # It was made 7-bit before it was signed.
    assert taken.message.get_payload(decode=True) == b"body\xff\r\n"


def test_a_message_that_requires_tls_goes_to_nobody_who_does_not_promise_it(
    daemon: Daemon, partner: Partner
) -> None:
    alice = daemon.alice
    with daemon.submission(alice) as client:
        assert client.mail(alice.address, ["REQUIRETLS", "RET=FULL"])[0] == 250
        client.rcpt("x@partner.test")
        reply = client.data(wire(message("Required", From=alice.address, body="secret")))
    found = daemon.settled(queued_id(reply))
    assert [row["state"] for row in found["deliveries"]] == ["bounced"]
    assert found["deliveries"][0]["last_outcome"]["enhanced"] == "5.7.30"
    notice = daemon.find(alice, "Undeliverable: your message could not be delivered")
    # RFC 8689 5: RET=FULL is disregarded.
    assert "text/rfc822-headers" in notice.as_string()
    assert not any(one.message["Subject"] == "Required" for one in partner.taken)


@pytest.mark.parametrize(
    ("sender", "code"),
    [("bob@", 553), ("alice@", 250), ("alice@,alice@", 550), ("nobody", 550), ("x@partner.test", 553)],
)
def test_the_sender_field_is_the_submitters(daemon: Daemon, sender: str, code: int) -> None:
    named = ", ".join(one + DOMAIN if one.endswith("@") else one for one in sender.split(","))
    head = f"From: {daemon.alice.address}\r\nSender: {named}\r\n\r\nx\r\n"
    assert submit(daemon, daemon.alice, head.encode(), daemon.alice.address)[0] == code


def test_a_return_path_that_came_along_is_taken_out(daemon: Daemon, partner: Partner, inbox: Inbox) -> None:
    with daemon.mx() as client:
        client.ehlo()
        client.mail("real@partner.test")
        client.rcpt(inbox.address)
        client.data(b"Return-Path: <liar@x.test>\r\nSubject: R1\r\nreturn-path: <b@x.test>\r\n\r\nx\r\n")
    assert daemon.find(inbox, "R1").get_all("Return-Path") == ["<real@partner.test>"]
    head = f"From: {daemon.alice.address}\r\nReturn-Path: <liar@x.test>\r\nSubject: R2\r\n\r\nx\r\n"
    submit(daemon, daemon.alice, head.encode(), daemon.alice.address)
    assert "Return-Path" not in partner.find("R2").message
