"""Routes set at run time, on SQLite and on PostgreSQL."""

import pytest

from storage import rerouting
from storage.db import Database
from storage.errors import Missing
from storage.rerouting import Rerouted, Scope
from tests.storage.queued import NOW, SECOND, delivery_values, put


def rerouted(scope: Scope, subject: str, to: str = "smtp:a.test:25", *, until: int | None = None) -> Rerouted:
    return Rerouted(scope, subject, to, "ann", "", NOW, until)


def test_rows_are_kept_replaced_and_pruned(database: Database) -> None:
    put(database, delivery_values("dlv_1", message_id="msg_1"))
    for route in (
        rerouted(Scope.DELIVERY, "dlv_1"),
        rerouted(Scope.MESSAGE, "msg_gone"),
        rerouted(Scope.DOMAIN, "a.test", until=NOW + SECOND),
        rerouted(Scope.DOMAIN, "b.test", "smtp:1.test:25"),
        rerouted(Scope.DOMAIN, "b.test", "smtp:2.test:25"),
    ):
        database.write(lambda c, route=route: rerouting.put(c, route))
    found = database.read(lambda c: rerouting.routes(c, at=NOW))
    assert {(one.scope, one.subject): one.hop for one in found}[Scope.DOMAIN, "b.test"] == "smtp:2.test:25"
    database.write(lambda c: rerouting.prune(c, at=NOW + SECOND))
    left = database.read(lambda c: rerouting.routes(c, at=NOW))
    assert {one.subject for one in left} == {"dlv_1", "b.test"}
    database.write(lambda c: rerouting.remove(c, scope=Scope.DOMAIN, subject="b.test", at=NOW))
    with pytest.raises(Missing):
        database.write(lambda c: rerouting.remove(c, scope=Scope.DOMAIN, subject="b.test", at=NOW))
