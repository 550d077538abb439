"""SQLite databases that are migrated already: making one anew takes longer than most tests."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from storage.db import Database


@functools.cache
def _template() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="mailagents-tests-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    database = Database.open(f"sqlite:///{directory / 'migrated.sqlite'}")
    database.migrate()
    database.close()
    return directory / "migrated.sqlite"


def migrated(path: Path) -> str:
    """Return the URL of a database with all tables: the one that is there, or a new one."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_template(), path)
    return f"sqlite:///{path}"
