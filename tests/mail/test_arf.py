"""Feedback reports read: what providers write, and what nobody would."""

import random
import time

import pytest

from server.mail.arf import addresses, parse_feedback

REPORT = b"""From: feedback@provider.test\r
Subject: FW: hello\r
MIME-Version: 1.0\r
Content-Type: multipart/report; report-type=feedback-report; boundary="b"\r
\r
--b\r
Content-Type: text/plain\r
\r
A complaint.\r
--b\r
Content-Type: message/feedback-report\r
\r
Feedback-Type: abuse (it says)\r
User-Agent: Provider/1\r
Version: 1\r
Incidents: 3\r
Source-Port: 25\r
Original-Rcpt-To: <User@Example.com>\r
Original-Rcpt-To: other@example.com\r
Removal-Recipient: nobody\r
\r
--b\r
Content-Type: message/rfc822\r
\r
Received: from [192.0.2.1] (x [192.0.2.1]) by Mail.Ours.Test with\r
 ESMTPSA id msg_0123456789abcdefghjkmnpqrs;\r
 Mon, 01 Jun 2026 10:00:00 +0000\r
From: Shop <shop@ours.test>\r
Message-ID: <1@ours.test>\r
\r
Buy.\r
--b--\r
"""


def test_a_complaint_names_the_message_and_the_recipients():
    found = parse_feedback(REPORT)
    assert found is not None
    assert (found.feedback_type, found.version, found.incidents, found.source_port) == ("abuse", 1, 3, 25)
    assert addresses(found.original_recipients) == ("User@Example.com", "other@example.com")
    assert addresses(found.removal_recipients) == ()
    assert found.returned is not None
    assert found.returned.message_id == "<1@ours.test>"
    assert found.returned.traces == (("mail.ours.test", "msg_0123456789abcdefghjkmnpqrs"),)
    assert found.returned.is_whole


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"Subject: x\r\n\r\nFeedback-Type: abuse\r\n",
        REPORT.replace(b"message/feedback-report", b"text/plain"),
        REPORT.replace(b"Feedback-Type: abuse (it says)", b"Feedback: abuse"),
        REPORT.replace(b"Feedback-Type: abuse (it says)", b"Feedback-Type: (abuse)"),
    ],
)
def test_what_is_no_report_is_none(message):
    assert parse_feedback(message) is None


def test_numbers_that_are_none_are_the_default():
    found = parse_feedback(REPORT.replace(b"Incidents: 3", b"Incidents: " + b"9" * 5000))
    assert found is not None
    assert found.incidents == 1


def test_a_report_is_cut_anywhere_and_mutated_without_harm():
    dice = random.Random(5)
    for end in range(0, len(REPORT), 7):
        parse_feedback(REPORT[:end])
    for _ in range(400):
        octets = bytearray(REPORT)
        for _ in range(dice.randrange(1, 20)):
            octets[dice.randrange(len(octets))] = dice.randrange(256)
        parse_feedback(bytes(octets))


@pytest.mark.parametrize(
    "filler",
    [
        b"Original-Rcpt-To: a@b.test\r\n" * 20_000,
        b"Authentication-Results: " + b"x " * 200_000 + b"\r\n",
        b"Received: by " + b"a" * 400_000 + b" with\r\n",
        b"Received: by a with b id \r\n" * 20_000,
        b"Original-Mail-From: " + b"<" * 400_000 + b"\r\n",
        b"Original-Rcpt-To: " + b"a" * 400_000 + b"\r\n",
    ],
)
def test_huge_reports_take_linear_time(filler):
    begun = time.process_time()
    for place in (b"User-Agent: Provider/1\r\n", b"Message-ID: <1@ours.test>\r\n"):
        found = parse_feedback(REPORT.replace(place, place + filler))
        assert found is not None
        assert len(addresses(found.original_recipients)) <= 100
    assert time.process_time() - begun < 5
