"""The migrations make what storage/schema.py says, in one transaction, found from the package."""

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

import storage.migrations
from storage import engine, schema_dmarc, schema_doubt, schema_routes, schema_undoing
from storage.db import Database

METADATA = schema_dmarc.dmarc_reports.metadata
assert schema_undoing.queue_actions.metadata is METADATA
assert schema_doubt.doubt_verdicts.metadata is METADATA
assert schema_routes.queue_routes.metadata is METADATA
FOLDER = Path(storage.migrations.__file__).parent


def definitions(conn: Connection) -> dict[str, list[str]]:
    rows = conn.execute(text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    # The order of constraints means nothing.
    return {
        name: sorted(part.strip(" )") for part in " ".join(sql.split()).split(", "))
        for name, sql in rows
        if not name.startswith(("sqlite_", "alembic_"))
    }


def test_head_has_the_tables_of_the_schema(database: Database) -> None:
    def differences(conn: Connection) -> object:
        return compare_metadata(MigrationContext.configure(conn), METADATA)

    assert database.read(differences) == []


def test_head_is_part_for_part_what_the_schema_makes_on_sqlite(sqlite_template: Path, tmp_path: Path) -> None:
    # compare_metadata knows nothing of WITHOUT ROWID, AUTOINCREMENT and partial indexes.
    made = engine.make_engine(engine.parse_url(f"sqlite:///{tmp_path / 'made.sqlite'}"), engine.Access.WRITE)
    METADATA.create_all(made)
    migrated = engine.make_engine(engine.parse_url(f"sqlite:///{sqlite_template}"), engine.Access.READ)
    with made.connect() as left, migrated.connect() as right:
        assert definitions(right) == definitions(left)


def test_every_constraint_has_a_name_of_the_convention() -> None:
    for table in METADATA.tables.values():
        for constraint in table.constraints:
            assert constraint.name, f"{table.name}: {constraint!r}"


def test_known_revisions_are_alembics_own() -> None:
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    script = ScriptDirectory.from_config(config)
    found = [revision.revision for revision in script.walk_revisions()]
    assert list(reversed(found)) == engine.revisions()
    assert script.get_current_head() == engine.revisions()[-1]


def test_every_directory_of_the_migrations_is_a_package() -> None:
    folders = {path.parent for path in FOLDER.rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_failing_migration_leaves_no_table(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic.operations import Operations

    plain = Operations.create_index

    def fail(self, name, table, *rest, **options):
        if table == "entries":
            raise RuntimeError("power cut")
        return plain(self, name, table, *rest, **options)

    database = Database.open(empty_url)
    with monkeypatch.context() as patch:
        patch.setattr(Operations, "create_index", fail)
        with pytest.raises(RuntimeError, match="power cut"):
            database.migrate()
    assert database.read(engine.revision) is None
    database.migrate()
    assert database.read(engine.revision) == engine.revisions()[-1]
    database.close()
