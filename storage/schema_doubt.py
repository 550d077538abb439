"""The table of what people said about deliveries in doubt, in the metadata of storage.schema."""

from sqlalchemy import BigInteger, Column, Index, SmallInteger, Table, Text, text

from storage.schema import metadata

doubt_verdicts = Table(
    "doubt_verdicts",
    metadata,
    Column("delivery_id", Text, primary_key=True),
    Column("organization_id", Text, nullable=False),
    Column("message_id", Text, nullable=False),
    Column("recipient", Text, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("begun_at", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
    # 1 once later evidence has shown the verdict to be wrong, and an event has said so.
    Column("corrected", SmallInteger, nullable=False),
    Index("ix_doubt_verdicts_open", "at", sqlite_where=text("corrected = 0"),
          postgresql_where=text("corrected = 0")),
)  # fmt: skip
