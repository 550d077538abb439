"""Which folder names a client shows: a column of the folders, and a table for names whose folder is gone.

Owns the rule that a name stays subscribed when its folder is deleted, until
somebody unsubscribes it or makes a folder of that name, which is subscribed
then. Keeps at most as many such names as an inbox has folders.
RFC 9051 6.3.7 and 6.3.8, 5258 3.1 (\\NonExistent).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from storage.selection import members, pack, run

if TYPE_CHECKING:
    from sqlalchemy import Connection

LAPSED = 10_000


def lapsed(connection: Connection, *, mailbox_id: str) -> list[str]:
    """Return the subscribed names of an inbox that have no folder."""
    text = "SELECT name FROM lapsed_subscriptions WHERE mailbox_id = ?"
    return [row[0] for row in run(connection, text, (mailbox_id,)).fetchall()]


def lapse(connection: Connection, *, mailbox_id: str, name: str) -> None:
    """Keep the name of a subscribed folder that goes; beyond LAPSED it is forgotten."""
    text = "SELECT count(*) FROM lapsed_subscriptions WHERE mailbox_id = ?"
    if run(connection, text, (mailbox_id,)).fetchone()[0] < LAPSED:
        text = "INSERT INTO lapsed_subscriptions (mailbox_id, name) VALUES (?, ?) ON CONFLICT DO NOTHING"
        run(connection, text, (mailbox_id, name))


def take(connection: Connection, *, mailbox_id: str, names: Sequence[str]) -> set[str]:
    """Forget those of some names that lapsed, and return them."""
    text = (
        f"DELETE FROM lapsed_subscriptions WHERE mailbox_id = ? AND name IN {members(connection, 'text')} "  # noqa: S608 - ours
        "RETURNING name"
    )
    return {row[0] for row in run(connection, text, (mailbox_id, pack(connection, names))).fetchall()}
