"""A real daemon recorded while foreign clients use it, and what a power cut at each moment may leave of it.

The daemon runs under strace on SQLite: SMTP with and without spooled content, submission that stays in
the queue, APPEND, STORE, MOVE and EXPUNGE, checkpoints in between. What a client was told is a promise
from the moment at which the daemon began to say it.
"""

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from server.imap.render import render
from storage import codec, schema
from storage.reconcile import reconcile
from storage.records import Flag
from storage.store import Store
from tests.daemon.letters import queued_id
from tests.daemon.partner import serving
from tests.daemon.running import ROOT, Daemon, until
from tests.daemon.storm import body
from tests.power import trace
from tests.power.agreement import check_files, check_outgoing, entries
from tests.power.cuts import forked
from tests.power.ledger import State
from tests.power.model import Kind, Recording, least, most, some
from tests.storage.samples import opened, rows

SIZES = (300, 3_000, 30_000, 300_000)
ROUNDS = 2


class Traced(Daemon):
    """A daemon that is recorded."""

    def spawn(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start the process under strace."""
        command = [sys.executable, "-m", "server", "serve", "--config", str(self.configuration)]
        (self.directory / "trace").mkdir()
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*trace.command(self.directory / "trace" / "t"), *command],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
            )
        return self.process

    def stop(self) -> int:
        """Ask the daemon itself to end: strace ends with it."""
        assert self.process is not None
        pid = int((self.data / "lock").read_text().removeprefix("pid "))
        os.kill(pid, 15)
        return self.process.wait(60)


@dataclass
class Sent:
    """A message handed in. promised: when it was answered 250, None where it was not."""

    asked: int
    inboxes: tuple[str, ...]
    octets: int
    promised: int | None = None
    message_id: str = ""
    queued: int = 0


@dataclass
class Step:
    """A step of an IMAP client on one message: the state asked for, and when it was answered OK."""

    asked: int
    state: State
    answered: int | None = None


@dataclass
class Told:
    """What clients asked for and were told, by subject."""

    sent: dict[str, Sent] = field(default_factory=dict)
    steps: dict[str, list[Step]] = field(default_factory=dict)

    def allowed(self, subject: str, cut: int) -> list[State]:
        """The states that a message of the IMAP client may be in after a cut."""
        states = [State("")]
        for step in self.steps[subject]:
            if step.asked <= cut:
                states.append(step.state)
            if step.answered is not None and step.answered <= cut:
                states = [step.state]
        return states


class Clients:
    """Foreign clients of one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.told = Told()
        self.troubles: list[BaseException] = []

    def round(self, number: int) -> None:
        """All of them at once, each to its end."""
        acts: list[Callable[[], None]] = [lambda n=n: self._deliver(f"m{number}n{n}") for n in range(3)]  # type: ignore[misc]  # bound now
        acts += [lambda: self._submit(f"s{number}"), lambda: self._read(f"d{number}")]
        threads = [threading.Thread(target=self._guard, args=(act,)) for act in acts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.troubles:
            raise self.troubles[0]

    def _guard(self, act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException as error:
            self.troubles.append(error)

    def _deliver(self, name: str) -> None:
        daemon = self.daemon
        with daemon.mx() as client:
            client.ehlo()
            for place, octets in enumerate(SIZES):
                subject = f"{name}p{place}"
                to = (daemon.alice, daemon.bob)[: 1 + place % 2]
                client.mail("stranger@partner.test")
                for inbox in to:
                    client.rcpt(inbox.address)
                sent = self.told.sent[subject] = Sent(time.time_ns(), tuple(one.id for one in to), octets)
                content = f"From: a@partner.test\r\nSubject: {subject}\r\n\r\n{body(subject, octets)}"
                reply = client.data(content.encode())
                assert reply[0] == 250, reply
                sent.promised, sent.message_id = time.time_ns(), queued_id(reply)

    def _submit(self, name: str) -> None:
        alice = self.daemon.alice
        with self.daemon.submission(alice) as client:
            for place in range(2):
                subject = f"{name}p{place}"
                client.mail(alice.address)
                client.rcpt(f"later-{subject}@partner.test")
                sent = self.told.sent[subject] = Sent(time.time_ns(), (), 2000, queued=1)
                content = f"From: {alice.address}\r\nSubject: {subject}\r\n\r\n{body(subject, 2000)}"
                reply = client.data(content.encode())
                assert reply[0] == 250, reply
                sent.promised, sent.message_id = time.time_ns(), queued_id(reply)

    def _read(self, name: str) -> None:
        with self.daemon.imap(self.daemon.alice) as client:
            client.select("Drafts")
            for place in range(5):
                subject = f"{name}p{place}"
                content = f"Subject: {subject}\r\n\r\n{body(subject, 500)}".encode()
                told = self._step(
                    subject, State("Drafts"), lambda c=content: client.append("Drafts", "", "", c)
                )  # type: ignore[misc]  # bound now
                uid = told[0].split(b"]")[0].split()[-1].decode()
                marked = State("Drafts", int(Flag.SEEN | Flag.FLAGGED), ("blue",))
                self._step(
                    subject, marked, lambda u=uid: client.uid("STORE", u, "FLAGS", r"(\Seen \Flagged blue)")
                )  # type: ignore[misc]
                bare = State("Drafts", int(Flag.FLAGGED), ("blue",))
                self._step(subject, bare, lambda u=uid: client.uid("STORE", u, "-FLAGS", r"(\Seen)"))  # type: ignore[misc]
                if place % 3 == 1:
                    there = State("Archive", bare.flags, bare.keywords)
                    self._step(subject, there, lambda u=uid: client.uid("MOVE", u, "Archive"))  # type: ignore[misc]
                if place % 3 == 2:
                    deleted = State("Drafts", int(Flag.FLAGGED | Flag.DELETED), ("blue",))
                    self._step(
                        subject, deleted, lambda u=uid: client.uid("STORE", u, "+FLAGS", r"(\Deleted)")
                    )  # type: ignore[misc]
                    self._step(subject, State(""), lambda u=uid: client.uid("EXPUNGE", u))  # type: ignore[misc]

    def _step(self, subject: str, state: State, ask: Callable[[], tuple[str, list[bytes]]]) -> list[bytes]:
        step = Step(time.time_ns(), state)
        self.told.steps.setdefault(subject, []).append(step)
        answer, told = ask()
        assert answer == "OK", told
        step.answered = time.time_ns()
        return told


@dataclass(frozen=True)
class Recorded:
    """A whole run: what the kernel was asked, what clients were told."""

    recording: Recording
    told: Told


def record(template: Path, place: Path) -> Recorded:
    """Run the daemon and its clients and return the recording."""
    with (
        serving(place / "partner") as partner,
        Traced(
            place / "daemon",
            template=template,
            store={"checkpoint_seconds": 1},
            delivery={"routes": partner.route, "retry_first_seconds": 3600},
        ) as daemon,
    ):
        before = place / "before"
        shutil.copytree(daemon.data, before)
        daemon.start()
        clients = Clients(daemon)
        for number in range(ROUNDS):
            clients.round(number)
            until(lambda: _is_empty(daemon.data), "no checkpoint comes")
        assert daemon.stop() == 0
        calls = trace.read(daemon.directory / "trace" / "t")
        told = clients.told
        _begin_promises(told, calls)
        return Recorded(Recording(before, str(daemon.data), calls), told)


def _is_empty(data: Path) -> bool:
    """Return whether the journal's one segment holds no record of its own."""
    paths = list(data.glob("journal/*/*.journal"))
    if len(paths) != 1:
        return False
    try:
        with paths[0].open("rb") as file:
            head = codec.read_header(file.read(codec.HEADER_OCTETS))
    except FileNotFoundError:
        return False
    return head is None or head.sequence < int(paths[0].stem)


def _begin_promises(told: Told, calls: list[trace.Call]) -> None:
    """Move each promise to where the daemon began to say it, where that is seen."""
    said = [call for call in calls if b"250 2" in call.octets]
    for sent in told.sent.values():
        for call in said:
            if sent.message_id.encode() in call.octets:
                sent.promised = call.start
                break


def moments(recorded: Recorded, dice: random.Random, count: int | None) -> list[int]:
    """Return so many moments of the recording at which something changed, or all."""
    found = recorded.recording.moments
    asked = min(sent.asked for sent in recorded.told.sent.values())
    found = [moment for moment in found if moment >= asked]
    return found if count is None else sorted(dice.sample(found, min(count, len(found))))


def survives(recorded: Recorded, cut: int, dice: random.Random, place: Path) -> None:
    """Build what a cut may leave, some ways of it, and check each; AssertionError with where it lies."""
    ways = [(Kind.ORDERED, least), (Kind.ORDERED, most), (Kind.ORDERED, some(dice)), (Kind.LOOSE, some(dice))]
    kind, choose = dice.choice(ways)
    shutil.rmtree(place, ignore_errors=True)
    recorded.recording.build(place / "data", cut, kind, choose)
    told = place / "told"
    _, status = os.waitpid(forked(lambda: _check(recorded, place / "data", cut), told), 0)
    assert status == 0, f"{kind.value}, cut at {cut}: see {place}\n{told.read_text()[-3000:]}"


def _check(recorded: Recorded, data: Path, cut: int) -> None:
    with opened(data, f"sqlite:///{data}/mailagents.sqlite", render=render) as store:
        _check_messages(recorded, store, cut)
        report = reconcile(store, at=time.time_ns() // 1000)
        assert report.problems == (), report.problems
        assert (report.messages_received, report.messages_expunged) == (0, 0), report
        _check_messages(recorded, store, cut)
        check_files(store)
        # Of records that nobody was promised, written but not synced, a later one may be whole and
        # an earlier one not: that is set aside as damage, and nothing else is.
        assert set((data / "aside").iterdir()) == set(store.recovery.set_aside)


def _check_messages(recorded: Recorded, store: Store, cut: int) -> None:
    told = recorded.told
    subjects = {row.id: str(row.subject) for row in rows(store.database, schema.messages)}
    delivered: dict[str, Counter[str]] = {}
    states: dict[str, State] = {}
    for entry, folder in entries(store):
        subject = subjects[entry.message_id]
        if subject in told.sent and folder.name == "INBOX":
            delivered.setdefault(subject, Counter())[folder.mailbox_id] += 1
        elif subject in told.steps:
            assert subject not in states, f"{subject} lies twice"
            states[subject] = State(folder.name, entry.flags, tuple(entry.keywords.split()))
    for subject, sent in told.sent.items():
        is_promised = sent.promised is not None and sent.promised <= cut
        found = delivered.get(subject, Counter())
        assert found in ([Counter(sent.inboxes)] if is_promised else [Counter(), Counter(sent.inboxes)]), (
            f"{subject} lies in {found}"
        )
    for subject in told.steps:
        assert states.get(subject, State("")) in told.allowed(subject, cut), (
            f"{subject}: {states.get(subject)}"
        )
    queued = Counter(row.message_id for row in rows(store.database, schema.deliveries))
    for subject, sent in told.sent.items():
        if sent.queued and sent.promised is not None:
            count = queued[sent.message_id]
            assert count == 1 or (count == 0 and sent.promised > cut), f"{subject} is queued {count} times"
    assert set(queued) <= set(subjects)
    check_outgoing(store)
