"""What each SMTP command does to a session: order, policy, transaction.

Owns the sequence rules and the talk with intake and login. A handler answers at
once, or returns the step that will; it refuses by raising Refusal.
RFC 5321 3.1 to 3.8 and 4.1.4, 3030 (BDAT), 3207 (STARTTLS), 4865, 4954 (AUTH), 6409.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog

from server.arrival import Arrival
from server.login import HOST, KEY_MARK
from server.refusal import Refusal
from server.smtp import door as doors
from server.smtp import grammar, lmtp, replies, xclient
from server.smtp.data import ChunkReader, DataReader, LineEnds
from server.smtp.sasl import Asks, Credentials, Exchange, Proof, Token
from server.smtp.steps import Phase
from storage.errors import Full
from storage.records import Envelope

if TYPE_CHECKING:
    from server.login import Identity
    from server.smtp.sasl import Outcome
    from server.smtp.session import Session
    from server.smtp.steps import Step

log = structlog.get_logger("smtp")


def is_foreign(line: bytes) -> bool:
    """Return whether a line opens another protocol's request, as from a misled browser."""
    return line.partition(b" ")[0].upper() in grammar.FOREIGN


async def greet(session: Session) -> None:
    """Ask intake about the connection and send the greeting."""
    server = session.server
    try:
        session.is_stranger = session.door is doors.MX and server.strangers.counts(session.peer.address)
        if session.is_stranger:
            await _meet(session)
        if not lmtp.is_vouched(session):
            await server.intake.connected(session.peer, source=session.door.source)
    except Refusal as refusal:
        session.refusal = refusal
        session.refuse(refusal)
        return
    session.reply(server.greeting_lmtp if session.door.lmtp else server.greeting)


async def _meet(session: Session) -> None:
    """Count a stranger's connection and see whether it waits for the greeting; raises Refusal."""
    strangers, address = session.server.strangers, session.peer.address
    strangers.connect(address)
    delay = strangers.greeting_delay(address)
    if not delay or session.server.is_crowded:
        return
    await session.pause(delay)
    if session.server.is_draining:
        raise Refusal(421, "4.3.2", "Service is stopping, try again later")
    if session.has_input:
        raise strangers.spoke_early()
    if session.is_waiting:
        strangers.waited(address)


def _check_greeted(session: Session) -> None:
    if session.refusal is not None:
        # RFC 5321 3.1: after a 554 greeting, 503 to all but QUIT.
        raise Refusal(503, "5.5.1", "The connection was refused; send QUIT")


def _check_idle(session: Session) -> None:
    """Count a command that moves no mail."""
    _check_greeted(session)
    session.idle_commands += 1
    if session.idle_commands > session.server.settings.max_idle_commands:
        raise Refusal(421, "4.7.0", "Too many commands without mail, closing the connection")


def _hello(session: Session, command: grammar.Hello) -> Step:
    if command.lmtp != session.door.lmtp:
        raise grammar.unrecognized()  # RFC 2033 4.1: LHLO alone, and here alone
    _check_idle(session)
    return _take_hello(session, command)


async def _take_hello(session: Session, command: grammar.Hello) -> None:
    peer = replace(session.peer, helo=command.name, extended=command.extended)
    try:
        if not lmtp.is_vouched(session):
            await session.server.intake.helo(peer, source=session.door.source)
    except Refusal as refusal:
        if refusal.code == 421:
            raise
        session.reply(replies.bare(refusal))
        return
    session.peer = peer
    await _drop_transaction(session)
    if session.door.needs_login and session.identity is None:
        await _recognise(session)
    reply = session.server.hello_extended(session) if command.extended else session.server.hello_plain
    session.reply(reply)


async def _recognise(session: Session) -> None:
    """Let a host of this house submit as the inbox that the configuration names for it."""
    address = session.server.submits_as(session.client_address)
    identity = await session.server.login.vouched(address) if address else None
    if identity is not None:
        session.identity = identity
        session.peer = replace(session.peer, identity=identity.id)


async def _drop_transaction(session: Session) -> None:
    body = session.body
    session.reset()
    if body is not None:
        await body.discard()


def _check_login(session: Session) -> None:
    if session.door.needs_login and session.identity is None:
        if session.peer.tls_version is None:
            raise Refusal(530, "5.7.0", "Must issue a STARTTLS command first")
        raise Refusal(530, "5.7.0", "Authentication required")


def _mail(session: Session, command: grammar.Mail) -> Step:
    _check_greeted(session)
    if not session.peer.helo:
        raise Refusal(503, "5.5.1", "Send LHLO first" if session.door.lmtp else "Send EHLO or HELO first")
    _check_login(session)
    if session.transaction is not None:
        raise Refusal(503, "5.5.1", "A transaction is under way; send RSET first")
    declared = command.declared_octets
    if declared is not None and declared > session.server.settings.max_message_octets:
        raise Refusal(552, "5.3.4", "Message size exceeds the fixed maximum")
    if command.hold_seconds is not None or command.envelope.hold_until is not None:
        command = replace(command, envelope=_held(session, command))
    return _take_mail(session, command)


def _held(session: Session, command: grammar.Mail) -> Envelope:
    """Return the envelope with the time of its release; raises Refusal (RFC 4865 4)."""
    now = session.server.clock.now()
    until = command.envelope.hold_until
    if until is None:
        until = now + (command.hold_seconds or 0) * 1_000_000
    if until > now + session.server.settings.max_hold_seconds * 1_000_000:
        raise Refusal(501, "5.5.4", "The hold is longer than FUTURERELEASE allows")
    if until < now:
        raise Refusal(501, "5.5.4", "The time of HOLDUNTIL has passed")
    return replace(command.envelope, hold_until=until)


async def _take_mail(session: Session, command: grammar.Mail) -> None:
    envelope = command.envelope
    if session.is_stranger:
        session.server.strangers.message(session.peer.address)
    try:
        await session.server.intake.sender(
            session.peer, session.identity, envelope, command.declared_octets, source=session.door.source
        )
    except Refusal as refusal:
        _count_refused(session, refusal)
        raise
    session.transaction = envelope
    session.has_refused = False
    if envelope.smtputf8:
        session.dialect = doors.widened(session.dialect)
    session.reply(replies.SENDER_OK)


def _count_refused(session: Session, refusal: Refusal) -> None:
    """Count a refused sender or recipient; raises Refusal 421 at one too many."""
    if lmtp.is_vouched(session):
        return  # a host of this house harvests nothing
    session.refused_recipients += 1
    if session.refused_recipients >= session.server.settings.max_refused_recipients:
        raise Refusal(421, "4.7.0", "Too many refused recipients", refusal.cause) from None


def _rcpt(session: Session, command: grammar.Rcpt) -> Step | None:
    _check_greeted(session)
    envelope = session.transaction
    if envelope is None:
        raise Refusal(503, "5.5.1", "Send MAIL first")
    if session.reader is not None:
        raise Refusal(503, "5.5.1", "No recipients once BDAT has begun")
    if len(envelope.recipients) >= session.server.settings.max_recipients:
        session.reply(replies.TOO_MANY_RECIPIENTS)
        return None
    return _take_rcpt(session, command, envelope)


async def _take_rcpt(session: Session, command: grammar.Rcpt, envelope: Envelope) -> None:
    recipient = command.recipient
    if session.is_stranger:
        session.server.strangers.recipient(session.peer.address)
    try:
        await session.server.intake.recipient(
            session.peer, session.identity, envelope, recipient, source=session.door.source
        )
    except Refusal as refusal:
        session.has_refused = True
        if session.is_stranger and refusal.enhanced == "5.1.1":
            delay = session.server.strangers.unknown_recipient(session.peer.address)
            if delay and not session.server.is_crowded:
                await session.pause(delay)
        _count_refused(session, refusal)
        raise
    session.transaction = Envelope(
        envelope.reverse_path,
        (*envelope.recipients, recipient),
        envelope.body,
        envelope.smtputf8,
        envelope.ret,
        envelope.envid,
        envelope.require_tls,
        envelope.hold_until,
    )
    session.reply(replies.RECIPIENT_OK)


def _check_content(session: Session) -> None:
    """Raise Refusal unless content may come now."""
    _check_greeted(session)
    if session.transaction is None:
        raise Refusal(503, "5.5.1", "Send MAIL first")
    if not session.transaction.recipients:
        if session.has_refused and not session.door.lmtp:  # RFC 2033 4.2: there it is 503
            raise Refusal(554, "5.5.1", "No valid recipients")
        raise Refusal(503, "5.5.1", "Send RCPT first")


def _data(session: Session, _command: grammar.Data) -> None:
    _check_content(session)
    if session.reader is not None:
        raise Refusal(503, "5.5.1", "BDAT has begun; DATA cannot follow")  # RFC 3030 2
    assert session.transaction is not None
    if session.transaction.body == "BINARYMIME":
        raise Refusal(503, "5.5.1", "BODY=BINARYMIME needs BDAT")  # RFC 3030 3
    session.begin_content(DataReader(session.server.limits, session.server.line_ends(session.peer)))
    session.reply(replies.GO_AHEAD)


def _bdat(session: Session, command: grammar.Bdat) -> None:
    if command.octets > session.server.patience_octets:
        raise Refusal(552, "5.3.4", "Message size exceeds the fixed maximum")
    if command.octets == 0 and not command.last:
        _check_idle(session)
    reader = session.reader
    if not isinstance(reader, ChunkReader):
        reader = ChunkReader(session.server.limits, _line_ends(session))
        try:
            _check_content(session)
        except Refusal as refusal:
            if session.count_error():
                raise Refusal(421, "4.7.0", "Too many errors, closing the connection") from None
            # The octets come whatever we answer; they are read and dropped (RFC 3030 4.2).
            reader.inspection.fault = refusal
    elif reader.fault is not None:
        reader.inspection.fault = Refusal(503, "5.5.1", "An earlier chunk was refused; send RSET")
    session.begin_content(reader)
    content = reader.open(command.octets, last=command.last)
    if content and session.body is not None:
        session.body.add(content)


def _line_ends(session: Session) -> LineEnds:
    if session.transaction is not None and session.transaction.body == "BINARYMIME":
        return LineEnds.BINARY
    return session.server.line_ends(session.peer)


def end_content(session: Session) -> Step | None:
    """Answer the end of DATA or of one BDAT chunk."""
    reader = session.reader
    assert reader is not None
    if reader.ended:
        return _take_message(session)
    fault = reader.fault
    if fault is None:
        session.reply(replies.reply(250, "2.0.0", f"{reader.received} octets received"))
        return None
    session.refuse(fault)
    if session.transaction is None or not session.transaction.recipients:
        session.reader = session.body = None
    return None


async def _take_message(session: Session) -> None:
    """Hand a complete message to intake; 250 only when it took it."""
    reader, body, envelope = session.reader, session.body, session.transaction
    assert reader is not None
    assert body is not None
    try:
        if reader.fault is not None:
            raise reader.fault
        assert envelope is not None
        content = await body.finish()
        arrival = Arrival(session.door.source, session.peer, envelope, content, session.identity)
        if session.door.lmtp:
            answers = await lmtp.take(session, arrival)
        else:
            answers = replies.taken((await session.server.intake.accept(arrival)).message_ids)
    except Refusal as refusal:
        lmtp.refuse_message(session, refusal)
        await body.discard()
    except Full:
        session.reply(replies.NO_ROOM * lmtp.answers_owed(session))
        await body.discard()
    except Exception:
        # The file stays: what failed may have failed behind the commit, and recovery tells.
        log.exception("message not taken in", session=session.number)
        session.reply(replies.BROKEN * lmtp.answers_owed(session))
    else:
        session.idle_commands = 0
        session.refused_recipients = 0
        session.reply(answers)
    finally:
        body.release()
        session.reset()
        session.useful_at = session.server.clock.monotonic()


def _rset(session: Session, _command: grammar.Rset) -> Step | None:
    _check_idle(session)
    if session.body is not None:
        return _reset(session)
    session.reset()
    session.reply(replies.OK)
    return None


async def _reset(session: Session) -> None:
    await _drop_transaction(session)
    session.reply(replies.OK)


def _noop(session: Session, _command: grammar.Noop) -> None:
    _check_idle(session)
    session.reply(replies.OK)


def _help(session: Session, _command: grammar.Help) -> None:
    _check_idle(session)
    session.reply(replies.HELP_LMTP if session.door.lmtp else replies.HELP)


def _vrfy(session: Session, _command: grammar.Vrfy) -> None:
    _check_idle(session)
    _check_login(session)
    session.reply(replies.NOT_VERIFIED)  # RFC 5321 3.5.3


def _expn(session: Session, _command: grammar.Expn) -> None:
    _check_idle(session)
    raise Refusal(550, "5.7.1", "EXPN is not allowed here")


def _quit(session: Session, _command: grammar.Quit) -> Step | None:
    session.reply(replies.BYE)
    session.close()
    return _drop_transaction(session) if session.body is not None else None


def _starttls(session: Session, _command: grammar.StartTls) -> Step | None:
    _check_greeted(session)
    if session.peer.tls_version is not None:
        raise Refusal(503, "5.5.1", "TLS is active already")
    if session.server.tls_context() is None:
        raise Refusal(502, "5.5.1", "Command not implemented")
    if session.body is not None:
        raise Refusal(503, "5.5.1", "BDAT has begun; send RSET first")
    if session.has_input:
        # RFC 3207 4.2: octets behind STARTTLS were put there by someone else; none is ever read.
        session.reply(replies.INJECTED)
        session.close()
        return None
    return session.begin_tls()


def _auth(session: Session, command: grammar.Auth) -> Step | None:
    _check_greeted(session)
    if not session.door.needs_login:
        raise Refusal(502, "5.5.1", "Command not implemented")
    if session.peer.tls_version is None:
        raise Refusal(538, "5.7.11", "Encryption required for authentication")
    if not session.peer.extended:
        raise Refusal(503, "5.5.1", "Send EHLO first")
    if session.identity is not None and session.identity.kind != HOST:
        raise Refusal(503, "5.5.1", "Authenticated already")
    if session.transaction is not None:
        raise Refusal(503, "5.5.1", "A transaction is under way")  # RFC 4954 4
    return session.begin_exchange(Exchange(command.mechanism), command.initial)


def continue_exchange(session: Session, outcome: Outcome) -> Step | None:
    """Go on with an AUTH dialogue: ask further, or check what was shown."""
    session.phase = Phase.AUTH
    if isinstance(outcome, bytes):
        session.reply(replies.challenge(outcome))
        return None
    if isinstance(outcome, Asks):
        return ask_scram(session, outcome.user)
    if isinstance(outcome, Token):
        return take_token(session, outcome)
    session.end_exchange()
    return log_in(session, outcome)


async def ask_scram(session: Session, user: str) -> None:
    """Challenge a SCRAM client with its keys, or with made-up ones."""
    exchange = session.exchange
    assert exchange is not None
    try:
        keys = await session.server.login.scram_keys(user, peer=session.peer.address)
    except BaseException:
        session.end_exchange()
        raise
    session.reply(replies.challenge(exchange.challenge(keys, secrets.token_urlsafe(18))))


async def take_token(session: Session, token: Token) -> None:
    """Check a bearer token, which is an API key; a refused one ends by another round (RFC 7628 3.2.2)."""
    exchange = session.exchange
    assert exchange is not None
    # What is no key must not be tried as a password.
    key = token.password if token.password.startswith(KEY_MARK) else KEY_MARK + token.password
    try:
        identity = await _check(session, Credentials(token.user, key))
    except Refusal as refusal:
        session.login_failures += 1
        if refusal.code == 535 and session.login_failures < session.server.settings.max_login_failures:
            session.reply(replies.challenge(exchange.token_refused()))
            return
        session.end_exchange()
        _login_failed(session, refusal)
        return
    except BaseException:
        session.end_exchange()
        raise
    session.end_exchange()
    _logged_in(session, identity)


async def _check(session: Session, shown: Credentials | Proof) -> Identity:
    login, peer = session.server.login, session.peer.address
    if isinstance(shown, Proof):
        return await login.scram(
            protocol="smtp", user=shown.user, credential_id=shown.credential_id, peer=peer
        )
    return await login.check(protocol="smtp", user=shown.user, password=shown.password, peer=peer)


async def log_in(session: Session, shown: Credentials | Proof) -> None:
    """Check credentials; a client that fails too often is sent away."""
    try:
        identity = await _check(session, shown)
    except Refusal as refusal:
        session.login_failures += 1
        _login_failed(session, refusal)
        return
    _logged_in(session, identity)


def _login_failed(session: Session, refusal: Refusal) -> None:
    session.refuse(refusal)
    if session.login_failures >= session.server.settings.max_login_failures:
        session.reply(replies.TOO_MANY_ERRORS)
        session.close()


def _logged_in(session: Session, identity: Identity) -> None:
    session.identity = identity
    session.peer = replace(session.peer, identity=identity.id)
    session.reply(replies.AUTHENTICATED)


def _xclient(session: Session, command: grammar.Xclient) -> Step:
    if not session.server.may_stand_for_others(session):
        raise grammar.unrecognized()
    if session.transaction is not None:
        raise Refusal(503, "5.5.1", "A transaction is under way")
    session.peer = xclient.apply(session.peer, command.argument)
    session.refusal = None
    session.reset()
    # Postfix's XCLIENT_README: the session begins anew with the greeting.
    return greet(session)


# Their steps, and the greeting, mostly wait for nothing and are begun at once, outside a task: before
# its first wait such a step may use nothing that needs one (asyncio.timeout).
PROMPT = frozenset({grammar.Hello, grammar.Mail, grammar.Rcpt})

HANDLERS: dict[type[Any], Callable[[Session, Any], Step | None]] = {
    grammar.Hello: _hello,
    grammar.Mail: _mail,
    grammar.Rcpt: _rcpt,
    grammar.Data: _data,
    grammar.Bdat: _bdat,
    grammar.Rset: _rset,
    grammar.Noop: _noop,
    grammar.Help: _help,
    grammar.Vrfy: _vrfy,
    grammar.Expn: _expn,
    grammar.Quit: _quit,
    grammar.StartTls: _starttls,
    grammar.Auth: _auth,
    grammar.Xclient: _xclient,
}
