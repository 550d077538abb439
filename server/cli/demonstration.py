"""The demonstration of `mailagents dev`: one real message carried the whole way.

Owns the scenes and their checks: each uses a foreign client or server (smtplib,
imaplib, urllib, stock aiosmtpd in a process of its own), and each failure says
what was expected.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import email.utils
import imaplib
import json
import smtplib
import ssl
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from server.cli import output
from server.operations import Context, perform

PATIENCE_SECONDS = 20.0


class Failed(Exception):
    """A scene did not go as it should; the text says how."""


class Partner:
    """The second server: stock aiosmtpd in a process of its own, keeping mail in a Maildir."""

    def __init__(self, directory: Path, port: int, domain: str) -> None:
        self.directory = directory
        self.address = f"customer@{domain}"
        self._port = port
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it and wait until it greets."""
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "aiosmtpd", "-n", "-l", f"127.0.0.1:{self._port}",
            "-c", "aiosmtpd.handlers.Mailbox", str(self.directory),
        )  # fmt: skip
        await _until(self._greets, "the second server does not greet")

    async def _greets(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            return False
        greeting = await reader.readline()
        writer.close()
        return greeting.startswith(b"220")

    async def stop(self) -> None:
        """End the process."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()

    def received(self, subject: str) -> EmailMessage | None:
        """Return the message of that subject if it has come."""
        for path in (self.directory / "new").glob("*"):
            message = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
            if message["Subject"] == subject:
                return message
        return None


@dataclass(frozen=True)
class Scene:
    """What the demonstration plays with."""

    ports: dict[str, int]
    known: dict[str, Any]
    partner: Partner
    context: Context

    @property
    def inbox(self) -> dict[str, Any]:
        """The first inbox."""
        inbox: dict[str, Any] = self.known["inboxes"][0]
        return inbox


async def play(scene: Scene) -> bool:
    """Carry the message; prints each step and both timelines. Returns whether all went well."""
    subject = f"Where is my order {int(time.time())}?"
    print("A message on its way:")
    try:
        await asyncio.to_thread(_send, scene, subject)
        _step(f"smtplib delivered a message from {scene.partner.address} to {scene.inbox['address']}")
        await asyncio.to_thread(_read_by_imap, scene, subject)
        _step("imaplib read it in INBOX over TLS")
        received = await asyncio.to_thread(_read_by_api, scene, subject)
        _step(f"the API shows it as {received['id']}")
        reply = await asyncio.to_thread(_reply, scene, received["id"])
        _step(f"the key submitted a reply, accepted as {reply['id']}")
        delivered = await _until_value(
            lambda: scene.partner.received(f"Re: {subject}"), "the reply did not reach the second server"
        )
        _step(f"the second server has it, {_signatures(delivered)}")
        for title, message_id in (("The message", received["id"]), ("The reply", reply["id"])):
            print(f"\n{title}, {message_id}:")
            output.timeline((await _settled(scene, message_id))["timeline"])
    except Failed as error:
        print(f"  failed: {error}", file=sys.stderr)
        return False
    return True


def _step(text: str) -> None:
    print(f"  {text}", flush=True)


def _send(scene: Scene, subject: str) -> None:
    message = EmailMessage()
    message["From"] = f"A Customer <{scene.partner.address}>"
    message["To"] = scene.inbox["address"]
    message["Subject"] = subject
    message["Message-ID"] = f"<{time.time_ns()}@{scene.partner.address.partition('@')[2]}>"
    message["Date"] = email.utils.formatdate()
    message.set_content("Hello,\n\nI ordered a lamp last week. Where is it now?\n\nA Customer\n")
    with smtplib.SMTP("127.0.0.1", scene.ports["mx"], local_hostname="partner.test", timeout=20) as client:
        client.send_message(message)


def _read_by_imap(scene: Scene, subject: str) -> None:
    context = ssl.create_default_context()
    # The certificate is the appliance's own, made for this folder.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with imaplib.IMAP4_SSL("127.0.0.1", scene.ports["imaps"], ssl_context=context, timeout=20) as client:
        client.login(scene.inbox["address"], scene.inbox["password"])
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            client.select("INBOX", readonly=True)
            _, found = client.search(None, "SUBJECT", f'"{subject}"')
            if found[0]:
                _, parts = client.fetch(found[0].split()[-1].decode(), "(BODY.PEEK[])")
                fetched = parts[0][1] if isinstance(parts[0], tuple) else b""
                if subject.encode() in fetched:
                    return
            time.sleep(0.05)
    raise Failed(f"{subject!r} is not in INBOX")


def _call(scene: Scene, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{scene.ports['http']}{path}",
        method=method,
        data=json.dumps(body).encode() if body is not None else None,
        headers={"Authorization": f"Bearer {scene.known['key']['key']}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as response:  # noqa: S310  the URL is made above
        answer: dict[str, Any] = json.load(response)
        return answer


def _read_by_api(scene: Scene, subject: str) -> dict[str, Any]:
    page = _call(scene, "GET", f"/v1/inboxes/{scene.inbox['id']}/messages")
    for message in page["messages"]:
        if message["subject"] == subject:
            found: dict[str, Any] = message
            return found
    raise Failed(f"the API does not list {subject!r}")


def _reply(scene: Scene, message_id: str) -> dict[str, Any]:
    path = f"/v1/inboxes/{scene.inbox['id']}/messages/{message_id}/reply"
    return _call(scene, "POST", path, {"text": "Hello,\n\nit is on its way to you.\n\nSupport\n"})


def _signatures(message: EmailMessage) -> str:
    signatures = message.get_all("DKIM-Signature") or []
    if not signatures:
        raise Failed("the reply carries no DKIM-Signature")
    algorithms = [_tag(str(signature), "a") for signature in signatures]
    return f"DKIM-signed by {_tag(str(signatures[0]), 'd')} with {' and '.join(algorithms)}"


def _tag(signature: str, name: str) -> str:
    for part in signature.replace("\n", "").split(";"):
        key, _, value = part.strip().partition("=")
        if key == name:
            return value.strip()
    return "?"


async def _settled(scene: Scene, message_id: str) -> dict[str, Any]:
    async def explained() -> dict[str, Any] | None:
        result = await asyncio.to_thread(perform, scene.context, "explain", {"id": message_id})
        waiting = {"scheduled", "active"} & {row["state"] for row in result["deliveries"]}
        return None if waiting else result

    settled: dict[str, Any] = await _until_value_of(explained, "the reply's delivery is not settled")
    return settled


async def _until(check: Callable[[], Any], text: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not await check():
        if time.monotonic() > end:
            raise Failed(text)
        await asyncio.sleep(0.05)


async def _until_value(check: Callable[[], Any], text: str) -> Any:
    async def asked() -> Any:
        return await asyncio.to_thread(check)

    return await _until_value_of(asked, text)


async def _until_value_of(check: Callable[[], Any], text: str) -> Any:
    end = time.monotonic() + PATIENCE_SECONDS
    while (value := await check()) is None:
        if time.monotonic() > end:
            raise Failed(text)
        await asyncio.sleep(0.05)
    return value
