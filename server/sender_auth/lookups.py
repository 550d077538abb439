"""The names that DMARC asks for, and lookups with a deadline.

Owns the records found on the way up from domains, each name asked for once a
message, and which lookups failed or were still open at the deadline. What
follows from them is in dmarc. RFC 9989 4.10.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from server.dns import Answer, DnsFailure, DnsTemporary, NoSuchDomain, Resolver
from server.sender_auth import dmarc

T = TypeVar("T")


async def until(by: float, coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T | None]:
    """Run coroutines beside each other and return their results, None for those open at `by`.

    by: the loop's time. What is done without waiting is done, however late it is.
    """
    waiting = list(coroutines)
    if len(waiting) == 1:
        return [await _alone(by, waiting[0])]
    tasks = [asyncio.ensure_future(coroutine) for coroutine in waiting]
    if not tasks:
        return []
    left = by - asyncio.get_running_loop().time()
    try:
        await asyncio.wait(tasks, timeout=max(0.0, left))
    finally:
        pending = [task for task in tasks if task.cancel()]
        if pending:
            await asyncio.gather(*pending, return_exceptions=True)
    return [None if task.cancelled() else task.result() for task in tasks]


async def _alone(by: float, coroutine: Coroutine[Any, Any, T]) -> T | None:
    try:
        async with asyncio.timeout_at(by):
            return await coroutine
    except TimeoutError:
        return None


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
