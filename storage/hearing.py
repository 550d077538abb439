"""What other processes committed: PostgreSQL's notifications, from one connection that does nothing else.

Owns that connection, the thread that waits on it, and the reading of payloads.
Whatever has come by the time it looks is told at once, a notice a key. While
the connection is lost nothing is heard; once it is there again, listeners are
told that anything may have changed, and look for themselves.
"""

import json
import logging
import os
import select
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import URL

from storage import engine
from storage.transactions import CHANNEL, EVERYTHING, Notice, latest

# With nothing heard for so long, a question shows whether the connection is still there.
SILENCE_SECONDS = 30.0
AGAIN_FIRST_SECONDS = 0.1
AGAIN_LAST_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Hearing:
    """Listens from start to close. tell: called in its thread, with the news of others; must not block.

    origin: whose notices are passed over, for they were told after their own commit.
    """

    def __init__(self, *, url: URL, origin: str, tell: Callable[[Sequence[Notice]], None]) -> None:
        self._url = url
        self._origin = origin
        self._tell = tell
        self._closing = threading.Event()
        self._asleep, self._wake = os.pipe()
        self._connection: Any = None
        self._thread = threading.Thread(target=self._loop, name="hearing", daemon=True)

    def start(self) -> None:
        """Listen: what is committed from now on is heard. SQLAlchemyError where that cannot be."""
        self._connection = engine.listen(self._url, CHANNEL)
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._closing.set()
        os.write(self._wake, b".")
        if self._thread.is_alive():
            self._thread.join()
        self._drop()
        os.close(self._asleep)
        os.close(self._wake)

    def _loop(self) -> None:
        pause = AGAIN_FIRST_SECONDS
        while not self._closing.is_set():
            try:
                if self._connection is None:
                    self._connection = engine.listen(self._url, CHANNEL)
                    _log.info("changes of other processes are heard again")
                    self._tell([Notice(EVERYTHING)])
                self._hear()
                pause = AGAIN_FIRST_SECONDS
            except Exception as error:  # noqa: BLE001 - whatever it was, the next connection starts afresh
                self._drop()
                _log.warning("changes of other processes are not heard, trying again: %s", error)
                self._closing.wait(pause)
                pause = min(pause * 2, AGAIN_LAST_SECONDS)

    def _hear(self) -> None:
        """Wait for notifications and tell them; raises where the connection is gone."""
        raw = self._connection.pgconn
        ready, _, _ = select.select([raw.socket, self._asleep], [], [], SILENCE_SECONDS)
        if not ready:
            self._connection.execute("SELECT 1")
        raw.consume_input()
        notices: list[Notice] = []
        while (one := raw.notifies()) is not None:
            notices += read(one.extra, self._origin)
        if notices:
            self._tell(latest(notices))

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.close()


def read(payload: bytes, own: str) -> list[Notice]:
    """Return the notices of a payload; none of one's own, and none where it is not of our making."""
    try:
        origin, *listed = json.loads(payload)
        if origin == own:
            return []
        return [Notice(str(topic), str(key), int(position)) for topic, key, position in listed]
    except (ValueError, TypeError, RecursionError):
        _log.debug("a notification that is none of ours")
        return []
