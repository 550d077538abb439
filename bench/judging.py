"""Microseconds a message spends with policy: facts read from it and judged at every stage it passes.

The message is new each time, so that its header is read anew; nothing is stored. 200 rules
are as a site's: most part by a plain test, some ask a list, a pattern, or CEL.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench import report
from server.evidence import Case, Facts, Letter, of_placement
from server.rulebook import Rulebook
from storage.records import Envelope, Peer, Recipient, Source, Verdict

ROUNDS = 15
QUICK_ROUNDS = 5
MESSAGES = 400
GOAL_MICROSECONDS = 1000.0  # of rules-200
LISTED = 10_000
STAGES = ("connect", "helo", "mail", "rcpt", "message", "deliver")

ENVELOPE = Envelope("news@shop7.example", (Recipient("user@bench.test"),))
PEER = Peer("192.0.2.7", 40_000, "mail.shop7.example", extended=True, tls_version="TLSv1.3")
VERDICTS = (
    Verdict("spf", "pass", "shop7.example"),
    Verdict("dkim", "pass", "shop7.example"),
    Verdict("dmarc", "pass", "shop7.example", properties={"policy.dmarc": "reject"}),
)
CONTENT = (
    b"Received: from a.example by b.example; Mon, 1 Jun 2026 10:00:00 +0000\r\n"
    b"From: Shop <news@shop7.example>\r\nTo: user@bench.test\r\nSubject: Your order 4711 is on its way\r\n"
    b"Date: Mon, 1 Jun 2026 10:00:00 +0000\r\nMessage-ID: <1@shop7.example>\r\n\r\n"
) + b"Thank you for your order.\r\n" * 64


def rule(number: int, stage: str, when: str) -> str:
    """Return one rule in TOML."""
    head = f'[[rule]]\nname = "rule-{number}"\nstage = "{stage}"\n'
    return f"{head}when = '''{when}'''\naction = \"tag\"\nkeyword = \"T\"\n"


def mixed(count: int) -> str:
    """Return rules as a site has them: of 20, 14 by plain tests, 2 lists, 2 patterns, 2 for CEL alone."""
    lists = '[[list]]\nname = "domains"\nkind = "domains"\nfile = "domains.txt"\n'
    lists += '[[list]]\nname = "nets"\nkind = "networks"\nfile = "nets.txt"\n'
    made = []
    for number in range(count):
        kind = number % 20
        if kind < 10:
            when = f'header_from_domain == "site{number}.example" && dmarc == "pass"'
        elif kind < 12:
            when = f'source == "mx" && sender_domain in ["a{number}.example", "b{number}.example"]'
        elif kind < 14:
            when = f'spf == "fail" && dkim_result != "pass" && recipient_count > {number}'
        elif kind < 15:
            when = f'header_from_domain.in_list("domains") && size_octets > {number << 10}'
        elif kind < 16:
            when = f'client_ip.in_list("nets") && !tls && received_count > {number}'
        elif kind < 18:
            when = f'subject.matches("(lottery|prize) +{number}")'
        else:
            when = f'subject.contains("offer {number}") || size_octets > {number + 100} * 1000000'
        made.append(rule(number, "message", when))
    return lists + "".join(made)


def cel_alone(count: int) -> str:
    """Return rules of which each has to be executed, for the cost of the worst."""
    return "".join(rule(n, "message", f"size_octets > {n + 100} * 1000000") for n in range(count))


def judge_once(rulebook: Rulebook) -> None:
    """Judge one new message at every stage."""
    letter = Letter(CONTENT, len(CONTENT), lambda: CONTENT)
    case = Case(
        PEER,
        None,
        ENVELOPE,
        Source.MX,
        recipient="user@bench.test",
        recipient_count=1,
        letter=letter,
        verdicts=VERDICTS,
        organization_id="org_1",
    )
    facts = Facts(case)
    for stage in STAGES:
        if rulebook.asks(stage):
            chosen = of_placement(facts, "user@bench.test", "inb_1") if stage == "deliver" else facts
            rulebook.wanted(stage, chosen)
            rulebook.decide(stage, chosen)


def measure(text: str, *, rounds: int) -> float:
    """Return microseconds a message, the median of rounds."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "rules.toml").write_text(text)
        (directory / "domains.txt").write_text("".join(f"d{n}.example\n" for n in range(LISTED)))
        (directory / "nets.txt").write_text("".join(f"10.{n >> 8}.{n & 255}.0/24\n" for n in range(LISTED)))
        rulebook = Rulebook(directory)
    return median(_timed(lambda: judge_once(rulebook)) for _ in range(rounds))


def _timed(once: Callable[[], None]) -> float:
    begin = time.perf_counter()
    for _ in range(MESSAGES):
        once()
    return (time.perf_counter() - begin) / MESSAGES * 1e6


def main() -> int:
    """Run the bench; 0 when 200 rules cost under the goal."""
    parser = argparse.ArgumentParser(prog="bench/policy", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    options = parser.parse_args()
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    shipped = Path(__file__).parent.parent / "conf/policies"
    loads = {
        "rules-0": "",
        "rules-shipped": "".join(path.read_text("utf-8") for path in sorted(shipped.glob("*.toml"))),
        "rules-20": mixed(20),
        "rules-200": mixed(200),
        "rules-200-cel": cel_alone(200),
    }
    cells = [
        report.Cell(name, measure(text, rounds=rounds), None, None, "µs") for name, text in loads.items()
    ]
    facts = report.machine(goal=f"rules-200 under {GOAL_MICROSECONDS:.0f} µs a message")
    report.show(cells, facts, as_json=options.json)
    found = {cell.name: cell.ours for cell in cells}
    return 0 if found["rules-200"] < GOAL_MICROSECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
