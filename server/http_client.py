"""One HTTP/1.1 request on a connection that the caller has opened.

Owns the exchange: request, streamed body, bounded response. Opens nothing, follows no
redirect, keeps no connection and knows no deadline: the caller has one around it.
RFC 9110, 9112 (by h11).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import h11

READ_OCTETS = 64 << 10
HEADER_OCTETS = 64 << 10

Headers = Sequence[tuple[str, bytes]]


class HttpFault(Exception):
    """The other side did not answer as HTTP/1.1 has it, or with more than the limit."""


@dataclass(frozen=True, slots=True)
class Response:
    """What was answered; body: as much of it as the limit allows."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


async def exchange(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *,
    target: str,
    headers: Headers,
    octets: int,
    body: AsyncIterator[bytes | memoryview],
    limit_octets: int,
) -> Response:
    """POST a body of that many octets and return the answer; OSError, HttpFault.

    headers: Host among them; values are octets without line ends. An answer that comes before
    the body's end is taken, whatever then becomes of the connection.
    """
    machine = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEADER_OCTETS)
    fixed = [("Content-Length", b"%d" % octets), ("Connection", b"close")]
    try:
        named = [(name.encode("ascii"), value) for name, value in (*headers, *fixed)]
        head = machine.send(h11.Request(method="POST", target=target, headers=named))
        writer.write(head or b"")
        await _send_body(machine, reader, writer, body)
        return await _receive(machine, reader, limit_octets)
    except h11.ProtocolError as error:
        raise HttpFault(f"no HTTP/1.1: {error}") from None


async def get(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *,
    target: str,
    headers: Headers,
    limit_octets: int,
) -> Response:
    """GET what a target is and return the answer; OSError, HttpFault. headers: as for exchange."""
    machine = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEADER_OCTETS)
    try:
        named = [(name.encode("ascii"), value) for name, value in (*headers, ("Connection", b"close"))]
        head = machine.send(h11.Request(method="GET", target=target, headers=named))
        writer.write((head or b"") + (machine.send(h11.EndOfMessage()) or b""))
        return await _receive(machine, reader, limit_octets)
    except h11.ProtocolError as error:
        raise HttpFault(f"no HTTP/1.1: {error}") from None


async def _send_body(
    machine: h11.Connection,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    body: AsyncIterator[bytes | memoryview],
) -> None:
    try:
        async for chunk in body:
            # h11 counts the octets and passes them on: a view does as well as bytes.
            machine.send_with_data_passthrough(h11.Data(data=chunk))  # type: ignore[arg-type]
            writer.write(chunk)
            await writer.drain()
    except ConnectionError:
        # Refused in the middle: the reason may be there to be read already.
        if reader.at_eof():
            raise
        return
    machine.send(h11.EndOfMessage())


async def _receive(machine: h11.Connection, reader: asyncio.StreamReader, limit_octets: int) -> Response:
    head: h11.Response | None = None
    parts: list[bytes] = []
    room = limit_octets
    while True:
        event = machine.next_event()
        if event is h11.NEED_DATA:
            machine.receive_data(await reader.read(READ_OCTETS))
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            parts.append(bytes(event.data[:room]))
            room -= len(event.data)
            if room < 0:
                raise HttpFault(f"the answer is over {limit_octets} octets")
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            return Response(head.status_code, tuple(head.headers), b"".join(parts))
        elif not isinstance(event, h11.InformationalResponse):
            raise HttpFault("the connection ended before an answer")


async def once(octets: bytes) -> AsyncIterator[bytes | memoryview]:
    """Yield a body that is in memory."""
    yield octets
