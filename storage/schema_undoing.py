"""The tables of what people did to the queue and may still take back, in the metadata of storage.schema."""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, Table, Text

from storage.schema import metadata

queue_actions = Table(
    "queue_actions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("at", BigInteger, nullable=False, index=True),
    Column("organization_id", Text),  # NULL: an operator's, over all of them
    Column("selection", Text, nullable=False),
    Column("changed", Integer, nullable=False),
)

# What each delivery was before; gone once the action can no longer be taken back.
queue_action_items = Table(
    "queue_action_items",
    metadata,
    Column("action_id", Text, ForeignKey("queue_actions.id"), primary_key=True),
    Column("delivery_id", Text, primary_key=True),
    Column("message_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("next_attempt_at", BigInteger),
    Column("expires_at", BigInteger, nullable=False),
    Column("after_state", Text, nullable=False),
    Column("after_due", BigInteger),
    Index("ix_queue_action_items_message", "message_id"),
    sqlite_with_rowid=False,
)
