"""ClamAV asked over its socket: the message streamed by INSTREAM.

Owns the command and its answers. Opens a connection a message, as clamd has it. The limit
of its own (StreamMaxLength) counts as too large, and is no fault.
clamd(8): zINSTREAM, chunks with their length in four octets, big-endian, a length of 0 ends.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from server.scanners import findings
from server.scanners.request import ScannerFault
from storage.records import Verdict

if TYPE_CHECKING:
    from server.scanners.place import Place
    from server.scanners.request import Request

ANSWER_OCTETS = 4096
_STREAM = "stream: "


class ClamAv:
    """A clamd at an address."""

    name = findings.CLAMAV

    def __init__(self, place: Place) -> None:
        self._place = place

    async def scan(self, request: Request) -> Verdict:
        """Return 'clean', 'infected' with the virus, or 'too_large'; OSError, ScannerFault."""
        reader, writer = await self._place.connect(limit=ANSWER_OCTETS)
        try:
            # Beyond its limit clamd answers and closes while we still send.
            answering = asyncio.ensure_future(_answer(reader))
            try:
                await _stream(writer, request, answering)
                answer = await answering
            finally:
                answering.cancel()
                await asyncio.wait((answering,))
        finally:
            writer.transport.abort()
        return read_answer(answer, request.octets.count)


async def _stream(writer: asyncio.StreamWriter, request: Request, answering: asyncio.Future[bytes]) -> None:
    try:
        writer.write(b"zINSTREAM\0")
        async for piece in request.octets.pieces():
            if answering.done():
                return
            writer.write(len(piece).to_bytes(4, "big"))
            writer.write(piece)
            await writer.drain()
        writer.write(bytes(4))
        await writer.drain()
    except ConnectionError:
        # What was answered before the connection went says why.
        if not await answering:
            raise


async def _answer(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\0")
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError:
        raise ScannerFault(f"clamd answers more than {ANSWER_OCTETS} octets") from None
    except ConnectionError:
        return b""


def read_answer(answer: bytes, octets: int) -> Verdict:
    """Return what an answer to INSTREAM says; ScannerFault for what is none."""
    text = answer.rstrip(b"\0\r\n").decode("utf-8", "replace")
    if text == _STREAM + "OK":
        return Verdict(findings.CLAMAV, findings.CLEAN)
    if text.startswith(_STREAM) and text.endswith(" FOUND"):
        return findings.infected(text[len(_STREAM) : -len(" FOUND")])
    if "size limit exceeded" in text:
        return findings.too_large(findings.CLAMAV, octets)
    raise ScannerFault(f"clamd answers {text[:100]!r}")
