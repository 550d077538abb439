"""Several daemon processes with roles of their own, on one data directory and one PostgreSQL."""

import random
import shutil
import smtplib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.daemon.running import Daemon, free_ports
from tests.postgres import Cluster


class Ensemble(Daemon):
    """The appliance as its clients see it: its ports lead to whichever process serves them.

    It runs no process itself. mx connections go to any of the smtp processes.
    """

    def __init__(
        self,
        directory: Path,
        *,
        cluster: Cluster,
        database: str,
        template: Path | None = None,
        **settings: Mapping[str, object],
    ) -> None:
        self.cluster = cluster
        self.database = database
        store: dict[str, object] = {"database_url": cluster.url(database), "readers": 2}
        settings["store"] = store | dict(settings.get("store", {}))
        super().__init__(directory, template=template, **settings)
        self.processes: dict[str, Daemon] = {}
        self._dice = random.Random(1)

    def add(self, name: str, *roles: str, start: bool = True, **settings: Mapping[str, object]) -> Daemon:
        """Start a process; an smtp process beside another one gets ports of its own."""
        merged: dict[str, Any] = {
            section: {**self.settings.get(section, {}), **settings.get(section, {})}
            for section in {*self.settings, *settings}
        }
        merged["server"] = {**merged.get("server", {}), "roles": list(roles)}
        process = Daemon(self.directory / name, beside=self, **merged)
        if any("smtp" in one.settings["server"]["roles"] for one in self.processes.values()):
            fresh = dict(zip(("mx", "submission", "submissions"), free_ports(3), strict=True))
            process.ports |= fresh
            process.write_configuration()
        self.processes[name] = process
        if start:
            process.start()
        return process

    def mx(self) -> smtplib.SMTP:
        chosen = self._dice.choice([name for name in self.processes if name.startswith("smtp")])
        return self.processes[chosen].mx()

    def execute(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run a statement in the database, as nobody but a test may."""
        import psycopg

        with psycopg.connect(
            f"host={self.cluster.directory} user=postgres dbname={self.database}", autocommit=True
        ) as connection:
            cursor = connection.execute(statement, values)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    @property
    def log(self) -> str:
        return "".join(f"--- {name}\n{one.log}" for name, one in self.processes.items())

    def show_stacks(self) -> None:
        for process in self.processes.values():
            process.show_stacks()

    def stop(self) -> int:
        """Ask all processes to end; the worst exit status."""
        return max(process.stop() for process in self.processes.values())

    def close(self) -> None:
        for process in self.processes.values():
            process.close()
        shutil.rmtree(self._short, ignore_errors=True)
