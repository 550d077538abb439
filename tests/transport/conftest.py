"""The databases that storage tests have, for tests of transport security."""

from tests.storage.conftest import database, database_url, dialect, postgresql_cluster, sqlite_template

__all__ = ["database", "database_url", "dialect", "postgresql_cluster", "sqlite_template"]
