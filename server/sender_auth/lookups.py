"""The names that DMARC asks for, and lookups with a deadline.

Owns the records found on the way up from domains, each name asked for once a
message, and which lookups failed or were still open at the deadline. What
follows from them is in dmarc. RFC 9989 4.10.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Sequence
from typing import Any, Generic, TypeVar

from server.dns import Answer, DnsFailure, DnsTemporary, NoSuchDomain, Resolver
from server.sender_auth import dmarc

T = TypeVar("T")


async def until(by: float | None, coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T | None]:
    """Run coroutines beside each other and return their results, None for those open at `by`.

    by: the loop's time, None to wait for all. What is done without waiting, as a remembered answer,
    makes no task; no task outlives this.
    """
    waiting = list(coroutines)
    found: list[T | None] = [None] * len(waiting)
    tasks: dict[int, asyncio.Task[T]] = {}
    begun = 0
    try:
        for begun, coroutine in enumerate(waiting, 1):
            try:
                waits_for = coroutine.send(None)
            except StopIteration as done:
                found[begun - 1] = done.value
            else:
                tasks[begun - 1] = asyncio.ensure_future(_resumed(coroutine, waits_for))
        if tasks:
            left = None if by is None else max(0.0, by - asyncio.get_running_loop().time())
            await asyncio.wait(tasks.values(), timeout=left)
    finally:
        for coroutine in waiting[begun:]:
            coroutine.close()
        pending = [task for task in tasks.values() if task.cancel()]
        if pending:
            await asyncio.gather(*pending, return_exceptions=True)
    for position, task in tasks.items():
        found[position] = None if task.cancelled() else task.result()
    return found


async def _resumed(coroutine: Coroutine[Any, Any, T], waits_for: Any) -> T:
    return await _Resumed(coroutine, waits_for)


class _Resumed(Generic[T]):
    """A coroutine whose first step is done and waits for a future, as something to await."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, T]:
        waits_for = self._waits_for
        while True:
            try:
                try:
                    sent = yield waits_for
                except BaseException as error:  # noqa: BLE001  a cancellation above all: it is the coroutine's
                    waits_for = self._coroutine.throw(error)
                else:
                    waits_for = self._coroutine.send(sent)
            except StopIteration as done:
                result: T = done.value
                return result


class Lookups:
    """The DMARC records found so far, and which author domains exist; one a message."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._asked: set[str] = set()
        self._found: dict[str, dmarc.Record] = {}
        self._failed: set[str] = set()
        self.exists: dict[str, bool] = {}  # author domains of which it is known
        self.records = dmarc.Records(self._found, self._failed)

    async def walk(self, domains: Iterable[str], *, by: float) -> None:
        """Look up the records of the domains' tree walks; what is open at `by` has failed."""
        names = {name for domain in domains for name in dmarc.walk(domain)} - self._asked
        self._asked |= names
        self._failed |= names
        await self._each(names, self._find, by=by)

    async def complete(self, authors: Sequence[str], identifiers: Iterable[str], *, by: float) -> None:
        """Look up what the evaluation still needs, once it is known who has authenticated."""
        walks = {
            identifier
            for identifier in identifiers
            for author in authors
            if identifier != author and dmarc.may_be_aligned(author, identifier, self.records)
        }
        await self.walk(walks, by=by)
        doubtful = {author for author in authors if dmarc.depends_on_existence(author, self.records)}
        await self._each(doubtful, self._look_for, by=by)

    async def _each(
        self, names: Iterable[str], look: Callable[[str], Coroutine[Any, Any, None]], *, by: float
    ) -> None:
        await until(by, [look(name) for name in names])

    async def _find(self, name: str) -> None:
        answer = await self._answer(self._resolver.resolve(f"_dmarc.{name}", "TXT"))
        if answer is None:
            return
        self._failed.discard(name)
        if isinstance(answer, Answer):
            texts = [b"".join(strings).decode("ascii", "replace") for strings in answer.records]
            record = dmarc.choose(texts)
            if record is not None:
                self._found[name] = record

    async def _look_for(self, domain: str) -> None:
        # RFC 9989 3.2.13: non-existent is what NXDOMAIN is said of (RFC 8020).
        answer = await self._answer(self._resolver.resolve(domain, "A"))
        if answer is not None:
            self.exists[domain] = not isinstance(answer, NoSuchDomain)

    async def _answer(self, asking: Awaitable[Answer]) -> Answer | DnsFailure | None:
        try:
            return await asking
        except DnsTemporary:
            return None
        except DnsFailure as failure:
            return failure
