"""The race of a host's addresses, on real sockets."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Iterator

import pytest

from server.smtp.racing import Place, race


def run(test: Awaitable[None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await test

    asyncio.run(limited())


@contextlib.contextmanager
def listening(address: str, *, is_full: bool = False) -> Iterator[Place]:
    """A place that takes connections, or one whose queue is full, so that none comes about."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.ExitStack() as stack:
        bound = stack.enter_context(socket.socket(family))
        bound.bind((address, 0))
        bound.listen(0 if is_full else 10)
        for _ in range(2 if is_full else 0):
            filler = stack.enter_context(socket.socket(family))
            filler.setblocking(False)
            filler.connect_ex(bound.getsockname())
        yield Place(address, bound.getsockname()[1])


def closed(address: str) -> Place:
    with listening(address) as place:
        return place


def test_the_first_that_answers_wins_and_the_rest_is_not_tried() -> None:
    async def test() -> None:
        with listening("::1") as first, listening("127.0.0.1") as second:
            found = await race([first, second], seconds=5)
            assert (found.winner, found.failed) == (0, {})
            assert found.connected is not None
            assert found.connected.getpeername()[1] == first.port
            found.connected.close()

    run(test())


def test_a_silent_family_costs_a_quarter_of_a_second_and_no_more() -> None:
    async def test() -> None:
        with listening("::1", is_full=True) as silent, listening("127.0.0.1") as good:
            found = await race([silent, good], seconds=15, delay=0.01)
            assert found.winner == 1
            assert found.connected is not None
            found.connected.close()

    run(test())


def test_a_refusal_brings_the_next_one_at_once() -> None:
    async def test() -> None:
        with listening("127.0.0.1") as good:
            found = await race([closed("::1"), good], seconds=5, delay=15)
            assert found.winner == 1
            assert isinstance(found.failed[0], ConnectionRefusedError)
            assert found.connected is not None
            found.connected.close()

    run(test())


def test_where_nobody_answers_each_says_why() -> None:
    async def test() -> None:
        with listening("127.0.0.1", is_full=True) as silent:
            found = await race([closed("::1"), silent], seconds=0.2)
            assert (found.winner, found.connected) == (None, None)
            assert {type(error) for error in found.failed.values()} == {ConnectionRefusedError, TimeoutError}

    run(test())


def test_a_race_given_up_leaves_no_socket_behind() -> None:
    async def test() -> None:
        with listening("127.0.0.1", is_full=True) as silent:
            running = asyncio.ensure_future(race([silent, silent], seconds=15, delay=0.01))
            await asyncio.sleep(0.05)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    run(test())
