"""Several processes with roles of their own on one data directory and one PostgreSQL."""

import json
import random
import signal
import smtplib
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.ensemble import Ensemble
from tests.daemon.letters import DOMAIN, message, queued_id, wire
from tests.daemon.partner import Partner, serving
from tests.daemon.running import Daemon, until
from tests.daemon.storm import LIMITS, Storm, wait_for_more
from tests.daemon.test_crash import check_drafts, check_inbox, check_notices, check_partner, check_residue

pytestmark = pytest.mark.postgresql
Make = Callable[..., Ensemble]


@pytest.fixture
def make(shared: Ensemble, tmp_path: Path) -> Iterator[Make]:
    """Makes ensembles of a database of their own, and closes them."""
    made: list[Ensemble] = []

    def build(**settings: Any) -> Ensemble:
        number = shared.cluster.new_database()
        shared.cluster.drop(number)
        shared.cluster.execute(f"CREATE DATABASE {number} TEMPLATE {shared.database}")
        directory = tmp_path / f"ensemble{len(made)}"
        one = Ensemble(
            directory, cluster=shared.cluster, database=number, template=shared.directory, **settings
        )
        made.append(one)
        return one

    yield build
    for one in made:
        one.close()
        assert "Traceback" not in one.log, one.log
        one.cluster.drop(one.database)


@contextmanager
def idling(ensemble: Ensemble) -> Iterator[Any]:
    """alice's inbox in IDLE."""
    client = ensemble.imap(ensemble.alice)
    client.select()
    client.send(b"x IDLE\r\n")
    assert client.readline().startswith(b"+")
    yield client
    client.shutdown()


def send(ensemble: Ensemble, made: Any, sender: str, recipient: str) -> str:
    with ensemble.mx() as client:
        client.ehlo()
        client.mail(sender)
        client.rcpt(recipient)
        return queued_id(client.data(wire(made)))


def api(ensemble: Ensemble, path: str, body: dict[str, Any], key: str = "alice") -> tuple[int, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{ensemble.ports['http']}/v1{path}",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {ensemble.keys[key]}", "Content-Type": "application/json"},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.status, json.loads(answer.read())


def stuck(ensemble: Ensemble) -> list[str]:
    """Leases that nobody gave back."""
    return [row[0] for row in ensemble.execute("SELECT id FROM deliveries WHERE lease IS NOT NULL")]


def test_mail_goes_through_processes_of_four_roles(make: Make, tmp_path: Path) -> None:
    with serving(tmp_path / "partner") as partner:
        ensemble = make(delivery={"routes": partner.route})
        for role in ("smtp", "imap", "http", "delivery"):
            ensemble.add(role, role)
        told = ensemble.cli("status")
        assert sorted(one["roles"][0] for one in told["processes"]) == ["delivery", "http", "imap", "smtp"]
        assert {one["pid"] for one in told["processes"]} == {one.pid for one in ensemble.processes.values()}
        with idling(ensemble) as client:
            arrived = send(ensemble, message("Question"), "someone@partner.test", ensemble.alice.address)
            assert client.readline() == b"* 1 EXISTS\r\n"
        assert ensemble.kinds(arrived) == ["accepted", "received"]
        # An answer by the API, one by submission: the delivery process hears of both.
        status, _ = api(
            ensemble,
            f"/inboxes/{ensemble.alice.id}/messages",
            {"to": ["someone@partner.test"], "subject": "By API", "text": "Here."},
        )
        assert status == 202
        made = message("By submission", From=ensemble.alice.address, To="someone@partner.test")
        with ensemble.submission(ensemble.alice) as client:
            client.sendmail(ensemble.alice.address, ["someone@partner.test"], wire(made))
        for subject in ("By API", "By submission"):
            assert b"DKIM-Signature" in partner.find(subject).content
        until(lambda: not stuck(ensemble), "leases stay")
        assert len(partner.taken) == 2


def test_what_one_process_changes_the_others_know_at_once(make: Make) -> None:
    ensemble = make()
    for role in ("smtp", "imap", "http"):
        ensemble.add(role, role)
    with ensemble.mx() as client:
        client.ehlo()
        client.mail("a@partner.test")
        assert client.rcpt(f"late@{DOMAIN}")[0] == 550
        made = ensemble.cli("key", "add", "--organization", DOMAIN, "--scope", "inbox:write")
        ensemble.keys["writer"] = made["key"]
        # By the http process, into a cache of the smtp process that says no.
        status, made = api(ensemble, "/inboxes", {"address": f"late@{DOMAIN}"}, key="writer")
        assert status == 201, made
        until(lambda: client.rcpt(f"late@{DOMAIN}")[0] == 250, "the smtp process does not hear of it")
    with idling(ensemble) as idle:
        # Closed under the session by whichever process the command line asks.
        ensemble.execute("UPDATE credentials SET revoked_at = 1 WHERE mailbox_id = %s", ensemble.alice.id)
        ensemble.cli("inbox", "add", f"other@{DOMAIN}")
        assert b"BYE" in idle.readline()


def test_two_delivery_processes_deliver_each_message_once(make: Make, tmp_path: Path) -> None:
    with serving(tmp_path / "partner") as partner:
        ensemble = make(delivery={"routes": partner.route})
        ensemble.add("smtp", "smtp")
        for name in ("delivery-1", "delivery-2"):
            ensemble.add(name, "delivery")
        names = {f"n{number}" for number in range(120)}
        with ensemble.submission(ensemble.alice) as client:
            for name in sorted(names):
                made = message(name, From=ensemble.alice.address)
                client.sendmail(ensemble.alice.address, [f"{name}@partner.test"], wire(made))
        until(lambda: len(partner.taken) >= len(names), "not all is delivered")
        ensemble.drained()
        assert Counter(str(one.message["Subject"]) for one in partner.taken) == Counter(names)
        tried = [name for name, one in ensemble.processes.items() if "attempt" in one.log]
        assert tried == ["delivery-1", "delivery-2"], "one of them did nothing"


def test_a_killed_process_s_journal_is_taken_over_while_others_work(make: Make) -> None:
    dice = random.Random(5)
    ensemble = make()
    ensemble.add("imap", "imap")
    for name in ("smtp-1", "smtp-2"):
        ensemble.add(name, "smtp")
    storm = Storm(ensemble, seed=5, mx=4)
    storm.begin()
    wait_for_more(ensemble, storm, dice, after=60)
    ensemble.processes["smtp-2"].kill()
    until(lambda: "was taken over" in ensemble.log, "nobody takes it over")
    wait_for_more(ensemble, storm, dice, after=20)
    storm.end()
    assert storm.surprises == []
    ensemble.drained(seconds=60)
    for inbox in (ensemble.alice, ensemble.bob):
        check_inbox(ensemble, storm, inbox)


@pytest.mark.parametrize(
    ("seed", "kills"), [(1, 4), pytest.param(2, 40, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_every_250_is_kept_once_whichever_process_is_killed(
    make: Make, tmp_path: Path, seed: int, kills: int
) -> None:
    """At random moments under load, to be started again before or after a neighbour inherits it."""
    dice = random.Random(seed)
    with serving(tmp_path / "partner") as partner:
        delivery = {"routes": partner.route, "retry_first_seconds": 1, "per_domain_concurrency": 4}
        ensemble = make(store={"checkpoint_seconds": 1}, delivery=delivery, limits=LIMITS)
        for name, role in (("smtp-1", "smtp"), ("smtp-2", "smtp"), ("imap", "imap")):
            ensemble.add(name, role)
        for name in ("delivery-1", "delivery-2"):
            ensemble.add(name, "delivery")
        storm = Storm(ensemble, seed=seed, mx=3, submissions=2, readers=1)
        storm.begin()
        victims = list(ensemble.processes)
        for _ in range(kills):
            wait_for_more(ensemble, storm, dice, after=dice.randrange(5, 60))
            victim = ensemble.processes[dice.choice(victims)]
            victim.kill()
            time.sleep(dice.uniform(0, 4))
            victim.start()
        storm.end()
        assert storm.surprises == []
        ensemble.drained(seconds=60)
        for inbox in (ensemble.alice, ensemble.bob):
            check_inbox(ensemble, storm, inbox)
        check_drafts(ensemble, storm)
        check_notices(ensemble, storm)
        check_partner(storm, Counter(), kills=kills, taken=[
            (str(one.message["Subject"]), str(one.message["Message-ID"]), storm.is_whole(one.message))
            for one in partner.taken
        ])  # fmt: skip
        uids = ensemble.execute("SELECT folder_id, uid FROM entries")
        assert len(set(uids)) == len(uids)
        check_residue(ensemble)


class _Slow(Partner):
    """Takes a message's content and answers only when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        import asyncio

        if not self.begun.is_set():
            self.begun.set()
            await asyncio.sleep(3600)
        return await super().handle_DATA(server, session, envelope)


def test_leases_of_a_killed_delivery_process_are_taken_over(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.daemon.partner.Partner", _Slow)
    with serving(tmp_path / "partner", secure=False) as partner:
        assert isinstance(partner, _Slow)
        ensemble = make(delivery={"routes": partner.route})
        ensemble.add("smtp", "smtp")
        ensemble.add("first", "delivery")
        made = message("Twice is too often", From=ensemble.alice.address)
        with ensemble.submission(ensemble.alice) as client:
            client.mail(ensemble.alice.address)
            client.rcpt("x@partner.test")
            identifier = queued_id(client.data(wire(made)))
        assert partner.begun.wait(20)
        ensemble.add("second", "delivery")
        assert stuck(ensemble), "the first process has no lease"
        ensemble.processes["first"].kill()
        partner.find("Twice is too often")
        until(lambda: "delivered" in ensemble.kinds(identifier), "the timeline does not show it")
        # That it may have arrived before is said, not hidden.
        steps = [one for one in ensemble.explain(identifier)["timeline"] if one["data"].get("in_doubt")]
        assert [one["kind"] for one in steps] == ["message.deferred"]
        assert not stuck(ensemble)


def test_a_notice_is_sent_once_and_another_process_goes_on_with_them(make: Make, tmp_path: Path) -> None:
    with serving(tmp_path / "partner") as partner:
        ensemble = make(delivery={"routes": partner.route})
        ensemble.add("smtp", "smtp")
        for name in ("delivery-1", "delivery-2"):
            ensemble.add(name, "delivery")

        def bounce(name: str) -> None:
            with ensemble.submission(ensemble.alice) as client:
                made = message(name, From=ensemble.alice.address)
                client.sendmail(ensemble.alice.address, [f"reject-{name}@partner.test"], wire(made))

        def notices() -> list[str]:
            found = (one.as_string() for one in ensemble.messages(ensemble.alice))
            return [text for text in found if "delivery-status" in text]

        for number in range(10):
            bounce(f"a{number}")
        until(lambda: len(notices()) == 10, "a notice is missing")
        ensemble.processes["delivery-1"].kill()
        for number in range(10):
            bounce(f"b{number}")
        until(lambda: len(notices()) >= 20, "the other process does not go on with notices")
        ensemble.drained()
        assert len(notices()) == 20


def test_a_lost_connection_to_the_database_loses_no_news(make: Make) -> None:
    ensemble = make()
    for role in ("smtp", "imap"):
        ensemble.add(role, role)
    with idling(ensemble) as client:
        # What is committed while nobody listens is found when they listen again.
        ensemble.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%%'")
        send(ensemble, message("Unheard"), "a@partner.test", ensemble.alice.address)
        assert client.readline() == b"* 1 EXISTS\r\n"
    until(lambda: ensemble.log.count("heard again") == 2, "the connections are not made anew")
    # The whole server away and back: mail is taken meanwhile, for the journal makes the promise.
    ensemble.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    send(ensemble, message("Taken"), "a@partner.test", ensemble.alice.address)
    ensemble.find(ensemble.alice, "Taken")


def test_each_process_drains_and_reloads_by_itself(make: Make) -> None:
    ensemble = make()
    for name, role in (("smtp-1", "smtp"), ("smtp-2", "smtp"), ("imap", "imap")):
        ensemble.add(name, role)
    first, second = ensemble.processes["smtp-1"], ensemble.processes["smtp-2"]
    second.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
    until(lambda: "reloaded" in second.log, "it does not reload")
    assert "reloaded" not in first.log
    assert first.stop() == 0
    assert len(ensemble.cli("status")["processes"]) == 2
    with second.mx() as client:
        assert client.sendmail("a@partner.test", [ensemble.alice.address], wire(message("Still"))) == {}
    ensemble.find(ensemble.alice, "Still")
    # A clean end leaves nothing to take over, and the next process uses its journal again.
    journals = {path.name for path in (ensemble.data / "journal").iterdir()}
    first.start()
    assert {path.name for path in (ensemble.data / "journal").iterdir()} == journals
    assert "taken over" not in ensemble.log


def test_processes_started_at_the_same_moment_take_turns(cluster: Any, tmp_path: Path) -> None:
    """An empty directory and an empty database: each file and table is made once."""
    with Ensemble(tmp_path / "e", cluster=cluster, database=cluster.new_database()) as ensemble:
        daemons = [ensemble.add(f"smtp-{number}", "smtp", start=False) for number in range(3)]
        failures: list[BaseException] = []

        def start(one: Daemon) -> None:
            try:
                one.start()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=start, args=(one,)) for one in daemons]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failures == []
        assert len(list((ensemble.data / "journal").iterdir())) == 3
        contexts = {one.certificate.read_bytes() for one in daemons}
        assert len(contexts) == 1
        with smtplib.SMTP("127.0.0.1", daemons[2].ports["mx"], timeout=20) as client:
            client.starttls(context=ensemble.tls())
