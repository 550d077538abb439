"""Records of storage as the JSON of API v1.

Owns the one translation from nouns to answers and the writing of times. Plain
dicts, written straight to octets: validation of our own answers is left to the
tests, since it would cost more than the query.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.responses import Response

from storage import dmarc, messages
from storage.records import (
    ApiKey,
    Credential,
    Domain,
    Event,
    Flag,
    Mailbox,
    Organization,
    Suppression,
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FLAG_NAMES = tuple((int(flag), (flag.name or "").lower()) for flag in Flag)
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def answer(
    payload: Mapping[str, object], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a JSON response."""
    body = _encode(payload).encode("utf-8", "replace")
    return Response(body, status, dict(headers) if headers else None, "application/json")


def time_text(micros: int | None) -> str | None:
    """Return microseconds since 1970 as RFC 3339 in UTC; None for None and for what no date can say."""
    if micros is None:
        return None
    try:
        moment = _EPOCH + timedelta(microseconds=micros)
    except OverflowError:
        return None
    return moment.isoformat(timespec="microseconds")[:-6] + "Z"


def parse_time(text: str) -> int:
    """Return RFC 3339 text as microseconds since 1970; ValueError without an offset or out of range."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("the time needs an offset, such as Z")
    return (moment - _EPOCH) // timedelta(microseconds=1)


def organization(one: Organization) -> dict[str, object]:
    """Return models.Organization."""
    return {
        "id": one.id,
        "name": one.name,
        "state": one.state,
        "created_at": time_text(one.created_at),
    }


def domain(one: Domain) -> dict[str, object]:
    """Return models.Domain."""
    return {
        "id": one.id,
        "organization_id": one.organization_id,
        "name": one.name,
        "state": one.state,
        "created_at": time_text(one.created_at),
    }


def dmarc_report(one: dmarc.Report) -> dict[str, object]:
    """Return models.DmarcReport."""
    plain = (
        "id", "domain", "policy_domain", "reporter", "report_id", "email", "messages", "passed",
        "authenticated", "message_id", "policy", "omitted_rows",
    )  # fmt: skip
    told: dict[str, object] = {name: getattr(one, name) for name in plain}
    told |= {name: time_text(getattr(one, name)) for name in ("begin_at", "end_at", "received_at")}
    told["rows"] = [
        {
            "source_ip": row.source_ip,
            "count": row.count,
            "dmarc": "pass" if row.passed else "fail",
            "disposition": row.disposition,
            "dkim": row.dkim,
            "spf": row.spf,
            "header_from": row.header_from,
            "envelope_from": row.envelope_from,
            "detail": row.detail,
        }
        for row in one.rows
    ]
    return told


def inbox(one: Mailbox) -> dict[str, object]:
    """Return models.Inbox."""
    return {
        "id": one.id,
        "address": one.address,
        "display_name": one.display_name,
        "state": one.state,
        "quota_octets": one.quota_octets,
        "used_octets": one.used_octets,
        "created_at": time_text(one.created_at),
    }


def credential(one: Credential) -> dict[str, object]:
    """Return models.Credential."""
    return {
        "id": one.id,
        "inbox_id": one.mailbox_id,
        "name": one.name,
        "created_at": time_text(one.created_at),
    }


def key(one: ApiKey) -> dict[str, object]:
    """Return models.Key."""
    return {
        "id": one.id,
        "name": one.name,
        "prefix": one.prefix,
        "scopes": sorted(one.scopes),
        "inbox_id": one.mailbox_id,
        "created_at": time_text(one.created_at),
        "expires_at": time_text(one.expires_at),
        "last_used_at": time_text(one.last_used_at),
        "revoked_at": time_text(one.revoked_at),
    }


def event(one: Event) -> dict[str, object]:
    """Return models.Event."""
    return {
        "id": one.id,
        "kind": one.kind,
        "at": time_text(one.at),
        "message_id": one.message_id,
        "inbox_id": one.mailbox_id,
        "delivery_id": one.delivery_id,
        "data": dict(one.data),
    }


def delivery(row: Mapping[str, Any]) -> dict[str, object]:
    """Return models.Delivery of a queue row."""
    return {
        "id": row["id"],
        "recipient": row["recipient"],
        "state": row["state"],
        "tries": row["tries"],
        "created_at": time_text(row["created_at"]),
        "next_attempt_at": time_text(row["next_attempt_at"]),
        "expires_at": time_text(row["expires_at"]),
        "last_outcome": row["last_outcome"],
    }


def queued(row: Mapping[str, Any]) -> dict[str, object]:
    """Return models.QueuedDelivery of a queue row."""
    return {
        **delivery(row),
        "message_id": row["message"],
        "domain": row["domain"],
        "priority": row["priority"],
    }


def traced(row: Mapping[str, Any]) -> dict[str, object]:
    """Return models.TracedMessage."""
    return {
        "id": row["id"],
        "direction": row["direction"],
        "source": row["source"],
        "accepted_at": time_text(row["accepted_at"]),
        "reverse_path": row["reverse_path"],
        "message_id_header": row["message_id_header"],
        "deliveries": [_traced_delivery(one) for one in row["deliveries"]],
    }


def _traced_delivery(one: Mapping[str, Any]) -> dict[str, object]:
    last = one["last_outcome"] or {}
    return {
        "id": one["id"],
        "recipient": one["recipient"],
        "state": one["state"],
        "attempts": one["tries"],
        "next_attempt_at": time_text(one["next_attempt_at"]),
        "last": " ".join(str(last[name]) for name in ("code", "enhanced", "text") if last.get(name)),
    }


def doubtful(row: Mapping[str, Any]) -> dict[str, object]:
    """Return models.DoubtfulDelivery."""
    return {
        "id": row["id"],
        "message_id": row["message_id"],
        "recipient": row["recipient"],
        "domain": row["domain"],
        "attempts": row["tries"],
        "begun_at": time_text(row["begun_at"]),
    }


def queue_action(row: Mapping[str, Any]) -> dict[str, object]:
    """Return models.QueueAction."""
    return {
        "id": row["id"],
        "verb": row["kind"],
        "actor": row["actor"],
        "at": time_text(row["at"]),
        "changed": row["changed"],
        "selection": {name: value for name, value in row["selection"].items() if name != "organization_id"},
    }


def suppression(one: Suppression) -> dict[str, object]:
    """Return suppression_models.Suppression."""
    return {
        "id": one.id,
        "address": one.address,
        "cause": one.cause,
        "evidence": one.evidence,
        "created_at": time_text(one.created_at),
        "expires_at": time_text(one.expires_at),
        "scope": one.scope,
        "sender": one.sender,
        "event_id": one.event_id,
        "failures": one.failures,
        "probation_at": time_text(one.probation_at),
    }


def flags(bits: int) -> list[str]:
    """Return the names of flags."""
    return [name for bit, name in _FLAG_NAMES if bits & bit]


def row(one: messages.Line, inbox_id: str, folder: str) -> dict[str, object]:
    """Return models.MessageSummary of a line of a list."""
    return {
        "id": one.message_id,
        "inbox_id": inbox_id,
        "folder": folder,
        "thread_id": one.thread_id,
        "received_at": time_text(one.internal_date),
        "octets": one.octets,
        "from": one.from_,
        "to": one.to,
        "subject": one.subject,
        "preview": one.preview,
        "attachments": one.attachments,
        "flags": flags(one.flags) if one.flags else [],
        "labels": one.keywords.split(),
    }


def summary(one: messages.Listed, inbox_id: str) -> dict[str, object]:
    """Return models.MessageSummary."""
    return {
        "id": one.message.id,
        "inbox_id": inbox_id,
        "folder": one.folder,
        "thread_id": one.thread_id,
        "received_at": time_text(one.entry.internal_date),
        "octets": one.entry.octets,
        "from": one.message.from_,
        "to": one.message.to,
        "subject": one.message.subject,
        "preview": one.preview,
        "attachments": one.attachments,
        "flags": flags(one.entry.flags),
        "labels": list(one.entry.keywords),
    }


def next_cursor(page: Sequence[object], limit: int, cursor: str) -> str | None:
    """Return the cursor after a page, None where the page was the last."""
    return cursor if len(page) >= limit else None
