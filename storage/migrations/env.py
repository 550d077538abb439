"""What alembic runs around the revisions: one connection, one transaction, no second writer.

Owns the order of things: on a new SQLite file `auto_vacuum` before any table
and WAL after it; foreign keys off while tables are rebuilt, and checked before
the commit; on PostgreSQL a lock, so that processes starting together take turns.
"""

from alembic import context
from sqlalchemy import URL, Connection

from storage import engine
from storage.errors import Corrupt
from storage.schema_dmarc import dmarc_reports
from storage.schema_doubt import doubt_verdicts
from storage.schema_routes import queue_routes
from storage.schema_tls import tls_policies
from storage.schema_undoing import queue_actions

# Any number will do, as long as it stays the same: 'mail' in ASCII.
ADVISORY_LOCK = 0x6D61696C
# All modules of tables share one metadata, once each is imported.
TABLES = (dmarc_reports, doubt_verdicts, queue_routes, tls_policies, queue_actions)


def run() -> None:
    """Run the revisions that are asked for, all or none."""
    url: URL = context.config.attributes["url"]
    connecting = engine.make_engine(url, engine.Access.WRITE)
    with connecting.connect() as connection:
        begin(connection)
        context.configure(connection=connection, target_metadata=TABLES[0].metadata, render_as_batch=True)
        with context.begin_transaction():
            context.run_migrations()
        finish(connection)
    connecting.dispose()


def begin(connection: Connection) -> None:
    """Begin the transaction, settings that must come before the first table set."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (ADVISORY_LOCK,))
        return
    for setting in (
        "auto_vacuum = INCREMENTAL",
        "secure_delete = ON",
        "journal_mode = WAL",
        "foreign_keys = OFF",
    ):
        connection.exec_driver_sql(f"PRAGMA {setting}")
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def finish(connection: Connection) -> None:
    """Commit; Corrupt, and nothing changed, where rebuilt tables left rows that point nowhere."""
    if connection.dialect.name == "sqlite":
        wrong = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(1)
        if wrong:
            connection.rollback()
            raise Corrupt(f"the migration was undone: a row of {wrong[0][0]} refers to nothing")
    connection.commit()


run()
