"""Connections: how SQLite and PostgreSQL are opened, and when a database is refused.

Owns the settings every connection needs (WAL, synchronous=FULL, foreign keys,
busy timeout, secure deletion), the check made before the first use, and the
translation of driver errors into storage's own. Makes and changes no tables:
that is the migrations' part. The database file itself is never opened except
by SQLite: closing any other descriptor of it would drop SQLite's locks.
"""

import os
from enum import Enum
from importlib import resources
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from storage.errors import Corrupt, Full, StorageError
from storage.files import is_no_room

BUSY_TIMEOUT_SECONDS = 10
# Above this size the start does not read the whole file to check it: 32 MiB takes about 50 ms.
QUICK_CHECK_OCTETS = 32 << 20
WAL_LIMIT_OCTETS = 64 << 20
WAL_CHECKPOINT_PAGES = 4000
# A server that is gone without a word is noticed within a minute.
_PATIENCE = {
    "connect_timeout": BUSY_TIMEOUT_SECONDS,
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}
_SQLITE_IOERR, _SQLITE_CORRUPT, _SQLITE_FULL, _SQLITE_NOTADB = 10, 11, 13, 26


class Access(Enum):
    """What a connection is for."""

    WRITE = "write"
    READ = "read"


def parse_url(url: str) -> URL:
    """Return the parsed database URL; StorageError where its form or its database is not served."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StorageError(f"not a database URL: {error}") from error
    name = parsed.drivername
    if name in ("sqlite", "sqlite+pysqlite"):
        if not parsed.database or not Path(parsed.database).is_absolute():
            raise StorageError("an SQLite URL needs an absolute path: sqlite:////var/lib/…/mailagents.sqlite")
        return parsed
    if name == "postgresql+psycopg":
        return parsed
    raise StorageError(f"database {name!r} is not served: use sqlite:////… or postgresql+psycopg://…")


def describe(url: URL) -> str:
    """Return the database's name for messages: the file, or the URL without its password."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return url.render_as_string(hide_password=True)


def make_engine(url: URL, access: Access) -> Engine:
    """Return an engine without a pool, whose connections carry all settings for their use."""
    if url.get_backend_name() == "sqlite":
        arguments = {
            "check_same_thread": False,
            "isolation_level": None,
            "timeout": BUSY_TIMEOUT_SECONDS,
            "cached_statements": 512,
        }
        engine = create_engine(url, poolclass=NullPool, connect_args=arguments)
        event.listen(engine, "connect", _prepare_writer if access is Access.WRITE else _prepare_reader)
        return engine
    engine = create_engine(url, poolclass=NullPool, connect_args=_PATIENCE)
    if access is Access.READ:
        return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    event.listen(engine, "connect", _prepare_postgresql)
    return engine


def listen(url: URL, channel: str) -> Any:
    """Return a driver's connection that hears what is notified on a channel; SQLAlchemyError."""
    pooled = make_engine(url, Access.READ).raw_connection()
    connection = pooled.dbapi_connection
    pooled.detach()
    assert connection is not None
    connection.autocommit = True
    connection.cursor().execute(f"LISTEN {channel}")
    return connection


def _prepare_both(raw: Any) -> None:
    raw.execute("PRAGMA foreign_keys = ON")
    raw.execute("PRAGMA synchronous = FULL")
    raw.execute("PRAGMA secure_delete = ON")
    raw.execute("PRAGMA temp_store = MEMORY")
    raw.execute("PRAGMA cache_size = -8192")


def _prepare_writer(raw: Any, _record: object) -> None:
    _prepare_both(raw)
    raw.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_OCTETS}")
    # Under load the same pages change again and again: copy them back less often than every 1000.
    raw.execute(f"PRAGMA wal_autocheckpoint = {WAL_CHECKPOINT_PAGES}")


def _prepare_reader(raw: Any, _record: object) -> None:
    _prepare_both(raw)
    raw.execute("PRAGMA query_only = ON")


def _prepare_postgresql(raw: Any, _record: object) -> None:
    # The database is the promise here too: a commit that returns is on its disk.
    raw.autocommit = True
    raw.execute("SET synchronous_commit = on")
    raw.autocommit = False


def translate(error: Exception, place: str) -> Exception:
    """Return storage's own error for a driver's: Full and Corrupt told apart, the rest as it was."""
    if isinstance(error, OSError) and is_no_room(error):
        return Full(f"no room left on the disk of {place}")
    original = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(original, "sqlite_errorcode", 0) & 0xFF
    state = getattr(original, "sqlstate", None)
    if code == _SQLITE_FULL or state == "53100":
        return Full(f"no room left on the disk of {place}")
    if code in (_SQLITE_CORRUPT, _SQLITE_NOTADB) or state in ("XX001", "XX002"):
        return Corrupt(f"{place} is damaged: {original}. Restore it from a backup, or run 'reconcile'.")
    if isinstance(error, DBAPIError) and (error.connection_invalidated or _is_unreached(error)):
        return StorageError(f"{place} cannot be reached: {_first_line(original)}")
    if code == _SQLITE_IOERR:
        return StorageError(f"input or output error on {place}: {original}")
    return error


def revisions() -> list[str]:
    """Return the schema revisions this program knows, oldest first; their files are named by them."""
    folder = resources.files("storage.migrations") / "versions"
    names = (entry.name for entry in folder.iterdir())
    return sorted(name.split("_", 1)[0] for name in names if name[:1].isdigit() and name.endswith(".py"))


def revision(connection: Connection) -> str | None:
    """Return the schema revision of the database, None where it has no tables at all.

    Corrupt where it holds tables that are not this program's.
    """
    tables = set(inspect(connection).get_table_names())
    if "alembic_version" in tables:
        row = connection.exec_driver_sql("SELECT version_num FROM alembic_version").one_or_none()
        if row is not None:
            return str(row[0])
    foreign = tables - {"alembic_version"}
    if foreign and (connection.dialect.name == "sqlite" or "organizations" in foreign):
        raise Corrupt(f"it holds tables that Mailagents did not make ({', '.join(sorted(foreign)[:3])}, …)")
    return None


def check(url: URL) -> None:
    """Refuse a database that cannot be used, in one sentence that says what to do.

    Corrupt: not a database, damaged, another program's, or of a newer schema.
    StorageError: cannot be opened, reached or written.
    """
    place = describe(url)
    if url.get_backend_name() == "sqlite" and not _present(Path(str(url.database))):
        return
    engine = make_engine(url, Access.WRITE)
    try:
        with engine.connect() as connection:
            _check_schema(connection)
            if connection.dialect.name == "sqlite":
                _check_file(connection, Path(str(url.database)))
    except Corrupt as error:
        raise Corrupt(f"{place} cannot be used: {error}") from error
    except SQLAlchemyError as error:
        raise explain(error, place) from error
    finally:
        engine.dispose()


def _present(path: Path) -> bool:
    if path.exists():
        if not path.is_file():
            raise Corrupt(f"{path} is not a file: the database must be one")
        return True
    if not path.parent.is_dir():
        raise StorageError(f"{path.parent} is not a directory: make it before the database can be made there")
    if not os.access(path.parent, os.W_OK):
        raise StorageError(f"{path.parent} cannot be written: the database cannot be made there")
    return False


def _check_schema(connection: Connection) -> None:
    known = revisions()
    found = revision(connection)
    if found is not None and found not in known:
        raise Corrupt(
            f"its schema {found} is newer than this program knows ({known[-1]}). "
            "Start the version of Mailagents that made it, or a later one."
        )


def _check_file(connection: Connection, path: Path) -> None:
    pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    page_octets = connection.exec_driver_sql("PRAGMA page_size").scalar_one()
    if pages * page_octets <= QUICK_CHECK_OCTETS:
        finding = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
        if finding != "ok":
            raise Corrupt(f"it is damaged ({str(finding).strip()}). Restore it from a backup.")
    connection.rollback()
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    connection.rollback()


def explain(error: SQLAlchemyError, place: str) -> StorageError:
    """Return the sentence for a database that cannot be opened or changed."""
    original = getattr(error, "orig", None) or error
    code = getattr(original, "sqlite_errorcode", 0) & 0xFF
    if code == _SQLITE_NOTADB:
        return Corrupt(f"{place} is not an SQLite database. Restore it from a backup, or move it away.")
    if code == _SQLITE_CORRUPT:
        return Corrupt(f"{place} is damaged ({original}). Restore it from a backup.")
    translated = translate(error, place)
    if isinstance(translated, StorageError) and not _is_unreached(error):
        return translated
    return StorageError(f"{place} cannot be opened for writing: {_first_line(original)}")


def _is_unreached(error: Exception) -> bool:
    """Return whether PostgreSQL could not be asked at all: its driver has no state then."""
    original = getattr(error, "orig", None)
    return type(original).__name__ == "OperationalError" and getattr(original, "sqlstate", "") is None


def _first_line(error: object) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
