"""Our MTA-STS policy, for whoever asks as the RFC has it.

Owns the one route, and for which names it answers: mta-sts.DOMAIN for each domain of the
appliance, while a policy is published. RFC 8461 3.2 and 3.3.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from server.http.problems import not_found
from server.transport.mtasts import WELL_KNOWN
from server.transport.publishing import own_policy
from storage import accounts

if TYPE_CHECKING:
    from fastapi import FastAPI

    from server.http.services import Services

_HOST = re.compile(r"mta-sts\.([a-z0-9_.-]{1,245}?)\.?(?::[0-9]{1,5})?")


class WellKnown:
    """The route of the policy."""

    def __init__(self, services: Services) -> None:
        self._services = services
        settings = services.settings
        transport = settings.transport
        policy = own_policy(
            transport.publish_mode,
            transport.publish_mx or (settings.server.hostname,),
            transport.publish_max_age_seconds,
        )
        self._text = policy.text if policy is not None else ""

    def add_to(self, app: FastAPI) -> None:
        """Add the route, where there is something to serve."""
        if self._text:
            app.add_api_route(
                WELL_KNOWN, self.policy, methods=["GET", "HEAD"], include_in_schema=False, response_model=None
            )

    async def policy(self, request: Request) -> Response:
        """Give the policy to those who ask for it by the name of a domain's policy host."""
        found = _HOST.fullmatch(request.headers.get("host", "").lower())
        if found is None:
            raise not_found()
        name = found[1]
        known = await self._services.threads.read(lambda c: accounts.find_domain(c, name=name))
        if known is None:
            raise not_found()
        return PlainTextResponse(self._text)
