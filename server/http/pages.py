"""What the console's pages show, made of rows: words for events, times, sizes.

Owns the views that templates get: plain dicts of text, so that a template holds
no logic but loops. Shows envelope facts; a subject only where the caller says
that its key may read content.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from server.http.answers import time_text
from storage import accounts, dmarc, events, messages, queue
from storage.records import DeliveryState, Event

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from storage.records import ApiKey, Message

ROWS = 50
EVENT_ROWS = 15
INBOX_ROWS = 10
DMARC_REPORTS = 30
DMARC_ROWS = 20

_WORDS = {
    "message.accepted": "Accepted: on stable storage, decided",
    "message.received": "Placed in an inbox",
    "message.kept": "Kept in the sender's folder",
    "message.delivered": "Delivered to the remote server",
    "message.deferred": "Deferred: will be tried again",
    "message.delayed": "Still on its way; the sender was told",
    "message.bounced": "Bounced: refused for good",
    "message.expired": "Expired: given up, out of time",
    "message.suppressed": "Not sent: the address is suppressed",
    "message.held": "Held in the queue",
    "message.released": "Released from hold",
    "message.retried": "Asked to be tried at once",
    "message.restored": "An action was taken back",
    "message.cancelled": "Cancelled",
    "message.notified": "The sender was notified",
    "message.rejected": "Rejected by policy",
    "message.aside": "Set aside for the operator",
    "message.unrendered": "Stored; its structure can't be read",
    "tls.report_sent": "TLS report sent to a domain that asks for it",
    "tls.report_failed": "TLS report given up",
    "tls.report_received": "TLS report about a domain has come",
    "tls.report_unreadable": "TLS report that can't be read",
    "tls.report_ignored": "TLS report about a domain of somebody else",
    "dmarc.report_sent": "DMARC report sent to a domain that asks for it",
    "dmarc.report_withheld": "DMARC report not sent: its destination does not ask for it",
    "dmarc.report_failed": "DMARC report given up",
    "dmarc.report_received": "DMARC report about a domain has come",
    "dmarc.report_unreadable": "DMARC report that can't be read",
    "dmarc.report_ignored": "DMARC report about a domain of somebody else",
}
_TONES = {
    "message.delivered": "good",
    "message.received": "good",
    "message.accepted": "good",
    "message.deferred": "wait",
    "message.delayed": "wait",
    "message.held": "wait",
    "message.bounced": "bad",
    "message.expired": "bad",
    "message.rejected": "bad",
    "message.suppressed": "bad",
    "message.aside": "bad",
}
_STATE_TONES = {
    DeliveryState.DELIVERED.value: "good",
    DeliveryState.SCHEDULED.value: "wait",
    DeliveryState.ACTIVE.value: "wait",
    DeliveryState.DEFERRED.value: "wait",
    DeliveryState.HELD.value: "wait",
    DeliveryState.BOUNCED.value: "bad",
    DeliveryState.EXPIRED.value: "bad",
    DeliveryState.SUPPRESSED.value: "bad",
}
_RESULT_TONES = {"pass": "good", "fail": "bad", "permerror": "bad", "softfail": "wait", "temperror": "wait"}
# Said in a sentence of their own, not among the other facts.
_SPOKEN = ("code", "enhanced", "text", "state")


def overview(connection: Connection) -> dict[str, object]:
    """Return the first page: how much there is, what waits, what happened last."""
    counted = messages.count_accounts(connection)
    return {
        "organizations": counted.organizations,
        "inboxes": counted.mailboxes,
        "queue": queue.counts(connection),
        "events": [step(one) for one in events.latest(connection, limit=EVENT_ROWS)],
        "newest_inboxes": [
            {
                "id": one.id,
                "address": one.address,
                "state": one.state,
                "used": size_text(one.used_octets),
                "created": moment(one.created_at),
            }
            for one in accounts.newest_mailboxes(connection, limit=INBOX_ROWS)
        ],
    }


def message_list(connection: Connection, *, before_id: str | None, reader: ApiKey) -> dict[str, object]:
    """Return a page of messages of all organizations, newest first, by envelope."""
    page = messages.newest(connection, organization_id=None, before_id=before_id, limit=ROWS)
    return {
        "messages": [_row(one, reader) for one in page],
        "older": page[-1].id if len(page) == ROWS else None,
        "is_first": before_id is None,
    }


def message(connection: Connection, *, message_id: str, reader: ApiKey) -> dict[str, object] | None:
    """Return a message's page: envelope, decision, verdicts, timeline, deliveries; None if there is none."""
    owner = messages.organization_of(connection, message_id=message_id)
    if owner is None:
        return None
    row = messages.facts(connection, organization_id=owner, message_id=message_id)
    assert row is not None, "its organization was read in this snapshot"
    envelope, peer, decision = (json.loads(one) for one in (row.envelope, row.peer, row.decision))
    steps = events.timeline(connection, organization_id=owner, message_id=message_id)
    found = queue.of_message(connection, organization_id=owner, message_id=message_id)
    return {
        "id": row.id,
        "subject": row.subject if may_read(reader, owner) else None,
        "organization": owner,
        "source": row.source,
        "accepted": moment(row.accepted_at),
        "octets": size_text(row.octets),
        "digest": bytes(row.digest).hex(),
        "sender": row.reverse_path,
        "recipients": [one["address"] for one in envelope.get("recipients", ())],
        "peer": {name: value for name, value in peer.items() if value not in (None, "", 0, False)},
        "decision": decision,
        "verdicts": [_verdict(one) for one in json.loads(row.verdicts)],
        "steps": [step(one) for one in steps],
        "deliveries": [_delivery(one) for one in found],
    }


def dmarc_list(connection: Connection) -> dict[str, object]:
    """Return the newest DMARC reports of others about domains of all organizations."""
    found = dmarc.newest(connection, limit=DMARC_REPORTS, with_rows=DMARC_ROWS)
    return {"reports": [_dmarc(one) for one in found]}


def _dmarc(one: dmarc.Report) -> dict[str, object]:
    return {
        "domain": one.domain,
        "reporter": one.reporter,
        "report_id": one.report_id,
        "begin": moment(one.begin_at)[:16],
        "end": moment(one.end_at)[:16],
        "messages": one.messages,
        "passed": one.passed,
        "authenticated": one.authenticated,
        "policy": one.policy.get("p", ""),
        "left_out": one.omitted_rows > 0 or len(one.rows) == DMARC_ROWS,
        "rows": [
            {
                "source": row.source_ip,
                "count": row.count,
                "result": "pass" if row.passed else "fail",
                "tone": "good" if row.passed else "bad",
                "dkim": row.dkim,
                "spf": row.spf,
                "disposition": row.disposition,
                "header_from": row.header_from,
            }
            for row in one.rows
        ],
    }


def may_read(reader: ApiKey, organization_id: str) -> bool:
    """Return whether a key may see content of an organization's messages."""
    return "message:read" in reader.scopes and reader.organization_id == organization_id


def step(one: Event) -> dict[str, object]:
    """Return an event in words: what happened, what the remote said, the other facts."""
    data = one.data
    said = " ".join(str(data[name]) for name in ("code", "enhanced", "text") if data.get(name))
    return {
        "kind": one.kind,
        "words": _WORDS.get(one.kind, one.kind.replace(".", ": ").replace("_", " ")),
        "tone": _TONES.get(one.kind, "plain"),
        "at": moment(one.at),
        "message_id": one.message_id,
        "inbox_id": one.mailbox_id,
        "said": said,
        "facts": [(name, _fact(name, value)) for name, value in data.items() if _is_shown(name, value)],
    }


def _is_shown(name: str, value: object) -> bool:
    return name not in _SPOKEN and value not in (None, "", [], {})


def _fact(name: str, value: object) -> str:
    if name.endswith("_at") and isinstance(value, int):
        return moment(value)
    if name == "duration" and isinstance(value, int):
        return f"{value / 1000:.0f} ms"
    if name == "octets" and isinstance(value, int):
        return size_text(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(str(one) for one in value)
    return str(value)


def _row(one: Message, reader: ApiKey) -> dict[str, object]:
    return {
        "id": one.id,
        "accepted": moment(one.accepted_at),
        "source": one.source.value,
        "sender": one.reverse_path,
        "octets": size_text(one.octets),
        "subject": one.subject if may_read(reader, one.organization_id) else None,
    }


def _verdict(found: Mapping[str, Any]) -> dict[str, object]:
    return {
        "method": found.get("method", ""),
        "result": found.get("result", ""),
        "tone": _RESULT_TONES.get(str(found.get("result")), "plain"),
        "domain": found.get("domain", ""),
        "reason": found.get("reason", ""),
    }


def _delivery(row: Mapping[str, Any]) -> dict[str, object]:
    outcome = row["last_outcome"] or {}
    said = " ".join(str(outcome[name]) for name in ("code", "enhanced", "text") if outcome.get(name))
    due = row["next_attempt_at"]
    return {
        "id": row["id"],
        "recipient": row["recipient"],
        "state": row["state"],
        "tone": _STATE_TONES.get(row["state"], "plain"),
        "tries": row["tries"],
        "due": moment(due) if due else "",
        "said": said,
        "host": outcome.get("host", ""),
        "tls": outcome.get("tls_version", ""),
        "policy": outcome.get("tls_policy", ""),
        "why": outcome.get("tls_reason", ""),
    }


def moment(micros: int) -> str:
    """Return a time for people: '2026-01-31 09:30:00.123' in UTC."""
    text = time_text(micros)
    return "" if text is None else f"{text[:10]} {text[11:23]}"


def size_text(octets: int) -> str:
    """Return a size for people."""
    size = float(octets)
    for unit in ("octets", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "octets" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("the loop ends at its last unit")
