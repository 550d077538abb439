"""What the routes work with, and the small questions that all of them ask.

Owns the bundle that the composition root hands to the routes, the shape of ids
in paths, and the audit rows of changes made over HTTP.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.http.access import Caller
from server.http.problems import Problem, not_found
from server.mail.address import AddressSyntax, normalise
from storage import accounts, audit
from storage.records import Mailbox

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from server.config import Settings
    from server.dns import Resolver
    from server.http.bodies import Bodies
    from server.intake import Intake
    from server.routing import Routing
    from server.threads import Threads
    from storage.maildir import Maildir

_ID = re.compile(r"[a-z]{3}_[0-9a-z]{26}")


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of the appliance that HTTP uses."""

    threads: Threads
    intake: Intake
    routing: Routing
    maildir: Maildir
    clock: Clock
    settings: Settings
    bodies: Bodies
    resolver: Resolver | None = None

    async def inbox(self, caller: Caller, inbox_id: str) -> Mailbox:
        """Return an inbox that the caller may see; Problem 404."""
        known_id(inbox_id)
        caller.reach(inbox_id)
        found = await self.threads.read(
            lambda c: accounts.mailbox(c, organization_id=caller.organization_id, mailbox_id=inbox_id)
        )
        if found is None:
            raise not_found()
        return found


def known_id(text: str) -> str:
    """Return an id that has an id's shape; Problem 404 for what can be nobody's id."""
    if _ID.fullmatch(text) is None:
        raise not_found()
    return text


def normal_address(text: str) -> str:
    """Return an address in normal form; Problem 422."""
    try:
        return normalise(text)
    except (AddressSyntax, ValueError) as error:
        raise Problem(422, "invalid_address", f"That is no address: {error}.") from None


def write_audit(
    connection: Connection,
    caller: Caller,
    *,
    action: str,
    thing: str,
    at: int,
    organization_id: str | None = None,
    **detail: object,
) -> None:
    """Put a change made by a key into the audit log, in the unit that makes it."""
    audit.append(
        connection,
        organization_id=organization_id or caller.organization_id,
        actor=caller.key_id,
        action=action,
        object=thing,
        detail=json.dumps(detail, sort_keys=True),
        at=at,
    )
