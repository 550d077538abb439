import typing

import pytest

from server.imap import commands as c
from server.imap import machine
from server.imap.grammar import parse
from server.imap.machine import Security, State, Telling


def test_every_command_has_its_states():
    for kind in typing.get_args(c.ImapCommand):
        allowed = [state for state in State if machine._STATES[kind] & {state}]
        assert allowed and State.LOGOUT not in allowed


@pytest.mark.parametrize(
    ("line", "state", "refused"),
    [
        (b"a NOOP", State.NOT_AUTHENTICATED, False),
        (b"a SELECT x", State.NOT_AUTHENTICATED, True),
        (b"a LOGIN x y", State.AUTHENTICATED, True),
        (b"a STARTTLS", State.SELECTED, True),
        (b"a FETCH 1 FLAGS", State.AUTHENTICATED, True),
        (b"a FETCH 1 FLAGS", State.SELECTED, False),
        (b"a IDLE", State.AUTHENTICATED, False),
        (b"a NOOP", State.LOGOUT, True),
    ],
)
def test_command_out_of_place_is_refused(line, state, refused):
    assert (machine.refusal(parse(line).command, state) is not None) is refused


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        (b"a FETCH 1 FLAGS", Telling.NO_EXPUNGE),
        (b"a STORE 1 FLAGS ()", Telling.NO_EXPUNGE),
        (b"a SEARCH ALL", Telling.NO_EXPUNGE),
        (b"a UID FETCH 1 FLAGS", Telling.ALL),
        (b"a COPY 1 x", Telling.ALL),
        (b"a NOOP", Telling.ALL),
        (b"a CLOSE", Telling.NOTHING),
        (b"a SELECT x", Telling.NOTHING),
    ],
)
def test_expunge_is_told_only_when_numbers_may_move(line, allowed):
    assert machine.telling(parse(line).command) is allowed


@pytest.mark.parametrize(
    ("line", "enables"),
    [
        (b"a SELECT x (CONDSTORE)", True),
        (b"a SELECT x", False),
        (b"a STATUS x (HIGHESTMODSEQ)", True),
        (b"a FETCH 1 (MODSEQ)", True),
        (b"a FETCH 1 FLAGS (CHANGEDSINCE 1)", True),
        (b"a STORE 1 (UNCHANGEDSINCE 1) FLAGS ()", True),
        (b"a SEARCH OR SEEN NOT MODSEQ 3", True),
        (b"a SEARCH SEEN", False),
        (b"a ENABLE QRESYNC", True),
        (b"a ENABLE X", False),
        (b"a NOOP", False),
    ],
)
def test_condstore_is_enabled_by_what_asks_for_it(line, enables):
    assert machine.condstore_enabling(parse(line).command) is enables


def test_passwords_are_offered_only_under_tls():
    plain = machine.capabilities(State.NOT_AUTHENTICATED, Security.PLAIN, append_octets=1).split()
    secure = machine.capabilities(State.NOT_AUTHENTICATED, Security.TLS, append_octets=1).split()
    inside = machine.capabilities(State.AUTHENTICATED, Security.TLS, append_octets=5).split()
    assert b"LOGINDISABLED" in plain and b"STARTTLS" in plain and b"AUTH=PLAIN" not in plain
    assert b"AUTH=PLAIN" in secure and b"STARTTLS" not in secure
    assert b"APPENDLIMIT=5" in inside and b"AUTH=PLAIN" not in inside
