"""Calls that policy rules want made: the event of an applied message becomes a call that waits.

Owns what such a call says of a message, and reading the message where a rule wants it to go
along. The payload is made once, so that every try says the same.
"""

from __future__ import annotations

import datetime
import json
import os
import secrets
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from server.events.follower import Follower, Unit
from server.events.posting import UrlRefused, read_secret, read_url, write_secret
from server.events.webhooks import CONTENT_OCTETS
from storage import events, ids, messages, replaying, webhooks
from storage.codec import read_decision, read_envelope, read_verdicts
from storage.records import Event
from storage.webhooks import Call

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from server.threads import Hub, Threads

CURSOR = "webhooks"
KIND = "message.webhook"
SECOND = 1_000_000
RECIPIENTS_LIMIT = 1000
LOOKS = 3


class RuleCalls:
    """Makes calls of the events that intake leaves for rules with the action webhook."""

    def __init__(self, *, threads: Threads, hub: Hub, clock: Clock, expiry_hours: int) -> None:
        self._clock = clock
        self._expiry = expiry_hours * 3600 * SECOND
        follower = Follower(name=CURSOR, kinds=(KIND,), handle=self.handle, threads=threads, hub=hub)
        self.start, self.stop, self.catch_up = follower.start, follower.stop, follower.catch_up

    async def handle(self, event: Event) -> Unit:
        """Return the writing of an event's call."""
        return partial(self._add, event=event)

    def _add(self, connection: Connection, *, event: Event) -> None:
        payload = told(connection, event)
        if payload is None:
            return  # the message was erased meanwhile: there is nothing left to tell
        url, now = str(event.data.get("url", "")), self._clock.now()
        try:
            origin = read_url(url).origin
        except UrlRefused as refused:
            _fail(connection, event, str(refused), now)
            return
        call = Call(
            id=ids.new("whc"),
            organization_id=event.organization_id,
            event_id=event.id,
            message_id=event.message_id,
            url=url,
            origin=origin,
            kind=KIND,
            payload=payload,
            content=event.data.get("content") is True,
            created_at=now,
            next_attempt_at=now,
            expires_at=now + self._expiry,
        )
        if not webhooks.add(connection, call):
            _fail(connection, event, f"{webhooks.WAITING_LIMIT} calls wait already", now)


def _fail(connection: Connection, event: Event, text: str, now: int) -> None:
    data = {"rule": event.data.get("rule", ""), "text": text}
    failed = Event(ids.new("evt"), "webhook.failed", now, event.organization_id, event.message_id, data=data)
    events.append(connection, [failed])


def told(connection: Connection, event: Event) -> str | None:
    """Return the JSON that a call says of a message, without its content; None where it is gone."""
    row = messages.facts(connection, organization_id=event.organization_id, message_id=event.message_id or "")
    if row is None:
        return None
    envelope, decision = read_envelope(row.envelope), read_decision(row.decision)
    recipients = [one.address for one in envelope.recipients]
    data = {
        "message_id": row.id,
        "organization_id": row.organization_id,
        "rule": event.data.get("rule", ""),
        "source": row.source,
        "accepted_at": _time(row.accepted_at),
        "octets": row.octets,
        "envelope": {
            "from": envelope.reverse_path,
            "to": recipients[:RECIPIENTS_LIMIT],
            "recipient_count": len(recipients),
        },
        "verdicts": [
            {"method": one.method, "result": one.result, "domain": one.domain, "properties": one.properties}
            for one in read_verdicts(row.verdicts)
        ],
        "decision": {
            "action": decision.action.value,
            "tags": decision.tags,
            "rules": [step.rule for step in decision.trace if step.matched],
        },
    }
    whole = {"type": event.kind, "timestamp": _time(event.at), "data": data}
    return json.dumps(whole, separators=(",", ":"))


def _time(microseconds: int) -> str:
    moment = datetime.datetime.fromtimestamp(microseconds / SECOND, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def content_of(threads: Threads, call: Call) -> bytes | None:
    """Return the message as it was received; None where nobody keeps it, or it is over CONTENT_OCTETS."""
    message_id = call.message_id or ""
    for _ in range(LOOKS):  # a flag may rename the file meanwhile
        found = await threads.read(partial(_lies, threads=threads, call=call, message_id=message_id))
        for path, start in found:
            content = await threads.run(_read, path, start)
            if content is not None:
                return content if len(content) <= CONTENT_OCTETS else None
        if not found:
            return None
    return None


def _lies(connection: Connection, *, threads: Threads, call: Call, message_id: str) -> list[tuple[Path, int]]:
    row = messages.facts(connection, organization_id=call.organization_id, message_id=message_id)
    if row is None:
        return []
    store = threads.store
    places = replaying.places_of(connection, [message_id]).get(message_id, ())[:LOOKS]
    found = [
        (store.maildir.entry_path(inbox, folder, entry), entry.prefix_octets)
        for inbox, _, folder, entry in places
    ]
    return [*found, (store.message_path(message_id), len(row.trace))]


def _read(path: Path, start: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(CONTENT_OCTETS + 1)
    except FileNotFoundError:
        return None


def kept_secret(path: Path) -> bytes:
    """Return the secret in a file `whsec_…`, made where there is none; ValueError for what is no secret."""
    try:
        return read_secret(path.read_text("ascii"))
    except FileNotFoundError:
        octets = secrets.token_bytes(32)
    pending = path.with_name(path.name + ".new")
    descriptor = os.open(pending, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(write_secret(octets) + "\n")
        file.flush()
        os.fsync(file.fileno())
    pending.replace(path)
    return octets
