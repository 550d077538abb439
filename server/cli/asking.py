"""An operation's way: to a running daemon, or to the store when no daemon runs.

Owns that choice and nothing of what operations do.
"""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from server.cli.output import Unreachable
from server.config import Settings
from server.control import DaemonDown, ask_all, ask_any


def ask(settings: Settings, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Perform an operation and return its result.

    Raises OperationFailed where it is refused, Unreachable where neither the daemon
    nor the store can be reached.
    """
    try:
        if operation == "status":
            return _together(ask_all(settings.control.socket, operation, arguments))
        return ask_any(settings.control.socket, operation, arguments)
    except DaemonDown:
        return _on_store(settings, operation, arguments)


def _together(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the status of all processes: what they share once, what is each one's own in a list."""
    told = dict(answers[0])
    told["journal_backlog_octets"] = sum(answer["journal_backlog_octets"] for answer in answers)
    told["processes"] = [process for answer in answers for process in answer["processes"]]
    return told


def _on_store(settings: Settings, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    # Imported here: asking a running daemon needs none of it.
    from server.clock import SystemClock
    from server.operations import Context, perform
    from server.parts import open_store
    from server.sender_auth.rotation import pace_of
    from server.transport.publishing import read_published
    from storage.errors import StorageError

    try:
        store = open_store(settings)
    except (StorageError, OSError) as error:
        raise Unreachable(str(error)) from None
    try:
        context = Context(
            store,
            SystemClock(),
            settings.server.hostname,
            actor=f"cli:{getpass.getuser()}",
            report_address=settings.dmarc.report_address,
            published=partial(read_published, settings),
            pace=pace_of(settings.dkim),
        )
        return perform(context, operation, arguments)
    finally:
        store.close()
