"""The ARC suites, run through the Verifier (validation) and seal_message (signing).

arc-draft-validation-tests.yml, arc-draft-sign-tests.yml.
"""

import asyncio
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from server.mail import header
from server.sender_auth import arc_seal
from server.sender_auth.signer import seal_message
from server.sender_auth.verify import Verifier
from storage.records import Envelope, Peer, Verdict
from tests.fakes import FakeClock
from tests.sender_auth.zone import InlineThreads, Zone, ZoneResolver, with_crlf

NOW = 1_700_000_000
SEALING = "arc-draft-sign-tests.yml"


def run(folder: Path) -> dict[str, str]:
    """Each case by name with what is wrong about our answer, '' where it is right."""
    outcomes = {
        name: "" if (found := result(content, zone)) == wanted else f"{found}, not {wanted}"
        for name, content, zone, wanted in cases(folder / "arc-draft-validation-tests.yml")
    }
    return outcomes | {case.name: judge_seal(case) for case in sealing_cases(folder / SEALING)}


@dataclass(frozen=True)
class SealingCase:
    """A message, who seals it, and the three fields that are wanted, by their names."""

    name: str
    content: bytes
    zone: Zone
    names: tuple[bytes, ...]
    seal: arc_seal.Seal
    wanted: dict[bytes, str]


def sealing_cases(path: Path) -> Iterator[SealingCase]:
    """The cases of the signing suite."""
    for scenario in filter(None, yaml.safe_load_all(path.read_text())):
        private = load_pem_private_key(scenario["privatekey"].encode(), None)
        assert isinstance(private, RSAPrivateKey)
        zone = {name: {"TXT": [text]} for name, text in scenario["txt-records"].items()}
        for name, case in scenario["tests"].items():
            seal = arc_seal.Seal(
                scenario["domain"].encode(),
                scenario["sel"].encode(),
                case["srv-id"],
                case["t"],
                functools.partial(private.sign, padding=PKCS1v15(), algorithm=SHA256()),
                row_octets=1000,  # the suite's own form has no white space there
            )
            names = tuple(case["sig-headers"].encode().split(b":"))
            wanted = {b"arc-seal": case["AS"], b"arc-message-signature": case["AMS"]}
            wanted[b"arc-authentication-results"] = case["AAR"]
            content = with_crlf(case["message"].encode())
            yield SealingCase(f"sign/{name}", content, zone, names, seal, wanted)


def judge_seal(case: SealingCase) -> str:
    """What is wrong about our set for a message, '' where it is right."""
    status = arc_seal.status_of(verdicts(case.content, case.zone))
    made = seal_message(case.seal, status, b"", case.content, signed_fields=case.names, is_closed=False)
    found = {field.name.lower(): _bare(field.value.decode()) for field in header.fields(made)}
    wanted = {name: _bare(text) for name, text in case.wanted.items() if text.strip()}
    wrong = [name.decode() for name in wanted.keys() | found.keys() if found.get(name) != wanted.get(name)]
    return f"other {', '.join(sorted(wrong))}" if wrong else ""


def _bare(text: str) -> str:
    return re.sub(r"\s+", "", text)


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
    return next((one.result for one in verdicts(content, zone) if one.method == "arc"), "none")


def verdicts(content: bytes, zone: Zone) -> tuple[Verdict, ...]:
    """Our verdicts on a message."""
    verifier = Verifier(
        resolver=ZoneResolver(zone),
        threads=InlineThreads(),  # type: ignore[arg-type]  # stands in for Threads
        clock=FakeClock(NOW * 1_000_000),
        hostname="mx.example.net",
        deadline_seconds=20,
    )
    return asyncio.run(verifier.verify(peer=Peer("192.0.2.1"), envelope=Envelope(None, ()), content=content))
