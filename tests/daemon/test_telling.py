"""What goes out beside mail and what comes back about it, in the whole daemon: webhooks and complaints."""

import base64
import hashlib
import hmac
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.letters import DOMAIN, message, queued_id, wire
from tests.daemon.partner import Partner
from tests.daemon.running import Daemon, free_ports, until
from tests.delivery.test_complaints import report

RULES = """
[[rule]]
name = "tell"
stage = "message"
when = 'source == "mx" && subject.contains("order")'
action = "webhook"
url = "http://127.0.0.1:{port}/in?key=1"
content = true
"""


@dataclass
class Call:
    """One POST that came."""

    path: str
    headers: Message
    body: bytes

    @property
    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


class Receiver:
    """Where calls come to. answers: the status of each, the last one for ever."""

    def __init__(self, port: int, *answers: int) -> None:
        self.calls: list[Call] = []
        self.answers = list(answers)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.calls.append(Call(self.path, self.headers, body))
                answers = receiver.answers
                self.send_response(answers.pop(0) if len(answers) > 1 else answers[0])
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)


@contextmanager
def receiving(port: int, *answers: int) -> Iterator[Receiver]:
    made = Receiver(port, *answers)
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        thread.join(10)
        made.server.server_close()


@dataclass
class Stand:
    """A daemon whose rule calls a port of this machine."""

    daemon: Daemon
    port: int


@pytest.fixture
def stand(template: Path, partner: Partner, tmp_path: Path) -> Iterator[Stand]:
    (port,) = free_ports(1)
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "own.toml").write_text(RULES.replace("{port}", str(port)))
    settings: dict[str, dict[str, object]] = {
        "policy": {"directory": str(rules)},
        "webhooks": {"allow_private_addresses": True},
        "delivery": {"routes": partner.route},
    }
    with Daemon(tmp_path / "telling", template=template, **settings) as running:
        yield Stand(running.start(), port)


def hand_in(daemon: Daemon, content: bytes, *, sender: str = "someone@partner.test") -> str:
    with daemon.mx() as client:
        client.ehlo()
        assert client.mail(sender)[0] == 250
        assert client.rcpt(daemon.alice.address)[0] == 250
        reply = client.data(content)
    assert reply[0] == 250, reply
    return queued_id(reply)


def is_signed(daemon: Daemon, call: Call) -> bool:
    """Check as a receiver does: Standard Webhooks 1.0, by its text and not by our code."""
    secret = (daemon.data / "webhook.secret").read_text().strip()
    assert secret.startswith("whsec_")
    key = base64.b64decode(secret[len("whsec_") :])
    named = f"{call.headers['webhook-id']}.{call.headers['webhook-timestamp']}.".encode()
    expected = base64.b64encode(hmac.new(key, named + call.body, hashlib.sha256).digest()).decode()
    assert abs(int(call.headers["webhook-timestamp"]) - time.time()) < 300
    return bool(call.headers["webhook-signature"] == f"v1,{expected}")


def test_a_receiver_is_told_with_a_signature_it_can_check(stand: Stand) -> None:
    daemon = stand.daemon
    with receiving(stand.port, 204) as receiver:
        content = wire(message("an order", Message_ID="<1@partner.test>"))
        message_id = hand_in(daemon, content)
        hand_in(daemon, wire(message("no such word", Message_ID="<2@partner.test>")))
        until(lambda: "webhook.delivered" in daemon.kinds(message_id), f"not told\n{daemon.log}")
        (call,) = receiver.calls
    assert call.path == "/in?key=1"
    assert is_signed(daemon, call)
    data = call.told["data"]
    assert (data["message_id"], data["rule"]) == (message_id, "tell")
    assert data["envelope"]["to"] == [daemon.alice.address]
    assert base64.b64decode(data["content"]) == content
    assert (daemon.data / "webhook.secret").stat().st_mode & 0o077 == 0


def test_a_call_outlives_a_receiver_that_fails_and_a_daemon_that_is_killed(stand: Stand) -> None:
    daemon = stand.daemon
    with receiving(stand.port, 503) as receiver:
        message_id = hand_in(daemon, wire(message("an order", Message_ID="<1@partner.test>")))
        until(lambda: "webhook.deferred" in daemon.kinds(message_id), f"not tried\n{daemon.log}")
        failed = receiver.calls[0]
    daemon.kill()
    daemon.start()
    with receiving(stand.port, 200) as receiver:
        until(lambda: "webhook.delivered" in daemon.kinds(message_id), f"not told\n{daemon.log}")
        call = receiver.calls[-1]
    assert is_signed(daemon, call)
    # By this the receiver knows that it is the same call.
    assert call.headers["webhook-id"] == failed.headers["webhook-id"]
    assert call.body == failed.body


def test_a_receiver_that_wants_no_more_is_called_once(stand: Stand) -> None:
    daemon = stand.daemon
    with receiving(stand.port, 410) as receiver:
        message_id = hand_in(daemon, wire(message("an order", Message_ID="<1@partner.test>")))
        until(lambda: "webhook.failed" in daemon.kinds(message_id), f"not told\n{daemon.log}")
        assert len(receiver.calls) == 1


def test_the_250_waits_for_no_receiver(stand: Stand) -> None:
    daemon = stand.daemon  # nobody listens at the port
    message_id = hand_in(daemon, wire(message("an order", Message_ID="<1@partner.test>")))
    daemon.find(daemon.alice, "an order")
    until(lambda: "webhook.deferred" in daemon.kinds(message_id), f"not tried\n{daemon.log}")


def api(daemon: Daemon, path: str, key: str) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{daemon.ports['http']}/v1{path}", headers={"Authorization": f"Bearer {key}"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())


def submit(daemon: Daemon, subject: str, recipient: str) -> tuple[str, str]:
    """Send as alice; returns the message's id and its Message-ID."""
    made = message(subject, From=daemon.alice.address, To=recipient)
    with daemon.submission(daemon.alice) as client:
        client.ehlo()
        client.mail(daemon.alice.address)
        assert client.rcpt(recipient)[0] == 250
        reply = client.data(wire(made))
    assert reply[0] == 250, reply
    return queued_id(reply), recipient


def test_a_complaint_is_noted_and_the_reader_is_written_to_no_more(stand: Stand, partner: Partner) -> None:
    daemon = stand.daemon
    sent, reader = submit(daemon, "the offer", "reader@partner.test")
    got = partner.find("the offer")
    header_id = str(got.message["Message-ID"])
    report_id = hand_in(
        daemon,
        report(about=header_id, recipient=reader, author=daemon.alice.address),
        sender="fbl@partner.test",
    )
    until(lambda: "complained" in daemon.kinds(sent), f"not noted\n{daemon.log}")
    # The same again changes nothing, though the daemon died in between.
    daemon.kill()
    daemon.start()
    again = hand_in(
        daemon,
        report(about=header_id, recipient=reader, author=daemon.alice.address),
        sender="fbl@partner.test",
    )
    until(lambda: "feedback_read" in daemon.kinds(again), f"not read\n{daemon.log}")
    assert daemon.kinds(sent).count("complained") == 1
    assert "feedback_read" in daemon.kinds(report_id)
    key = daemon.cli("key", "add", "--organization", DOMAIN, "--scope", "suppression:write")["key"]
    (held,) = api(daemon, "/suppressions", key)["suppressions"]
    assert (held["address"], held["cause"]) == (reader, "complaint")
    # What alice sends him from now on goes nowhere; others get theirs.
    later, _ = submit(daemon, "another offer", reader)
    until(lambda: "suppressed" in daemon.kinds(later), f"not held back\n{daemon.log}")
    submit(daemon, "for somebody else", "other@partner.test")
    partner.find("for somebody else")
    assert not [one for one in partner.taken if one.message["Subject"] == "another offer"]


def test_a_complaint_about_mail_that_never_left_here_is_nobodys(stand: Stand) -> None:
    daemon = stand.daemon
    read = hand_in(daemon, report(about="<never@elsewhere.test>", recipient="reader@partner.test"))
    until(lambda: "feedback_read" in daemon.kinds(read), f"not read\n{daemon.log}")
    timeline = daemon.explain(read)["timeline"]
    (told,) = [step for step in timeline if step["kind"].endswith("feedback_read")]
    assert "no_message_of_ours" in json.dumps(told)
