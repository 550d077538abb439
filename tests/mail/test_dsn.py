from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.mail.dsn import Action, RecipientStatus, Report, Returned, compose_dsn, decode_xtext
from server.mail.dsn_reader import MAX_RECIPIENTS, parse_dsn, parse_notification
from server.mail.header import Header, fields, split
from server.mail.structure import scan

GOLDEN = Path(__file__).parent / "golden"
AT = 1_763_879_040_000_000
ORIGINAL = b"From: a@example.org\r\nMessage-ID: <orig@example.org>\r\nSubject: hi\r\n\r\nbody text\r\n"


def report(*recipients, **more):
    given = {
        "reporting_mta": "mx.example.org",
        "sender": "MAILER-DAEMON@mx.example.org",
        "to": "a@example.org",
        "message_id": "bounce-1@mx.example.org",
        "at": AT,
        "recipients": recipients or (RecipientStatus("x@example.net", Action.FAILED, "5.1.1"),),
        "content": ORIGINAL,
    }
    return Report(**(given | more))


def full_report():
    return report(
        RecipientStatus(
            "x@example.net",
            Action.FAILED,
            "5.1.1",
            original_recipient="rfc822;x+2Bold@example.net",
            remote_mta="mx.example.net",
            diagnostic="550 5.1.1 no such user",
            last_attempt_at=AT - 60_000_000,
        ),
        RecipientStatus("y@example.net", Action.DELAYED, "4.4.1", will_retry_until=AT + 3_600_000_000),
        RecipientStatus("z@example.net", Action.DELIVERED, "2.0.0"),
        envelope_id="QQ+2D314159",
        arrived_at=AT - 120_000_000,
        in_reply_to="<orig@example.org>",
    )


def test_notification_is_the_golden_one():
    assert compose_dsn(full_report()) == (GOLDEN / "bounce.eml").read_bytes()


def test_notification_reads_back():
    found = parse_notification(compose_dsn(full_report()))
    assert found is not None
    assert (found.reporting_mta, found.envelope_id, found.message_id) == (
        "mx.example.org",
        "QQ-314159",
        "<orig@example.org>",
    )
    first, second, third = found.recipients
    assert first == RecipientStatus(
        "x@example.net",
        Action.FAILED,
        "5.1.1",
        original_recipient="rfc822;x+old@example.net",
        remote_mta="mx.example.net",
        diagnostic="550 5.1.1 no such user",
        last_attempt_at=AT - 60_000_000,
    )
    assert (second.action, second.will_retry_until) == (Action.DELAYED, AT + 3_600_000_000)
    assert (third.action, third.status) == (Action.DELIVERED, "2.0.0")


def test_notification_is_a_report_that_asks_for_no_answer():
    octets = compose_dsn(report())
    root = scan(octets)
    assert root.kind == "multipart/report"
    assert (b"report-type", b"delivery-status") in root.content.media.parameters
    assert [part.kind for part in root.parts] == [
        "text/plain",
        "message/delivery-status",
        "text/rfc822-headers",
    ]
    assert Header(octets[: split(octets)]).first(b"auto-submitted") == b"auto-replied"


def test_full_return_holds_the_message_and_header_return_does_not():
    whole = compose_dsn(report(returned=Returned.FULL))
    assert scan(whole).parts[2].kind == "message/rfc822"
    assert ORIGINAL in whole
    assert b"body text" not in compose_dsn(report())


def test_eight_bit_originals_are_said_to_be_so():
    content = b"Subject: x\r\nMessage-ID: <1@x>\r\n\r\ncaf\xc3\xa9\r\n"
    root = scan(compose_dsn(report(content=content, returned=Returned.FULL)))
    assert (root.content.encoding, root.parts[2].content.encoding) == (b"8bit", b"8bit")
    assert compose_dsn(report(content=content)).isascii()


def test_headers_that_are_not_ascii_come_back_as_global():
    content = "Subject: café\r\n\r\nx\r\n".encode()
    kinds = [scan(compose_dsn(report(content=content, returned=how))).parts[2].kind for how in Returned]
    assert kinds == ["message/global", "message/global-headers"]


def test_long_headers_come_back_in_part():
    content = b"X: " + b"y" * 60 + b"\r\n"
    octets = compose_dsn(report(content=content * 5000 + b"\r\nbody"))
    assert len(octets) < 80_000


def test_internationalised_recipients_have_an_ascii_form():
    octets = compose_dsn(report(RecipientStatus("ü+x@bücher.example", Action.FAILED, "5.1.1")))
    assert b"Final-Recipient: utf-8; \\x{FC}\\x{2B}x@b\\x{FC}cher.example\r\n" in octets
    (read,) = parse_dsn(octets)
    assert read.final_recipient == "ü+x@bücher.example"


def test_unknown_status_becomes_the_class_that_is_known():
    octets = compose_dsn(
        report(RecipientStatus("x@y", Action.FAILED, "550"), RecipientStatus("x@y", Action.DELAYED, ""))
    )
    assert [read.status for read in parse_dsn(octets)] == ["5.0.0", "4.0.0"]


WORDS = st.text(max_size=200) | st.sampled_from(
    ["550 a\r\nFinal-Recipient: rfc822; evil@x", "\r\n\r\nAction: delivered", "x" * 5000, "é\udc80", "\x00"]
)


@settings(max_examples=100, deadline=None)
@given(WORDS, WORDS, WORDS, WORDS)
def test_remote_words_stay_inside_their_field(diagnostic, host, original, envelope_id):
    recipient = RecipientStatus(
        "x@y", Action.FAILED, "5.0.0", original_recipient=original, remote_mta=host, diagnostic=diagnostic
    )
    octets = compose_dsn(report(recipient, envelope_id=envelope_id))
    assert all(len(line) <= 998 for line in octets.split(b"\r\n"))
    root = scan(octets)
    assert len(root.parts) == 3
    status = root.parts[1]
    groups = octets[status.body_start : status.body_end].split(b"\r\n\r\n")
    assert len(groups) == 2
    assert [field.name for field in fields(groups[1])].count(b"Final-Recipient") == 1
    (read,) = parse_dsn(octets)
    assert (read.final_recipient, read.action) == ("x@y", Action.FAILED)


STATUS = (
    b"Content-Type: multipart/report; boundary=b\r\n\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n"
)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            b"Reporting-MTA: dns;x\n\n"
            b"Final-Recipient: RFC822;<a@b>\nAction: Failed (so)\nStatus: 5.1.1 (bad)\n",
            [("a@b", Action.FAILED, "5.1.1")],
        ),
        (
            b"\r\nReporting-MTA: x\r\n \t\r\nFinal-Recipient: a@b\r\nAction: delayed\r\n",
            [("a@b", Action.DELAYED, "")],
        ),
        (
            b"Original-Recipient: rfc822;o@b\r\nAction: relayed\r\nStatus: 2.1.5\r\n",
            [("o@b", Action.RELAYED, "2.1.5")],
        ),
    ],
)
def test_foreign_notifications_are_read(body, expected):
    found = parse_dsn(STATUS + body + b"\r\n--b--\r\n")
    assert [(r.final_recipient, r.action, r.status) for r in found] == expected


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"Subject: Undeliverable\r\n\r\nfree text",
        STATUS + b"--b--",
        STATUS + b"Final-Recipient: rfc822;a@b\r\nAction: eaten\r\n",
        STATUS + b"Final-Recipient: \r\nAction: failed\r\n",
    ],
)
def test_what_is_no_notification_is_none(message):
    assert parse_dsn(message) is None


def test_number_of_recipients_read_is_bounded():
    group = b"Final-Recipient: rfc822;a@b\r\nAction: failed\r\n\r\n"
    assert len(parse_dsn(STATUS + group * 20_000)) <= MAX_RECIPIENTS + 1


@pytest.mark.parametrize(
    ("text", "decoded"), [("a+2Bb", "a+b"), ("+3D", "="), ("a+2b", "a+2b"), ("+", "+"), ("", "")]
)
def test_xtext_is_decoded(text, decoded):
    assert decode_xtext(text) == decoded


@pytest.mark.parametrize(
    ("line", "is_kept"), [(b"X-Long: " + b"word " * 500 + b"end", True), (b"X-Long: " + b"w" * 1500, False)]
)
def test_returned_header_has_short_lines_and_leaves_out_what_has_none(line, is_kept):
    content = ORIGINAL.replace(b"\r\nSubject", b"\r\n" + line + b"\r\nSubject")
    octets = compose_dsn(report(content=content))
    assert max(map(len, octets.split(b"\r\n"))) <= 998
    returned = scan(octets).parts[2]
    header = octets[returned.body_start : returned.body_end]
    names = [field.name for field in fields(header)]
    assert (b"X-Long" in names) is is_kept
    assert names[-1] == b"Subject" and names[0] == b"From"
    if is_kept:
        assert [one.value for one in fields(header)] == [
            one.value for one in fields(content[: split(content)])
        ]
