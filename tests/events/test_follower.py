"""A consumer of events: each handled once and in order, whatever fails on the way."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from server.events import follower
from server.events.follower import ATTEMPTS, Follower, Unit
from storage import events, ids
from storage.errors import StorageError
from storage.records import Event
from tests.test_intake import Appliance, run

Handle = Callable[[Event], Any]


def tell(appliance: Appliance, *words: str, kind: str = "test.said") -> None:
    owner = appliance.store.database.read(
        lambda c: c.exec_driver_sql("SELECT id FROM organizations ORDER BY id LIMIT 1").scalar()
    )
    made = [Event(ids.new("evt"), kind, 1, owner, data={"word": word}) for word in words]
    appliance.store.database.write(lambda c: events.append(c, made) and None)


def following(appliance: Appliance, handle: Handle) -> Follower:
    threads = appliance.threads
    return Follower(name="test", kinds=("test.said",), handle=handle, threads=threads, hub=threads.hub)


def cursor(appliance: Appliance) -> int:
    return appliance.store.database.read(partial(events.cursor, name="test"))


class Listener:
    """Keeps what it was told. failing: what to raise for a word, and how often."""

    def __init__(self, **failing: list[Exception]) -> None:
        self.heard: list[str] = []
        self.failing = failing

    async def __call__(self, event: Event) -> Unit:
        word = str(event.data["word"])
        if self.failing.get(word):
            raise self.failing[word].pop()
        self.heard.append(word)
        return lambda _connection: None


def test_events_are_handled_in_order_and_once_over_restarts(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        listener = Listener()
        tell(appliance, "one", "two")
        tell(appliance, "unwanted", kind="test.other")
        await following(appliance, listener).catch_up()
        assert listener.heard == ["one", "two"]
        again = following(appliance, listener)
        await again.start()
        try:
            tell(appliance, "three")
            async with asyncio.timeout(20):
                while listener.heard != ["one", "two", "three"]:
                    await asyncio.sleep(0.01)
        finally:
            await again.stop()

    run(tmp_path, scenario)


def test_more_than_a_page_is_handled_at_once(tmp_path, monkeypatch):
    async def scenario(appliance: Appliance) -> None:
        monkeypatch.setattr(follower, "PAGE", 3)
        listener = Listener()
        tell(appliance, *map(str, range(10)))
        await following(appliance, listener).catch_up()
        assert listener.heard == [str(number) for number in range(10)]

    run(tmp_path, scenario)


def test_trouble_of_the_store_is_never_a_reason_to_pass_an_event_over(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        listener = Listener(one=[StorageError("locked") for _ in range(ATTEMPTS + 2)])
        made = following(appliance, listener)
        tell(appliance, "one", "two")
        for _ in range(ATTEMPTS + 2):
            with pytest.raises(StorageError):
                await made.catch_up()
            assert cursor(appliance) == 0
        await made.catch_up()
        assert listener.heard == ["one", "two"]

    run(tmp_path, scenario)


def test_a_fault_of_ours_is_tried_some_times_and_then_stands_in_nobodys_way(tmp_path, monkeypatch):
    async def scenario(appliance: Appliance) -> None:
        for name in ("PAUSE_SECONDS", "TROUBLE_SECONDS"):
            monkeypatch.setattr(follower, name, 0.001 if name == "PAUSE_SECONDS" else 0.002)
        listener = Listener(one=[RuntimeError("a fault") for _ in range(ATTEMPTS + 5)])
        tell(appliance, "one", "two")
        made = following(appliance, listener)
        await made.start()
        try:
            async with asyncio.timeout(20):
                while listener.heard != ["two"]:
                    await asyncio.sleep(0.01)
        finally:
            await made.stop()
        assert len(listener.failing["one"]) == 4  # of 8: ATTEMPTS, and the one after which it gave up

    run(tmp_path, scenario)


def test_what_is_written_and_the_cursor_are_one_transaction(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        async def handle(_event: Event) -> Unit:
            def unit(connection: Any) -> None:
                connection.exec_driver_sql("INSERT INTO settings (name, value) VALUES ('k', 'v')")
                raise StorageError("the disk is full")

            return unit

        tell(appliance, "one")
        with pytest.raises(StorageError):
            await following(appliance, handle).catch_up()
        assert cursor(appliance) == 0
        found = appliance.store.database.read(
            lambda c: c.exec_driver_sql("SELECT count(*) FROM settings WHERE name = 'k'").scalar()
        )
        assert found == 0

    run(tmp_path, scenario)


def test_the_cursor_moves_without_events_to_handle_when_it_lags(tmp_path, monkeypatch):
    async def scenario(appliance: Appliance) -> None:
        monkeypatch.setattr(follower, "CURSOR_LAG", 5)
        listener = Listener()
        made = following(appliance, listener)
        tell(appliance, *"abc", kind="test.other")
        await made.catch_up()
        assert cursor(appliance) == 0
        tell(appliance, *"defg", kind="test.other")
        await made.catch_up()
        assert cursor(appliance) == 7
        assert listener.heard == []

    run(tmp_path, scenario)
