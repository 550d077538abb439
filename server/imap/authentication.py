"""STARTTLS, AUTHENTICATE and LOGIN.

Owns the SASL dialogues PLAIN and LOGIN, the delay and the count of failures,
and the refusal of plaintext that was sent behind STARTTLS. Checks no password
itself: login does. RFC 9051 6.2, RFC 4616 (PLAIN), 4959 (SASL-IR), 5530 3.
"""

from __future__ import annotations

import asyncio
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from typing import TYPE_CHECKING

from server.imap.answer import Completion, Disconnected, Failed, of_refusal
from server.imap.limits import LINE_OCTETS, LOGIN_FAILURES
from server.imap.machine import Security, State
from server.refusal import Refusal

if TYPE_CHECKING:
    from server.imap import commands as c
    from server.imap.session import Session

_PRIVACY = "Start TLS first"


async def start_tls(session: Session, _command: c.StartTls) -> Completion:
    """STARTTLS, up to its tagged response; the session begins TLS behind that."""
    if session.wire.security is Security.TLS:
        raise Failed("TLS is on already", status=b"BAD")
    if session.services.tls_context() is None:
        raise Failed("TLS is not available", status=b"BAD")
    if session.wire.discard_input():
        # RFC 9051 6.2.1: whoever wrote it, it was not written under TLS.
        session.state = State.LOGOUT
        session.wire.write(b"* BYE Plaintext behind STARTTLS\r\n")
        raise Failed("Nothing may follow STARTTLS before TLS is on", status=b"BAD")
    return Completion("Begin TLS")


async def log_in(session: Session, command: c.Login) -> Completion:
    """LOGIN."""
    if session.wire.security is not Security.TLS:
        raise Failed(_PRIVACY, code=b"[PRIVACYREQUIRED]")
    return await _check(session, command.user, command.password)


async def authenticate(session: Session, command: c.Authenticate) -> Completion:
    """AUTHENTICATE."""
    if session.wire.security is not Security.TLS:
        raise Failed(_PRIVACY, code=b"[PRIVACYREQUIRED]")
    if command.mechanism == "PLAIN":
        user, password = await _plain(session, command.initial)
    elif command.mechanism == "LOGIN":
        user, password = await _login(session, command.initial)
    else:
        raise Failed("Mechanism is not supported", code=b"[CANNOT]")
    return await _check(session, user, password)


async def _plain(session: Session, initial: bytes | None) -> tuple[bytes, bytes]:
    message = await _answer(session, b"") if initial is None else _decoded(initial)
    parts = message.split(b"\0")
    if len(parts) != 3 or not parts[1]:
        raise Failed("Not a PLAIN message", status=b"BAD")
    # RFC 4616 2: to act for somebody else is for administrators, and there are none here.
    if parts[0] not in (b"", parts[1]):
        raise Failed("Acting for another user is not allowed", code=b"[AUTHORIZATIONFAILED]")
    return parts[1], parts[2]


async def _login(session: Session, initial: bytes | None) -> tuple[bytes, bytes]:
    user = await _answer(session, b"Username:") if initial is None else _decoded(initial)
    return user, await _answer(session, b"Password:")


async def _answer(session: Session, challenge: bytes) -> bytes:
    session.wire.write(b"+ " + b2a_base64(challenge, newline=False) + b"\r\n")
    line = await session.wire.line(LINE_OCTETS)
    if line == b"*":
        raise Failed("Authentication cancelled", status=b"BAD")
    return _decoded(line)


def _decoded(line: bytes) -> bytes:
    try:
        if len(line) <= LINE_OCTETS:
            return a2b_base64(line, strict_mode=True) if line else b""
    except Base64Error:
        pass
    raise Failed("Not base64", status=b"BAD")


async def _check(session: Session, user: bytes, password: bytes) -> Completion:
    services = session.services
    try:
        identity = await services.login.check(
            protocol="imap",
            user=user.decode("utf-8", "replace"),
            password=password.decode("utf-8", "replace"),
            peer=session.wire.peer_address,
        )
        if identity.mailbox_id is None:
            raise Refusal(535, "5.7.8", "This login has no inbox")
    except Refusal as refusal:
        return await _failed(session, refusal)
    session.identity = identity
    session.state = State.AUTHENTICATED
    if not session.wire.logged_in():
        session.state = State.NOT_AUTHENTICATED
        raise Failed("Too many connections of this user", code=b"[LIMIT]")
    return Completion("Logged in", code=b"[CAPABILITY %b]" % session.capabilities())


async def _failed(session: Session, refusal: Refusal) -> Completion:
    session.failures += 1
    await asyncio.sleep(session.services.bounds.failure_delay_seconds)
    completion = of_refusal(refusal)
    if session.failures >= LOGIN_FAILURES:
        session.wire.write(b"* BYE Too many failed logins\r\n")
        session.wire.close()
        raise Disconnected
    return completion
