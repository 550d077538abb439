"""Public suites, through our own entry points: `tests/judges spf|dkim|arc|dmarc|mime|arf|bounces [FOLDER]`.

Prints what passed and what did not, with `--json` as one object and nothing else on stdout.
Exit codes: 0 all passed, 1 some failed, 2 the corpus is absent or the command wrong.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from tests.mail import arf_suite, bounce_suite, dmarc_suite, mime_suite
from tests.sender_auth import arc_suite, dkim_suite, spf_suite
from tests.sender_auth.zone import corpora

SUITES: dict[str, Callable[[Path], dict[str, str]]] = {
    "spf": spf_suite.run,
    "dkim": dkim_suite.run,
    "arc": arc_suite.run,
    "dmarc": dmarc_suite.run,
    "mime": mime_suite.run,
    "arf": arf_suite.run,
    "bounces": bounce_suite.run,
}


def main(arguments: list[str]) -> int:
    """Run one suite; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tests/judges", description="Run one public suite.")
    parser.add_argument("suite", choices=sorted(SUITES))
    parser.add_argument("folder", nargs="?", type=Path, help="where its corpus lies")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    folder = options.folder or corpora() / options.suite
    try:
        outcomes = SUITES[options.suite](folder)
    except OSError as error:
        print(f"judges: the corpus of {options.suite} is absent: {error}", file=sys.stderr)
        return 2
    failed = [name for name, problem in outcomes.items() if problem]
    if not outcomes:
        print(f"judges: {folder} holds no cases", file=sys.stderr)
        return 2
    report = {
        "suite": options.suite,
        "passed": len(outcomes) - len(failed),
        "total": len(outcomes),
        "failed": failed,
    }
    if options.json:
        print(json.dumps(report))
    else:
        print(f"{options.suite}: {report['passed']} of {report['total']}")
        for name in failed:
            print(f"  {name}: {outcomes[name]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
