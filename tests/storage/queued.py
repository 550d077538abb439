"""Messages and deliveries put straight into the tables, for tests of the queue."""

from typing import Any

from sqlalchemy import Connection, insert

from storage import schema
from storage.codec import envelope_text
from storage.db import Database
from storage.records import Envelope, Recipient

NOW = 1_800_000_000_000_000
SECOND = 1_000_000
HOUR = 3600 * SECOND


def message_values(message_id: str, *, organization_id: str = "org_a", **given: Any) -> dict[str, Any]:
    """A row of messages with every column filled."""
    envelope = given.pop("envelope", Envelope("sender@ours.test", (Recipient("r@peer.test"),)))
    return {
        "id": message_id,
        "organization_id": organization_id,
        "source": "submission",
        "accepted_at": NOW,
        "octets": 2000,
        "digest": b"\0" * 32,
        "reverse_path": envelope.reverse_path,
        "envelope": envelope_text(envelope),
        "peer": "{}",
        "decision": "{}",
        "verdicts": "[]",
        "trace": b"",
        "message_id_header": f"<{message_id}@ours.test>",
        "subject": "",
        "from_": "",
        "to": "",
        "sent_at": 0,
        "thread_id": "",
        "spooled": 1,
        **given,
    }


def delivery_values(delivery_id: str, *, message_id: str, **given: Any) -> dict[str, Any]:
    """A row of deliveries that is due at NOW."""
    return {
        "id": delivery_id,
        "organization_id": "org_a",
        "message_id": message_id,
        "recipient": "r@peer.test",
        "orcpt": None,
        "notify": None,
        "domain": "peer.test",
        "state": "scheduled",
        "priority": 0,
        "tries": 0,
        "created_at": NOW,
        "next_attempt_at": NOW,
        "expires_at": NOW + 48 * HOUR,
        "lease": None,
        "lease_until": None,
        "begun_at": None,
        "last_outcome": None,
        "updated_at": NOW,
        **given,
    }


def put(database: Database, *rows: dict[str, Any], organizations: tuple[str, ...] = ("org_a",)) -> None:
    """Insert organizations, one message for each message id that the rows name, and the rows."""

    def unit(connection: Connection) -> None:
        known = {row[0] for row in connection.execute(schema.organizations.select())}
        for name in sorted({row["organization_id"] for row in rows} | set(organizations)):
            if name not in known:
                values = {"id": name, "name": name, "state": "active", "created_at": 1}
                connection.execute(insert(schema.organizations), values)
        owners = {row["message_id"]: row["organization_id"] for row in rows}
        present = {row[0] for row in connection.execute(schema.messages.select())}
        fresh = [
            message_values(key, organization_id=owner) for key, owner in owners.items() if key not in present
        ]
        if fresh:
            connection.execute(insert(schema.messages), fresh)
        if rows:
            connection.execute(insert(schema.deliveries), list(rows))

    database.write(unit)
