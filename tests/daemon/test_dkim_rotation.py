"""The rotation of DKIM keys through a whole daemon, while the DNS learns of them step by step."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from tests.daemon.ensemble import Ensemble
from tests.daemon.letters import DOMAIN, message
from tests.daemon.partner import Partner, serving
from tests.daemon.running import Daemon, run_cli, until
from tests.daemon.test_flow import JUDGE, submit
from tests.daemon.test_rules import answering
from tests.daemon.test_several import Make, make
from tests.nameserver import Nameserver

pytestmark = pytest.mark.whole
assert make  # a fixture


@dataclass
class Stand:
    """A daemon, the DNS that its operator edits, and a server that gets its mail."""

    daemon: Daemon
    nameserver: Nameserver
    partner: Partner

    def states(self) -> dict[str, str]:
        """The states of the domain's keys by selector."""
        keys = self.daemon.ask("domain-dkim-status", name=DOMAIN)["keys"]
        return {key["selector"]: key["state"] for key in keys}

    def states_when_down(self) -> list[str]:
        """The same by the command line, which goes to the store where no daemon answers."""
        return [key["state"] for key in self.daemon.cli("domain", "dkim", "status", DOMAIN)["keys"]]

    def reach(self, *wanted: str) -> None:
        """Wait until the keys, oldest first, are in these states."""
        until(
            lambda: tuple(self.states().values()) == wanted,
            f"{wanted}, not {self.daemon.ask('domain-dkim-status', name=DOMAIN)}\n{self.daemon.log}",
        )

    def publish(self, records: list[dict[str, str]]) -> None:
        self.nameserver.update({one["name"]: {"TXT": [one["value"]]} for one in records})

    def selectors_on(self, subject: str, records: list[dict[str, str]], tmp_path: Path) -> set[str]:
        """Send a message; the selectors of its signatures, which all verify by the records."""
        submit(
            self.daemon, self.daemon.alice, message(subject, From=self.daemon.alice.address), "x@partner.test"
        )
        got = self.partner.find(subject)
        (tmp_path / "got").write_bytes(got.content)
        judged = subprocess.run(
            [sys.executable, "-c", JUDGE, str(tmp_path / "got")],
            input=json.dumps(records),
            capture_output=True,
            text=True,
            check=True,
        )
        fields = got.message.get_all("DKIM-Signature")
        assert json.loads(judged.stdout) == [True] * len(fields)
        return {field.partition(" s=")[2].partition(";")[0] for field in fields}


@pytest.fixture
def stand(template: Path, tmp_path: Path) -> Iterator[Stand]:
    (tmp_path / "partner").mkdir()
    with serving(tmp_path / "partner") as partner, answering({"partner.test": {}}) as nameserver:
        # What is asked is asked of this server each time.
        nameserver.ttl = nameserver.negative_ttl = 0
        settings = {
            "dns": {"servers": [nameserver.address]},
            "delivery": {"routes": partner.route},
            "dkim": {"look_seconds": 1, "settle_seconds": 0, "retire_seconds": 0},
        }
        with Daemon(tmp_path / "ours", template=template, **settings) as daemon:
            yield Stand(daemon.start(), nameserver, partner)


def test_keys_are_made_seen_used_and_retired(stand: Stand, tmp_path: Path) -> None:
    daemon = stand.daemon
    old = list(stand.states())
    assert list(stand.states().values()) == ["active", "active"]
    made = daemon.cli("domain", "dkim", "rotate", DOMAIN)["records"]
    new = [one["name"].partition(".")[0] for one in made]
    assert len(new) == 2
    daemon.cli("domain", "dkim", "rotate", DOMAIN, status=1)

    # One record is there, the other is a wrong one: nothing is used.
    stand.nameserver.update(
        {made[0]["name"]: {"TXT": [made[0]["value"]]}, made[1]["name"]: {"TXT": ["v=DKIM1; p="]}}
    )
    stand.reach("active", "active", "published", "made")
    keys = daemon.cli("domain", "dkim", "status", DOMAIN)["keys"]
    assert "mend its record" in keys[3]["what"]
    shown = run_cli("domain", "dkim", "status", DOMAIN, "--config", daemon.configuration).stdout
    assert new[0] in shown and "mend its record" in shown
    everything = daemon.cli("domain", "dns", DOMAIN)["records"]
    assert stand.selectors_on("with the old", everything, tmp_path) == set(old)

    # The DNS fails, and the daemon is killed meanwhile.
    stand.nameserver.servfail.update(one["name"] for one in made)
    daemon.kill()
    daemon.start()
    until(
        lambda: (
            {one["looked"] for one in daemon.ask("domain-dkim-status", name=DOMAIN)["keys"]} >= {"unknown"}
        ),
        "the failure is seen",
    )
    assert list(stand.states().values()) == ["active", "active", "published", "made"]

    stand.nameserver.servfail.clear()
    stand.publish(made)
    stand.reach("retired", "retired", "active", "active")
    assert stand.selectors_on("with the new", made, tmp_path) == set(new)
    assert {one["name"].partition(".")[0] for one in daemon.cli("domain", "dns", DOMAIN)["records"]} >= set(
        new
    )
    assert "PRIVATE" not in json.dumps(daemon.cli("domain", "dkim", "status", DOMAIN))


@pytest.mark.postgresql
def test_a_switch_in_one_process_is_heard_in_all(shared: Ensemble, make: Make, tmp_path: Path) -> None:
    (tmp_path / "partner").mkdir()
    with serving(tmp_path / "partner") as partner, answering({"partner.test": {}}) as nameserver:
        nameserver.ttl = nameserver.negative_ttl = 0
        ensemble = make(
            dns={"servers": [nameserver.address]},
            delivery={"routes": partner.route},
            dkim={"look_seconds": 1, "settle_seconds": 0, "retire_seconds": 86_400},
        )
        smtp = ensemble.add("smtp", "smtp")
        ensemble.add("delivery", "delivery")
        ensemble.add("delivery-2", "delivery")
        stand = Stand(ensemble, nameserver, partner)
        smtp.inboxes = ensemble.inboxes
        sending = Stand(smtp, nameserver, partner)
        old = list(stand.states())
        everything = ensemble.cli("domain", "dns", DOMAIN)["records"]
        assert sending.selectors_on("before", everything, tmp_path) == set(old)
        made = ensemble.cli("domain", "dkim", "rotate", DOMAIN)["records"]
        stand.publish(made)
        stand.reach("retiring", "retiring", "active", "active")
        new = {one["name"].partition(".")[0] for one in made}
        # Who signs hears of it a moment after the commit.
        until(
            lambda: sending.selectors_on(f"after {uuid4()}", [*everything, *made], tmp_path) == new,
            "the switch",
        )


def test_a_rotation_can_be_begun_without_the_daemon(stand: Stand) -> None:
    stand.daemon.stop()
    made = stand.daemon.cli("domain", "dkim", "rotate", DOMAIN)["records"]
    assert stand.states_when_down() == ["active", "active", "made", "made"]
    stand.publish(made)
    stand.daemon.start()
    stand.reach("retired", "retired", "active", "active")


def test_a_rotation_can_be_given_up(stand: Stand) -> None:
    made = stand.daemon.cli("domain", "dkim", "rotate", DOMAIN)["records"]
    given_up = stand.daemon.cli("domain", "dkim", "cancel", DOMAIN)
    assert [f"{one}._domainkey.{DOMAIN}" for one in given_up["selectors"]] == [one["name"] for one in made]
    stand.publish(made)
    assert list(stand.states().values()) == ["active", "active", "retired", "retired"]
    stand.daemon.cli("domain", "dkim", "cancel", DOMAIN, status=1)
    stand.daemon.cli("domain", "dkim", "status", "nowhere.test", status=1)
