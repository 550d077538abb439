"""Request bodies: read with a limit and a deadline, then checked against their model.

Owns how much of a body is ever in memory: each has a limit that holds while it
is read, and few large ones are read at a time. The framework's own reading of
bodies is not used, since it comes before the question who asks.
RFC 9110 8.6 (Content-Length), 15.5.14 (413); RFC 8259 (JSON).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from server.http.problems import Problem, invalid, unavailable

if TYPE_CHECKING:
    from server.threads import Threads

Model = TypeVar("Model", bound=BaseModel)

SMALL_OCTETS = 256 * 1024
INLINE_OCTETS = 16 * 1024  # parsed on the loop: well under a millisecond
LARGE_AT_ONCE = 8
SLOT_SECONDS = 20.0
READ_SECONDS = 120.0


class Bodies:
    """Reads bodies for all routes of a process."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._slots = asyncio.Semaphore(LARGE_AT_ONCE)

    async def read(self, request: Request, model: type[Model]) -> Model:
        """Return a body of at most SMALL_OCTETS as the model; Problem 408, 413, 415 or 422."""
        _require_json(request)
        body = bytearray()
        async with _in_time(READ_SECONDS):
            await _collect(request, request.stream(), body, SMALL_OCTETS)
        return await self._parse(body, model)

    @asynccontextmanager
    async def opened(
        self, request: Request, model: type[Model], *, limit_octets: int
    ) -> AsyncIterator[Model]:
        """Hand out a body of at most `limit_octets` as the model, as `read` does.

        A body above SMALL_OCTETS holds one of LARGE_AT_ONCE slots until the block ends;
        Problem 503 where none becomes free in time.
        """
        _require_json(request)
        if _declared(request) > limit_octets:
            raise _too_large(limit_octets)
        body = bytearray()
        stream = request.stream()
        async with AsyncExitStack() as stack:
            async with _in_time(READ_SECONDS):
                complete = await _collect(request, stream, body, limit_octets, pause=SMALL_OCTETS)
                if not complete:
                    await self._take_slot(stack)
                    await _collect(request, stream, body, limit_octets)
            parsed = await self._parse(body, model)
            body = bytearray()
            yield parsed

    async def _take_slot(self, stack: AsyncExitStack) -> None:
        try:
            async with asyncio.timeout(SLOT_SECONDS):
                await self._slots.acquire()
        except TimeoutError:
            raise unavailable("Too many large requests at once.") from None
        stack.callback(self._slots.release)

    async def _parse(self, body: bytearray, model: type[Model]) -> Model:
        try:
            if len(body) <= INLINE_OCTETS:
                return model.model_validate_json(body)
            return await self._threads.compute(model.model_validate_json, body)
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False, include_context=False)
            raise invalid(found) from None


async def _collect(
    request: Request,
    stream: AsyncIterator[bytes],
    body: bytearray,
    limit_octets: int,
    *,
    pause: int | None = None,
) -> bool:
    """Read until the body's end and return True, or False once more than `pause` octets are there."""
    if _declared(request) > limit_octets:
        raise _too_large(limit_octets)
    async for chunk in stream:
        body += chunk
        if len(body) > limit_octets:
            raise _too_large(limit_octets)
        if pause is not None and len(body) > pause:
            return False
    return True


@asynccontextmanager
async def _in_time(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Problem(408, "timed_out", "The body did not come in time.") from None
    except ClientDisconnect:
        raise Problem(400, "bad_request", "The body ended early.") from None


def _declared(request: Request) -> int:
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _too_large(limit_octets: int) -> Problem:
    return Problem(
        413,
        "too_large",
        f"The body is larger than {limit_octets} octets.",
        extra={"limit_octets": limit_octets},
    )


def _require_json(request: Request) -> None:
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise Problem(415, "unsupported_media_type", "The body must be application/json.")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Problem(415, "unsupported_media_type", "The body must not be compressed.")
