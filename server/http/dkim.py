"""Routes for the DKIM keys of an organization's domains: see them, rotate them, give that up.

Owns the shapes of these routes too. What is done is server.dkim_acts', as for the command line;
the records are public, the keys never leave.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from starlette.responses import Response

from server.dkim_acts import new_keys, shown
from server.http.access import Caller
from server.http.answers import answer, time_text
from server.http.models import Answer, Time
from server.http.openapi import Door
from server.http.organizations import domain_name
from server.http.problems import Problem, not_found
from server.http.services import Services
from server.sender_auth.rotation import pace_of
from storage import accounts, dkim
from storage.errors import Missing
from storage.records import DkimKey

if TYPE_CHECKING:
    from sqlalchemy import Connection

TIMES = ("since", "seen_at", "looked_at", "next_at")


class DkimKeyShown(Answer):
    """A key of DKIM signatures, without its private half."""

    selector: str
    algorithm: str
    state: Literal["made", "published", "active", "retiring", "retired"]
    since: Time
    seen_at: Time | None = Field(description="Since when each look at the DNS found the record right.")
    looked_at: Time | None
    looked: Literal["", "right", "wrong", "missing", "unknown"] = Field(
        description="What the DNS said last; `` before the first look."
    )
    next_at: Time | None = Field(description="When the next step is due, where that is known.")
    what: str = Field(description="What it does or waits for, in words.")
    name: str = Field(description="Name of the TXT record.")
    value: str = Field(description="Value of the TXT record.")


class DkimKeyList(Answer):
    """The keys of a domain, oldest first."""

    domain: str
    keys: list[DkimKeyShown]


class DkimRoutes:
    """Keys and their rotation."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._pace = pace_of(services.settings.dkim)

    def add_to(self, door: Door) -> None:
        """Add the routes."""
        path = "/domains/{name}/dkim"
        door.add(f"GET {path}", self.status, scope="domain:admin", answer=DkimKeyList, tag="Domains")
        door.add(
            f"POST {path}/rotation",
            self.rotate,
            scope="domain:admin",
            answer=DkimKeyList,
            status=201,
            tag="Domains",
        )
        door.add(
            f"DELETE {path}/rotation",
            self.cancel,
            scope="domain:admin",
            answer=DkimKeyList,
            tag="Domains",
        )

    async def status(self, caller: Caller, name: str) -> Response:
        """Show a domain's DKIM keys, with the states of a rotation and what each waits for."""
        return await self._shown(caller, _wanted(caller, name))

    async def rotate(self, caller: Caller, name: str) -> Response:
        """Make the next keys of a domain.

        409 where a rotation is under way, or after twenty a day. Publish the records of those that are
        `made`: they sign once they have been seen in the DNS for a while, and the present keys sign
        until then.
        """
        wanted = _wanted(caller, name)
        await self._keys(caller, wanted)
        now = self._services.clock.now()
        owner = caller.organization_id
        await self._services.threads.read(
            partial(dkim.require_none, organization_id=owner, domain=wanted, at=now)
        )
        unit = partial(
            dkim.begin,
            organization_id=owner,
            domain=wanted,
            made=await self._services.threads.compute(new_keys, now),
            actor=caller.key_id,
            is_told=True,
            at=now,
        )
        await self._services.threads.write(unit)
        return await self._shown(caller, wanted, status=201)

    async def cancel(self, caller: Caller, name: str) -> Response:
        """Give up a rotation whose keys do not sign yet; where there is none, nothing changes."""
        wanted = _wanted(caller, name)
        unit = partial(
            dkim.cancel,
            organization_id=caller.organization_id,
            domain=wanted,
            actor=caller.key_id,
            at=self._services.clock.now(),
        )
        with suppress(Missing):
            await self._services.threads.write(unit)
        return await self._shown(caller, wanted)

    async def _shown(self, caller: Caller, name: str, *, status: int = 200) -> Response:
        found = await self._keys(caller, name)
        return answer({"domain": name, "keys": [self._key(key) for key in found]}, status=status)

    async def _keys(self, caller: Caller, name: str) -> list[DkimKey]:
        """Return the keys of a domain of the caller's organization; Problem 404."""
        owner = caller.organization_id

        def unit(connection: Connection) -> list[DkimKey] | None:
            found = accounts.find_domain(connection, name=name)
            if found is None or found.organization_id != owner:
                return None
            return dkim.keys(connection, domain=name, organization_id=owner, with_retired=True)

        keys = await self._services.threads.read(unit)
        if keys is None:
            raise not_found()
        return keys

    def _key(self, key: DkimKey) -> dict[str, Any]:
        told = shown(key, self._pace)
        return told | {name: None if told[name] is None else time_text(told[name]) for name in TIMES}


def _wanted(caller: Caller, name: str) -> str:
    caller.require_unbound()
    try:
        return domain_name(name)
    except Problem:
        raise not_found() from None
