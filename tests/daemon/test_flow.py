"""Mail through the whole daemon, end to end: in from a stranger, between inboxes, out to a second server."""

import json
import smtplib
import subprocess
import sys
from email.message import EmailMessage

import pytest

from tests.daemon.letters import DOMAIN, message, queued_id, wire
from tests.daemon.partner import Partner
from tests.daemon.running import HOSTNAME, ROOT, Daemon, Inbox, run_cli, until

# The judge of signatures is dkimpy as it comes, told the public records that `domain dns` prints.
JUDGE = """
import json, sys, dkim
records = {record["name"].encode() + b".": record["value"].encode() for record in json.load(sys.stdin)}
message = open(sys.argv[1], "rb").read()
count = message.lower().count(b"\\ndkim-signature:") + message.lower().startswith(b"dkim-signature:")
verdicts = [
    dkim.DKIM(message).verify(idx=place, dnsfunc=lambda name, timeout=5: records.get(name))
    for place in range(count)
]
print(json.dumps(verdicts))
"""


def deliver(daemon: Daemon, content: bytes, *recipients: str, sender: str = "someone@partner.test") -> str:
    """Hand a message in as a foreign server does; its id."""
    with daemon.mx() as client:
        client.ehlo()
        assert client.mail(sender)[0] == 250
        for recipient in recipients:
            assert client.rcpt(recipient)[0] == 250
        reply = client.data(content)
    assert reply[0] == 250, reply
    return queued_id(reply)


def submit(daemon: Daemon, inbox: Inbox, made: EmailMessage, *recipients: str) -> str:
    """Submit a message as a user does; its id."""
    with daemon.submission(inbox) as client:
        assert client.mail(inbox.address)[0] == 250
        for recipient in recipients:
            assert client.rcpt(recipient)[0] == 250
        reply = client.data(wire(made))
    assert reply[0] == 250, reply
    return queued_id(reply)


def test_mail_from_outside_is_placed_with_its_trace(daemon: Daemon, inbox: Inbox) -> None:
    identifier = deliver(daemon, wire(message("Order 17", To=inbox.address)), inbox.address)
    placed = daemon.find(inbox, "Order 17")
    names = [name.lower() for name, _ in placed.items()]
    assert names[:3] == ["return-path", "delivered-to", "received"]
    assert placed["Return-Path"] == "<someone@partner.test>"
    assert placed["Delivered-To"] == inbox.address
    received = placed["Received"]
    for words in ("from client.test ([127.0.0.1])", f"by {HOSTNAME} with ESMTP", identifier, inbox.address):
        assert words in received
    # The file is there a moment before its rows are.
    assert until(lambda: daemon.kinds(identifier), "not applied") == ["accepted", "received"]


def test_a_forged_authentication_result_is_taken_out(daemon: Daemon, inbox: Inbox) -> None:
    made = message("Trust me")
    made["Authentication-Results"] = f"{HOSTNAME}; dmarc=pass header.from=bank.test"
    made["authentication-results"] = f'"{HOSTNAME.upper()}" 1; spf=pass'
    made["Authentication-Results"] = "elsewhere.test; dkim=pass header.d=bank.test"
    deliver(daemon, wire(made), inbox.address)
    assert daemon.find(inbox, "Trust me").get_all("Authentication-Results") == [
        "elsewhere.test; dkim=pass header.d=bank.test"
    ]


def test_an_unknown_recipient_is_refused_at_rcpt(daemon: Daemon) -> None:
    with daemon.mx() as client:
        client.ehlo()
        client.mail("someone@partner.test")
        code, text = client.rcpt(f"nobody@{DOMAIN}")
    assert (code, text[:5]) == (550, b"5.1.1")


@pytest.mark.parametrize(
    "recipient", ["x@elsewhere.test", "x%elsewhere.test@elsewhere.test", "x@[127.0.0.1]"]
)
@pytest.mark.parametrize("sender", ["someone@partner.test", f"alice@{DOMAIN}", ""])
def test_nothing_is_relayed_for_strangers(daemon: Daemon, sender: str, recipient: str) -> None:
    with daemon.mx() as client:
        client.ehlo()
        client.mail(sender)
        code, text = client.rcpt(recipient)
    assert (code, text[:5]) == (550, b"5.7.1")


@pytest.mark.parametrize("secret", ["password", "key"])
@pytest.mark.parametrize("door", ["submission", "submissions"])
def test_users_submit_after_auth_plain(daemon: Daemon, partner: Partner, door: str, secret: str) -> None:
    alice = daemon.alice
    subject = f"By {door} with a {secret}"
    if door == "submission":
        client = smtplib.SMTP("127.0.0.1", daemon.ports["submission"], timeout=20)
        assert client.ehlo()[0] == 250
        assert not client.has_extn("auth")
        assert client.docmd("AUTH PLAIN AGEAYg==")[0] in (503, 530, 538)
        client.starttls(context=daemon.tls())
    else:
        client = smtplib.SMTP_SSL("127.0.0.1", daemon.ports[door], timeout=20, context=daemon.tls())
    with client:
        assert client.ehlo()[0] == 250
        assert client.mail(alice.address)[0] == 530
        client.user, client.password = (
            alice.address,
            daemon.keys["alice"] if secret == "key" else alice.password,
        )
        assert client.auth("PLAIN", client.auth_plain)[0] == 235
        client.sendmail(alice.address, "customer@partner.test", wire(message(subject, From=alice.address)))
    assert partner.find(subject).reverse_path == alice.address


def test_a_wrong_password_is_refused_and_says_no_more(daemon: Daemon, inbox: Inbox) -> None:
    answers = []
    for address in (inbox.address, f"nobody@{DOMAIN}"):
        with smtplib.SMTP_SSL("127.0.0.1", daemon.ports["submissions"], context=daemon.tls()) as client:
            with pytest.raises(smtplib.SMTPAuthenticationError) as refused:
                client.login(address, "wrong", initial_response_ok=True)
            answers.append((refused.value.smtp_code, refused.value.smtp_error))
    assert answers[0] == answers[1]
    assert answers[0][0] == 535


def test_a_user_speaks_for_no_one_else(daemon: Daemon, inbox: Inbox) -> None:
    with daemon.submission(inbox) as client:
        assert client.mail(daemon.bob.address)[0] == 553
        assert client.mail("ceo@bank.test")[0] == 553
        client.mail(inbox.address)
        client.rcpt("customer@partner.test")
        code, text = client.data(wire(message("Not me", From=daemon.bob.address)))
        assert (code, text[:5]) == (553, b"5.7.1")
        client.mail(inbox.address)
        client.rcpt("customer@partner.test")
        both = message("Both of us", From=f"{inbox.address}, {daemon.bob.address}")
        assert client.data(wire(both))[0] == 553


def test_submission_completes_and_signs_what_is_sent(
    daemon: Daemon, partner: Partner, inbox: Inbox, tmp_path
) -> None:
    made = message("Completed", From=inbox.address, To="customer@partner.test", Bcc="hidden@partner.test")
    submit(daemon, inbox, made, "customer@partner.test", "hidden@partner.test")
    taken = partner.find("Completed")
    assert taken.message["Bcc"] is None
    assert b"hidden" not in taken.content
    assert taken.message["Date"] and taken.message["Message-ID"].endswith(f"@{HOSTNAME}>")
    assert taken.secure
    signatures = taken.message.get_all("DKIM-Signature")
    assert len(signatures) == 2
    assert ["rsa-sha256" in str(one) or "ed25519-sha256" in str(one) for one in signatures] == [True, True]
    records = json.loads(run_cli("domain", "dns", DOMAIN, "--json", "--config", daemon.configuration).stdout)[
        "records"
    ]
    path = tmp_path / "taken.eml"
    path.write_bytes(taken.content)
    judged = subprocess.run(
        [sys.executable, "-c", JUDGE, path],
        input=json.dumps([record for record in records if record["type"] == "TXT"]),
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert json.loads(judged.stdout) == [True, True], judged.stderr


def test_a_plain_second_server_gets_mail_too(daemon: Daemon, template, tmp_path) -> None:
    """Opportunistic STARTTLS: without an offer the mail goes all the same (RFC 7435)."""
    from tests.daemon.partner import serving

    with (
        serving(tmp_path / "partner", secure=False) as plain,
        Daemon(tmp_path / "daemon", template=template, delivery={"routes": plain.route}) as sending,
    ):
        sending.start()
        submit(sending, sending.alice, message("In clear", From=sending.alice.address), "x@partner.test")
        assert not plain.find("In clear").secure


def test_a_permanent_failure_comes_back_as_a_notice(daemon: Daemon, inbox: Inbox) -> None:
    made = message("To nobody", From=inbox.address, Message_ID="<to-nobody@agents.test>")
    nobody = f"reject-{inbox.id}@partner.test"
    identifier = submit(daemon, inbox, made, nobody)
    notice = until(
        lambda: next(
            (one for one in daemon.messages(inbox) if one.get_content_type() == "multipart/report"), None
        ),
        f"no notice\n{daemon.log}",
    )
    assert notice["Return-Path"] == "<>"
    assert notice.get_param("report-type") == "delivery-status"
    assert notice["Auto-Submitted"] and notice["To"] == inbox.address
    text, status, returned = notice.iter_parts()
    assert nobody in text.get_content()
    fields = [dict(part.items()) for part in status.get_payload()]
    assert fields[0]["Reporting-MTA"] == f"dns; {HOSTNAME}"
    assert fields[1]["Final-Recipient"].replace(" ", "") == f"rfc822;{nobody}"
    assert (fields[1]["Action"], fields[1]["Status"]) == ("failed", "5.1.1")
    assert "nobody of that name lives here" in fields[1]["Diagnostic-Code"]
    assert b"<to-nobody@agents.test>" in returned.as_bytes()
    until(lambda: "notified" in daemon.kinds(identifier), "the timeline does not show the notice")
    assert daemon.kinds(identifier) == ["accepted", "bounced", "suppression.added", "notified"]


def test_the_null_reverse_path_is_never_answered(daemon: Daemon, inbox: Inbox) -> None:
    with daemon.submission(inbox) as client:
        client.mail("")
        client.rcpt(f"reject-null-{inbox.id}@partner.test")
        reply = client.data(wire(message("A bounce", From=inbox.address)))
        assert reply[0] == 250
        witness = queued_id(reply)
    daemon.settled(witness)
    # The notice of a later failure shows that the one before it was passed over.
    nobody = f"reject-{inbox.id}@partner.test"
    later = submit(daemon, inbox, message("Later", From=inbox.address), nobody)
    until(lambda: "notified" in daemon.kinds(later), "no notice")
    assert daemon.kinds(witness) == ["accepted", "bounced", "suppression.added"]
    until(lambda: len(daemon.messages(inbox)) == 1, "one notice, for one failure")


def test_a_temporary_failure_waits_with_the_servers_words(daemon: Daemon, inbox: Inbox) -> None:
    recipient = f"later-{inbox.id}@partner.test"
    identifier = submit(daemon, inbox, message("Patience", From=inbox.address), recipient)
    found = until(
        lambda: next(
            (row for row in daemon.cli("queue", "list", "--state", "deferred")["deliveries"]
             if row["recipient"] == recipient), None),
        "the delivery is not deferred",
    )  # fmt: skip
    assert found["message"] == identifier
    assert found["tries"] == 1 and found["next_attempt_at"] > found["created_at"]
    assert found["last_outcome"]["code"] == 451
    assert "the postman is at lunch" in found["last_outcome"]["text"]
    shown = run_cli("queue", "list", "--config", daemon.configuration).stdout
    assert "the postman is at lunch" in " ".join(shown.split())
    assert daemon.kinds(identifier) == ["accepted", "deferred"]


def test_explain_shows_every_step_to_people(daemon: Daemon, partner: Partner, inbox: Inbox) -> None:
    identifier = submit(daemon, inbox, message("Steps", From=inbox.address), "customer@partner.test")
    partner.find("Steps")
    until(lambda: "delivered" in daemon.kinds(identifier), "not delivered")
    shown = run_cli("explain", identifier, "--config", daemon.configuration)
    assert shown.returncode == 0
    words = " ".join(shown.stdout.split())
    for word in ("accepted", "by submission", "delivered", "customer@partner.test", "thank you", "TLSv1.3"):
        assert word in words, shown.stdout
    unknown = run_cli("explain", "msg_unknown", "--config", daemon.configuration)
    assert unknown.returncode == 1 and "Traceback" not in unknown.stderr


def test_mail_between_inboxes_goes_through_the_queue(daemon: Daemon, inbox: Inbox) -> None:
    other = daemon.new_inbox()
    identifier = submit(daemon, inbox, message("Neighbour", From=inbox.address), other.address)
    placed = daemon.find(other, "Neighbour")
    assert placed["Return-Path"] == f"<{inbox.address}>"
    assert placed["Delivered-To"] == other.address
    daemon.settled(identifier)
    assert daemon.kinds(identifier) == ["accepted", "delivered"]


def test_mail_for_unknown_domains_ends_in_the_outbox(daemon: Daemon, inbox: Inbox) -> None:
    identifier = submit(daemon, inbox, message("Captured", From=inbox.address), "x@nowhere.test")
    daemon.settled(identifier)
    kept = [path.read_bytes() for path in (daemon.data / "outbox" / "new").iterdir()]
    assert sum(b"Subject: Captured" in content for content in kept) == 1


def test_plus_addresses_and_postmaster_reach_somebody(daemon: Daemon, inbox: Inbox) -> None:
    local = inbox.address.partition("@")[0]
    deliver(daemon, wire(message("Tagged")), f"{local}+orders@{DOMAIN}")
    assert daemon.find(inbox, "Tagged")["Delivered-To"] == f"{local}+orders@{DOMAIN}"
    for number, address in enumerate((f"postmaster@{DOMAIN}", "Postmaster", f"abuse@{DOMAIN}")):
        deliver(daemon, wire(message(f"For the postmaster {inbox.id} {number}")), address)
        daemon.find(daemon.alice, f"For the postmaster {inbox.id} {number}")
