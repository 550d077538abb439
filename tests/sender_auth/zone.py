"""A Resolver over a dictionary, and the tools of tests that need no name server."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from server.dns import Answer, DnsTemporary, Mx, NoAnswer, NoSuchDomain

TIMEOUT = "TIMEOUT"
Zone = Mapping[str, Mapping[str, Sequence[Any]]]


class ZoneResolver:
    """Answers as a recursive resolver does: CNAME followed, names with names below them there.

    zone: records by name and type, typed as Answer.records has them but MX as (preference, host)
    and TXT as octets or text. TIMEOUT in the place of a type or of its records fails.
    """

    def __init__(self, zone: Zone) -> None:
        self.zone = {name.lower(): dict(records) for name, records in zone.items()}
        self.asked: list[tuple[str, str]] = []

    async def resolve(self, name: str, rdtype: str) -> Answer:
        self.asked.append((name, rdtype))
        await asyncio.sleep(0)
        name = name.lower().rstrip(".")
        for _ in range(11):
            records = self._records(name)
            if records is None:
                raise NoSuchDomain(name)
            if rdtype in records:
                return Answer(tuple(_typed(rdtype, one) for one in _present(records[rdtype])), 60, False)
            if TIMEOUT in records:
                raise DnsTemporary(name)
            if "CNAME" not in records:
                raise NoAnswer(name)
            name = str(records["CNAME"][0]).lower().rstrip(".")
        raise DnsTemporary("alias chain")

    def _records(self, name: str) -> dict[str, Any] | None:
        if name in self.zone:
            return self.zone[name]
        return {} if any(known.endswith("." + name) for known in self.zone) else None


def _present(records: Any) -> Sequence[Any]:
    if TIMEOUT in records:
        raise DnsTemporary("no answer")
    return list(records)


def _typed(rdtype: str, value: Any) -> Any:
    if rdtype == "MX":
        return Mx(int(value[0]), str(value[1]).lower().rstrip("."))
    if rdtype == "TXT":
        pieces = value if isinstance(value, list | tuple) else [value]
        return tuple(piece if isinstance(piece, bytes) else piece.encode("utf-8") for piece in pieces)
    return str(value).rstrip(".") if rdtype != "AAAA" else str(value)


class SlowResolver(ZoneResolver):
    """Never answers for the names it is told."""

    def __init__(self, zone: Zone, *, silent: set[str]) -> None:
        super().__init__(zone)
        self.silent = silent

    async def resolve(self, name: str, rdtype: str) -> Answer:
        if name in self.silent:
            await asyncio.get_running_loop().create_future()
        return await super().resolve(name, rdtype)


class InlineThreads:
    """What Verifier asks of Threads, done at once; counts what was handed over."""

    def __init__(self) -> None:
        self.computed = 0

    async def compute(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.computed += 1
        return function(*args, **kwargs)

    run = compute


def with_crlf(text: bytes) -> bytes:
    """Line ends as the door to intake guarantees them."""
    return text.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def corpora() -> Path:
    """Where the public corpora lie; MAILAGENTS_CORPORA moves it."""
    import os

    beside = Path(__file__).resolve().parent.parent.parent.parent / "shared" / "corpora"
    return Path(os.environ.get("MAILAGENTS_CORPORA", beside))
