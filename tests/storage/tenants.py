"""Two organizations for tests of what one may not see of the other."""

from sqlalchemy import insert

from storage import schema
from storage.db import Database

OURS, OTHER = "org_ours", "org_other"


def tenants(database: Database) -> tuple[str, str]:
    """Insert two organizations and return their ids."""
    rows = [{"id": one, "name": one, "state": "active", "created_at": 1} for one in (OURS, OTHER)]
    database.write(lambda c: c.execute(insert(schema.organizations), rows) and None)
    return OURS, OTHER
