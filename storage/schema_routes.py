"""The table of routes that were set at run time, in the metadata of storage.schema."""

from sqlalchemy import BigInteger, Column, Table, Text

from storage.schema import metadata

queue_routes = Table(
    "queue_routes",
    metadata,
    # 'delivery', 'message', 'domain', 'organization' or 'all', and which one: '' for all.
    Column("scope", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("hop", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("until", BigInteger),  # NULL: until somebody takes it back
)
