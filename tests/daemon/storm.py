"""A load of foreign clients that goes on through crashes, and remembers what was promised to it.

Each message has an id of its own in its subject, and a body that can be made again from it.
A message is sent once: where no reply came, nothing was promised.
"""

import hashlib
import imaplib
import random
import smtplib
import sys
import threading
import time
import traceback
from collections.abc import Callable
from email.message import EmailMessage
from typing import Any

from tests.daemon.letters import DOMAIN
from tests.daemon.running import Daemon, Trouble

# Some go into the journal whole, some by way of a spool file (256 KiB and more).
SIZES = (200, 2_000, 2_000, 40_000, 400_000)

# Half of what is submitted bounces, and all of it at once, which the shipped rules would not stand for.
LIMITS = {
    "bounce_permille": 1000,
    "key_hour": 100_000,
    "key_day": 100_000,
    "organization_hour": 100_000,
    "organization_day": 100_000,
    "warmup_first_days": 100_000,
}


def body(identifier: str, octets: int) -> str:
    """Lines that only this id has."""
    line = hashlib.sha256(identifier.encode()).hexdigest() + "\r\n"
    return line * (octets // len(line) + 1)


def _done(answer: tuple[str, list[Any]]) -> list[Any]:
    """What a command that is answered OK brought; any other answer promises nothing."""
    if answer[0] != "OK":
        raise imaplib.IMAP4.error(str(answer))
    return answer[1]


class Storm:
    """Client threads; mx, submissions, readers: how many of each kind.

    promised, sent, octets: of messages. kept, gone, flagged: what readers were told OK for in
    their folder: appended and not expunged, expunged, given a flag.
    """

    def __init__(self, daemon: Daemon, *, seed: int, mx: int, submissions: int = 0, readers: int = 0) -> None:
        self.daemon = daemon
        self.promised: dict[str, tuple[str, ...]] = {}  # id to recipients, those with a 250
        self.sent: set[str] = set()
        self.octets: dict[str, int] = {}
        self.kept: set[str] = set()
        self.gone: set[str] = set()
        self.flagged: set[str] = set()
        self.has_readers = readers > 0
        # Sends to nobody, and owes its sender a notice for each message; made where there are submissions.
        self.sender = daemon.new_inbox("carol") if submissions else daemon.alice
        self.surprises: list[str] = []
        self._seed = seed
        self._lock = threading.Lock()
        self._over = threading.Event()
        kinds = [*[self._knock] * mx, *[self._submit] * submissions, *[self._read] * readers]
        self._threads = [
            threading.Thread(target=kind, args=(number,), daemon=True) for number, kind in enumerate(kinds)
        ]

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    @property
    def count(self) -> int:
        """Messages promised so far."""
        return len(self.promised)

    @property
    def steps(self) -> int:
        """What readers were told OK for so far."""
        return len(self.kept) + len(self.gone) + len(self.flagged)

    def stacks(self) -> str:
        """Where each client stands."""
        frames = sys._current_frames()
        stacks = [traceback.format_stack(frames[one.ident]) for one in self._threads if one.ident in frames]
        return "\n".join("".join(["a client:\n", *stack[-6:]]) for stack in stacks)

    def _knock(self, number: int) -> None:
        to = (f"alice@{DOMAIN}", f"bob@{DOMAIN}")

        def send(client: smtplib.SMTP, dice: random.Random, identifier: str, content: bytes) -> None:
            chosen = to[: dice.choice((1, 2))]
            self._transact(client, "stranger@partner.test", chosen, identifier, content)

        self._clients(number, lambda: self.daemon.mx(), send)

    def _submit(self, number: int) -> None:
        submitter = self.daemon.alice if number % 2 else self.sender

        def send(client: smtplib.SMTP, dice: random.Random, identifier: str, content: bytes) -> None:
            # The second server refuses `reject…`, so that the sender is owed a notice.
            local = identifier if number % 2 else f"reject-{identifier}"
            content = content.replace(b"From: alice@", b"From: " + submitter.address.encode()[:5] + b"@", 1)
            self._transact(client, submitter.address, (f"{local}@partner.test",), identifier, content)

        self._clients(number, lambda: self.daemon.submission(submitter), send)

    def _read(self, number: int) -> None:
        """Append, flag and expunge messages in a folder; each step counts once it is answered OK."""
        dice = random.Random(self._seed * 1000 + number)
        serial = 0
        while not self._over.is_set():
            try:
                with self.daemon.imap(self.daemon.alice) as client:
                    client.select("Drafts")
                    for _ in range(20):
                        if self._over.is_set():
                            break
                        serial += 1
                        self._keep(client, f"d{number}n{serial}", dice)
            except (OSError, imaplib.IMAP4.error):
                self._over.wait(0.05)

    def _keep(self, client: imaplib.IMAP4, identifier: str, dice: random.Random) -> None:
        content = f"Subject: {identifier}\r\n\r\n{body(identifier, 500)}".encode()
        told = _done(client.append("Drafts", "", "", content))
        with self._lock:
            self.kept.add(identifier)
        uid = told[0].split(b"]")[0].split()[-1].decode()
        if dice.random() < 0.5:
            _done(client.uid("STORE", uid, "+FLAGS", "(\\Flagged)"))
            with self._lock:
                self.flagged.add(identifier)
        if dice.random() < 0.3:
            with self._lock:
                self.kept.discard(identifier)
            _done(client.uid("STORE", uid, "+FLAGS", "(\\Deleted)"))
            _done(client.uid("EXPUNGE", uid))
            with self._lock:
                self.gone.add(identifier)

    def _clients(
        self,
        number: int,
        connect: Callable[[], smtplib.SMTP],
        send: Callable[[smtplib.SMTP, random.Random, str, bytes], None],
    ) -> None:
        """One client after the other until the storm is over; each sends until its connection breaks."""
        dice = random.Random(self._seed * 1000 + number)
        serial = 0
        while not self._over.is_set():
            try:
                with connect() as client:
                    client.ehlo_or_helo_if_needed()
                    for _ in range(dice.choice((1, 5, 50))):
                        if self._over.is_set():
                            break
                        serial += 1
                        identifier = f"u{number}n{serial}"
                        send(client, dice, identifier, self._compose(identifier, dice.choice(SIZES)))
            except (OSError, smtplib.SMTPException):
                self._over.wait(0.05)  # the daemon is down: knock again soon

    def _compose(self, identifier: str, octets: int) -> bytes:
        with self._lock:
            self.octets[identifier] = octets
        return (
            f"From: alice@{DOMAIN}\r\nTo: all@{DOMAIN}\r\nSubject: {identifier}\r\n"
            f"Message-ID: <{identifier}@storm.test>\r\nDate: Mon, 06 Jul 2026 10:00:00 +0000\r\n\r\n"
            + body(identifier, octets)
        ).encode()

    def _transact(
        self, client: smtplib.SMTP, sender: str, recipients: tuple[str, ...], identifier: str, content: bytes
    ) -> None:
        replies = [client.mail(sender), *(client.rcpt(one) for one in recipients)]
        with self._lock:
            self.sent.add(identifier)
        replies.append(client.data(content))
        with self._lock:
            if replies[-1][0] == 250:
                self.promised[identifier] = recipients
            elif replies[-1][0] not in (421, 451, 452):
                self.surprises.append(f"{identifier}: {replies}")

    def is_whole(self, one: EmailMessage) -> bool:
        """Whether a received message has the body that was sent under its subject."""
        identifier = str(one["Subject"])
        payload = one.get_payload()
        assert isinstance(payload, str)
        return payload.replace("\r\n", "\n") == body(identifier, self.octets[identifier]).replace(
            "\r\n", "\n"
        )


def wait_for_more(daemon: Daemon, storm: Storm, dice: random.Random, *, after: int) -> None:
    """Wait until so many more messages are promised, and for a random moment then."""
    goal, steps = storm.count + after, storm.steps + dice.randrange(6)
    end = time.monotonic() + 30
    while storm.count < goal or (storm.has_readers and storm.steps < steps):
        if time.monotonic() > end:
            clients = storm.stacks()
            daemon.show_stacks()
            waited = f"{storm.count} of {goal} promises, {storm.steps} of {steps} steps"
            raise Trouble(f"no mail is taken any more: {waited}\n{daemon.log}\n{clients}")
        time.sleep(0.002)
    time.sleep(dice.uniform(0, 0.03))


def strike(daemon: Daemon, storm: Storm, dice: random.Random, *, after: int) -> None:
    """Kill the daemon at a random moment once so many more messages are promised, and start it again."""
    wait_for_more(daemon, storm, dice, after=after)
    daemon.kill()
    if dice.random() < 0.3:
        # Once more while it recovers.
        daemon.spawn()
        time.sleep(dice.uniform(0.3, 1.5))
        daemon.kill()
    daemon.start()
