"""BDAT with sizes that no client means, whole and octet by octet: the same answers."""

import asyncio

import pytest
import uvloop

from tests.smtp.fakes import running

BEGIN = b"EHLO x.example\r\nMAIL FROM:<>\r\nRCPT TO:<ann@example.org>\r\n"
MESSAGE = b"Subject: s\r\n\r\nhi\r\n"
CASES = {
    b"BDAT 9223372036854775808 LAST\r\n" + MESSAGE: [b"552 5.3.4"],
    b"BDAT 9223372036854775807\r\n" + MESSAGE: [b"552 5.3.4"],
    b"BDAT " + b"9" * 400 + b" LAST\r\nQUIT\r\n": [b"501 5.5.4"],
    b"BDAT -1 LAST\r\nQUIT\r\n": [b"501 5.5.4"],
    b"BDAT +5 LAST\r\nQUIT\r\n": [b"501 5.5.4"],
    b"BDAT 0x5 LAST\r\nQUIT\r\n": [b"501 5.5.4"],
    b"BDAT \xd9\xa5 LAST\r\nQUIT\r\n": [b"501 5.5.4"],
    b"BDAT 5\r\nab\r\ncDATA\r\nQUIT\r\n": [b"250 2.0.0", b"503 5.5.1"],
    b"BDAT 3\r\na\nbBDAT 6 LAST\r\nQUIT\r\nQUIT\r\n": [b"550 5.5.2", b"503 5.5.1", b"221 2.0.0"],
    b"BDAT 0 LAST\r\nQUIT\r\n": [b"250 2.0.0", b"221 2.0.0"],
    b"".join(b"BDAT 1\r\n%c" % octet for octet in MESSAGE) + b"BDAT 0 LAST\r\nQUIT\r\n": [
        *[b"250 2.0.0"] * (len(MESSAGE) + 1),
        b"221 2.0.0",
    ],
}


async def answers(port: int, octets: bytes, step: int) -> list[bytes]:
    """The beginnings of all last lines of replies to what is sent in blocks of step octets."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for start in range(0, len(octets), step):
            writer.write(octets[start : start + step])
            await writer.drain()
            await asyncio.sleep(0)
        said = await reader.read()
    finally:
        writer.close()
    return [line[:9] for line in said.split(b"\r\n") if line and line[3:4] == b" "]


@pytest.mark.parametrize("octets", CASES, ids=lambda octets: octets[:12].decode("latin-1"))
def test_odd_chunks_are_answered_alike_however_they_are_cut(octets):
    async def scenario():
        async with running() as rig:
            # Where the server closes, what is still to be written would cost the client its answer.
            is_closed = not CASES[octets][-1].startswith(b"221")
            for step in (len(BEGIN + octets), len(BEGIN) if is_closed else 1):
                assert (await answers(rig.mx, BEGIN + octets, step))[4:] == CASES[octets]

    uvloop.run(scenario())
