"""The ARC validation suite (arc-draft-validation-tests.yml), run through the Verifier."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from server.sender_auth.verify import Verifier
from storage.records import Envelope, Peer
from tests.fakes import FakeClock
from tests.sender_auth.zone import InlineThreads, Zone, ZoneResolver, with_crlf

NOW = 1_700_000_000


def run(folder: Path) -> dict[str, str]:
    """Each case by name with what is wrong about our answer, '' where it is right."""
    return {
        name: "" if (found := result(content, zone)) == wanted else f"{found}, not {wanted}"
        for name, content, zone, wanted in cases(folder / "arc-draft-validation-tests.yml")
    }


def cases(path: Path) -> Iterator[tuple[str, bytes, Zone, str]]:
    """Each case's name, message, DNS and wanted result: 'pass', 'fail' or 'none'."""
    scenarios: Iterator[Any] = yaml.safe_load_all(path.read_text())
    for number, scenario in enumerate(filter(None, scenarios), 1):
        texts = scenario.get("txt-records") or {}
        zone = {name: {"TXT": [text]} for name, text in texts.items()}
        for name, case in scenario["tests"].items():
            content = with_crlf((case["message"] or "").encode())
            # The suite leaves it open what a chain is that its own seals call failed; RFC 8617 5.2 does not.
            yield f"{number}/{name}", content, zone, (case["cv"] or "fail").lower()


def result(content: bytes, zone: Zone) -> str:
    """Our result on a message's chain, 'none' where there is no verdict."""
    verifier = Verifier(
        resolver=ZoneResolver(zone),
        threads=InlineThreads(),  # type: ignore[arg-type]  # stands in for Threads
        clock=FakeClock(NOW * 1_000_000),
        hostname="mx.example.net",
        deadline_seconds=20,
    )
    found = asyncio.run(verifier.verify(peer=Peer("192.0.2.1"), envelope=Envelope(None, ()), content=content))
    return next((verdict.result for verdict in found if verdict.method == "arc"), "none")
