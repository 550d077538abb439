"""What no automatic reply answers: programs, lists, notices; and that people get theirs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.mail.automatic import says_automatic, unanswerable


@pytest.mark.parametrize(
    "field",
    [
        "Auto-Submitted: auto-replied",
        "auto-submitted:\r\n (by a robot) Auto-Generated; x=y",
        "Auto-Submitted: auto-notified",
        "Auto-Submitted: something-new",
        "Precedence: bulk",
        "precedence: List",
        "List-Id: <l.list.example>",
        "List-Unsubscribe: <https://list.example/u>",
        "Return-Path: <>",
        "Return-Path: <owner-l@list.example>",
        "Return-Path: <l-request@list.example>",
        "Return-Path: <MAILER-DAEMON@mx.example>",
    ],
)
def test_programs_lists_and_notices_get_no_automatic_reply(field: str) -> None:
    assert unanswerable(f"From: a@b.example\r\n{field}\r\nSubject: x\r\n\r\n".encode())


@pytest.mark.parametrize(
    "field",
    [
        "Auto-Submitted: no",
        "Auto-Submitted: No (a person)",
        "Auto-Submitted:",
        "Precedence: first-class",
        "List-Of-Things: a",
        "X-List-Id: a",
        "Return-Path: <ann@owner-occupied.example>",
        "Subject: Auto-Submitted: auto-replied",
    ],
)
def test_people_do(field: str) -> None:
    assert unanswerable(f"From: a@b.example\r\n{field}\r\n\r\n".encode()) == ""


@given(st.binary(max_size=500))
def test_any_octets_have_an_answer(octets: bytes) -> None:
    assert isinstance(unanswerable(octets), str)
    assert isinstance(says_automatic(octets), bool)


def test_hostile_values_take_linear_time() -> None:
    assert says_automatic(b"(" * 5_000_000)
    assert unanswerable(b"Return-Path: " + b"-request" * 500_000 + b"\r\n") == ""
