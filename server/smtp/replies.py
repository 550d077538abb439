"""Replies of the server: formatted, folded into lines, with enhanced codes.

Pure. Owns the wire form of every reply and keeps it inside its limits: no line
beyond 512 octets, no control characters, no text outside ASCII unless the client
asked for UTF-8. RFC 5321 4.2 and 4.5.3.1.5, 2034 (where enhanced codes stand),
3463, 6531 3.7.4.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from server.refusal import Refusal

LINE_OCTETS = 512  # RFC 5321 4.5.3.1.5, with CRLF
LINES = 32


class Repertoire(Enum):
    """The characters that a reply's text may use."""

    ASCII = "ascii"
    UTF8 = "utf-8"


def reply(code: int, enhanced: str, *texts: str, repertoire: Repertoire = Repertoire.ASCII) -> bytes:
    """Return a whole reply, a line or more for each text; enhanced '' leaves that code out.

    RFC 2034 4: no enhanced code in the greeting, in replies to EHLO and HELO, and in 3yz.
    """
    prefix = f"{enhanced} ".encode("ascii") if enhanced else b""
    room = LINE_OCTETS - 6 - len(prefix)
    lines = [line for text in texts or ("",) for line in _fold(_clean(text, repertoire), room)][:LINES]
    number = b"%03d" % code
    head = b"".join(number + b"-" + prefix + line + b"\r\n" for line in lines[:-1])
    return head + number + b" " + (prefix + lines[-1]).rstrip(b" ") + b"\r\n"


def of_refusal(refusal: Refusal, repertoire: Repertoire = Repertoire.ASCII) -> bytes:
    """Return the reply that a refusal owes the peer; codes that refuse nothing become 451 4.3.0."""
    if not 400 <= refusal.code <= 599:
        return BROKEN
    enhanced = refusal.enhanced
    # RFC 2034 4: the class of the enhanced code equals the first digit of the reply.
    if enhanced[:2] != f"{refusal.code // 100}.":
        enhanced = f"{refusal.code // 100}.0.0"
    return reply(refusal.code, enhanced, *refusal.public.splitlines(), repertoire=repertoire)


def bare(refusal: Refusal) -> bytes:
    """Return a refusal's reply without its enhanced code, as EHLO and HELO want it (RFC 2034 4)."""
    return reply(refusal.code, "", *refusal.public.splitlines())


def hello(hostname: str, keywords: Sequence[str]) -> bytes:
    """Return the reply to EHLO: the server's name and what it announces (RFC 5321 4.1.1.1)."""
    return reply(250, "", hostname, *keywords)


def _clean(text: str, repertoire: Repertoire) -> bytes:
    printable = text
    if not text.isprintable():
        printable = "".join(character if character.isprintable() else " " for character in text)
    if repertoire is Repertoire.ASCII:
        return printable.encode("ascii", "replace")
    return printable.encode("utf-8", "replace")


def _fold(text: bytes, room: int) -> list[bytes]:
    """Cut text at spaces, or hard between characters, into lines of at most room octets."""
    lines = []
    while len(text) > room:
        cut = text.rfind(b" ", 1, room + 1)
        if cut < 0:
            cut = room
            while cut > 1 and text[cut] & 0xC0 == 0x80:
                cut -= 1
        lines.append(text[:cut])
        text = text[cut:].lstrip(b" ")
    lines.append(text)
    return lines


SENDER_OK = reply(250, "2.1.0", "Sender ok")
RECIPIENT_OK = reply(250, "2.1.5", "Recipient ok")
OK = reply(250, "2.0.0", "Ok")
GO_AHEAD = reply(354, "", "Start mail input; end with <CRLF>.<CRLF>")
BYE = reply(221, "2.0.0", "Bye")
BROKEN = reply(451, "4.3.0", "Local error, try again later")
READY_FOR_TLS = reply(220, "2.0.0", "Ready to start TLS")
NOT_VERIFIED = reply(252, "2.0.0", "Cannot verify the user, but will take a message and try to deliver it")
AUTHENTICATED = reply(235, "2.7.0", "Authentication succeeded")
HELP_LMTP = reply(214, "2.0.0", "Commands: LHLO MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT STARTTLS")
NOT_OF_THIS_HOUSE = reply(554, "5.7.1", "LMTP is for named hosts alone")
HELP = reply(214, "2.0.0", "Commands: EHLO HELO MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT STARTTLS AUTH")
TOO_MANY_CONNECTIONS = reply(421, "4.7.0", "Too many connections, try again later")
TOO_MANY_ERRORS = reply(421, "4.7.0", "Too many errors, closing the connection")
TOO_MANY_RECIPIENTS = reply(452, "4.5.3", "Too many recipients")  # RFC 5321 4.5.3.1.10
NO_ROOM = reply(452, "4.3.1", "Insufficient system storage, try again later")
INJECTED = reply(554, "5.5.1", "Octets behind STARTTLS are refused; closing the connection")
STOPPING = reply(421, "4.3.2", "Service is stopping, try again later")
TIMED_OUT = reply(421, "4.4.2", "Waited too long, closing the connection")


def taken(message_ids: Sequence[str]) -> bytes:
    """Return the reply to a message that was taken in, with the ids to ask for."""
    # Ids are short ASCII of our own making: nothing to clean or fold in the common case.
    if len(message_ids) == 1:
        return f"250 2.0.0 Ok: {message_ids[0]}\r\n".encode("ascii")
    return reply(250, "2.0.0", "Ok: " + " ".join(message_ids))


def challenge(text: bytes) -> bytes:
    """Return the server's challenge of an AUTH dialogue; text is base64 already (RFC 4954 4)."""
    return b"334 " + text + b"\r\n"
