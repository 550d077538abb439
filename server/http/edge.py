"""The outermost layer: what every request and answer has in common.

Owns the count and time of requests, the headers that every answer carries, the
refusal of octets no path or query may hold, and the last catch: whatever a
route raises unforeseen is logged with its route and answered with 500, and no
traceback reaches a peer. RFC 9110 15.6.1; RFC 6797 stays the proxy's affair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.problems import Problem

if TYPE_CHECKING:
    from server.clock import Clock
    from server.http.metrics import Metrics

TARGET_OCTETS = 8192
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_UNCACHED = (b"cache-control", b"no-store")
UNMATCHED = "(none)"

log = structlog.get_logger("http")


class Edge:
    """ASGI middleware around all routes."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, clock: Clock) -> None:
        self._app = app
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            await _Exchange(self._app, self._metrics, self._clock).run(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        # Anything else is a protocol that no listener of ours speaks.


class _Exchange:
    """One request and its answer."""

    __slots__ = ("_app", "_clock", "_metrics", "_send", "_status")

    def __init__(self, app: ASGIApp, metrics: Metrics, clock: Clock) -> None:
        self._app = app
        self._metrics = metrics
        self._clock = clock
        self._status = 0

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        began = self._clock.monotonic()
        self._metrics.began()
        try:
            if _is_acceptable(scope):
                await self._app(scope, receive, self._pass)
            else:
                refusal = Problem(400, "bad_request", "The address of the request can't be read.")
                await refusal.response()(scope, receive, self._pass)
        except Exception as error:
            log.exception("request failed", route=_route(scope))
            if self._status:
                # Half an answer is out: only a broken connection tells the peer.
                raise ConnectionAbortedError("answer broken off") from error
            failure = Problem(500, "internal_error", "The appliance failed; its log says why.")
            await failure.response()(scope, receive, self._pass)
        finally:
            self._metrics.ended(
                method=scope["method"] if scope["method"] in _METHODS else "OTHER",
                route=_route(scope),
                status=self._status or 499,
                seconds=self._clock.monotonic() - began,
            )

    async def _pass(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = message["headers"] = [*message.get("headers", ()), *_HEADERS]
            if not any(name == b"cache-control" for name, _ in headers):
                headers.append(_UNCACHED)
        await self._send(message)


def _route(scope: Scope) -> str:
    """Return the template of the route that was chosen; a stranger's path is no label."""
    return getattr(scope.get("route"), "path", UNMATCHED)


def _is_acceptable(scope: Scope) -> bool:
    query = scope["query_string"]
    target = scope.get("raw_path") or scope["path"].encode("utf-8", "replace")
    if len(target) + len(query) > TARGET_OCTETS:
        return False
    return "\0" not in scope["path"] and b"%00" not in query and b"\0" not in query
