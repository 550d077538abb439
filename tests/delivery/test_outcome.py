"""What answers mean."""

import pytest

from server.delivery.outcome import (
    Hop,
    in_doubt,
    null_mx,
    read_answer,
    slows_down,
    too_many_recipients,
)
from server.smtp.client_machine import Answer
from server.smtp.client_reply import make_reply
from storage.records import DeliveryState

CASES = [
    ("final", 250, "2.0.0 queued", "delivered"),
    ("final", 451, "4.3.0 later", "deferred"),
    ("final", 554, "5.6.0 spam", "bounced"),
    ("final", 421, "bye", "deferred"),
    ("data", 554, "no valid recipients", "bounced"),
    ("data", 451, "later", "deferred"),
    ("rcpt", 550, "5.1.1 no such user", "bounced"),
    ("rcpt", 450, "4.2.0 greylisted", "deferred"),
    ("rcpt", 552, "too many recipients", "deferred"),
    ("rcpt", 552, "5.5.3 too many recipients", "deferred"),
    ("rcpt", 552, "5.2.2 mailbox full", "bounced"),
    ("mail", 550, "5.7.1 not from you", "bounced"),
    ("mail", 530, "5.7.0 must issue a STARTTLS command first", "deferred"),
    ("mail", 503, "bad sequence", "deferred"),
    # Before MAIL nothing was said about the message.
    ("connect", 554, "5.7.1 blocked", "deferred"),
    ("ehlo", 550, "your name is bad", "deferred"),
    ("tls", 554, "no", "deferred"),
    ("policy", 552, "5.3.4 too large", "bounced"),
]


@pytest.mark.parametrize(("phase", "code", "text", "state"), CASES)
def test_permanent_is_proved_and_the_rest_is_temporary(phase: str, code: int, text: str, state: str) -> None:
    reply = make_reply(code, [text])
    found = read_answer(Answer(phase, reply, reply.text), Hop("mx", "192.0.2.1", "TLSv1.3", "x"), duration=5)
    assert found.state.value == state
    assert (found.code, found.phase, found.host, found.duration) == (code, phase, "mx", 5)


@pytest.mark.parametrize("phase", ["connect", "ehlo", "tls", "mail", "rcpt", "data", "final"])
def test_no_reply_is_always_temporary(phase: str) -> None:
    found = read_answer(Answer(phase, None, "the connection was lost"))
    assert found.state is DeliveryState.DEFERRED
    assert in_doubt(found) is (phase == "final")


def test_a_note_stands_before_the_remotes_words() -> None:
    reply = make_reply(250, ["ok"])
    assert read_answer(Answer("final", reply, "ok"), note="in clear").text == "in clear: ok"


@pytest.mark.parametrize(
    ("code", "text", "full"),
    [
        (452, "too many", True),
        (452, "4.5.3 too many", True),
        (452, "4.2.2 full", False),
        (552, "5.5.3 x", True),
        (550, "5.5.3 x", True),
        (450, "later", False),
    ],
)
def test_a_full_transaction_is_told_from_a_full_mailbox(code: int, text: str, full: bool) -> None:
    assert too_many_recipients(make_reply(code, [text])) is full


def test_pleas_to_slow_down_are_heard() -> None:
    for phase, code, text in (("mail", 421, "busy"), ("rcpt", 451, "4.7.1 rate"), ("connect", 554, "no")):
        assert slows_down(read_answer(Answer(phase, make_reply(code, [text]), text)))
    assert slows_down(read_answer(Answer("connect", None, "refused")))
    assert not slows_down(read_answer(Answer("rcpt", make_reply(450, ["4.2.1 x"]), "")))
    assert not slows_down(read_answer(Answer("rcpt", make_reply(550, ["5.7.1 x"]), "")))


def test_a_null_mx_is_556_5_1_10() -> None:
    assert (null_mx("x.test").code, null_mx("x.test").enhanced) == (556, "5.1.10")
