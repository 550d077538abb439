"""The databases that storage tests have, for tests of reports."""

from tests.storage.conftest import database, database_url, dialect, postgresql_cluster, sqlite_template

__all__ = ["database", "database_url", "dialect", "postgresql_cluster", "sqlite_template"]
