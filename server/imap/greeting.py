"""The commands that any state allows, and ENABLE: who are we, what can we do, goodbye.

RFC 9051 6.1, RFC 2971 (ID), RFC 5161 (ENABLE).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.imap import format as wire
from server.imap.answer import Completion
from server.imap.machine import ENABLED, State

if TYPE_CHECKING:
    from server.imap import commands as c
    from server.imap.session import Session

NAME = b"Mailagents"


def banner(session: Session) -> bytes:
    """Return the greeting of a new connection."""
    return b"* OK [CAPABILITY %b] %b ready\r\n" % (session.capabilities(), NAME)


async def capability(session: Session, _command: c.Capability) -> Completion:
    """CAPABILITY."""
    session.wire.write(b"* CAPABILITY %b\r\n" % session.capabilities())
    return Completion("CAPABILITY done")


async def noop(_session: Session, _command: c.Noop | c.Check) -> Completion:
    """NOOP and CHECK: what changed is told behind every command anyway."""
    return Completion("Done")


async def logout(session: Session, _command: c.Logout) -> Completion:
    """LOGOUT."""
    session.deselect()
    session.state = State.LOGOUT
    session.wire.write(b"* BYE Logging out\r\n")
    return Completion("LOGOUT done")


async def identify(session: Session, _command: c.Identify) -> Completion:
    """ID: the name, and no version that would tell a stranger what to try."""
    session.wire.write(b'* ID ("name" %b)\r\n' % wire.string(NAME))
    return Completion("ID done")


async def enable(session: Session, command: c.Enable) -> Completion:
    """ENABLE: names that are unknown or need no enabling are passed over."""
    named = [name for name in dict.fromkeys(command.names) if name in ENABLED]
    if "QRESYNC" in named:
        session.qresync = True  # RFC 7162 3.2.3: and CONDSTORE with it
    session.wire.write(b"* ENABLED%b\r\n" % "".join(f" {name}" for name in named).encode())
    return Completion("ENABLE done")
