"""Routes for whoever watches the appliance: health, readiness, metrics.

Owns what strangers may learn without a key: that the process lives and whether
it is ready, in one word each. Metrics go to this machine itself or to an
operator's key, since counts tell a tale too.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import structlog
from starlette.requests import Request
from starlette.responses import Response

from server.http import models
from server.http.access import Access
from server.http.answers import answer
from server.http.metrics import CONTENT_TYPE, Metrics
from server.http.openapi import Door
from server.http.problems import Problem

if TYPE_CHECKING:
    from server.threads import Threads

READY_SECONDS = 5.0
# A proxy in front puts these in; then the peer at the socket is not who asks.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")

log = structlog.get_logger("http")


class HealthRoutes:
    """Health, readiness, metrics.

    store_health: called in a thread; what it returns says by `ready` (absent: yes)
    whether the store takes mail, and it raises where it can't tell.
    """

    def __init__(
        self,
        *,
        threads: Threads,
        access: Access,
        metrics: Metrics,
        store_health: Callable[[], Mapping[str, object]],
    ) -> None:
        self._threads = threads
        self._access = access
        self._metrics = metrics
        self._store_health = store_health

    def add_to(self, door: Door) -> None:
        """Add the routes."""
        door.add("GET /health", self.health, answer=models.Health, tag="Operation")
        door.add("GET /ready", self.ready, answer=models.Health, tag="Operation")
        door.add("GET /metrics", self.metrics, media="text/plain", tag="Operation")

    async def health(self) -> Response:
        """Tell that the process lives."""
        return answer({"status": "ok"})

    async def ready(self) -> Response:
        """Tell whether the appliance takes mail: 200, or 503."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                told = await self._threads.run(self._store_health)
        except Exception:
            log.exception("not ready")
            told = {"ready": False}
        if told.get("ready", True):
            return answer({"status": "ready"})
        raise Problem(503, "not_ready", "The appliance does not take mail now.")

    async def metrics(self, request: Request) -> Response:
        """Give all metrics in Prometheus' text format, to this machine or to an operator's key."""
        if not _is_local(request):
            caller = await self._access.caller(request)
            if not caller.is_operator:
                raise Problem(403, "scope_missing", "Metrics need the scope operator.")
        return Response(await self._threads.run(self._metrics.expose), media_type=CONTENT_TYPE)


def _is_local(request: Request) -> bool:
    if any(name in request.headers for name in _FORWARDED) or request.client is None:
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
