"""A second mail server for the daemon to deliver to: stock aiosmtpd, which keeps what it gets.

Its answers go by the recipient's local part: `reject…` is refused for good, `later…` for
now, `spam…` for good after its content; all others are taken.
"""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from server.tls import make_self_signed
from tests.daemon.letters import parsed
from tests.daemon.running import free_ports, until

DOMAIN = "partner.test"


@dataclass(frozen=True)
class Taken:
    """One transaction that got its 250."""

    reverse_path: str
    recipients: tuple[str, ...]
    content: bytes
    secure: bool

    @property
    def message(self) -> EmailMessage:
        return parsed(self.content)


class Partner:
    """What the server was given, in order; safe to read from other threads."""

    def __init__(self) -> None:
        self.port = 0
        self._taken: list[Taken] = []
        self._lock = threading.Lock()

    @property
    def route(self) -> dict[str, str]:
        """The daemon's delivery.routes that lead here."""
        return {DOMAIN: f"smtp:127.0.0.1:{self.port}"}

    @property
    def taken(self) -> list[Taken]:
        with self._lock:
            return list(self._taken)

    def find(self, subject: str) -> Taken:
        """Wait for the message of a subject."""
        return until(
            lambda: next((one for one in self.taken if one.message["Subject"] == subject), None),
            f"{subject!r} does not reach the second server",
        )

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        local = address.partition("@")[0]
        if local.startswith("reject"):
            return "550 5.1.1 nobody of that name lives here"
        if local.startswith("later"):
            return "451 4.2.0 the postman is at lunch"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 fine"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if any(address.startswith("spam") for address in envelope.rcpt_tos):
            return "554 5.7.1 we do not want this"
        content = envelope.content
        assert isinstance(content, bytes)
        taken = Taken(
            envelope.mail_from or "", tuple(envelope.rcpt_tos), content, secure=session.ssl is not None
        )
        with self._lock:
            self._taken.append(taken)
        return "250 2.0.0 thank you"


@contextmanager
def serving(directory: Path, *, secure: bool = True, port: int = 0) -> Iterator[Partner]:
    """A running second server; secure: whether it offers STARTTLS; port: a free one unless given."""
    partner = Partner()
    context = None
    if secure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*make_self_signed(directory, names=["localhost", "127.0.0.1"]))
    partner.port = port or free_ports(1)[0]
    controller = Controller(
        partner,
        hostname="127.0.0.1",
        port=partner.port,
        tls_context=context,
        enable_SMTPUTF8=True,
        data_size_limit=64 << 20,
    )
    controller.start()
    try:
        yield partner
    finally:
        controller.stop()
