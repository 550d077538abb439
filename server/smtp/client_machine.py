"""The client's side of one SMTP or LMTP connection as a machine without I/O.

Owns which command is sent when, what each reply means for which recipient, and
whether the connection can carry another message. Octets go in by `receive`,
come out by `take`; the connection waits for `state` to change. Converts no
content and knows no deadline. RFC 5321, 2920 (PIPELINING), 1870 (SIZE), 6152
(8BITMIME), 3030 (CHUNKING), 6531 (SMTPUTF8), 3461 (DSN), 3207 (STARTTLS), 4954 (AUTH), 8689
(REQUIRETLS), 2033 (LMTP).
"""

from __future__ import annotations

from base64 import b64encode
from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from server.smtp.client_reply import Extensions, Reply, ReplyReader, ReplySyntax, read_extensions
from storage.records import Recipient

DIALOGUE_CHARACTERS = 3000
LINE_CHARACTERS = 300
OPENING_LINES = 20
SAID_LINES = 400


class Dialect(Enum):
    """What is spoken: SMTP, or LMTP with a reply for each recipient after the final dot."""

    SMTP = "EHLO"
    LMTP = "LHLO"


class TlsUse(Enum):
    """Whether STARTTLS is used when offered, or passed over."""

    OPPORTUNISTIC = "opportunistic"
    NONE = "none"


class State(Enum):
    """Where the connection stands; the last four are where the machine waits for its owner."""

    GREETING = "greeting"
    EHLO = "ehlo"
    STARTTLS = "starttls"
    LOGIN = "login"
    ENVELOPE = "envelope"
    CONTENT = "content"
    FINAL = "final"
    HANDSHAKE = "handshake"  # run the TLS handshake, then call secured()
    READY = "ready"  # call begin() with the next transaction, or quit()
    SEND = "send"  # send the content of `accepted` recipients, then call content_sent()
    CLOSED = "closed"


WAITING = frozenset({State.HANDSHAKE, State.READY, State.SEND, State.CLOSED})


@dataclass(frozen=True, slots=True)
class Transaction:
    """One message to one host. octets: its size with CRLF line ends; eight_bit: any octet over 127.

    utf8_header: the header has such octets, which only SMTPUTF8 allows (RFC 6532). require_tls: it goes
    only where TLS protects it and REQUIRETLS is announced (RFC 8689). chunked: by BDAT where it is offered.
    """

    reverse_path: str | None
    recipients: tuple[Recipient, ...]
    octets: int
    eight_bit: bool = False
    utf8_header: bool = False
    ret: str | None = None
    envid: str | None = None
    require_tls: bool = False
    chunked: bool = False


@dataclass(frozen=True, slots=True)
class Credentials:
    """What we log in to another server with; never shown."""

    user: str = field(repr=False)
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one recipient. reply: None where no reply came, then text says what did.

    phase: 'connect', 'ehlo', 'tls', 'auth', 'mail', 'rcpt', 'data', 'final' or 'policy' (found before).
    """

    phase: str
    reply: Reply | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class _Expected:
    command: str
    index: int = -1


class Machine:
    """One connection's dialogue, from greeting to end."""

    def __init__(
        self,
        *,
        hostname: str,
        dialect: Dialect,
        tls: TlsUse,
        secure: bool = False,
        login: Credentials | None = None,
    ) -> None:
        self.state = State.GREETING
        self.extensions = Extensions()
        self.secure = secure
        self.chunking = False
        self.greeting_name = ""
        self.failure: Answer | None = None
        self.accepted: tuple[int, ...] = ()
        self.transactions = 0
        self._hostname = hostname
        self._dialect = dialect
        self._tls = tls
        self._login = login
        self._reader = ReplyReader()
        self._outgoing = bytearray()
        self._expected: deque[_Expected] = deque((_Expected("GREETING"),))
        self._commands: deque[tuple[_Expected, str]] = deque()
        self._answers: list[Answer | None] = []
        self._steps: list[str] = []
        self._opening: list[str] = []  # what was said before the first transaction
        self._said: list[tuple[int, str]] = []  # of the transaction, each with the recipient it is about
        self._dirty = False

    @property
    def answers(self) -> tuple[Answer, ...]:
        """What became of each recipient of the transaction, in order; open ones got what closed us."""
        open_answer = self.failure or Answer("final", None, "the transaction has no end yet")
        return tuple(answer or open_answer for answer in self._answers)

    @property
    def phase(self) -> str:
        """Where the dialogue stands, in an outcome's word."""
        if self._expected:
            return _PHASES[self._expected[0].command]
        if self.state is State.HANDSHAKE:
            return "tls"
        return "data" if self.state in (State.SEND, State.CONTENT) else "connect"

    def dialogue(self, index: int = -1) -> tuple[str, ...]:
        """Return what was said, as it concerns one recipient: 'C: …' by us, 'S: …' by the server.

        DIALOGUE_CHARACTERS at most; logins and content are never in it. index: -1 for nobody's alone.
        """
        said = [*self._opening, *(line for about, line in self._said if about in (-1, index))]
        kept: list[str] = []
        room = DIALOGUE_CHARACTERS
        for line in reversed(said):  # how it ended tells most
            room -= len(line) + 1
            if room < 0:
                kept.append("…")
                break
            kept.append(line)
        return tuple(reversed(kept))

    def _note(self, index: int, line: str) -> None:
        if not self.transactions:
            if len(self._opening) < OPENING_LINES:
                self._opening.append(line[:LINE_CHARACTERS])
        elif len(self._said) < SAID_LINES:
            self._said.append((index, line[:LINE_CHARACTERS]))

    def take(self) -> bytes:
        """Return what is to be sent now, once."""
        octets = bytes(self._outgoing)
        self._outgoing.clear()
        return octets

    def receive(self, data: bytes) -> None:
        """Take octets from the server; what they break is in `failure`, never raised."""
        try:
            for reply in self._reader.feed(data):
                if self.state is State.CLOSED:
                    return
                self._take(reply)
        except ReplySyntax as error:
            if self.state is not State.HANDSHAKE:
                self.fail(str(error))
            else:
                self._injected()
        if self.state is State.HANDSHAKE and self._reader.pending:
            self._injected()

    def fail(self, text: str, reply: Reply | None = None) -> None:
        """Close: the open recipients get this answer in the present phase. The first failure stays."""
        if self.state is State.CLOSED:
            return
        self.failure = Answer(self.phase, reply, text)
        if reply is None:
            self._note(-1, f"({text})")
        self.state = State.CLOSED
        self._outgoing.clear()

    def secured(self) -> None:
        """Go on after the TLS handshake: what was announced before it is forgotten (RFC 3207 4.2)."""
        assert self.state is State.HANDSHAKE
        self.secure = True
        self.extensions = Extensions()
        self._greet(self._dialect.value)

    def begin(self, transaction: Transaction) -> None:
        """Send the envelope; the state becomes SEND, READY (nobody took it) or CLOSED.

        What the server's extensions forbid is answered at once, in phase 'policy', and nothing is sent.
        """
        assert self.state is State.READY
        self.transactions += 1
        self.accepted = ()
        self._said.clear()
        obstacle = find_obstacle(self.extensions, transaction, secure=self.secure)
        self._answers = [obstacle for _ in transaction.recipients]
        if obstacle is not None:
            return
        self.state = State.ENVELOPE
        if self._dirty:
            self._commands.append((_Expected("RSET"), "RSET"))
        self._commands.append((_Expected("MAIL"), _mail(self.extensions, transaction)))
        for index, recipient in enumerate(transaction.recipients):
            self._commands.append((_Expected("RCPT", index), _rcpt(self.extensions, recipient)))
        self.chunking = transaction.chunked and "CHUNKING" in self.extensions
        if not self.chunking:
            self._commands.append((_Expected("DATA"), "DATA"))
        self._dirty = True
        self._send_commands()

    def sending(self) -> None:
        """Say that content is being written: a reply from now on is one before its time."""
        assert self.state is State.SEND
        self.state = State.CONTENT

    def content_sent(self) -> None:
        """Say that all of the content is written: await the reply, or one a recipient in LMTP."""
        if self.state is not State.CONTENT:
            return
        self._note(-1, "C: (the message)")
        self.state = State.FINAL
        if self._dialect is Dialect.LMTP:
            # RFC 2033 4.2: one reply for each RCPT that was taken, in their order.
            self._expected.extend(_Expected("FINAL", index) for index in self.accepted)
        else:
            self._expected.append(_Expected("FINAL"))

    def quit(self) -> None:
        """Say goodbye without waiting for the answer."""
        if self.state is State.READY:
            self._outgoing += b"QUIT\r\n"
        self.state = State.CLOSED

    def _take(self, reply: Reply) -> None:
        if not self._expected:
            self._note(-1, _told(reply))
            self._unasked(reply)
            return
        expected = self._expected[0]
        self._note(expected.index, _told(reply))
        if reply.code == 421:
            # RFC 5321 3.8: the server closes the channel, whatever was asked.
            self.fail(reply.text, reply)
            return
        handle = self._HANDLERS[expected.command]
        handle(self, reply, expected)
        if self.state is State.CLOSED:
            return
        self._expected.popleft()
        self._advance()

    def _advance(self) -> None:
        if self.state is State.ENVELOPE:
            self._send_commands()
            if self.chunking and not self._commands and not self._expected:
                # RFC 3030 2: BDAT takes DATA's place, once it is known that somebody takes the message.
                self.state = State.SEND if self.accepted else State.READY
        if self.state is State.FINAL and not self._expected:
            self.state = State.READY

    def _unasked(self, reply: Reply) -> None:
        if self.state is State.HANDSHAKE:
            self._injected()
        elif self.state in (State.SEND, State.CONTENT) and reply.code >= 400:
            # The verdict came before the final dot: it stands, and the connection is of no more use.
            self.fail(reply.text, reply)
        elif reply.code == 421:
            self.fail(reply.text, reply)
        else:
            self.fail(f"a reply that nothing asked for: {reply.code} {reply.text}")

    def _injected(self) -> None:
        # RFC 3207 6: what came in clear behind STARTTLS's reply would be read as if it were protected.
        self.fail("octets in clear behind the reply to STARTTLS")

    def _greet(self, verb: str) -> None:
        self.state = State.EHLO
        self._send(_Expected(verb), f"{verb} {self._hostname}")

    def _send(self, expected: _Expected, line: str) -> None:
        self._expected.append(expected)
        self._outgoing += line.encode("utf-8") + b"\r\n"
        self._note(expected.index, "C: " + (line if expected.command != "AUTH" else _hidden(line)))

    def _send_commands(self) -> None:
        # RFC 2920 3.1: RSET, MAIL and RCPT go together, and DATA may end the group.
        together = "PIPELINING" in self.extensions
        while self._commands and (together or not self._expected):
            expected, line = self._commands.popleft()
            if expected.command == "DATA" and not together and not self.accepted:
                self._commands.clear()
                self.state = State.READY
                return
            self._send(expected, line)

    def _on_greeting(self, reply: Reply, _expected: _Expected) -> None:
        if reply.code != 220:
            self.fail(reply.text, reply)
        else:
            self.greeting_name = reply.text.partition(" ")[0].lower()
            self._greet(self._dialect.value)

    def _on_ehlo(self, reply: Reply, _expected: _Expected) -> None:
        if reply.code == 250:
            self.extensions = read_extensions(reply)
            self._greeted()
        elif reply.code >= 500 and self._dialect is Dialect.SMTP and not self.secure:
            # RFC 5321 3.2: a server that does not know EHLO is greeted with HELO.
            self._greet("HELO")
        else:
            self.fail(reply.text, reply)

    def _on_helo(self, reply: Reply, _expected: _Expected) -> None:
        if reply.code != 250:
            self.fail(reply.text, reply)
        else:
            self._greeted()

    def _greeted(self) -> None:
        if "STARTTLS" in self.extensions and not self.secure and self._tls is TlsUse.OPPORTUNISTIC:
            self.state = State.STARTTLS
            self._send(_Expected("STARTTLS"), "STARTTLS")
        elif self._login is not None:
            self._log_in(self._login)
        else:
            self.state = State.READY

    def _log_in(self, login: Credentials) -> None:
        offered = self.extensions.keywords.get("AUTH", "").upper().split()
        self.state = State.LOGIN
        if not self.secure:
            self._give_up("the server offers no TLS, and the login is not shown in clear")
        elif "PLAIN" in offered:
            # RFC 4616 2: authorization identity, authentication identity, password.
            self._send(_Expected("AUTH"), f"AUTH PLAIN {_coded(chr(0), login.user, chr(0), login.password)}")
        elif "LOGIN" in offered:
            self._send(_Expected("AUTH"), "AUTH LOGIN")
            self._steps = [_coded(login.user), _coded(login.password)]
        else:
            self._give_up("the server offers neither PLAIN nor LOGIN to log in with")

    def _give_up(self, text: str) -> None:
        self.failure = Answer("auth", None, text)
        self.state = State.CLOSED
        self._outgoing.clear()

    def _on_auth(self, reply: Reply, _expected: _Expected) -> None:
        if reply.code == 334 and self._steps:
            self._send(_Expected("AUTH"), self._steps.pop(0))
        elif reply.code == 235:
            self.state = State.READY
        else:
            self.fail(reply.text, reply)

    def _on_starttls(self, reply: Reply, _expected: _Expected) -> None:
        if reply.code != 220:
            self.fail(reply.text, reply)
        else:
            self.state = State.HANDSHAKE

    def _on_rset(self, reply: Reply, _expected: _Expected) -> None:
        if not reply.positive:
            self.fail(reply.text, reply)

    def _on_mail(self, reply: Reply, _expected: _Expected) -> None:
        if reply.positive:
            return
        answer = Answer("mail", reply, reply.text)
        self._answers = [answer for _ in self._answers]
        if "PIPELINING" not in self.extensions:
            self._commands.clear()
            self.state = State.READY

    def _on_rcpt(self, reply: Reply, expected: _Expected) -> None:
        if self._answers[expected.index] is not None:
            return  # MAIL was refused: what RCPT says adds nothing
        if reply.positive:
            self.accepted += (expected.index,)
        else:
            self._answers[expected.index] = Answer("rcpt", reply, reply.text)

    def _on_data(self, reply: Reply, _expected: _Expected) -> None:
        if reply.code == 354 and self.accepted:
            self.state = State.SEND
        elif reply.code == 354:
            # RFC 2920 3.1: DATA went before the refusals came back: an empty message ends it.
            self._outgoing += b".\r\n"
            self.state = State.FINAL
            self._expected.append(_Expected("EMPTY"))
        elif reply.positive:
            self.fail(f"no reply to DATA: {reply.code} {reply.text}")
        else:
            self._answer_accepted(Answer("data", reply, reply.text))
            self.state = State.READY

    def _on_final(self, reply: Reply, expected: _Expected) -> None:
        answer = Answer("final", reply, reply.text)
        if expected.index >= 0:
            self._answers[expected.index] = answer
        else:
            self._answer_accepted(answer)
        # RFC 5321 4.1.1.4: the end of DATA clears the buffers, whatever was answered.
        self._dirty = False

    def _on_empty(self, reply: Reply, _expected: _Expected) -> None:
        """Pass over the reply to an empty message: each recipient has its own already."""

    def _answer_accepted(self, answer: Answer) -> None:
        for index in self.accepted:
            self._answers[index] = answer

    _HANDLERS = {  # noqa: RUF012 - a table of this class's own functions, never changed
        "GREETING": _on_greeting,
        "EHLO": _on_ehlo,
        "LHLO": _on_ehlo,
        "HELO": _on_helo,
        "STARTTLS": _on_starttls,
        "AUTH": _on_auth,
        "RSET": _on_rset,
        "MAIL": _on_mail,
        "RCPT": _on_rcpt,
        "DATA": _on_data,
        "FINAL": _on_final,
        "EMPTY": _on_empty,
    }


_PHASES = {
    "GREETING": "connect",
    "EHLO": "ehlo",
    "LHLO": "ehlo",
    "HELO": "ehlo",
    "STARTTLS": "tls",
    "AUTH": "auth",
    "RSET": "mail",
    "MAIL": "mail",
    "RCPT": "rcpt",
    "DATA": "data",
    "FINAL": "final",
    "EMPTY": "data",
}


def find_obstacle(extensions: Extensions, transaction: Transaction, *, secure: bool = False) -> Answer | None:
    """Return why a transaction cannot go to a server with these extensions, or None."""
    addresses = [transaction.reverse_path or "", *(item.address for item in transaction.recipients)]
    parameters = [transaction.ret, transaction.envid, *(item.orcpt for item in transaction.recipients)]
    if any(map(_unsendable, addresses)) or any(map(_no_parameter, filter(None, parameters))):
        return _obstacle(501, "5.1.3", "an address has characters that no command can carry")
    if transaction.require_tls and not (secure and "REQUIRETLS" in extensions):
        return NO_REQUIRETLS
    limit = extensions.size_limit
    if limit is not None and transaction.octets > limit:
        # RFC 1870 6.1: what cannot be taken is not sent.
        return _obstacle(
            552, "5.3.4", f"the message has {transaction.octets} octets, the server takes {limit}"
        )
    needs_utf8 = transaction.utf8_header or not all(address.isascii() for address in addresses)
    if needs_utf8 and "SMTPUTF8" not in extensions:
        # RFC 6531 3.2 and 3.5: such a message is returned rather than mangled.
        return _obstacle(553, "5.6.7", "the message needs SMTPUTF8, which the server does not offer")
    if transaction.eight_bit and "8BITMIME" not in extensions:
        # RFC 6152 3: convert or return; it may be signed, so it is never converted here.
        return _obstacle(554, "5.6.3", "the message has 8-bit octets and the server does not offer 8BITMIME")
    return None


def _obstacle(code: int, enhanced: str, text: str) -> Answer:
    return Answer("policy", Reply(code, enhanced, (text,)), text)


# RFC 8689 7.1 and 4.2.1: X.7.30.
NO_REQUIRETLS = _obstacle(
    550, "5.7.30", "the message requires TLS, and the server does not offer REQUIRETLS under TLS"
)


def _told(reply: Reply) -> str:
    return " ".join(filter(None, ("S:", str(reply.code), reply.enhanced, reply.text)))


def _hidden(line: str) -> str:
    """Return a command of a login without what it shows."""
    words = line.split(" ")
    return " ".join([*words[:2], "…"]) if words[0] == "AUTH" and len(words) > 1 else "…"


def _coded(*parts: str) -> str:
    return b64encode("".join(parts).encode("utf-8")).decode()


def _unsendable(address: str) -> bool:
    return not address.isprintable() or "<" in address or ">" in address.partition('"')[0]


def _no_parameter(value: str) -> bool:
    return not value.isprintable() or " " in value


def _mail(extensions: Extensions, transaction: Transaction) -> str:
    line = f"MAIL FROM:<{transaction.reverse_path or ''}>"
    if "SIZE" in extensions:
        line += f" SIZE={transaction.octets}"
    if transaction.eight_bit and "8BITMIME" in extensions:
        line += " BODY=8BITMIME"
    if transaction.utf8_header or not line.isascii() or not _ascii_recipients(transaction):
        line += " SMTPUTF8"
    if transaction.require_tls:
        line += " REQUIRETLS"
    if "DSN" in extensions:
        line += f" RET={transaction.ret}" if transaction.ret else ""
        line += f" ENVID={transaction.envid}" if transaction.envid else ""
    return line


def _ascii_recipients(transaction: Transaction) -> bool:
    return all(recipient.address.isascii() for recipient in transaction.recipients)


def _rcpt(extensions: Extensions, recipient: Recipient) -> str:
    line = f"RCPT TO:<{recipient.address}>"
    if "DSN" in extensions:
        line += f" NOTIFY={','.join(sorted(recipient.notify))}" if recipient.notify else ""
        line += f" ORCPT={recipient.orcpt}" if recipient.orcpt else ""
    return line
