"""The DKIM message sets of the corpora, run through the Verifier.

Right is: what RFC 6376 says, where RFC 8301 still lets it count. A signature by rsa-sha1 or a
key under 1,024 bits may not pass, whatever the set says; rows of obsolete protocols may not
crash and may not be passed by such a signature.
"""

import asyncio
import json
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from server.mail import header
from server.sender_auth.verify import Verifier
from storage.records import Envelope, Peer, Verdict
from tests.fakes import FakeClock
from tests.sender_auth.zone import TIMEOUT, InlineThreads, Zone, ZoneResolver, with_crlf

NOW = 1_700_000_000
RESULTS = {"pass", "fail", "policy", "neutral", "temperror", "permerror"}


@dataclass(frozen=True)
class Case:
    """A message with its DNS. wanted: 'pass', 'no pass', or '' where only a crash is wrong."""

    name: str
    content: bytes
    zone: Zone
    wanted: str


def cases(folder: Path) -> Iterator[Case]:
    """The cases of the three sets; raises FileNotFoundError where one is absent."""
    yield from _mail_dkim(folder / "mail-dkim")
    yield from _mail_auth(folder / "mail-auth")
    yield from _dkimpy(folder / "dkimpy", folder / "mail-auth")


def run(folder: Path) -> dict[str, str]:
    """Each case by name with what is wrong about our answer, '' where it is right."""
    return {case.name: judge(case) for case in cases(folder)}


def judge(case: Case) -> str:
    verdicts = dkim_verdicts(case.content, case.zone)
    results = [verdict.result for verdict in verdicts]
    if not set(results) <= RESULTS:
        return f"results {results}"
    passed = "pass" in results
    if case.wanted == "pass" and not passed:
        return f"no pass: {[(verdict.result, verdict.reason) for verdict in verdicts]}"
    return "passed" if case.wanted == "no pass" and passed else ""


def dkim_verdicts(content: bytes, zone: Zone) -> list[Verdict]:
    """Our verdicts on a message's signatures, judged a minute after the topmost was made."""
    made = re.search(rb"[;\s]t=([0-9]{9,10})", content[: header.split(content)])
    clock = FakeClock(((int(made[1]) + 60) if made else NOW) * 1_000_000)
    verifier = Verifier(
        resolver=ZoneResolver(zone),
        threads=InlineThreads(),  # type: ignore[arg-type]  # stands in for Threads
        clock=clock,
        hostname="mx.example.net",
        deadline_seconds=20,
    )
    envelope = Envelope(None, ())
    verdicts = asyncio.run(verifier.verify(peer=Peer("192.0.2.1"), envelope=envelope, content=content))
    return [verdict for verdict in verdicts if verdict.method == "dkim"]


def _mail_dkim(folder: Path) -> Iterator[Case]:
    zone = _fake_dns((folder / "FAKE_DNS.dat").read_text())
    for row in json.loads((folder / "expected.json").read_text()):
        content = with_crlf((folder / "corpus" / row["file"]).read_bytes())
        if row["scope"] != "rfc6376":
            wanted = "no pass" if not _counts(content, zone) else ""
        elif row["mail_dkim_result"] == "pass" and _counts(content, zone):
            wanted = "pass"
        else:
            wanted = "no pass"
        yield Case(f"mail-dkim/{row['file']}", content, zone, wanted)


def _fake_dns(text: str) -> Zone:
    zone: dict[str, dict[str, list[str]]] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        value = value.strip()
        if not name or name.startswith("#") or value == "NXDOMAIN":
            continue
        zone[name] = {"TXT": [TIMEOUT if value.startswith("~~") else value.strip('"')]}
    return zone


def _counts(content: bytes, zone: Zone) -> bool:
    """Whether some signature of a message is of an algorithm and key that may count today."""
    head = content[: header.split(content)]
    for field in header.fields(head):
        if field.name.lower() == b"dkim-signature" and b"sha256" in field.value:
            tags = dict(re.findall(rb"(?:^|;)\s*([a-z]+)\s*=\s*([^;]*)", field.value))
            name = f"{tags.get(b's', b'').decode().strip()}._domainkey.{tags.get(b'd', b'').decode().strip()}"
            texts = zone.get(name, {}).get("TXT", [""])
            if b"ed25519" in field.value or _bits(texts[0]) >= 1024:
                return True
    return False


def _bits(text: str) -> int:
    found = re.search(r"p=([A-Za-z0-9+/=\s]+)", text)
    try:
        key = load_der_public_key(b64decode(found[1])) if found else None
    except ValueError:
        return 0
    return key.key_size if isinstance(key, RSAPublicKey) else 0


def _mail_auth(folder: Path) -> Iterator[Case]:
    for path in _some(folder, "*.txt"):
        if path.name[0].isdigit():
            zone, content = _with_dns_on_top(path)
            yield Case(f"mail-auth/{path.name}", content, zone, "pass")


def _with_dns_on_top(path: Path) -> tuple[dict[str, dict[str, list[str]]], bytes]:
    records, _, content = with_crlf(path.read_bytes()).partition(b"\r\n\r\n")
    pairs = (line.partition(" ") for line in records.decode().splitlines())
    return {name: {"TXT": [value.strip()]} for name, _, value in pairs}, content


def _dkimpy(folder: Path, mail_auth: Path) -> Iterator[Case]:
    # RFC 8463 A gives the keys of football.example.com, which the other set carries too.
    zone: dict[str, Mapping[str, list[str]]] = dict(_with_dns_on_top(mail_auth / "001.txt")[0])
    zone["sed._domainkey.test.ex"] = {"TXT": [(folder / "eximtest.dns").read_text().strip()]}
    wanted = {"rfc6376.signed.msg": "pass", "rfc6376.signed.rsa.msg": "pass", "ed25519test2.msg": "pass"}
    # The first of these is the last one above with its t= taken out after signing.
    wanted |= {"rfc6376.signed.no_t.msg": "no pass", "test.message.baddomain": "no pass"}
    for path in [*_some(folder, "*.msg"), *_some(folder, "*.message*"), folder / "message.mbox"]:
        yield Case(f"dkimpy/{path.name}", with_crlf(path.read_bytes()), zone, wanted.get(path.name, ""))


def _some(folder: Path, pattern: str) -> list[Path]:
    found = sorted(folder.glob(pattern))
    if not found:
        raise FileNotFoundError(f"{folder}: no {pattern}")
    return found
