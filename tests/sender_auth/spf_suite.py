"""The RFC 7208 test suite, run through check_spf."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from server.sender_auth.spf_check import check_spf
from tests.sender_auth.zone import TIMEOUT, InlineThreads, ZoneResolver

FILE = "rfc7208-tests.yml"
DEFAULT_EXPLANATION = "SPF fail - not authorized"


def run(folder: Path) -> dict[str, str]:
    """Each case by name with what is wrong about our answer, '' where it is right."""
    return asyncio.run(_run(folder / FILE))


async def _run(file: Path) -> dict[str, str]:
    outcomes: dict[str, str] = {}
    for scenario in yaml.safe_load_all(file.read_text("utf-8")):
        resolver = ZoneResolver(zone_of(scenario))
        for name, case in scenario["tests"].items():
            outcomes[f"{scenario['description']}: {name}"] = await _judge(resolver, case)
    return outcomes


async def _judge(resolver: ZoneResolver, case: dict[str, Any]) -> str:
    verdict = await check_spf(
        resolver,
        InlineThreads(),  # type: ignore[arg-type]  # stands in for Threads
        address=str(case["host"]),
        sender=case["mailfrom"] or None,
        helo=str(case["helo"]),
        receiver="receiver.example",
    )
    allowed = case["result"] if isinstance(case["result"], list) else [case["result"]]
    if verdict.result not in allowed:
        return f"{verdict.result} ({verdict.reason}), allowed: {', '.join(allowed)}"
    explanation = case.get("explanation")
    if explanation is not None and verdict.result == "fail":
        wanted = DEFAULT_EXPLANATION if explanation == "DEFAULT" else explanation
        if verdict.reason != wanted:
            return f"explained by {verdict.reason!r}, not {wanted!r}"
    return ""


def zone_of(scenario: dict[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """A scenario's DNS."""
    return {name: _records(given) for name, given in scenario["zonedata"].items()}


def _records(given: list[Any]) -> dict[str, list[Any]]:
    """A name's records; type SPF stands for TXT where the suite gives no TXT of its own."""
    records: dict[str, list[Any]] = {}
    for rdtype, value in _pairs(given):
        records.setdefault(rdtype, []).append(value)
    generated = records.pop("SPF", None)
    if generated is not None:
        records.setdefault("TXT", generated)
    return {rdtype: values for rdtype, values in records.items() if "NONE" not in values}


def _pairs(given: list[Any]) -> Iterator[tuple[str, Any]]:
    for record in given:
        if isinstance(record, dict):
            yield from record.items()
        else:
            yield str(record), TIMEOUT
