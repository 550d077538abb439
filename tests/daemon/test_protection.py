"""How much strangers may bring, in the whole daemon; XCLIENT makes the client one."""

import smtplib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.letters import message, wire
from tests.daemon.running import Daemon

STRANGER, NEIGHBOUR, OTHER = "192.0.2.66", "192.0.2.200", "198.51.100.1"


@pytest.fixture
def guarded(template: Path, tmp_path: Path) -> Iterator[Daemon]:
    settings: dict[str, dict[str, object]] = {
        "smtp": {"xclient_networks": ["127.0.0.0/8"]},
        "protection": {
            "connections_per_minute": 3,
            "network_factor": 2,
            "messages_per_hour": 2,
            "unknown_recipients_per_hour": 2,
            "tarpit_step_seconds": 0,
            "greeting_delay_seconds": 0.1,
        },
    }
    with Daemon(tmp_path / "guarded", template=template, **settings) as running:
        yield running.start()


def as_client(session: smtplib.SMTP, address: str) -> tuple[int, bytes]:
    session.ehlo()
    return session.docmd("XCLIENT", f"ADDR={address}")


def test_a_stranger_may_bring_so_much(guarded: Daemon) -> None:
    with guarded.mx() as session:
        assert as_client(session, STRANGER)[0] == 220
        session.ehlo("mx.far.test")
        for number in range(2):
            assert session.mail("a@far.test")[0] == 250
            assert session.rcpt(guarded.alice.address)[0] == 250
            assert session.data(wire(message(f"number {number}")))[0] == 250
        code, text = session.mail("a@far.test")
        assert (code, text[:5]) == (451, b"4.7.1")
    for number in range(2):
        guarded.find(guarded.alice, f"number {number}")
    for address, codes in ((STRANGER, (220, 220, 421)), (NEIGHBOUR, (220, 220, 220, 421)), (OTHER, (220,))):
        for code in codes:
            with guarded.mx() as session:
                assert as_client(session, address)[0] == code
    # The house itself is not counted.
    for _ in range(10):
        with guarded.mx() as session:
            assert session.noop()[0] == 250
    assert told(guarded, "connections") == "2.0"
    assert told(guarded, "messages") == "1.0"


def test_a_harvester_is_sent_away(guarded: Daemon) -> None:
    with guarded.mx() as session:
        assert as_client(session, STRANGER)[0] == 220
        session.ehlo("mx.far.test")
        session.mail("a@far.test")
        for number in range(2):
            assert session.rcpt(f"nobody{number}@{guarded.alice.address.partition('@')[2]}")[0] == 550
    with guarded.mx() as session:
        code, text = as_client(session, STRANGER)
        assert (code, text[:5]) == (421, b"4.7.0")
    assert told(guarded, "unknown_recipients") == "1.0"


def told(daemon: Daemon, reason: str) -> str:
    """What /metrics counts as refused for a reason."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{daemon.ports['http']}/metrics",
        headers={"Authorization": f"Bearer {daemon.keys['operator']}"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        text = answer.read().decode()
    (line,) = [line for line in text.splitlines() if f'strangers_refused_total{{reason="{reason}"}}' in line]
    return str(line.rpartition(" ")[2])
