"""Notices of failure in the forms of many servers: whom they are about, and of which class."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.mail.bounce_class import Blame, BounceClass, classify
from server.mail.bounce_reader import MAX_RECIPIENTS, read_bounce
from tests.fuzz.targets_bounces import check_bounce

HARD, SOFT, BLOCK = BounceClass.HARD, BounceClass.SOFT, BounceClass.BLOCK
CONTENT, FULL, POLICY = BounceClass.CONTENT, BounceClass.MAILBOX_FULL, BounceClass.POLICY
UNKNOWN = BounceClass.UNKNOWN


@pytest.mark.parametrize(("code", "enhanced", "text", "phase", "expected", "blame"), [
    (550, "5.1.1", "No such user here", "rcpt", HARD, Blame.RECIPIENT),
    (550, "", "nobody by that name", "rcpt", HARD, Blame.RECIPIENT),
    (550, "", "", "rcpt", HARD, Blame.RECIPIENT),
    (550, "", "", "final", UNKNOWN, Blame.NOBODY),
    (556, "5.1.10", "peer.test takes no mail (null MX)", "dns", HARD, Blame.RECIPIENT),
    (550, "5.1.2", "the domain gone.test does not exist", "dns", HARD, Blame.RECIPIENT),
    (552, "5.2.2", "mailbox full", "rcpt", FULL, Blame.RECIPIENT),
    (452, "4.2.2", "The email account that you tried to reach is over quota", "rcpt", FULL, Blame.RECIPIENT),
    (554, "5.7.1", "Client host [192.0.2.1] blocked using zen.spamhaus.org", "rcpt", BLOCK,
     Blame.OURS),
    (550, "5.7.26", "This message does not pass authentication checks", "final", BLOCK, Blame.OURS),
    (550, "5.7.25", "no PTR record", "mail", BLOCK, Blame.OURS),
    (550, "5.1.1", "sender is unknown here", "mail", BLOCK, Blame.OURS),
    (554, "5.7.1", "Message looks like spam", "final", CONTENT, Blame.CONTENT),
    (552, "5.3.4", "Message size exceeds fixed limit", "mail", CONTENT, Blame.CONTENT),
    (550, "5.6.0", "header is malformed", "final", CONTENT, Blame.CONTENT),
    (550, "5.7.1", "refused by local policy", "rcpt", POLICY, Blame.CONTENT),
    (451, "4.7.1", "Greylisted, try again later", "rcpt", SOFT, Blame.NOBODY),
    (450, "4.2.1", "mailbox temporarily disabled", "rcpt", SOFT, Blame.RECIPIENT),
    (421, "", "too busy", "mail", SOFT, Blame.NOBODY),
    (0, "", "connection refused", "connect", SOFT, Blame.NOBODY),
    (450, "4.1.1", "user unknown in virtual table", "rcpt", SOFT, Blame.RECIPIENT),
    (0, "", "", "", UNKNOWN, Blame.NOBODY),
])  # fmt: skip
def test_classes_and_blame(  # noqa: PLR0917 - pytest's own way
    code: int, enhanced: str, text: str, phase: str, expected: BounceClass, blame: Blame
) -> None:
    judged = classify(code, enhanced, text, phase=phase)
    assert (judged.bounce_class, judged.blame, judged.enhanced) == (expected, blame, enhanced)


def test_what_an_address_is_called_says_nothing() -> None:
    assert classify(550, "", "<spam-quota@virus.test> is refused", phase="final").bounce_class is POLICY


def text_notice(body: str, **fields: str) -> bytes:
    header = {
        "From": "Mail Delivery System <MAILER-DAEMON@mx.test>",
        "To": "author@ours.test",
        "Subject": "Undelivered Mail Returned to Sender",
        **fields,
    }
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in header.items() if value]
    return ("\r\n".join([*lines, "", *body.strip("\n").split("\n")]) + "\r\n").encode()


QMAIL = """
Hi. This is the program at mx.test. I could not get your message through to
the addresses below. This is a permanent error; I have given up. Sorry.

<gone@peer.test>:
192.0.2.7 does not like recipient.
Remote host said: 550 5.1.1 no such user
Giving up on 192.0.2.7.

--- Below this line is a copy of the message.

Return-Path: <author@ours.test>
From: author@ours.test
To: list@peer.test
Subject: hello
"""
EXIM = """
This message was created automatically by mail delivery software.

A message that you sent could not be delivered to one or more of its
recipients. This is a permanent error. The following address(es) failed:

  gone@peer.test
    host mx.peer.test [192.0.2.7]
    SMTP error from remote mail server after RCPT TO:<gone@peer.test>:
    550 no such user

------ This is a copy of the message, including all the headers. ------

From: author@ours.test
To: gone@peer.test
"""
EXCHANGE = """
Your message

  To:      author@ours.test
  Subject: hello

did not reach the following recipient(s):

gone@peer.test on Thu, 1 Jan 2026 10:00:00 -0000
    The recipient name is not recognized
"""
SENDMAIL = """
The original message was received at Thu, 1 Jan 2026 10:00:00 GMT

   ----- The following addresses had permanent fatal errors -----
<gone@peer.test>
    (reason: 550 5.1.1 user unknown)

   ----- Transcript of session follows -----
... while talking to mx.peer.test.:
>>> RCPT To:<gone@peer.test>
<<< 550 5.1.1 user unknown
"""
YAHOO = """
Message from mail.test.
Unable to deliver message to the following address(es).

<gone@peer.test>:
This user doesn't have an account here (gone@peer.test) [0]

--- Original message follows.

Return-Path: <author@ours.test>
"""
FULL_BOX = """
Delivery to the following recipient failed permanently:

     gone@peer.test

Technical details of permanent failure:
452 4.2.2 The mailbox is over quota
"""


@pytest.mark.parametrize(("body", "expected"), [
    (QMAIL, HARD), (EXIM, HARD), (EXCHANGE, HARD), (SENDMAIL, HARD), (YAHOO, HARD), (FULL_BOX, FULL),
])  # fmt: skip
def test_notices_in_words(body: str, expected: BounceClass) -> None:
    found = read_bounce(text_notice(body))
    assert found is not None
    assert [(one.recipient, one.judged.bounce_class) for one in found.failures] == [
        ("gone@peer.test", expected)
    ]
    assert found.form == "text"


def test_the_message_behind_the_words_is_read_as_returned() -> None:
    found = read_bounce(text_notice(QMAIL))
    assert found is not None
    assert found.returned is not None
    assert found.returned.author == "author@ours.test"


def test_the_header_may_name_who_failed() -> None:
    found = read_bounce(text_notice("No words of use.", X_Failed_Recipients="a@peer.test, b@peer.test"))
    assert found is not None
    assert [one.recipient for one in found.failures] == ["a@peer.test", "b@peer.test"]


def test_one_recipient_in_two_spellings_is_one() -> None:
    found = read_bounce(text_notice("No words.", X_Failed_Recipients="a@peer.test, A@PEER.test"))
    assert found is not None
    assert [one.recipient for one in found.failures] == ["a@peer.test"]


def report(*groups: str, told: str = "It failed.", kind: str = "delivery-status") -> bytes:
    status = "\n\n".join(["Reporting-MTA: dns; mx.test", *groups])
    body = f"""
--b

{told}
--b
Content-Type: message/{kind}

{status}

--b
Content-Type: text/rfc822-headers

From: author@ours.test
Message-ID: <sent@ours.test>
--b--
"""
    kinds = "multipart/report; report-type=delivery-status; boundary=b"
    return text_notice(body, Content_Type=kinds, MIME_Version="1.0")


def test_fields_come_before_words_and_several_recipients_are_told_apart() -> None:
    found = read_bounce(
        report(
            "Final-Recipient: rfc822; a@peer.test\nAction: failed\nStatus: 5.1.1\n"
            "Diagnostic-Code: smtp; 550 5.1.1 unknown",
            "Final-Recipient: rfc822; b@peer.test\nAction: delayed\nStatus: 4.4.1",
            "Final-Recipient: rfc822; c@peer.test\nAction: relayed\nStatus: 2.0.0",
        )
    )
    assert found is not None
    told = [(one.recipient, one.action, one.judged.bounce_class) for one in found.failures]
    assert told == [("a@peer.test", "failed", HARD), ("b@peer.test", "delayed", SOFT)]
    assert found.returned is not None
    assert found.returned.message_id == "<sent@ours.test>"


def test_internationalised_fields_are_read() -> None:
    group = "Final-Recipient: utf-8; j\\x{FC}rgen@peer.test\nAction: failed\nStatus: 5.1.1"
    found = read_bounce(report(group, kind="global-delivery-status"))
    assert found is not None
    assert found.failures[0].recipient == "jürgen@peer.test"


def test_a_notice_of_success_is_no_bounce() -> None:
    assert (
        read_bounce(report("Final-Recipient: rfc822; a@peer.test\nAction: delivered\nStatus: 2.0.0")) is None
    )


@pytest.mark.parametrize("message", [
    text_notice("I am away until Monday.", Subject="Out of office: hello", From="a@peer.test"),
    text_notice("Thank you for your mail.", Subject="Automatic reply: hello", Auto_Submitted="auto-replied",
                From="a@peer.test"),
    text_notice("Our delivery failed to impress nobody@peer.test.", Subject="Dinner", From="a@peer.test"),
    text_notice("Your parcel could not be delivered.", Subject="Delivery problem", From="post@parcel.test"),
    text_notice("See gone@peer.test for the returned goods", Subject="Returned goods", From="shop@peer.test"),
    text_notice("Forwarding what a customer said:\n> 550 user unknown\n> <x@peer.test>", Subject="Question",
                From="help@peer.test"),
    b"",
    b"\r\n",
])  # fmt: skip
def test_ordinary_mail_is_no_bounce(message: bytes) -> None:
    assert read_bounce(message) is None


def test_recipients_are_bounded() -> None:
    group = "Final-Recipient: rfc822; r{}@peer.test\nAction: failed\nStatus: 5.1.1"
    found = read_bounce(report(*(group.format(n) for n in range(5 * MAX_RECIPIENTS))))
    assert found is not None
    assert len(found.failures) <= MAX_RECIPIENTS


HOSTILE = [
    "a@" * 30_000,
    "<" * 60_000,
    "to:" * 20_000,
    "user " + "a" * 60_000 + "@",
    ("x" * 900 + "@y.test\n") * 60,
    "reject" * 10_000,
    ("mailbox " * 8 + "\n") * 1000,
    "exceeds " + "word " * 12_000,
    "@" * 60_000,
    ('"' + "q" * 70) * 800,
    "- " * 30_000,
    "https://" * 8_000,
]


@pytest.mark.parametrize("body", HOSTILE)
def test_hostile_words_take_no_more_than_they_have_octets(body: str) -> None:
    began = time.process_time()
    check_bounce(text_notice(body))
    classify(550, "", body)
    # A pattern that goes back and forth would take minutes; the limit is no measure of speed.
    assert time.process_time() - began < 20


@settings(max_examples=200)
@given(st.binary(max_size=400))
def test_any_octets_hold_the_invariants(tail: bytes) -> None:
    check_bounce(text_notice(QMAIL)[:600] + tail)
    check_bounce(tail)


def test_cut_at_every_octet_it_never_raises() -> None:
    whole = report("Final-Recipient: rfc822; a@peer.test\nAction: failed\nStatus: 5.1.1")
    for end in range(0, len(whole), 7):
        check_bounce(whole[:end])
