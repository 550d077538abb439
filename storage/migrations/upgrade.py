"""Brings a database to the newest revision: the one way a database is made or changed.

Owns the call of alembic, nothing of any revision. Where the database is there
already and new enough, alembic is not even imported.
"""

import os
from pathlib import Path

from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from storage import engine


def upgrade(url: URL) -> None:
    """Migrate to the newest revision in one transaction; Corrupt or StorageError where it cannot be."""
    if url.get_backend_name() == "sqlite":
        _make_private(Path(str(url.database)))
    connecting = engine.make_engine(url, engine.Access.WRITE)
    try:
        with connecting.connect() as connection:
            newest = engine.revision(connection) == engine.revisions()[-1]
            connection.rollback()
            if newest:
                return
        _run_alembic(url)
    except SQLAlchemyError as error:
        raise engine.explain(error, engine.describe(url)) from error
    finally:
        connecting.dispose()


def _make_private(path: Path) -> None:
    """Make an empty file that its owner alone can read, unless there is one."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return


def _run_alembic(url: URL) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["url"] = url
    command.upgrade(config, "head")
