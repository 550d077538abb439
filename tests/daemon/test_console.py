"""The console of a running daemon, as an operator's browser gets it."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.daemon.letters import DOMAIN, message, queued_id, wire
from tests.daemon.running import Daemon, Inbox, until
from tests.interop.programs import program

pytestmark = pytest.mark.interop


@contextmanager
def browser(daemon: Daemon, key: str) -> Iterator[httpx.Client]:
    """A client that has signed in with a key."""
    base = f"http://127.0.0.1:{daemon.ports['http']}"
    with httpx.Client(base_url=base, headers={"Sec-Fetch-Site": "same-origin"}) as client:
        answer = client.post("/console/sign-in", data={"key": key})
        assert (answer.status_code, answer.headers["location"]) == (303, "/console")
        yield client


def test_an_operator_sees_a_message_and_its_timeline(daemon: Daemon, inbox: Inbox) -> None:
    with daemon.mx() as client:
        client.ehlo()
        client.mail("a@partner.test")
        client.rcpt(inbox.address)
        identifier = queued_id(client.data(wire(message("<b>Bold</b> & Grüße"))))
    until(lambda: daemon.kinds(identifier) == ["accepted", "received"], "it does not come")
    with browser(daemon, daemon.keys["operator"]) as operator:
        assert f"/console/messages/{identifier}" in operator.get("/console/messages").text
        page = operator.get(f"/console/messages/{identifier}")
    assert page.status_code == 200
    words = " ".join(re.sub(r"<[^>]+>", " ", page.text).split())
    for word in ("accepted", "received", identifier, inbox.address):
        assert word in words
    assert "Bold" not in words, "operating is no permission to read"
    scopes = ["operator", "message:read"]
    reader = daemon.ask("key-add", organization=DOMAIN, name="reader", scopes=scopes)["key"]
    with browser(daemon, reader) as permitted:
        page = permitted.get(f"/console/messages/{identifier}")
    assert "&lt;b&gt;Bold&lt;/b&gt; &amp; Grüße" in page.text and "<b>Bold</b>" not in page.text


def test_health_metrics_and_description_are_served(daemon: Daemon) -> None:
    base = f"http://127.0.0.1:{daemon.ports['http']}"
    described = httpx.get(f"{base}/v1/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    for path in ("/health", "/ready"):
        found = [httpx.get(base + prefix + path).status_code for prefix in ("", "/v1")]
        assert 200 in found, (path, found)


def test_a_browser_shows_the_door(daemon: Daemon, tmp_path: Path) -> None:
    """A real browser, so that the content policy lets the page's own style through."""
    picture = tmp_path / "page.png"
    command = [
        program("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path}/profile", "--window-size=1000,700", f"--screenshot={picture}",
        f"http://127.0.0.1:{daemon.ports['http']}/console/sign-in",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Refused to" not in done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5000
